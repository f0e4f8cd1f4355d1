//! An **alert**: one rule and one set of labels. Stream `alert-{rule}-{fingerprint of the labels}`.
//!
//! A condition that lasts:
//!
//! Inactive ─Observe: holds→ Pending ─holds for `for`→ Firing ─ends, and stays so for `keep_firing_for`→ Inactive
//!              │               └─ends→ Inactive          ├─ends→ Firing (cleared) ─holds again→ Firing
//!              └─holds, no `for`→ Firing                 ├─nobody acknowledges it→ Firing (others are told too)
//!                                                        └─Acknowledge→ Firing (not said again)
//!
//! Something that happened: Inactive ─Occur→ Told, once for each cause, because the cause is part of the fingerprint.
//!
//! Invariants: nothing fires twice for one observation, whoever makes it (`the_same_observation_again_is_not_an_event`,
//! `an_older_observation_changes_nothing`, `an_occurrence_is_told_once`); whoever was told that it fires is told once that it
//! is resolved (`who_was_told_is_told_once_that_it_is_resolved`); what was held back is said when nothing holds it back any
//! more (`what_was_held_back_is_said_later_if_it_still_fires`); what comes and goes is not said each time
//! (`an_alert_that_comes_and_goes_is_said_until_it_flaps_and_again_when_it_is_steady`); what nobody acknowledges is told to
//! others, once (`what_nobody_acknowledges_is_told_to_others_once`). Whether a condition holds is seen by others; delivering is
//! [`delivery`](crate::delivery)'s.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rule::{Escalation, Flapping, NoData, Severity, Trigger, scope};
use crate::{Aggregate, Rejection};

mod observe;
#[cfg(test)]
mod tests;
pub use observe::{Observation, Seen};

words! {
    /// Why nobody was told.
    #[derive(Default)]
    pub enum Holder {
        #[default] Silence = "silence",
        Inhibition = "inhibition",
        Cooldown = "cooldown",
        Flapping = "flapping",
    }
}

words! {
    /// Why an alert ended.
    #[derive(Default)]
    pub enum Reason { #[default] Cleared = "cleared", NoData = "no_data", RuleEnded = "rule_ended" }
}

/// What holds a message back.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldBack {
    pub by: Holder,
    /// The silence, or the alert that inhibits.
    pub id: Option<String>,
}

/// What an alert is about, as the rule said when it was judged.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    pub rule_id: Uuid,
    pub rule_version: u64,
    pub rule_name: String,
    pub project_module: Option<String>,
    pub severity: Severity,
    pub labels: BTreeMap<String, String>,
    /// Of the rule, such as `runbook_url`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub execution_id: Option<Uuid>,
    /// At most 20; how many there are is `changed_count`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_identifiers: Vec<String>,
    pub changed_count: Option<u64>,
}

payload! {
    /// `alert.pending`: the condition holds, not yet for long enough.
    pub struct Pending {
        pub subject: Subject,
        /// The point of the grid at which it was seen.
        pub at: DateTime<Utc>,
        pub value: Option<f64>,
        /// The events that show it.
        pub causes: Vec<Uuid>,
    }

    /// `alert.fired`; again each time that it is said.
    pub struct Fired {
        pub subject: Subject,
        pub at: DateTime<Utc>,
        /// Since when the condition holds.
        pub since: DateTime<Utc>,
        /// Counts the times that this alert began to fire, from 1.
        pub number: u64,
        /// Counts the times that this firing was said; 0 while something holds it back.
        pub said: u32,
        /// Whether it was judged later than it should have been.
        pub late: bool,
        pub summary: String,
        pub value: Option<f64>,
        pub causes: Vec<Uuid>,
        /// Who is told of it now.
        pub channel_ids: Vec<Uuid>,
        /// What happened, and is never resolved.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub occurrence: bool,
    }

    /// `alert.acknowledged`: somebody sees to it, and it is not said again.
    pub struct Acknowledged {
        pub comment: String,
    }

    /// `alert.cleared`: the condition has ended, and the alert fires on for as long as the rule says.
    pub struct Cleared {
        pub at: DateTime<Utc>,
    }

    /// `alert.reactivated`: the condition holds again before the alert was resolved.
    pub struct Reactivated {
        pub at: DateTime<Utc>,
    }

    /// `alert.resolved`
    pub struct Resolved {
        pub at: DateTime<Utc>,
        pub reason: Reason,
        /// Who is told: whoever was told that it fires.
        pub channel_ids: Vec<Uuid>,
    }

    /// `alert.escalated`: nobody has acknowledged it for as long as the rule says.
    pub struct Escalated {
        pub at: DateTime<Utc>,
        /// Who is told too.
        pub channel_ids: Vec<Uuid>,
    }

    /// `alert.suppressed`: it fires, and nobody is told.
    pub struct Suppressed {
        pub at: DateTime<Utc>,
        pub held_back: HeldBack,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Pending(Pending),
    Fired(Fired),
    Acknowledged(Acknowledged),
    Cleared(Cleared),
    Reactivated(Reactivated),
    Resolved(Resolved),
    Escalated(Escalated),
    Suppressed(Suppressed),
}

impl Event {
    /// The point of the grid at which it was decided; what people did has none.
    pub fn at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Pending(e) => Some(e.at),
            Self::Fired(e) => Some(e.at),
            Self::Acknowledged(_) => None,
            Self::Cleared(e) => Some(e.at),
            Self::Reactivated(e) => Some(e.at),
            Self::Resolved(e) => Some(e.at),
            Self::Escalated(e) => Some(e.at),
            Self::Suppressed(e) => Some(e.at),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Command {
    /// What was seen at a point of the grid.
    Observe(Box<Observation>),
    /// Something happened.
    Occur(Box<Observation>),
    Acknowledge {
        comment: String,
    },
    /// The rule is gone, disabled or watches something else.
    End {
        at: DateTime<Utc>,
    },
}

/// An alert that fires.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Firing {
    pub since: DateTime<Utc>,
    /// When it was first said, in this firing.
    pub first_said_at: Option<DateTime<Utc>>,
    pub said: u32,
    /// Who was told, in this firing.
    pub told: Vec<Uuid>,
    /// Since when the condition has ended.
    pub cleared_at: Option<DateTime<Utc>>,
    pub acknowledged: bool,
    pub escalated: bool,
    pub held_back: Option<HeldBack>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Phase {
    #[default]
    Inactive,
    Pending {
        since: DateTime<Utc>,
    },
    Firing(Box<Firing>),
    /// It was said what happened.
    Told,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alert {
    pub phase: Phase,
    pub subject: Subject,
    /// What was said of it last.
    pub summary: String,
    /// How often it began to fire.
    pub number: u64,
    /// When somebody was told last that it fires.
    pub said_at: Option<DateTime<Utc>>,
    /// Of the last event.
    pub at: Option<DateTime<Utc>>,
    /// When it began to fire, the last times.
    pub begun: VecDeque<DateTime<Utc>>,
}

/// How many beginnings are remembered: no rule asks for more.
pub const MOST_BEGINNINGS: usize = 20;

impl Aggregate for Alert {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "alert";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (&self.phase, command) {
            (_, Command::Observe(seen)) => Ok(self.observe(&seen)),
            (Phase::Inactive, Command::Occur(seen)) => Ok(self.fire(&seen, seen.at, true)),
            (_, Command::Occur(_)) => Ok(vec![]),
            (Phase::Firing(_), Command::Acknowledge { .. }) if self.is_heartbeat() => {
                let detail =
                    "a heartbeat is not acknowledged: it would fall silent; disable its rule instead";
                Err(Rejection::new("alert-not-firing", detail))
            }
            (Phase::Firing(firing), Command::Acknowledge { comment }) => {
                if firing.acknowledged {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Acknowledged(Acknowledged { comment })])
            }
            (_, Command::Acknowledge { .. }) => {
                Err(Rejection::new("alert-not-firing", "only an alert that fires can be acknowledged"))
            }
            (Phase::Firing(_) | Phase::Pending { .. }, Command::End { at }) => {
                Ok(vec![self.resolved(at, Reason::RuleEnded)])
            }
            (Phase::Inactive | Phase::Told, Command::End { .. }) => Ok(vec![]),
        }
    }

    fn evolve(mut self, event: &Event) -> Self {
        match event {
            Event::Pending(e) => {
                (self.subject, self.at) = (e.subject.clone(), Some(e.at));
                self.phase = Phase::Pending { since: e.at };
            }
            Event::Fired(e) => self.fired(e),
            Event::Acknowledged(_) => self.change(None, |firing| firing.acknowledged = true),
            Event::Cleared(e) => self.change(Some(e.at), |firing| firing.cleared_at = Some(e.at)),
            Event::Reactivated(e) => self.change(Some(e.at), |firing| firing.cleared_at = None),
            Event::Resolved(e) => (self.phase, self.at) = (Phase::Inactive, Some(e.at)),
            Event::Escalated(e) => self.change(Some(e.at), |firing| {
                firing.escalated = true;
                firing.tell(&e.channel_ids);
            }),
            Event::Suppressed(e) => {
                let held_back = Some(e.held_back.clone());
                self.change(Some(e.at), |firing| firing.held_back = held_back);
            }
        }
        self
    }

    fn tags(&self, id: &str, _event: &Event) -> Vec<String> {
        // The rule's UUID, before the fingerprint.
        let rule = id.get(..36).unwrap_or(id);
        vec![scope(self.subject.project_module.as_deref()), format!("rule:{rule}")]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Alert(event) => Some(event),
            _ => None,
        }
    }
}

impl Firing {
    fn tell(&mut self, channels: &[Uuid]) {
        for channel in channels {
            if !self.told.contains(channel) {
                self.told.push(*channel);
            }
        }
    }
}

impl Alert {
    fn is_heartbeat(&self) -> bool {
        self.subject.labels.get("trigger").is_some_and(|kind| *kind == Trigger::Heartbeat {}.kind())
    }

    fn fired(&mut self, e: &Fired) {
        let before = match &self.phase {
            Phase::Firing(firing) if self.number == e.number => Some(firing.as_ref().clone()),
            _ => None,
        };
        (self.subject, self.number, self.at) = (e.subject.clone(), e.number, Some(e.at));
        self.summary.clone_from(&e.summary);
        if e.said > 0 {
            self.said_at = Some(e.at);
        }
        if e.occurrence {
            self.phase = Phase::Told;
            return;
        }
        if before.is_none() {
            self.begun.push_back(e.at);
            self.begun.drain(..self.begun.len().saturating_sub(MOST_BEGINNINGS));
        }
        let mut firing = before.unwrap_or(Firing { since: e.since, ..Firing::default() });
        (firing.said, firing.held_back) = (e.said, None);
        if e.said > 0 {
            firing.first_said_at.get_or_insert(e.at);
        }
        firing.tell(&e.channel_ids);
        self.phase = Phase::Firing(Box::new(firing));
    }

    fn change(&mut self, at: Option<DateTime<Utc>>, change: impl FnOnce(&mut Firing)) {
        self.at = at.or(self.at);
        if let Phase::Firing(firing) = &mut self.phase {
            change(firing);
        }
    }
}

/// Seconds as a span of time; what is too long for one is as long as one can be.
pub(crate) fn span(seconds: u64) -> TimeDelta {
    i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds).unwrap_or(TimeDelta::MAX)
}
