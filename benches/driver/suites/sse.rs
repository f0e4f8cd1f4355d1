//! From the moment a write is sent to the moment every subscriber has it: SSE beside UmaDB's subscriptions.
//!
//! Both are asked over loopback, every subscriber has a connection of its own, and one writer writes at a pace that neither
//! has to queue for. Our write is a whole `POST /sources` (a decision and its append), the peer's a bare append.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::report::Report;
use crate::service::{Project, Service};
use crate::stats::Latencies;
use crate::{Settings, made, story, umadb};

/// Between two writes.
const PACE: Duration = Duration::from_millis(100);
/// Events that every subscriber has to see in a round.
const EVENTS: usize = 40;
/// How long a round may take after its last write.
const PATIENCE: Duration = Duration::from_secs(30);

/// When each event was sent, by its mark.
type Sent = Arc<Mutex<HashMap<u64, Instant>>>;

/// What a round's subscribers report: the mark and when it came.
type Seen = Vec<(u64, Instant)>;

/// Waits for all subscribers and works their latencies out.
async fn gather(mut subscribers: JoinSet<anyhow::Result<Seen>>, sent: &Sent) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let sent = sent.lock().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Some(seen) = tokio::time::timeout_at(deadline, subscribers.join_next())
        .await
        .context("a subscriber misses events")?
    {
        for (mark, at) in seen?? {
            let asked = sent.get(&mark).with_context(|| format!("event {mark} was never sent"))?;
            latencies.push(at.saturating_duration_since(*asked));
        }
    }
    Ok(latencies)
}

async fn ours(service: &Service, subscribers: usize, round: usize) -> anyhow::Result<Latencies> {
    let sent = Sent::default();
    let ready = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let mut writer = service.client().await?;
    // The streams start at the head, so that no history is part of a latency.
    let module = story::PROJECT;
    let newest = writer.get(&format!("/api/v2/projects/{module}/events?limit=1&order=desc")).await?.json()?;
    let after = newest[0]["position"].as_u64().unwrap_or(0);
    for _ in 0..subscribers {
        let target = service.target.clone();
        let ready = Arc::clone(&ready);
        tasks.spawn(async move {
            let client = crate::client::Client::connect(&target).await?;
            let path = format!("/api/v2/projects/{module}/events?after={after}");
            let mut lines = client.follow(&path, "text/event-stream").await?;
            let mut seen = Seen::with_capacity(EVENTS);
            while seen.len() < EVENTS {
                let line = lines.next().await?.context("the stream ended")?;
                if line == b"event: caught-up" || line == b"event:caught-up" {
                    ready.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(mark) = mark(line) {
                    seen.push((mark, Instant::now()));
                }
            }
            Ok(seen)
        });
    }
    wait_for(&ready, subscribers).await?;
    for index in 0..EVENTS {
        let mark = (round * EVENTS + index) as u64;
        let body = json!({
            "project_module": module,
            "source_identifier": format!("sse-{subscribers}-mark{mark}."),
            "enabled": false,
        });
        sent.lock().await.insert(mark, Instant::now());
        let answer = writer.post("/api/v2/sources", &body).await?;
        ensure!(answer.status == 201, "a source is refused: {} {}", answer.status, answer.text());
        tokio::time::sleep(PACE).await;
    }
    gather(tasks, &sent).await
}

/// The number in `…-mark<number>.` of a data line.
fn mark(line: &[u8]) -> Option<u64> {
    let line = line.strip_prefix(b"data:")?;
    let at = line.windows(5).position(|window| window == b"-mark")? + 5;
    let end = line[at..].iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&line[at..at + end]).ok()?.parse().ok()
}

async fn wait_for(ready: &AtomicUsize, subscribers: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    while ready.load(Ordering::Relaxed) < subscribers {
        ensure!(started.elapsed() < PATIENCE, "not every subscriber catches up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn theirs(server: &umadb::Server, subscribers: usize) -> anyhow::Result<Latencies> {
    let sent = Sent::default();
    let ready = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let mut writer = server.connect().await?;
    let after = writer.head().await?;
    for _ in 0..subscribers {
        let mut client = server.connect().await?;
        let ready = Arc::clone(&ready);
        tasks.spawn(async move {
            let mut stream = client.subscribe(after).await?;
            ready.fetch_add(1, Ordering::Relaxed);
            let mut seen = Seen::with_capacity(EVENTS);
            while seen.len() < EVENTS {
                let batch = stream.message().await?.context("the stream ended")?;
                let now = Instant::now();
                seen.extend(batch.events.iter().map(|event| (event.position, now)));
            }
            Ok(seen)
        });
    }
    wait_for(&ready, subscribers).await?;
    // The peer says nothing when a subscription has caught up.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for index in 1..=EVENTS {
        let event = umadb::Event {
            event_type: "source.registered".into(),
            tags: vec![format!("project:{}", story::PROJECT), format!("source:{index}")],
            data: format!("{{\"source_identifier\":\"sse-{index}\",\"note\":\"{}\"}}", "x".repeat(120))
                .into(),
            ..Default::default()
        };
        // One writer: the position is known before the append.
        sent.lock().await.insert(after + index as u64, Instant::now());
        writer.append(vec![event]).await?;
        tokio::time::sleep(PACE).await;
    }
    gather(tasks, &sent).await
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let scratch = made::scratch(settings, "sse")?;
    let state = scratch.join("beampipe");
    std::fs::create_dir_all(&state)?;
    let service = Service::start(settings, &state, Duration::from_secs(30)).await?;
    service.set_up_project(&Project::default()).await?;
    let server = umadb::Server::start(&settings.umadb, &scratch.join("uma.db")).await?;
    let mut report = Report::new("sse");
    for round in 0..settings.rounds {
        for &subscribers in &settings.subscribers {
            let case = format!("{subscribers} subscribers");
            for who in ["beampipe", "UmaDB"] {
                let mut took = match who {
                    "beampipe" => ours(&service, subscribers, round).await?,
                    _ => theirs(&server, subscribers).await?,
                };
                ensure!(took.len() == subscribers * EVENTS, "{case} of {who} saw {} events", took.len());
                report.add(&case, who, "p50 ms", took.quantile_ms(0.5));
                report.add(&case, who, "p99 ms", took.quantile_ms(0.99));
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    }
    if let Some(most) = settings.subscribers.iter().max() {
        let case = format!("{most} subscribers");
        report.aim_at_most(
            &format!("p99, {case}, of UmaDB"),
            "p99 ms",
            (&case, "beampipe"),
            (&case, "UmaDB"),
            0.5,
        );
    }
    report.note(format!(
        "Every subscriber has a connection of its own; {EVENTS} events a round, one every {} ms. The clock starts when the \
         write is sent: ours is `POST /sources` over HTTP, the peer's an append over gRPC.",
        PACE.as_millis()
    ));
    service.stop().await?;
    drop(server);
    std::fs::remove_dir_all(&scratch)?;
    Ok(report)
}
