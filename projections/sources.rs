//! The read model behind sources: follows `source-*`, and of `execution-*` what tells an admitted source how its execution
//! goes. Reads nothing but its own rows.
//!
//! Which phase a source is in is said once, by the generated column `phase` of the schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::execution::Event as X;
use beampipe_domain::source::{Check, Event as S};
use rusqlite::{Connection, OptionalExtension, Result, Row, ToSql};
use uuid::Uuid;

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, json, micros, stream_id};
use crate::{Envelope, Gauges, SourceGauges};

mod read;
pub use read::*;

/// What a source can be at, from the first look to the last run.
pub const PHASES: &[&str] = &[
    "registered",
    "discovered",
    "pending",
    "executing",
    "executed",
    "failed",
    "no_datasets",
    "error",
    "disabled",
];

/// How a discovery can end.
pub const OUTCOMES: &[&str] = &["changed", "unchanged", "no_datasets", "tap_skipped", "error", "timeout"];

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "sources";
    const VERSION: u32 = 1;
    const SCHEMA: &'static str = include_str!("../migrations/views/sources.sql");
    const CATEGORIES: &'static [&'static str] = &["source", "execution"];
    type Gauges = SourceGauges;

    fn wants(event: &Event) -> bool {
        match event {
            Event::Source(_) => true,
            Event::Execution(event) => matches!(
                event,
                X::Created(_)
                    | X::Completed(_)
                    | X::Failed(_)
                    | X::NotSubmitted(_)
                    | X::Cancelled(_)
                    | X::RetryRequested(_)
            ),
            _ => false,
        }
    }

    fn apply(db: &Connection, counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let id = stream_id(&envelope.recorded.stream);
        let mut fold = Fold { db, counts, envelope, id, now: micros(envelope.recorded.occurred_at) };
        match &envelope.event {
            Event::Source(event) => fold.source(event),
            Event::Execution(X::Created(e)) => {
                fold.created(e.sources.iter().map(|s| (s.source_id, s.signature.as_deref())))
            }
            Event::Execution(X::Completed(_)) => fold.execution("completed"),
            Event::Execution(X::Failed(_)) => fold.execution("failed"),
            Event::Execution(X::NotSubmitted(_)) => fold.execution("not_submitted"),
            Event::Execution(X::Cancelled(_)) => fold.execution("cancelled"),
            Event::Execution(X::RetryRequested(_)) => fold.execution("retrying"),
            _ => Ok(()),
        }
    }

    fn gauges(db: &Connection, counts: &Counts) -> Result<SourceGauges> {
        let mut by_phase = counts.by_both("phase");
        let projects: std::collections::BTreeSet<String> =
            by_phase.keys().map(|(project, _)| project.clone()).collect();
        let mut discoveries = counts.by_both("discoveries");
        let mut pending = counts.by_first("pending");
        let mut oldest = db.prepare_cached(
            "SELECT min(pending_at) FROM sources \
             WHERE project_module = ?1 AND pending = 1 AND enabled = 1 AND removed = 0",
        )?;
        let mut oldest_pending_at = BTreeMap::new();
        for project in &projects {
            for phase in PHASES {
                by_phase.entry((project.clone(), (*phase).to_owned())).or_default();
            }
            for outcome in OUTCOMES {
                discoveries.entry((project.clone(), (*outcome).to_owned())).or_default();
            }
            let waiting = *pending.entry(project.clone()).or_default();
            let at = if waiting == 0 {
                None
            } else {
                oldest.query_row([project], |row| crate::sql::column(row, 0))?
            };
            oldest_pending_at.insert(project.clone(), at);
        }
        Ok(SourceGauges {
            registered: counts.total("phase"),
            by_phase,
            pending,
            oldest_pending_at,
            discoveries,
            admitted: counts.by_first("admitted"),
        })
    }

    fn publish(gauges: &mut Gauges, part: Arc<SourceGauges>) {
        gauges.sources = part;
    }
}

/// What of a row is counted.
struct Facets {
    row: i64,
    project: String,
    phase: String,
    pending: bool,
}

macro_rules! facets {
    () => {
        "created_position, project_module, phase, pending AND enabled AND NOT removed"
    };
}

/// Changes one row: `?1` is its key, `?2` to `?6` are the envelope's, the arm's own values start at `?7`.
macro_rules! update {
    ($($set:tt)+) => {
        concat!(
            "UPDATE sources SET ",
            $($set)+,
            ", revision = ?2, last_position = ?3, last_event_id = ?4, last_event_type = ?5, last_event_at = ?6 \
             WHERE created_position = ?1 RETURNING ",
            facets!()
        )
    };
}

/// A discovery that ended, whatever its outcome: `?7` to `?10` are outcome and check, the arm's own values start at `?11`.
macro_rules! discovery {
    ($set:literal) => {
        update!(
            $set,
            ", last_attempted_at = ?6, discovery_requested_at = NULL, last_outcome = ?7, last_duration_ms = ?8, \
             project_config_id = ?9, project_config_version = ?10"
        )
    };
}

impl Facets {
    fn read(row: &Row<'_>) -> Result<Self> {
        Ok(Self { row: row.get(0)?, project: row.get(1)?, phase: row.get(2)?, pending: row.get(3)? })
    }

    /// Removed sources are counted nowhere.
    fn phase(&self) -> Option<(&str, &str)> {
        (self.phase != "removed").then_some((&*self.project, &*self.phase))
    }

    fn pending(&self) -> Option<(&str, &str)> {
        self.pending.then_some((&*self.project, ""))
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
    fn facets(&self, id: &Uuid) -> Result<Option<Facets>> {
        let sql = concat!("SELECT ", facets!(), " FROM sources WHERE id = ?1");
        self.db.prepare_cached(sql)?.query_row([blob(id)], Facets::read).optional()
    }

    fn count(&mut self, before: Option<&Facets>, after: &Facets) {
        self.counts.move_one("phase", before.and_then(Facets::phase), after.phase());
        self.counts.move_one("pending", before.and_then(Facets::pending), after.pending());
    }

    /// Runs an [`update!`] and counts what moved.
    fn update(&mut self, before: &Facets, sql: &'static str, own: &[&dyn ToSql]) -> Result<()> {
        let recorded = &self.envelope.recorded;
        let mut statement = self.db.prepare_cached(sql)?;
        statement.raw_bind_parameter(1, before.row)?;
        statement.raw_bind_parameter(2, recorded.revision)?;
        statement.raw_bind_parameter(3, recorded.position)?;
        statement.raw_bind_parameter(4, blob(&recorded.id))?;
        statement.raw_bind_parameter(5, &*recorded.event_type)?;
        statement.raw_bind_parameter(6, self.now)?;
        for (index, value) in own.iter().enumerate() {
            statement.raw_bind_parameter(7 + index, value)?;
        }
        let after = statement.raw_query().next()?.map(Facets::read).transpose()?;
        if let Some(after) = after {
            self.count(Some(before), &after);
        }
        Ok(())
    }

    /// Runs a [`discovery!`].
    fn discovered(
        &mut self,
        before: &Facets,
        sql: &'static str,
        outcome: &'static str,
        check: &Check,
        own: &[&dyn ToSql],
    ) -> Result<()> {
        self.counts.add("discoveries", &before.project, outcome, 1);
        let config = blob(&check.project_config_id);
        let mut values: Vec<&dyn ToSql> =
            vec![&outcome, &check.duration_ms, &config, &check.project_config_version];
        values.extend_from_slice(own);
        self.update(before, sql, &values)
    }

    fn register(&mut self, e: &beampipe_domain::source::Registered) -> Result<()> {
        let recorded = &self.envelope.recorded;
        let before = self.facets(&self.id)?;
        let project = match e.project_module.as_str() {
            // A redacted registration still belongs to its project.
            "" => recorded.tag("project:").unwrap_or_default(),
            project => project,
        };
        let after = self
            .db
            .prepare_cached(concat!(
                "INSERT INTO sources (created_position, id, project_module, source_identifier, enabled, created_at, \
                 stale_after_hours, revision, last_position, last_event_id, last_event_type, last_event_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?1, ?9, ?10, ?6) \
                 ON CONFLICT (id) DO UPDATE SET removed = 0, enabled = ?5, stale_after_hours = ?7, revision = ?8, \
                 last_position = ?1, last_event_id = ?9, last_event_type = ?10, last_event_at = ?6 RETURNING ",
                facets!()
            ))?
            .query_row(
                rusqlite::params![
                    recorded.position,
                    blob(&self.id),
                    project,
                    e.source_identifier,
                    e.enabled,
                    self.now,
                    e.stale_after_hours,
                    recorded.revision,
                    blob(&recorded.id),
                    recorded.event_type,
                ],
                Facets::read,
            )?;
        self.count(before.as_ref(), &after);
        Ok(())
    }

    fn source(&mut self, event: &S) -> Result<()> {
        if let S::Registered(e) = event {
            return self.register(e);
        }
        // A source whose beginning is not in the log has no row to change.
        let Some(before) = &self.facets(&self.id)? else { return Ok(()) };
        match event {
            // Handled above: it has no row before it.
            S::Registered(_) => Ok(()),
            S::Updated(e) => self.update(
                before,
                update!("enabled = ?7, stale_after_hours = ?8"),
                &[&e.enabled, &e.stale_after_hours],
            ),
            S::Removed(_) => self.update(before, update!("removed = 1, discovery_requested_at = NULL"), &[]),
            S::DiscoveryRequested(_) => self.update(before, update!("discovery_requested_at = ?6"), &[]),
            S::DiscoveryChanged(e) => self.discovered(
                before,
                discovery!(
                    "last_checked_at = ?6, last_error = NULL, signature = ?11, dataset_count = ?12, sbids = ?13, \
                     metadata_sha256 = ?14, discovered_at = ?6, pending = ?15, \
                     pending_at = iif(?15, coalesce(pending_at, ?6), NULL)"
                ),
                "changed",
                &e.check,
                &[
                    &e.signature,
                    &e.dataset_count,
                    &json(&e.sbids),
                    &e.metadata_sha256,
                    &e.workflow_run_pending,
                ],
            ),
            S::DiscoveryUnchanged(e) => self.discovered(
                before,
                discovery!("last_checked_at = ?6, last_error = NULL"),
                "unchanged",
                &e.check,
                &[],
            ),
            S::DiscoveryNoDatasets(e) => self.discovered(
                before,
                discovery!(
                    "last_checked_at = ?6, last_error = NULL, signature = NULL, dataset_count = 0, sbids = NULL, \
                     metadata_sha256 = NULL, discovered_at = NULL, pending = 0, pending_at = NULL"
                ),
                "no_datasets",
                &e.check,
                &[],
            ),
            S::DiscoveryTapSkipped(e) => self.discovered(
                before,
                discovery!("last_error = ?11"),
                "tap_skipped",
                &e.check,
                &[&format!("{}: {}", e.adapter, e.reason)],
            ),
            S::DiscoveryError(e) => self.discovered(
                before,
                discovery!(
                    "last_error = ?11, signature = NULL, dataset_count = NULL, sbids = NULL, metadata_sha256 = NULL, \
                     discovered_at = NULL, pending = 0, pending_at = NULL"
                ),
                "error",
                &e.check,
                &[&format!("{}: {}", e.step, e.error)],
            ),
            S::DiscoveryTimeout(e) => self.discovered(
                before,
                discovery!("last_error = ?11"),
                "timeout",
                &e.check,
                &[&format!("{}: no answer within {} s", e.step, e.limit_seconds)],
            ),
            S::Admitted(e) => {
                self.counts.add("admitted", &before.project, "", 1);
                self.update(
                    before,
                    update!(
                        "pending = 0, pending_at = NULL, admitted_execution_id = ?7, admitted_signature = ?8, \
                         admitted_at = ?6, \
                         admitted_execution_status = (SELECT status FROM runs WHERE execution = ?7 LIMIT 1)"
                    ),
                    &[&blob(&e.execution_id), &e.signature],
                )
            }
        }
    }

    /// An execution exists now, with these sources.
    fn created<'s>(&mut self, sources: impl Iterator<Item = (Uuid, Option<&'s str>)>) -> Result<()> {
        let mut run = self.db.prepare_cached(
            "INSERT OR REPLACE INTO runs (execution, source, signature, status) VALUES (?1, ?2, ?3, 'pending')",
        )?;
        // That it is reserved is counted already; whether the execution exists yet makes no difference to the phase.
        let mut admitted = self.db.prepare_cached(
            "UPDATE sources SET admitted_execution_status = 'pending' WHERE id = ?2 AND admitted_execution_id = ?1",
        )?;
        for (source, signature) in sources {
            run.execute((blob(&self.id), blob(&source), signature))?;
            admitted.execute((blob(&self.id), blob(&source)))?;
        }
        Ok(())
    }

    /// What became of an execution is told to its sources.
    fn execution(&mut self, status: &'static str) -> Result<()> {
        let runs: Vec<(Uuid, Option<String>)> = self
            .db
            .prepare_cached("UPDATE runs SET status = ?2 WHERE execution = ?1 RETURNING source, signature")?
            .query_map((blob(&self.id), status), |row| Ok((crate::sql::column(row, 0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        for (source, signature) in runs {
            let Some(before) = self.facets(&source)? else { continue };
            let executed = signature.filter(|_| status == "completed");
            let after = self
                .db
                .prepare_cached(concat!(
                    "UPDATE sources SET executed_signature = coalesce(?3, executed_signature), \
                     admitted_execution_status = iif(admitted_execution_id = ?2, ?4, admitted_execution_status) \
                     WHERE created_position = ?1 RETURNING ",
                    facets!()
                ))?
                .query_row((before.row, blob(&self.id), executed, status), Facets::read)?;
            self.count(Some(&before), &after);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
