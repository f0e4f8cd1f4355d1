//! How a read model stands, for `/ready`, `/metrics` and `beampipe projections list`.

use std::time::Duration;

use beampipe_log::Position;
use serde::Serialize;

/// What it took from opening the read models until all of them had reached the end of the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    pub took: Duration,
    /// How many events were read for it: those since the oldest checkpoint.
    pub events: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// There is more in the log than is in the rows.
    CatchingUp,
    /// It has reached the end of the log and follows it.
    Live,
    /// The file cannot be written; it goes on by itself.
    Stalled { why: String },
    /// It cannot go on: an event of a newer release, or damage in the log.
    Stopped { why: String },
}

/// How far a rebuild beside is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RebuildProgress {
    pub position: Position,
    pub head: Position,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProjectionStatus {
    pub name: &'static str,
    pub version: u32,
    pub position: Position,
    /// The leaf hash of the event at `position`, hexadecimal.
    pub hash: String,
    /// Meaningful where positions are dense.
    pub lag_events: u64,
    /// How old what it shows is, in seconds; 0 when nothing is missing.
    pub lag_seconds: f64,
    #[serde(flatten)]
    pub state: State,
    /// Why the file was set aside and folded again, if it was since the process started.
    pub alarm: Option<String>,
    /// Whether the rows are of another version of the projection; a rebuild is under way.
    pub outdated: bool,
    pub rebuild: Option<RebuildProgress>,
}
