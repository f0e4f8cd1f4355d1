//! A **delivery**: one message to one channel. Stream `delivery-{id}`, the id made from the alert's event and the channel.
//!
//! Absent ─Enqueue→ Waiting ─attempt: taken→ Sent ─Requeue→ Waiting
//!                     ↑ └──attempt: not taken, worth another→ Waiting (at its next time)
//!                     │ └──attempt: in vain, or the last; GiveUp→ Failed
//!                     └───────────────────Requeue────────────────┘
//!
//! Invariants: what was sent is not sent again unless a person asks (`what_was_sent_is_sent`); what trying cannot change is
//! tried once (`what_trying_cannot_change_is_tried_once`); no attempt comes before its time or the receiver's
//! (`the_receiver_says_when_to_come_again`). An attempt is recorded after it was made: a process that dies between the two
//! makes it again under the same id, so the receiver's copy may repeat and never goes missing.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::rule::scope;
use crate::{Aggregate, Rejection};

/// After each attempt that was not taken, how long to wait for the next, in seconds, before jitter.
pub const SCHEDULE: &[u32] = &[5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 3600, 3600];
/// How often a message is tried.
pub const MAX_ATTEMPTS: u32 = SCHEDULE.len() as u32 + 1;
/// No receiver puts a message off for longer, in seconds.
pub const LONGEST_PAUSE: u64 = 86_400;

words! {
    /// What a message says.
    #[derive(Default)]
    pub enum Message {
        #[default] Firing = "firing",
        Resolved = "resolved",
        Test = "test",
        /// Of the service itself, such as that a channel was disabled.
        Notice = "notice",
    }
}

payload! {
    /// `delivery.enqueued`
    pub struct Enqueued {
        pub message: Message,
        pub channel_id: Uuid,
        pub channel_kind: String,
        pub rule_id: Option<Uuid>,
        /// The alert's stream, without its category; of several, the first.
        pub alert: Option<String>,
        /// Which alerts are told together.
        pub group: Option<String>,
        /// The events of alerts that it tells of.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub causes: Vec<Uuid>,
        /// The point of the grid at which it was decided.
        pub at: Option<DateTime<Utc>>,
        pub project_module: Option<String>,
        /// What the receiver tells repetitions, and a resolution, by.
        pub dedup_key: String,
        /// What the message says, laid out for no channel yet.
        pub payload: serde_json::Value,
        pub next_attempt_at: DateTime<Utc>,
        pub max_attempts: u32,
    }

    /// `delivery.attempted`
    pub struct Attempted {
        /// Counts from 1.
        pub attempt: u32,
        pub attempt_id: Uuid,
        pub started_at: DateTime<Utc>,
        pub latency_ms: u64,
        /// The HTTP status, or the SMTP reply code.
        pub code: Option<u16>,
        pub error: Option<String>,
        /// The beginning of what the receiver answered.
        pub answer: Option<String>,
        pub retry_at: Option<DateTime<Utc>>,
    }

    /// `delivery.sent`
    pub struct Sent {
        pub attempts: u32,
    }

    /// `alert.delivery_failed`: a dead letter.
    pub struct Failed {
        pub attempts: u32,
        pub error: String,
    }

    /// `delivery.requeued`, by a person.
    pub struct Requeued {
        pub next_attempt_at: DateTime<Utc>,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Enqueued(Enqueued),
    Attempted(Attempted),
    Sent(Sent),
    Failed(Failed),
    Requeued(Requeued),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The receiver has it.
    Taken { code: u16, answer: Option<String> },
    /// The receiver answered, and does not have it.
    Refused { code: u16, answer: Option<String>, retry_after_seconds: Option<u64> },
    /// A mail server answered, and does not have it. Its codes are those of RFC 5321.
    RefusedByMail { code: u16, answer: Option<String> },
    /// The receiver did not answer, or in a way that cannot be understood.
    Unanswered { error: String },
    /// It cannot be sent, and will not be by itself.
    Impossible { error: String },
}

impl Outcome {
    /// Whether trying again can help. A status that names the message or the address as wrong stays the same; one that names
    /// time, number or the receiver's own trouble may not.
    pub fn may_change(&self) -> bool {
        match self {
            Self::Taken { .. } | Self::Impossible { .. } => false,
            Self::Refused { code, .. } => matches!(code, 408 | 425 | 429 | 500..=599),
            // With mail it is the other way round: 4yz is the server's trouble, 5yz is for good.
            Self::RefusedByMail { code, .. } => (400..=499).contains(code),
            Self::Unanswered { .. } => true,
        }
    }

    /// What the receiver answered with: an HTTP status, or an SMTP reply code.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Taken { code, .. } | Self::Refused { code, .. } | Self::RefusedByMail { code, .. } => {
                Some(*code)
            }
            Self::Unanswered { .. } | Self::Impossible { .. } => None,
        }
    }

    /// Why the receiver does not have it; `None`: it has.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => None,
            Self::Refused { code, .. } => Some(format!("the receiver answered {code}")),
            Self::RefusedByMail { code, .. } => Some(format!("the mail server answered {code}")),
            Self::Unanswered { error } | Self::Impossible { error } => Some(error.clone()),
        }
    }
}

/// An attempt that was made.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub attempt_id: Uuid,
    pub started_at: DateTime<Utc>,
    pub latency_ms: u64,
    pub outcome: Outcome,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Spreads the next attempts of many messages; from 0.5 to 1.5.
    pub jitter: f64,
}

#[derive(Clone, Debug)]
pub enum Command {
    Enqueue(Box<Enqueued>),
    Record(Box<Attempt>),
    /// Its channel is gone.
    GiveUp {
        reason: String,
    },
    Requeue {
        at: DateTime<Utc>,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub order: Enqueued,
    /// Over all; the present turn began at `turn`.
    pub attempts: u32,
    pub turn: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Delivery {
    #[default]
    Absent,
    Waiting {
        facts: Box<Facts>,
        next_attempt_at: DateTime<Utc>,
    },
    Sent(Box<Facts>),
    Failed(Box<Facts>),
}

impl Delivery {
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Absent => None,
            Self::Waiting { facts, .. } | Self::Sent(facts) | Self::Failed(facts) => Some(facts),
        }
    }
}

/// When to try again after `tried` attempts in vain; `None`: not again.
fn retry_at(facts: &Facts, tried: u32, attempt: &Attempt) -> Option<DateTime<Utc>> {
    if !attempt.outcome.may_change() || tried >= facts.order.max_attempts {
        return None;
    }
    let index = usize::try_from(tried.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = SCHEDULE.get(index).or(SCHEDULE.last()).copied().unwrap_or(60);
    let spread = f64::from(pause) * attempt.jitter.clamp(0.5, 1.5);
    let asked = match &attempt.outcome {
        Outcome::Refused { retry_after_seconds: Some(seconds), .. } => (*seconds).min(LONGEST_PAUSE),
        _ => 0,
    };
    Some(attempt.at + TimeDelta::milliseconds((spread * 1000.0) as i64).max(TimeDelta::seconds(asked as i64)))
}

fn record(facts: &Facts, attempt: Attempt) -> Vec<Event> {
    let number = facts.attempts + 1;
    let retry_at = retry_at(facts, number - facts.turn, &attempt);
    let error = attempt.outcome.error();
    let code = attempt.outcome.code();
    let answer = match attempt.outcome {
        Outcome::Taken { answer, .. }
        | Outcome::Refused { answer, .. }
        | Outcome::RefusedByMail { answer, .. } => answer,
        Outcome::Unanswered { .. } | Outcome::Impossible { .. } => None,
    };
    let attempted = Attempted {
        attempt: number,
        attempt_id: attempt.attempt_id,
        started_at: attempt.started_at,
        latency_ms: attempt.latency_ms,
        code,
        error: error.clone(),
        answer,
        retry_at,
    };
    let mut events = vec![Event::Attempted(attempted)];
    match error {
        None => events.push(Event::Sent(Sent { attempts: number })),
        Some(error) if retry_at.is_none() => {
            events.push(Event::Failed(Failed { attempts: number, error }));
        }
        Some(_) => {}
    }
    events
}

impl Aggregate for Delivery {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "delivery";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Enqueue(order)) => Ok(vec![Event::Enqueued(*order)]),
            (Self::Absent, _) => Err(Rejection::new("delivery-unknown", "no such delivery")),
            // The cause was acted on before.
            (_, Command::Enqueue(_)) => Ok(vec![]),
            (Self::Waiting { facts, .. }, Command::Record(attempt)) => Ok(record(facts, *attempt)),
            (Self::Waiting { facts, .. }, Command::GiveUp { reason }) => {
                Ok(vec![Event::Failed(Failed { attempts: facts.attempts, error: reason })])
            }
            // Two tried at once, and the other one has settled it.
            (Self::Sent(_) | Self::Failed(_), Command::Record(_) | Command::GiveUp { .. }) => Ok(vec![]),
            (Self::Sent(_) | Self::Failed(_), Command::Requeue { at }) => {
                Ok(vec![Event::Requeued(Requeued { next_attempt_at: at })])
            }
            (Self::Waiting { .. }, Command::Requeue { .. }) => {
                Err(Rejection::new("delivery-waits", "the delivery is still being tried"))
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let (mut facts, next) = match self {
            Self::Absent => (Box::default(), DateTime::UNIX_EPOCH),
            Self::Waiting { facts, next_attempt_at } => (facts, next_attempt_at),
            Self::Sent(facts) | Self::Failed(facts) => (facts, DateTime::UNIX_EPOCH),
        };
        match event {
            Event::Enqueued(order) => {
                let next_attempt_at = order.next_attempt_at;
                let facts = Facts { order: order.clone(), ..Facts::default() };
                Self::Waiting { facts: Box::new(facts), next_attempt_at }
            }
            Event::Attempted(e) => {
                facts.attempts = e.attempt;
                Self::Waiting { facts, next_attempt_at: e.retry_at.unwrap_or(next) }
            }
            Event::Sent(_) => Self::Sent(facts),
            Event::Failed(_) => Self::Failed(facts),
            Event::Requeued(e) => {
                facts.turn = facts.attempts;
                Self::Waiting { facts, next_attempt_at: e.next_attempt_at }
            }
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        let order = self.facts().map(|facts| &facts.order);
        let mut tags = vec![scope(order.and_then(|order| order.project_module.as_deref()))];
        tags.extend(order.and_then(|order| order.rule_id).map(|rule| format!("rule:{rule}")));
        tags
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Delivery(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
