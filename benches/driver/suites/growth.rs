//! How a live log grows: events and bytes for an execution, and for a day of a source that is looked at once a day.
//!
//! The service does the work itself here, with an archive on loopback and the simulated backend; then its log is read. A
//! watch on a real backend adds an event for every state that the backend shows, and none for polls.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use beampipe_log::{Direction, Filter, Log, Recorded, SqliteLog, SqliteOptions, leaf};

use crate::report::Report;
use crate::service::{Project, Service};
use crate::tap::Tap;
use crate::{Settings, made, story};

const SOURCES: usize = 50;
const WHO: &str = "beampipe";

/// What an event occupies in the log's table: leaf, its hash, salt and data.
fn bytes(event: &Recorded) -> usize {
    leaf::encode(&event.into()).len()
        + 32
        + event.salt.map_or(0, |salt| salt.len())
        + event.data.as_ref().map_or(0, |d| d.len())
}

#[derive(Default)]
struct Sum {
    events: usize,
    bytes: usize,
}

impl Sum {
    fn take(&mut self, event: &Recorded) {
        self.events += 1;
        self.bytes += bytes(event);
    }

    fn report(&self, report: &mut Report, case: &str, among: usize) {
        report.add(case, WHO, "events", self.events as f64 / among as f64);
        report.add(case, WHO, "bytes", self.bytes as f64 / among as f64);
    }
}

fn on_disk(state: &Path) -> anyhow::Result<u64> {
    let mut all = 0;
    for name in ["log.sqlite", "log.sqlite.index"] {
        all += std::fs::metadata(state.join(name))?.len();
    }
    Ok(all)
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let state = made::scratch(settings, "growth")?;
    let service = Service::start(settings, &state, Duration::from_secs(60)).await?;
    let tap = Tap::start().await?;
    service.set_up_project(&Project { tap: Some(tap.url()), execute: true }).await?;
    service.register(SOURCES).await?;
    service.wait_for_events("execution.completed", SOURCES).await?;
    // A second look at every source: the archive has nothing new, as on most days.
    let asked = serde_json::json!({"project_module": story::PROJECT});
    let answer = service.client().await?.post("/api/v2/sources/discover", &asked).await?;
    ensure!(answer.status < 300, "the discovery is refused: {}", answer.text());
    service.wait_for_events("discovery.unchanged", SOURCES).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    service.stop().await?;

    let log = SqliteLog::open_read_only(state.join("events.sqlite"), SqliteOptions::new(story::clock()))?;
    let (mut executions, mut looks, mut all) = (Sum::default(), Sum::default(), Sum::default());
    let (mut from, mut second) = (1, false);
    loop {
        let page = log.read_all(from, Direction::Forward, 1000, &Filter::All).await?;
        for event in &page.events {
            all.take(event);
            let by_person = &*event.event_type == "discovery.requested";
            second |= by_person;
            if event.tag("execution:").is_some() {
                executions.take(event);
            } else if second && !by_person {
                looks.take(event);
            }
        }
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    let mut report = Report::new("growth");
    executions.report(&mut report, "an execution, with its jobs", SOURCES);
    looks.report(&mut report, "a source-day: one look a day, nothing new", SOURCES);
    report.add("everything in this log", WHO, "events", all.events as f64);
    let made = made::log(settings).await?;
    report.add(
        "on disk with index, an event of the made log",
        WHO,
        "bytes",
        on_disk(&made)? as f64 / settings.events as f64,
    );
    report.note(format!(
        "{SOURCES} sources on the simulated backend, one execution each; discovery in the batches the configuration's default \
         makes. Bytes are those of the events' rows."
    ));
    drop(log);
    std::fs::remove_dir_all(&state)?;
    Ok(report)
}
