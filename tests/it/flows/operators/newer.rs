//! A log that a newer release has written to: this one stops there, says so, and skips nothing.

use std::sync::Arc;

use beampipe::clock::Clock;
use beampipe_domain::id;
use beampipe_log::sqlite::{SqliteLog, SqliteOptions};
use beampipe_log::{Expected, Log, NewEvent};
use serde_json::{Value, json};

use super::{SIMULATED, done, simulated, text, until};
use crate::backends::daliuge::http;
use crate::flows::service::{Service, is_terminal};

/// Appends, to the log of a service that is stopped, an event of a schema that this release does not know.
async fn append_something_newer(service: &Service) -> u64 {
    let clock = Clock::system();
    let now = clock.clone();
    let file = service.state_dir().join("events.sqlite");
    let log = SqliteLog::open(file, SqliteOptions::new(Arc::new(move || now.now()))).unwrap();
    let source = id::source("newer", "FROM-THE-FUTURE");
    let event = NewEvent {
        id: clock.id(),
        event_type: "source.registered".into(),
        schema_version: 99,
        occurred_at: clock.now(),
        actor: "system:test/1".into(),
        correlation_id: clock.id(),
        causation_id: None,
        tags: vec!["project:newer".into(), format!("source:{source}")],
        data: br#"{"shape":"nobody here knows"}"#.to_vec().into(),
        salt: clock.random(),
    };
    let appended = log.append(&format!("source-{source}"), Expected::NoStream, vec![event]).await.unwrap();
    log.close().await;
    appended.position
}

async fn ready(service: &Service) -> (u16, Value) {
    let answer = http().get(service.url("/ready")).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn an_event_of_a_newer_release_stops_the_read_models_there_and_the_service_is_unready() {
    let mut service = Service::start(&[]).await;
    simulated(&service, "newer", json!({"latency_ms": 50}), |yaml| yaml);
    done(&service, &["source", "add", "newer", SIMULATED[0]]);
    until(&service, "newer", "run", |all| all.len() == 1 && all.iter().all(is_terminal)).await;
    service.stop().await;
    let position = append_something_newer(&service).await;

    service.spawn(&[]);
    let begun = std::time::Instant::now();
    let why = loop {
        if let Ok(answer) = http().get(service.url("/ready")).send().await {
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.unwrap();
            assert_eq!(status, 503, "{body:#}");
            let text = body.to_string();
            if text.contains("source.registered") {
                break text;
            }
        }
        assert!(begun.elapsed().as_secs() < 20, "it does not say where: {}", service.said());
        assert!(service.is_running(), "{}", service.said());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(why.contains(&position.to_string()), "the position {position} is not in {why}");
    assert!(why.contains("99"), "the version is not in {why}");

    // What is known is served, and nothing after the event is folded, though the log goes on.
    let page = service.get("/executions?project_module=newer").await;
    assert_eq!(page["total"], 1);
    let body = json!({"project_module": "newer", "source_identifier": SIMULATED[1]});
    let _ = service.request(reqwest::Method::POST, "/sources").json(&body).send().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let models = done(&service, &["projections", "list"]);
    for one in models.as_array().unwrap() {
        assert!(one["position"].as_u64().unwrap() < position, "{} went past it: {one:#}", text(one, "name"));
        assert_eq!(one["state"], "stopped", "{one:#}");
    }
    let (status, _) = ready(&service).await;
    assert_eq!(status, 503);
    // The log itself is whole, and whoever can read the event is told so.
    service.stop().await;
    service.verify_log();
    assert!(service.said().contains("source.registered"), "its log says it, too: {}", service.said());
}
