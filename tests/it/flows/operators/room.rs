//! A profile's room binds what people start by hand, too.

use serde_json::json;

use super::{SIMULATED, by_hand, done, simulated, text, until, until_get};
use crate::flows::service::{Service, is_terminal};

/// Sources of the sample archive with data.
const MODULE: &str = "narrow";

async fn created(service: &Service) -> Vec<String> {
    let mut ids = vec![];
    for source in &SIMULATED {
        done(service, &["source", "add", MODULE, source]);
        let status = done(service, &["source", "status", &format!("{MODULE}/{source}")]);
        let path = format!("/sources/{}/status", text(&status, "uuid"));
        until_get(service, &path, "ready", |status| status["ready_for_execution"] == true).await;
        let execution = done(service, &["execution", "create", MODULE, "--source", source]);
        ids.push(text(&execution, "uuid").to_owned());
    }
    ids
}

async fn room_for(service: &Service, most: u32) {
    let profile = text(&done(service, &["profile", "show", "sim-narrow"]), "uuid").to_owned();
    let change = service.request(reqwest::Method::PATCH, &format!("/deployment-profiles/{profile}"));
    let answer = change.json(&json!({"max_concurrent_executions": most})).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

#[tokio::test]
async fn executions_started_by_hand_wait_in_line_for_their_profile() {
    let service = Service::start(&[]).await;
    simulated(&service, MODULE, json!({"latency_ms": 700}), by_hand);
    let ids = created(&service).await;
    room_for(&service, 1).await;
    // The last one first: the line is in the order they were asked for.
    let asked: Vec<&String> = ids.iter().rev().collect();
    for id in &asked {
        done(&service, &["execution", "execute", id]);
    }
    let last = service.get(&format!("/executions/{}", asked[3])).await;
    let why = text(&last["why"], "text");
    assert!(why.contains("room on deployment profile sim-narrow: at most 1 at once"), "{why}");
    until(&service, MODULE, "ended", |all| all.iter().all(is_terminal)).await;

    let mut free_from = 0;
    for id in &asked {
        let events = service.events(&format!("/executions/{id}/events")).await;
        let at = |wanted: &str| {
            let event = events.iter().find(|event| event["event_type"] == wanted);
            event.unwrap_or_else(|| panic!("{wanted} of {id}: {events:#?}"))["position"].as_u64().unwrap()
        };
        assert!(at("execution.submission_started") > free_from, "{id} was submitted beside another one");
        free_from = at("execution.completed");
        let claims = events.iter().filter(|event| event["event_type"] == "job.claimed").count();
        assert!(claims <= 2, "waiting for room was written down: {events:#?}");
    }
}

#[tokio::test]
async fn a_raised_limit_counts_for_those_that_wait() {
    let service = Service::start(&[]).await;
    simulated(&service, MODULE, json!({"latency_ms": 600_000}), by_hand);
    let ids = created(&service).await;
    room_for(&service, 1).await;
    for id in &ids {
        done(&service, &["execution", "execute", id]);
    }
    let submitted = |n: usize| {
        move |all: &[serde_json::Value]| {
            all.iter().filter(|e| e["submission_state"] == "submitted").count() == n
        }
    };
    until(&service, MODULE, "one submitted", submitted(1)).await;
    room_for(&service, 3).await;
    until(&service, MODULE, "three submitted", submitted(3)).await;
    // Who leaves makes room.
    done(&service, &["execution", "cancel", &ids[1]]);
    until(&service, MODULE, "the fourth submitted", |all| {
        submitted(4)(all) && all.iter().any(|e| e["uuid"] == *ids[1] && e["status"] == "cancelled")
    })
    .await;
}
