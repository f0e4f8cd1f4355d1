//! What happens in a survey and the rules of it.
//!
//! Every file is one thing that has a history: its events, its state folded from them, the commands one may give it and
//! the rules that turn a command into events or a [`Rejection`]. Rules live nowhere else.
//!
//! This crate cannot do I/O: there is no runtime, database or HTTP client among its dependencies. Time, ids and random
//! choices arrive inside commands, so the same history and the same command always give the same answer.

// The documentation is built with private items: it is for those who work in here.
#![allow(rustdoc::private_intra_doc_links)]

#[macro_use]
mod macros;

pub mod account;
pub mod admission;
pub mod alert;
pub mod alerting;
pub mod channel;
pub mod delivery;
pub mod dependency;
pub mod execution;
pub mod follower;
pub mod id;
pub mod job;
pub mod lease;
pub mod profile;
pub mod project;
pub mod rule;
pub mod session;
pub mod silence;
pub mod source;
pub mod worker;

/// A decider's no: a domain answer, not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    /// A stable word, also the last part of the problem's `type`.
    pub code: &'static str,
    /// What was asked, why not, and what would be right.
    pub detail: String,
}

impl Rejection {
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// Something with a history: a decider (initial state, [`decide`](Aggregate::decide), [`evolve`](Aggregate::evolve)).
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    type Event: Clone + Send + Sync + Into<Event>;
    type Command: Send;

    /// The first part of its streams' names.
    const CATEGORY: &'static str;

    /// Says what happens.
    fn decide(&self, command: Self::Command) -> Result<Vec<Self::Event>, Rejection>;

    /// Folds one event in. It cannot fail: what happened, happened.
    fn evolve(self, event: &Self::Event) -> Self;

    /// The tags of `event`, where `self` is the state after it and `id` the stream's name without its category.
    /// Exactly one of them is `project:<module>` or `scope:installation`.
    fn tags(&self, id: &str, event: &Self::Event) -> Vec<String>;

    /// Picks this aggregate's events out of [`Event`].
    fn pick(event: &Event) -> Option<&Self::Event>;
}

#[cfg(test)]
mod testing {
    use super::Aggregate;

    /// The state after `commands`, each of which has to be accepted.
    pub fn given<A: Aggregate>(commands: impl IntoIterator<Item = A::Command>) -> A {
        commands.into_iter().fold(A::default(), |state, command| {
            let events = state.decide(command).expect("a given command is accepted");
            events.iter().fold(state, A::evolve)
        })
    }
}

/// The scope tag of what belongs to the installation and not to one project; only administrators see it.
pub const INSTALLATION: &str = "scope:installation";

macro_rules! all_events {
    ($($Variant:ident $module:ident),* $(,)?) => {
        /// Any event of any stream.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Event {
            $($Variant($module::Event),)*
            /// Salt and data of another event were removed.
            LogRedacted(LogRedacted),
        }
        $(impl From<$module::Event> for Event {
            fn from(event: $module::Event) -> Self {
                Self::$Variant(event)
            }
        })*
    };
}

all_events! {
    Source source, Execution execution, Project project, Profile profile, Job job, Worker worker,
    Dependency dependency, Lease lease, Account account, Session session, Channel channel, Rule rule,
    Silence silence, Alert alert, Delivery delivery, Follower follower,
}

payload! {
    /// `log.redacted`, in stream `log`.
    pub struct LogRedacted {
        pub event_id: uuid::Uuid,
        pub event_type: String,
        pub stream: String,
        pub reason: String,
    }
}
