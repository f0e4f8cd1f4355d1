//! How fast the log takes and gives events, beside an SQLite transaction per event and a raw file with group fdatasync.
//!
//!     cargo run --release -p beampipe-log --example append_rate -- DIRECTORY [EVENTS_BEFORE] [SECONDS] [ROUNDS]
//!
//! Every append is durable when it is acknowledged. The three write the same events (the full envelope, 500 bytes of data,
//! three tags); rounds are interleaved and the median is printed.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has no other use for its errors")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_log::contract::random_id;
use beampipe_log::prepare::Prepared;
use beampipe_log::{Direction, Expected, Filter, Log, NewEvent, SqliteLog, SqliteOptions, StreamHead};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

const WRITERS: [usize; 4] = [1, 8, 64, 256];

fn event(stream: &str, n: u64) -> NewEvent {
    NewEvent {
        id: uuid::Uuid::now_v7(),
        event_type: "execution.observed".into(),
        schema_version: 1,
        occurred_at: Utc::now(),
        actor: "system:worker/bench".into(),
        correlation_id: random_id(),
        causation_id: Some(random_id()),
        tags: vec![format!("execution:{stream}"), "project:wallaby".into(), format!("source:{}", n % 1000)],
        data: Bytes::from(vec![b'x'; 500]),
        salt: beampipe_log::contract::random(),
    }
}

/// Something that takes an append and answers when it is durable.
#[async_trait::async_trait]
trait Sink: Send + Sync {
    async fn append(&self, stream: &str, head: Option<StreamHead>, events: Vec<NewEvent>) -> StreamHead;
}

struct Port(Arc<SqliteLog>);

#[async_trait::async_trait]
impl Sink for Port {
    async fn append(&self, stream: &str, head: Option<StreamHead>, events: Vec<NewEvent>) -> StreamHead {
        self.0.append(stream, Expected::from(head), events).await.unwrap().head
    }
}

/// The plain way: one transaction per event into a table with the indexes that the same questions need.
struct PerEvent(Arc<Mutex<Connection>>);

impl PerEvent {
    fn open(path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE events (position INTEGER PRIMARY KEY, stream TEXT, revision INTEGER, id BLOB, leaf BLOB,
                                      hash BLOB, salt BLOB, data BLOB, correlation BLOB, UNIQUE (stream, revision));
                 CREATE INDEX by_id ON events (id); CREATE INDEX by_correlation ON events (correlation);
                 CREATE TABLE tags (tag TEXT, position INTEGER, PRIMARY KEY (tag, position)) WITHOUT ROWID;",
            )
            .unwrap();
        Self(Arc::new(Mutex::new(connection)))
    }
}

#[async_trait::async_trait]
impl Sink for PerEvent {
    async fn append(&self, stream: &str, head: Option<StreamHead>, events: Vec<NewEvent>) -> StreamHead {
        let prepared = Prepared::new(stream, head.into(), events).unwrap();
        let answer = prepared.head();
        let connection = Arc::clone(&self.0);
        let work = move || {
            let mut connection = connection.lock();
            let transaction = connection.transaction().unwrap();
            for unplaced in &prepared.events {
                let event = &unplaced.event;
                let mut insert = transaction
                    .prepare_cached("INSERT INTO events (stream, revision, id, leaf, hash, salt, data, correlation) VALUES (?,?,?,?,?,?,?,?)")
                    .unwrap();
                let position = insert
                    .insert((
                        &*event.stream,
                        event.revision as i64,
                        event.id.as_bytes(),
                        &unplaced.leaf,
                        event.hash.0,
                        event.salt,
                        event.data.as_deref(),
                        event.correlation_id.as_bytes(),
                    ))
                    .unwrap();
                let mut insert = transaction.prepare_cached("INSERT INTO tags VALUES (?, ?)").unwrap();
                for tag in &event.tags {
                    insert.execute((&**tag, position)).unwrap();
                }
            }
            transaction.commit().unwrap();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        answer
    }
}

/// The floor: the same bytes into a file, whatever is queued with one write and one fdatasync.
struct Raw(crossbeam_channel::Sender<(Vec<u8>, oneshot::Sender<()>)>);

impl Raw {
    fn open(path: &Path) -> Self {
        let mut file = File::create(path).unwrap();
        let (sender, queue) = crossbeam_channel::bounded::<(Vec<u8>, oneshot::Sender<()>)>(8192);
        std::thread::spawn(move || {
            while let Ok((mut bytes, reply)) = queue.recv() {
                let mut replies = vec![reply];
                while let Ok((more, reply)) = queue.try_recv() {
                    bytes.extend(more);
                    replies.push(reply);
                }
                file.write_all(&bytes).unwrap();
                file.sync_data().unwrap();
                for reply in replies {
                    let _ = reply.send(());
                }
            }
        });
        Self(sender)
    }
}

#[async_trait::async_trait]
impl Sink for Raw {
    async fn append(&self, stream: &str, head: Option<StreamHead>, events: Vec<NewEvent>) -> StreamHead {
        let prepared = Prepared::new(stream, head.into(), events).unwrap();
        let mut bytes = Vec::with_capacity(prepared.bytes);
        for unplaced in &prepared.events {
            bytes.extend_from_slice(&unplaced.leaf);
            bytes.extend_from_slice(unplaced.event.salt.as_ref().unwrap());
            bytes.extend_from_slice(unplaced.event.data.as_ref().unwrap());
        }
        let (reply, done) = oneshot::channel();
        self.0.send((bytes, reply)).unwrap();
        done.await.unwrap();
        prepared.head()
    }
}

/// Events per second and the 99th percentile of an append, with so many writers of so many events each.
async fn rate(sink: Arc<dyn Sink>, writers: usize, batch: usize, time: Duration) -> (f64, Duration) {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let sink = Arc::clone(&sink);
            tokio::spawn(async move {
                let mut stream = format!("execution-{}", uuid::Uuid::now_v7());
                let mut head = None;
                let mut waits = Vec::new();
                let mut n = 0;
                while start.elapsed() < time {
                    if n % 50 == 49 {
                        stream = format!("execution-{}", uuid::Uuid::now_v7());
                        head = None;
                    }
                    let events = (0..batch).map(|_| event(&stream, n)).collect();
                    let asked = Instant::now();
                    head = Some(sink.append(&stream, head, events).await);
                    waits.push(asked.elapsed());
                    n += 1;
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    let elapsed = start.elapsed();
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    ((waits.len() * batch) as f64 / elapsed.as_secs_f64(), p99)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

async fn scan(log: &SqliteLog) -> f64 {
    let start = Instant::now();
    let mut events = 0;
    let mut from = 1;
    loop {
        let page = log.read_all(from, Direction::Forward, 2000, &Filter::All).await.unwrap();
        events += page.events.len();
        match page.next {
            Some(next) => from = next,
            None => return events as f64 / start.elapsed().as_secs_f64(),
        }
    }
}

async fn fill(log: &Arc<SqliteLog>, events: u64) {
    let tasks = (0..32).map(|_| {
        let log = Arc::clone(log);
        tokio::spawn(async move {
            let mut left = events / 32;
            while left > 0 {
                let stream = format!("execution-{}", uuid::Uuid::now_v7());
                let batch = left.min(50);
                let events = (0..batch).map(|n| event(&stream, n)).collect();
                log.append(&stream, Expected::NoStream, events).await.unwrap();
                left -= batch;
            }
        })
    });
    futures::future::join_all(tasks).await;
}

/// By batch, writers and sink: each round's rate and 99th percentile.
type Rates = BTreeMap<(usize, usize, &'static str), Vec<(f64, Duration)>>;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let directory = PathBuf::from(arguments.get(1).expect("a directory on the disk to be measured"));
    let number =
        |index: usize, default: u64| arguments.get(index).map_or(default, |text| text.parse().unwrap());
    let (before, seconds, rounds) = (number(2, 100_000), number(3, 2), number(4, 3));
    let work = tempfile::tempdir_in(&directory).unwrap();

    let clock = Arc::new(|| -> DateTime<Utc> { Utc::now() });
    let log = Arc::new(SqliteLog::open(work.path().join("log"), SqliteOptions::new(clock)).unwrap());
    let start = Instant::now();
    fill(&log, before).await;
    println!("{before} events before, taken at {:.0}/s", before as f64 / start.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("read in order: {:.0}/s", scan(&log).await);

    let sinks: [(&'static str, Arc<dyn Sink>); 3] = [
        ("port", Arc::new(Port(Arc::clone(&log)))),
        ("transaction", Arc::new(PerEvent::open(&work.path().join("per-event")))),
        ("raw", Arc::new(Raw::open(&work.path().join("raw")))),
    ];
    let mut rates = Rates::new();
    for _ in 0..rounds {
        for (writers, batch) in WRITERS.map(|writers| (writers, 1)).into_iter().chain([(8, 100)]) {
            for (name, sink) in &sinks {
                let measured = rate(Arc::clone(sink), writers, batch, Duration::from_secs(seconds)).await;
                rates.entry((batch, writers, name)).or_default().push(measured);
            }
        }
    }
    for (writers, batch) in WRITERS.map(|writers| (writers, 1)).into_iter().chain([(8, 100)]) {
        let of = |name| {
            let measured = &rates[&(batch, writers, name)];
            let p99 = median(measured.iter().map(|(_, p99)| p99.as_secs_f64() * 1e3).collect());
            (median(measured.iter().map(|(rate, _)| *rate).collect()), p99)
        };
        let (port, transaction, raw) = (of("port"), of("transaction"), of("raw"));
        println!(
            "{writers:>4} × {batch:<3} port {:>8.0}/s p99 {:>6.2} ms | transaction {:>7.0}/s p99 {:>6.2} ms ({:>5.1}×) | raw {:>8.0}/s p99 {:>6.2} ms ({:.2} of it)",
            port.0,
            port.1,
            transaction.0,
            transaction.1,
            port.0 / transaction.0,
            raw.0,
            raw.1,
            port.0 / raw.0
        );
    }
    println!("read in order: {:.0}/s", scan(&log).await);
    log.close().await;
}
