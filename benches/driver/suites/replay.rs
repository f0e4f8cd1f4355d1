//! A million events again, into every read model that the service keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use beampipe::codec;
use beampipe_log::{Direction, Filter, Log};
use beampipe_projections::{Decode, Models};

use crate::report::Report;
use crate::{Settings, made};

const PATIENCE: Duration = Duration::from_secs(600);

fn decode() -> Decode {
    Arc::new(|recorded| codec::decode(recorded).map_err(|error| error.to_string()))
}

/// Processor time of this process so far, in seconds: unlike a rate, it hardly depends on what else the machine does.
fn processor_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Fields 14 and 15 of proc(5), in ticks of 10 ms; the name before them may have blanks.
    let after_name = stat.rsplit_once(')').context("no name in /proc/self/stat")?.1;
    let ticks: Vec<f64> = after_name.split(' ').skip(12).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Folds the whole log into read models that are not there yet: events a second, and processor seconds for a million.
async fn fold(settings: &Settings, log: &Arc<dyn Log>) -> anyhow::Result<(f64, f64)> {
    let views = made::scratch(settings, "replay-views")?;
    let clock = beampipe::clock::Clock::system();
    let head = log.head().position;
    let (started, worked) = (Instant::now(), processor_seconds()?);
    let models = Models::open(&views, Arc::clone(log), decode(), Arc::new(move || clock.now())).await?;
    ensure!(models.wait_for(head, PATIENCE).await, "the read models do not catch up: {:?}", models.status());
    let (took, worked) = (started.elapsed(), processor_seconds()? - worked);
    models.close().await;
    std::fs::remove_dir_all(&views)?;
    Ok((head as f64 / took.as_secs_f64(), worked * 1e6 / head as f64))
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
        let (rate, worked) = fold(settings, &log).await?;
        report.add(case, "beampipe", unit, rate);
        report.add(case, "beampipe", "CPU s / 1 M events", worked);
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
