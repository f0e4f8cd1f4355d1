//! Measures the product beside its baselines, in interleaved rounds, and says what was aimed at and what was met.
//!
//! One process drives everything: the log and the projections in-process, the service and the peer as processes of their
//! own over loopback. It reads no environment; `benches/run.sh` builds, brings the peer and passes paths. It exits with an
//! error only when something could not be measured: a missed aim is a result.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;

mod client;
mod made;
mod report;
mod service;
mod stats;
mod story;
mod suites;
mod tap;
mod umadb;

use report::Report;

/// How everything is measured.
pub struct Settings {
    /// Where made histories and results are kept.
    pub state: PathBuf,
    /// The service's program.
    pub beampipe: PathBuf,
    /// The peer's program.
    pub umadb: PathBuf,
    /// The address of a PostgreSQL server, for the suite of that name.
    pub postgres: String,
    pub rounds: usize,
    /// How long one cell of a round takes.
    pub cell: Duration,
    /// Events in the made log.
    pub events: usize,
    /// Executions in the large log of the `scale` suite.
    pub executions: usize,
    /// The numbers of subscribers of the `sse` suite.
    pub subscribers: Vec<usize>,
}

const SUITES: [&str; 8] = ["log_append", "postgres", "replay", "stream", "sse", "http", "scale", "growth"];

const USAGE: &str = "beampipe-bench --state DIR --beampipe PROGRAM --umadb PROGRAM [--postgres URL] [--rounds N] [--cell-ms N] \
                     [--events N] [--executions N] [--subscribers N,N] [SUITE ...]";

fn settings() -> anyhow::Result<(Settings, Vec<String>)> {
    let mut settings = Settings {
        state: PathBuf::from(".state/bench"),
        beampipe: PathBuf::new(),
        umadb: PathBuf::new(),
        postgres: String::new(),
        rounds: 5,
        cell: Duration::from_millis(1500),
        events: 1_000_000,
        executions: 1_000_000,
        subscribers: vec![1, 100, 1000],
    };
    let mut suites = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--state" => settings.state = value()?.into(),
            "--beampipe" => settings.beampipe = value()?.into(),
            "--umadb" => settings.umadb = value()?.into(),
            "--postgres" => settings.postgres = value()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--cell-ms" => settings.cell = Duration::from_millis(value()?.parse()?),
            "--events" => settings.events = value()?.parse()?,
            "--executions" => settings.executions = value()?.parse()?,
            "--subscribers" => {
                settings.subscribers =
                    value()?.split(',').map(str::parse).collect::<Result<_, _>>().context(USAGE)?;
            }
            suite if SUITES.contains(&suite) => suites.push(word),
            other => bail!("{other} is no suite (there are {}) and no option\n{USAGE}", SUITES.join(", ")),
        }
    }
    ensure!(settings.rounds > 0 && settings.events > 0, "there has to be something to measure");
    if suites.is_empty() {
        suites = SUITES.map(String::from).to_vec();
    }
    Ok((settings, suites))
}

/// What the numbers were measured on.
fn machine() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, address, milliseconds] = &words[..]
        && word == suites::postgres::PROCESS
    {
        return suites::postgres::process(address, milliseconds).await;
    }
    let (settings, suites) = settings()?;
    std::fs::create_dir_all(&settings.state)?;
    let machine = machine();
    println!("machine: {machine}\n");
    for suite in &suites {
        let started = Instant::now();
        eprintln!("measuring {suite}");
        let report: Report = match suite.as_str() {
            "log_append" => suites::log_append::run(&settings).await,
            "postgres" => suites::postgres::run(&settings).await,
            "replay" => suites::replay::run(&settings).await,
            "stream" => suites::stream::run(&settings).await,
            "sse" => suites::sse::run(&settings).await,
            "http" => suites::http::run(&settings).await,
            "scale" => suites::scale::run(&settings).await,
            _ => suites::growth::run(&settings).await,
        }
        .with_context(|| format!("cannot measure {suite}"))?;
        println!("{}", report.markdown());
        report.save(&settings.state.join("results.json"), &machine)?;
        eprintln!("measured {suite} in {:.0?}", started.elapsed());
    }
    Ok(())
}
