//! Messages to a receiver on loopback: each arrives, signed, whatever happens to the receiver or to us.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use beampipe::alerts::evaluate::{Evaluator, Setting};
use beampipe::alerts::payload::Links;
use beampipe::alerts::post;
use beampipe::metrics::Metrics;
use beampipe_domain::alerting;
use beampipe_domain::dependency::{self, Dependency};
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::service;
use crate::support;

/// What came in.
#[derive(Clone, Debug)]
pub struct Got {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// An answer to come: a status and a header.
type Next = (u16, Option<(&'static str, &'static str)>);

/// A receiver that keeps what it gets, and answers as it is told, then 200. It repeats what it was sent, as careless ones do.
#[derive(Clone, Default)]
pub struct Receiver {
    got: Arc<Mutex<Vec<Got>>>,
    next: Arc<Mutex<VecDeque<Next>>>,
}

async fn receive(
    State(receiver): State<Receiver>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let said = format!("you sent {uri} with {headers:?}");
    receiver.got.lock().push(Got { headers, body: body.to_vec() });
    let (code, header) = receiver.next.lock().pop_front().unwrap_or((200, None));
    let mut more = HeaderMap::new();
    if let Some((name, value)) = header {
        more.insert(name, value.parse().unwrap());
    }
    (StatusCode::from_u16(code).unwrap(), more, said)
}

impl Receiver {
    pub async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/hook/canary-path-1c9d")
    }

    fn answers(&self, next: impl IntoIterator<Item = Next>) {
        self.next.lock().extend(next);
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    /// Waits until it got so many.
    async fn until(&self, many: usize) -> Vec<Got> {
        let began = Instant::now();
        while self.got().len() < many {
            assert!(began.elapsed() < Duration::from_secs(30), "got {} of {many}", self.got().len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.got()
    }
}

const SIGNING: &[u8] = b"a secret of 32 bytes, more or le";

/// Checks a message as its receiver does: from the standard, and not with our code.
fn check_signature(got: &Got) {
    let signed = [
        got.header("webhook-id").as_bytes(),
        b".",
        got.header("webhook-timestamp").as_bytes(),
        b".",
        got.body.as_slice(),
    ]
    .concat();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SIGNING);
    let verified = got.header("webhook-signature").split(' ').any(|signature| {
        let signature = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
        ring::hmac::verify(&key, &signed, &signature).is_ok()
    });
    assert!(verified, "{got:?}");
}

async fn channel(service: &support::Service, url: &str) -> Value {
    let signing = format!("whsec_{}", STANDARD.encode(SIGNING));
    let channel = json!({
        "name": "ops", "kind": "webhook",
        "config": {
            "url": url, "headers": {"authorization": "Bearer canary-token-77"}, "signing_secret": signing,
            "previous_signing_secret": "the one before",
        },
    });
    service.post("/notification-channels", channel).await.is(201)
}

pub fn uuid(of: &Value) -> Uuid {
    of["uuid"].as_str().unwrap().parse().unwrap()
}

/// A rule that watches an archive.
async fn archive(service: &support::Service, channel: &Value) -> Uuid {
    uuid(&rule(service, "archive", "dependency_down", json!({"dependency": "tap_a"}), channel).await)
}

/// The point of the grid that is so many after the next one.
pub fn at(service: &support::Service, points: i64) -> DateTime<Utc> {
    alerting::next(alerting::point(service.clock.now())) + TimeDelta::seconds(points * alerting::GRID_SECONDS)
}

/// Runs the post as the acting scheduler does.
pub fn run_post(service: &support::Service, stop: &CancellationToken) -> tokio::task::JoinHandle<()> {
    let (tell, acting) = tokio::sync::watch::channel(Some(0));
    let (sender, models, stop) = (service.api.sender.clone(), service.api.models.clone(), stop.clone());
    tokio::spawn(async move {
        post::run(sender, models, acting, stop).await;
        drop(tell);
    })
}

/// Waits until every delivery has ended; answers them.
pub async fn ended(service: &support::Service, many: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let all = service.get("/alert-deliveries").await.is(200);
        let all = all.as_array().unwrap().clone();
        if all.len() == many && all.iter().all(|one| one["ended_at"].is_string()) {
            return all;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{all:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_alert_calls_for_arrives_signed_and_its_resolution_after_it() {
    let (service, receiver) = (support::service().await, Receiver::default());
    let channel = channel(&service, &receiver.listen().await).await;
    let rule = archive(&service, &channel).await;
    // Both messages wait before anybody delivers; two that take themselves for the acting one do.
    look(&service, "tap_a", false).await;
    judge(&service, at(&service, 0)).await;
    look(&service, "tap_a", true).await;
    judge(&service, at(&service, 1)).await;
    let stop = CancellationToken::new();
    let posts = [run_post(&service, &stop), run_post(&service, &stop)];
    ended(&service, 2).await;
    stop.cancel();
    for post in posts {
        post.await.unwrap();
    }
    let got = receiver.until(2).await;
    got.iter().for_each(check_signature);
    let ids: BTreeSet<&str> = got.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!(ids.len(), 2, "what repeats has the same id");
    assert_eq!(got[0].json()["status"], "firing");
    let last = got.last().unwrap();
    assert_eq!(
        (&last.json()["status"], &last.json()["summary"]),
        (&json!("resolved"), &json!("over: tap_a is down: connection refused"))
    );
    assert_eq!(last.header("authorization"), "Bearer canary-token-77");
    let sent = service.get("/events?type=delivery.sent").await.is(200);
    assert_eq!(sent.as_array().unwrap().len(), 2, "each was sent once, as far as the log knows");
    let rule = service.get(&format!("/alert-rules/{rule}")).await.is(200);
    assert_eq!(rule["last_fired_at"].as_str().map(|at| &at[..19]), at(&service, 0).to_rfc3339().get(..19));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_in_trouble_is_tried_again_and_one_that_is_gone_is_left_alone() {
    let (service, receiver) = (support::service().await, Receiver::default());
    let channel = channel(&service, &receiver.listen().await).await;
    archive(&service, &channel).await;
    receiver.answers([(503, Some(("retry-after", "1"))), (200, None), (410, None)]);
    let stop = CancellationToken::new();
    let post = run_post(&service, &stop);
    look(&service, "tap_a", false).await;
    judge(&service, at(&service, 0)).await;
    let sent = &ended(&service, 1).await[0];
    assert_eq!((&sent["status"], &sent["attempts"]), (&json!("sent"), &json!(2)));
    let one = service.get(&format!("/alert-deliveries/{}", sent["uuid"].as_str().unwrap())).await.is(200);
    let (first, second) = (&one["attempt_list"][0], &one["attempt_list"][1]);
    assert_eq!((&first["code"], &second["code"]), (&json!(503), &json!(200)));
    let time = |of: &Value| DateTime::parse_from_rfc3339(of.as_str().unwrap()).unwrap();
    assert!(time(&second["started_at"]) >= time(&first["retry_at"]), "not before its time");
    look(&service, "tap_a", true).await;
    judge(&service, at(&service, 1)).await;
    let gone = &ended(&service, 2).await[0];
    assert_eq!((&gone["status"], &gone["code"]), (&json!("failed"), &json!(410)));
    let one = service.get(&format!("/notification-channels/{}", uuid(&channel))).await.is(200);
    assert_eq!(one["enabled"], false);
    assert!(one["disabled_reason"].as_str().unwrap().contains("410"), "{one}");
    // What was to go there is given up, and nothing is sent.
    look(&service, "tap_a", false).await;
    judge(&service, at(&service, 2)).await;
    let given_up = &ended(&service, 3).await[0];
    assert_eq!((&given_up["status"], &given_up["attempts"]), (&json!("failed"), &json!(0)));
    assert_eq!(receiver.got().len(), 3);
    stop.cancel();
    post.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_says_what_happened_and_no_secret_that_the_receiver_repeats() {
    let (service, receiver) = (support::service().await, Receiver::default());
    let channel = channel(&service, &receiver.listen().await).await;
    let one = format!("/notification-channels/{}", uuid(&channel));
    let test = format!("{one}/test");
    let tested = service.post(&test, json!({})).await.is(200);
    assert_eq!(
        (&tested["status"], &tested["code"], &tested["error"]),
        (&json!("sent"), &json!(200), &json!(null))
    );
    assert!(tested["answer"].as_str().unwrap().contains("[REDACTED]"), "{tested}");
    check_signature(&receiver.got()[0]);
    let listed = service.get(&format!("/alert-deliveries/{}", tested["delivery_id"].as_str().unwrap())).await;
    assert_eq!(listed.is(200)["message"], "test");
    receiver.answers([(302, Some(("location", "http://169.254.169.254/latest/meta-data")))]);
    let redirected = service.post(&test, json!({})).await.is(200);
    assert_eq!((&redirected["status"], &redirected["code"]), (&json!("failed"), &json!(302)));
    assert!(redirected["answer"].as_str().unwrap().contains("not followed"), "{redirected}");
    let shown = service.get(&one).await.is(200);
    assert_eq!((&shown["last_test_status"], &shown["last_test_code"]), (&json!("failed"), &json!(302)));
    receiver.answers([(410, None)]);
    let gone = service.post(&test, json!({})).await.is(200);
    assert_eq!((&gone["status"], &gone["code"]), (&json!("failed"), &json!(410)));
    assert_eq!(service.get(&one).await.is(200)["enabled"], true, "a test counts against no channel");
    for (url, word) in [
        ("http://169.254.169.254/latest/meta-data", "metadata"),
        ("http://[::1]:9/", "loopback"),
        ("http://10.0.0.7/", "private"),
        ("http://127.0.0.1:9/canary-path-1c9d", "cannot connect"),
    ] {
        service.patch(&one, json!({"config": {"url": url}})).await.is(200);
        let refused = service.post(&test, json!({})).await.is(200);
        assert!(refused["error"].as_str().unwrap().contains(word), "{url}: {refused}");
    }
    let said = [
        service.get("/alert-deliveries").await.body,
        service.get("/events?limit=1000").await.body,
        tested.to_string(),
    ];
    for canary in ["canary-path-1c9d", "canary-token-77"] {
        assert!(said.iter().all(|said| !said.contains(canary)), "{canary} is in an answer");
    }
    service.delete(&one).await;
    service.post(&test, json!({})).await.is(404);
}

#[tokio::test]
async fn killed_after_a_message_left_it_is_sent_again_under_its_id() {
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let mut service =
        service::Service::start(&[("BEAMPIPE_OUTGOING__ALLOW_NETWORKS", "[\"127.0.0.0/8\"]")]).await;
    let channel = json!({"name": "ops", "kind": "webhook", "config": {"url": url}});
    let channel = uuid(&service.post("/notification-channels", channel).await);
    let tested = service.post(&format!("/notification-channels/{channel}/test"), json!({})).await;
    assert_eq!(tested["status"], "sent");
    let delivery = format!("/alert-deliveries/{}", tested["delivery_id"].as_str().unwrap());
    service.stop().await;
    service.start_again(&[("BEAMPIPE_TEST_CRASH_AT", "delivery_attempted")]).await;
    service.post(&format!("{delivery}/redeliver"), json!({})).await;
    service.wait_for_end().await;
    assert_eq!(receiver.got().len(), 2, "it had left when the process ended");
    service.start_again(&[]).await;
    let began = Instant::now();
    while service.get(&delivery).await["status"] != "sent" {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", service.get(&delivery).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let got = receiver.got();
    let ids: BTreeSet<&str> = got.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!((got.len(), ids.len()), (3, 1), "the copy has the same id");
    let sent = service.get(&delivery).await;
    assert_eq!(
        (&sent["attempts"], &sent["error"]),
        (&json!(2), &json!(null)),
        "what was not recorded is not counted"
    );
    service.stop().await;
    service.verify_log();
}

async fn rule(service: &support::Service, name: &str, kind: &str, config: Value, channel: &Value) -> Value {
    let rule = json!({
        "name": name, "trigger_kind": kind, "trigger_config": config, "channel_ids": [channel["uuid"]],
        "annotations": {"runbook_url": format!("https://example.org/{name}")},
    });
    service.post("/alert-rules", rule).await.is(201)
}

async fn fired(service: &support::Service) -> Vec<Value> {
    service.get("/events?type=alert.fired&order=asc&limit=1000").await.is(200).as_array().unwrap().clone()
}

/// Judges a point as a process does that has just begun.
pub async fn judge(service: &support::Service, at: DateTime<Utc>) {
    let setting = Setting {
        handle: service.handle.clone(),
        links: Links::default(),
        noted: service.directory.path().join("judged"),
        process: "test".into(),
        metrics: Metrics::new("test", "sqlite"),
    };
    let before = at - TimeDelta::seconds(alerting::GRID_SECONDS);
    Evaluator::begin(&setting).await.judge_between(before, at).await.unwrap();
    assert!(service.api.settle(service.handle.log().head().position).await);
}

pub async fn look(service: &support::Service, dependency: &str, up: bool) {
    let name = dependency.to_owned();
    let command = match up {
        true => dependency::Command::SeeUp { dependency: name, latency_ms: 3 },
        false => dependency::Command::SeeDown { dependency: name, reason: "connection refused".into() },
    };
    service.handle.handle::<Dependency>(dependency, &service.context(), command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_and_what_lasts_is_told_once_whoever_judges_it() {
    let (service, receiver) = (support::service().await, Receiver::default());
    let execution = service.execution("p").await;
    let channel = channel(&service, &receiver.listen().await).await;
    rule(&service, "ended", "execution_terminal", json!({"statuses": ["cancelled"]}), &channel).await;
    rule(&service, "changed", "discovery_changed", json!({}), &channel).await;
    rule(&service, "backlog", "pending_backlog", json!({"threshold": 2}), &channel).await;
    rule(&service, "archive", "dependency_down", json!({"dependency": "tap_a"}), &channel).await;
    rule(&service, "log", "dependency_down", json!({}), &channel).await;
    let at = |points: i64| at(&service, points - 1);
    judge(&service, at(0)).await;
    assert!(fired(&service).await.is_empty(), "nothing has happened since the rules are there");
    for source in ["B", "C", "D"] {
        service.source("p", source).await;
        service.discovered("p", source).await;
    }
    service.patch(&format!("/executions/{execution}"), json!({"status": "cancelled"})).await.is(200);
    look(&service, "tap_a", false).await;
    // Two that take themselves for the acting one, and the same again later.
    tokio::join!(judge(&service, at(1)), judge(&service, at(1)));
    judge(&service, at(1)).await;
    judge(&service, at(2)).await;
    let all = fired(&service).await;
    let mut names: Vec<_> =
        all.iter().map(|event| event["payload"]["subject"]["rule_name"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["archive", "backlog", "changed", "ended"]);
    let causes: usize = all.iter().map(|event| event["payload"]["causes"].as_array().unwrap().len()).sum();
    assert_eq!(causes, 6, "three changes, an end, a dependency and the source that waits longest");
    let firing = service.get("/alerts?state=firing").await.is(200);
    assert_eq!(firing.as_array().unwrap().len(), 2, "the backlog and the archive");
    let archive = firing.as_array().unwrap().iter().find(|one| one["rule_name"] == "archive").unwrap();
    let path = format!("/alerts/{}", archive["id"].as_str().unwrap());
    let order = json!({"comment": "the archive's people know"});
    let acknowledged = service.post(&format!("{path}/acknowledge"), order).await.is(200);
    assert_eq!(acknowledged["acknowledged_by"], "key:first");
    look(&service, "tap_a", true).await;
    judge(&service, at(3)).await;
    assert_eq!(service.get(&path).await.is(200)["state"], "resolved");
    let late = service.post(&format!("{path}/acknowledge"), json!({})).await.is(409);
    assert_eq!(late["code"], "alert-not-firing");
    assert_eq!(service.get("/alerts/nobody").await.is(404)["code"], "alert-unknown");
    assert_eq!(service.get("/alerts?state=told").await.is(200).as_array().unwrap().len(), 2);
    service.get("/alerts?state=lost").await.is(400);
    let stop = CancellationToken::new();
    let post = run_post(&service, &stop);
    ended(&service, 5).await;
    stop.cancel();
    post.await.unwrap();
    let got: Vec<Value> = receiver.got().iter().map(Got::json).collect();
    let of = |name: &str, status: &str| {
        let found = got.iter().find(|one| one["alert"] == name && one["status"] == status);
        found.unwrap_or_else(|| panic!("{name} {status} is not among {got:#?}")).clone()
    };
    let changed = of("changed", "firing");
    assert_eq!(
        (&changed["changed_count"], &changed["source_identifiers"]),
        (&json!(3), &json!(["B", "C", "D"]))
    );
    let ended = of("ended", "firing");
    assert_eq!(ended["execution_id"], execution.to_string());
    assert_eq!(ended["links"]["execution"], format!("/api/v2/executions/{execution}"));
    assert_eq!(ended["links"]["runbook"], "https://example.org/ended");
    assert!(of("archive", "firing")["summary"].as_str().unwrap().contains("connection refused"));
    of("archive", "resolved");
    of("backlog", "firing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_and_the_end_of_a_rule_are_heeded() {
    let (service, receiver) = (support::service().await, Receiver::default());
    let channel = channel(&service, &receiver.listen().await).await;
    let archive =
        rule(&service, "archive", "dependency_down", json!({"dependency": "tap_a"}), &channel).await;
    let matchers = json!([{"name": "rule", "value": "archive"}]);
    let silence =
        json!({"matchers": matchers, "comment": "maintenance", "starts_at": "2001-01-01T00:00:00Z"});
    let refused = service.post("/silences", silence).await;
    assert_eq!(refused.status.as_u16(), 422, "it says when it ends");
    let silence = json!({"matchers": matchers, "comment": "maintenance", "duration_minutes": 60});
    let silence = service.post("/silences", silence).await.is(201);
    look(&service, "tap_a", false).await;
    let at = |points: i64| at(&service, points);
    judge(&service, at(0)).await;
    let held = service.get("/events?type=alert.suppressed").await.is(200);
    assert_eq!(held[0]["payload"]["held_back"], json!({"by": "silence", "id": silence["uuid"]}));
    let enqueued = async || service.get("/alert-deliveries").await.is(200).as_array().unwrap().len();
    assert_eq!(enqueued().await, 0);
    service.delete(&format!("/silences/{}", silence["uuid"].as_str().unwrap())).await;
    judge(&service, at(1)).await;
    assert_eq!(enqueued().await, 1, "what still fires is said when nothing holds it back");
    let path = format!("/alert-rules/{}", archive["uuid"].as_str().unwrap());
    service.patch(&path, json!({"enabled": false})).await.is(200);
    judge(&service, at(2)).await;
    let resolved = service.get("/events?type=alert.resolved").await.is(200);
    assert_eq!(resolved[0]["payload"]["reason"], "rule_ended");
    assert_eq!(enqueued().await, 2, "whoever was told is told");
}
