//! A **worker**: a process that does jobs. Stream `worker-{id}`; every start of a process is a worker of its own.
//!
//! Absent ─Start→ Active ─Drain→ Draining ─Resume→ Active
//!                  └──────────Stop / Lose───────→ Ended
//!
//! Invariant: what has ended never works again (`an_ended_worker_stays_ended`). Heartbeats are presence, not events.

use crate::{Aggregate, INSTALLATION, Rejection};

/// Whether somebody with `capabilities` can do what needs `needed`: `slurm` stands for every `slurm:<profile>`.
pub fn can_do<'a>(capabilities: impl IntoIterator<Item = &'a String>, needed: &str) -> bool {
    capabilities.into_iter().any(|able| able == needed || able == "slurm" && needed.starts_with("slurm:"))
}

payload! {
    /// `worker.started`
    pub struct Started {
        pub instance_name: String,
        pub host: String,
        pub pool: String,
        pub capabilities: Vec<String>,
        pub concurrency_limit: u32,
        pub process_id: u32,
        pub version: String,
    }

    /// `worker.drained`: it finishes what it has and claims no new work; its watches go to whoever can take them.
    pub struct Drained {
        pub reason: String,
    }

    /// `worker.resumed`
    pub struct Resumed {}

    /// `worker.stopped`, in order.
    pub struct Stopped {
        pub handed_back: u64,
    }

    /// `worker.lost`: its heartbeat stood still for longer than a lease.
    pub struct Lost {
        pub silent_seconds: u64,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Started(Started),
    Drained(Drained),
    Resumed(Resumed),
    Stopped(Stopped),
    Lost(Lost),
}

#[derive(Clone, Debug)]
pub enum Command {
    Start(Started),
    Drain { reason: String },
    Resume,
    Stop { handed_back: u64 },
    Lose { silent_seconds: u64 },
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Worker {
    #[default]
    Absent,
    Active,
    Draining,
    Ended,
}

impl Aggregate for Worker {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "worker";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        use Command as C;
        match (self, command) {
            (Self::Absent, C::Start(started)) => Ok(vec![Event::Started(started)]),
            (Self::Absent, _) => Err(Rejection::new("worker-unknown", "no such worker")),
            (Self::Active, C::Drain { reason }) => Ok(vec![Event::Drained(Drained { reason })]),
            (Self::Draining, C::Drain { .. }) | (Self::Active, C::Resume) => Ok(vec![]),
            (Self::Draining, C::Resume) => Ok(vec![Event::Resumed(Resumed {})]),
            (Self::Active | Self::Draining, C::Stop { handed_back }) => {
                Ok(vec![Event::Stopped(Stopped { handed_back })])
            }
            (Self::Active | Self::Draining, C::Lose { silent_seconds }) => {
                Ok(vec![Event::Lost(Lost { silent_seconds })])
            }
            (Self::Ended, C::Stop { .. } | C::Lose { .. }) => Ok(vec![]),
            (Self::Ended, C::Drain { .. } | C::Resume) => {
                Err(Rejection::new("worker-ended", "the worker has stopped; a new process is a new worker"))
            }
            (_, C::Start(_)) => {
                Err(Rejection::new("worker-exists", "a worker of this id has started before"))
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Started(_) | Event::Resumed(_) => Self::Active,
            Event::Drained(_) => Self::Draining,
            Event::Stopped(_) | Event::Lost(_) => Self::Ended,
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Worker(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    #[test]
    fn an_ended_worker_stays_ended() {
        let lost =
            given::<Worker>([Command::Start(Started::default()), Command::Lose { silent_seconds: 60 }]);
        assert_eq!(lost.decide(Command::Resume).unwrap_err().code, "worker-ended");
        assert_eq!(lost.decide(Command::Start(Started::default())).unwrap_err().code, "worker-exists");
        assert_eq!(lost.decide(Command::Stop { handed_back: 0 }), Ok(vec![]));
    }

    #[test]
    fn a_drained_worker_can_be_resumed() {
        let drained =
            given::<Worker>([Command::Start(Started::default()), Command::Drain { reason: "x".into() }]);
        assert_eq!(drained.decide(Command::Drain { reason: "y".into() }), Ok(vec![]));
        assert!(matches!(drained.decide(Command::Resume).unwrap()[..], [Event::Resumed(_)]));
    }
}
