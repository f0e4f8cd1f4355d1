//! Reading workers. How old a worker's heartbeat is, is presence and not here.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, handle};

row! {
    /// A worker process.
    pub struct Worker {
        pub started_position: u64,
        pub id: String,
        pub instance_name: String,
        pub host: String,
        pub pool: String,
        pub capabilities: Vec<String>,
        pub concurrency_limit: u32,
        pub process_id: u32,
        pub version: String,
        /// `active`, `draining` or `stopped`.
        pub status: String,
        /// Why it drains.
        pub reason: Option<String>,
        pub started_at: DateTime<Utc>,
        pub draining_at: Option<DateTime<Utc>>,
        pub stopped_at: Option<DateTime<Utc>>,
        /// Whether it did not stop by itself.
        pub lost: bool,
        pub revision: u64,
        pub last_event_at: DateTime<Utc>,
    }
}

row! {
    /// A role that one process plays at a time.
    pub struct Lease {
        pub role: String,
        /// The process that beats under this name.
        pub holder: String,
        pub claim_id: Uuid,
        pub taken_at: DateTime<Utc>,
    }
}

handle! {
    /// Reads workers.
    Workers
}

impl Workers {
    pub fn get(&self, id: &str) -> Result<Option<Worker>, ReadModelError> {
        let sql = format!("SELECT {} FROM workers WHERE id = ?1", Worker::columns());
        self.0.one(&sql, [id], Worker::from_row)
    }

    /// Newest first; those that ended only if asked for.
    pub fn list(&self, include_stopped: bool, limit: u64) -> Result<Vec<Worker>, ReadModelError> {
        let wanted = if include_stopped { "" } else { "WHERE stopped_at IS NULL" };
        let columns = Worker::columns();
        let sql = format!("SELECT {columns} FROM workers {wanted} ORDER BY started_position DESC LIMIT ?1");
        self.0.all(&sql, [i64::try_from(limit).unwrap_or(i64::MAX)], Worker::from_row)
    }

    /// Who plays the roles that one process plays at a time; a role that nobody plays is missing.
    pub fn leases(&self) -> Result<Vec<Lease>, ReadModelError> {
        let sql = format!("SELECT {} FROM leases ORDER BY role", Lease::columns());
        self.0.all(&sql, [], Lease::from_row)
    }
}
