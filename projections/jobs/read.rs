//! Reading the queue.

use beampipe_domain::job::Kind;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, Window, handle};
use crate::sql::{blob, json, micros};

row! {
    /// A job as it is now.
    pub struct Job {
        /// The position of its enqueueing: the key of the newest-first order.
        pub created_position: u64,
        pub id: Uuid,
        pub kind: String,
        pub payload: serde_json::Value,
        /// `queued`, `running`, `completed` or `dead_lettered`.
        pub status: String,
        pub project_module: Option<String>,
        pub execution_id: Option<Uuid>,
        pub required_capability: Option<String>,
        pub idempotency_key: Option<String>,
        /// Begun and neither handed back nor forgiven by a requeue.
        pub attempts: u32,
        pub max_attempts: u32,
        pub next_run_at: DateTime<Utc>,
        /// The present claim; absent unless `running`.
        pub worker_id: Option<String>,
        /// The pool of the claimant.
        pub pool: Option<String>,
        pub claim_id: Option<Uuid>,
        pub claimed_at: Option<DateTime<Utc>>,
        pub last_error: Option<String>,
        pub result: Option<serde_json::Value>,
        /// Of the last attempt that was settled.
        pub duration_ms: Option<u64>,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub finished_at: Option<DateTime<Utc>>,
        pub correlation_id: Uuid,
        /// The revision of its stream.
        pub revision: u64,
        pub last_event_id: Uuid,
    }
}

impl Job {
    /// Its kind; every kind in the log is a known one.
    pub fn parsed_kind(&self) -> Option<Kind> {
        Kind::parse(&self.kind)
    }
}

handle! {
    /// Reads jobs.
    Jobs
}

fn select(rest: &str) -> String {
    let columns = Job::columns();
    format!("SELECT {columns} FROM jobs {rest}")
}

fn clamp(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Jobs {
    pub fn get(&self, id: Uuid) -> Result<Option<Job>, ReadModelError> {
        self.0.one(&select("WHERE id = ?1"), [blob(&id)], Job::from_row)
    }

    /// Newest first.
    pub fn list(&self, window: Window) -> Result<Vec<Job>, ReadModelError> {
        let sql = select("WHERE created_position < ?1 ORDER BY created_position DESC LIMIT ?2 OFFSET ?3");
        self.0.all(&sql, window.bounds(), Job::from_row)
    }

    /// Queued jobs that are due and need nothing but `capabilities`, the longest due first; of `kinds` if given, and of
    /// no project in `without`.
    pub fn ready(
        &self,
        now: DateTime<Utc>,
        capabilities: &[String],
        kinds: Option<&[Kind]>,
        without: &[String],
        limit: u64,
    ) -> Result<Vec<Job>, ReadModelError> {
        let sql = select(
            "WHERE status = 'queued' AND kind = ?1 AND next_run_at <= ?2 \
             AND (required_capability IS NULL OR required_capability IN (SELECT value FROM json_each(?3)) \
                  OR (required_capability LIKE 'slurm:%' AND 'slurm' IN (SELECT value FROM json_each(?3)))) \
             AND (project_module IS NULL OR project_module NOT IN (SELECT value FROM json_each(?4))) \
             ORDER BY next_run_at, created_position LIMIT ?5",
        );
        // By kind, each in the order of its index: a long queue is not sorted to take a few from it.
        let mut ready = vec![];
        for kind in kinds.unwrap_or(Kind::ALL) {
            let params = (kind.as_str(), micros(now), json(&capabilities), json(&without), clamp(limit));
            ready.extend(self.0.all(&sql, params, Job::from_row)?);
        }
        ready.sort_by_key(|job| (job.next_run_at, job.created_position));
        ready.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(ready)
    }

    /// When the next queued job is due, if there is one.
    pub fn next_due_at(&self) -> Result<Option<DateTime<Utc>>, ReadModelError> {
        let sql = "SELECT min(next_run_at) FROM jobs WHERE status = 'queued' AND kind = ?1";
        let mut due: Option<DateTime<Utc>> = None;
        for kind in Kind::ALL {
            let next = self.0.one(sql, [kind.as_str()], |row| crate::sql::column(row, 0))?.flatten();
            due = [due, next].into_iter().flatten().min();
        }
        Ok(due)
    }

    /// Claimed jobs, the longest claimed first.
    pub fn claimed(&self, limit: u64) -> Result<Vec<Job>, ReadModelError> {
        let sql = select("WHERE status = 'running' ORDER BY claimed_at, created_position LIMIT ?1");
        self.0.all(&sql, [clamp(limit)], Job::from_row)
    }

    /// Dead letters, newest first.
    pub fn dead(&self, limit: u64) -> Result<Vec<Job>, ReadModelError> {
        let sql = select("WHERE status = 'dead_lettered' ORDER BY created_position DESC LIMIT ?1");
        self.0.all(&sql, [clamp(limit)], Job::from_row)
    }

    /// Every job of an execution, oldest first.
    pub fn of_execution(&self, execution: Uuid) -> Result<Vec<Job>, ReadModelError> {
        let sql = select("WHERE execution_id = ?1 ORDER BY created_position");
        self.0.all(&sql, [blob(&execution)], Job::from_row)
    }

    /// The queued or claimed job of a kind for an execution.
    pub fn unfinished_for_execution(
        &self,
        execution: Uuid,
        kind: Kind,
    ) -> Result<Option<Job>, ReadModelError> {
        let sql = select(
            "WHERE execution_id = ?1 AND kind = ?2 AND status IN ('queued', 'running') \
             ORDER BY created_position DESC LIMIT 1",
        );
        self.0.one(&sql, (blob(&execution), kind.as_str()), Job::from_row)
    }

    /// The queued or claimed jobs of a kind in a project, oldest first.
    pub fn unfinished(&self, kind: Kind, project: &str, limit: u64) -> Result<Vec<Job>, ReadModelError> {
        let sql = select(
            "WHERE id IN (SELECT id FROM jobs WHERE status = 'queued' AND kind = ?1 \
             UNION ALL SELECT id FROM jobs WHERE status = 'running' AND +kind = ?1) AND project_module = ?2 \
             ORDER BY created_position LIMIT ?3",
        );
        self.0.all(&sql, (kind.as_str(), project, clamp(limit)), Job::from_row)
    }

    /// The queued or claimed job that was asked for under a key.
    pub fn unfinished_by_key(&self, idempotency_key: &str) -> Result<Option<Job>, ReadModelError> {
        let sql = select(
            "WHERE idempotency_key = ?1 AND status IN ('queued', 'running') \
             ORDER BY created_position DESC LIMIT 1",
        );
        self.0.one(&sql, [idempotency_key], Job::from_row)
    }

    /// How many jobs of a kind have a status now.
    pub fn count(&self, kind: Option<Kind>, status: Option<&str>) -> Result<u64, ReadModelError> {
        self.0.count("status", kind.map(|kind| kind.as_str()), status)
    }

    /// How many jobs a worker holds.
    pub fn leases_of(&self, worker: &str) -> Result<u64, ReadModelError> {
        self.0.count("lease", Some(worker), None)
    }

    /// The pool of a worker, if it has started.
    pub fn pool_of(&self, worker: &str) -> Result<Option<String>, ReadModelError> {
        self.0.one("SELECT pool FROM pools WHERE worker = ?1", [worker], |row| row.get(0))
    }
}
