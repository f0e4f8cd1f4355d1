use beampipe_domain::job::{Command, Enqueued, Job, Kind};
use beampipe_domain::worker::{self, Started, Worker};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn the_key_in_the_body_holds_while_its_job_is_unfinished() {
    let service = support::service().await;
    service.project("p").await;
    let order = json!({
        "kind": "execution_scheduler_tick",
        "payload": {"project_module": "p"},
        "execution_id": null,
        "idempotency_key": "execution_scheduler_tick:manual:p",
    });
    let first = service.post("/jobs", order.clone()).await.is(202);
    assert_eq!((&first["status"], &first["attempts"]), (&json!("queued"), &json!(0)));
    assert_eq!(service.post("/jobs", order.clone()).await.is(202)["uuid"], first["uuid"]);

    let id = first["uuid"].as_str().unwrap();
    let claim_id = Uuid::from_u128(1);
    let claim = Command::Claim { worker_id: "w".into(), claim_id, taken_from: None };
    service.handle.handle::<Job>(id, &service.context(), claim).await.unwrap();
    let complete = Command::Complete { claim_id, duration_ms: 1, result: None };
    let done = service.handle.handle::<Job>(id, &service.context(), complete).await.unwrap();
    service.api.settle(done.position).await;
    // A second later at the most it is another job.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let second = service.post("/jobs", order).await.is(202);
    assert_ne!(second["uuid"], first["uuid"]);
    let listed = service.get("/jobs").await.is(200);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(service.get("/jobs?status=completed").await.is(200)[0]["uuid"], first["uuid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_brought_back_by_hand() {
    let service = support::service().await;
    let job = service.post("/jobs", json!({"kind": "scheduler_tick"})).await.is(202);
    let id = job["uuid"].as_str().unwrap();
    let path = format!("/jobs/{id}/requeue");
    service.post(&path, json!({"reason": "x"})).await.is(409);
    let claim_id = Uuid::from_u128(1);
    let context = service.context();
    let claim = Command::Claim { worker_id: "w".into(), claim_id, taken_from: None };
    service.handle.handle::<Job>(id, &context, claim).await.unwrap();
    let fail = Command::Fail { claim_id, error: "no disk".into(), duration_ms: 1, retry_at: None };
    let done = service.handle.handle::<Job>(id, &context, fail).await.unwrap();
    service.api.settle(done.position).await;
    let dead = service.get("/jobs?status=dead_lettered").await.is(200);
    assert_eq!((&dead[0]["uuid"], &dead[0]["last_error"]), (&job["uuid"], &json!("no disk")));
    let back = service.post(&path, json!({"reason": "disk added"})).await.is(202);
    assert_eq!((&back["status"], &back["attempts"]), (&json!("queued"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_shown_by_its_heart_and_drained() {
    let service = support::service().await;
    let started = Started {
        instance_name: "cellar".into(),
        host: "h".into(),
        pool: "default".into(),
        capabilities: vec!["dim".into()],
        concurrency_limit: 4,
        process_id: 7,
        version: "1".into(),
    };
    let start = worker::Command::Start(started);
    let done = service.handle.handle::<Worker>("w1", &service.context(), start).await.unwrap();
    service.api.settle(done.position).await;
    let shown = service.get("/workers/w1").await.is(200);
    assert_eq!((&shown["status"], &shown["health"]), (&json!("active"), &json!("stale")));
    assert_eq!(shown["heartbeat_age_seconds"], Value::Null, "nothing was heard");
    service.handle.log().beat("w1", json!({"active_leases": 2})).await;
    service.api.refresh_readiness().await;
    let shown = service.get("/workers/w1").await.is(200);
    assert_eq!(shown["health"], "healthy");
    assert!(shown["heartbeat_age_seconds"].as_f64().unwrap() < 60.0);
    let drained = service.post("/workers/w1/drain", json!({"reason": "kernel"})).await.is(200);
    assert_eq!((&drained["status"], &drained["health"]), (&json!("draining"), &json!("draining")));
    assert_eq!(service.post("/workers/w1/resume", json!({})).await.is(200)["status"], "active");
    let stop = worker::Command::Stop { handed_back: 0 };
    let done = service.handle.handle::<Worker>("w1", &service.context(), stop).await.unwrap();
    service.api.settle(done.position).await;
    assert_eq!(service.get("/workers").await.is(200), json!([]));
    assert_eq!(service.get("/workers?include_stopped=true").await.is(200)[0]["health"], "stopped");
    service.post("/workers/w1/drain", json!({})).await.is(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_pools_say_who_holds_what_and_until_when() {
    let service = support::service().await;
    let (job, claim_id) = (Uuid::from_u128(5).to_string(), Uuid::from_u128(6));
    for (worker, pool) in [("w1", "near"), ("w2", "far")] {
        let start =
            worker::Command::Start(Started { pool: pool.into(), concurrency_limit: 3, ..Started::default() });
        service.handle.handle::<Worker>(worker, &service.context(), start).await.unwrap();
    }
    let order = Enqueued {
        kind: Kind::Execute,
        max_attempts: 3,
        required_capability: Some("dim".into()),
        next_run_at: service.clock.now(),
        ..Enqueued::default()
    };
    service.handle.handle::<Job>(&job, &service.context(), Command::Enqueue(order)).await.unwrap();
    let claim = Command::Claim { worker_id: "w1".into(), claim_id, taken_from: None };
    let done = service.handle.handle::<Job>(&job, &service.context(), claim).await.unwrap();
    service.api.settle(done.position).await;

    assert_eq!(
        service.get("/workers/leases").await.is(200),
        json!([]),
        "a lease without a heartbeat has run out"
    );
    let expired = service.get("/workers/leases?include_expired=true").await.is(200);
    assert_eq!((&expired[0]["claim_id"], &expired[0]["lease_expires_at"]), (&json!(claim_id), &Value::Null));
    service.handle.log().beat("w1", json!({"active_leases": 1})).await;
    service.api.refresh_readiness().await;
    let held = service.get("/workers/leases?worker_id=w1").await.is(200);
    let lease = &held[0];
    assert_eq!(
        (&lease["job_id"], &lease["pool"], &lease["kind"]),
        (&json!(job), &json!("near"), &json!("execute"))
    );
    assert!(lease["lease_expires_at"].as_str() > lease["heartbeat_at"].as_str(), "{lease}");
    assert_eq!(service.get("/workers/leases?worker_id=w2").await.is(200), json!([]));
    service.get("/workers/leases?worker=w2").await.is(400);

    let pools = service.get("/workers/pools").await.is(200);
    let near = pools.as_array().unwrap().iter().find(|pool| pool["pool"] == "near").unwrap();
    assert_eq!((&near["active_workers"], &near["active_leases"]), (&json!(1), &json!(1)));
    assert_eq!(near["concurrency_limit"], 3);
    let far = pools.as_array().unwrap().iter().find(|pool| pool["pool"] == "far").unwrap();
    assert_eq!((&far["unhealthy_workers"], &far["active_leases"]), (&json!(1), &json!(0)));
}
