//! Verbs that work on files.

use std::path::Path;
use std::sync::Arc;

use beampipe::clock::Clock;
use beampipe::codec;
use beampipe_domain::{Event, source};
use beampipe_log::{Expected, Log, NewEvent, SqliteLog, SqliteOptions};

use super::run::{beampipe, beampipe_with, command};

/// A state directory whose log has `streams` sources of `each` events.
async fn state(directory: &Path, streams: usize, each: usize) {
    let clock = Clock::system();
    let log = SqliteLog::open(
        directory.join("events.sqlite"),
        SqliteOptions::new({
            let clock = clock.clone();
            Arc::new(move || clock.now())
        }),
    )
    .unwrap();
    for stream in 0..streams {
        let mut expected = Expected::NoStream;
        for n in 0..each {
            let identifier = format!("J{stream}");
            let event = match n {
                0 => source::Event::Registered(source::Registered {
                    project_module: "p".into(),
                    source_identifier: identifier,
                    enabled: true,
                    stale_after_hours: None,
                }),
                _ => source::Event::DiscoveryRequested(source::DiscoveryRequested {
                    source_identifier: identifier,
                }),
            };
            let encoded = codec::encode(&Event::Source(event));
            let id = beampipe_domain::id::source("p", &format!("J{stream}"));
            let new = NewEvent {
                id: clock.id(),
                event_type: encoded.event_type.into(),
                schema_version: encoded.schema_version,
                occurred_at: clock.now(),
                actor: "system:test/1".into(),
                correlation_id: clock.id(),
                causation_id: None,
                tags: vec!["project:p".into(), format!("source:{id}")],
                data: encoded.data,
                salt: clock.random(),
            };
            let appended = log.append(&format!("source-{id}"), expected, vec![new]).await.unwrap();
            expected = Expected::from(Some(appended.head));
        }
    }
    log.close().await;
}

#[tokio::test]
async fn a_log_is_verified_exported_and_imported_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::create_dir(at.join("one")).unwrap();
    state(&at.join("one"), 20, 5).await;

    let verified = beampipe(at, &["log", "verify", "--state-dir", "one", "-o", "json"]);
    assert_eq!(verified.status, 0, "{verified:?}");
    assert_eq!(verified.json()["events"], 100);
    assert_eq!(verified.json()["streams"], 20);

    let exported = beampipe(at, &["log", "export", "one.ndjson", "--state-dir", "one"]);
    assert_eq!(
        (exported.status, exported.out.as_str()),
        (0, "100 events, up to position 100\n"),
        "{exported:?}"
    );
    let imported = beampipe(at, &["log", "import", "one.ndjson", "--state-dir", "two"]);
    assert_eq!(imported.status, 0, "{imported:?}");
    let again = beampipe(at, &["log", "export", "-", "--log", "two/events.sqlite"]);
    assert_eq!(again.out, std::fs::read_to_string(at.join("one.ndjson")).unwrap());

    // Once more, through standard input: everything is there already.
    let twice =
        beampipe_with(at, &["log", "import", "-", "--state-dir", "two", "-o", "json"], again.out.as_bytes());
    assert_eq!((&twice.json()["written"], &twice.json()["skipped"]), (&0.into(), &100.into()), "{twice:?}");
    assert_eq!(
        beampipe(at, &["log", "export", "one.ndjson", "--state-dir", "one"]).status,
        1,
        "nothing is overwritten"
    );
}

#[tokio::test]
async fn an_import_of_altered_lines_is_refused_with_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    state(at, 1, 3).await;
    let export = beampipe(at, &["log", "export", "-", "--state-dir", "."]).out;
    let altered = export.replacen("system:test/1", "system:test/2", 2);
    let refused = beampipe_with(at, &["log", "import", "-", "--state-dir", "new"], altered.as_bytes());
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("position 1"), "{refused:?}");
    let refused = beampipe_with(at, &["log", "import", "-", "--state-dir", "newer"], b"{}\n");
    assert!(refused.status == 1 && refused.err.contains("line 1"), "{refused:?}");
}

#[tokio::test]
async fn a_flipped_byte_in_the_log_is_reported_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    state(at, 3, 3).await;
    let file = at.join("events.sqlite");
    let mut bytes = std::fs::read(&file).unwrap();
    let place = bytes.windows(2).rposition(|pair| pair == b"J1").expect("the data is in the file");
    bytes[place + 1] = b'7';
    std::fs::write(&file, bytes).unwrap();
    let found = beampipe(at, &["log", "verify", "--state-dir", "."]);
    assert_eq!(found.status, 1, "{found:?}");
    assert!(found.out.contains("fault: ") && found.out.contains("position"), "{found:?}");
}

#[tokio::test]
async fn a_redacted_event_keeps_its_proof_and_loses_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    state(at, 2, 2).await;
    let export = beampipe(at, &["log", "export", "-", "--state-dir", "."]).out;
    let first: serde_json::Value = serde_json::from_str(export.lines().next().unwrap()).unwrap();
    let id = first["id"].as_str().unwrap();

    let redacted = beampipe(
        at,
        &["log", "redact", id, "--reason", "a name was in it", "--state-dir", ".", "-o", "json"],
    );
    assert_eq!(redacted.json()["redacted_at_position"], 5, "{redacted:?}");
    let after = beampipe(at, &["log", "export", "-", "--state-dir", "."]).out;
    let line: serde_json::Value = serde_json::from_str(after.lines().next().unwrap()).unwrap();
    assert!(line["data"].is_null() && line["salt"].is_null() && line["hash"] == first["hash"]);
    let verified = beampipe(at, &["log", "verify", "--state-dir", "."]);
    assert!(verified.status == 0 && verified.out.contains("1 redacted"), "{verified:?}");

    let unknown =
        beampipe(at, &["log", "redact", &uuid::Uuid::nil().to_string(), "--reason", "x", "--state-dir", "."]);
    assert!(unknown.status == 1 && unknown.err.contains("no event"), "{unknown:?}");
}

#[tokio::test]
async fn only_one_process_writes_to_a_log_but_others_may_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    state(at, 1, 2).await;
    let clock = Clock::system();
    let options = SqliteOptions::new(Arc::new(move || clock.now()));
    let writer = SqliteLog::open(at.join("events.sqlite"), options).unwrap();
    assert_eq!(beampipe(at, &["log", "verify", "--state-dir", "."]).status, 0);
    let refused = beampipe_with(at, &["log", "import", "-", "--state-dir", "."], b"");
    assert!(refused.status == 1 && refused.err.contains(&std::process::id().to_string()), "{refused:?}");
    writer.close().await;
}

#[test]
fn a_log_that_is_not_there_is_not_made_by_looking() {
    let directory = tempfile::tempdir().unwrap();
    let ran = beampipe(directory.path(), &["log", "verify", "--state-dir", "nowhere"]);
    assert!(ran.status == 1 && ran.err.contains("nowhere/events.sqlite"), "{ran:?}");
    assert!(!directory.path().join("nowhere").exists());
}

#[test]
fn every_value_of_the_configuration_is_explained_with_where_it_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("b.toml"), "[work]\nconcurrency = 3\n").unwrap();
    let output = command(at)
        .args(["config", "explain", "--config", "b.toml", "-o", "json"])
        .env("BEAMPIPE_HTTP__LISTEN", "127.0.0.1:9999")
        .env("BEAMPIPE_KEY", "bpk_canary")
        .output()
        .unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!(row("work.concurrency")["value"], 3);
    assert!(row("work.concurrency")["source"].as_str().unwrap().ends_with("b.toml"));
    assert_eq!(row("http.listen")["value"], "127.0.0.1:9999");
    assert!(row("http.listen")["source"].as_str().unwrap().contains("environment"));
    assert_eq!(row("telemetry.format")["source"], "default");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("canary"));

    let wrong =
        command(at).args(["config", "explain"]).env("BEAMPIPE_WORK__TICK_SECONDS", "0").output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&wrong.stdout).contains("work.tick_seconds"),
        "it is explained all the same"
    );
}

#[test]
fn a_wrong_project_configuration_is_told_everything_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(
        at.join("bad.yaml"),
        "apiVersion: beampipe.dev/v1\nkind: ProjectConfig\nmetadata: {id: p}\n",
    )
    .unwrap();
    let ran = beampipe(at, &["project", "validate", "bad.yaml"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.out.lines().filter(|line| line.starts_with("error: ")).count() > 2, "{}", ran.out);
    for said in ["apiVersion: ", "graph: ", "    hint: ", "not valid, "] {
        assert!(ran.out.contains(said), "{said} is not in {}", ran.out);
    }
    assert_eq!(beampipe(at, &["project", "validate", "bad.yaml", "-o", "json"]).json()["valid"], false);
    assert_eq!(beampipe(at, &["project", "explain", "bad.yaml"]).status, 1);
    let missing = beampipe(at, &["project", "validate", "nothing.yaml"]);
    assert!(missing.status == 1 && missing.err.contains("cannot read nothing.yaml"), "{missing:?}");
}

#[test]
fn on_the_embedded_log_a_process_without_the_api_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let ran = beampipe(directory.path(), &["serve", "--role", "scheduler,worker"]);
    assert!(ran.status == 1 && ran.err.contains("no other process can open"), "{ran:?}");
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "nothing was begun");
    let ran = beampipe(directory.path(), &["serve", "--role", "cook"]);
    assert!(ran.status == 2 && ran.err.contains("scheduler"), "{ran:?}");
}

#[test]
fn a_service_that_is_not_there_is_exit_status_2_and_what_to_check() {
    let directory = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    for verb in [&["source", "list"][..], &["events", "follow", "--all"], &["account", "list"]] {
        let ran = beampipe(directory.path(), &[verb, &["--url", &url, "--key", "bpk_canary"]].concat());
        assert_eq!(ran.status, 2, "{ran:?}");
        assert!(ran.err.contains(&url) && ran.err.contains("beampipe serve"), "{ran:?}");
        assert!(!ran.err.contains("canary") && !ran.out.contains("canary"), "{ran:?}");
    }
    assert_eq!(beampipe(directory.path(), &["source", "list", "--url", "localhost:8080"]).status, 2);
    assert_eq!(beampipe(directory.path(), &["source", "bake"]).status, 2);
}

#[test]
fn the_script_of_a_profile_in_a_file_is_rendered_without_a_service() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("hpc.yaml"), super::SLURM_PROFILE).unwrap();
    let session = "5e7a1f00-0000-5000-8000-000000000001";
    let rendered =
        beampipe(directory.path(), &["profile", "render", "--file", "hpc.yaml", "--session", session]);
    assert_eq!((rendered.status, rendered.err.as_str()), (0, ""));
    assert!(rendered.out.starts_with("#!/bin/bash --login\n#SBATCH --job-name=5e7a1f00"), "{}", rendered.out);
    assert!(rendered.out.contains(&format!("cd /scratch/dlg/workspace/{session} || exit 73")));
    let wrong = super::SLURM_PROFILE.replace("8G", "8 pounds").replace("account: survey", "account: ''");
    std::fs::write(directory.path().join("wrong.yaml"), wrong).unwrap();
    let refused = beampipe(directory.path(), &["profile", "render", "--file", "wrong.yaml"]);
    assert_eq!((refused.status, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("deployment.account is empty") && refused.err.contains("resources.memory"));
    let simulated = "name: s\ndeployment: {kind: simulated}\n";
    std::fs::write(directory.path().join("sim.yaml"), simulated).unwrap();
    let refused = beampipe(directory.path(), &["profile", "render", "--file", "sim.yaml"]);
    assert!(refused.status == 1 && refused.err.contains("only slurm_remote has a script"), "{refused:?}");
}
