//! What a rule watches.

use serde::{Deserialize, Serialize};

use crate::job;

words! {
    /// The end of an execution.
    #[derive(Default)]
    pub enum Ending {
        #[default] Failed = "failed",
        Completed = "completed",
        Cancelled = "cancelled",
        NotSubmitted = "not_submitted",
    }
}

/// What a rule watches. The defaults of the first seven kinds are those of earlier releases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Trigger {
    /// An execution ended in one of these ways.
    ExecutionTerminal {
        #[serde(default = "every_ending")]
        statuses: Vec<Ending>,
    },
    /// The data of sources changed.
    DiscoveryChanged {},
    /// So many sources wait to be executed.
    PendingBacklog {
        #[serde(default = "backlog")]
        threshold: u64,
    },
    /// A source has waited for so long.
    PendingStale {
        #[serde(default = "six_hours")]
        max_age_seconds: u64,
    },
    /// No discovery ended for so long, though there are sources to look at.
    DiscoveryStall {
        #[serde(default = "two_hours")]
        window_minutes: u64,
    },
    /// Something that work needs is away. `postgres` is the log, whatever its engine.
    DependencyDown {
        #[serde(default = "the_log")]
        dependency: String,
    },
    /// What happened since the last summary, at every multiple of the window since 1970-01-01 00:00 UTC.
    DailySummary {
        #[serde(default = "a_day")]
        window_hours: u64,
    },
    /// Nothing has happened to a live execution for so long.
    ExecutionStuck {
        #[serde(default = "six_hours")]
        max_age_seconds: u64,
    },
    /// A job that could run has waited for so long.
    QueueAge {
        #[serde(default = "a_quarter")]
        max_age_seconds: u64,
        /// Absent: every kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job_kind: Option<job::Kind>,
    },
    /// Whether a hand-over reached its backend is not known for so long.
    SubmissionUncertain {
        #[serde(default = "five_minutes")]
        max_age_seconds: u64,
    },
    /// A worker fell silent.
    WorkerLost {},
    /// A read model is so far behind the log.
    ProjectionLag {
        #[serde(default = "a_minute")]
        max_lag_seconds: u64,
    },
    /// Of the executions that ended within a window, so many failed.
    ErrorRate {
        #[serde(default = "an_hour")]
        window_minutes: u64,
        /// From 0 to 1.
        #[serde(default = "half")]
        ratio: f64,
        /// Fewer ends than these say nothing.
        #[serde(default = "ten")]
        min_ended: u64,
    },
    /// A condition over a project's counts, in CEL; see [`expression`](crate::alerting::expression).
    Expression {
        #[serde(default)]
        expression: String,
    },
    /// Always holds: whoever does not hear of it any more knows that nobody is told of anything.
    Heartbeat {},
}

fn every_ending() -> Vec<Ending> {
    Ending::ALL.to_vec()
}

fn backlog() -> u64 {
    50
}

fn six_hours() -> u64 {
    21_600
}

fn two_hours() -> u64 {
    120
}

fn the_log() -> String {
    "postgres".into()
}

fn a_day() -> u64 {
    24
}

fn a_quarter() -> u64 {
    900
}

fn five_minutes() -> u64 {
    300
}

fn a_minute() -> u64 {
    60
}

fn an_hour() -> u64 {
    60
}

fn half() -> f64 {
    0.5
}

fn ten() -> u64 {
    10
}

impl Default for Trigger {
    fn default() -> Self {
        Self::DiscoveryChanged {}
    }
}

impl Trigger {
    /// Every kind.
    pub const KINDS: &'static [&'static str] = &[
        "execution_terminal",
        "discovery_changed",
        "pending_backlog",
        "pending_stale",
        "discovery_stall",
        "dependency_down",
        "daily_summary",
        "execution_stuck",
        "queue_age",
        "submission_uncertain",
        "worker_lost",
        "projection_lag",
        "error_rate",
        "expression",
        "heartbeat",
    ];

    /// The kind, as in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ExecutionTerminal { .. } => "execution_terminal",
            Self::DiscoveryChanged {} => "discovery_changed",
            Self::PendingBacklog { .. } => "pending_backlog",
            Self::PendingStale { .. } => "pending_stale",
            Self::DiscoveryStall { .. } => "discovery_stall",
            Self::DependencyDown { .. } => "dependency_down",
            Self::DailySummary { .. } => "daily_summary",
            Self::ExecutionStuck { .. } => "execution_stuck",
            Self::QueueAge { .. } => "queue_age",
            Self::SubmissionUncertain { .. } => "submission_uncertain",
            Self::WorkerLost {} => "worker_lost",
            Self::ProjectionLag { .. } => "projection_lag",
            Self::ErrorRate { .. } => "error_rate",
            Self::Expression { .. } => "expression",
            Self::Heartbeat {} => "heartbeat",
        }
    }

    /// Whether it tells of something that happened, which is never resolved, and not of a condition that lasts.
    pub fn is_occurrence(&self) -> bool {
        matches!(
            self,
            Self::ExecutionTerminal { .. }
                | Self::DiscoveryChanged {}
                | Self::DailySummary { .. }
                | Self::WorkerLost {}
        )
    }

    /// Whether it watches the installation, and a project makes no difference to it.
    pub fn is_of_the_installation(&self) -> bool {
        matches!(
            self,
            Self::DependencyDown { .. }
                | Self::QueueAge { .. }
                | Self::WorkerLost {}
                | Self::ProjectionLag { .. }
                | Self::Heartbeat {}
        )
    }
}
