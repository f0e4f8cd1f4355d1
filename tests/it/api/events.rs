use std::time::Duration;

use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use crate::support::{self, Answer, Service, answered};

/// A server-sent event.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    id: Option<String>,
    event: Option<String>,
    data: String,
}

/// Reads a stream until `enough`, or its end.
async fn read_sse(
    service: &Service,
    token: &str,
    path: &str,
    last_event_id: Option<&str>,
    enough: impl Fn(&[Sent]) -> bool,
) -> Vec<Sent> {
    let mut request = service.http.get(service.url(path)).bearer_auth(token);
    request = request.header(ACCEPT, "text/event-stream");
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id);
    }
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut sent = vec![];
    while !enough(&sent) {
        let Some(chunk) = response.chunk().await.unwrap() else { break };
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some(end) = text.find("\n\n") {
            let frame: String = text.drain(..end + 2).collect();
            let field = |name: &str| {
                frame.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim_start().to_owned())
            };
            if let Some(data) = field("data:") {
                sent.push(Sent { id: field("id:"), event: field("event:"), data });
            }
        }
    }
    sent
}

/// The events among what was sent, as JSON.
fn events(sent: &[Sent]) -> Vec<Value> {
    sent.iter().filter(|s| s.event.is_none()).map(|s| serde_json::from_str(&s.data).unwrap()).collect()
}

fn caught_up(sent: &[Sent]) -> bool {
    sent.iter().any(|s| s.event.as_deref() == Some("caught-up"))
}

async fn ndjson(service: &Service, path: &str) -> Answer {
    let request = service.request(reqwest::Method::GET, path).header(ACCEPT, "application/x-ndjson");
    answered(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_broke_off_goes_on_and_the_parts_are_the_page() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    for _ in 0..30 {
        service.touch(source).await;
    }
    let path = format!("/sources/{source}/events");
    let page = service.get(&format!("{path}?order=asc&limit=1000")).await.is(200);
    let page = page.as_array().unwrap();
    assert_eq!(page.len(), 31);
    for k in 1..31 {
        let key = &service.admin_key;
        let mut first = read_sse(&service, key, &path, None, |sent| events(sent).len() >= k).await;
        first.truncate(k);
        let last = first.last().unwrap().id.clone().unwrap();
        let second = read_sse(&service, key, &path, Some(&last), caught_up).await;
        let parts: Vec<Value> = events(&first).into_iter().chain(events(&second)).collect();
        assert_eq!(&parts, page, "broken off after {k}");
    }
    let lines = ndjson(&service, &path).await;
    let lines: Vec<Value> = lines.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(&lines, page);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_misses_or_repeats_an_event_while_many_follow() {
    let service = std::sync::Arc::new(support::service().await);
    service.project("p").await;
    let source = service.source("p", "A").await;
    let total = 1001;
    let mut followers = vec![];
    for n in 0..200 {
        let service = service.clone();
        let path =
            if n % 2 == 0 { format!("/sources/{source}/events") } else { "/projects/p/events".to_owned() };
        followers.push(tokio::spawn(async move {
            let key = service.admin_key.clone();
            let mut seen = vec![];
            let mut last: Option<String> = None;
            // Every one breaks off once, somewhere else.
            for part in [20 + n * 5, usize::MAX] {
                let wanted = total + if n % 2 == 0 { 0 } else { 2 };
                let before = seen.len();
                let sent = read_sse(&service, &key, &path, last.as_deref(), |sent| {
                    events(sent).len() >= part.min(wanted - before)
                })
                .await;
                last = sent.iter().rev().find_map(|s| s.id.clone()).or(last);
                seen.extend(events(&sent));
                if seen.len() >= wanted {
                    break;
                }
            }
            (n, seen)
        }));
    }
    let writer = service.clone();
    for _ in 0..total - 1 {
        writer.touch(source).await;
    }
    for follower in followers {
        let (n, seen) = tokio::time::timeout(Duration::from_secs(60), follower).await.unwrap().unwrap();
        let path =
            if n % 2 == 0 { format!("/sources/{source}/events") } else { "/projects/p/events".to_owned() };
        let page = service.get(&format!("{path}?order=asc&limit=5000")).await.is(200);
        assert_eq!(seen.len(), page.as_array().unwrap().len());
        assert_eq!(&seen, page.as_array().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_link_to_the_next_and_together_are_everything() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    for _ in 0..24 {
        service.touch(source).await;
    }
    for (start, newest_first) in
        [("?limit=7", true), ("?limit=7&order=asc", false), ("?limit=7&after=0", false)]
    {
        let mut path = format!("/sources/{source}/events{start}");
        let mut positions: Vec<u64> = vec![];
        loop {
            let answer = service.get(&path).await;
            let next = answer.header("link").map(ToOwned::to_owned);
            assert!(answer.header("beampipe-position").is_some());
            let page = answer.is(200);
            positions.extend(page.as_array().unwrap().iter().map(|e| e["position"].as_u64().unwrap()));
            let Some(next) = next else { break };
            let url = next.split(['<', '>']).nth(1).unwrap();
            path = url.strip_prefix("/api/v2").unwrap().to_owned();
        }
        assert_eq!(positions.len(), 25, "{start}");
        let sorted = if newest_first {
            positions.windows(2).all(|pair| pair[0] > pair[1])
        } else {
            positions.windows(2).all(|pair| pair[0] < pair[1])
        };
        assert!(sorted, "{start}: {positions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_a_page_and_a_stream_the_same_way() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    service.discovered("p", "A").await;
    service.post("/sources/discover", json!({"project_module": "p"})).await.is(200);
    let types = |answer: &Value| -> Vec<String> {
        let all = answer.as_array().unwrap().iter();
        all.map(|e| e["event_type"].as_str().unwrap().to_owned()).collect()
    };
    let path = format!("/sources/{source}/events");
    let all = service.get(&format!("{path}?order=asc")).await.is(200);
    assert_eq!(types(&all), ["source.registered", "discovery.changed", "discovery.requested"]);
    let family = service.get(&format!("{path}?type=discovery.*&order=asc")).await.is(200);
    assert_eq!(types(&family), ["discovery.changed", "discovery.requested"]);
    let system = service.get(&format!("{path}?actor=system:test")).await.is(200);
    assert_eq!(types(&system), ["discovery.changed"]);
    let by_name = service.get(&format!("{path}?actor=key:first&order=asc")).await.is(200);
    assert_eq!(types(&by_name), ["source.registered", "discovery.requested"]);
    let cut = all[1]["occurred_at"].as_str().unwrap();
    assert_eq!(types(&service.get(&format!("{path}?until={cut}")).await.is(200)), ["source.registered"]);
    assert_eq!(service.get(&format!("{path}?since={cut}")).await.is(200).as_array().unwrap().len(), 2);
    let streamed =
        read_sse(&service, &service.admin_key, &format!("{path}?type=discovery.*"), None, caught_up).await;
    assert_eq!(Value::Array(events(&streamed)), family);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_id_of_another_log_is_gone() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    let path = format!("/sources/{source}/events");
    for id in ["1-00000000", "999999-00000000"] {
        let request = service.request(reqwest::Method::GET, &path).header("last-event-id", id);
        let answer = answered(request.header(ACCEPT, "text/event-stream").send().await.unwrap()).await;
        assert_eq!(answer.is(410)["code"], "log-changed");
    }
    let request = service.request(reqwest::Method::GET, &path).header("last-event-id", "x");
    answered(request.header(ACCEPT, "text/event-stream").send().await.unwrap()).await.is(400);
    service.get("/sources/018f0000-0000-7000-8000-000000000000/events").await.is(404);
    service.get("/projects/nope/events").await.is(404);
    service.get("/executions/018f0000-0000-7000-8000-000000000000/events").await.is(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_installation_are_for_administrators() {
    let service = support::service().await;
    let viewer = service.key_of("vera", "viewer").await;
    service.project("p").await;
    let all = service.get("/events?order=asc&limit=5000").await.is(200);
    assert!(all.to_string().contains("account.created"));
    let seen = service.get_as(&viewer, "/events?order=asc&limit=5000").await.is(200);
    assert!(!seen.as_array().unwrap().is_empty());
    assert!(seen.as_array().unwrap().iter().all(|event| event["project_module"] == "p"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_ends_when_its_key_is_revoked() {
    let service = support::service().await;
    service.project("p").await;
    let viewer = service.key_of("vera", "viewer").await;
    let follow = read_sse(&service, &viewer, "/projects/p/events", None, |sent| {
        sent.iter().any(|s| s.event.as_deref() == Some("access-ended"))
    });
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.post("/accounts/vera/disable", json!({"reason": "left"})).await.is(200);
    };
    let (sent, ()) =
        tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(follow, revoke) }).await.unwrap();
    assert_eq!(sent.last().unwrap().event.as_deref(), Some("access-ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_an_execution_ends_with_it_and_not_with_an_attempt_before() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    let path = format!("/executions/{execution}/events?until_terminal=true");
    service.patch(&format!("/executions/{execution}"), json!({"status": "cancelled"})).await.is(200);
    let sent = read_sse(&service, &service.admin_key, &path, None, |_| false).await;
    assert_eq!(events(&sent).last().unwrap()["event_type"], "execution.cancelled");

    service.post(&format!("/executions/{execution}/retry"), json!({"reason": "again"})).await.is(202);
    let follow = read_sse(&service, &service.admin_key, &path, None, |_| false);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.patch(&format!("/executions/{execution}"), json!({"status": "cancelled"})).await.is(200);
    };
    let (sent, ()) = tokio::join!(follow, cancel);
    let types: Vec<Value> = events(&sent).iter().map(|e| e["event_type"].clone()).collect();
    assert_eq!(types.iter().filter(|t| **t == "execution.cancelled").count(), 2, "{types:?}");
    assert_eq!(types.last().unwrap(), "execution.cancelled");
    // It was told to its sources too, under their names.
    let source = beampipe_domain::id::source("p", "A");
    let told = service.get(&format!("/sources/{source}/events?type=execution.*&order=asc")).await.is(200);
    assert_eq!(told[0]["source_identifier"], "A");
    assert_eq!(told[0]["execution_id"], execution.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_streams_say_that_they_are_alive_and_are_counted() {
    let settings = beampipe::api::Settings {
        heartbeat: Duration::from_millis(100),
        ..beampipe::api::Settings::default()
    };
    let service = support::service_with(settings).await;
    service.project("p").await;
    let request =
        service.request(reqwest::Method::GET, "/projects/p/events").header(ACCEPT, "text/event-stream");
    let mut response = request.send().await.unwrap();
    let mut text = String::new();
    while !text.contains(": heartbeat") {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    let active = || async {
        let metrics = service.get("/metrics").await.body;
        let line =
            metrics.lines().find(|l| l.starts_with("beampipe_subscriptions_active{kind=\"sse\"}")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(active().await, 1);
    drop(response);
    let start = std::time::Instant::now();
    while active().await != 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "a stream that nobody reads is forgotten");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
