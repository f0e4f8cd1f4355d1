//! What alerting would have written: the same judgement as that of a live run, with events that are not recorded. Backtests are
//! made of it, and the time lines that show what each setting of a rule does.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Told;
use super::facts::{Facts, Rule};
use super::groups::{self, Batch};
use super::judge::{Round, judge};
use super::timeline::Timeline;
use crate::alert::{self, Phase};
use crate::rule::Spec;
use crate::{Aggregate, Event, delivery};

/// What one point brought.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// By the alert's stream without its category.
    pub events: Vec<(String, alert::Event)>,
    pub sent: Vec<Batch>,
}

/// A run that records nothing.
#[derive(Debug, Default)]
pub struct Simulation {
    pub timeline: Timeline,
    /// The rule that is tried out, with what it says instead of what it said in the log. Absent: every rule, as they were.
    tried: Option<(Uuid, Spec)>,
    events: u128,
}

impl Simulation {
    /// Takes the next event of the log. Of what a live run wrote, only what people did counts.
    pub fn take(&mut self, told: Told) {
        match &told.event {
            Event::Rule(_) if self.tried.as_ref().is_some_and(|(id, _)| *id == told.uuid()) => {}
            Event::Alert(alert::Event::Acknowledged(_)) => {
                let open = self.timeline.facts.alerts.get(&told.stream);
                if open.is_some_and(|alert| matches!(alert.phase, Phase::Firing(_))) {
                    self.timeline.take(told);
                }
            }
            event if Facts::is_of_alerting(event) => {}
            _ => self.timeline.take(told),
        }
    }

    /// An event that is not recorded. Its id is that of nothing else.
    fn told(&mut self, stream: &str, at: DateTime<Utc>, event: Event) -> Told {
        self.events += 1;
        let id = Uuid::from_u128(self.events);
        Told { id, stream: stream.to_owned(), occurred_at: at, recorded_at: at, project: None, event }
    }

    /// Goes on to a point and judges it.
    pub fn point(&mut self, at: DateTime<Utc>) -> Turn {
        let mut turn = Turn::default();
        let only = self.tried.as_ref().map(|(id, _)| *id);
        self.timeline.reach(at);
        for round in Round::ALL {
            for verdict in judge(&self.timeline.facts, round, at, false, only) {
                let alert = self.timeline.facts.alerts.get(&verdict.alert).cloned().unwrap_or_default();
                for event in alert.decide(verdict.command).unwrap_or_default() {
                    let told = self.told(&verdict.alert, at, event.clone().into());
                    self.timeline.facts.apply(&told);
                    turn.events.push((verdict.alert.clone(), event));
                }
            }
        }
        turn.sent = groups::flush(&self.timeline.facts, at);
        for batch in &turn.sent {
            let enqueued = delivery::Enqueued {
                channel_id: batch.channel,
                group: Some(batch.group.clone()),
                causes: batch.causes(),
                at: Some(at),
                ..delivery::Enqueued::default()
            };
            let told = self.told("", at, delivery::Event::Enqueued(enqueued).into());
            self.timeline.facts.apply(&told);
        }
        self.timeline.facts.pass(at);
        turn
    }

    /// A run that tries a rule out, instead of what it said in the log.
    pub fn trying(rule: Uuid, spec: Spec) -> Self {
        Self { tried: Some((rule, spec)), ..Self::default() }
    }

    /// From now on the rule that is tried out is there, enabled.
    pub fn try_out(&mut self, since: DateTime<Utc>) {
        if let Some((id, spec)) = &self.tried {
            let spec = Spec { enabled: true, ..spec.clone() };
            let rule = Rule::new(0, spec, since, since);
            self.timeline.facts.rules.insert(*id, rule);
        }
    }

    /// Goes on to a point without judging it.
    pub fn pass(&mut self, at: DateTime<Utc>) {
        self.timeline.pass_through(at);
    }
}
