//! What each event of an execution changes: one row, its session, its artifacts, and what is counted of them.

use beampipe_domain::execution::{Artifact as Made, Created, Event as E, Receipt, Terminal};
use beampipe_domain::profile;
use rusqlite::{Connection, OptionalExtension, Result, Row, ToSql};
use uuid::Uuid;

use super::LIVE_STATUSES;
use super::words::{Word, daliuge_end, known, outcome, scheduler_state};
use crate::Envelope;
use crate::counts::Counts;
use crate::sql::{blob, blob_of, json, micros, micros_of, stream_id};

/// Folds one event in.
pub(super) fn fold(db: &Connection, counts: &mut Counts, envelope: &Envelope, event: &E) -> Result<()> {
    let id = stream_id(&envelope.recorded.stream);
    let mut fold = Fold { db, counts, envelope, id, now: micros(envelope.recorded.occurred_at) };
    if let E::Created(created) = event {
        return fold.create(created);
    }
    // An execution whose beginning is not in the log has no row to change.
    let Some(before) = fold.facets()? else { return Ok(()) };
    fold.change(&before, event)
}

/// What of a row is counted.
#[derive(Clone)]
struct Facets {
    row: i64,
    attempt: u32,
    project: String,
    scheduler: Word,
    profile: Uuid,
    live: bool,
    status: Word,
    submission_state: Word,
    scheduler_state: Word,
    daliuge_state: Word,
    output_state: Word,
}

/// Changes one row: `?1` is its key, `?2` to `?6` are the envelope's, the arm's own values start at `?7`. What is counted is
/// named before the semicolon, so that it is said once for the row and for the counts.
macro_rules! update {
    ($fold:ident, $before:ident, { $($facet:ident = $word:literal),* }, $set:literal, $own:expr $(,)?) => {
        update!($fold, $before, $before.clone(), { $($facet = $word),* }, $set, $own)
    };
    ($fold:ident, $before:ident, $after:expr, { $($facet:ident = $word:literal),* }, $set:literal, $own:expr $(,)?) => {{
        #[allow(unused_mut, reason = "not every event changes a word")]
        let mut after = $after;
        $(after.$facet = Word::Borrowed($word);)*
        let sql = concat!(
            "UPDATE executions SET ",
            $(stringify!($facet), " = '", $word, "', ",)*
            $set,
            " last_position = ?2, last_revision = ?3, last_event_id = ?4, last_event_type = ?5, last_event_at = ?6 \
             WHERE created_position = ?1"
        );
        $fold.update($before, after, sql, $own)
    }};
}

impl Facets {
    fn read(row: &Row<'_>) -> Result<Self> {
        let word = |index| Ok::<_, rusqlite::Error>(known(row.get_ref(index)?.as_str()?));
        Ok(Self {
            row: row.get(0)?,
            attempt: row.get(1)?,
            project: row.get(2)?,
            scheduler: word(3)?,
            profile: crate::sql::column(row, 4)?,
            live: row.get(5)?,
            status: word(6)?,
            submission_state: word(7)?,
            scheduler_state: word(8)?,
            daliuge_state: word(9)?,
            output_state: word(10)?,
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
    fn facets(&self) -> Result<Option<Facets>> {
        let sql = "SELECT created_position, attempt, project_module, scheduler_name, profile_id, completed_at IS NULL, \
                   status, submission_state, scheduler_state, daliuge_state, output_state FROM executions WHERE id = ?1";
        self.db.prepare_cached(sql)?.query_row([blob(&self.id)], Facets::read).optional()
    }

    fn create(&mut self, e: &Created) -> Result<()> {
        let recorded = &self.envelope.recorded;
        let project = match e.project_module.as_str() {
            // A redacted creation still belongs to its project.
            "" => recorded.tag("project:").unwrap_or_default(),
            project => project,
        };
        let scheduler = e.profile.spec.deployment.scheduler_name();
        self.db
            .prepare_cached(
                "INSERT INTO executions (created_position, id, project_module, archive_name, sources, status, \
                 control_phase, submission_state, scheduler_name, scheduler_state, daliuge_state, output_state, attempt, \
                 cancel_requested, discovery_signature, created_at, automatic, created_by_id, profile_id, \
                 profile_revision, profile_sha256, project_config_id, project_config_version, project_spec_sha256, \
                 admission_pending_at, correlation_id, last_position, last_revision, last_event_id, last_event_type, \
                 last_event_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, 'pending', 'admission_pending', 'not_started', ?6, 'not_submitted', \
                 'not_created', 'not_started', 1, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?8, ?17, ?1, ?18, \
                 ?19, ?20, ?8)",
            )?
            .execute(rusqlite::params![
                recorded.position,
                blob(&self.id),
                project,
                e.archive_name,
                json(&e.sources),
                scheduler,
                e.discovery_signature,
                self.now,
                e.automatic,
                blob_of(e.created_by_id.as_ref()),
                blob(&e.profile.profile_id),
                e.profile.revision,
                e.profile.spec_sha256,
                blob(&e.project_config_id),
                e.project_config_version,
                e.project_spec_sha256,
                blob(&recorded.correlation_id),
                recorded.revision,
                blob(&recorded.id),
                recorded.event_type,
            ])?;
        let after = Facets {
            row: i64::try_from(recorded.position).unwrap_or(i64::MAX),
            attempt: 1,
            project: project.to_owned(),
            scheduler: Word::Borrowed(scheduler),
            profile: e.profile.profile_id,
            live: true,
            status: Word::Borrowed("pending"),
            submission_state: Word::Borrowed("not_started"),
            scheduler_state: Word::Borrowed("not_submitted"),
            daliuge_state: Word::Borrowed("not_created"),
            output_state: Word::Borrowed("not_started"),
        };
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
        self.count(None, &after);
        Ok(())
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

    /// Runs an [`update!`] and counts what moved.
    fn update(
        &mut self,
        before: &Facets,
        mut after: Facets,
        sql: &'static str,
        own: &[&dyn ToSql],
    ) -> Result<()> {
        let recorded = &self.envelope.recorded;
        let mut statement = self.db.prepare_cached(sql)?;
        statement.raw_bind_parameter(1, before.row)?;
        statement.raw_bind_parameter(2, recorded.position)?;
        statement.raw_bind_parameter(3, recorded.revision)?;
        statement.raw_bind_parameter(4, blob(&recorded.id))?;
        statement.raw_bind_parameter(5, &*recorded.event_type)?;
        statement.raw_bind_parameter(6, self.now)?;
        for (index, value) in own.iter().enumerate() {
            statement.raw_bind_parameter(7 + index, value)?;
        }
        statement.raw_execute()?;
        after.live = LIVE_STATUSES.contains(&&*after.status);
        self.count(Some(before), &after);
        Ok(())
    }

    fn count(&mut self, before: Option<&Facets>, after: &Facets) {
        let counts = &mut *self.counts;
        let project = after.project.as_str();
        if before.is_none_or(|before| before.status != after.status) {
            counts.move_one("status", before.map(|b| (project, &*b.status)), Some((project, &*after.status)));
            counts.add("entered", project, &after.status, 1);
        }
        type State = fn(&Facets) -> &str;
        let axes: [(&str, State); 4] = [
            ("submission", |f| &f.submission_state),
            ("scheduler", |f| &f.scheduler_state),
            ("daliuge", |f| &f.daliuge_state),
            ("output", |f| &f.output_state),
        ];
        for (axis, state) in axes {
            counts.move_one("state", before.map(|b| (axis, state(b))), Some((axis, state(after))));
        }
        let by = i64::from(after.live) - i64::from(before.is_some_and(|before| before.live));
        if by != 0 {
            counts.add("in_flight_project", project, "", by);
            counts.add("in_flight_scheduler", &after.scheduler, "", by);
            counts.add("in_flight_profile", &after.profile.to_string(), "", by);
        }
        if by < 0 {
            counts.add("terminal", project, &after.status, 1);
        }
    }

    fn artifacts<'m>(
        &self,
        attempt: u32,
        phase: &str,
        made: impl IntoIterator<Item = &'m Made>,
    ) -> Result<()> {
        let mut statement = self.db.prepare_cached(
            "INSERT INTO artifacts (execution, kind, sha256, size_bytes, media_type, producer_phase, attempt, position, \
             created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
        )?;
        let position = self.envelope.recorded.position;
        for Made { kind, sha256, size_bytes, media_type } in made {
            let id = blob(&self.id);
            statement
                .execute((id, kind, sha256, size_bytes, media_type, phase, attempt, position, self.now))?;
        }
        Ok(())
    }

    /// Changes the session of the present attempt; the arm's own values start at `?3`.
    fn session(&self, attempt: u32, sql: &'static str, own: &[&dyn ToSql]) -> Result<()> {
        let mut statement = self.db.prepare_cached(sql)?;
        statement.raw_bind_parameter(1, blob(&self.id))?;
        statement.raw_bind_parameter(2, attempt)?;
        for (index, value) in own.iter().enumerate() {
            statement.raw_bind_parameter(3 + index, value)?;
        }
        statement.raw_execute()?;
        Ok(())
    }

    /// The last look at a session: written once.
    fn end_session(&self, attempt: u32, terminal: Option<&Terminal>) -> Result<()> {
        let Some(terminal) = terminal else { return Ok(()) };
        self.session(
            attempt,
            "UPDATE sessions SET terminal = ?3 WHERE execution = ?1 AND attempt = ?2 AND terminal IS NULL",
            &[&json(terminal)],
        )?;
        self.artifacts(attempt, "terminal", &terminal.artifacts)
    }

    fn change(&mut self, before: &Facets, event: &E) -> Result<()> {
        let attempt = before.attempt;
        match event {
            // Handled by the caller: it has no row before it.
            E::Created(_) => Ok(()),
            E::ExecuteStarted(e) => {
                let position = self.envelope.recorded.position;
                update!(self, before, { status = "running", submission_state = "preparing" }, "control_phase = 'admitted', admitted_at = ?6, started_at = ?6, job_id = ?7, do_stage = ?8, do_submit \
                        = ?9, executing_position = ?10,", &[&blob(&e.job_id), &e.do_stage, &e.do_submit, &position],
                )
            }
            E::Running(e) => {
                update!(self, before, { status = "running" }, "execution_phase = ?7,", &[&e.phase])
            }
            E::ManifestBuilt(e) => {
                self.artifacts(attempt, "manifest_generated", [&e.artifact])?;
                update!(
                    self,
                    before,
                    {},
                    "control_phase = 'manifest_generated', manifest_generated_at = ?6, manifest_sha256 = ?7, \
                    dataset_count = ?8,",
                    &[&e.manifest_sha256, &e.dataset_count],
                )
            }
            E::GraphPrepared(e) => {
                self.artifacts(attempt, "graph_patched", &e.artifacts)?;
                update!(
                    self,
                    before,
                    {},
                    "control_phase = 'graph_patched', graph_patched_at = ?6, source_graph_sha256 = ?7, \
                    patched_graph_sha256 = ?8,",
                    &[&e.source_graph_sha256, &e.patched_graph_sha256],
                )
            }
            E::Translated(e) => {
                self.artifacts(attempt, "translated", [&e.artifact])?;
                update!(
                    self,
                    before,
                    {},
                    "control_phase = 'translated', translated_at = ?6, physical_graph_sha256 = ?7,",
                    &[&e.physical_graph_sha256],
                )
            }
            E::SubmissionStarted(e) => {
                let deadline = micros_of(e.deadline_at);
                self.session(
                    attempt,
                    "INSERT OR REPLACE INTO sessions (execution, attempt, session_id, backend, started_at, deadline_at, \
                     dim_rest_base, dim_session_status_url, dim_graph_status_url) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    &[
                        &blob(&e.session_id),
                        &e.backend,
                        &self.now,
                        &deadline,
                        &e.dim_rest_base,
                        &e.dim_session_status_url,
                        &e.dim_graph_status_url,
                    ],
                )?;
                update!(
                    self,
                    before,
                    { submission_state = "in_flight" },
                    "execution_phase = 'submit', control_phase = 'submission_pending', submission_pending_at = ?6, \
                    submission_deadline_at = ?7, daliuge_session_id = ?8, dim_session_status_url = ?9, \
                    dim_graph_status_url = ?10,",
                    &[&deadline, &blob(&e.session_id), &e.dim_session_status_url, &e.dim_graph_status_url],
                )
            }
            E::SubmissionRecorded(e) => {
                self.session(
                    attempt,
                    "UPDATE sessions SET recorded_at = ?3, receipt = ?4, settled_by = ?5 \
                     WHERE execution = ?1 AND attempt = ?2",
                    &[&self.now, &json(&e.receipt), &e.settled_by],
                )?;
                let (job, dir, node, user) = match &e.receipt {
                    Receipt::Slurm { slurm_job_id, session_dir, login_node, remote_user, .. } => {
                        (Some(slurm_job_id), Some(session_dir), Some(login_node), Some(remote_user))
                    }
                    Receipt::Dim { .. } | Receipt::Simulated { .. } | Receipt::Redacted => {
                        (None, None, None, None)
                    }
                };
                let session = if job.is_some() { "not_created" } else { "deploying" };
                let after = Facets { daliuge_state: Word::Borrowed(session), ..before.clone() };
                update!(self, before, after, { submission_state = "submitted", scheduler_state = "pending" }, "control_phase = 'submitted', submitted_at = ?6, daliuge_state = ?7, scheduler_job_id = ?8, \
                    slurm_session_dir = ?9, slurm_login_node = ?10, slurm_remote_user = ?11, last_reconciled_at = \
                    iif(?12 IS NULL, last_reconciled_at, ?6),", &[
                        &session,
                        &job,
                        &dir,
                        &node,
                        &user,
                        &e.settled_by,
                    ],
                )
            }
            E::SubmissionRefused(e) => {
                self.session(
                    attempt,
                    "UPDATE sessions SET refused_error = ?3, refused_evidence = ?4 WHERE execution = ?1 AND attempt = ?2",
                    &[&e.error, &e.evidence],
                )?;
                update!(self, before, { submission_state = "failed" }, "last_error = ?7,", &[&e.error])
            }
            E::SubmissionUncertain(e) => {
                self.session(
                    attempt,
                    "UPDATE sessions SET uncertain_at = ?3, uncertain_step = ?4, uncertain_reason = ?5 \
                     WHERE execution = ?1 AND attempt = ?2",
                    &[&self.now, &e.step, &e.reason],
                )?;
                update!(self, before, { submission_state = "uncertain" }, "", &[])
            }
            E::SubmissionAbandoned(e) => {
                self.session(
                    attempt,
                    "UPDATE sessions SET abandoned_at = ?3, abandoned_reason = ?4 WHERE execution = ?1 AND attempt = ?2",
                    &[&self.now, &e.reason],
                )?;
                update!(self, before, { submission_state = "failed" }, "submission_abandoned_at = ?6,", &[])
            }
            E::AwaitingScheduler(e) => {
                update!(self, before, { status = "awaiting_scheduler", scheduler_state = "pending" }, "control_phase = 'monitoring', monitoring_at = coalesce(monitoring_at, ?6), scheduler_reason = ?7,", &[&e.reason],
                )
            }
            E::Observed(e) => {
                self.session(
                    attempt,
                    "UPDATE sessions SET last_observation = ?3 WHERE execution = ?1 AND attempt = ?2",
                    &[&json(e)],
                )?;
                let axes = &e.axes;
                let scheduler = axes
                    .scheduler_state
                    .as_deref()
                    .or_else(|| axes.daliuge_state.as_deref().map(scheduler_state));
                let status = if axes.awaiting_scheduler { "awaiting_scheduler" } else { "running" };
                let or = |new: Option<&str>, old: &Word| new.map_or_else(|| old.clone(), known);
                let after = Facets {
                    status: Word::Borrowed(status),
                    scheduler_state: or(scheduler, &before.scheduler_state),
                    daliuge_state: or(axes.daliuge_state.as_deref(), &before.daliuge_state),
                    output_state: or(axes.output_state.as_deref(), &before.output_state),
                    ..before.clone()
                };
                update!(
                    self,
                    before,
                    after.clone(),
                    {},
                    "status = ?7, control_phase = 'monitoring', monitoring_at = coalesce(monitoring_at, ?6), \
                    scheduler_state = ?8, daliuge_state = ?9, output_state = ?10, scheduler_raw_state = ?11, \
                    scheduler_reason = ?12, last_reconciled_at = ?13,",
                    &[
                        &after.status,
                        &after.scheduler_state,
                        &after.daliuge_state,
                        &after.output_state,
                        &e.observation.raw_state,
                        &e.observation.reason,
                        &micros(e.observation.observed_at),
                    ],
                )
            }
            E::OutputsVerified(_) => update!(
                self,
                before,
                { output_state = "verified" },
                "control_phase = 'output_verification', output_verification_at = ?6,",
                &[],
            ),
            E::Completed(e) => {
                self.end_session(attempt, Some(&e.terminal))?;
                let session = daliuge_end(&e.terminal, "finished");
                let after = Facets { daliuge_state: Word::Borrowed(session), ..before.clone() };
                update!(self, before, after, { status = "completed", scheduler_state = "succeeded" }, "execution_phase = NULL, control_phase = 'terminal', terminal_at = ?6, completed_at = ?6, \
                    terminal_outcome = 'succeeded', daliuge_state = ?7, last_reconciled_at = ?8, last_error = NULL,", &[&session, &micros(e.terminal.observed_at)],
                )
            }
            E::Failed(e) => {
                self.end_session(attempt, e.terminal.as_ref())?;
                let mut after = before.clone();
                if let Some(terminal) = &e.terminal {
                    after.scheduler_state = Word::Borrowed("failed");
                    after.daliuge_state = Word::Borrowed(daliuge_end(terminal, "failed"));
                }
                update!(
                    self,
                    before,
                    after.clone(),
                    { status = "failed" },
                    "execution_phase = NULL, control_phase = 'terminal', terminal_at = ?6, completed_at = ?6, \
                    terminal_outcome = ?7, failure_class = ?8, last_error = ?9, scheduler_state = ?10, daliuge_state = \
                    ?11, last_reconciled_at = coalesce(?12, last_reconciled_at),",
                    &[
                        &outcome(&e.failure_class),
                        &e.failure_class,
                        &e.error,
                        &after.scheduler_state,
                        &after.daliuge_state,
                        &e.terminal.as_ref().map(|terminal| micros(terminal.observed_at)),
                    ],
                )
            }
            E::NotSubmitted(_) => {
                update!(self, before, { status = "not_submitted", submission_state = "not_started" }, "execution_phase = NULL, control_phase = 'terminal', terminal_at = ?6, completed_at = ?6, \
                        terminal_outcome = 'not_submitted',", &[],
                )
            }
            E::CancelRequested(_) => update!(self, before, {}, "cancel_requested = 1,", &[]),
            E::Cancelled(e) => {
                self.end_session(attempt, e.terminal.as_ref())?;
                let mut after = before.clone();
                if after.scheduler_state != "not_submitted" {
                    after.scheduler_state = Word::Borrowed("cancelled");
                }
                if let Some(terminal) = &e.terminal {
                    after.daliuge_state = Word::Borrowed(daliuge_end(terminal, "cancelled"));
                }
                update!(
                    self,
                    before,
                    after.clone(),
                    { status = "cancelled" },
                    "execution_phase = NULL, control_phase = 'terminal', terminal_at = ?6, completed_at = ?6, \
                    terminal_outcome = 'cancelled', failure_class = 'cancelled', scheduler_state = ?7, daliuge_state = \
                    ?8, last_reconciled_at = coalesce(?9, last_reconciled_at),",
                    &[
                        &after.scheduler_state,
                        &after.daliuge_state,
                        &e.terminal.as_ref().map(|terminal| micros(terminal.observed_at)),
                    ],
                )
            }
            E::RetryRequested(e) => {
                self.counts.add("retries", &before.project, "", 1);
                let attempt = e.attempt.max(attempt + 1);
                let after = Facets { attempt, ..before.clone() };
                update!(self, before, after, { status = "retrying", submission_state = "not_started", scheduler_state = "not_submitted", daliuge_state = "not_created", output_state = "not_started" }, "attempt = ?7, execution_phase = NULL, control_phase = 'admission_pending', submission_deadline_at = \
                    NULL, submission_abandoned_at = NULL, scheduler_job_id = NULL, scheduler_raw_state = NULL, \
                    scheduler_reason = NULL, daliuge_session_id = NULL, terminal_outcome = NULL, failure_class = NULL, \
                    cancel_requested = 0, manifest_sha256 = NULL, dataset_count = NULL, source_graph_sha256 = NULL, \
                    patched_graph_sha256 = NULL, physical_graph_sha256 = NULL, started_at = NULL, completed_at = NULL, \
                    job_id = NULL, do_stage = NULL, do_submit = NULL, executing_position = NULL, admission_pending_at = ?6, admitted_at = NULL, \
                    manifest_generated_at = NULL, graph_patched_at = NULL, translated_at = NULL, submission_pending_at = \
                    NULL, submitted_at = NULL, monitoring_at = NULL, output_verification_at = NULL, terminal_at = NULL,", &[&attempt],
                )
            }
        }
    }
}
