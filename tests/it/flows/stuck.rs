//! Three executions that do not go on, looked at in the order of `docs/operating.md`: `/ready`, the metrics, the events, the
//! run record. Each place names the cause.

use std::time::Duration;

use serde_json::{Value, json};

use super::service::{PROJECT, Service, is_terminal};
use crate::backends::daliuge::Own;

async fn metrics(service: &Service) -> String {
    let url = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    crate::backends::daliuge::http().get(url).send().await.unwrap().text().await.unwrap()
}

async fn ready_until(service: &Service, what: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..300 {
        let ready = service.get("/ready").await;
        if what(&ready) {
            return ready;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{:#}", service.get("/ready").await)
}

#[tokio::test]
async fn a_stopped_manager_is_named_everywhere() {
    let own = Own::island();
    let service = Service::start(&[("BEAMPIPE_DEPENDENCIES__PROBE_SECONDS", "1")]).await;
    service.survey(own.port(), |yaml| yaml).await;
    own.call("stop-dim");
    service.register(&["HIPASSJ1318-21"]).await;
    let executions = service
        .until("waiting", Duration::from_secs(60), |all| all.len() == 1 && all[0]["why"].is_object())
        .await;
    let ready = ready_until(&service, |ready| {
        ready["status"] == "degraded" && ready.to_string().contains("dim_demo")
    })
    .await;
    println!("1. /ready: {ready:#}");
    let metrics = metrics(&service).await;
    let line =
        metrics.lines().find(|line| line.starts_with("beampipe_dependency_up{dependency=\"dim_demo\"}"));
    assert_eq!(line, Some("beampipe_dependency_up{dependency=\"dim_demo\"} 0"), "2. {metrics}");
    let events = service.events("/events").await;
    let down = events.iter().find(|event| event["event_type"] == "dependency.down").unwrap();
    assert_eq!(down["payload"]["dependency"], "dim_demo", "3. {down}");
    println!("3. {down}");
    let why = &executions[0]["why"];
    assert!(why["waiting_for"].is_string() && why["since"].is_string(), "4. {why}");
    println!("4. why: {why}");
}

#[tokio::test]
async fn a_queue_that_nobody_works_on_is_named_everywhere() {
    let island = Own::island();
    let service = Service::start(&[("BEAMPIPE_WORK__QUEUE_AGE_LIMIT_SECONDS", "1")]).await;
    service.survey(island.port(), |yaml| yaml).await;
    let workers = service.get("/workers").await;
    let id = workers[0]["id"].as_str().unwrap().to_owned();
    service.post(&format!("/workers/{id}/drain"), json!({"reason": "maintenance"})).await;
    service.register(&["HIPASSJ1318-21", "HIPASSJ1305-20"]).await;
    let ready = ready_until(&service, |ready| {
        ready["status"] == "degraded" && ready["queue_depth"].as_u64().is_some_and(|depth| depth > 0)
    })
    .await;
    println!("1. /ready: {ready:#}");
    assert!(ready.to_string().contains("worker"), "{ready:#}");
    let metrics = metrics(&service).await;
    let depth = metrics.lines().find_map(|line| line.strip_prefix("beampipe_jobs_queue_depth ")).unwrap();
    assert!(depth.parse::<f64>().unwrap() > 0.0, "2. {depth}");
    let events = service.events("/events").await;
    assert!(events.iter().any(|event| event["event_type"] == "worker.drained"), "3.");
    let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
    println!("4. why: {}", sources[0]["why"]);
    assert!(sources[0]["why"]["waiting_for"].is_string(), "4. {}", sources[0]);
    service.post(&format!("/workers/{id}/resume"), json!({})).await;
    service
        .until("at their end", Duration::from_secs(90), |all| all.len() == 2 && all.iter().all(is_terminal))
        .await;
}

#[tokio::test]
async fn a_failing_drop_is_named_everywhere() {
    let island = Own::island();
    let service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.register(&["HIPASSJ1245-00"]).await;
    let executions = service
        .until("at its end", Duration::from_secs(60), |all| all.len() == 1 && all.iter().all(is_terminal))
        .await;
    let ready = service.get("/ready").await;
    assert_eq!(ready["status"], "ready", "1. nothing outside is wrong: {ready:#}");
    let metrics = metrics(&service).await;
    let failed = format!("beampipe_executions_total{{project_module=\"{PROJECT}\",status=\"failed\"}} 1");
    assert!(metrics.contains(&failed), "2. {metrics}");
    let id = executions[0]["uuid"].as_str().unwrap();
    let events = service.events(&format!("/executions/{id}/events")).await;
    let last = events.iter().find(|event| event["event_type"] == "execution.failed").unwrap();
    assert!(
        last["payload"]["terminal"]["error_drops"][0]["message"].as_str().is_some_and(|m| !m.is_empty()),
        "3. {last:#}"
    );
    println!("3. {last:#}");
    let terminal = &executions[0]["beampipe_run_record"]["dim"]["terminal"];
    assert_eq!(terminal["session_state"], "failed", "4. {terminal:#}");
    assert!(terminal["error_drops_count"].as_u64().is_some_and(|n| n > 0), "4. {terminal:#}");
    println!("4. {terminal:#}");
}
