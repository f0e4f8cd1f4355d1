use beampipe_domain::execution::{
    Artifact, Axes, Command, Execution, GraphPrepared, ManifestBuilt, Observation, Receipt,
    SubmissionStarted, Terminal, Translated,
};
use beampipe_domain::id;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{self, Service};

/// Every field of an execution in the contract.
const FIELDS: &[&str] = &[
    "uuid",
    "project_module",
    "archive_name",
    "sources",
    "status",
    "execution_phase",
    "control_phase",
    "submission_state",
    "submission_deadline_at",
    "submission_abandoned_at",
    "scheduler_name",
    "scheduler_job_id",
    "scheduler_state",
    "scheduler_raw_state",
    "scheduler_reason",
    "daliuge_session_id",
    "daliuge_state",
    "output_state",
    "output_verification_required",
    "output_verification_policy",
    "terminal_outcome",
    "failure_class",
    "last_error",
    "retry_count",
    "discovery_signature",
    "manifest_sha256",
    "source_graph_sha256",
    "patched_graph_sha256",
    "physical_graph_sha256",
    "phase_timestamps",
    "last_reconciled_at",
    "created_at",
    "started_at",
    "completed_at",
    "created_by_id",
    "deployment_profile_id",
    "deployment_profile_revision",
    "project_config_id",
    "project_config_version",
    "workflow_manifest",
    "beampipe_run_record",
    "remote_session_dir",
    "dim_session_status_url",
    "dim_graph_status_url",
    "slurm_session_dir",
    "slurm_login_node",
    "slurm_remote_user",
];

async fn command(service: &Service, execution: Uuid, command: Command) {
    let key = execution.to_string();
    let done = service.handle.handle::<Execution>(&key, &service.context(), command).await.unwrap();
    assert!(service.api.settle(done.position).await);
}

async fn artifact(service: &Service, kind: &str, bytes: &'static str) -> Artifact {
    let stored = service.api.artifacts.put(bytes.into()).await.unwrap();
    Artifact {
        kind: kind.into(),
        sha256: stored.sha256,
        size_bytes: stored.size_bytes,
        media_type: "application/json".into(),
    }
}

/// Does what a worker does until the backend has it.
async fn submit(service: &Service, execution: Uuid) -> Uuid {
    let session_id = id::session(execution, 1);
    command(service, execution, Command::Begin { phase: "stage_and_manifest".into() }).await;
    let manifest = artifact(service, "manifest", "{\"inputs\":{},\"sources\":[]}").await;
    let built =
        ManifestBuilt { manifest_sha256: manifest.sha256.clone(), dataset_count: 2, artifact: manifest };
    command(service, execution, Command::RecordManifest(built)).await;
    let graph = artifact(service, "patched_graph", "[1]").await;
    let prepared = GraphPrepared {
        source_graph_sha256: "s".into(),
        patched_graph_sha256: graph.sha256.clone(),
        patches: vec![],
        artifacts: vec![graph],
    };
    command(service, execution, Command::RecordGraph(prepared)).await;
    let physical = artifact(service, "physical_graph", "[2]").await;
    let translated = Translated {
        physical_graph_sha256: physical.sha256.clone(),
        artifact: physical,
        ..Translated::default()
    };
    command(service, execution, Command::RecordTranslation(translated)).await;
    let url = |rest: &str| Some(format!("http://dim:8001/api/sessions/{session_id}{rest}"));
    let started = SubmissionStarted {
        attempt: 1,
        session_id,
        backend: "dim".into(),
        deadline_at: None,
        dim_rest_base: Some("http://dim:8001".into()),
        dim_session_status_url: url("/status"),
        dim_graph_status_url: url("/graph/status"),
        ..SubmissionStarted::default()
    };
    command(service, execution, Command::BeginSubmission(started)).await;
    session_id
}

fn receipt(service: &Service) -> Receipt {
    Receipt::Dim {
        deployed_at: service.clock.now(),
        dim_rest_base: "http://dim:8001".into(),
        verify_ssl: true,
        session_status_url: "http://dim:8001/status".into(),
        graph_status_url: "http://dim:8001/graph/status".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_shows_every_field_of_the_contract_from_its_creation_to_its_end() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    let one = format!("/executions/{execution}");
    let created = service.get(&one).await.is(200);
    for field in FIELDS {
        assert!(created.get(field).is_some(), "{field} is missing: {created}");
    }
    assert_eq!(created["status"], "pending");
    assert_eq!(created["sources"][0]["source_identifier"], "A");
    assert_eq!(created["discovery_signature"], "5".repeat(64));
    assert!(created["why"]["text"].as_str().unwrap().contains("execute"), "{}", created["why"]);

    let asked = service.post(&format!("{one}/execute"), json!({})).await.is(202);
    assert_eq!((&asked["do_stage"], &asked["do_submit"]), (&json!(true), &json!(true)));
    let job = service.get(&format!("/jobs/{}", asked["job_id"].as_str().unwrap())).await.is(200);
    assert_eq!((&job["kind"], &job["status"]), (&json!("execute"), &json!("queued")));
    assert_eq!(job["execution_id"], execution.to_string());
    let again = service.post(&format!("{one}/execute"), json!({})).await.is(202);
    assert_eq!(again["job_id"], asked["job_id"], "the same flags are the same job");
    service.post(&format!("{one}/execute"), json!({"do_submit": false})).await.is(409);
    let waiting = service.get(&one).await.is(200);
    assert!(waiting["why"]["text"].as_str().unwrap().contains("worker"), "{}", waiting["why"]);

    let session = submit(&service, execution).await;
    command(
        &service,
        execution,
        Command::LoseReceipt { session_id: session, step: "deploy".into(), reason: "timed out".into() },
    )
    .await;
    let uncertain = service.get(&one).await.is(200);
    assert_eq!(uncertain["submission_state"], "uncertain");
    let why = uncertain["why"]["text"].as_str().unwrap();
    assert!(why.contains(&session.to_string()) && why.contains("timed out"), "{why}");
    service.post(&format!("{one}/retry"), json!({"reason": "again"})).await.is(409);

    let settled = Command::RecordReceipt {
        session_id: session,
        receipt: receipt(&service),
        settled_by: Some("found".into()),
    };
    command(&service, execution, settled).await;
    let observed_at = service.clock.now();
    let axes = Axes { daliuge_state: Some("running".into()), ..Axes::default() };
    let observation = Observation {
        source: "dim".into(),
        observed_at,
        raw_state: Some("RUNNING".into()),
        ..Observation::default()
    };
    command(&service, execution, Command::Observe { session_id: session, axes, observation }).await;
    let running = service.get(&one).await.is(200);
    let dim = &running["beampipe_run_record"]["dim"];
    assert_eq!(dim["session_id"], session.to_string());
    assert_eq!(dim["deploy"]["verify_ssl"], true);
    assert_eq!(dim["last_observation"]["session_state"], "running");
    assert_eq!(dim["terminal"], Value::Null);
    assert_eq!(running["beampipe_run_record"]["submission"]["settled_by"], "found");
    assert!(running["dim_session_status_url"].as_str().unwrap().ends_with("/status"));

    let terminal = Terminal {
        session_id: session,
        session_state: "finished".into(),
        observed_at,
        polls: 3,
        ..Terminal::default()
    };
    command(&service, execution, Command::Complete(terminal)).await;
    let ended = service.get(&one).await.is(200);
    assert_eq!((&ended["status"], &ended["why"]), (&json!("completed"), &Value::Null));
    assert_eq!(ended["beampipe_run_record"]["dim"]["terminal"]["ledger_status"], "completed");
    assert_eq!(ended["workflow_manifest"]["sources"], json!([]));
    assert_eq!(ended["beampipe_run_record"]["requested_sources"]["count"], 1);

    let status = service.get(&format!("{one}/status")).await.is(200);
    assert_eq!(status["status"], "completed");
    assert!(status["duration_seconds"].as_f64().unwrap() >= 0.0);
    let summary = service.get(&format!("{one}/summary")).await.is(200);
    assert_eq!(summary["requested_source_identifiers"], json!(["A"]));
    let observations = service.get(&format!("{one}/observations")).await.is(200);
    assert_eq!(observations[0]["normalized_state"], "running");
    assert_eq!(observations[1]["kind"], "terminal");
    let snapshot = service.get(&format!("{one}/ledger-snapshot?include_manifest=true")).await.is(200);
    assert_eq!(snapshot["workflow_manifest"]["inputs"], json!({}));
    let recent = snapshot["provenance_summary"]["recent_events"].as_array().unwrap();
    assert_eq!(recent.last().unwrap()["event_type"], "execution.completed");

    let artifacts = service.get(&format!("{one}/artifacts")).await.is(200);
    let kinds: Vec<&str> =
        artifacts.as_array().unwrap().iter().map(|a| a["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["manifest", "patched_graph", "physical_graph"]);
    let uri = artifacts[0]["uri"].as_str().unwrap().strip_prefix("/api/v2").unwrap();
    let bytes = service.get(uri).await;
    assert_eq!(bytes.header("content-type"), Some("application/json"));
    assert_eq!(bytes.body, "{\"inputs\":{},\"sources\":[]}");

    let listed = service.get("/executions?status=completed&project_module=p").await.is(200);
    assert_eq!(
        (&listed["total"], &listed["page"], &listed["items_per_page"]),
        (&json!(1), &json!(1), &json!(50))
    );
    assert_eq!(listed["items"][0]["uuid"], execution.to_string());
    let of_source = service.get(&format!("/sources/{}/executions", id::source("p", "A"))).await.is(200);
    assert_eq!(of_source[0]["uuid"], execution.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hand_over_is_abandoned_by_someone_who_looked_and_then_tried_again() {
    let service = support::service().await;
    let execution = service.execution("p").await;
    let one = format!("/executions/{execution}");
    service.post(&format!("{one}/execute"), json!({})).await.is(202);
    let session = submit(&service, execution).await;
    command(
        &service,
        execution,
        Command::LoseReceipt { session_id: session, step: "deploy".into(), reason: "reset".into() },
    )
    .await;
    let mut word = json!({
        "reason": "the facility was rebuilt",
        "acknowledge_external_job_may_exist": true,
        "expected_submission_state": "uncertain",
        "expected_daliuge_session_id": Uuid::nil(),
        "expected_submission_deadline_at": null,
    });
    let refused = service.post(&format!("{one}/submission/abandon"), word.clone()).await.is(409);
    assert_eq!(refused["code"], "abandonment-outdated");
    word["expected_daliuge_session_id"] = json!(session);
    let ended = service.post(&format!("{one}/submission/abandon"), word).await.is(200);
    assert_eq!((&ended["status"], &ended["failure_class"]), (&json!("failed"), &json!("inconsistent_state")));
    let retried = service.post(&format!("{one}/retry"), json!({"reason": "again"})).await.is(202);
    assert_eq!((&retried["retry_count"], &retried["do_submit"]), (&json!(1), &json!(true)));
    assert_eq!(service.get(&one).await.is(200)["retry_count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_told_before_it_is_created() {
    let service = support::service().await;
    service.execution("p").await;
    service.source("p", "B").await;
    let order = json!({"project_module": "p", "archive_name": "casda", "sources": [
        {"source_identifier": "A", "sbids": ["200"]}]});
    let prepared = service.post("/executions/prepare", order).await.is(200);
    assert_eq!((&prepared["valid"], &prepared["total_datasets"]), (&json!(true), &json!(1)));
    assert_eq!(
        prepared["sources_preview"],
        json!([{"source_identifier": "A", "sbid_count": 1, "dataset_count": 1}])
    );
    let order = json!({"project_module": "p", "archive_name": "casda", "sources": [
        {"source_identifier": "A", "sbids": ["300"]}, {"source_identifier": "B", "sbids": null}]});
    let prepared = service.post("/executions/prepare", order).await.is(200);
    assert_eq!(prepared["valid"], false);
    assert_eq!(prepared["errors"].as_array().unwrap().len(), 2, "{prepared}");
}
