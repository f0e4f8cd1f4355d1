//! The read model behind sources: follows `source-*`, and of `execution-*` what tells an admitted source how its execution
//! goes. Reads nothing but its own rows.
//!
//! Which phase a source is in is said once, by the generated column `phase` of the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::execution::Event as X;
use beampipe_domain::source::{Check, Event as S, Registered};
use rusqlite::{Connection, OptionalExtension, Result};
use uuid::Uuid;

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, json, micros, stream_id};
use crate::touched::{Touched, Word};
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
    type Rows = Touched<Row>;
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

    fn apply(db: &Connection, rows: &mut Self::Rows, counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let id = stream_id(&envelope.recorded.stream);
        let mut fold = Fold { db, rows, counts, envelope, id, now: micros(envelope.recorded.occurred_at) };
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

    fn flush(db: &Connection, rows: &mut Self::Rows) -> Result<()> {
        rows.flush(db)
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

stored! {
    /// A row as it lies in the file, but for its phase, which SQLite works out; what the columns mean is said in `read.rs`.
    pub(crate) struct Row in "sources" by (id: Uuid);
    once {
        created_position: u64,
        project_module: String,
        source_identifier: String,
        created_at: i64,
    }
    changing {
        enabled: bool,
        removed: bool,
        stale_after_hours: Option<f64>,
        last_checked_at: Option<i64>,
        last_attempted_at: Option<i64>,
        last_outcome: Option<Word>,
        last_error: Option<String>,
        last_duration_ms: Option<u64>,
        discovery_requested_at: Option<i64>,
        signature: Option<String>,
        dataset_count: Option<u64>,
        sbids: Option<String>,
        metadata_sha256: Option<String>,
        discovered_at: Option<i64>,
        pending: bool,
        pending_at: Option<i64>,
        admitted_execution_id: Option<Uuid>,
        admitted_signature: Option<String>,
        admitted_at: Option<i64>,
        admitted_execution_status: Option<Word>,
        executed_signature: Option<String>,
        project_config_id: Option<Uuid>,
        project_config_version: Option<u64>,
        revision: u64,
        last_position: u64,
        last_event_id: Uuid,
        last_event_type: String,
        last_event_at: i64,
    }
}

impl Row {
    /// What the generated column says; `the_numbers_equal_a_recount` holds them together.
    fn phase(&self) -> &'static str {
        let running = || {
            let status = self.admitted_execution_status.as_deref().unwrap_or("pending");
            !matches!(status, "completed" | "failed" | "cancelled" | "not_submitted")
        };
        match self.last_outcome.as_deref() {
            _ if self.removed => "removed",
            _ if !self.enabled => "disabled",
            _ if self.admitted_execution_id.is_some() && running() => "executing",
            _ if self.pending => "pending",
            Some("no_datasets") => "no_datasets",
            Some("error" | "timeout") => "error",
            _ if self.signature.is_none() => "registered",
            _ if self.signature == self.executed_signature => "executed",
            _ if self.signature == self.admitted_signature => "failed",
            _ => "discovered",
        }
    }

    /// Nothing is known of its data.
    fn forgets_its_data(&mut self) {
        self.signature = None;
        self.dataset_count = None;
        self.sbids = None;
        self.metadata_sha256 = None;
        self.discovered_at = None;
        self.waits(false, 0);
    }

    /// Waits for an execution, or no longer.
    fn waits(&mut self, pending: bool, now: i64) {
        self.pending = pending;
        self.pending_at = pending.then(|| self.pending_at.unwrap_or(now));
    }

    /// A discovery ended, whatever its outcome.
    fn looked_at(&mut self, counts: &mut Counts, outcome: &'static str, check: &Check, now: i64) {
        counts.add("discoveries", &self.project_module, outcome, 1);
        self.last_attempted_at = Some(now);
        self.discovery_requested_at = None;
        self.last_outcome = Some(Cow::Borrowed(outcome));
        self.last_duration_ms = Some(check.duration_ms);
        self.project_config_id = Some(check.project_config_id);
        self.project_config_version = Some(check.project_config_version);
    }

    fn stamp(&mut self, envelope: &Envelope, now: i64) {
        let recorded = &envelope.recorded;
        self.revision = recorded.revision;
        self.last_position = recorded.position;
        self.last_event_id = recorded.id;
        self.last_event_type.clear();
        self.last_event_type.push_str(&recorded.event_type);
        self.last_event_at = now;
    }
}

/// What of a row is counted and changes.
struct Facets {
    phase: &'static str,
    pending: bool,
}

impl Facets {
    fn of(row: &Row) -> Self {
        Self { phase: row.phase(), pending: row.pending && row.enabled && !row.removed }
    }

    /// Removed sources are counted nowhere.
    fn phase<'a>(&'a self, project: &'a str) -> Option<(&'a str, &'a str)> {
        (self.phase != "removed").then_some((project, self.phase))
    }

    fn pending<'a>(&self, project: &'a str) -> Option<(&'a str, &'a str)> {
        self.pending.then_some((project, ""))
    }
}

fn count(counts: &mut Counts, before: Option<&Facets>, row: &Row) {
    let (project, after) = (row.project_module.as_str(), Facets::of(row));
    counts.move_one("phase", before.and_then(|b| b.phase(project)), after.phase(project));
    counts.move_one("pending", before.and_then(|b| b.pending(project)), after.pending(project));
}

struct Fold<'a> {
    db: &'a Connection,
    rows: &'a mut Touched<Row>,
    counts: &'a mut Counts,
    envelope: &'a Envelope,
    id: Uuid,
    now: i64,
}

impl Fold<'_> {
    fn register(&mut self, e: &Registered) -> Result<()> {
        let recorded = &self.envelope.recorded;
        if let Some(row) = self.rows.get(self.db, (self.id,))? {
            let before = Facets::of(row);
            row.removed = false;
            row.enabled = e.enabled;
            row.stale_after_hours = e.stale_after_hours;
            row.stamp(self.envelope, self.now);
            count(self.counts, Some(&before), row);
            return Ok(());
        }
        let project = match e.project_module.as_str() {
            // A redacted registration still belongs to its project.
            "" => recorded.tag("project:").unwrap_or_default(),
            project => project,
        };
        let mut row = Row {
            id: self.id,
            created_position: recorded.position,
            project_module: project.to_owned(),
            source_identifier: e.source_identifier.clone(),
            created_at: self.now,
            enabled: e.enabled,
            stale_after_hours: e.stale_after_hours,
            ..Row::default()
        };
        row.stamp(self.envelope, self.now);
        count(self.counts, None, &row);
        self.rows.add(row);
        Ok(())
    }

    fn source(&mut self, event: &S) -> Result<()> {
        if let S::Registered(e) = event {
            return self.register(e);
        }
        // A source whose beginning is not in the log has no row to change.
        let Some(row) = self.rows.get(self.db, (self.id,))? else { return Ok(()) };
        let (before, now) = (Facets::of(row), self.now);
        match event {
            // Handled above: it has no row before it.
            S::Registered(_) => {}
            S::Updated(e) => {
                row.enabled = e.enabled;
                row.stale_after_hours = e.stale_after_hours;
            }
            S::Removed(_) => {
                row.removed = true;
                row.discovery_requested_at = None;
            }
            S::DiscoveryRequested(_) => row.discovery_requested_at = Some(now),
            S::DiscoveryChanged(e) => {
                row.looked_at(self.counts, "changed", &e.check, now);
                row.last_checked_at = Some(now);
                row.last_error = None;
                row.signature = Some(e.signature.clone());
                row.dataset_count = Some(e.dataset_count);
                row.sbids = Some(json(&e.sbids));
                row.metadata_sha256 = Some(e.metadata_sha256.clone());
                row.discovered_at = Some(now);
                row.waits(e.workflow_run_pending, now);
            }
            S::DiscoveryUnchanged(e) => {
                row.looked_at(self.counts, "unchanged", &e.check, now);
                row.last_checked_at = Some(now);
                row.last_error = None;
            }
            S::DiscoveryNoDatasets(e) => {
                row.looked_at(self.counts, "no_datasets", &e.check, now);
                row.last_checked_at = Some(now);
                row.last_error = None;
                row.forgets_its_data();
                row.dataset_count = Some(0);
            }
            S::DiscoveryTapSkipped(e) => {
                row.looked_at(self.counts, "tap_skipped", &e.check, now);
                row.last_error = Some(format!("{}: {}", e.adapter, e.reason));
            }
            S::DiscoveryError(e) => {
                row.looked_at(self.counts, "error", &e.check, now);
                row.last_error = Some(format!("{}: {}", e.step, e.error));
                row.forgets_its_data();
            }
            S::DiscoveryTimeout(e) => {
                row.looked_at(self.counts, "timeout", &e.check, now);
                row.last_error = Some(format!("{}: no answer within {} s", e.step, e.limit_seconds));
            }
            S::Admitted(e) => {
                self.counts.add("admitted", &row.project_module, "", 1);
                let status = "SELECT status FROM runs WHERE execution = ?1 LIMIT 1";
                let status = self
                    .db
                    .prepare_cached(status)?
                    .query_row([blob(&e.execution_id)], |row| crate::sql::column(row, 0));
                row.admitted_execution_status = status.optional()?;
                row.admitted_execution_id = Some(e.execution_id);
                row.admitted_signature = Some(e.signature.clone());
                row.admitted_at = Some(now);
                row.waits(false, now);
            }
        }
        row.stamp(self.envelope, now);
        count(self.counts, Some(&before), row);
        Ok(())
    }

    /// An execution exists now, with these sources.
    fn created<'s>(&mut self, sources: impl Iterator<Item = (Uuid, Option<&'s str>)>) -> Result<()> {
        let mut run = self.db.prepare_cached(
            "INSERT OR REPLACE INTO runs (execution, source, signature, status) VALUES (?1, ?2, ?3, 'pending')",
        )?;
        for (source, signature) in sources {
            run.execute((blob(&self.id), blob(&source), signature))?;
            let Some(row) = self.rows.get(self.db, (source,))? else { continue };
            // That it is reserved is counted already; whether the execution exists yet makes no difference to the phase.
            if row.admitted_execution_id == Some(self.id) {
                row.admitted_execution_status = Some(Cow::Borrowed("pending"));
            }
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
            let Some(row) = self.rows.get(self.db, (source,))? else { continue };
            let before = Facets::of(row);
            if status == "completed" && signature.is_some() {
                row.executed_signature = signature;
            }
            if row.admitted_execution_id == Some(self.id) {
                row.admitted_execution_status = Some(Cow::Borrowed(status));
            }
            count(self.counts, Some(&before), row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
