//! A survey from its registration to its products, on a real TAP server and a real DALiuGE.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;

use super::service::{PROJECT, SOURCES, Service, is_terminal, status_is};
use crate::backends::daliuge::{Own, http};

#[tokio::test]
async fn a_survey_registers_discovers_runs_and_is_watched() {
    let island = Own::island();
    let mut service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.register(&SOURCES).await;
    let executions = service
        .until("five executions at their end", Duration::from_secs(120), |all| {
            all.len() == 5 && all.iter().all(is_terminal)
        })
        .await;
    assert_eq!(executions.iter().filter(status_is("completed")).count(), 4, "{executions:#?}");
    let failed: Vec<&Value> = executions.iter().filter(status_is("failed")).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["sources"][0]["source_identifier"], "HIPASSJ1245-00");

    for (outcome, source) in
        [("discovery.error", "HIPASSJ1250-20"), ("discovery.no_datasets", "HIPASSJ2359-59")]
    {
        let events = service.events(&format!("/projects/{PROJECT}/events")).await;
        let found: BTreeSet<&str> = events
            .iter()
            .filter(|event| event["event_type"] == outcome)
            .filter_map(|event| event["source_identifier"].as_str())
            .collect();
        assert_eq!(found, BTreeSet::from([source]), "{outcome}");
    }
    for execution in &executions {
        both_addresses_of_the_session_answer(execution).await;
        the_run_record_is_whole(execution);
        the_stream_in_two_parts_is_the_page(&service, execution["uuid"].as_str().unwrap()).await;
    }
    the_failure_names_its_cause(&service, failed[0]).await;
    service.stop().await;
    service.verify_log();
}

async fn both_addresses_of_the_session_answer(execution: &Value) {
    for field in ["dim_session_status_url", "dim_graph_status_url"] {
        let url = execution[field].as_str().unwrap_or_else(|| panic!("{field} is {}", execution[field]));
        let answer = http().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{url}");
        let body: Value = answer.json().await.unwrap();
        assert!(body.as_object().is_some_and(|nodes| !nodes.is_empty()), "{url}: {body}");
    }
}

fn the_run_record_is_whole(execution: &Value) {
    let record = &execution["beampipe_run_record"];
    let session = &execution["daliuge_session_id"];
    assert_eq!(record["requested_sources"]["count"], 1);
    assert_eq!(record["dim"]["session_id"], *session);
    for field in ["deployed_at", "dim_rest_base", "verify_ssl", "operator_urls"] {
        assert!(!record["dim"]["deploy"][field].is_null(), "dim.deploy.{field}: {record:#}");
    }
    for field in ["session_id", "session_state", "observed_at", "ledger_status"] {
        assert!(!record["dim"]["terminal"][field].is_null(), "dim.terminal.{field}: {record:#}");
    }
    assert!(!record["dim"]["last_observation"]["observed_at"].is_null(), "{record:#}");
}

async fn the_failure_names_its_cause(service: &Service, execution: &Value) {
    assert!(execution["failure_class"].is_string());
    assert!(execution["last_error"].as_str().is_some_and(|error| !error.is_empty()));
    let id = execution["uuid"].as_str().unwrap();
    let artifacts = service.get(&format!("/executions/{id}/artifacts")).await;
    let log = artifacts.as_array().unwrap().iter().find(|artifact| artifact["kind"] == "log").unwrap();
    let sha256 = log["sha256"].as_str().unwrap();
    let (status, text) = service.text(&format!("/executions/{id}/artifacts/{sha256}"), "*/*").await;
    assert_eq!(status, 200);
    assert!(text.contains("rejected"), "the drop's own words are in the evidence: {text}");
}

/// Reads an execution's stream to its terminal event, in two parts broken off at several places.
async fn the_stream_in_two_parts_is_the_page(service: &Service, id: &str) {
    let path = format!("/executions/{id}/events");
    let page = service.events(&path).await;
    for k in [1, page.len() / 2, page.len() - 1] {
        let mut seen = stream(service, &path, None, k).await;
        let last = seen.last().unwrap().0.clone();
        seen.extend(stream(service, &path, Some(&last), usize::MAX).await);
        let events: Vec<Value> = seen.into_iter().map(|(_, event)| event).collect();
        assert_eq!(events, page, "broken off after {k}");
    }
}

/// The first `most` events of a stream with their ids, up to the terminal one.
pub async fn stream(service: &Service, path: &str, after: Option<&str>, most: usize) -> Vec<(String, Value)> {
    let mut request = service
        .request(reqwest::Method::GET, &format!("{path}?until_terminal=true"))
        .header("accept", "text/event-stream");
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut bytes = answer.bytes_stream();
    let (mut text, mut seen) = (String::new(), vec![]);
    while let Some(chunk) = bytes.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        while let Some(end) = text.find("\n\n") {
            let frame: String = text.drain(..end + 2).collect();
            let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let kind = field("event:").unwrap_or("message");
            if let (Some(id), Some(data)) = (field("id:"), field("data:"))
                && kind != "caught-up"
            {
                seen.push((id.to_owned(), serde_json::from_str(data).unwrap()));
                if seen.len() == most {
                    return seen;
                }
            }
        }
    }
    seen
}
