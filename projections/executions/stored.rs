//! The rows of executions and their sessions as they lie in the file; what the columns mean is said in `read.rs`.

use std::borrow::Cow;

use uuid::Uuid;

use super::words::LIVE_STATUSES;
use crate::touched::{Touched, Word};

/// What the present batch has touched.
#[derive(Default)]
pub(crate) struct Rows {
    pub(super) executions: Touched<Execution>,
    pub(super) sessions: Touched<Session>,
}

stored! {
    pub(super) struct Execution in "executions" by (id: Uuid);
    once {
        created_position: u64,
        project_module: String,
        archive_name: String,
        sources: String,
        scheduler_name: Word,
        discovery_signature: Option<String>,
        created_at: i64,
        automatic: bool,
        created_by_id: Option<Uuid>,
        profile_id: Uuid,
        profile_revision: u64,
        profile_sha256: String,
        project_config_id: Uuid,
        project_config_version: u64,
        project_spec_sha256: String,
        correlation_id: Uuid,
    }
    changing {
        status: Word,
        execution_phase: Option<String>,
        control_phase: Word,
        submission_state: Word,
        submission_deadline_at: Option<i64>,
        submission_abandoned_at: Option<i64>,
        scheduler_job_id: Option<String>,
        scheduler_state: Word,
        scheduler_raw_state: Option<String>,
        scheduler_reason: Option<String>,
        daliuge_session_id: Option<Uuid>,
        daliuge_state: Word,
        output_state: Word,
        terminal_outcome: Option<Word>,
        failure_class: Option<String>,
        last_error: Option<String>,
        attempt: u32,
        cancel_requested: bool,
        manifest_sha256: Option<String>,
        dataset_count: Option<u64>,
        source_graph_sha256: Option<String>,
        patched_graph_sha256: Option<String>,
        physical_graph_sha256: Option<String>,
        last_reconciled_at: Option<i64>,
        started_at: Option<i64>,
        completed_at: Option<i64>,
        dim_session_status_url: Option<String>,
        dim_graph_status_url: Option<String>,
        slurm_session_dir: Option<String>,
        slurm_login_node: Option<String>,
        slurm_remote_user: Option<String>,
        job_id: Option<Uuid>,
        do_stage: Option<bool>,
        do_submit: Option<bool>,
        executing_position: Option<u64>,
        admission_pending_at: Option<i64>,
        admitted_at: Option<i64>,
        manifest_generated_at: Option<i64>,
        graph_patched_at: Option<i64>,
        translated_at: Option<i64>,
        submission_pending_at: Option<i64>,
        submitted_at: Option<i64>,
        monitoring_at: Option<i64>,
        output_verification_at: Option<i64>,
        terminal_at: Option<i64>,
        last_position: u64,
        last_revision: u64,
        last_event_id: Uuid,
        last_event_type: String,
        last_event_at: i64,
    }
}

stored! {
    pub(super) struct Session in "sessions" by (created_position: u64, attempt: u32);
    once {}
    changing {
        session_id: Uuid,
        backend: String,
        started_at: i64,
        deadline_at: Option<i64>,
        dim_rest_base: Option<String>,
        dim_session_status_url: Option<String>,
        dim_graph_status_url: Option<String>,
        recorded_at: Option<i64>,
        receipt: Option<String>,
        settled_by: Option<String>,
        uncertain_at: Option<i64>,
        uncertain_step: Option<String>,
        uncertain_reason: Option<String>,
        refused_error: Option<String>,
        refused_evidence: Option<String>,
        abandoned_at: Option<i64>,
        abandoned_reason: Option<String>,
        last_observation: Option<String>,
        terminal: Option<String>,
    }
}

impl Execution {
    pub fn is_live(&self) -> bool {
        LIVE_STATUSES.contains(&&*self.status)
    }

    /// Changes the status.
    pub fn is_now(&mut self, status: &'static str) {
        self.status = Cow::Borrowed(status);
    }

    /// Enters a control phase.
    pub fn enters(&mut self, phase: &'static str) {
        self.control_phase = Cow::Borrowed(phase);
    }

    /// Has come to its end.
    pub fn ends(&mut self, status: &'static str, outcome: &'static str, now: i64) {
        self.is_now(status);
        self.enters("terminal");
        self.execution_phase = None;
        self.terminal_at = Some(now);
        self.completed_at = Some(now);
        self.terminal_outcome = Some(Cow::Borrowed(outcome));
    }

    /// Begins the next attempt as if there had been none. What is not of one attempt stays: its error until something is
    /// known better, the addresses of its session for ever.
    pub fn begins_again(&mut self, attempt: u32, now: i64) {
        let before = std::mem::take(self);
        *self = Self {
            id: before.id,
            created_position: before.created_position,
            project_module: before.project_module,
            archive_name: before.archive_name,
            sources: before.sources,
            scheduler_name: before.scheduler_name,
            discovery_signature: before.discovery_signature,
            created_at: before.created_at,
            automatic: before.automatic,
            created_by_id: before.created_by_id,
            profile_id: before.profile_id,
            profile_revision: before.profile_revision,
            profile_sha256: before.profile_sha256,
            project_config_id: before.project_config_id,
            project_config_version: before.project_config_version,
            project_spec_sha256: before.project_spec_sha256,
            correlation_id: before.correlation_id,
            last_error: before.last_error,
            last_reconciled_at: before.last_reconciled_at,
            dim_session_status_url: before.dim_session_status_url,
            dim_graph_status_url: before.dim_graph_status_url,
            slurm_session_dir: before.slurm_session_dir,
            slurm_login_node: before.slurm_login_node,
            slurm_remote_user: before.slurm_remote_user,
            attempt,
            status: Cow::Borrowed("retrying"),
            ..Self::unbegun(now)
        };
    }

    /// The columns of an attempt of which nothing has happened.
    pub fn unbegun(now: i64) -> Self {
        Self {
            status: Cow::Borrowed("pending"),
            control_phase: Cow::Borrowed("admission_pending"),
            admission_pending_at: Some(now),
            submission_state: Cow::Borrowed("not_started"),
            scheduler_state: Cow::Borrowed("not_submitted"),
            daliuge_state: Cow::Borrowed("not_created"),
            output_state: Cow::Borrowed("not_started"),
            attempt: 1,
            ..Self::default()
        }
    }
}
