//! What operators do: the command line against a service that runs, and what goes wrong at night.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::service::{Service, words};
use crate::backends::daliuge::{SCRIPTS, told};

mod commands;
mod incidents;
mod manager;
mod newer;
mod room;

/// Sources of the sample archive whose graphs finish.
pub const SIMULATED: [&str; 4] = ["HIPASSJ1318-21", "HIPASSJ0039-14", "HIPASSJ1305-20", "HIPASSJ1321-19"];

/// A verb that must be done; its answer as JSON.
#[track_caller]
pub fn done(service: &Service, arguments: &[&str]) -> Value {
    let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
    let output = service.command(&all);
    assert!(output.status.success(), "{arguments:?}: {}\n{}", words(&output), service.said());
    let text = String::from_utf8(output.stdout).unwrap();
    if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

/// A verb that must be done; what a person reads.
#[track_caller]
pub fn told_to_a_person(service: &Service, arguments: &[&str]) -> String {
    let output = service.command(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", words(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A verb whose answer must be no; what was said.
#[track_caller]
pub fn refused(service: &Service, arguments: &[&str]) -> String {
    let output = service.command(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", words(&output));
    assert!(output.stdout.is_empty(), "{arguments:?}: an answer that is no answer: {}", words(&output));
    String::from_utf8(output.stderr).unwrap()
}

/// Adds a survey on the sample archive whose executions are simulated, as an operator does it: two files, two verbs.
#[track_caller]
pub fn simulated(service: &Service, module: &str, deployment: Value, change: impl Fn(String) -> String) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (project, profile) = (at("project.yaml"), at("profile.json"));
    std::fs::write(&project, change(survey(module))).unwrap();
    let mut deployment = deployment;
    deployment["kind"] = "simulated".into();
    let spec = json!({
        "name": format!("sim-{module}"), "project_module": module, "is_default": true, "deployment": deployment,
    });
    std::fs::write(&profile, spec.to_string()).unwrap();
    done(service, &["project", "add", &project]);
    done(service, &["profile", "create", &profile]);
}

/// The demo's survey under another name, on a profile `sim-<module>`.
pub fn survey(module: &str) -> String {
    let graph = format!("{SCRIPTS}/graphs/ingest-scatter.graph");
    let sha256 = beampipe::artifacts::digest(&std::fs::read(&graph).unwrap());
    std::fs::read_to_string(format!("{SCRIPTS}/demo/project.yaml"))
        .unwrap()
        .replace("id: wallaby_demo", &format!("id: {module}"))
        .replace("deployment_profile_name: demo", &format!("deployment_profile_name: sim-{module}"))
        .replace("@TAP_URL@", &told("BEAMPIPE_TEST_TAP_URL"))
        .replace("@GRAPH_PATH@", &graph)
        .replace("@GRAPH_SHA256@", &sha256)
}

/// Executions only when somebody asks.
pub fn by_hand(yaml: String) -> String {
    let (before, execution) = yaml.split_once("  execution:\n    enabled: true").unwrap();
    format!("{before}  execution:\n    enabled: false{execution}")
}

/// The executions of a project, oldest first.
pub async fn executions(service: &Service, module: &str) -> Vec<Value> {
    let page = service.get(&format!("/executions?project_module={module}&items_per_page=500")).await;
    page["items"].as_array().unwrap().iter().rev().cloned().collect()
}

/// Waits until `is` says so of all executions of a project.
pub async fn until(service: &Service, module: &str, what: &str, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let all = executions(service, module).await;
        if is(&all) {
            return all;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "not {what}: {all:#?}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until `is` says so of the answer to a GET.
pub async fn until_get(service: &Service, path: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let answer = service.get(path).await;
        if is(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(45), "not {what}: {answer:#}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value:#}"))
}

/// The types of events, in their order.
pub fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| text(event, "event_type")).collect()
}
