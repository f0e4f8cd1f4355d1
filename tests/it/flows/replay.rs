//! Read models are caches: thrown away, they come back the same; altered, the difference is found.

use std::time::Duration;

use super::service::{PROJECT, SOURCES, Service, is_terminal, words};
use crate::backends::daliuge::Own;

#[tokio::test]
async fn read_models_that_were_deleted_come_back_byte_identical() {
    let island = Own::island();
    let mut service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.register(&SOURCES).await;
    let executions = service
        .until("at their end", Duration::from_secs(120), |all| all.len() == 5 && all.iter().all(is_terminal))
        .await;
    let failed = executions.iter().filter(|execution| execution["status"] == "failed");
    let errors: Vec<String> = failed.map(|e| format!("{} {}", e["sources"], e["last_error"])).collect();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let mut paths = vec![
        "/projects".to_owned(),
        format!("/project-configs/{PROJECT}"),
        format!("/project-configs/{PROJECT}/versions"),
        "/deployment-profiles".to_owned(),
        format!("/sources?project_module={PROJECT}"),
        format!("/executions?project_module={PROJECT}"),
        format!("/executions?project_module={PROJECT}&status=failed"),
        "/jobs?limit=500".to_owned(),
    ];
    for execution in &executions {
        let id = execution["uuid"].as_str().unwrap();
        for part in ["", "/status", "/summary", "/ledger-snapshot", "/artifacts", "/events", "/observations"]
        {
            paths.push(format!("/executions/{id}{part}"));
        }
    }
    let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
    for source in sources.as_array().unwrap() {
        let id = source["uuid"].as_str().unwrap();
        for part in ["", "/status", "/metadata", "/events", "/executions"] {
            paths.push(format!("/sources/{id}{part}"));
        }
    }
    // What is volatile (how long ago) is not part of a rebuild: those answers are compared without it.
    let before = answers(&service, &paths).await;
    service.stop().await;
    std::fs::remove_dir_all(service.state_dir().join("read-models")).unwrap();
    service.start_again(&[]).await;
    let after = answers(&service, &paths).await;
    for ((path, before), after) in paths.iter().zip(before).zip(after) {
        assert_eq!(before, after, "{path}");
    }

    let clean = service.command(&["projections", "verify"]);
    assert!(clean.status.success(), "{}", words(&clean));
    service.stop().await;
    let file = service.state_dir().join("read-models/executions.sqlite");
    let altered = rusqlite::Connection::open(file).unwrap();
    let changed =
        altered.execute("UPDATE executions SET status = 'completed' WHERE status = 'failed'", []).unwrap();
    assert_eq!(changed, 1);
    drop(altered);
    let found = service.command(&["projections", "verify"]);
    assert!(!found.status.success(), "an altered row was not found: {}", words(&found));
    let said = words(&found);
    assert!(said.contains("status") && said.contains("failed") && said.contains("completed"), "{said}");
}

pub async fn answers(service: &Service, paths: &[String]) -> Vec<String> {
    let mut answers = Vec::new();
    for path in paths {
        let (status, text) = service.text(path, "application/json").await;
        assert_eq!(status, 200, "{path}: {text}");
        answers.push(without_ages(&text));
    }
    answers
}

/// The answer but for the seconds that something has lasted until now.
fn without_ages(text: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
    fn forget(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                fields.remove("pending_age_seconds");
                fields.values_mut().for_each(forget);
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(forget),
            _ => {}
        }
    }
    if !text.contains("pending_age_seconds") {
        return text.to_owned();
    }
    forget(&mut value);
    value.to_string()
}
