//! A million events again, into every read model that the service keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use beampipe::codec;
use beampipe_log::{Direction, Filter, Log};
use beampipe_projections::{Decode, Models};

use crate::report::Report;
use crate::{Settings, made};

const PATIENCE: Duration = Duration::from_secs(600);

fn decode() -> Decode {
    Arc::new(|recorded| codec::decode(recorded).map_err(|error| error.to_string()))
}

/// Folds the whole log into read models that are not there yet.
async fn fold(settings: &Settings, log: &Arc<dyn Log>) -> anyhow::Result<f64> {
    let views = made::scratch(settings, "replay-views")?;
    let clock = beampipe::clock::Clock::system();
    let head = log.head().position;
    let started = Instant::now();
    let models = Models::open(&views, Arc::clone(log), decode(), Arc::new(move || clock.now())).await?;
    ensure!(models.wait_for(head, PATIENCE).await, "the read models do not catch up: {:?}", models.status());
    let took = started.elapsed();
    models.close().await;
    std::fs::remove_dir_all(&views)?;
    Ok(head as f64 / took.as_secs_f64())
}

/// Reads and decodes the whole log and does nothing with it: what no read model can be quicker than.
async fn decoded(log: &Arc<dyn Log>) -> anyhow::Result<f64> {
    let (started, mut from, mut seen) = (Instant::now(), 1, 0_usize);
    loop {
        let page = log.read_all(from, Direction::Forward, 1000, &Filter::All).await?;
        for event in &page.events {
            codec::decode(event)?;
        }
        seen += page.events.len();
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(seen as f64 / started.elapsed().as_secs_f64())
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let base = made::log(settings).await?;
    let scratch = made::scratch(settings, "replay")?;
    for name in ["log.sqlite", "log.sqlite.index"] {
        made::copy(&base.join(name), &scratch.join(name))?;
    }
    let log: Arc<dyn Log> = Arc::new(made::open(&scratch.join("log.sqlite"))?);
    let mut report = Report::new("replay");
    let (case, unit) = ("into all read models", "events/s");
    for _ in 0..settings.rounds {
        report.add(case, "beampipe", unit, fold(settings, &log).await?);
        report.add("read and decoded only", "beampipe", unit, decoded(&log).await?);
    }
    report.aim_value("into all read models, events/s", case, "beampipe", unit, 100_000.0);
    report.note(format!(
        "{} events of whole stories (registered, discovered, admitted, staged, submitted, completed, with their jobs), from \
         an empty directory to the last commit of the slowest read model.",
        settings.events
    ));
    log.close().await;
    drop(log);
    std::fs::remove_dir_all(&scratch)?;
    Ok(report)
}
