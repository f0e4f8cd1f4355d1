//! The backup drill, as an operator runs it beside a service that goes on working.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::json;

use super::service::{PROJECT, SOURCES, Service, words};
use super::streams::{by_hand, created, discovered, execute};
use crate::backends::daliuge::told;

/// The drill on the files below `state`, with `scratch` for all that it makes.
fn drill(state: &Path, scratch: &Path) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/backup-drill.sh"));
    command
        .env("BEAMPIPE", env!("CARGO_BIN_EXE_beampipe"))
        .env("BEAMPIPE_STATE_DIR", state)
        .env("TMPDIR", scratch);
    command
}

/// A service that has discovered its sources and run one execution, so that there are artifacts.
async fn with_artifacts() -> Service {
    let service = discovered(0).await;
    let execution = created(&service).await;
    execute(&service, &execution).await;
    let bound = Duration::from_secs(20);
    service.until("completed", bound, |all| all.iter().all(|e| e["status"] == "completed")).await;
    service
}

/// What comes of `command` while `service` goes on writing, and how many sources it has registered meanwhile.
async fn while_it_appends(service: &Service, mut command: Command) -> (Output, usize) {
    let drilled = tokio::task::spawn_blocking(move || command.output().unwrap());
    let mut appended = 0;
    while !drilled.is_finished() {
        let identifier = format!("LATE-{appended}");
        let source = json!({"project_module": PROJECT, "source_identifier": identifier, "enabled": false});
        service.post("/sources", source).await;
        appended += 1;
    }
    (drilled.await.unwrap(), appended)
}

/// The files of the artifact store.
fn artifacts(service: &Service) -> Vec<PathBuf> {
    let below = |directory: PathBuf| {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    below(service.state_dir().join("artifacts/sha256")).into_iter().flat_map(below).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_service_at_work_is_restored_and_says_the_same() {
    let service = with_artifacts().await;
    let (directory, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = directory.path().join("beampipe.toml");
    std::fs::write(&settings, "[work]\nconcurrency = 3\n").unwrap();
    let backup = directory.path().join("backup");
    let mut command = drill(&service.state_dir(), scratch.path());
    command.arg("--also").arg(&settings).arg("--into").arg(&backup);
    let (done, appended) = while_it_appends(&service, command).await;
    assert!(done.status.success(), "{}", words(&done));
    let said = words(&done);
    println!("{said}{appended} sources were registered meanwhile");
    assert!(said.contains("all is well after") && said.contains("whole: "), "{said}");
    assert!(appended > 0, "nothing was appended meanwhile");
    assert!(backup.join("log.ndjson").is_file() && backup.join("artifacts/sha256").is_dir());
    assert!(backup.join("also").join(settings.strip_prefix("/").unwrap()).is_file());
    assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none(), "the scratch place is left behind");
    service.verify_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_ends_badly_when_an_artifact_is_damaged_or_missing() {
    let service = with_artifacts().await;
    let scratch = tempfile::tempdir().unwrap();
    let artifact = artifacts(&service).pop().unwrap();
    let digest = artifact.file_name().unwrap().to_str().unwrap().to_owned();
    let whole = std::fs::read(&artifact).unwrap();
    for (damage, fault) in [(Some(&whole[1..]), "is damaged"), (None, "is missing")] {
        match damage {
            Some(bytes) => std::fs::write(&artifact, bytes).unwrap(),
            None => std::fs::remove_file(&artifact).unwrap(),
        }
        let done = drill(&service.state_dir(), scratch.path()).output().unwrap();
        let said = words(&done);
        assert_eq!(done.status.code(), Some(1), "{said}");
        let fault = said.lines().any(|line| line.contains(&digest) && line.contains(fault));
        assert!(fault && said.contains("FAILED after"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_postgresql_is_restored_into_a_database_of_its_own_while_it_is_written() {
    let server = told("BEAMPIPE_TEST_POSTGRES_URL");
    let schema = format!("drill_{}", std::process::id());
    let log = format!("{server}?schema={schema}");
    let service = Service::start(&[("BEAMPIPE_LOG__URL", &log)]).await;
    service.configure(by_hand).await;
    service.register(&SOURCES).await;
    let scratch = tempfile::tempdir().unwrap();
    let mut command = drill(&service.state_dir(), scratch.path());
    command.env("BEAMPIPE_LOG__URL", &log);
    let (done, appended) = while_it_appends(&service, command).await;
    let said = words(&done);
    println!("{said}{appended} sources were registered meanwhile");
    assert!(done.status.success() && said.contains("(pg_restore)") && said.contains("whole: "), "{said}");
    assert!(appended > 0, "nothing was appended meanwhile");
    drop(service);
    let sql = |statement: &str| {
        let asked = Command::new("psql").args(["-XAtq", "-d", &server, "-c", statement]).output().unwrap();
        assert!(asked.status.success(), "{}", words(&asked));
        words(&asked)
    };
    let left = sql("SELECT datname FROM pg_database WHERE datname LIKE 'beampipe_drill_%'");
    assert_eq!(left, "", "a scratch database is left behind");
    sql(&format!("SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE"));
}

#[test]
fn a_drill_that_cannot_be_tried_says_why_and_is_no_success() {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    let status_and_words = |command: &mut Command| {
        let done = command.output().unwrap();
        (done.status.code(), words(&done))
    };
    let (status, said) = status_and_words(&mut drill(&state, scratch.path()));
    assert!(status == Some(2) && said.contains("state/artifacts"), "{status:?} {said}");
    let (status, said) =
        status_and_words(drill(&state, scratch.path()).env("BEAMPIPE_WORK__TICK_SECONDS", "0"));
    assert!(status == Some(2) && said.contains("tick_seconds"), "{status:?} {said}");
    let (status, said) = status_and_words(drill(&state, scratch.path()).arg("--harder"));
    assert!(status == Some(2) && said.contains("usage"), "{status:?} {said}");
    let (status, said) = status_and_words(drill(&state, scratch.path()).arg("--config"));
    assert!(status == Some(2) && said.contains("--config has no value"), "{status:?} {said}");
    // There is a store, and no log.
    std::fs::create_dir_all(state.join("artifacts")).unwrap();
    let (status, said) = status_and_words(&mut drill(&state, scratch.path()));
    assert!(status == Some(1) && said.contains("there is no log"), "{status:?} {said}");
    // Nobody listens on port 1.
    for (log, why) in [
        ("postgres://beampipe@127.0.0.1:1/beampipe", "lets nobody in"),
        (
            "postgres://beampipe@127.0.0.1:1/beampipe?sslmode=prefer",
            "neither disable, require nor verify-full",
        ),
        ("postgres://beampipe@db.example/beampipe?sslrootcert=/nowhere", "/nowhere cannot be read"),
    ] {
        let (status, said) = status_and_words(drill(&state, scratch.path()).env("BEAMPIPE_LOG__URL", log));
        assert!(status == Some(2) && said.contains(why), "{status:?} {said}");
    }
}
