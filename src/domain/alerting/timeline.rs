//! The facts from point to point.
//!
//! Events come in the order of the log. The time of an event is the latest `occurred_at` so far: it never runs backwards, whichever
//! machine's clock an event was stamped by. A clock that runs ahead is held to the time at which the log took the event, so that
//! it cannot stop everybody else's time. A point sees the events up to the first whose time is after it; those wait here.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

use super::Told;
use super::facts::Facts;

/// The facts at a point, and what came after it.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    pub facts: Facts,
    waiting: VecDeque<(DateTime<Utc>, Told)>,
    time: DateTime<Utc>,
    /// The last point that was reached.
    at: DateTime<Utc>,
}

impl Timeline {
    /// Takes the next event of the log. What alerting wrote itself is known at once, the rest when its point comes.
    pub fn take(&mut self, told: Told) {
        if Facts::is_of_alerting(&told.event) {
            self.facts.apply(&told);
            return;
        }
        self.time = self.time.max(told.occurred_at.min(told.recorded_at));
        if self.time <= self.at && self.waiting.is_empty() {
            self.facts.apply(&told);
        } else {
            self.waiting.push_back((self.time, told));
        }
    }

    /// The time of the last event.
    pub fn time(&self) -> DateTime<Utc> {
        self.time
    }

    /// Goes on to a point without anybody judging it, or those before it. A later point that was reached already is still to be
    /// judged, so that what happened before that one stays.
    pub fn pass_through(&mut self, point: DateTime<Utc>) {
        if point >= self.at {
            self.reach(point);
            self.facts.pass(self.at);
        }
    }

    /// Goes on to a point.
    pub fn reach(&mut self, point: DateTime<Utc>) {
        self.at = self.at.max(point);
        while self.waiting.front().is_some_and(|(time, _)| *time <= self.at) {
            if let Some((_, told)) = self.waiting.pop_front() {
                self.facts.apply(&told);
            }
        }
    }
}
