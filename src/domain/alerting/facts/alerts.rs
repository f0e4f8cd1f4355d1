//! What alerting wrote itself: alerts, the messages that they call for, and which of these are enqueued.

use uuid::Uuid;

use super::Facts;
use crate::alert::{Event as E, Phase};
use crate::alerting::Told;
use crate::alerting::groups::{self, Owed};
use crate::delivery::{self, Message};
use crate::{Aggregate as _, alert};

/// The rule in the name of an alert's stream.
pub fn rule_of(alert: &str) -> Uuid {
    alert.get(..36).and_then(|rule| rule.parse().ok()).unwrap_or_default()
}

impl Facts {
    pub(super) fn alert(&mut self, told: &Told, event: &E) {
        let before = self.alerts.remove(&told.stream).unwrap_or_default();
        let fires_since = match &before.phase {
            Phase::Firing(firing) => Some(firing.since),
            Phase::Inactive | Phase::Pending { .. } | Phase::Told => None,
        };
        let alert = before.evolve(event);
        let (message, channels, at, occurrence) = match event {
            E::Fired(e) => {
                if e.said > 0 {
                    self.said_at.insert(rule_of(&told.stream), e.at);
                }
                (Message::Firing, &e.channel_ids[..], e.at, e.occurrence)
            }
            E::Escalated(e) => (Message::Firing, &e.channel_ids[..], e.at, false),
            E::Resolved(e) => (Message::Resolved, &e.channel_ids[..], e.at, false),
            E::Pending(_) | E::Acknowledged(_) | E::Cleared(_) | E::Reactivated(_) | E::Suppressed(_) => {
                self.keep(&told.stream, alert);
                return;
            }
        };
        let rule = rule_of(&told.stream);
        let spec = self.rules.get(&rule).map(|rule| &rule.spec);
        let group = groups::of(&told.stream, &alert.subject, spec);
        let since = match event {
            E::Fired(e) => e.since,
            _ => fires_since.unwrap_or(at),
        };
        let fired_at = alert.begun.back().copied().unwrap_or(at);
        for channel in channels {
            self.owed.push(Owed {
                cause: told.id,
                alert: told.stream.clone(),
                rule,
                group: group.clone(),
                channel: *channel,
                message,
                at,
                occurrence,
                subject: alert.subject.clone(),
                summary: alert.summary.clone(),
                since,
                fired_at,
                late: matches!(event, E::Fired(e) if e.late),
            });
        }
        self.keep(&told.stream, alert);
    }

    /// What was told of once, and never changes again, need not be kept.
    fn keep(&mut self, stream: &str, alert: alert::Alert) {
        if alert.phase != Phase::Told {
            self.alerts.insert(stream.to_owned(), alert);
        }
    }

    pub(super) fn delivery(&mut self, event: &delivery::Event) {
        let delivery::Event::Enqueued(e) = event else { return };
        let Some(group) = &e.group else { return };
        self.owed.retain(|owed| owed.channel != e.channel_id || !e.causes.contains(&owed.cause));
        // When a group was last told of matters only where the next message has to keep a distance.
        let keeps_distance = |rule: &super::Rule| rule.spec.group_interval_seconds > 0;
        if let Some(at) = e.at
            && self.rules.get(&rule_of(group)).is_some_and(keeps_distance)
        {
            self.flushed.insert((group.clone(), e.channel_id), at);
        }
    }
}
