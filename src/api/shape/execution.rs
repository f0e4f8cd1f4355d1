//! An execution as the API shows it: whole, as a status, as a summary.

use beampipe_projections::executions::{Artifact, Execution, Session};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::run_record;
use super::why::{self, Around};
use crate::api::readiness::Poll;

/// What is shown beside the row.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Every attempt that was announced, oldest first.
    pub sessions: Vec<Session>,
    pub job: Option<beampipe_projections::jobs::Job>,
    pub poll: Option<Poll>,
    pub capabilities: Option<Vec<String>>,
    pub no_room: Option<String>,
    pub manifest: Option<Value>,
    /// The project's wish to have outputs verified: whether, and by which schema.
    pub verification: (bool, Option<String>),
}

impl Beside {
    fn around(&self) -> Around<'_> {
        Around {
            job: self.job.as_ref(),
            session: self.sessions.last(),
            poll: self.poll.as_ref(),
            capabilities: self.capabilities.as_deref(),
            no_room: self.no_room.as_deref(),
        }
    }
}

/// The whole execution.
pub fn whole(row: &Execution, beside: &Beside) -> Value {
    let sources: Vec<Value> = row
        .sources
        .iter()
        .map(|source| {
            json!({
                "source_identifier": source.source_identifier,
                "sbids": source.sbids,
                "source_id": source.source_id,
                "discovery_signature": source.signature,
            })
        })
        .collect();
    let (verify, schema) = &beside.verification;
    // In parts: the macro's recursion is bounded.
    let identity = json!({
        "uuid": row.id,
        "project_module": row.project_module,
        "archive_name": row.archive_name,
        "sources": sources,
        "status": row.status,
        "execution_phase": row.execution_phase,
        "control_phase": row.control_phase,
        "submission_state": row.submission_state,
        "submission_deadline_at": row.submission_deadline_at,
        "submission_abandoned_at": row.submission_abandoned_at,
        "scheduler_name": row.scheduler_name,
        "scheduler_job_id": row.scheduler_job_id,
        "scheduler_state": row.scheduler_state,
        "scheduler_raw_state": row.scheduler_raw_state,
        "scheduler_reason": row.scheduler_reason,
        "daliuge_session_id": row.daliuge_session_id,
        "daliuge_state": row.daliuge_state,
        "output_state": row.output_state,
    });
    let progress = json!({
        "output_verification_required": verify,
        "output_verification_policy": { "required": verify, "inventory_schema": schema },
        "terminal_outcome": row.terminal_outcome,
        "failure_class": row.failure_class,
        "last_error": row.last_error,
        "retry_count": row.retry_count(),
        "attempt": row.attempt,
        "cancel_requested": row.cancel_requested,
        "discovery_signature": row.discovery_signature,
        "manifest_sha256": row.manifest_sha256,
        "dataset_count": row.dataset_count,
        "source_graph_sha256": row.source_graph_sha256,
        "patched_graph_sha256": row.patched_graph_sha256,
        "physical_graph_sha256": row.physical_graph_sha256,
        "phase_timestamps": row.phase_timestamps(),
        "last_reconciled_at": row.last_reconciled_at,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        "created_by_id": row.created_by_id,
        "automatic": row.automatic,
        "deployment_profile_id": row.profile_id,
        "deployment_profile_revision": row.profile_revision,
        "deployment_profile_name": row.profile_spec.as_ref().map(|spec| &spec.name),
        "project_config_id": row.project_config_id,
        "project_config_version": row.project_config_version,
        "project_spec_sha256": row.project_spec_sha256,
    });
    let outside = json!({
        "workflow_manifest": beside.manifest,
        "beampipe_run_record": run_record::shape(row, beside.sessions.last(), beside.poll.as_ref()),
        "remote_session_dir": row.slurm_session_dir,
        "dim_session_status_url": row.dim_session_status_url,
        "dim_graph_status_url": row.dim_graph_status_url,
        "slurm_session_dir": row.slurm_session_dir,
        "slurm_login_node": row.slurm_login_node,
        "slurm_remote_user": row.slurm_remote_user,
        "active_job_id": active_job(row),
        "correlation_id": row.correlation_id,
        "last_event_type": row.last_event_type,
        "last_event_at": row.last_event_at,
        "why": why::execution(row, beside.around()),
    });
    let mut whole = serde_json::Map::new();
    for part in [identity, progress, outside] {
        if let Value::Object(part) = part {
            whole.extend(part);
        }
    }
    Value::Object(whole)
}

/// The job that works on it, while it has not ended.
pub fn active_job(row: &Execution) -> Option<uuid::Uuid> {
    row.job_id.filter(|_| !row.is_terminal())
}

/// `GET …/status`.
pub fn status(row: &Execution, beside: &Beside, now: DateTime<Utc>) -> Value {
    let slurm = row.scheduler_name == "slurm";
    let last_seen = beside.sessions.last().and_then(|session| session.last_observation.as_ref());
    let until = row.completed_at.unwrap_or(now);
    let duration = row.started_at.map(|started| (until - started).num_milliseconds().max(0) as f64 / 1000.0);
    json!({
        "uuid": row.id,
        "status": row.status,
        "execution_phase": row.execution_phase,
        "control_phase": row.control_phase,
        "submission_state": row.submission_state,
        "scheduler_name": row.scheduler_name,
        "scheduler_job_id": row.scheduler_job_id,
        "scheduler_state": row.scheduler_state,
        "scheduler_raw_state": row.scheduler_raw_state,
        "scheduler_reason": row.scheduler_reason,
        "daliuge_session_id": row.daliuge_session_id,
        "daliuge_state": row.daliuge_state,
        "output_state": row.output_state,
        "terminal_outcome": row.terminal_outcome,
        "failure_class": row.failure_class,
        "last_error": row.last_error,
        "retry_count": row.retry_count(),
        "started_at": row.started_at,
        "completed_at": row.completed_at,
        "slurm_state": slurm.then_some(&row.scheduler_raw_state),
        "dim_state": (!slurm).then_some(&row.daliuge_state),
        "last_observation_at": last_seen.map(|seen| seen.observation.observed_at).or(row.last_reconciled_at),
        "duration_seconds": duration,
        "why": why::execution(row, beside.around()),
    })
}

/// `GET …/summary`.
pub fn summary(row: &Execution) -> Value {
    let identifiers: Vec<&str> = row.sources.iter().map(|source| source.source_identifier.as_str()).collect();
    json!({
        "uuid": row.id,
        "project_module": row.project_module,
        "archive_name": row.archive_name,
        "status": row.status,
        "requested_source_count": row.sources.len(),
        "requested_source_identifiers": identifiers,
        "scheduler_name": row.scheduler_name,
        "scheduler_job_id": row.scheduler_job_id,
        "daliuge_session_id": row.daliuge_session_id,
        "control_phase": row.control_phase,
        "scheduler_state": row.scheduler_state,
        "daliuge_state": row.daliuge_state,
        "terminal_outcome": row.terminal_outcome,
        "last_error": row.last_error,
    })
}

/// An artifact in a list.
pub fn artifact(row: &Artifact) -> Value {
    json!({
        "uuid": row.id(),
        "execution_id": row.execution,
        "kind": row.kind,
        "storage_kind": "artifact_store",
        "media_type": row.media_type,
        "sha256": row.sha256,
        "size_bytes": row.size_bytes,
        "producer_phase": row.producer_phase,
        "uri": format!("/api/v2/executions/{}/artifacts/{}", row.execution, row.sha256),
        "inline_json": null,
        "metadata": { "attempt": row.attempt },
        "created_at": row.created_at,
    })
}
