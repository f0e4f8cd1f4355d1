use serde_json::{Value, json};

use crate::support;

const FIELDS: &[&str] = &[
    "uuid",
    "project_module",
    "source_identifier",
    "enabled",
    "created_at",
    "last_checked_at",
    "last_attempted_at",
    "stale_after_hours",
    "discovery_signature",
    "last_executed_discovery_signature",
    "discovery_claim_token",
    "discovery_claim_expires_at",
    "workflow_run_pending",
    "workflow_run_pending_at",
    "workflow_claim_token",
    "workflow_claimed_at",
    "workflow_claim_expires_at",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_registered_changed_removed_and_registered_again() {
    let service = support::service().await;
    service.project("p").await;
    let order = json!({"project_module": "p", "source_identifier": "A", "enabled": null});
    let created = service.post("/sources", order.clone()).await.is(201);
    for field in FIELDS {
        assert!(created.get(field).is_some(), "{field} is missing");
    }
    let one = format!("/sources/{}", created["uuid"].as_str().unwrap());
    service.post("/sources", order.clone()).await.is(200);

    let changed = service.patch(&one, json!({"enabled": false, "stale_after_hours": 3.5})).await.is(200);
    assert_eq!((&changed["enabled"], &changed["stale_after_hours"]), (&json!(false), &json!(3.5)));
    let known = service.post("/sources", order.clone()).await.is(200);
    assert_eq!(known["enabled"], false, "a known source keeps its setting");
    let changed = service.patch(&one, json!({"enabled": null, "stale_after_hours": null})).await.is(200);
    assert_eq!((&changed["enabled"], &changed["stale_after_hours"]), (&json!(false), &Value::Null));
    let status = service.get(&format!("{one}/status")).await.is(200);
    assert_eq!(status["ready_for_execution"], false);
    assert!(status["blockers"].to_string().contains("disabled"));

    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    service.get(&one).await.is(404);
    let events = service.get(&format!("{one}/events")).await.is(200);
    assert_eq!(events[0]["event_type"], "source.removed", "its events stay readable");
    let again = service.post("/sources", order).await.is(201);
    assert_eq!(again["uuid"], created["uuid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_discovered_is_shown_with_what_stands_in_the_way() {
    let service = support::service().await;
    service.project("p").await;
    let source = service.source("p", "A").await;
    let one = format!("/sources/{source}");
    let status = service.get(&format!("{one}/status")).await.is(200);
    assert_eq!(status["blockers"], json!(["it has not been discovered yet"]));
    assert!(status["why"]["text"].as_str().unwrap().contains("first discovery"));
    service.discovered("p", "A").await;
    let status = service.get(&format!("{one}/status")).await.is(200);
    assert_eq!(status["ready_for_execution"], true, "{status}");
    assert_eq!(status["workflow_run_pending"], true);
    let metadata = service.get(&format!("{one}/metadata")).await.is(200);
    assert_eq!(metadata["metadata_count"], 2);
    assert_eq!(metadata["metadata"][0]["sbid"], "100");
    assert_eq!(metadata["metadata"][1]["metadata_json"]["dataset_id"], "b");
    service.post("/projects/p/pause", json!({"reason": "storm"})).await.is(200);
    let paused = service.get(&format!("{one}/status")).await.is(200);
    assert!(paused["blockers"].to_string().contains("storm") && paused["why"].to_string().contains("storm"));
    service.post("/projects/p/resume", json!({})).await.is(200);
    service.post("/admission/pause", json!({"reason": "flood"})).await.is(200);
    assert!(service.get(&format!("{one}/status")).await.is(200)["blockers"].to_string().contains("flood"));
    service.post("/admission/resume", json!({})).await.is(200);
    assert_eq!(service.get(&format!("{one}/status")).await.is(200)["blockers"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_registered_at_once_and_marked_for_discovery() {
    let service = support::service().await;
    service.project("p").await;
    let items: Vec<Value> =
        (0..300).map(|n| json!({"project_module": "p", "source_identifier": format!("S{n:03}")})).collect();
    let answer = service.post("/sources/bulk", json!({"items": items})).await.is(200);
    assert_eq!((&answer["total"], &answer["items"][7]["source_identifier"]), (&json!(300), &json!("S007")));
    let disable = json!({"items": [{"project_module": "p", "source_identifier": "S000", "enabled": false}]});
    let answer = service.post("/sources/bulk", disable).await.is(200);
    assert_eq!(answer["items"][0]["enabled"], false);

    let discover = |body: Value| {
        let service = &service;
        async move { service.post("/sources/discover", body).await.is(200) }
    };
    let one = discover(json!({"project_module": "p", "source_identifier": "S001"})).await;
    assert_eq!((&one["marked_count"], &one["source_identifiers"]), (&json!(1), &json!(["S001"])));
    let none = discover(json!({"project_module": "p", "source_identifiers": []})).await;
    assert_eq!(none["marked_count"], 0);
    let all = discover(json!({"project_module": "p"})).await;
    assert_eq!(all["marked_count"], 299, "the disabled one is left out");

    let mut path = "/sources?project_module=p&limit=120".to_owned();
    let mut seen = 0;
    loop {
        let answer = service.get(&path).await;
        let link = answer.header("link").map(|l| l.split(['<', '>']).nth(1).unwrap().to_owned());
        seen += answer.is(200).as_array().unwrap().len();
        match link {
            Some(link) => path = link.strip_prefix("/api/v2").unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, 300);
    assert_eq!(service.get("/sources?limit=10&offset=295").await.is(200).as_array().unwrap().len(), 5);
}
