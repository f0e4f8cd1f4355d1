//! What each event of an execution changes: one row, its session, its artifacts, and what is counted of them.

use std::borrow::Cow;

use beampipe_domain::execution::{Artifact as Made, Created, Event as E, Receipt, Terminal};
use beampipe_domain::profile;
use rusqlite::{Connection, Result};
use uuid::Uuid;

use super::stored::{Execution, Rows, Session};
use super::words::{daliuge_end, outcome, scheduler_end, scheduler_state};
use crate::Envelope;
use crate::counts::Counts;
use crate::sql::{blob, json, micros, micros_of, stream_id};
use crate::touched::{Touched, Word};

/// Folds one event in.
pub(super) fn fold(
    db: &Connection,
    rows: &mut Rows,
    counts: &mut Counts,
    envelope: &Envelope,
    event: &E,
) -> Result<()> {
    let recorded = &envelope.recorded;
    let id = stream_id(&recorded.stream);
    let mut fold =
        Fold { db, sessions: &mut rows.sessions, counts, envelope, id, now: micros(recorded.occurred_at) };
    if let E::Created(created) = event {
        let row = fold.create(created)?;
        count(fold.counts, None, &row);
        rows.executions.add(row);
        return Ok(());
    }
    // An execution whose beginning is not in the log has no row to change.
    let Some(row) = rows.executions.get(db, (id,))? else { return Ok(()) };
    let before = Facets::of(row);
    fold.change(row, event)?;
    fold.stamp(row);
    count(fold.counts, Some(&before), row);
    Ok(())
}

/// What of a row is counted and changes.
struct Facets {
    live: bool,
    status: Word,
    submission: Word,
    scheduler: Word,
    daliuge: Word,
    output: Word,
}

impl Facets {
    fn of(row: &Execution) -> Self {
        Self {
            live: row.is_live(),
            status: row.status.clone(),
            submission: row.submission_state.clone(),
            scheduler: row.scheduler_state.clone(),
            daliuge: row.daliuge_state.clone(),
            output: row.output_state.clone(),
        }
    }
}

fn count(counts: &mut Counts, before: Option<&Facets>, row: &Execution) {
    let project = row.project_module.as_str();
    if before.is_none_or(|before| before.status != row.status) {
        counts.move_one("status", before.map(|b| (project, &*b.status)), Some((project, &*row.status)));
        counts.add("entered", project, &row.status, 1);
    }
    let axes = [
        ("submission", before.map(|b| &b.submission), &row.submission_state),
        ("scheduler", before.map(|b| &b.scheduler), &row.scheduler_state),
        ("daliuge", before.map(|b| &b.daliuge), &row.daliuge_state),
        ("output", before.map(|b| &b.output), &row.output_state),
    ];
    for (axis, before, after) in axes {
        counts.move_one("state", before.map(|state| (axis, &**state)), Some((axis, &**after)));
    }
    let by = i64::from(row.is_live()) - i64::from(before.is_some_and(|before| before.live));
    if by != 0 {
        counts.add("in_flight_project", project, "", by);
        counts.add("in_flight_scheduler", &row.scheduler_name, "", by);
        counts.add("in_flight_profile", &row.profile_id.to_string(), "", by);
    }
    if by < 0 {
        counts.add("terminal", project, &row.status, 1);
    }
}

struct Fold<'a> {
    db: &'a Connection,
    sessions: &'a mut Touched<Session>,
    counts: &'a mut Counts,
    envelope: &'a Envelope,
    id: Uuid,
    now: i64,
}

impl Fold<'_> {
    fn stamp(&self, row: &mut Execution) {
        let recorded = &self.envelope.recorded;
        row.last_position = recorded.position;
        row.last_revision = recorded.revision;
        row.last_event_id = recorded.id;
        row.last_event_type.clear();
        row.last_event_type.push_str(&recorded.event_type);
        row.last_event_at = self.now;
    }

    fn create(&mut self, e: &Created) -> Result<Execution> {
        let recorded = &self.envelope.recorded;
        let project = match e.project_module.as_str() {
            // A redacted creation still belongs to its project.
            "" => recorded.tag("project:").unwrap_or_default(),
            project => project,
        };
        let mut row = Execution {
            id: self.id,
            created_position: recorded.position,
            project_module: project.to_owned(),
            archive_name: e.archive_name.clone(),
            sources: json(&e.sources),
            scheduler_name: Cow::Borrowed(e.profile.spec.deployment.scheduler_name()),
            discovery_signature: e.discovery_signature.clone(),
            created_at: self.now,
            automatic: e.automatic,
            created_by_id: e.created_by_id,
            profile_id: e.profile.profile_id,
            profile_revision: e.profile.revision,
            profile_sha256: e.profile.spec_sha256.clone(),
            project_config_id: e.project_config_id,
            project_config_version: e.project_config_version,
            project_spec_sha256: e.project_spec_sha256.clone(),
            correlation_id: recorded.correlation_id,
            ..Execution::unbegun(self.now)
        };
        self.stamp(&mut row);
        self.pin(&e.profile.profile_id, e.profile.revision, &e.profile.spec_sha256, &e.profile.spec)?;
        let mut of_source = self.db.prepare_cached(
            "INSERT INTO execution_sources (source, created_position) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?;
        for source in &e.sources {
            of_source.execute((blob(&source.source_id), recorded.position))?;
        }
        if e.automatic {
            self.counts.add("admitted", project, "", 1);
        }
        Ok(row)
    }

    fn pin(&self, id: &Uuid, revision: u64, sha256: &str, spec: &profile::Spec) -> Result<()> {
        let key = (blob(id), revision, sha256);
        let known = "SELECT 1 FROM pinned_profiles WHERE profile_id = ?1 AND profile_revision = ?2 AND profile_sha256 = ?3";
        if self.db.prepare_cached(known)?.exists(key)? {
            return Ok(());
        }
        let sql = "INSERT INTO pinned_profiles (profile_id, profile_revision, profile_sha256, profile_spec) \
                   VALUES (?1, ?2, ?3, ?4)";
        self.db.prepare_cached(sql)?.execute((key.0, key.1, key.2, json(spec)))?;
        Ok(())
    }

    fn artifacts<'m>(
        &self,
        row: &Execution,
        phase: &str,
        made: impl IntoIterator<Item = &'m Made>,
    ) -> Result<()> {
        let mut statement = self.db.prepare_cached(
            "INSERT INTO artifacts (created_position, kind, sha256, size_bytes, media_type, producer_phase, attempt, position, \
             created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
        )?;
        let position = self.envelope.recorded.position;
        for Made { kind, sha256, size_bytes, media_type } in made {
            let (of, attempt) = (row.created_position, row.attempt);
            statement
                .execute((of, kind, sha256, size_bytes, media_type, phase, attempt, position, self.now))?;
        }
        Ok(())
    }

    /// Changes the session of the present attempt, if there is one.
    fn session(&mut self, row: &Execution, change: impl FnOnce(&mut Session)) -> Result<()> {
        if let Some(session) = self.sessions.get(self.db, (row.created_position, row.attempt))? {
            change(session);
        }
        Ok(())
    }

    /// The last look at a session: written once.
    fn end_session(&mut self, row: &Execution, terminal: Option<&Terminal>) -> Result<()> {
        let Some(terminal) = terminal else { return Ok(()) };
        self.session(row, |session| {
            session.terminal.get_or_insert_with(|| json(terminal));
        })?;
        self.artifacts(row, "terminal", &terminal.artifacts)
    }

    fn change(&mut self, row: &mut Execution, event: &E) -> Result<()> {
        let (attempt, now) = (row.attempt, self.now);
        match event {
            // Handled by the caller: it has no row before it.
            E::Created(_) => {}
            E::ExecuteStarted(e) => {
                row.is_now("running");
                row.submission_state = Cow::Borrowed("preparing");
                row.enters("admitted");
                row.admitted_at = Some(now);
                row.started_at = Some(now);
                row.job_id = Some(e.job_id);
                row.do_stage = Some(e.do_stage);
                row.do_submit = Some(e.do_submit);
                row.executing_position = Some(self.envelope.recorded.position);
            }
            E::Running(e) => {
                row.is_now("running");
                row.execution_phase = Some(e.phase.clone());
            }
            E::ManifestBuilt(e) => {
                self.artifacts(row, "manifest_generated", [&e.artifact])?;
                row.enters("manifest_generated");
                row.manifest_generated_at = Some(now);
                row.manifest_sha256 = Some(e.manifest_sha256.clone());
                row.dataset_count = Some(e.dataset_count);
            }
            E::GraphPrepared(e) => {
                self.artifacts(row, "graph_patched", &e.artifacts)?;
                row.enters("graph_patched");
                row.graph_patched_at = Some(now);
                row.source_graph_sha256 = Some(e.source_graph_sha256.clone());
                row.patched_graph_sha256 = Some(e.patched_graph_sha256.clone());
            }
            E::Translated(e) => {
                self.artifacts(row, "translated", [&e.artifact])?;
                row.enters("translated");
                row.translated_at = Some(now);
                row.physical_graph_sha256 = Some(e.physical_graph_sha256.clone());
            }
            E::SubmissionStarted(e) => {
                let session = Session {
                    created_position: row.created_position,
                    attempt,
                    session_id: e.session_id,
                    backend: e.backend.clone(),
                    started_at: now,
                    deadline_at: micros_of(e.deadline_at),
                    dim_rest_base: e.dim_rest_base.clone(),
                    dim_session_status_url: e.dim_session_status_url.clone(),
                    dim_graph_status_url: e.dim_graph_status_url.clone(),
                    ..Session::default()
                };
                row.submission_state = Cow::Borrowed("in_flight");
                row.execution_phase = Some("submit".to_owned());
                row.enters("submission_pending");
                row.submission_pending_at = Some(now);
                row.submission_deadline_at = session.deadline_at;
                row.daliuge_session_id = Some(e.session_id);
                row.dim_session_status_url = e.dim_session_status_url.clone();
                row.dim_graph_status_url = e.dim_graph_status_url.clone();
                row.slurm_session_dir = e.slurm_session_dir.clone();
                row.slurm_login_node = e.slurm_login_node.clone();
                row.slurm_remote_user = e.slurm_remote_user.clone();
                match self.sessions.get(self.db, (row.created_position, attempt))? {
                    Some(known) => *known = session,
                    None => self.sessions.add(session),
                }
            }
            E::SubmissionRecorded(e) => {
                self.session(row, |session| {
                    session.recorded_at = Some(now);
                    session.receipt = Some(json(&e.receipt));
                    session.settled_by = e.settled_by.clone();
                })?;
                row.scheduler_job_id = None;
                row.daliuge_state = Cow::Borrowed("deploying");
                if let Receipt::Slurm { slurm_job_id, session_dir, login_node, remote_user, .. } = &e.receipt
                {
                    row.scheduler_job_id = Some(slurm_job_id.clone());
                    row.slurm_session_dir = Some(session_dir.clone());
                    row.slurm_login_node = Some(login_node.clone());
                    row.slurm_remote_user = Some(remote_user.clone());
                    row.daliuge_state = Cow::Borrowed("not_created");
                }
                row.submission_state = Cow::Borrowed("submitted");
                row.scheduler_state = Cow::Borrowed("pending");
                row.enters("submitted");
                row.submitted_at = Some(now);
                if e.settled_by.is_some() {
                    row.last_reconciled_at = Some(now);
                }
            }
            E::SubmissionRefused(e) => {
                self.session(row, |session| {
                    session.refused_error = Some(e.error.clone());
                    session.refused_evidence = e.evidence.clone();
                })?;
                row.submission_state = Cow::Borrowed("failed");
                row.last_error = Some(e.error.clone());
            }
            E::SubmissionUncertain(e) => {
                self.session(row, |session| {
                    session.uncertain_at = Some(now);
                    session.uncertain_step = Some(e.step.clone());
                    session.uncertain_reason = Some(e.reason.clone());
                })?;
                row.submission_state = Cow::Borrowed("uncertain");
            }
            E::SubmissionAbandoned(e) => {
                self.session(row, |session| {
                    session.abandoned_at = Some(now);
                    session.abandoned_reason = Some(e.reason.clone());
                })?;
                row.submission_state = Cow::Borrowed("failed");
                row.submission_abandoned_at = Some(now);
            }
            E::AwaitingScheduler(e) => {
                row.is_now("awaiting_scheduler");
                row.scheduler_state = Cow::Borrowed("pending");
                row.enters("monitoring");
                row.monitoring_at.get_or_insert(now);
                row.scheduler_reason = e.reason.clone();
            }
            E::Observed(e) => {
                self.session(row, |session| session.last_observation = Some(json(e)))?;
                let axes = &e.axes;
                row.is_now(if axes.awaiting_scheduler { "awaiting_scheduler" } else { "running" });
                row.enters("monitoring");
                row.monitoring_at.get_or_insert(now);
                let word = |state: &String| Word::Owned(state.clone());
                let mirrored = |state: &String| Cow::Borrowed(scheduler_state(state));
                let scheduler = axes.scheduler_state.as_ref().map(word);
                if let Some(state) = scheduler.or_else(|| axes.daliuge_state.as_ref().map(mirrored)) {
                    row.scheduler_state = state;
                }
                if let Some(state) = &axes.daliuge_state {
                    row.daliuge_state = word(state);
                }
                if let Some(state) = &axes.output_state {
                    row.output_state = word(state);
                }
                row.scheduler_raw_state = e.observation.raw_state.clone();
                row.scheduler_reason = e.observation.reason.clone();
                row.last_reconciled_at = Some(micros(e.observation.observed_at));
            }
            E::OutputsVerified(_) => {
                row.output_state = Cow::Borrowed("verified");
                row.enters("output_verification");
                row.output_verification_at = Some(now);
            }
            E::Completed(e) => {
                self.end_session(row, Some(&e.terminal))?;
                row.ends("completed", "succeeded", now);
                row.scheduler_state = Cow::Borrowed("succeeded");
                row.daliuge_state = Cow::Borrowed(daliuge_end(&e.terminal, "finished"));
                row.last_reconciled_at = Some(micros(e.terminal.observed_at));
                row.last_error = None;
            }
            E::Failed(e) => {
                self.end_session(row, e.terminal.as_ref())?;
                row.ends("failed", outcome(&e.failure_class), now);
                row.failure_class = Some(e.failure_class.clone());
                row.last_error = Some(e.error.clone());
                if let Some(terminal) = &e.terminal {
                    row.scheduler_state = Cow::Borrowed(scheduler_end(terminal));
                    row.daliuge_state = Cow::Borrowed(daliuge_end(terminal, "failed"));
                    row.last_reconciled_at = Some(micros(terminal.observed_at));
                }
            }
            E::NotSubmitted(_) => {
                row.ends("not_submitted", "not_submitted", now);
                row.submission_state = Cow::Borrowed("not_started");
            }
            E::CancelRequested(_) => row.cancel_requested = true,
            E::Cancelled(e) => {
                self.end_session(row, e.terminal.as_ref())?;
                row.ends("cancelled", "cancelled", now);
                row.failure_class = Some("cancelled".to_owned());
                if row.scheduler_state != "not_submitted" {
                    row.scheduler_state = Cow::Borrowed("cancelled");
                }
                if let Some(terminal) = &e.terminal {
                    row.daliuge_state = Cow::Borrowed(daliuge_end(terminal, "cancelled"));
                    row.last_reconciled_at = Some(micros(terminal.observed_at));
                }
            }
            E::RetryRequested(e) => {
                self.counts.add("retries", &row.project_module, "", 1);
                row.begins_again(e.attempt.max(attempt + 1), now);
            }
        }
        Ok(())
    }
}
