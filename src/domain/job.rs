//! A **job**: a piece of work that a worker does once. Stream `job-{id}`.
//!
//! Absent ─Enqueue→ Queued ─Claim→ Claimed ─Complete→ Done
//!                    ▲              ├─HandBack→ Queued
//!                    │              ├─Fail→ Queued (a retry is scheduled) or Dead (a dead letter)
//!                    │              └─Claim (the lease has died)→ Claimed
//!                    └──Requeue (by hand)── Dead, or Done (a standing watch)
//!
//! Invariants: only the present claim settles a job (`a_lost_lease_settles_nothing`); a live claim is taken over only by
//! naming it (`a_takeover_names_the_claim_it_replaces`); a job fails at most `max_attempts` times before it is a dead
//! letter (`attempts_are_bounded`). A lost worker is no failed attempt, as it says nothing of the job; but a job that many
//! workers were lost on is taken for what kills them (`a_job_that_kills_its_workers_is_a_dead_letter`).

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection};

words! {
    /// What kinds of work there are; the labels that dashboards know.
    #[derive(Default)]
    pub enum Kind {
        #[default]
        SchedulerTick = "scheduler_tick",
        DiscoverBatch = "discover_batch",
        ExecutionSchedulerTick = "execution_scheduler_tick",
        Execute = "execute",
        /// Watches one execution on a DIM from its hand-over to its end.
        DimPoll = "dim_poll",
        DimPollTick = "dim_poll_tick",
        /// Watches every execution of one login node.
        SlurmPollTick = "slurm_poll_tick",
        AlertEvaluatorTick = "alert_evaluator_tick",
    }
}

impl Kind {
    /// Whether a job of this kind stands for a place and not for one piece of work: it may go on after it was done.
    pub fn is_standing(self) -> bool {
        self == Self::SlurmPollTick
    }
}

payload! {
    /// `job.enqueued`
    pub struct Enqueued {
        pub kind: Kind,
        pub payload: serde_json::Value,
        pub project_module: Option<String>,
        pub execution_id: Option<Uuid>,
        /// What a worker has to be able to do: `tap`, `dim`, `slurm:<profile>`, or nothing special.
        pub required_capability: Option<String>,
        pub idempotency_key: Option<String>,
        pub max_attempts: u32,
        pub next_run_at: DateTime<Utc>,
    }

    /// `job.claimed`
    pub struct Claimed {
        pub worker_id: String,
        pub claim_id: Uuid,
        /// Counts from 1.
        pub attempt: u32,
        /// The claim whose lease had died.
        pub taken_from: Option<Uuid>,
    }

    /// `job.handed_back`: by an orderly stop; it does not count as an attempt.
    pub struct HandedBack {
        pub claim_id: Uuid,
        pub reason: String,
        pub next_run_at: DateTime<Utc>,
    }

    /// `job.completed`
    pub struct Completed {
        pub claim_id: Uuid,
        pub duration_ms: u64,
        pub result: Option<serde_json::Value>,
    }

    /// `job.failed`
    pub struct Failed {
        pub claim_id: Uuid,
        pub attempt: u32,
        pub error: String,
        pub duration_ms: u64,
    }

    /// `job.retry_scheduled`
    pub struct RetryScheduled {
        pub attempt: u32,
        pub next_run_at: DateTime<Utc>,
    }

    /// `job.dead_lettered`: only a person brings it back.
    pub struct DeadLettered {
        pub attempts: u32,
        pub error: String,
    }

    /// `job.requeued`, by hand.
    pub struct Requeued {
        pub next_run_at: DateTime<Utc>,
        pub reason: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Enqueued(Enqueued),
    Claimed(Claimed),
    HandedBack(HandedBack),
    Completed(Completed),
    Failed(Failed),
    RetryScheduled(RetryScheduled),
    DeadLettered(DeadLettered),
    Requeued(Requeued),
}

#[derive(Clone, Debug)]
pub enum Command {
    Enqueue(Enqueued),
    Claim {
        worker_id: String,
        claim_id: Uuid,
        /// The claim whose lease the contender saw die.
        taken_from: Option<Uuid>,
    },
    HandBack {
        claim_id: Uuid,
        reason: String,
        next_run_at: DateTime<Utc>,
    },
    Complete {
        claim_id: Uuid,
        duration_ms: u64,
        result: Option<serde_json::Value>,
    },
    Fail {
        claim_id: Uuid,
        error: String,
        duration_ms: u64,
        /// When to try again, or `None` when trying again cannot help.
        retry_at: Option<DateTime<Utc>>,
    },
    Requeue {
        next_run_at: DateTime<Utc>,
        reason: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub order: Enqueued,
    /// Attempts that were begun and neither handed back nor forgiven by a requeue.
    pub attempts: u32,
    /// Workers that were lost on it since it was enqueued or requeued.
    pub lost: u32,
}

/// Workers may be lost on a job this often, or ten times as often as it may fail.
const MAX_LOST: u32 = 50;

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Job {
    #[default]
    Absent,
    Queued {
        facts: Facts,
        next_run_at: DateTime<Utc>,
    },
    Claimed {
        facts: Facts,
        worker_id: String,
        claim_id: Uuid,
    },
    Done {
        facts: Facts,
    },
    Dead {
        facts: Facts,
        error: String,
    },
}

impl Job {
    pub fn facts(&self) -> Option<&Facts> {
        match self {
            Self::Absent => None,
            Self::Queued { facts, .. }
            | Self::Claimed { facts, .. }
            | Self::Done { facts }
            | Self::Dead { facts, .. } => Some(facts),
        }
    }

    /// Whether a claim, a settlement or its time is still to come.
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::Claimed { .. })
    }
}

fn lease_lost() -> Rejection {
    Rejection::new(
        "lease-lost",
        "the claim is not the present one: another worker has the job, or it has ended",
    )
}

impl Aggregate for Job {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "job";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        use Command as C;
        match (self, command) {
            (Self::Absent, C::Enqueue(order)) => Ok(vec![Event::Enqueued(order)]),
            (_, C::Enqueue(_)) => Ok(vec![]),
            (Self::Absent, _) => Err(Rejection::new("job-unknown", "no such job")),

            (Self::Queued { facts, .. }, C::Claim { worker_id, claim_id, .. }) => {
                Ok(vec![Event::Claimed(Claimed {
                    worker_id,
                    claim_id,
                    attempt: facts.attempts + 1,
                    taken_from: None,
                })])
            }
            (
                Self::Claimed { facts, claim_id: present, .. },
                C::Claim { worker_id, claim_id, taken_from },
            ) => {
                if taken_from != Some(*present) {
                    return Err(Rejection::new("job-claimed", "another worker has claimed it"));
                }
                if facts.lost >= MAX_LOST.max(facts.order.max_attempts.saturating_mul(10)) {
                    let error = format!("{} workers were lost on it", facts.lost + 1);
                    return Ok(vec![Event::DeadLettered(DeadLettered { attempts: facts.attempts, error })]);
                }
                let attempt = facts.attempts;
                Ok(vec![Event::Claimed(Claimed { worker_id, claim_id, attempt, taken_from })])
            }
            (Self::Done { .. } | Self::Dead { .. }, C::Claim { .. }) => {
                Err(Rejection::new("job-ended", "the job has ended"))
            }

            (Self::Claimed { claim_id: present, .. }, C::HandBack { claim_id, reason, next_run_at })
                if *present == claim_id =>
            {
                Ok(vec![Event::HandedBack(HandedBack { claim_id, reason, next_run_at })])
            }
            (Self::Claimed { claim_id: present, .. }, C::Complete { claim_id, duration_ms, result })
                if *present == claim_id =>
            {
                Ok(vec![Event::Completed(Completed { claim_id, duration_ms, result })])
            }
            (
                Self::Claimed { facts, claim_id: present, .. },
                C::Fail { claim_id, error, duration_ms, retry_at },
            ) if *present == claim_id => {
                let attempt = facts.attempts;
                let failed = Event::Failed(Failed { claim_id, attempt, error: error.clone(), duration_ms });
                let then = match retry_at {
                    Some(next_run_at) if attempt < facts.order.max_attempts => {
                        Event::RetryScheduled(RetryScheduled { attempt, next_run_at })
                    }
                    _ => Event::DeadLettered(DeadLettered { attempts: attempt, error }),
                };
                Ok(vec![failed, then])
            }
            (_, C::HandBack { .. } | C::Complete { .. } | C::Fail { .. }) => Err(lease_lost()),

            (Self::Dead { .. }, C::Requeue { next_run_at, reason }) => {
                Ok(vec![Event::Requeued(Requeued { next_run_at, reason })])
            }
            // A standing watch ends when there is nothing to watch and goes on when there is again.
            (Self::Done { facts }, C::Requeue { next_run_at, reason }) if facts.order.kind.is_standing() => {
                Ok(vec![Event::Requeued(Requeued { next_run_at, reason })])
            }
            (_, C::Requeue { .. }) => {
                Err(Rejection::new("not-a-dead-letter", "only a dead letter can be requeued"))
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let mut facts = self.facts().cloned().unwrap_or_default();
        match event {
            Event::Enqueued(order) => Self::Queued {
                next_run_at: order.next_run_at,
                facts: Facts { order: order.clone(), attempts: 0, lost: 0 },
            },
            Event::Claimed(e) => {
                facts.attempts = e.attempt;
                facts.lost += u32::from(e.taken_from.is_some());
                Self::Claimed { facts, worker_id: e.worker_id.clone(), claim_id: e.claim_id }
            }
            Event::HandedBack(e) => {
                facts.attempts = facts.attempts.saturating_sub(1);
                Self::Queued { facts, next_run_at: e.next_run_at }
            }
            Event::Completed(_) => Self::Done { facts },
            // The retry or the dead letter follows in the same append.
            Event::Failed(_) => self,
            Event::RetryScheduled(e) => Self::Queued { facts, next_run_at: e.next_run_at },
            Event::DeadLettered(e) => Self::Dead { facts, error: e.error.clone() },
            Event::Requeued(e) => {
                facts.attempts = 0;
                facts.lost = 0;
                Self::Queued { facts, next_run_at: e.next_run_at }
            }
        }
    }

    fn tags(&self, _id: &str, event: &Event) -> Vec<String> {
        let Some(facts) = self.facts() else { return vec![] };
        let scope = facts.order.project_module.as_ref();
        let mut tags =
            vec![scope.map_or_else(|| INSTALLATION.to_owned(), |project| format!("project:{project}"))];
        // An execution's history ends with its own last event: that the job which watched it has ended too is no news.
        if matches!(event, Event::Completed(_)) {
            return tags;
        }
        tags.extend(facts.order.execution_id.map(|id| format!("execution:{id}")));
        tags
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Job(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::given;

    fn enqueue() -> Command {
        Command::Enqueue(Enqueued { kind: Kind::Execute, max_attempts: 3, ..Enqueued::default() })
    }

    fn claim(n: u128, taken_from: Option<u128>) -> Command {
        Command::Claim {
            worker_id: "w".into(),
            claim_id: Uuid::from_u128(n),
            taken_from: taken_from.map(Uuid::from_u128),
        }
    }

    fn fail(n: u128, again: bool) -> Command {
        Command::Fail {
            claim_id: Uuid::from_u128(n),
            error: "x".into(),
            duration_ms: 1,
            retry_at: again.then_some(DateTime::UNIX_EPOCH),
        }
    }

    fn complete(n: u128) -> Command {
        Command::Complete { claim_id: Uuid::from_u128(n), duration_ms: 1, result: None }
    }

    #[test]
    fn a_lost_lease_settles_nothing() {
        let job = given::<Job>([enqueue(), claim(1, None), claim(2, Some(1))]);
        assert_eq!(job.decide(complete(1)).unwrap_err().code, "lease-lost");
        assert_eq!(job.decide(fail(1, true)).unwrap_err().code, "lease-lost");
        assert!(job.decide(complete(2)).is_ok());
    }

    #[test]
    fn a_takeover_names_the_claim_it_replaces() {
        let job = given::<Job>([enqueue(), claim(1, None)]);
        assert_eq!(job.decide(claim(2, None)).unwrap_err().code, "job-claimed");
        assert_eq!(job.decide(claim(2, Some(3))).unwrap_err().code, "job-claimed");
        assert!(job.decide(claim(2, Some(1))).is_ok());
    }

    #[test]
    fn what_cannot_be_retried_is_a_dead_letter_at_once() {
        let job = given::<Job>([enqueue(), claim(1, None), fail(1, false)]);
        assert!(matches!(job, Job::Dead { .. }));
        let again = Command::Requeue { next_run_at: DateTime::UNIX_EPOCH, reason: "fixed".into() };
        assert!(matches!(job.decide(again).unwrap()[..], [Event::Requeued(_)]));
    }

    #[test]
    fn a_job_that_was_handed_back_has_not_used_an_attempt() {
        let back = Command::HandBack {
            claim_id: Uuid::from_u128(1),
            reason: "stop".into(),
            next_run_at: DateTime::UNIX_EPOCH,
        };
        let job = given::<Job>([enqueue(), claim(1, None), back]);
        assert_eq!(job.facts().unwrap().attempts, 0);
    }

    #[test]
    fn a_job_that_kills_its_workers_is_a_dead_letter() {
        let mut job = given::<Job>([enqueue(), claim(1, None)]);
        for n in 1..=MAX_LOST {
            let n = u128::from(n);
            let events = job.decide(claim(n + 1, Some(n))).unwrap();
            assert!(matches!(&events[..], [Event::Claimed(e)] if e.attempt == 1), "no attempt is counted");
            job = events.iter().fold(job, Job::evolve);
        }
        let last = u128::from(MAX_LOST);
        assert!(matches!(job.decide(claim(0, Some(last + 1))).unwrap()[..], [Event::DeadLettered(_)]));
    }

    #[test]
    fn the_end_of_a_job_is_not_part_of_its_executions_history() {
        let order = Enqueued { execution_id: Some(Uuid::nil()), max_attempts: 1, ..Enqueued::default() };
        let job = given::<Job>([Command::Enqueue(order), claim(1, None)]);
        let tagged = |event: &Event| job.tags("x", event).iter().any(|tag| tag.starts_with("execution:"));
        assert!(tagged(&Event::Failed(Failed::default())));
        assert!(!tagged(&Event::Completed(Completed::default())));
    }

    proptest! {
        #[test]
        fn attempts_are_bounded(steps in prop::collection::vec((0u8..4, 1u128..5), 0..50)) {
            let mut job = given::<Job>([enqueue()]);
            for (step, n) in steps {
                let present = match &job { Job::Claimed { claim_id, .. } => Some(claim_id.as_u128()), _ => None };
                let command = match step {
                    0 => claim(n, None),
                    1 => claim(n + 10, present),
                    2 => fail(present.unwrap_or(n), true),
                    _ => complete(n),
                };
                let Ok(events) = job.decide(command) else { continue };
                job = events.iter().fold(job, Job::evolve);
                prop_assert!(job.facts().unwrap().attempts <= 3);
            }
        }
    }
}
