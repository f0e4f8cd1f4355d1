//! The **run record** of an execution: what was asked for, and what the backend was seen to do with it.
//!
//! It is about the latest attempt that was announced to a backend. A terminal part was written once and never changes.
//! Rounds of polls are presence while a session lives: null when no worker that this process hears of watches it.

use beampipe_domain::execution::{Observed, Receipt, Terminal};
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
            record["slurm"] = slurm(session);
            record["slurm_poll"] = json!(round);
        }
        _ if session.backend.contains("slurm") => {
            record["slurm"] = slurm(session);
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

fn slurm(session: &Session) -> Value {
    let (job, submitted_at, node, user, directory) = match &session.receipt {
        Some(Receipt::Slurm { slurm_job_id, submitted_at, login_node, remote_user, session_dir }) => (
            Some(slurm_job_id.as_str()),
            Some(*submitted_at),
            Some(login_node.as_str()),
            Some(remote_user.as_str()),
            Some(session_dir.as_str()),
        ),
        _ => (None, None, None, None, None),
    };
    json!({
        "session_id": session.session_id,
        "slurm_job_id": job,
        "composite_scheduler_job_id": job.zip(node).map(|(job, node)| format!("{node}:{job}")),
        "submitted_at": submitted_at,
        "login_node": node,
        "remote_user": user,
        "paths": { "session_dir": directory },
        "last_observation": session.last_observation.as_ref().map(|seen| json!({
            "state": seen.axes.scheduler_state,
            "source": seen.observation.source,
            "observed_at": seen.observation.observed_at,
            "exit_code": null,
            "raw": seen.observation.raw_state,
        })),
        "terminal": session.terminal.as_ref().map(|end| json!({
            "session_id": end.session_id,
            "state": end.session_state,
            "observed_at": end.observed_at,
            "reason": end.error,
            "diagnostics": null,
            "ledger_status": ledger_status(end),
        })),
    })
}
