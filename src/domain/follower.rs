//! A **follower**: a read model of a process, and whether it keeps up with the log. Stream `follower-{process}.{projection}`.
//!
//! Level ─FallBehind→ Behind ─CatchUp→ Level
//!
//! Invariant: being as far behind as before is not an event (`only_a_change_is_an_event`). How far it is behind from moment to
//! moment is volatile; this is the fact that rules can see.

use chrono::{DateTime, Utc};

use crate::{Aggregate, INSTALLATION, Rejection};

payload! {
    /// `projection.fell_behind`
    pub struct FellBehind {
        pub projection: String,
        /// The process: a worker's id.
        pub process: String,
        /// When it last had everything.
        pub since: DateTime<Utc>,
        /// Why, if it stands still.
        pub reason: Option<String>,
    }

    /// `projection.caught_up`
    pub struct CaughtUp {
        pub projection: String,
        pub process: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    FellBehind(FellBehind),
    CaughtUp(CaughtUp),
}

#[derive(Clone, Debug)]
pub enum Command {
    FallBehind(FellBehind),
    CatchUp { projection: String, process: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Follower {
    #[default]
    Level,
    Behind,
}

impl Aggregate for Follower {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "follower";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        Ok(match (self, command) {
            (Self::Level, Command::FallBehind(fell)) => vec![Event::FellBehind(fell)],
            (Self::Behind, Command::CatchUp { projection, process }) => {
                vec![Event::CaughtUp(CaughtUp { projection, process })]
            }
            (Self::Behind, Command::FallBehind(_)) | (Self::Level, Command::CatchUp { .. }) => vec![],
        })
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::FellBehind(_) => Self::Behind,
            Event::CaughtUp(_) => Self::Level,
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Follower(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    #[test]
    fn only_a_change_is_an_event() {
        let fall = || Command::FallBehind(FellBehind::default());
        let catch_up = || Command::CatchUp { projection: "sources".into(), process: "w".into() };
        assert_eq!(Follower::default().decide(catch_up()), Ok(vec![]));
        let behind = given::<Follower>([fall()]);
        assert_eq!(behind.decide(fall()), Ok(vec![]));
        assert_eq!(behind.decide(catch_up()).unwrap().len(), 1);
    }
}
