//! Appends a second through the PostgreSQL engine, beside a plain INSERT per event on the same server in the same rounds.
//!
//! The plain table has the envelope and its payload under a primary key, and no more: no hash, no tags, no order of its own,
//! no expected revision. Its writers have a connection each, and each statement is a transaction of its own. The engine
//! has one connection that appends, for all writers of a process.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use beampipe_log::{Expected, Log, PostgresLog, PostgresOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls, Statement};

use super::log_append::{Contender, Pen, SETTLE, Shape, write};
use crate::Settings;
use crate::report::Report;

/// The word that makes the driver one of several appending processes.
pub const PROCESS: &str = "append-as-one-process";

const SHAPES: [Shape; 4] = [
    Shape { case: "1 writer", writers: 1, batch: 1 },
    Shape { case: "8 writers", writers: 8, batch: 1 },
    Shape { case: "64 writers", writers: 64, batch: 1 },
    Shape { case: "256 writers", writers: 256, batch: 1 },
];
/// More connections than this are not what anybody gives one service.
const CONNECTIONS: usize = 64;
const PROCESSES: usize = 4;
const WRITERS_EACH: usize = 16;

struct Engine(PostgresLog);

#[async_trait::async_trait]
impl Contender for Engine {
    fn name(&self) -> &'static str {
        "beampipe"
    }

    async fn append(&self, _: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()> {
        let done = self.0.append(&pen.stream, Expected::from(pen.head), pen.events(count)).await?;
        pen.head = Some(done.head);
        Ok(())
    }
}

struct Plain(Vec<(Client, Statement)>);

impl Plain {
    async fn open(url: &str, schema: &str) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for n in 0..CONNECTIONS {
            let client = connect(url).await?;
            if n == 0 {
                client
                    .batch_execute(&format!(
                        "CREATE TABLE {schema}.plain (id uuid PRIMARY KEY, stream text NOT NULL, revision bigint NOT NULL,
                             type text NOT NULL, schema_version int NOT NULL, occurred_at bigint NOT NULL,
                             recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), actor text NOT NULL,
                             correlation_id uuid NOT NULL, causation_id uuid, salt bytea, data bytea)"
                    ))
                    .await?;
            }
            let sql = format!(
                "INSERT INTO {schema}.plain (id, stream, revision, type, schema_version, occurred_at, actor,
                     correlation_id, causation_id, salt, data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
            );
            let statement = client.prepare(&sql).await?;
            connections.push((client, statement));
        }
        Ok(Self(connections))
    }
}

#[async_trait::async_trait]
impl Contender for Plain {
    fn name(&self) -> &'static str {
        "plain INSERT"
    }

    async fn append(&self, writer: usize, pen: &mut Pen, count: usize) -> anyhow::Result<()> {
        let (client, insert) = &self.0[writer % CONNECTIONS];
        for event in pen.events(count) {
            client
                .execute(
                    insert,
                    &[
                        &event.id,
                        &pen.stream,
                        &0_i64,
                        &event.event_type,
                        &i32::from(event.schema_version),
                        &event.occurred_at.timestamp_micros(),
                        &event.actor,
                        &event.correlation_id,
                        &event.causation_id,
                        &&event.salt[..],
                        &&event.data[..],
                    ],
                )
                .await?;
        }
        Ok(())
    }
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("cannot reach PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}

pub async fn run(settings: &Settings) -> anyhow::Result<Report> {
    let url = &settings.postgres;
    ensure!(!url.is_empty(), "the server's address is missing: --postgres URL");
    let schema = format!("bench_{}", &beampipe::clock::Clock::system().id().simple().to_string()[16..]);
    let address = format!("{url}?schema={schema}");
    let log = PostgresLog::open(&address, PostgresOptions::default()).await?;
    let plain: Arc<dyn Contender> = Arc::new(Plain::open(url, &schema).await?);
    let engine: Arc<dyn Contender> = Arc::new(Engine(log));
    let mut report = Report::new("postgres");
    let several = "4 processes × 16 writers";
    for _ in 0..settings.rounds {
        for shape in &SHAPES {
            for who in [&engine, &plain] {
                let (rate, mut took) = write(who, shape, settings.cell).await?;
                report.add(shape.case, who.name(), "events/s", rate);
                report.add(shape.case, who.name(), "p99 ms", took.quantile_ms(0.99));
                tokio::time::sleep(SETTLE).await;
            }
        }
        report.add(several, engine.name(), "events/s", processes(&address, settings.cell).await?);
        tokio::time::sleep(SETTLE).await;
    }
    let at = "64 writers";
    report.aim_at_least(
        &format!("{at}, of {}", plain.name()),
        "events/s",
        (at, engine.name()),
        (at, plain.name()),
        1.2,
    );
    report.note(
        "On an empty log at the beginning; client and server share the machine. The plain INSERT has 64 connections (256 \
         writers share them), no hash, no tags, no order, no expected revision.",
    );
    connect(url).await?.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await?;
    Ok(report)
}

/// Events a second of several processes together.
async fn processes(address: &str, time: Duration) -> anyhow::Result<f64> {
    let mut running = Vec::new();
    for _ in 0..PROCESSES {
        let mut child = Command::new(std::env::current_exe()?)
            .args([PROCESS, address, &time.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = BufReader::new(child.stdout.take().context("no output")?).lines();
        running.push((child, said));
    }
    for (_, said) in &mut running {
        said.next_line().await?.context("a process has ended")?;
    }
    for (child, _) in &mut running {
        child.stdin.take().context("no input")?.write_all(b"go\n").await?;
    }
    let mut sum = 0.0;
    for (child, said) in &mut running {
        sum += said.next_line().await?.context("a process has ended")?.parse::<f64>()?;
        ensure!(child.wait().await?.success(), "a process has failed");
    }
    Ok(sum)
}

/// One of the processes: says that it is there, waits for a line, writes, says its rate.
pub async fn process(address: &str, milliseconds: &str) -> anyhow::Result<()> {
    let engine: Arc<dyn Contender> =
        Arc::new(Engine(PostgresLog::open(address, PostgresOptions::default()).await?));
    println!("there");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    let shape = Shape { case: "", writers: WRITERS_EACH, batch: 1 };
    let (rate, _) = write(&engine, &shape, Duration::from_millis(milliseconds.parse()?)).await?;
    println!("{rate}");
    Ok(())
}
