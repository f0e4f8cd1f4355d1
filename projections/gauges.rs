//! The numbers that `/metrics` shows, as they were after the last commit. Taking them touches no SQLite.
//!
//! Maps have an entry for every value of a closed set, zeros included. Times are given, not ages: what time it is, is the
//! scraper's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

/// Everything, one part for each read model; taking a copy is cheap.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    pub executions: Arc<ExecutionGauges>,
    pub sources: Arc<SourceGauges>,
    pub jobs: Arc<JobGauges>,
    pub workers: Arc<WorkerGauges>,
    pub dependencies: Arc<DependencyGauges>,
    pub projects: Arc<ProjectGauges>,
    pub accounts: Arc<AccountGauges>,
    pub alerts: Arc<AlertGauges>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecutionGauges {
    /// By status, as they are now.
    pub by_status: BTreeMap<String, u64>,
    /// By project and status, as they are now.
    pub by_project_status: BTreeMap<(String, String), u64>,
    /// By project and status, how many ever entered it: never decreases.
    pub entered: BTreeMap<(String, String), u64>,
    /// By axis (`submission`, `scheduler`, `daliuge`, `output`) and state, as they are now.
    pub by_external_state: BTreeMap<(String, String), u64>,
    /// For each status that is no end: when the oldest that has it was created.
    pub oldest_active_created_at: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Not ended, by the name of the scheduler.
    pub in_flight_by_scheduler: BTreeMap<String, u64>,
    /// Not ended, by project.
    pub in_flight_by_project: BTreeMap<String, u64>,
    /// Not ended, by profile id.
    pub in_flight_by_profile: BTreeMap<String, u64>,
    /// Not ended.
    pub in_flight: u64,
    /// Retries that were ever asked for, by project.
    pub retries: BTreeMap<String, u64>,
    /// Executions that admission ever made, by project.
    pub admitted: BTreeMap<String, u64>,
    /// Ends, by project and status.
    pub terminal: BTreeMap<(String, String), u64>,
    /// Whose hand-over's answer was lost and is not settled.
    pub reconciliation_risk: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceGauges {
    /// Registered and not removed.
    pub registered: u64,
    /// By project and phase; see [`crate::sources::PHASES`].
    pub by_phase: BTreeMap<(String, String), u64>,
    /// Waiting to be run, by project.
    pub pending: BTreeMap<String, u64>,
    /// Since when the one that has waited longest waits, by project.
    pub oldest_pending_at: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Ends of discoveries, by project and outcome; see [`crate::sources::OUTCOMES`].
    pub discoveries: BTreeMap<(String, String), u64>,
    /// Reservations for executions, by project.
    pub admitted: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobGauges {
    /// By kind and status, as they are now.
    pub by_kind_status: BTreeMap<(String, String), u64>,
    /// By kind and status, how often a job entered it: never decreases.
    pub entered: BTreeMap<(String, String), u64>,
    /// Queued, whether due or not.
    pub queue_depth: u64,
    /// Claimed.
    pub running: u64,
    pub dead: u64,
    /// Queued, by kind.
    pub queued: BTreeMap<String, u64>,
    /// When the first of the queued is or was due, by kind.
    pub oldest_due_at: BTreeMap<String, Option<DateTime<Utc>>>,
    /// Claimed, by the pool of the claimant.
    pub leases_by_pool: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerGauges {
    /// By pool and status (`active`, `draining`).
    pub by_pool_status: BTreeMap<(String, String), u64>,
    pub active: u64,
    pub draining: u64,
    /// How many were ever lost.
    pub lost: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DependencyGauges {
    pub up: BTreeMap<String, bool>,
    /// Since when it is as it is.
    pub since: BTreeMap<String, DateTime<Utc>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProjectGauges {
    /// Projects with a configuration, and whether each is paused.
    pub paused: BTreeMap<String, bool>,
    /// Whether all admission is paused.
    pub all_paused: bool,
    pub profiles: u64,
    /// By the name of a deployment profile, whether nothing is admitted to it.
    pub paused_profiles: BTreeMap<String, bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct AccountGauges {
    pub accounts: u64,
    pub api_keys: u64,
    /// Neither closed nor replaced; some may have expired.
    pub open_sessions: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertGauges {
    /// By severity, as they are now.
    pub firing: BTreeMap<String, u64>,
    /// By kind of channel and end (`sent`, `failed`), how many deliveries ever ended so.
    pub deliveries: BTreeMap<(String, String), u64>,
}
