//! Reading dependencies. When one was last looked at, and its latest latency, are presence and not here.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, handle};

row! {
    /// What something outside was last seen as.
    pub struct Dependency {
        pub name: String,
        pub up: bool,
        /// Since when it is as it is.
        pub since: DateTime<Utc>,
        /// Of the look that found it up.
        pub latency_ms: Option<u64>,
        /// Why it is down.
        pub reason: Option<String>,
        /// How often it changed.
        pub changes: u64,
        pub last_event_id: Uuid,
        pub last_position: u64,
    }
}

handle! {
    /// Reads dependencies.
    Dependencies
}

impl Dependencies {
    pub fn get(&self, name: &str) -> Result<Option<Dependency>, ReadModelError> {
        let sql = format!("SELECT {} FROM dependencies WHERE name = ?1", Dependency::columns());
        self.0.one(&sql, [name], Dependency::from_row)
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Dependency>, ReadModelError> {
        let sql = format!("SELECT {} FROM dependencies ORDER BY name", Dependency::columns());
        self.0.all(&sql, [], Dependency::from_row)
    }
}
