//! A second process starts from a snapshot of the first one's read models, and on a log that is not theirs it says so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beampipe::clock::Clock;
use beampipe::codec;
use beampipe_domain::{Event, source};
use beampipe_log::{Expected, Log, NewEvent, SqliteLog, SqliteOptions};
use serde_json::Value;

use super::replay::answers;
use super::service::{PROJECT, SOURCES, Service, is_terminal, words};

async fn ended(service: &Service, many: usize) -> Vec<Value> {
    let all = |all: &[Value]| all.len() == many && all.iter().all(is_terminal);
    service.until("at their end", Duration::from_secs(120), all).await
}

async fn paths(service: &Service) -> Vec<String> {
    let mut paths = vec![
        "/projects".to_owned(),
        "/deployment-profiles".to_owned(),
        format!("/sources?project_module={PROJECT}"),
        format!("/executions?project_module={PROJECT}"),
        "/jobs?limit=500".to_owned(),
    ];
    for execution in service.executions().await {
        let id = execution["uuid"].as_str().unwrap();
        paths.extend(["", "/summary", "/artifacts", "/events"].map(|part| format!("/executions/{id}{part}")));
    }
    paths
}

/// The value of a gauge without labels.
async fn gauge(service: &Service, name: &str) -> Option<f64> {
    let (status, text) = service.text("/metrics", "text/plain").await;
    assert_eq!(status, 200, "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")))?;
    Some(line.parse().unwrap())
}

/// A service that was never started, for a log that is copied into its state directory.
fn prepared(first: &Service, store: &[(&str, &str)]) -> Service {
    let mut service = Service::new(store);
    service.key.clone_from(&first.key);
    service
}

fn copy_log(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name.to_str().unwrap().starts_with("events.sqlite") {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_snapshot_of_a_serving_process_starts_another_and_an_older_log_is_noticed() {
    let home = tempfile::tempdir().unwrap();
    let store = format!("file:{}", home.path().join("artifacts").display());
    let store = [("BEAMPIPE_ARTIFACTS__URL", store.as_str())];
    let mut first = Service::start(&store).await;
    first.configure(|yaml| yaml).await;
    first.simulate(10).await;
    first.register(&SOURCES[..2]).await;
    ended(&first, 2).await;
    let (tar, late) = (home.path().join("early.tar"), home.path().join("late"));
    let taken = first.command(&["projections", "snapshot", tar.to_str().unwrap()]);
    assert!(taken.status.success(), "{}", words(&taken));
    assert!(words(&taken).contains("executions: position"), "{}", words(&taken));
    first.stop().await;
    let older = home.path().join("older");
    copy_log(&first.state_dir(), &older);
    first.start_again(&[]).await;

    first.register(&SOURCES[2..4]).await;
    ended(&first, 4).await;
    let paths = paths(&first).await;
    let before = answers(&first, &paths).await;
    let taken = first.command(&["projections", "snapshot", late.to_str().unwrap()]);
    assert!(taken.status.success(), "{}", words(&taken));
    first.stop().await;

    // On a copy of the log, from the early snapshot: what is missing is folded, and the answers are the same.
    let mut second = prepared(&first, &store);
    copy_log(&first.state_dir(), &second.state_dir());
    let restored = second.command(&["projections", "restore", tar.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", words(&restored));
    let twice = second.command(&["projections", "restore", tar.to_str().unwrap()]);
    assert!(!twice.status.success() && words(&twice).contains("empty directory"), "{}", words(&twice));
    second.start_again(&[]).await;
    for ((path, before), after) in paths.iter().zip(before).zip(answers(&second, &paths).await) {
        assert_eq!(before, after, "{path}");
    }
    let events = gauge(&second, "beampipe_bootstrap_events").await.unwrap();
    let head = gauge_of_head(&second).await;
    assert!(events > 0.0 && events < head, "{events} of {head} events were folded");
    assert!(gauge(&second, "beampipe_bootstrap_seconds").await.unwrap() > 0.0);
    second.stop().await;

    // On a log from an older backup, with the late snapshot: never silently.
    let mut third = prepared(&first, &store);
    copy_log(&older, &third.state_dir());
    let restored = third.command(&["projections", "restore", late.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", words(&restored));
    third.start_again(&[]).await;
    let models = third.get("/projections").await;
    // The others' checkpoints may lie in what both logs have: those models are as the older log says.
    for name in ["executions", "sources", "jobs"] {
        let model = models.as_array().unwrap().iter().find(|model| model["name"] == name).unwrap();
        let alarm = model["alarm"].as_str().unwrap_or_default();
        assert!(alarm.contains("is not in the log"), "{model:#}");
    }
    assert_eq!(third.executions().await.len(), 2, "as the older log says");
    third.stop().await;
    let clean = third.command(&["projections", "verify"]);
    assert!(clean.status.success(), "{}", words(&clean));
}

async fn gauge_of_head(service: &Service) -> f64 {
    gauge(service, "beampipe_log_head_position{engine=\"sqlite\"}").await.unwrap()
}

/// Appends `many` events to the log of a service that is stopped.
async fn append(directory: &Path, many: usize) {
    let clock = Clock::system();
    let now = clock.clone();
    let options = SqliteOptions::new(Arc::new(move || now.now()));
    let log = SqliteLog::open(directory.join("events.sqlite"), options).unwrap();
    let event = |event: source::Event| {
        let encoded = codec::encode(&Event::Source(event));
        NewEvent {
            id: clock.id(),
            event_type: encoded.event_type.into(),
            schema_version: encoded.schema_version,
            occurred_at: clock.now(),
            actor: "system:test/1".into(),
            correlation_id: clock.id(),
            causation_id: None,
            tags: vec!["project:p".into()],
            data: encoded.data,
            salt: clock.random(),
        }
    };
    let stream = format!("source-{}", beampipe_domain::id::source("p", "J1"));
    let mut expected = Expected::NoStream;
    let registered = source::Registered {
        project_module: "p".into(),
        source_identifier: "J1".into(),
        enabled: false,
        stale_after_hours: None,
    };
    let mut next = vec![event(source::Event::Registered(registered))];
    for _ in 0..many.div_ceil(500) {
        let requested = || source::DiscoveryRequested { source_identifier: "J1".into() };
        next.extend((0..500).map(|_| event(source::Event::DiscoveryRequested(requested()))));
        let appended = log.append(&stream, expected, std::mem::take(&mut next)).await.unwrap();
        expected = Expected::from(Some(appended.head));
    }
    log.close().await;
}

#[tokio::test]
async fn a_process_that_has_much_to_catch_up_is_not_ready_until_it_has() {
    let mut service = Service::start(&[]).await;
    let early = service.state_dir().join("early");
    let taken = service.command(&["projections", "snapshot", early.to_str().unwrap()]);
    assert!(taken.status.success(), "{}", words(&taken));
    service.stop().await;
    append(&service.state_dir(), 40_000).await;
    std::fs::remove_dir_all(service.state_dir().join("read-models")).unwrap();
    let restored = service.command(&["projections", "restore", early.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", words(&restored));

    service.spawn(&[]);
    let http = crate::backends::daliuge::http();
    let (mut unready, mut behind) = (0, 0);
    loop {
        let answer = http.get(service.url("/ready")).send().await;
        if let Ok(answer) = answer {
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            if status == 200 {
                break;
            }
            unready += 1;
            behind += u32::from(text.contains("have not caught up with the log"));
        }
        assert!(service.is_running(), "{}", service.said());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(behind > 0, "it was unready {unready} times, and never because it was behind");
    let events = gauge(&service, "beampipe_bootstrap_events").await.unwrap();
    let seconds = gauge(&service, "beampipe_bootstrap_seconds").await.unwrap();
    println!("{events} events in {seconds} s, unready {unready} times, behind {behind} times");
    assert!((40_000.0..41_000.0).contains(&events) && seconds > 0.0, "{events} in {seconds}");
    service.stop().await;
    service.start_again(&[]).await;
    let events = gauge(&service, "beampipe_bootstrap_events").await.unwrap();
    assert!(events < 200.0, "its own rows are up to date, yet {events} events were folded");
}
