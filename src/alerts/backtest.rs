//! **Backtest**: what a rule would have said between two times, to whom, and when that would have been over. The log is told
//! from its beginning to the code that judges live; nothing is recorded and nothing leaves.

use std::collections::HashSet;
use std::ops::ControlFlow;

use beampipe_domain::alert::Event as A;
use beampipe_domain::alerting::groups::Batch;
use beampipe_domain::alerting::simulate::{Simulation, Turn};
use beampipe_domain::alerting::{next, point};
use beampipe_domain::delivery::Message;
use beampipe_domain::rule::Spec;
use beampipe_log::Log;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::hear::{self, HearError};

/// How many messages, and how many times that something was held back, an answer lists; it counts all.
const LISTED: usize = 10_000;

/// What is tried out.
#[derive(Clone, Debug)]
pub struct Trial {
    pub rule: Uuid,
    pub spec: Spec,
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// What it would have been.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub events_read: u64,
    pub points: u64,
    pub fired: u64,
    pub resolved: u64,
    pub messages_total: u64,
    pub messages: Vec<Value>,
    pub held_back_total: u64,
    pub held_back: Vec<Value>,
    /// Each time that an alert began to fire, which it may say more than once.
    begun: HashSet<(String, u64)>,
}

impl Report {
    fn note(&mut self, rule: Uuid, at: DateTime<Utc>, turn: &Turn) {
        self.points += 1;
        let prefix = rule.to_string();
        for (alert, event) in turn.events.iter().filter(|(alert, _)| alert.starts_with(&prefix)) {
            match event {
                A::Fired(e) => {
                    self.fired += u64::from(self.begun.insert((alert.clone(), e.number)));
                }
                A::Resolved(_) => self.resolved += 1,
                A::Suppressed(e) => {
                    self.held_back_total += 1;
                    if self.held_back.len() < LISTED {
                        self.held_back.push(json!({"at": at, "alert": alert, "held_back": e.held_back}));
                    }
                }
                _ => {}
            }
        }
        for batch in turn.sent.iter().filter(|batch| batch.rule == rule) {
            self.messages_total += 1;
            if self.messages.len() < LISTED {
                self.messages.push(message(batch));
            }
        }
    }
}

/// A message that would have gone out.
pub fn message(batch: &Batch) -> Value {
    let alerts: Vec<Value> = batch
        .alerts()
        .iter()
        .map(|(owed, ended)| {
            json!({
                "id": owed.alert,
                "status": if ended.is_some() { Message::Resolved } else { Message::Firing },
                "labels": owed.subject.labels,
                "summary": owed.summary,
                "execution_id": owed.subject.execution_id,
                "source_identifiers": owed.subject.source_identifiers,
                "starts_at": owed.since,
                "ends_at": ended,
            })
        })
        .collect();
    json!({"at": batch.at, "status": batch.message, "channel_id": batch.channel, "alerts": alerts})
}

/// How often, in events, is said how far a trial is.
const SAID_EVERY: u64 = 5000;

/// How far a trial is: up to which event, and up to which time.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub events_read: u64,
    pub at: DateTime<Utc>,
}

/// Tries a rule out on the log. `progress` is told how far it is.
pub async fn run(log: &dyn Log, trial: &Trial, progress: impl Fn(Progress)) -> Result<Report, HearError> {
    let mut report = Report::default();
    let mut run = Simulation::trying(trial.rule, trial.spec.clone());
    let begin = point(trial.from);
    let mut at = begin;
    run.pass(at);
    run.try_out(trial.from);
    // A point is complete once something happened after it.
    let mut judge = |run: &mut Simulation, until: DateTime<Utc>| {
        while next(at) <= trial.to && next(at) < until {
            at = next(at);
            let turn = run.point(at);
            report.note(trial.rule, at, &turn);
        }
        next(at) > trial.to
    };
    let mut heard = 0_u64;
    let events_read = hear::history(log, |told| {
        heard += 1;
        if heard.is_multiple_of(SAID_EVERY) {
            progress(Progress { events_read: heard, at: run.timeline.time() });
        }
        run.take(told);
        let time = run.timeline.time();
        if time <= begin {
            run.pass(begin);
            return ControlFlow::Continue(());
        }
        if judge(&mut run, time) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await?;
    judge(&mut run, DateTime::<Utc>::MAX_UTC);
    report.events_read = events_read;
    Ok(report)
}
