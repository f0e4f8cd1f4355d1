//! Replays a made-up log into all read models and says how fast: `cargo run --release -p beampipe-projections --example replay`.
//!
//! Four events an execution (as in an imported history), each decoded from JSON as a service does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::execution::{Completed, Created, Event as X, ExecuteStarted, RequestedSource, Running};
use beampipe_domain::job::{Claimed, Completed as Done, Enqueued, Event as J};
use beampipe_domain::source::{Event as S, Registered};
use beampipe_domain::{Event, id};
use beampipe_log::memory::MemoryLog;
use beampipe_log::{Expected, Log, NewEvent, StreamHead};
use beampipe_projections::{Decode, Models};
use chrono::{DateTime, Utc};
use uuid::Uuid;

fn json(value: &impl serde::Serialize) -> bytes::Bytes {
    serde_json::to_vec(value).expect("events serialize").into()
}

fn read<T: serde::de::DeserializeOwned + Default>(data: Option<&bytes::Bytes>) -> Result<T, String> {
    data.map_or_else(|| Ok(T::default()), |data| serde_json::from_slice(data).map_err(|e| e.to_string()))
}

fn decode() -> Decode {
    Arc::new(|recorded| {
        let data = recorded.data.as_ref();
        Ok(match &*recorded.event_type {
            "source.registered" => S::Registered(read(data)?).into(),
            "execution.created" => X::Created(read(data)?).into(),
            "execution.execute_started" => X::ExecuteStarted(read(data)?).into(),
            "execution.running" => X::Running(read(data)?).into(),
            "execution.completed" => X::Completed(read(data)?).into(),
            "job.enqueued" => J::Enqueued(read(data)?).into(),
            "job.claimed" => J::Claimed(read(data)?).into(),
            "job.completed" => J::Completed(read(data)?).into(),
            other => return Err(format!("{other} is not part of the replay")),
        })
    })
}

/// The stream, the type and the bytes of every event of execution `n`.
fn story(n: u128) -> Vec<(String, &'static str, bytes::Bytes)> {
    let execution = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + (n << 64));
    let identifier = format!("HIPASSJ{:06}", n % 10_000);
    let source = id::source("wallaby", &identifier);
    let created = Created {
        project_module: "wallaby".into(),
        archive_name: "casda".into(),
        sources: vec![RequestedSource {
            source_id: source,
            source_identifier: identifier.clone(),
            signature: Some("a".repeat(64)),
            metadata_sha256: Some("b".repeat(64)),
            ..RequestedSource::default()
        }],
        source_identifiers: vec![identifier.clone()],
        discovery_signature: Some("a".repeat(64)),
        automatic: true,
        ..Created::default()
    };
    let stream = format!("execution-{execution}");
    let mut events = vec![];
    if n < 10_000 {
        let registered = Registered {
            project_module: "wallaby".into(),
            source_identifier: identifier.clone(),
            enabled: true,
            ..Registered::default()
        };
        events.push((format!("source-{source}"), "source.registered", json(&registered)));
    }
    events.push((stream.clone(), "execution.created", json(&created)));
    let started = ExecuteStarted { job_id: execution, do_stage: true, do_submit: true, attempt: 1 };
    events.push((stream.clone(), "execution.execute_started", json(&started)));
    events.push((stream.clone(), "execution.running", json(&Running { phase: "stage_and_manifest".into() })));
    if n.is_multiple_of(4) {
        let job = format!("job-{execution}");
        let order = Enqueued { execution_id: Some(execution), max_attempts: 3, ..Enqueued::default() };
        events.push((job.clone(), "job.enqueued", json(&order)));
        let claim = Claimed { worker_id: "w".into(), attempt: 1, ..Claimed::default() };
        events.push((job.clone(), "job.claimed", json(&claim)));
        events.push((job, "job.completed", json(&Done::default())));
    }
    let completed = Completed { attempt: 1, source_identifiers: vec![identifier], ..Completed::default() };
    events.push((stream, "execution.completed", json(&completed)));
    events
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: u64 = std::env::args().nth(1).map_or(Ok(200_000), |n| n.parse())?;
    let time: DateTime<Utc> = DateTime::from_timestamp(1_700_000_000, 0).ok_or("a time")?;
    let log = MemoryLog::new(Arc::new(move || time));
    let mut events = 0u64;
    for n in 0.. {
        let mut heads: std::collections::HashMap<String, StreamHead> = Default::default();
        for (stream, event_type, data) in story(n) {
            events += 1;
            let new = NewEvent {
                id: Uuid::from_u128(u128::from(events)),
                event_type: event_type.into(),
                schema_version: 1,
                occurred_at: time,
                actor: "system:replay/1".into(),
                correlation_id: Uuid::nil(),
                causation_id: None,
                tags: vec!["project:wallaby".into()],
                data,
                salt: [0; 32],
            };
            let expected = Expected::from(heads.get(&stream).copied());
            let appended = log.append(&stream, expected, vec![new]).await?;
            heads.insert(stream, appended.head);
        }
        if events >= wanted {
            break;
        }
    }
    let (dir, log) = (tempfile::tempdir()?, Arc::new(log));
    println!("{events} events in the log, an event is {} bytes in memory", size_of::<Event>());
    let start = Instant::now();
    let models = Models::open(dir.path(), log.clone(), decode(), Arc::new(move || time)).await?;
    println!("opened in {:?}", start.elapsed());
    let done = models.wait_for(log.head().position, Duration::from_secs(600)).await;
    let took = start.elapsed().as_secs_f64();
    println!("replayed: {done}, {took:.2} s, {:.0} events/s into all read models", events as f64 / took);
    for status in models.status() {
        println!("  {:12} at {}", status.name, status.position);
    }
    let gauges = models.gauges();
    println!("  executions completed: {}", gauges.executions.by_status["completed"]);
    let mut reads = vec![];
    for n in 0..1000u128 {
        let start = Instant::now();
        models.executions().list(None, None, beampipe_projections::Window::at(n as u64 % 5, 50))?;
        reads.push(start.elapsed());
    }
    reads.sort_unstable();
    println!("a list of 50 executions: median {:?}", reads[500]);
    models.close().await;
    for name in beampipe_projections::names() {
        let size = std::fs::metadata(dir.path().join(format!("{name}.sqlite")))?.len();
        println!("  {name:12} {:>9} KiB", size / 1024);
    }
    Ok(())
}
