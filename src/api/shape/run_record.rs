//! The **run record** of an execution: what was asked for, and what the backend was seen to do with it.
//!
//! It is about the latest attempt that was announced to a backend. A terminal part was written once and never changes.
//! Rounds of polls are presence while a session lives: null when no worker that this process hears of watches it.

use beampipe_domain::execution::{JobFacts, Observed, Receipt, Terminal};
use beampipe_projections::executions::{Execution, Session};
use serde_json::{Value, json};

use crate::api::readiness::Poll;

/// The record; `session` is the latest attempt that was announced.
pub fn shape(row: &Execution, session: Option<&Session>, poll: Option<&Poll>) -> Value {
    let identifiers: Vec<&str> = row.sources.iter().map(|source| source.source_identifier.as_str()).collect();
    let sources: Vec<Value> = row
        .sources
        .iter()
        .map(|source| json!({ "source_identifier": source.source_identifier, "sbids": source.sbids }))
        .collect();
    let mut record = json!({
        "requested_sources": {
            "count": row.sources.len(),
            "source_identifiers": identifiers,
            "sources": sources,
        },
    });
    let Some(session) = session else { return record };
    let round = poll.map(|poll| {
        json!({
            "round": poll.round,
            "started_at": poll.started_at,
            "last_poll_at": poll.last_poll_at,
            "next_poll_at": poll.next_poll_at,
            "trouble": poll.trouble,
            "note": poll.note,
        })
    });
    // What was counted until the end is kept with it.
    let round = round.or_else(|| {
        let end = session.terminal.as_ref()?;
        Some(
            json!({ "round": end.polls, "started_at": session.recorded_at, "last_poll_at": end.observed_at }),
        )
    });
    match &session.receipt {
        Some(Receipt::Slurm { .. }) => {
            record["slurm"] = slurm(row, session);
            record["slurm_poll"] = json!(round);
        }
        _ if session.backend.contains("slurm") => {
            record["slurm"] = slurm(row, session);
            record["slurm_poll"] = json!(round);
        }
        _ => {
            record["dim"] = dim(session);
            record["dim_poll"] = json!(round);
        }
    }
    record["scheduler"] = json!({
        "name": row.scheduler_name,
        "job_id": row.scheduler_job_id,
        "state": row.scheduler_state,
        "raw_state": row.scheduler_raw_state,
        "reason": row.scheduler_reason,
    });
    record["submission"] = json!({
        "attempt": session.attempt,
        "session_id": session.session_id,
        "backend": session.backend,
        "started_at": session.started_at,
        "deadline_at": session.deadline_at,
        "recorded_at": session.recorded_at,
        "settled_by": session.settled_by,
        "uncertain": session.uncertain_at.map(|at| json!({
            "at": at,
            "step": session.uncertain_step,
            "reason": session.uncertain_reason,
        })),
        "refused": session.refused_error.as_ref().map(|error| json!({
            "error": error,
            "evidence": session.refused_evidence,
        })),
        "abandoned": session.abandoned_at.map(|at| json!({ "at": at, "reason": session.abandoned_reason })),
    });
    record
}

fn dim(session: &Session) -> Value {
    let (deployed_at, base, verify_ssl, status_url, graph_url) = match &session.receipt {
        Some(Receipt::Dim {
            deployed_at,
            dim_rest_base,
            verify_ssl,
            session_status_url,
            graph_status_url,
        }) => (
            Some(*deployed_at),
            Some(dim_rest_base.as_str()),
            Some(*verify_ssl),
            Some(session_status_url.as_str()),
            Some(graph_status_url.as_str()),
        ),
        Some(Receipt::Simulated { deployed_at }) => (Some(*deployed_at), None, None, None, None),
        _ => (None, None, None, None, None),
    };
    let status_url = status_url.or(session.dim_session_status_url.as_deref());
    let graph_url = graph_url.or(session.dim_graph_status_url.as_deref());
    json!({
        "session_id": session.session_id,
        "deploy": {
            "deployed_at": deployed_at,
            "dim_rest_base": base.or(session.dim_rest_base.as_deref()),
            "verify_ssl": verify_ssl,
            "operator_urls": {
                "session_status": status_url,
                "graph_status": graph_url,
            },
        },
        "last_observation": session.last_observation.as_ref().map(|seen| json!({
            "session_state": session_state(seen),
            "observed_at": seen.observation.observed_at,
            "raw": seen.observation.raw_state,
            "reason": seen.observation.reason,
            "previous_polls": seen.observation.previous_polls,
        })),
        "terminal": session.terminal.as_ref().map(|end| json!({
            "session_id": end.session_id,
            "session_state": end.session_state,
            "observed_at": end.observed_at,
            "error": end.error,
            "error_drops_count": end.error_drops_count,
            "error_drops": end.error_drops,
            "polls": end.polls,
            "ledger_status": ledger_status(end),
        })),
    })
}

/// What an execution's status became through this end.
fn ledger_status(end: &Terminal) -> &'static str {
    match end.session_state.to_ascii_lowercase().as_str() {
        "finished" | "succeeded" | "completed" => "completed",
        "cancelled" => "cancelled",
        _ => "failed",
    }
}

fn session_state(seen: &Observed) -> Option<&str> {
    seen.axes.daliuge_state.as_deref().or(seen.observation.raw_state.as_deref())
}

fn slurm(row: &Execution, session: &Session) -> Value {
    let receipt = match &session.receipt {
        Some(Receipt::Slurm { slurm_job_id, submitted_at, cluster, .. }) => {
            Some((slurm_job_id, *submitted_at, cluster.as_ref()))
        }
        _ => None,
    };
    let warnings = match &session.receipt {
        Some(Receipt::Slurm { warnings, .. }) => warnings.as_slice(),
        _ => &[],
    };
    let (job, submitted_at) = (receipt.map(|(job, ..)| job), receipt.map(|(_, at, _)| at));
    // An id is only unique on its cluster; where the site does not name it, its login node stands for it.
    let place = receipt.and_then(|(.., cluster)| cluster).or(row.slurm_login_node.as_ref());
    json!({
        "session_id": session.session_id,
        "slurm_job_id": job,
        "composite_scheduler_job_id": job.zip(place).map(|(job, place)| format!("{place}:{job}")),
        "submitted_at": submitted_at,
        "warnings": warnings,
        "cluster": receipt.and_then(|(.., cluster)| cluster),
        "login_node": row.slurm_login_node,
        "remote_user": row.slurm_remote_user,
        "paths": { "session_dir": row.slurm_session_dir },
        "last_observation": session.last_observation.as_ref().map(|seen| json!({
            "state": seen.axes.scheduler_state,
            "source": seen.observation.source,
            "observed_at": seen.observation.observed_at,
            "exit_code": seen.observation.job.as_deref().and_then(exit_code),
            "raw": seen.observation.raw_state,
            "reason": seen.observation.reason,
            "job": seen.observation.job,
        })),
        "terminal": session.terminal.as_ref().map(|end| json!({
            "session_id": end.session_id,
            "state": end.job.as_ref().map_or(end.session_state.as_str(), |job| job.state.as_str()),
            "session_state": end.session_state,
            "observed_at": end.observed_at,
            "reason": end.error,
            "exit_code": end.job.as_deref().and_then(exit_code),
            "diagnostics": end.job,
            "error_drops_count": end.error_drops_count,
            "error_drops": end.error_drops,
            "polls": end.polls,
            "ledger_status": row.status,
        })),
    })
}

/// As Slurm prints it: code and signal.
fn exit_code(job: &JobFacts) -> Option<String> {
    (job.exit_code.is_some() || job.signal.is_some())
        .then(|| format!("{}:{}", job.exit_code.unwrap_or(0), job.signal.unwrap_or(0)))
}
