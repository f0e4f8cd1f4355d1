//! A **session**: one login, with its present pair of tokens. Stream `session-{id}`.
//!
//! Absent ─Open→ Open ─Rotate→ Open ─Close→ Closed
//!
//! Invariant: a refresh token works once; showing an old one closes the session, because somebody else has a copy
//! (`a_refresh_token_works_once`). Token hashes are private fields.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection};

payload! {
    /// A pair of tokens by their SHA-256, hexadecimal; private.
    pub struct Pair {
        pub access_sha256: String,
        pub refresh_sha256: String,
        pub access_expires_at: DateTime<Utc>,
        pub refresh_expires_at: DateTime<Utc>,
    }

    /// `session.opened`
    pub struct Opened {
        pub account_id: Uuid,
        pub pair: Pair,
    }

    /// `session.rotated`
    pub struct Rotated {
        pub pair: Pair,
    }

    /// `session.closed`
    pub struct Closed {
        pub reason: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Opened(Opened),
    Rotated(Rotated),
    Closed(Closed),
}

#[derive(Clone, Debug)]
pub enum Command {
    Open(Opened),
    Rotate { shown_sha256: String, now: DateTime<Utc>, pair: Pair },
    Close { reason: String },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Session {
    #[default]
    Absent,
    Open(Pair),
    Closed,
}

impl Aggregate for Session {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "session";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Open(opened)) => Ok(vec![Event::Opened(opened)]),
            (_, Command::Open(_)) => Err(Rejection::new("session-exists", "the session exists")),
            (Self::Open(known), Command::Rotate { shown_sha256, now, pair }) => {
                if known.refresh_sha256 != shown_sha256 {
                    return Ok(vec![Event::Closed(Closed {
                        reason: "an old refresh token was shown".into(),
                    })]);
                }
                if known.refresh_expires_at <= now {
                    return Err(Rejection::new(
                        "token-expired",
                        "the refresh token has expired; log in again",
                    ));
                }
                Ok(vec![Event::Rotated(Rotated { pair })])
            }
            (Self::Open(_), Command::Close { reason }) => Ok(vec![Event::Closed(Closed { reason })]),
            (Self::Absent | Self::Closed, Command::Close { .. }) => Ok(vec![]),
            (Self::Absent | Self::Closed, Command::Rotate { .. }) => {
                Err(Rejection::new("session-closed", "the session is closed; log in again"))
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Opened(e) => Self::Open(e.pair.clone()),
            Event::Rotated(e) => Self::Open(e.pair.clone()),
            Event::Closed(_) => Self::Closed,
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Session(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn pair(refresh: &str) -> Pair {
        Pair {
            refresh_sha256: refresh.into(),
            refresh_expires_at: DateTime::<Utc>::MAX_UTC,
            ..Pair::default()
        }
    }

    fn rotate(shown: &str, next: &str) -> Command {
        Command::Rotate { shown_sha256: shown.into(), now: DateTime::UNIX_EPOCH, pair: pair(next) }
    }

    #[test]
    fn a_refresh_token_works_once() {
        let open = Command::Open(Opened { account_id: Uuid::nil(), pair: pair("a") });
        let session = given::<Session>([open, rotate("a", "b")]);
        let events = session.decide(rotate("a", "c")).unwrap();
        assert!(matches!(events[..], [Event::Closed(_)]));
        let closed = session.evolve(&events[0]);
        assert_eq!(closed.decide(rotate("b", "c")).unwrap_err().code, "session-closed");
    }
}
