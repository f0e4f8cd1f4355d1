//! **Read models**: rows folded from the log, in local SQLite files that may be thrown away.
//!
//! A projection is a pure function of events: no clock, no network, no other read model. [`Models`] owns the files of one
//! directory, follows the log, and hands every batch to every projection, which applies it in one transaction together
//! with its checkpoint. What the rows say is documented in the file of each read model; their schemas are in
//! `migrations/views/`.
//!
//! This crate knows neither how events are spelled (a [`Decode`] is given to it) nor the API's JSON.

// The documentation is built with private items: it is for those who work in here.
#![allow(rustdoc::private_intra_doc_links)]

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_log::Recorded;
use chrono::{DateTime, Utc};

#[macro_use]
mod sql;
#[macro_use]
mod touched;
mod counts;
mod expand;
mod file;
mod gauges;
mod offline;
mod projection;
mod reader;
mod runner;
#[cfg(test)]
mod testing;

// Who may come in: accounts, API keys, sessions.
pub mod accounts;
// Channels, rules, silences, alerts and deliveries.
pub mod alerts;
// What the outside that work needs was last seen as.
pub mod dependencies;
// Executions, their attempts and artifacts.
pub mod executions;
// The queue.
pub mod jobs;
// Project configurations and deployment profiles.
pub mod projects;
// Sources, their discoveries and admissions.
pub mod sources;
// Worker processes.
pub mod workers;

pub use accounts::Accounts;
pub use alerts::Alerts;
pub use dependencies::Dependencies;
pub use executions::Executions;
pub use gauges::*;
pub use jobs::Jobs;
pub use offline::{
    Copying, Difference, Manifest, ModelCopy, OfflineError, Progress, Report, Restored, SnapshotError,
    Verified, rebuild, restore, snapshot, verify,
};
pub use projection::names;
pub use projects::Projects;
pub use reader::{ReadModelError, Window};
pub use runner::{Bootstrap, Models, OpenError, ProjectionStatus, RebuildError, RebuildProgress, State};
pub use sources::Sources;
pub use workers::Workers;

/// An event with its envelope.
#[derive(Clone, Debug)]
pub struct Envelope {
    pub recorded: Arc<Recorded>,
    pub event: Event,
}

/// Turns stored bytes into an event, or says why it cannot: then the follower stops there.
pub type Decode = Arc<dyn Fn(&Recorded) -> Result<Event, String> + Send + Sync>;

/// What time it is; only the lag depends on it, never a row.
pub type Now = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;
