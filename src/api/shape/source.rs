//! A source as the API shows it, and whether it is ready to be executed.

use beampipe_projections::sources::Source;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::why::{self, Survey};

/// The source.
pub fn whole(row: &Source, survey: &Survey) -> Value {
    json!({
        "uuid": row.id,
        "project_module": row.project_module,
        "source_identifier": row.source_identifier,
        "enabled": row.enabled,
        "removed": row.removed,
        "created_at": row.created_at,
        "last_checked_at": row.last_checked_at,
        "last_attempted_at": row.last_attempted_at,
        "last_outcome": row.last_outcome,
        "last_error": row.last_error,
        "stale_after_hours": row.stale_after_hours,
        "discovery_signature": row.signature,
        "last_executed_discovery_signature": row.executed_signature,
        "dataset_count": row.dataset_count,
        "sbids": row.sbids,
        // Work on a source is a job with a lease: there is no claim on the source itself to show.
        "discovery_claim_token": null,
        "discovery_claim_expires_at": null,
        "workflow_run_pending": row.pending,
        "workflow_run_pending_at": row.pending_at,
        // Its reservation for an execution, until that ends.
        "workflow_claim_token": reservation(row),
        "workflow_claimed_at": reservation(row).and(row.admitted_at),
        "workflow_claim_expires_at": null,
        "phase": row.phase,
        "why": why::source(row, survey),
    })
}

fn reservation(row: &Source) -> Option<uuid::Uuid> {
    row.admitted_execution_id.filter(|_| row.phase == "executing")
}

/// `GET …/status`: what stands between the source and an execution.
pub fn status(row: &Source, survey: &Survey, now: DateTime<Utc>) -> Value {
    let matches = row.signature.is_some() && row.signature == row.executed_signature;
    let mut blockers: Vec<String> = vec![];
    if row.removed {
        blockers.push("the source was removed".into());
    }
    if !row.enabled {
        blockers.push("the source is disabled".into());
    }
    match (row.last_outcome.as_deref(), &row.signature) {
        (_, Some(_)) => {}
        (None, None) => blockers.push("it has not been discovered yet".into()),
        (Some("no_datasets"), None) => blockers.push("the archive has no datasets of it".into()),
        (Some(outcome), None) => {
            let error = row.last_error.as_deref().unwrap_or("no reason is known");
            blockers.push(format!("its last discovery ended with {outcome}: {error}"));
        }
    }
    if row.phase == "executing" {
        let execution = row.admitted_execution_id.map(|id| id.to_string()).unwrap_or_default();
        blockers.push(format!("execution {execution} of it has not ended"));
    } else if matches {
        blockers.push("its present data were executed already".into());
    }
    if let Some(reason) = &survey.paused {
        blockers.push(format!("admission is paused: {reason}"));
    }
    let pending_age =
        row.pending_at.filter(|_| row.pending).map(|at| (now - at).num_milliseconds().max(0) as f64 / 1000.0);
    json!({
        "uuid": row.id,
        "ready_for_execution": blockers.is_empty() && row.pending,
        "discovery_complete": row.signature.is_some(),
        "workflow_run_pending": row.pending,
        "discovery_signature": row.signature,
        "last_executed_discovery_signature": row.executed_signature,
        "signature_matches_last_execution": matches,
        "blockers": blockers,
        "pending_age_seconds": pending_age,
        "phase": row.phase,
        "why": why::source(row, survey),
    })
}
