//! Appends a second and how long each takes, durable when answered: the port, a transaction per event, a raw file, UmaDB.
//!
//! Every contender stores the same thing, the full envelope with 500 bytes of payload and three tags, behind a million
//! events. The port, the transaction and the raw file are in this process; UmaDB answers over loopback gRPC, and that is
//! part of its number. All but UmaDB hash and chain the envelope; only the port checks an expected revision.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use beampipe_log::prepare::{Prepared, Unplaced};
use beampipe_log::{Expected, Log, NewEvent, SqliteLog, StreamHead};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use rusqlite::Connection;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::report::Report;
use crate::stats::Latencies;
use crate::{Settings, made, story, umadb};

const PAYLOAD: usize = 500;
/// A contender is written to for so long before its clock starts.
const WARM_UP: Duration = Duration::from_millis(200);
/// Between contenders, for what the last one left behind (a checkpoint, an index).
pub(super) const SETTLE: Duration = Duration::from_millis(250);

/// How many write at once, and how many events each append has.
pub(super) struct Shape {
    pub case: &'static str,
    pub writers: usize,
    pub batch: usize,
}

const SHAPES: [Shape; 5] = [
    Shape { case: "1 writer", writers: 1, batch: 1 },
    Shape { case: "8 writers", writers: 8, batch: 1 },
    Shape { case: "64 writers", writers: 64, batch: 1 },
    Shape { case: "256 writers", writers: 256, batch: 1 },
    Shape { case: "8 writers × 100", writers: 8, batch: 100 },
];

/// One writer's stream, and what it is made of.
pub(super) struct Pen {
    pub stream: String,
    pub head: Option<StreamHead>,
    tags: Vec<String>,
    payload: Bytes,
    clock: beampipe::clock::Clock,
}

impl Pen {
    fn new() -> Self {
        let clock = beampipe::clock::Clock::system();
        let id = clock.id();
        let text =
            format!("{{\"source_identifiers\":[\"HIPASSJ1318-21\"],\"session_id\":\"{id}\",\"note\":\"");
        let payload = format!("{text}{}\"}}", "x".repeat(PAYLOAD - text.len() - 2));
        Self {
            stream: format!("execution-{id}"),
            head: None,
            tags: vec![
                format!("project:{}", story::PROJECT),
                format!("execution:{id}"),
                format!("source:{id}"),
            ],
            payload: payload.into(),
            clock,
        }
    }

    pub fn events(&self, count: usize) -> Vec<NewEvent> {
        let event = |_| NewEvent {
            id: self.clock.id(),
            event_type: "execution.submission_recorded".into(),
            schema_version: 1,
            occurred_at: self.clock.now(),
            actor: "system:worker/bench-1".into(),
            correlation_id: Uuid::from_u128(7),
            causation_id: Some(Uuid::from_u128(8)),
            tags: self.tags.clone(),
            data: self.payload.clone(),
            salt: self.clock.random(),
        };
        (0..count).map(event).collect()
    }

    /// The next events, hashed and chained.
    fn prepared(&mut self, count: usize) -> anyhow::Result<Vec<Unplaced>> {
        let prepared = Prepared::new(&self.stream, Expected::from(self.head), self.events(count))?;
        self.head = Some(prepared.head());
        Ok(prepared.events)
    }
}

/// Somebody who can be asked to keep events.
#[async_trait::async_trait]
pub(super) trait Contender: Send + Sync {
    fn name(&self) -> &'static str;
    /// Appends the pen's next `count` events; they are durable when this returns.
    async fn append(&self, writer: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()>;
}

struct Port(SqliteLog);

#[async_trait::async_trait]
impl Contender for Port {
    fn name(&self) -> &'static str {
        "beampipe"
    }

    async fn append(&self, _: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()> {
        let done = self.0.append(&pen.stream, Expected::from(pen.head), pen.events(count)).await?;
        pen.head = Some(done.head);
        Ok(())
    }
}

type Order = (Vec<Unplaced>, oneshot::Sender<std::io::Result<()>>);

/// A thread that writes what it is handed, so that writers do not fight over one connection or file.
struct Threaded {
    name: &'static str,
    orders: Sender<Order>,
}

#[async_trait::async_trait]
impl Contender for Threaded {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn append(&self, _: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.orders.send((pen.prepared(count)?, reply)).context("the writer has ended")?;
        Ok(answer.await??)
    }
}

/// One SQLite transaction for each event, into a copy of the same table without its triggers.
fn transactions(path: &std::path::Path) -> anyhow::Result<Threaded> {
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF;
         DROP TRIGGER events_follow_each_other;
         DROP TRIGGER events_are_never_deleted;
         DROP TRIGGER events_are_never_changed;",
    )?;
    let mut position: i64 = connection.query_row("SELECT max(position) FROM events", [], |row| row.get(0))?;
    let (orders, queue): (Sender<Order>, Receiver<Order>) = unbounded();
    std::thread::spawn(move || {
        for (events, reply) in queue {
            let mut insert = || -> rusqlite::Result<()> {
                for Unplaced { event, leaf } in &events {
                    position += 1;
                    let mut statement = connection.prepare_cached(
                        "INSERT INTO events (position, recorded_at, leaf, hash, salt, data, seal)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?;
                    // A statement outside a transaction is a transaction of its own.
                    statement.execute((
                        position,
                        event.occurred_at.timestamp_micros(),
                        leaf,
                        &event.hash.0[..],
                        event.salt.as_ref().map(|salt| &salt[..]),
                        event.data.as_deref(),
                        // As wide as the port's; nobody reads it here.
                        event.id.as_u64_pair().0 as i64,
                    ))?;
                }
                Ok(())
            };
            let _ = reply.send(insert().map_err(std::io::Error::other));
        }
    });
    Ok(Threaded { name: "SQLite transaction per event", orders })
}

/// The same bytes at the end of a file; one fdatasync for whatever has gathered.
fn raw_file(path: &std::path::Path) -> anyhow::Result<Threaded> {
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    let (orders, queue): (Sender<Order>, Receiver<Order>) = unbounded();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(1023));
            bytes.clear();
            for Unplaced { event, leaf } in group.iter().flat_map(|(events, _)| events) {
                for part in [
                    &leaf[..],
                    &event.hash.0,
                    &event.salt.unwrap_or_default(),
                    event.data.as_deref().unwrap_or(&[]),
                ] {
                    bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
                    bytes.extend_from_slice(part);
                }
            }
            let done = file.write_all(&bytes).and_then(|()| file.sync_data());
            for (_, reply) in group {
                let _ = reply.send(done.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
            }
        }
    });
    Ok(Threaded { name: "raw file, group fdatasync", orders })
}

/// How many connections the writers share: with more of them this peer is not quicker.
const PEER_CONNECTIONS: usize = 8;

struct Peer {
    clients: Vec<umadb::Client>,
    _server: umadb::Server,
}

#[async_trait::async_trait]
impl Contender for Peer {
    fn name(&self) -> &'static str {
        "UmaDB"
    }

    async fn append(&self, writer: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()> {
        let events = pen.events(count).iter().map(|event| umadb::envelope(&pen.stream, event)).collect();
        self.clients[writer % PEER_CONNECTIONS].clone().append(events).await?;
        Ok(())
    }
}

/// Writes with all writers for `time`; gives events a second and each append's latency.
pub(super) async fn write(
    who: &Arc<dyn Contender>,
    shape: &Shape,
    time: Duration,
) -> anyhow::Result<(f64, Latencies)> {
    let started = Instant::now();
    let (counts, ends) = (started + WARM_UP, started + WARM_UP + time);
    let tasks: Vec<_> = (0..shape.writers)
        .map(|writer| {
            let (who, batch) = (Arc::clone(who), shape.batch);
            tokio::spawn(async move {
                let mut pen = Pen::new();
                let mut took = Latencies::default();
                let mut events = 0;
                loop {
                    let asked = Instant::now();
                    if asked >= ends {
                        return anyhow::Ok((events, took));
                    }
                    who.append(writer, &mut pen, batch).await?;
                    let answered = Instant::now();
                    if answered >= counts && answered <= ends {
                        took.push(answered - asked);
                        events += batch;
                    }
                }
            })
        })
        .collect();
    let mut all = Latencies::default();
    let mut events = 0;
    for task in tasks {
        let (mine, took) = task.await??;
        events += mine;
        all.merge(took);
    }
    Ok((events as f64 / time.as_secs_f64(), all))
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let scratch = made::scratch(settings, "log_append")?;
    let base = made::log(settings).await?;
    let peer = made::peer(settings).await?;
    for (from, to) in [
        (base.join("log.sqlite"), "port.sqlite"),
        (base.join("log.sqlite.index"), "port.sqlite.index"),
        (base.join("log.sqlite"), "transactions.sqlite"),
        (base.join("log.sqlite"), "raw"),
        (peer.join("uma.db"), "uma.db"),
    ] {
        made::copy(&from, &scratch.join(to))?;
    }
    let server = umadb::Server::start(&settings.umadb, &scratch.join("uma.db")).await?;
    let mut clients = Vec::new();
    for _ in 0..PEER_CONNECTIONS {
        clients.push(server.connect().await?);
    }
    let contenders: [Arc<dyn Contender>; 4] = [
        Arc::new(Port(made::open(&scratch.join("port.sqlite"))?)),
        Arc::new(transactions(&scratch.join("transactions.sqlite"))?),
        Arc::new(raw_file(&scratch.join("raw"))?),
        Arc::new(Peer { clients, _server: server }),
    ];
    let mut report = Report::new("log_append");
    for _ in 0..settings.rounds {
        for shape in &SHAPES {
            for who in &contenders {
                let (rate, mut took) = write(who, shape, settings.cell).await?;
                report.add(shape.case, who.name(), "events/s", rate);
                report.add(shape.case, who.name(), "p99 ms", took.quantile_ms(0.99));
                tokio::time::sleep(SETTLE).await;
            }
        }
    }
    for (peer, limit) in
        [(contenders[1].name(), 5.0), (contenders[2].name(), 0.25), (contenders[3].name(), 3.0)]
    {
        let at = "64 writers";
        report.aim_at_least(&format!("{at}, of {peer}"), "events/s", (at, "beampipe"), (at, peer), limit);
    }
    report.note(
        "UmaDB is asked over loopback gRPC, without an append condition (its quickest way); the others are in-process. \
         Latencies of batches are of the whole batch.",
    );
    drop(contenders);
    std::fs::remove_dir_all(&scratch)?;
    Ok(report)
}
