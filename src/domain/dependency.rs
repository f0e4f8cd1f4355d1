//! A **dependency**: something outside that work needs, such as an archive or a DIM. Stream `dependency-{name}`.
//!
//! Unknown ─See→ Up ⇄ Down
//!
//! Invariant: seeing the same again is not an event (`only_a_change_is_an_event`). Latency and the time of the last look are
//! volatile and live in presence.

use crate::{Aggregate, INSTALLATION, Rejection};

payload! {
    /// `dependency.up`
    pub struct Up {
        pub dependency: String,
        pub latency_ms: u64,
    }

    /// `dependency.down`
    pub struct Down {
        pub dependency: String,
        pub reason: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Up(Up),
    Down(Down),
}

/// What a probe saw.
#[derive(Clone, Debug)]
pub enum Command {
    SeeUp { dependency: String, latency_ms: u64 },
    SeeDown { dependency: String, reason: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Dependency {
    #[default]
    Unknown,
    Up,
    Down,
}

impl Aggregate for Dependency {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "dependency";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        Ok(match (self, command) {
            (Self::Up, Command::SeeUp { .. }) | (Self::Down, Command::SeeDown { .. }) => vec![],
            (_, Command::SeeUp { dependency, latency_ms }) => vec![Event::Up(Up { dependency, latency_ms })],
            (_, Command::SeeDown { dependency, reason }) => vec![Event::Down(Down { dependency, reason })],
        })
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Up(_) => Self::Up,
            Event::Down(_) => Self::Down,
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Dependency(event) => Some(event),
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
        let up = || Command::SeeUp { dependency: "tap:casda".into(), latency_ms: 3 };
        let down = || Command::SeeDown { dependency: "tap:casda".into(), reason: "refused".into() };
        let dependency = given::<Dependency>([up()]);
        assert_eq!(dependency.decide(up()), Ok(vec![]));
        assert!(matches!(dependency.decide(down()).unwrap()[..], [Event::Down(_)]));
        assert!(
            matches!(Dependency::Unknown.decide(down()).unwrap()[..], [Event::Down(_)]),
            "the first look counts"
        );
    }
}
