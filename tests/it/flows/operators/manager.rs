//! What operators ask of executions on a real manager: to end, and to be tried again.

use std::time::Duration;

use serde_json::{Value, json};

use super::{done, refused, text, types, until_get};
use crate::backends::daliuge::Own;
use crate::flows::service::{Service, is_terminal, sessions_on};

/// DALiuGE's number of a session that was cancelled (`SessionStates.CANCELLED`).
const CANCELLED: u64 = 5;

/// How each node of a session stands on the manager, as its status address says.
async fn session_states(execution: &Value) -> Vec<u64> {
    let url = text(execution, "dim_session_status_url");
    let answer = crate::backends::daliuge::http().get(url).send().await.unwrap();
    let nodes: Value = answer.json().await.unwrap();
    fn numbers(value: &Value, found: &mut Vec<u64>) {
        match value {
            Value::Object(fields) => fields.values().for_each(|value| numbers(value, found)),
            Value::Number(number) => found.extend(number.as_u64()),
            _ => {}
        }
    }
    let mut found = vec![];
    numbers(&nodes, &mut found);
    found
}

#[tokio::test]
async fn a_running_execution_is_cancelled_on_the_manager_too() {
    let island = Own::island();
    let service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.register(&["HIPASSJ1318-21"]).await;
    let all = service
        .until("running", Duration::from_secs(60), |all| {
            all.len() == 1 && all[0]["daliuge_state"] == "running"
        })
        .await;
    let id = text(&all[0], "uuid").to_owned();
    let asked = done(&service, &["execution", "cancel", &id, "--reason", "the wrong field"]);
    assert!(["running", "cancelled"].contains(&text(&asked, "status")), "{asked:#}");
    let path = format!("/executions/{id}");
    let ended = until_get(&service, &path, "ended", is_terminal).await;
    assert_eq!(ended["status"], "cancelled", "{ended:#}");
    assert_eq!(ended["daliuge_state"], "cancelled");
    assert_eq!(ended["terminal_outcome"], "cancelled");
    assert_eq!(session_states(&ended).await, [CANCELLED]);
    let events = service.events(&format!("{path}/events")).await;
    let last = types(&events).into_iter().rfind(|kind| kind.starts_with("execution."));
    assert_eq!(last, Some("execution.cancelled"));
    let request = events.iter().find(|event| event["event_type"] == "execution.cancel_requested").unwrap();
    assert_eq!(request["payload"]["reason"], "the wrong field", "{request}");
    let terminal = &ended["beampipe_run_record"]["dim"]["terminal"];
    assert_eq!(terminal["session_state"], "cancelled", "{terminal}");
    assert!(ended["why"].is_null());

    // What was cancelled may be run again, in a session of its own.
    let retried = done(&service, &["execution", "retry", &id, "--reason", "it was the right field"]);
    assert_eq!(retried["retry_count"], 1);
    let ended =
        until_get(&service, &path, "ended again", |one| one["retry_count"] == 1 && is_terminal(one)).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    assert_eq!(sessions_on(island.port()).await.len(), 2);
}

#[tokio::test]
async fn a_failed_execution_is_tried_again_in_another_session() {
    let island = Own::island();
    let service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.register(&["HIPASSJ1245-00"]).await;
    let failed = |all: &[Value]| all.len() == 1 && all[0]["status"] == "failed";
    let first = service.until("failed", Duration::from_secs(60), failed).await[0].clone();
    let id = text(&first, "uuid").to_owned();
    let no = refused(&service, &["execution", "execute", &id, "--no-submit"]);
    assert!(no.contains("retried") || no.contains("flags"), "{no}");
    let retried = done(&service, &["execution", "retry", &id, "--reason", "perhaps the disk was full"]);
    assert_eq!((&retried["retry_count"], &retried["stage"]), (&json!(1), &json!("stage_and_manifest")));
    let path = format!("/executions/{id}");
    let second = until_get(&service, &path, "failed again", |one| {
        one["retry_count"] == 1 && one["status"] == "failed"
    })
    .await;
    let (a, b) = (text(&first, "daliuge_session_id"), text(&second, "daliuge_session_id"));
    assert_ne!(a, b, "another attempt is another session");
    let mut sessions = sessions_on(island.port()).await;
    sessions.sort_unstable();
    let mut wanted = vec![a.to_owned(), b.to_owned()];
    wanted.sort_unstable();
    assert_eq!(sessions, wanted, "one session an attempt");
    let events = service.events(&format!("{path}/events")).await;
    let started: Vec<&Value> =
        events.iter().filter(|event| event["event_type"] == "execution.submission_started").collect();
    assert_eq!(started.iter().map(|event| &event["payload"]["attempt"]).collect::<Vec<_>>(), [1, 2]);
    let metrics = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    let metrics = crate::backends::daliuge::http().get(metrics).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("beampipe_execution_retries_total{project_module=\"wallaby_demo\"} 1"),
        "{metrics}"
    );
}
