//! A million events through NDJSON over HTTP to a client that parses them, beside a read of as many from UmaDB.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::report::Report;
use crate::service::Service;
use crate::{Settings, made, umadb};

const PATIENCE: Duration = Duration::from_secs(600);

/// What is read from a line: every field is looked at, the payload is kept as the JSON it is (as UmaDB's bytes are).
#[derive(Deserialize)]
struct Line<'a> {
    position: u64,
    id: uuid::Uuid,
    stream: &'a str,
    revision: u64,
    event_type: &'a str,
    schema_version: u16,
    occurred_at: &'a str,
    recorded_at: &'a str,
    actor: Option<&'a str>,
    correlation_id: Option<uuid::Uuid>,
    causation_id: Option<uuid::Uuid>,
    hash: &'a str,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

impl Line<'_> {
    /// Touches what was parsed, so that no field is left out by the compiler.
    fn weight(&self) -> usize {
        self.stream.len()
            + self.event_type.len()
            + self.occurred_at.len()
            + self.recorded_at.len()
            + self.hash.len()
            + self.actor.map_or(0, str::len)
            + self.payload.map_or(0, |payload| payload.get().len())
            + usize::from(self.schema_version)
            + self.revision as usize
            + usize::from(self.id.is_nil())
            + usize::from(self.correlation_id.is_some())
            + usize::from(self.causation_id.is_some())
    }
}

async fn over_http(service: &Service, expected: usize) -> anyhow::Result<f64> {
    let client = service.client().await?;
    let started = Instant::now();
    let mut lines = client.follow("/api/v2/events?after=0", "application/x-ndjson").await?;
    let (mut seen, mut weight, mut last) = (0_usize, 0_usize, 0);
    while let Some(line) = lines.next().await? {
        if line.is_empty() {
            continue;
        }
        let line: Line<'_> =
            serde_json::from_slice(line).with_context(|| String::from_utf8_lossy(line).into_owned())?;
        ensure!(line.position > last, "position {} follows {last}", line.position);
        last = line.position;
        weight += line.weight();
        seen += 1;
    }
    let took = started.elapsed();
    ensure!(seen >= expected && weight > 0, "the stream had {seen} events of {expected}");
    Ok(seen as f64 / took.as_secs_f64())
}

async fn from_peer(server: &umadb::Server, expected: usize) -> anyhow::Result<f64> {
    let mut client = server.connect().await?;
    let started = Instant::now();
    let mut stream = client.read(None).await?;
    let (mut seen, mut weight) = (0, 0);
    while let Some(batch) = stream.message().await? {
        seen += batch.events.len();
        weight += batch
            .events
            .iter()
            .filter_map(|event| event.event.as_ref())
            .map(|event| event.data.len())
            .sum::<usize>();
    }
    let took = started.elapsed();
    ensure!(seen == expected && weight > 0, "the peer read {seen} events of {expected}");
    Ok(seen as f64 / took.as_secs_f64())
}

/// A state directory of a service over the same log.
fn served(base: &Path, state: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(state)?;
    made::copy(&base.join("log.sqlite"), &state.join("events.sqlite"))?;
    made::copy(&base.join("log.sqlite.index"), &state.join("events.sqlite.index"))
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let base = made::log(settings).await?;
    let peer = made::peer(settings).await?;
    let scratch = made::scratch(settings, "stream")?;
    made::copy(&peer.join("uma.db"), &scratch.join("uma.db"))?;
    served(&base, &scratch.join("served"))?;
    let service = Service::start(settings, &scratch.join("served"), PATIENCE).await?;
    let server = umadb::Server::start(&settings.umadb, &scratch.join("uma.db")).await?;
    let mut report = Report::new("stream");
    let (case, unit) = ("to a parsing client", "events/s");
    for _ in 0..settings.rounds {
        report.add(case, "beampipe", unit, over_http(&service, settings.events).await?);
        report.add(case, "UmaDB", unit, from_peer(&server, settings.events).await?);
    }
    report.aim_at_least("to a parsing client, of UmaDB", unit, (case, "beampipe"), (case, "UmaDB"), 2.0);
    report.note(format!(
        "{} events. Ours reaches the client as NDJSON over HTTP and is parsed field by field; UmaDB's as protobuf over gRPC, \
         decoded. Both clients keep the payload as bytes.",
        settings.events
    ));
    service.stop().await?;
    drop(server);
    std::fs::remove_dir_all(&scratch)?;
    Ok(report)
}
