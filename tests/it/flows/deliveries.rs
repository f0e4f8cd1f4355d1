//! Receivers that misbehave, and time that is moved by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use beampipe::alerts::deliver::Sender;
use beampipe::alerts::post;
use beampipe::api::Settings;
use beampipe::clock::Clock;
use beampipe::outgoing::Guard;
use beampipe_domain::delivery::{Command, Delivery, Enqueued, MAX_ATTEMPTS, Message, SCHEDULE};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{self, Service};

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answer(u16),
    Hang,
}

/// A receiver that does as the time says, and counts what came in.
#[derive(Clone)]
struct Receiver {
    clock: Clock,
    does: Arc<dyn Fn(DateTime<Utc>) -> Does + Send + Sync>,
    came: Arc<AtomicU64>,
}

async fn receive(State(receiver): State<Receiver>) -> (StatusCode, HeaderMap) {
    receiver.came.fetch_add(1, Ordering::SeqCst);
    match (receiver.does)(receiver.clock.now()) {
        Does::Answer(code) => (StatusCode::from_u16(code).unwrap(), HeaderMap::new()),
        Does::Hang => std::future::pending().await,
    }
}

impl Receiver {
    fn new(clock: &Clock, does: impl Fn(DateTime<Utc>) -> Does + Send + Sync + 'static) -> Self {
        Self { clock: clock.clone(), does: Arc::new(does), came: Arc::default() }
    }

    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn came(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }
}

async fn channel(service: &Service, name: &str, url: &str) -> Uuid {
    let channel = json!({"name": name, "kind": "webhook", "config": {"url": url}});
    let channel = service.post("/notification-channels", channel).await.is(201);
    channel["uuid"].as_str().unwrap().parse().unwrap()
}

async fn enqueue(service: &Service, channel: Uuid) -> Uuid {
    let id = service.clock.id();
    let order = Enqueued {
        message: Message::Firing,
        channel_id: channel,
        channel_kind: "webhook".into(),
        dedup_key: id.to_string(),
        payload: json!({"alert": "backlog", "status": "firing", "summary": "61 sources wait"}),
        next_attempt_at: service.clock.now(),
        max_attempts: MAX_ATTEMPTS,
        ..Enqueued::default()
    };
    let command = Command::Enqueue(Box::new(order));
    service.handle.handle::<Delivery>(&id.to_string(), &service.context(), command).await.unwrap();
    id
}

async fn delivery(service: &Service, id: Uuid) -> Value {
    assert!(service.api.settle(service.handle.log().head().position).await);
    service.get(&format!("/alert-deliveries/{id}")).await.is(200)
}

fn time(of: &Value) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(of.as_str().unwrap()).unwrap().to_utc()
}

/// The post, as the acting scheduler runs it, until this is dropped.
struct Running(CancellationToken);

impl Running {
    fn of(service: &Service) -> Self {
        let (tell, acting) = tokio::sync::watch::channel(Some(0));
        let (sender, models, stop) =
            (service.api.sender.clone(), service.api.models.clone(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move {
            post::run(sender, models, acting, stopped).await;
            drop(tell);
        });
        Self(stop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Waits until the delivery has had so many attempts, or has ended.
async fn tried(service: &Service, id: Uuid, attempts: u64) -> Value {
    let began = Instant::now();
    loop {
        let one = delivery(service, id).await;
        if one["attempts"].as_u64().unwrap() >= attempts {
            return one;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{attempts} attempts: {one:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn by_hand() -> Clock {
    Clock::by_hand("2026-11-20T03:00:00Z".parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_in_trouble_for_long_has_exactly_the_scheduled_attempts_and_then_the_message() {
    let clock = by_hand();
    let service = support::service_at(Settings::default(), clock.clone()).await;
    let began = clock.now();
    // It answers 500 for ten minutes, hangs for longer than the schedule pauses there, and is well again.
    let receiver = Receiver::new(&clock, move |now| match (now - began).num_minutes() {
        0..=9 => Does::Answer(500),
        10..=44 => Does::Hang,
        _ => Does::Answer(200),
    });
    let id = enqueue(&service, channel(&service, "ops", &receiver.listen().await).await).await;
    let _running = Running::of(&service);
    let mut one = tried(&service, id, 1).await;
    while one["status"] != "sent" {
        let next = time(&one["next_attempt_at"]);
        // A millisecond before its time nothing happens.
        clock.advance(next - clock.now() - TimeDelta::milliseconds(1));
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(receiver.came(), one["attempts"].as_u64().unwrap(), "it came before its time: {one:#}");
        clock.advance(TimeDelta::milliseconds(1));
        one = tried(&service, id, one["attempts"].as_u64().unwrap() + 1).await;
    }
    let attempts = one["attempt_list"].as_array().unwrap();
    assert_eq!(receiver.came(), attempts.len() as u64, "each attempt was made once");
    for (n, pair) in attempts.windows(2).enumerate() {
        let pause = time(&pair[1]["started_at"]) - time(&pair[0]["started_at"]);
        let planned = f64::from(SCHEDULE[n]);
        let spread = pause.num_milliseconds() as f64 / 1000.0 / planned;
        assert!((0.5..=1.5).contains(&spread), "after {}: {pause}, planned {planned} s", n + 1);
        assert_eq!(pair[0]["retry_at"], pair[1]["started_at"]);
    }
    let said: Vec<_> = attempts
        .iter()
        .map(|a| {
            a["code"].as_u64().map_or(a["error"].as_str().unwrap_or_default().to_owned(), |c| c.to_string())
        })
        .collect();
    println!("attempts: {said:?}");
    let hung = said.iter().filter(|said| said.starts_with("no answer within 2 s")).count();
    let in_trouble = said.iter().filter(|said| *said == "500").count();
    assert!(in_trouble >= 5 && hung >= 1 && said.last().unwrap() == "200", "{said:?}");
    assert_eq!(in_trouble + hung + 1, said.len());
    let sent = service.get("/events?type=delivery.sent").await.is(200);
    assert_eq!(sent.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guard_refuses_or_cuts_off_is_said_in_the_attempt() {
    let service = support::service().await;
    let first = async |url: &str, sender: &Sender| {
        let id = enqueue(&service, channel(&service, "ops", url).await).await;
        sender.attempt(id, &service.context()).await.unwrap();
        let one = delivery(&service, id).await;
        assert_eq!(one["attempts"], 1, "{one}");
        (one["status"].clone(), one["attempt_list"][0].clone())
    };
    let ours = &service.api.sender;
    let away = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data?x=1\r\ncontent-length: 0\r\n\r\n";
    let (status, attempt) = first(&raw(away, false).await.0, ours).await;
    assert_eq!((&status, &attempt["code"]), (&json!("failed"), &json!(302)));
    assert_eq!(attempt["answer"], "a redirect to http://169.254.169.254, which is not followed");

    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\nhello";
    let ((url, sent), began) = (raw(head, true).await, Instant::now());
    let (status, attempt) = first(&url, ours).await;
    assert_eq!((&status, &attempt["code"]), (&json!("sent"), &json!(200)));
    let kept = attempt["answer"].as_str().unwrap();
    let (kept, why) = kept.split_once(" … ").unwrap();
    assert!(kept.starts_with("helloxxx") && kept.len() == 500, "{} bytes are kept", kept.len());
    assert_eq!(why, "(cut: longer than 2048 bytes)");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 64 << 20, "the connection was cut, after {sent} bytes");

    // Without the tests' own exception, no name and no spelling of an address leads inside.
    let strict = Sender { guard: Guard::default(), ..ours.clone() };
    let port = raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await.0;
    let port = port.rsplit(':').next().unwrap().to_owned();
    for (host, word) in [
        ("localhost", "loopback"),
        ("127.0.0.1", "loopback"),
        ("0x7f000001", "loopback"),
        ("[::ffff:127.0.0.1]", "mapped"),
        ("[64:ff9b::7f00:1]", "NAT64"),
        ("169.254.169.254", "metadata"),
    ] {
        let (status, attempt) = first(&format!("http://{host}:{port}"), &strict).await;
        assert_eq!((&status, &attempt["code"]), (&json!("failed"), &Value::Null), "{host}");
        let error = attempt["error"].as_str().unwrap();
        assert!(error.contains(word) && error.contains("outgoing.allow_networks"), "{host}: {error}");
    }
}

/// A receiver that says `answer`, then x without an end if asked to; its address, and how much it got rid of.
async fn raw(answer: &'static str, endless: bool) -> (String, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sent, more) = (Arc::<AtomicU64>::default(), vec![b'x'; 64 * 1024]);
    let counted = sent.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            while endless && stream.write_all(&more).await.is_ok() {
                counted.fetch_add(more.len() as u64, Ordering::SeqCst);
            }
        }
    });
    (url, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_fails_for_a_day_is_disabled_and_the_others_of_its_rules_are_told_once() {
    let clock = by_hand();
    let service = support::service_at(Settings::default(), clock.clone()).await;
    let down = Receiver::new(&clock, |_| Does::Answer(503));
    let well = Receiver::new(&clock, |_| Does::Answer(200));
    let beside = Receiver::new(&clock, |_| Does::Answer(200));
    let failing = channel(&service, "pager", &down.listen().await).await;
    let other = channel(&service, "mail at night", &well.listen().await).await;
    channel(&service, "of nobody", &beside.listen().await).await;
    let rule = json!({"name": "backlog", "trigger_kind": "pending_backlog", "channel_ids": [failing, other]});
    service.post("/alert-rules", rule).await.is(201);
    let path = format!("/notification-channels/{failing}");
    let running = Running::of(&service);
    let mut messages = vec![];
    for _ in 0..3 {
        messages.push(enqueue(&service, failing).await);
        tried(&service, *messages.last().unwrap(), 1).await;
        clock.advance(TimeDelta::hours(8) - TimeDelta::minutes(1));
    }
    let shown = service.get(&path).await.is(200);
    assert_eq!((&shown["enabled"], &shown["failing_since"]), (&json!(true), &json!("2026-11-20T03:00:00Z")));
    // The next attempt comes after a day.
    clock.advance(TimeDelta::minutes(4));
    let began = Instant::now();
    while service.get(&path).await.is(200)["enabled"] == true {
        assert!(began.elapsed() < Duration::from_secs(20), "it is not disabled");
        clock.advance(TimeDelta::seconds(30));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let reason = service.get(&path).await.is(200)["disabled_reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("3 messages failed since 2026-11-20T03:00:00Z") && reason.ends_with("answered 503"),
        "{reason}"
    );
    let notices = loop {
        let notices =
            service.get("/alert-deliveries?message=notice").await.is(200).as_array().unwrap().clone();
        if notices.iter().any(|notice| notice["status"] == "sent") {
            break notices;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{notices:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    drop(running);
    let [notice] = &notices[..] else { panic!("one is told, and once: {notices:#?}") };
    assert_eq!(notice["channel_id"], json!(other));
    let summary = notice["payload"]["summary"].as_str().unwrap();
    assert!(summary.contains("\"pager\" was disabled") && summary.contains(&reason), "{summary}");
    assert_eq!((well.came(), beside.came()), (1, 0));
    // Whoever takes over tells nobody again, and what waited there is given up.
    let _next = Running::of(&service);
    clock.advance(TimeDelta::hours(30));
    for message in messages {
        let began = Instant::now();
        while delivery(&service, message).await["status"] != "failed" {
            assert!(began.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let disabled = service.get("/events?type=channel.disabled").await.is(200);
    assert_eq!((disabled.as_array().unwrap().len(), well.came()), (1, 1));
    // Enabled again, it starts anew.
    service.patch(&path, json!({"enabled": true})).await.is(200);
    let again = service.get(&path).await.is(200);
    assert_eq!((&again["failing_since"], &again["disabled_reason"]), (&Value::Null, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_fails_on_a_message_does_not_lose_it() {
    let (service, clock) = (support::service().await, Clock::system());
    let receiver = Receiver::new(&clock, |_| Does::Answer(200));
    let config = json!({
        "url": receiver.listen().await, "title_template": "{{ alert }}", "body_template": "for {{ labels.dependency }}",
    });
    let draft = json!({"name": "chat", "kind": "slack", "config": config});
    let channel = service.post("/notification-channels", draft).await.is(201);
    let id = enqueue(&service, channel["uuid"].as_str().unwrap().parse().unwrap()).await;
    service.api.sender.attempt(id, &service.context()).await.unwrap();
    let one = delivery(&service, id).await;
    assert_eq!((&one["status"], receiver.came()), (&json!("sent"), 1));
    let said = one["attempt_list"][0]["answer"].as_str().unwrap();
    assert!(said.starts_with("body_template could not be used and the plain message was sent"), "{said}");
}
