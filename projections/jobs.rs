//! The read model behind the queue: follows `job-*`, and of `worker-*` which pool a worker works for. Reads nothing but its
//! own rows.
//!
//! Whether a claim's lease is alive is not here: that is presence, judged by the contender's own clock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::job::{Event as J, Kind};
use beampipe_domain::worker::Event as W;
use rusqlite::{Connection, OptionalExtension, Result};
use uuid::Uuid;

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{json, micros, stream_id, stream_rest};
use crate::touched::{Touched, Word};
use crate::{Envelope, Gauges, JobGauges};

mod read;
pub use read::*;

/// Every status.
pub const STATUSES: &[&str] = &["queued", "running", "completed", "dead_lettered"];

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "jobs";
    const VERSION: u32 = 2;
    const SCHEMA: &'static str = include_str!("../migrations/views/jobs.sql");
    const CATEGORIES: &'static [&'static str] = &["job", "worker"];
    type Rows = Touched<Row>;
    type Gauges = JobGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Job(_) | Event::Worker(W::Started(_)))
    }

    fn apply(db: &Connection, rows: &mut Self::Rows, counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        match &envelope.event {
            Event::Job(event) => fold(db, rows, counts, envelope, event),
            Event::Worker(W::Started(e)) => {
                let sql = "INSERT OR REPLACE INTO pools (worker, pool) VALUES (?1, ?2)";
                db.prepare_cached(sql)?.execute((stream_rest(&envelope.recorded.stream), &e.pool))?;
                counts.add("pool", &e.pool, "", 0);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn flush(db: &Connection, rows: &mut Self::Rows) -> Result<()> {
        rows.flush(db)
    }

    fn gauges(db: &Connection, counts: &Counts) -> Result<JobGauges> {
        let mut by_kind_status = counts.by_both("status");
        let mut entered = counts.by_both("entered");
        let mut queued = BTreeMap::new();
        let mut oldest_due_at = BTreeMap::new();
        let mut oldest =
            db.prepare_cached("SELECT min(next_run_at) FROM jobs WHERE status = 'queued' AND kind = ?1")?;
        for kind in Kind::ALL {
            let kind = kind.as_str();
            for status in STATUSES {
                let words = (kind.to_owned(), (*status).to_owned());
                entered.entry(words.clone()).or_default();
                by_kind_status.entry(words).or_default();
            }
            let waiting = by_kind_status[&(kind.to_owned(), "queued".to_owned())];
            let at = match waiting {
                0 => None,
                _ => oldest.query_row([kind], |row| crate::sql::column(row, 0))?,
            };
            queued.insert(kind.to_owned(), waiting);
            oldest_due_at.insert(kind.to_owned(), at);
        }
        let with = |wanted: &str| {
            by_kind_status.iter().filter(|((_, status), _)| status == wanted).map(|(_, n)| n).sum()
        };
        let mut leases_by_pool = counts.by_first("pool");
        leases_by_pool.extend(counts.by_first("pool_lease"));
        Ok(JobGauges {
            queue_depth: with("queued"),
            running: with("running"),
            dead: with("dead_lettered"),
            by_kind_status,
            entered,
            queued,
            oldest_due_at,
            leases_by_pool,
        })
    }

    fn publish(gauges: &mut Gauges, part: Arc<JobGauges>) {
        gauges.jobs = part;
    }
}

stored! {
    /// A row as it lies in the file; what the columns mean is said in `read.rs`.
    pub(crate) struct Row in "jobs" by (id: Uuid);
    once {
        created_position: u64,
        kind: Word,
        payload: String,
        project_module: Option<String>,
        execution_id: Option<Uuid>,
        required_capability: Option<String>,
        idempotency_key: Option<String>,
        max_attempts: u32,
        created_at: i64,
        correlation_id: Uuid,
    }
    changing {
        status: Word,
        attempts: u32,
        next_run_at: i64,
        worker_id: Option<String>,
        pool: Option<String>,
        claim_id: Option<Uuid>,
        claimed_at: Option<i64>,
        last_error: Option<String>,
        result: Option<String>,
        duration_ms: Option<u64>,
        updated_at: i64,
        finished_at: Option<i64>,
        revision: u64,
        last_event_id: Uuid,
    }
}

impl Row {
    fn is_now(&mut self, status: &'static str) {
        self.status = Cow::Borrowed(status);
    }

    /// Nobody works on it any more.
    fn is_let_go(&mut self, status: &'static str) {
        self.is_now(status);
        self.worker_id = None;
        self.pool = None;
        self.claim_id = None;
        self.claimed_at = None;
    }
}

/// What of a row is counted and changes.
struct Facets {
    status: Word,
    worker: Option<String>,
    pool: Option<String>,
}

impl Facets {
    fn of(row: &Row) -> Self {
        Self { status: row.status.clone(), worker: row.worker_id.clone(), pool: row.pool.clone() }
    }
}

fn count(counts: &mut Counts, before: Option<&Facets>, row: &Row) {
    if before.is_none_or(|before| before.status != row.status || before.worker != row.worker_id) {
        counts.move_one("status", before.map(|b| (&*row.kind, &*b.status)), Some((&*row.kind, &*row.status)));
        counts.add("entered", &row.kind, &row.status, 1);
    }
    fn one(word: Option<&String>) -> Option<(&str, &str)> {
        word.map(|word| (word.as_str(), ""))
    }
    counts.move_one("lease", one(before.and_then(|b| b.worker.as_ref())), one(row.worker_id.as_ref()));
    counts.move_one("pool_lease", one(before.and_then(|b| b.pool.as_ref())), one(row.pool.as_ref()));
}

fn fold(
    db: &Connection,
    rows: &mut Touched<Row>,
    counts: &mut Counts,
    envelope: &Envelope,
    event: &J,
) -> Result<()> {
    let recorded = &envelope.recorded;
    let (id, now) = (stream_id(&recorded.stream), micros(recorded.occurred_at));
    if let J::Enqueued(e) = event {
        let row = Row {
            id,
            created_position: recorded.position,
            kind: Cow::Borrowed(e.kind.as_str()),
            payload: json(&e.payload),
            status: Cow::Borrowed("queued"),
            project_module: e.project_module.clone(),
            execution_id: e.execution_id,
            required_capability: e.required_capability.clone(),
            idempotency_key: e.idempotency_key.clone(),
            max_attempts: e.max_attempts,
            next_run_at: micros(e.next_run_at),
            created_at: now,
            updated_at: now,
            correlation_id: recorded.correlation_id,
            revision: recorded.revision,
            last_event_id: recorded.id,
            ..Row::default()
        };
        count(counts, None, &row);
        rows.add(row);
        return Ok(());
    }
    // A job whose beginning is not in the log has no row to change.
    let Some(row) = rows.get(db, (id,))? else { return Ok(()) };
    let before = Facets::of(row);
    match event {
        // Handled above: it has no row before it.
        J::Enqueued(_) => {}
        J::Claimed(e) => {
            let pool = "SELECT pool FROM pools WHERE worker = ?1";
            let pool = db.prepare_cached(pool)?.query_row([&e.worker_id], |row| row.get(0)).optional()?;
            row.is_now("running");
            row.worker_id = Some(e.worker_id.clone());
            row.pool = Some(pool.unwrap_or_else(|| "default".to_owned()));
            row.claim_id = Some(e.claim_id);
            row.claimed_at = Some(now);
            row.attempts = e.attempt;
        }
        J::HandedBack(e) => {
            row.is_let_go("queued");
            row.next_run_at = micros(e.next_run_at);
            row.attempts = row.attempts.saturating_sub(1);
            row.last_error = Some(e.reason.clone());
        }
        J::Completed(e) => {
            row.is_let_go("completed");
            row.result = e.result.as_ref().map(json);
            row.duration_ms = Some(e.duration_ms);
            row.finished_at = Some(now);
            row.last_error = None;
        }
        // The retry or the dead letter follows in the same append.
        J::Failed(e) => {
            row.last_error = Some(e.error.clone());
            row.duration_ms = Some(e.duration_ms);
        }
        J::RetryScheduled(e) => {
            row.is_let_go("queued");
            row.next_run_at = micros(e.next_run_at);
        }
        J::DeadLettered(e) => {
            row.is_let_go("dead_lettered");
            row.last_error = Some(e.error.clone());
            row.finished_at = Some(now);
        }
        J::Requeued(e) => {
            row.is_now("queued");
            row.next_run_at = micros(e.next_run_at);
            row.attempts = 0;
            row.finished_at = None;
        }
    }
    row.revision = recorded.revision;
    row.last_event_id = recorded.id;
    row.updated_at = now;
    count(counts, Some(&before), row);
    Ok(())
}

#[cfg(test)]
mod tests;
