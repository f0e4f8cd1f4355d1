//! The words that executions are described with, and how one axis is read from another.

use beampipe_domain::execution::Terminal;

/// Every status.
pub const STATUSES: &[&str] = &[
    "pending",
    "running",
    "awaiting_scheduler",
    "not_submitted",
    "completed",
    "failed",
    "retrying",
    "cancelled",
];

/// The statuses that are no end.
pub const LIVE_STATUSES: &[&str] = &["pending", "running", "awaiting_scheduler", "retrying"];

/// Every word of `submission_state`.
pub const SUBMISSION_STATES: &[&str] =
    &["not_started", "preparing", "in_flight", "submitted", "uncertain", "failed"];

/// Where no scheduler speaks for itself, its state mirrors the session's.
pub(super) fn scheduler_state(daliuge_state: &str) -> &'static str {
    match daliuge_state {
        "not_created" => "not_submitted",
        "pristine" | "building" | "deploying" => "pending",
        "running" => "running",
        "finished" => "succeeded",
        "cancelled" => "cancelled",
        "failed" => "failed",
        _ => "unknown",
    }
}

/// The last state of a session in our words; `otherwise` when it is not one of them.
pub(super) fn daliuge_end(terminal: &Terminal, otherwise: &'static str) -> &'static str {
    match terminal.session_state.to_ascii_lowercase().as_str() {
        "finished" => "finished",
        "cancelled" => "cancelled",
        "failed" | "error" => "failed",
        "unknown" => "unknown",
        _ => otherwise,
    }
}

/// How a scheduler saw a failure end: where one had a job of its own, as it says.
pub(super) fn scheduler_end(terminal: &Terminal) -> &'static str {
    match terminal.job.as_ref().map(|job| job.state.as_str()) {
        Some("COMPLETED") => "succeeded",
        Some("TIMEOUT" | "DEADLINE") => "timed_out",
        Some("CANCELLED") => "cancelled",
        Some(_) | None => "failed",
    }
}

/// The outcome of a failure.
pub(super) fn outcome(failure_class: &str) -> &'static str {
    if failure_class == "inconsistent_state" { "inconsistent" } else { "failed" }
}
