//! Reading executions.

use std::collections::BTreeMap;

use beampipe_domain::execution::{Observed, Receipt, RequestedSource, Terminal};
use beampipe_domain::{id, profile};
use chrono::{DateTime, Utc};
use rusqlite::named_params;
use uuid::Uuid;

use crate::reader::{ReadModelError, Window, handle};
use crate::sql::blob;

row! {
    /// An execution as it is now.
    pub struct Execution {
        /// The position of its creation: the key of the newest-first order.
        pub created_position: u64,
        pub id: Uuid,
        pub project_module: String,
        pub archive_name: String,
        pub sources: Vec<RequestedSource>,
        pub status: String,
        pub execution_phase: Option<String>,
        pub control_phase: String,
        pub submission_state: String,
        pub submission_deadline_at: Option<DateTime<Utc>>,
        pub submission_abandoned_at: Option<DateTime<Utc>>,
        pub scheduler_name: String,
        pub scheduler_job_id: Option<String>,
        pub scheduler_state: String,
        pub scheduler_raw_state: Option<String>,
        pub scheduler_reason: Option<String>,
        pub daliuge_session_id: Option<Uuid>,
        pub daliuge_state: String,
        pub output_state: String,
        pub terminal_outcome: Option<String>,
        pub failure_class: Option<String>,
        pub last_error: Option<String>,
        /// Counts from 1.
        pub attempt: u32,
        pub cancel_requested: bool,
        pub discovery_signature: Option<String>,
        pub manifest_sha256: Option<String>,
        pub dataset_count: Option<u64>,
        pub source_graph_sha256: Option<String>,
        pub patched_graph_sha256: Option<String>,
        pub physical_graph_sha256: Option<String>,
        /// The last look at the backend that found a change.
        pub last_reconciled_at: Option<DateTime<Utc>>,
        pub created_at: DateTime<Utc>,
        /// When the present attempt was asked for.
        pub started_at: Option<DateTime<Utc>>,
        /// Present exactly when it has ended.
        pub completed_at: Option<DateTime<Utc>>,
        /// Whether admission made it, and not a person.
        pub automatic: bool,
        pub created_by_id: Option<Uuid>,
        pub profile_id: Uuid,
        pub profile_revision: u64,
        pub profile_sha256: String,
        /// The profile as it was pinned.
        pub profile_spec: Option<profile::Spec>,
        pub project_config_id: Uuid,
        pub project_config_version: u64,
        pub project_spec_sha256: String,
        pub dim_session_status_url: Option<String>,
        pub dim_graph_status_url: Option<String>,
        pub slurm_session_dir: Option<String>,
        pub slurm_login_node: Option<String>,
        pub slurm_remote_user: Option<String>,
        /// The job that works on the present attempt, and its flags.
        pub job_id: Option<Uuid>,
        pub do_stage: Option<bool>,
        pub do_submit: Option<bool>,
        pub admission_pending_at: Option<DateTime<Utc>>,
        pub admitted_at: Option<DateTime<Utc>>,
        pub manifest_generated_at: Option<DateTime<Utc>>,
        pub graph_patched_at: Option<DateTime<Utc>>,
        pub translated_at: Option<DateTime<Utc>>,
        pub submission_pending_at: Option<DateTime<Utc>>,
        pub submitted_at: Option<DateTime<Utc>>,
        pub monitoring_at: Option<DateTime<Utc>>,
        pub output_verification_at: Option<DateTime<Utc>>,
        pub terminal_at: Option<DateTime<Utc>>,
        /// Of the event that created it.
        pub correlation_id: Uuid,
        pub last_position: u64,
        /// The revision of its stream.
        pub last_revision: u64,
        pub last_event_id: Uuid,
        pub last_event_type: String,
        pub last_event_at: DateTime<Utc>,
    }
}

impl Execution {
    pub fn retry_count(&self) -> u32 {
        self.attempt.saturating_sub(1)
    }

    pub fn is_terminal(&self) -> bool {
        self.completed_at.is_some()
    }

    /// When each control phase of the present attempt was entered.
    pub fn phase_timestamps(&self) -> BTreeMap<&'static str, DateTime<Utc>> {
        [
            ("admission_pending", self.admission_pending_at),
            ("admitted", self.admitted_at),
            ("manifest_generated", self.manifest_generated_at),
            ("graph_patched", self.graph_patched_at),
            ("translated", self.translated_at),
            ("submission_pending", self.submission_pending_at),
            ("submitted", self.submitted_at),
            ("monitoring", self.monitoring_at),
            ("output_verification", self.output_verification_at),
            ("terminal", self.terminal_at),
        ]
        .into_iter()
        .filter_map(|(phase, at)| Some((phase, at?)))
        .collect()
    }
}

row! {
    /// A place in the line for a deployment profile.
    pub struct Place {
        pub profile_id: Uuid,
        /// Of the `execution.execute_started` of the present attempt.
        pub executing_position: u64,
        /// What is only staged needs no room.
        pub do_submit: bool,
    }
}

row! {
    /// One attempt that was announced to a backend: what the run record is made of.
    pub struct Session {
        pub execution: Uuid,
        pub attempt: u32,
        pub session_id: Uuid,
        pub backend: String,
        pub started_at: DateTime<Utc>,
        pub deadline_at: Option<DateTime<Utc>>,
        pub dim_rest_base: Option<String>,
        pub dim_session_status_url: Option<String>,
        pub dim_graph_status_url: Option<String>,
        pub recorded_at: Option<DateTime<Utc>>,
        pub receipt: Option<Receipt>,
        /// How a lost answer was found out.
        pub settled_by: Option<String>,
        pub uncertain_at: Option<DateTime<Utc>>,
        pub uncertain_step: Option<String>,
        pub uncertain_reason: Option<String>,
        pub refused_error: Option<String>,
        pub refused_evidence: Option<String>,
        pub abandoned_at: Option<DateTime<Utc>>,
        pub abandoned_reason: Option<String>,
        pub last_observation: Option<Observed>,
        /// Written once.
        pub terminal: Option<Terminal>,
    }
}

row! {
    /// Bytes in the artifact store that an execution made.
    pub struct Artifact {
        pub execution: Uuid,
        pub kind: String,
        pub sha256: String,
        pub size_bytes: u64,
        pub media_type: String,
        pub producer_phase: String,
        pub attempt: u32,
        pub created_at: DateTime<Utc>,
    }
}

impl Artifact {
    /// The artifact's id, as seen from this execution.
    pub fn id(&self) -> Uuid {
        id::artifact(self.execution, &self.kind, &self.sha256)
    }
}

/// Which of the executions that have not ended.
#[derive(Clone, Copy, Debug)]
pub enum Live<'a> {
    All,
    /// With this status word.
    Status(&'a str),
    /// With this word of `submission_state`.
    Submission(&'a str),
}

handle! {
    /// Reads executions.
    Executions
}

fn select(rest: &str) -> String {
    let columns = Execution::columns();
    format!(
        "SELECT {columns} FROM executions \
         LEFT JOIN pinned_profiles USING (profile_id, profile_revision, profile_sha256) {rest}"
    )
}

/// The rows of `table` that belong to the execution with id `?1`, which says it itself.
fn of_one(table: &str) -> String {
    format!(
        "(SELECT ?1 AS execution, * FROM {table} \
         WHERE created_position = (SELECT created_position FROM executions WHERE id = ?1))"
    )
}

impl Executions {
    pub fn get(&self, id: Uuid) -> Result<Option<Execution>, ReadModelError> {
        self.0.one(&select("WHERE id = ?1"), [blob(&id)], Execution::from_row)
    }

    /// Newest first, of one project and status if given, with how many there are in all.
    pub fn list(
        &self,
        project: Option<&str>,
        status: Option<&str>,
        window: Window,
    ) -> Result<(Vec<Execution>, u64), ReadModelError> {
        let total = self.0.count("status", project, status)?;
        let (before, limit, offset) = window.bounds();
        let wanted = match (project, status) {
            (None, None) => "created_position < :before",
            (Some(_), None) => "created_position < :before AND project_module = :project",
            (None, Some(_)) => "created_position < :before AND status = :status",
            (Some(_), Some(_)) => {
                "created_position < :before AND status = :status AND +project_module = :project"
            }
        };
        let sql = select(&format!(
            "WHERE {wanted} AND :project IS :project AND :status IS :status \
             ORDER BY created_position DESC LIMIT :limit OFFSET :offset"
        ));
        let params = named_params! {
            ":before": before, ":project": project, ":status": status, ":limit": limit, ":offset": offset,
        };
        Ok((self.0.all(&sql, params, Execution::from_row)?, total))
    }

    /// The executions that a source was part of, newest first.
    pub fn by_source(&self, source: Uuid, window: Window) -> Result<Vec<Execution>, ReadModelError> {
        let (before, limit, offset) = window.bounds();
        let sql = select(
            "WHERE created_position IN (SELECT created_position FROM execution_sources \
             WHERE source = ?1 AND created_position < ?2 ORDER BY created_position DESC LIMIT ?3 OFFSET ?4) \
             ORDER BY created_position DESC",
        );
        self.0.all(&sql, (blob(&source), before, limit, offset), Execution::from_row)
    }

    /// What has not ended, oldest first.
    pub fn live(&self, which: Live<'_>, limit: u64) -> Result<Vec<Execution>, ReadModelError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Each is a range of one index, however many have ended.
        let (wanted, word) = match which {
            Live::All => {
                ("?1 IS ?1 AND status IN ('pending', 'running', 'awaiting_scheduler', 'retrying')", "")
            }
            Live::Status(word) => ("status = ?1 AND completed_at IS NULL", word),
            Live::Submission(word) => ("submission_state = ?1 AND completed_at IS NULL", word),
        };
        let index = match which {
            Live::All | Live::Status(_) => "executions_status",
            Live::Submission(_) => "executions_live",
        };
        let columns = Execution::columns();
        let sql = format!(
            "SELECT {columns} FROM executions INDEXED BY {index} \
             LEFT JOIN pinned_profiles USING (profile_id, profile_revision, profile_sha256) \
             WHERE {wanted} ORDER BY created_position LIMIT ?2"
        );
        self.0.all(&sql, (word, limit), Execution::from_row)
    }

    /// How many have not ended, in the whole installation.
    pub fn in_flight(&self) -> Result<u64, ReadModelError> {
        self.0.count("in_flight_scheduler", None, None)
    }

    pub fn in_flight_in_project(&self, project: &str) -> Result<u64, ReadModelError> {
        self.0.count("in_flight_project", Some(project), None)
    }

    pub fn in_flight_on_profile(&self, profile: Uuid) -> Result<u64, ReadModelError> {
        self.0.count("in_flight_profile", Some(&profile.to_string()), None)
    }

    /// Where an execution stands in the line for its profile; `None` while its present attempt was not asked for.
    pub fn place_in_line(&self, id: Uuid) -> Result<Option<Place>, ReadModelError> {
        let columns = Place::columns();
        let sql =
            format!("SELECT {columns} FROM executions WHERE id = ?1 AND executing_position IS NOT NULL");
        self.0.one(&sql, [blob(&id)], Place::from_row)
    }

    /// How many executions on the same profile were asked for before this one and have not ended; counted up to `most`.
    ///
    /// The log orders them, so everyone who reads at least up to `place` agrees who is first. A reader that lags behind the
    /// ends of others only sees more.
    pub fn ahead_in_line(&self, profile: Uuid, place: u64, most: u64) -> Result<u64, ReadModelError> {
        let sql = "SELECT count(*) FROM (SELECT 1 FROM executions INDEXED BY executions_line \
                   WHERE profile_id = ?1 AND executing_position < ?2 AND completed_at IS NULL AND do_submit LIMIT ?3)";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let ahead = self.0.one(sql, (blob(&profile), place, most), |row| crate::sql::column(row, 0))?;
        Ok(ahead.unwrap_or(0))
    }

    /// Every attempt that was announced to a backend, oldest first.
    pub fn sessions(&self, execution: Uuid) -> Result<Vec<Session>, ReadModelError> {
        let columns = Session::columns();
        let sql = format!("SELECT {columns} FROM {} ORDER BY attempt", of_one("sessions"));
        self.0.all(&sql, [blob(&execution)], Session::from_row)
    }

    /// Everything that an execution made, in the order it was made.
    pub fn artifacts(&self, execution: Uuid) -> Result<Vec<Artifact>, ReadModelError> {
        let columns = Artifact::columns();
        let sql = format!("SELECT {columns} FROM {} ORDER BY position, kind, sha256", of_one("artifacts"));
        self.0.all(&sql, [blob(&execution)], Artifact::from_row)
    }

    /// An artifact of an execution by its digest.
    pub fn artifact_by_sha(&self, execution: Uuid, sha256: &str) -> Result<Option<Artifact>, ReadModelError> {
        let columns = Artifact::columns();
        let sql = format!("SELECT {columns} FROM {} WHERE sha256 = ?2 LIMIT 1", of_one("artifacts"));
        self.0.one(&sql, (blob(&execution), sha256), Artifact::from_row)
    }
}
