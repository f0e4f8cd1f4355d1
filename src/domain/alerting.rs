//! **Alerting**: which alerts the log calls for, and who is told of them when. Pure, so that a backtest says what a live
//! evaluation said.
//!
//! ```text
//!  the log ─► Timeline ─► Facts (as they were at a point of the grid)
//!                           │
//!                           ├─► conditions: what each rule sees ─► judge: commands for alerts ─► alert.* events ─┐
//!                           │                                                                                   ▼
//!                           └─► groups: what is owed, to whom, and from when on ◄────────────────── owed messages
//! ```
//!
//! A point at time *t* sees the events up to the first that happened after *t*. Time is that of the events (`occurred_at`): it
//! survives a copy of the log, and does not run backwards because a machine's clock is slow ([`timeline`]). What alerting itself wrote is
//! seen at once, whatever the point: a run that comes late goes on from what was said before.

pub mod conditions;
pub mod expression;
pub mod facts;
pub mod groups;
pub mod judge;
pub mod simulate;
pub mod timeline;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::Event;

/// The distance of the points at which rules are judged, in seconds.
pub const GRID_SECONDS: i64 = 15;

/// The last point that is not after `at`.
pub fn point(at: DateTime<Utc>) -> DateTime<Utc> {
    let seconds = at.timestamp();
    DateTime::from_timestamp(seconds - seconds.rem_euclid(GRID_SECONDS), 0).unwrap_or(at)
}

/// The point after `point`.
pub fn next(point: DateTime<Utc>) -> DateTime<Utc> {
    point + chrono::TimeDelta::seconds(GRID_SECONDS)
}

/// An event as alerting hears of it.
#[derive(Clone, Debug)]
pub struct Told {
    pub id: Uuid,
    /// The stream's name without its category.
    pub stream: String,
    pub occurred_at: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
    /// Of the tag `project:`.
    pub project: Option<String>,
    pub event: Event,
}

impl Told {
    /// The id of the stream, where that is a UUID.
    fn uuid(&self) -> Uuid {
        self.stream.parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
