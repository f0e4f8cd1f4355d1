//! `POST /sources` and `POST /executions` over HTTP: requests a second and how long one takes, durable when answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::report::Report;
use crate::service::{Project, Service};
use crate::stats::Latencies;
use crate::tap::Tap;
use crate::{Settings, made, story};

const CLIENTS: [usize; 3] = [1, 8, 64];
/// Sources with discovered data that executions are asked for.
const DISCOVERED: usize = 64;
const WHO: &str = "beampipe";

#[derive(Clone, Copy)]
enum Request {
    Source,
    Execution,
}

impl Request {
    fn path(self) -> &'static str {
        match self {
            Self::Source => "/api/v2/sources",
            Self::Execution => "/api/v2/executions",
        }
    }
}

struct Work {
    next: AtomicU64,
    known: Vec<String>,
}

impl Work {
    fn body(&self, request: Request) -> Value {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let project_module = story::PROJECT;
        match request {
            Request::Source => json!({
                "project_module": project_module,
                "source_identifier": format!("HTTP-{number}"),
                "enabled": false,
            }),
            Request::Execution => json!({
                "project_module": project_module,
                "archive_name": "casda",
                "deployment_profile_name": "bench",
                "sources": [{"source_identifier": self.known[number as usize % self.known.len()]}],
            }),
        }
    }
}

async fn ask(
    service: &Service,
    work: &Arc<Work>,
    request: Request,
    clients: usize,
    time: Duration,
) -> anyhow::Result<(f64, Latencies)> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(service.client().await?);
    }
    let started = Instant::now();
    let (counts, ends) = (started + Duration::from_millis(200), started + Duration::from_millis(200) + time);
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|mut client| {
            let work = Arc::clone(work);
            tokio::spawn(async move {
                let mut took = Latencies::default();
                loop {
                    let body = work.body(request);
                    let asked = Instant::now();
                    if asked >= ends {
                        return anyhow::Ok(took);
                    }
                    let answer = client.post(request.path(), &body).await?;
                    ensure!(answer.status == 201, "{}: {} {}", request.path(), answer.status, answer.text());
                    let answered = Instant::now();
                    if asked >= counts && answered <= ends {
                        took.push(answered - asked);
                    }
                }
            })
        })
        .collect();
    let mut all = Latencies::default();
    for task in tasks {
        all.merge(task.await??);
    }
    Ok((all.len() as f64 / time.as_secs_f64(), all))
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let state = made::scratch(settings, "http")?;
    let service = Service::start(settings, &state, Duration::from_secs(60)).await?;
    let tap = Tap::start().await?;
    service.set_up_project(&Project { tap: Some(tap.url()), execute: false }).await?;
    let known = service.register(DISCOVERED).await?;
    service.wait_for_events("discovery.changed", known.len()).await?;
    let work = Arc::new(Work { next: AtomicU64::new(0), known });
    let mut report = Report::new("http");
    for _ in 0..settings.rounds {
        for request in [Request::Source, Request::Execution] {
            for clients in CLIENTS {
                let (rate, mut took) = ask(&service, &work, request, clients, settings.cell).await?;
                let case =
                    format!("POST {}, {clients} clients", request.path().trim_start_matches("/api/v2"));
                report.add(&case, WHO, "requests/s", rate);
                report.add(&case, WHO, "p50 ms", took.quantile_ms(0.5));
                report.add(&case, WHO, "p99 ms", took.quantile_ms(0.99));
            }
        }
    }
    report.note(
        "Every request makes something new: a decision, a durable append, and an answer once this process's read models \
         contain it. Clients and service share the machine.",
    );
    service.stop().await?;
    std::fs::remove_dir_all(&state)?;
    Ok(report)
}
