//! What a scrape, a list and one execution's events cost with a thousand executions and with a million.
//!
//! Both logs are made by the same story and taken in by `beampipe log import`; both services run at the same time and are
//! asked in turns, so that the machine's noise meets both.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use beampipe_log::ndjson;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::client::{Client, Target};
use crate::report::Report;
use crate::service::{Project, Service};
use crate::stats::Latencies;
use crate::story::{self, Teller};
use crate::{Settings, made};

const FEW: usize = 1000;
const WHO: &str = "beampipe";

/// The state directory of a service with so many executions, and some of their ids. Kept between runs.
async fn prepared(settings: &Settings, executions: usize) -> anyhow::Result<(PathBuf, Vec<String>)> {
    let state = made::kept(settings, &format!("executions-{executions}"));
    let ids = state.join("ids");
    if let Ok(text) = std::fs::read_to_string(&ids) {
        return Ok((state, text.lines().map(String::from).collect()));
    }
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir_all(&state)?;
    eprintln!("importing a log of {executions} executions");
    let started = Instant::now();
    let kept = import(settings, &state, executions).await?;
    eprintln!("imported {} events in {:.0?}", executions * 4, started.elapsed());
    // The first start folds it all; what is measured is a service that has caught up.
    let service = Service::start(settings, &state, Duration::from_secs(1200)).await?;
    service.set_up_project(&Project::default()).await?;
    caught_up(&service, executions).await?;
    eprintln!("folded after {:.0?}", started.elapsed());
    service.stop().await?;
    std::fs::write(&ids, kept.join("\n"))?;
    Ok((state, kept))
}

async fn import(settings: &Settings, state: &Path, executions: usize) -> anyhow::Result<Vec<String>> {
    let mut child = Command::new(&settings.beampipe)
        .args(["log", "import", "-", "--state-dir"])
        .arg(state)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = child.stdin.take().context("the import has an input")?;
    let mut teller = Teller::new(3, story::beginning());
    let mut ids = Vec::new();
    for number in 0..executions {
        let id = teller.short_execution(number as u64)?;
        if number % (executions / 100).max(1) == 0 {
            ids.push(id.to_string());
        }
        if teller.waiting() >= 4000 || number + 1 == executions {
            let bytes: Vec<u8> = teller.take().iter().flat_map(ndjson::line).collect();
            lines.write_all(&bytes).await?;
        }
    }
    lines.shutdown().await?;
    drop(lines);
    let status = child.wait().await?;
    ensure!(status.success(), "the import ended with {status}");
    Ok(ids)
}

/// Waits until the list knows them all.
async fn caught_up(service: &Service, executions: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut client = service.client().await?;
    loop {
        let answer = client.get("/api/v2/executions?items_per_page=1").await?;
        if answer.status == 200 && answer.json()?["total"].as_u64() == Some(executions as u64) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(1200),
            "the read models do not catch up: {}",
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

struct Side {
    service: Service,
    ids: Vec<String>,
    label: String,
}

/// Asks one after the other for `time`; the median of the answers' times, in milliseconds.
async fn ask(client: &mut Client, paths: &[String], time: Duration) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut took = Latencies::default();
    for path in paths.iter().cycle() {
        let asked = Instant::now();
        let answer = client.get(path).await?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        took.push(asked.elapsed());
        if started.elapsed() > time {
            break;
        }
    }
    Ok(took.quantile_ms(0.5))
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let mut sides = Vec::new();
    for executions in [FEW, settings.executions] {
        let (state, ids) = prepared(settings, executions).await?;
        let service = Service::start(settings, &state, Duration::from_secs(300)).await?;
        caught_up(&service, executions).await?;
        sides.push(Side { service, ids, label: format!("{executions} executions") });
    }
    let mut report = Report::new("scale");
    const CASES: [&str; 3] = ["scrape of /metrics", "GET /executions", "GET /executions/{id}/events"];
    for round in 0..=settings.rounds {
        for case in CASES {
            for side in &sides {
                let paths = match case {
                    "scrape of /metrics" => vec!["/metrics".to_owned()],
                    "GET /executions" => vec!["/api/v2/executions".to_owned()],
                    _ => side.ids.iter().map(|id| format!("/api/v2/executions/{id}/events")).collect(),
                };
                let mut client = match case {
                    "scrape of /metrics" => {
                        let key = side.service.target.key.clone();
                        Client::connect(&Target { address: side.service.metrics, key }).await?
                    }
                    _ => side.service.client().await?,
                };
                let took = ask(&mut client, &paths, settings.cell / 2).await?;
                // The first round fills caches on both sides.
                if round > 0 {
                    report.add(&format!("{case}, {}", side.label), WHO, "p50 ms", took);
                }
            }
        }
    }
    let [few, many] = &sides[..] else { unreachable!("two sides are made above") };
    for case in CASES {
        let (large, small) = (format!("{case}, {}", many.label), format!("{case}, {}", few.label));
        report.aim_at_most(
            &format!("{case}, {} of {}", many.label, few.label),
            "p50 ms",
            (&large, WHO),
            (&small, WHO),
            1.5,
        );
    }
    for side in &sides {
        report.add(
            &format!("start to ready, {}", side.label),
            WHO,
            "s",
            side.service.ready_after.as_secs_f64(),
        );
    }
    report.note(
        "Four events an execution, through `beampipe log import`. One client, one request at a time; a round's value is \
         the median of its requests. Of the events, a hundred executions spread over the log are asked for in turns.",
    );
    for side in sides {
        side.service.stop().await?;
    }
    Ok(report)
}
