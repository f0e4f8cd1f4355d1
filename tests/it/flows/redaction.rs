//! The log's file under a service: what is redacted is gone everywhere and still proven, a copy is the same to the byte, and
//! only one service writes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::service::{PROJECT, Service, words};
use super::streams::{Reader, created, discovered, execute};

/// A name that was registered and should not have been.
const CANARY: &str = "CANARY-OF-A-PERSON";

/// One event of every type but those that keep the administrator's own access.
fn one_of_each(events: &[Value]) -> Vec<&Value> {
    let mut types = BTreeSet::new();
    let mut chosen: Vec<&Value> = events
        .iter()
        .filter(|event| event["payload"]["source_identifier"] == CANARY)
        .inspect(|event| {
            types.insert(event["event_type"].as_str().unwrap());
        })
        .collect();
    assert_eq!(chosen.len(), 1);
    for event in events {
        let stream = event["stream"].as_str().unwrap();
        let event_type = event["event_type"].as_str().unwrap();
        // The last of each type: what it says has consequences now.
        if !stream.starts_with("account-") && types.insert(event_type) {
            chosen.push(events.iter().rev().find(|other| other["event_type"] == event_type).unwrap());
        }
    }
    chosen
}

async fn all_events(service: &Service) -> Vec<Value> {
    service.get("/events?order=asc&limit=5000").await.as_array().unwrap().clone()
}

#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", words(&output));
    words(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_gone_everywhere_and_still_proven() {
    let mut service = discovered(0).await;
    let execution = created(&service).await;
    execute(&service, &execution).await;
    let bound = Duration::from_secs(20);
    service.until("completed", bound, |all| all.iter().all(|e| e["status"] == "completed")).await;
    let canary = json!({"project_module": PROJECT, "source_identifier": CANARY, "enabled": false});
    let source = service.post("/sources", canary).await["uuid"].as_str().unwrap().to_owned();
    let before = all_events(&service).await;
    service.stop().await;
    assert!(is_in_a_file(&service.state_dir(), CANARY));

    let chosen = one_of_each(&before);
    assert!(chosen.len() > 15, "{} types of events", chosen.len());
    for event in &chosen {
        let id = event["id"].as_str().unwrap();
        let said = done(service.command(&["log", "redact", id, "--reason", "a person asked", "-o", "json"]));
        assert!(said.contains(event["event_type"].as_str().unwrap()), "{said}");
    }
    let verified = done(service.command(&["log", "verify"]));
    assert!(verified.contains(&format!("{} redacted", chosen.len())), "{verified}");

    service.start_again(&[]).await;
    let redacted: BTreeSet<&str> = chosen.iter().map(|event| event["id"].as_str().unwrap()).collect();
    let after = all_events(&service).await;
    for (event, was) in after.iter().zip(&before) {
        for proven in
            ["id", "hash", "position", "stream", "revision", "event_type", "occurred_at", "recorded_at"]
        {
            assert_eq!(event[proven], was[proven], "{proven} of {was:#}");
        }
        if redacted.contains(event["id"].as_str().unwrap()) {
            assert_eq!((&event["payload"], &event["redacted"]), (&Value::Null, &json!(true)));
        } else {
            assert_eq!(event, was);
        }
    }
    let reasons = after.iter().filter(|event| event["payload"]["reason"] == "a person asked").count();
    assert_eq!(reasons, chosen.len(), "each is named with its reason");

    // Streams show the same, and the one whose last event says nothing any more ends with it.
    let reader = Reader::of(&service, &service.key);
    let path = format!("/executions/{execution}/events");
    let ended = tokio::time::timeout(bound, reader.whole(&format!("{path}?until_terminal=true"))).await;
    let (ended, page) = (ended.expect("the stream does not end"), service.events(&path).await);
    assert_eq!(ended.last().unwrap()["event_type"], "execution.completed");
    assert_eq!(ended, page[..ended.len()]);
    assert!(ended.iter().all(|event| event["redacted"] == true || event["payload"].is_object()));

    the_read_models_have_forgotten(&service).await;
    let mut paths = vec!["/sources".to_owned(), "/executions".into(), "/jobs".into(), "/workers".into()];
    paths.extend([
        "/projects".to_owned(),
        "/deployment-profiles".into(),
        "/ready".into(),
        "/projections".into(),
    ]);
    paths.extend(
        ["", "/status", "/summary", "/artifacts"].map(|part| format!("/executions/{execution}{part}")),
    );
    paths.extend(["", "/status", "/executions", "/events"].map(|part| format!("/sources/{source}{part}")));
    for path in paths {
        let (status, text) = service.text(&path, "*/*").await;
        assert!(status < 500, "{path}: {status} {text}");
        assert!(!text.contains(CANARY), "{path}: {text}");
    }
    done(service.command(&["projections", "verify"]));
    done(service.command(&["projections", "rebuild", "--all"]));
    the_read_models_have_forgotten(&service).await;
    done(service.command(&["projections", "verify"]));
    // It goes on.
    let another = json!({"project_module": PROJECT, "source_identifier": "ANOTHER", "enabled": false});
    service.post("/sources", another).await;
    service.stop().await;
    service.verify_log();
    assert!(!is_in_a_file(&service.state_dir(), CANARY), "what was redacted is still in a file");

    a_copy_is_the_same(&mut service).await;
}

/// Waits until no read model is being rebuilt and all have caught up.
async fn the_read_models_have_forgotten(service: &Service) {
    let begun = Instant::now();
    loop {
        let models = service.get("/projections").await;
        let text = models.to_string();
        let all = models.as_array().or_else(|| models["projections"].as_array());
        let all = all.unwrap_or_else(|| panic!("{models:#}"));
        if all.iter().all(|model| model["rebuild"].is_null() && model["state"] == "live") {
            return;
        }
        assert!(!text.contains("stopped"), "{models:#}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{models:#}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Export, import, export: the same bytes; the independent check finds nothing; a service on the copy shows the same.
async fn a_copy_is_the_same(service: &mut Service) {
    let (here, original) = (service.state_dir(), service.state_dir().with_file_name("original"));
    let at = |name: &str| here.with_file_name(name).to_str().unwrap().to_owned();
    let (first, second) = (at("first.ndjson"), at("second.ndjson"));
    done(service.command(&["log", "export", &first]));
    done(service.command(&["log", "import", &first, "--state-dir", &at("copy")]));
    done(service.command(&["log", "export", &second, "--state-dir", &at("copy")]));
    done(service.command(&["log", "verify", "--state-dir", &at("copy")]));
    let exported = std::fs::read_to_string(&first).unwrap();
    assert!(exported == std::fs::read_to_string(&second).unwrap(), "the copy's export is another");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/log_vectors.py");
    let checked = done(Command::new("python3").args([script, "export", &first]).output().unwrap());
    assert!(checked.contains("0 faults"), "{checked}");

    service.start_again(&[]).await;
    let (_, shown) = service.text("/events", "application/x-ndjson").await;
    service.stop().await;
    std::fs::rename(&here, &original).unwrap();
    std::fs::rename(at("copy"), &here).unwrap();
    service.start_again(&[]).await;
    let (status, copied) = service.text("/events", "application/x-ndjson").await;
    assert_eq!(status, 200);
    // Each start adds its own events after what was exported.
    let events = exported.lines().count();
    for (line, (original, copy)) in shown.lines().zip(copied.lines()).take(events).enumerate() {
        assert_eq!(original, copy, "line {}", line + 1);
    }
    assert!(copied.lines().count() > events);
    done(service.command(&["projections", "verify"]));
}

fn is_in_a_file(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_in_a_file(&path, text);
        }
        let found = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains(text);
        if found {
            eprintln!("{text} is in {}", path.display());
        }
        found
    })
}

#[tokio::test]
async fn a_second_service_on_the_same_log_is_refused_with_the_first_ones_pid() {
    let mut service = Service::start(&[]).await;
    let serve = |state: &Path| {
        Command::new(env!("CARGO_BIN_EXE_beampipe"))
            .arg("serve")
            .env("BEAMPIPE_STATE_DIR", state)
            .env("BEAMPIPE_HTTP__LISTEN", "127.0.0.1:0")
            .env("BEAMPIPE_METRICS__LISTEN", "127.0.0.1:0")
            .output()
            .unwrap()
    };
    let refused = serve(&service.state_dir());
    let said = words(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(&service.pid().to_string()), "whose it is: {said}");
    assert!(said.contains("events.sqlite"), "which log: {said}");
    assert!(!said.contains("bpk_"), "nothing was begun: {said}");
    let redacted = service.command(&["log", "redact", &uuid::Uuid::nil().to_string(), "--reason", "x"]);
    assert!(!redacted.status.success() && words(&redacted).contains(&service.pid().to_string()));

    // The first one did not notice, and when it is gone, however it went, the log is free.
    let body = json!({"username": "vera", "role": "viewer", "password": "a password of vera's"});
    let answer = service.request(Method::POST, "/accounts").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    service.kill();
    service.start_again(&[]).await;
    assert!(service.get("/accounts").await.to_string().contains("vera"));
}
