//! The read model behind the queue: follows `job-*`, and of `worker-*` which pool a worker works for. Reads nothing but its
//! own rows.
//!
//! Whether a claim's lease is alive is not here: that is presence, judged by the contender's own clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::job::{Event as J, Kind};
use beampipe_domain::worker::Event as W;
use rusqlite::{Connection, OptionalExtension, Result, Row, ToSql};
use uuid::Uuid;

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, blob_of, json, micros, stream_id, stream_rest};
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
    type Gauges = JobGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Job(_) | Event::Worker(W::Started(_)))
    }

    fn apply(db: &Connection, counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let recorded = &envelope.recorded;
        match &envelope.event {
            Event::Job(event) => {
                let id = stream_id(&recorded.stream);
                let mut fold = Fold { db, counts, envelope, id, now: micros(recorded.occurred_at) };
                fold.job(event)
            }
            Event::Worker(W::Started(e)) => {
                let sql = "INSERT OR REPLACE INTO pools (worker, pool) VALUES (?1, ?2)";
                db.prepare_cached(sql)?.execute((stream_rest(&recorded.stream), &e.pool))?;
                counts.add("pool", &e.pool, "", 0);
                Ok(())
            }
            _ => Ok(()),
        }
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

/// What of a row is counted.
struct Facets {
    row: i64,
    kind: String,
    status: String,
    worker: Option<String>,
    pool: Option<String>,
}

macro_rules! facets {
    () => {
        "created_position, kind, status, worker_id, pool"
    };
}

/// Changes one row: `?1` is its key, `?2` to `?4` are the envelope's, the arm's own values start at `?5`.
macro_rules! update {
    ($set:literal) => {
        concat!(
            "UPDATE jobs SET ",
            $set,
            ", revision = ?2, last_event_id = ?3, updated_at = ?4 WHERE created_position = ?1 RETURNING ",
            facets!()
        )
    };
}

impl Facets {
    fn read(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            kind: row.get(1)?,
            status: row.get(2)?,
            worker: row.get(3)?,
            pool: row.get(4)?,
        })
    }
}

struct Fold<'a> {
    db: &'a Connection,
    counts: &'a mut Counts,
    envelope: &'a Envelope,
    id: Uuid,
    now: i64,
}

impl Fold<'_> {
    fn count(&mut self, before: Option<&Facets>, after: &Facets) {
        let counts = &mut *self.counts;
        if before.is_none_or(|before| before.status != after.status || before.worker != after.worker) {
            counts.move_one(
                "status",
                before.map(|b| (&*b.kind, &*b.status)),
                Some((&*after.kind, &*after.status)),
            );
            counts.add("entered", &after.kind, &after.status, 1);
        }
        let old = before.and_then(|before| before.worker.as_deref());
        counts.move_one("lease", old.map(|w| (w, "")), after.worker.as_deref().map(|w| (w, "")));
        let old = before.and_then(|before| before.pool.as_deref());
        counts.move_one("pool_lease", old.map(|p| (p, "")), after.pool.as_deref().map(|p| (p, "")));
    }

    /// Runs an [`update!`] and counts what moved.
    fn update(&mut self, before: &Facets, sql: &'static str, own: &[&dyn ToSql]) -> Result<()> {
        let recorded = &self.envelope.recorded;
        let mut statement = self.db.prepare_cached(sql)?;
        statement.raw_bind_parameter(1, before.row)?;
        statement.raw_bind_parameter(2, recorded.revision)?;
        statement.raw_bind_parameter(3, blob(&recorded.id))?;
        statement.raw_bind_parameter(4, self.now)?;
        for (index, value) in own.iter().enumerate() {
            statement.raw_bind_parameter(5 + index, value)?;
        }
        let after = statement.raw_query().next()?.map(Facets::read).transpose()?;
        if let Some(after) = after {
            self.count(Some(before), &after);
        }
        Ok(())
    }

    fn job(&mut self, event: &J) -> Result<()> {
        let recorded = &self.envelope.recorded;
        if let J::Enqueued(e) = event {
            let after = self
                .db
                .prepare_cached(concat!(
                    "INSERT INTO jobs (created_position, id, kind, payload, status, project_module, execution_id, \
                     required_capability, idempotency_key, attempts, max_attempts, next_run_at, created_at, updated_at, \
                     correlation_id, revision, last_event_id) \
                     VALUES (?1, ?2, ?3, ?4, 'queued', ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11, ?11, ?12, ?13, ?14) RETURNING ",
                    facets!()
                ))?
                .query_row(
                    rusqlite::params![
                        recorded.position,
                        blob(&self.id),
                        e.kind.as_str(),
                        json(&e.payload),
                        e.project_module,
                        blob_of(e.execution_id.as_ref()),
                        e.required_capability,
                        e.idempotency_key,
                        e.max_attempts,
                        micros(e.next_run_at),
                        self.now,
                        blob(&recorded.correlation_id),
                        recorded.revision,
                        blob(&recorded.id),
                    ],
                    Facets::read,
                )?;
            self.count(None, &after);
            return Ok(());
        }
        let sql = concat!("SELECT ", facets!(), " FROM jobs WHERE id = ?1");
        let before = self.db.prepare_cached(sql)?.query_row([blob(&self.id)], Facets::read).optional()?;
        // A job whose beginning is not in the log has no row to change.
        let Some(before) = &before else { return Ok(()) };
        match event {
            // Handled above: it has no row before it.
            J::Enqueued(_) => Ok(()),
            J::Claimed(e) => self.update(
                before,
                update!(
                    "status = 'running', worker_id = ?5, claim_id = ?6, attempts = ?7, claimed_at = ?4, \
                     pool = coalesce((SELECT pool FROM pools WHERE worker = ?5), 'default')"
                ),
                &[&e.worker_id, &blob(&e.claim_id), &e.attempt],
            ),
            J::HandedBack(e) => self.update(
                before,
                update!(
                    "status = 'queued', next_run_at = ?5, attempts = max(attempts - 1, 0), last_error = ?6, \
                     worker_id = NULL, pool = NULL, claim_id = NULL, claimed_at = NULL"
                ),
                &[&micros(e.next_run_at), &e.reason],
            ),
            J::Completed(e) => self.update(
                before,
                update!(
                    "status = 'completed', result = ?5, duration_ms = ?6, finished_at = ?4, last_error = NULL, \
                     worker_id = NULL, pool = NULL, claim_id = NULL, claimed_at = NULL"
                ),
                &[&e.result.as_ref().map(json), &e.duration_ms],
            ),
            // The retry or the dead letter follows in the same append.
            J::Failed(e) => self.update(
                before,
                update!("last_error = ?5, duration_ms = ?6"),
                &[&e.error, &e.duration_ms],
            ),
            J::RetryScheduled(e) => self.update(
                before,
                update!(
                    "status = 'queued', next_run_at = ?5, worker_id = NULL, pool = NULL, claim_id = NULL, \
                     claimed_at = NULL"
                ),
                &[&micros(e.next_run_at)],
            ),
            J::DeadLettered(e) => self.update(
                before,
                update!(
                    "status = 'dead_lettered', last_error = ?5, finished_at = ?4, worker_id = NULL, pool = NULL, \
                     claim_id = NULL, claimed_at = NULL"
                ),
                &[&e.error],
            ),
            J::Requeued(e) => self.update(
                before,
                update!("status = 'queued', next_run_at = ?5, attempts = 0, finished_at = NULL"),
                &[&micros(e.next_run_at)],
            ),
        }
    }
}

#[cfg(test)]
mod tests;
