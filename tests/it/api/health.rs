use std::collections::BTreeMap;

use beampipe::api::readiness::Look;
use beampipe_domain::dependency::{Command, Dependency};
use beampipe_domain::job::{self, Enqueued, Job, Kind};
use beampipe_domain::lease::{self, Lease, Taken};
use beampipe_domain::worker::{self, Started, Worker};
use serde_json::json;
use uuid::Uuid;

use crate::support::{self, Service};

fn reasons(ready: &serde_json::Value) -> String {
    ready["reasons"].to_string()
}

async fn ready(service: &Service) -> serde_json::Value {
    service.api.refresh_readiness().await;
    service.get("/ready").await.is(200)
}

async fn worker(service: &Service, capabilities: &[&str]) {
    let capabilities = capabilities.iter().map(|c| (*c).to_owned()).collect();
    let start =
        worker::Command::Start(Started { pool: "default".into(), capabilities, ..Started::default() });
    let done = service.handle.handle::<Worker>("w1", &service.context(), start).await.unwrap();
    service.api.settle(done.position).await;
    service.handle.log().beat("w1", json!({"active_leases": 0})).await;
}

/// A scheduler that acts and beats.
async fn scheduler(service: &support::Service) {
    let taken = Taken {
        role: "scheduler".into(),
        holder: "scheduler/p".into(),
        claim_id: Uuid::nil(),
        ..Taken::default()
    };
    let take = lease::Command::Take(taken);
    let done = service.handle.handle::<Lease>("scheduler", &service.context(), take).await.unwrap();
    service.api.settle(done.position).await;
    service.handle.log().beat("scheduler/p", json!({"role": "scheduler", "acting": true})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_is_missing() {
    let service = support::service().await;
    assert_eq!(service.get("/health").await.is(200)["status"], "ok");
    let lonely = ready(&service).await;
    assert_eq!((&lonely["status"], &lonely["database"]), (&json!("degraded"), &json!("ok")));
    assert!(reasons(&lonely).contains("no live worker"));
    for name in ["database", "queue", "worker"] {
        assert!(lonely["checks"].as_array().unwrap().iter().any(|c| c["name"] == name), "{name} has a line");
    }

    worker(&service, &["tap"]).await;
    assert!(reasons(&ready(&service).await).contains("no process acts as scheduler"));
    scheduler(&service).await;
    let answer = ready(&service).await;
    assert_eq!((&answer["status"], &answer["scheduler"]["acting"]), (&json!("ready"), &json!("scheduler/p")));

    let order = Enqueued {
        kind: Kind::Execute,
        required_capability: Some("dim".into()),
        max_attempts: 1,
        next_run_at: service.clock.now() - chrono::Duration::hours(1),
        ..Enqueued::default()
    };
    let id = service.clock.id().to_string();
    let enqueue = job::Command::Enqueue(order);
    let done = service.handle.handle::<Job>(&id, &service.context(), enqueue).await.unwrap();
    service.api.settle(done.position).await;
    let stuck = ready(&service).await;
    assert_eq!((&stuck["status"], &stuck["queue_depth"]), (&json!("degraded"), &json!(1)));
    assert!(
        reasons(&stuck).contains("capability dim") && reasons(&stuck).contains("oldest queued"),
        "{stuck}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outside_dependency_that_is_down_degrades_and_says_why() {
    let service = support::service().await;
    worker(&service, &[]).await;
    let down = Command::SeeDown { dependency: "tap_casda".into(), reason: "refused".into() };
    let done = service.handle.handle::<Dependency>("tap_casda", &service.context(), down).await.unwrap();
    service.api.settle(done.position).await;
    let now = service.clock.now();
    service.api.readiness.looks_from(move || {
        let look =
            Look { up: false, checked_at: now, latency_ms: 3, error: Some("connection refused".into()) };
        BTreeMap::from([("tap_casda".to_owned(), look)])
    });
    let degraded = ready(&service).await;
    assert_eq!((&degraded["status"], &degraded["tap_casda"]), (&json!("degraded"), &json!("error")));
    assert!(reasons(&degraded).contains("connection refused"));
    assert_eq!(degraded["dependencies"][0]["latency_ms"], 3);
    assert_eq!(degraded["tap_vizier"], "not_configured");
    assert_eq!(
        service.get("/health/tap").await.is(200),
        json!({"casda": "error", "vizier": "not_configured"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_cannot_work_makes_the_process_unready() {
    let service = support::service().await;
    service.api.readiness.fault("artifacts", Some("the disk is gone".into()));
    service.api.refresh_readiness().await;
    let unready = service.get("/ready").await.is(503);
    assert!(reasons(&unready).contains("the disk is gone"));
    service.api.readiness.fault("artifacts", None);
    assert_eq!(ready(&service).await["status"], "degraded");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_answered_from_what_is_kept() {
    let service = support::service().await;
    service.api.refresh_readiness().await;
    service.get("/ready").await;
    let mut times: Vec<_> = vec![];
    for _ in 0..50 {
        let start = std::time::Instant::now();
        service.get("/ready").await;
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[25].as_millis() < 5, "median {:?}", times[25]);
}
