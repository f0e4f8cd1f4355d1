//! Reading sources.

use chrono::{DateTime, Duration, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, Window, handle};
use crate::sql::{blob, micros};

row! {
    /// A source as it is now.
    pub struct Source {
        /// The position of its first registration: the key of the newest-first order.
        pub created_position: u64,
        pub id: Uuid,
        pub project_module: String,
        pub source_identifier: String,
        pub enabled: bool,
        pub removed: bool,
        pub created_at: DateTime<Utc>,
        pub stale_after_hours: Option<f64>,
        /// When the archives last answered.
        pub last_checked_at: Option<DateTime<Utc>>,
        /// When they were last asked, or would have been.
        pub last_attempted_at: Option<DateTime<Utc>>,
        /// One of [`crate::sources::OUTCOMES`].
        pub last_outcome: Option<String>,
        pub last_error: Option<String>,
        pub last_duration_ms: Option<u64>,
        /// When a person asked for a discovery that has not been made since.
        pub discovery_requested_at: Option<DateTime<Utc>>,
        /// Of the data that are known; the contract's `discovery_signature`.
        pub signature: Option<String>,
        pub dataset_count: Option<u64>,
        pub sbids: Option<Vec<String>>,
        pub metadata_sha256: Option<String>,
        /// When the signature was first seen.
        pub discovered_at: Option<DateTime<Utc>>,
        /// The contract's `workflow_run_pending`.
        pub pending: bool,
        pub pending_at: Option<DateTime<Utc>>,
        pub admitted_execution_id: Option<Uuid>,
        pub admitted_signature: Option<String>,
        pub admitted_at: Option<DateTime<Utc>>,
        /// `pending`, `retrying`, or how it ended; absent: the execution does not exist yet.
        pub admitted_execution_status: Option<String>,
        /// Of the last execution of it that completed; the contract's `last_executed_discovery_signature`.
        pub executed_signature: Option<String>,
        /// What it was last discovered with.
        pub project_config_id: Option<Uuid>,
        pub project_config_version: Option<u64>,
        /// One of [`crate::sources::PHASES`], or `removed`.
        pub phase: String,
        /// The revision of its stream.
        pub revision: u64,
        pub last_position: u64,
        pub last_event_id: Uuid,
        pub last_event_type: String,
        pub last_event_at: DateTime<Utc>,
    }
}

/// When a source is due to be looked for again.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    pub now: DateTime<Utc>,
    /// For sources without a setting of their own.
    pub default_stale_hours: f64,
    /// How long after a look that failed the next one is due.
    pub retry_minutes: i64,
}

handle! {
    /// Reads sources.
    Sources
}

fn select(rest: &str) -> String {
    let columns = Source::columns();
    format!("SELECT {columns} FROM sources {rest}")
}

fn hours(hours: f64) -> Duration {
    Duration::milliseconds((hours.clamp(0.0, 1e7) * 3_600_000.0) as i64)
}

impl Sources {
    /// The source, whether or not it was removed.
    pub fn get(&self, id: Uuid) -> Result<Option<Source>, ReadModelError> {
        self.0.one(&select("WHERE id = ?1"), [blob(&id)], Source::from_row)
    }

    pub fn by_identifier(&self, project: &str, identifier: &str) -> Result<Option<Source>, ReadModelError> {
        self.get(beampipe_domain::id::source(project, identifier))
    }

    /// Newest first, without the removed ones, of one project if given.
    pub fn list(&self, project: Option<&str>, window: Window) -> Result<Vec<Source>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let wanted = if project.is_some() { "project_module = ?4" } else { "?4 IS ?4" };
        let sql = select(&format!(
            "WHERE created_position < ?1 AND removed = 0 AND {wanted} \
             ORDER BY created_position DESC LIMIT ?2 OFFSET ?3"
        ));
        self.0.all(&sql, (before, limit, offset, project), Source::from_row)
    }

    /// How many are registered and not removed.
    pub fn count(&self, project: Option<&str>) -> Result<u64, ReadModelError> {
        self.0.count("phase", project, None)
    }

    /// Enabled sources that wait to be run, the longest waiting first.
    pub fn pending(&self, project: &str, limit: u64) -> Result<Vec<Source>, ReadModelError> {
        let sql = select(
            "WHERE project_module = ?1 AND pending = 1 AND enabled = 1 AND removed = 0 \
             ORDER BY pending_at, created_position LIMIT ?2",
        );
        self.0.all(&sql, (project, clamp(limit)), Source::from_row)
    }

    /// Enabled sources whose look is due: those that a person asked for, then those never looked for, then
    /// those that are stale or whose last look failed, each the longest waiting first.
    pub fn due_for_discovery(
        &self,
        project: &str,
        staleness: Staleness,
        limit: u64,
    ) -> Result<Vec<Source>, ReadModelError> {
        let Staleness { now, default_stale_hours, retry_minutes } = staleness;
        let stale = micros(now - hours(default_stale_hours));
        let failed = micros(now - Duration::minutes(retry_minutes));
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut due: Vec<Source> = vec![];
        // Each of these is a range of one index: what is not due is not looked at.
        for (wanted, outcome, until) in [
            (REQUESTED, "", micros(now)),
            (NEVER_SEEN, "", micros(now)),
            (OWN_STALENESS, "", micros(now)),
            (BY_OUTCOME, "changed", stale),
            (BY_OUTCOME, "unchanged", stale),
            (BY_OUTCOME, "no_datasets", stale),
            (BY_OUTCOME, "error", failed),
            (BY_OUTCOME, "timeout", failed),
            (BY_OUTCOME, "tap_skipped", failed),
        ] {
            if due.len() >= limit {
                break;
            }
            // Every text uses every parameter, whether or not it depends on it.
            let sql = select(&format!(
                "WHERE project_module = ?1 AND ?2 IS ?2 AND ?4 IS ?4 AND ?5 IS ?5 AND enabled = 1 AND removed = 0 \
                 AND {wanted} LIMIT ?3"
            ));
            let most = i64::try_from(limit).unwrap_or(i64::MAX);
            for source in self.0.all(&sql, (project, until, most, outcome, failed), Source::from_row)? {
                if due.len() < limit && due.iter().all(|known| known.id != source.id) {
                    due.push(source);
                }
            }
        }
        Ok(due)
    }

    /// Sources that are reserved for an execution that does not exist yet: the to-do list of admission.
    pub fn halves(&self, limit: u64) -> Result<Vec<Source>, ReadModelError> {
        let sql = select(
            "WHERE admitted_execution_id IS NOT NULL AND admitted_execution_status IS NULL \
             ORDER BY admitted_execution_id, created_position LIMIT ?1",
        );
        self.0.all(&sql, [clamp(limit)], Source::from_row)
    }
}

const REQUESTED: &str = "discovery_requested_at <= ?2 ORDER BY discovery_requested_at";

const NEVER_SEEN: &str =
    "stale_after_hours IS NULL AND last_outcome IS NULL ORDER BY last_attempted_at, created_position";

const BY_OUTCOME: &str =
    "stale_after_hours IS NULL AND last_outcome = ?4 AND last_attempted_at <= ?2 ORDER BY last_attempted_at";

const OWN_STALENESS: &str = "stale_after_hours IS NOT NULL \
     AND (last_attempted_at IS NULL OR last_attempted_at <= CASE \
          WHEN last_outcome IN ('error', 'timeout', 'tap_skipped') THEN ?5 \
          ELSE ?2 - CAST(stale_after_hours * 3600000000.0 AS INTEGER) END) \
     ORDER BY last_attempted_at";

fn clamp(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
