use reqwest::Method;
use serde_json::json;

use crate::support::{self, answered, survey};

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_uploaded_kept_by_version_and_shown() {
    let service = support::service().await;
    service.project("p").await;
    let changed = survey("p").replace("12.0", "6.0");
    let upload = service.request(Method::POST, "/project-configs").header("content-type", "text/plain");
    let report = answered(upload.body(changed).send().await.unwrap()).await.is(201);
    assert_eq!(
        (&report["project_id"], &report["valid"], &report["version"]),
        (&json!("p"), &json!(true), &json!(2))
    );
    assert_eq!(report["spec_sha256"].as_str().unwrap().len(), 64);
    let active = service.get("/project-configs/p").await.is(200);
    assert_eq!((&active["version"], &active["active"]), (&json!(2), &json!(true)));
    assert_eq!(active["uploaded_by"], "key:first");
    let versions = service.get("/project-configs/p/versions").await.is(200);
    assert_eq!(versions.as_array().unwrap().len(), 2);
    let first =
        service.get(&format!("/project-configs/{}", versions[1]["uuid"].as_str().unwrap())).await.is(200);
    assert_eq!(first["active"], false);
    assert_eq!(first["spec"]["automation"]["discovery"]["stale_after_hours"], 12.0);
    let listed = service.get("/projects").await.is(200);
    assert_eq!(listed[0]["project_id"], "p");
    assert_eq!((&listed[0]["version"], &listed[0]["active"]), (&json!(2), &json!(true)));
    let contract = service.get("/projects/contracts/p").await.is(200);
    assert_eq!((&contract["valid"], &contract["spec_sha256"]), (&json!(true), &report["spec_sha256"]));
    assert_eq!(service.get("/projects/contracts").await.is(200)[0], contract);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_configuration_is_said_at_once() {
    let service = support::service().await;
    let broken = survey("p").replace("beampipe.dev/v2", "beampipe.dev/v9").replace("0000", "zzzz");
    let upload =
        service.request(Method::POST, "/project-configs").header("content-type", "application/x-yaml");
    let problem = answered(upload.body(broken).send().await.unwrap()).await.is(422);
    assert_eq!((&problem["code"], &problem["valid"]), (&json!("invalid-config"), &json!(false)));
    let errors = problem["errors"].as_array().unwrap();
    assert!(errors.len() >= 2, "{problem}");
    assert!(
        errors.iter().all(|e| e["path"].is_string() && e["code"].is_string() && e["message"].is_string())
    );
    assert_eq!(service.get("/projects").await.is(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_the_position_it_asks_for_or_says_that_it_is_behind() {
    let service = support::service().await;
    service.project("p").await;
    let answer = service.get("/projects").await;
    let position: u64 = answer.header("beampipe-position").unwrap().parse().unwrap();
    assert_eq!(position, service.handle.log().head().position);
    service.get(&format!("/projects?min_position={position}")).await.is(200);
    let late = service.get(&format!("/projects?min_position={}", position + 1000)).await;
    assert!(late.header("retry-after").is_some());
    assert_eq!(late.is(503)["code"], "read-model-behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_is_rebuilt_while_it_serves() {
    let service = support::service().await;
    service.project("p").await;
    service.source("p", "A").await;
    service.post("/projections/sources/rebuild", json!({})).await.is(202);
    let start = std::time::Instant::now();
    loop {
        let listed = service.get("/projections").await.is(200);
        let sources = listed.as_array().unwrap().iter().find(|one| one["name"] == "sources").unwrap().clone();
        assert_eq!(service.get("/sources").await.is(200).as_array().unwrap().len(), 1);
        if sources["rebuild"].is_null() && sources["state"] == "live" {
            break;
        }
        assert!(start.elapsed().as_secs() < 20, "{sources}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
