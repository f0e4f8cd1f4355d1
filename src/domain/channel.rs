//! A **notification channel**: where messages go. Stream `channel-{id}`.
//!
//! Absent ─Create→ Active ─Update→ Active ─Remove→ Removed
//!                 Active ─Disable (the receiver is gone, or failed for long)→ Active (not enabled) ─Update→ Active
//!                 Active ─RecordTest→ Active
//!
//! Invariants: a channel keeps its kind (`a_channel_keeps_its_kind`), because what waits to be delivered was made for it;
//! what was removed takes no command (`a_removed_channel_takes_no_command`); whoever names the revision that he saw changes
//! that one and no other (`who_names_an_old_revision_changes_nothing`); only what failed without a break, for long and for several
//! messages, is disabled by itself (`a_channel_that_failed_for_long_is_disabled_and_one_that_failed_a_little_is_not`). An event
//! has no secret, only where it is: see [`Secret`].

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection};

mod config;
pub use config::*;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: String,
    pub enabled: bool,
    pub config: Config,
}

payload! {
    /// `channel.created`
    pub struct Created {
        pub revision: u64,
        pub spec: Spec,
    }

    /// `channel.updated`
    pub struct Updated {
        pub revision: u64,
        pub spec: Spec,
    }

    /// `channel.removed`
    pub struct Removed {
        pub name: String,
    }

    /// `channel.tested`
    pub struct Tested {
        pub delivery_id: Uuid,
        /// Whether the receiver took the message.
        pub taken: bool,
        /// The HTTP status, or the SMTP reply code.
        pub code: Option<u16>,
        pub latency_ms: u64,
        pub error: Option<String>,
    }

    /// `channel.disabled`: nobody asked for it; what waits for it is given up.
    pub struct Disabled {
        pub revision: u64,
        pub reason: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Created),
    Updated(Updated),
    Removed(Removed),
    Tested(Tested),
    Disabled(Disabled),
}

#[derive(Clone, Debug)]
pub enum Command {
    Create {
        spec: Spec,
    },
    /// `expected`: the revision that the caller saw.
    Update {
        spec: Spec,
        expected: Option<u64>,
    },
    Remove {
        expected: Option<u64>,
    },
    RecordTest(Tested),
    Disable {
        reason: String,
    },
    /// Disables it if it failed for `after`.
    DisableFailing {
        failing: Failing,
        at: DateTime<Utc>,
        after: TimeDelta,
    },
}

/// So many messages have to have failed before a channel is disabled for it: one may be the message's fault.
pub const FAILING_DELIVERIES: u32 = 3;

/// Attempts that all failed, since the last that did not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failing {
    /// The revision of the channel that failed.
    pub revision: u64,
    /// When the first of them began.
    pub since: DateTime<Utc>,
    pub attempts: u32,
    /// Of how many messages they were.
    pub deliveries: u32,
    /// How the last one failed.
    pub error: String,
}

impl Failing {
    /// Why a channel that failed so is disabled at `at`; `None`: it is not.
    fn lasts(&self, at: DateTime<Utc>, after: TimeDelta) -> Option<String> {
        if self.deliveries < FAILING_DELIVERIES || at - self.since < after {
            return None;
        }
        let Self { since, attempts, deliveries, error, .. } = self;
        let since = since.format("%Y-%m-%dT%H:%M:%SZ");
        Some(format!(
            "all {attempts} attempts to deliver {deliveries} messages failed since {since}, the last one with: {error}"
        ))
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub spec: Spec,
    /// Counts from 1 and rises with every change.
    pub revision: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Channel {
    #[default]
    Absent,
    Active(Facts),
    Removed(Facts),
}

/// Refuses a change of something that has gone on since the caller saw it.
pub(crate) fn as_seen(expected: Option<u64>, present: u64) -> Result<(), Rejection> {
    match expected {
        Some(expected) if expected != present => Err(Rejection::new(
            "outdated",
            format!("it is at revision {present} and not {expected}; look at it again"),
        )),
        _ => Ok(()),
    }
}

impl Aggregate for Channel {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "channel";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Create { spec }) => {
                Ok(vec![Event::Created(Created { revision: 1, spec })])
            }
            (Self::Active(facts), Command::Create { spec }) if facts.spec == spec => Ok(vec![]),
            (_, Command::Create { spec }) => Err(Rejection::new(
                "channel-exists",
                format!("channel {:?} was created before under this id", spec.name),
            )),
            (Self::Absent | Self::Removed(_), _) => {
                Err(Rejection::new("channel-unknown", "no such notification channel"))
            }
            (Self::Active(facts), Command::Update { spec, expected }) => {
                as_seen(expected, facts.revision)?;
                let kind = facts.spec.config.kind();
                if spec.config.kind() != kind {
                    return Err(Rejection::new(
                        "channel-kind-fixed",
                        format!("a channel keeps its kind {kind:?}; create another one instead"),
                    ));
                }
                if spec == facts.spec {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Updated(Updated { revision: facts.revision + 1, spec })])
            }
            (Self::Active(facts), Command::Remove { expected }) => {
                as_seen(expected, facts.revision)?;
                Ok(vec![Event::Removed(Removed { name: facts.spec.name.clone() })])
            }
            (Self::Active(_), Command::RecordTest(tested)) => Ok(vec![Event::Tested(tested)]),
            (Self::Active(facts), Command::Disable { .. }) if !facts.spec.enabled => Ok(vec![]),
            (Self::Active(facts), Command::Disable { reason }) => {
                Ok(vec![Event::Disabled(Disabled { revision: facts.revision + 1, reason })])
            }
            // Whoever changed it meanwhile may have mended it.
            (Self::Active(facts), Command::DisableFailing { failing, at, after }) => {
                let same = facts.spec.enabled && facts.revision == failing.revision;
                let reason = failing.lasts(at, after).filter(|_| same);
                let disabled = |reason| Event::Disabled(Disabled { revision: facts.revision + 1, reason });
                Ok(reason.map(disabled).into_iter().collect())
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let mut facts = match self {
            Self::Absent => Facts::default(),
            Self::Active(facts) | Self::Removed(facts) => facts,
        };
        match event {
            Event::Created(Created { revision, spec }) | Event::Updated(Updated { revision, spec }) => {
                Self::Active(Facts { spec: spec.clone(), revision: *revision })
            }
            Event::Removed(_) => Self::Removed(facts),
            Event::Tested(_) => Self::Active(facts),
            Event::Disabled(e) => {
                (facts.spec.enabled, facts.revision) = (false, e.revision);
                Self::Active(facts)
            }
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Channel(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn spec(name: &str) -> Spec {
        Spec { name: name.into(), enabled: true, ..Spec::default() }
    }

    fn create() -> Command {
        Command::Create { spec: spec("ops") }
    }

    fn update(name: &str, expected: Option<u64>) -> Command {
        Command::Update { spec: spec(name), expected }
    }

    #[test]
    fn a_channel_keeps_its_kind() {
        let mail = Spec { config: Config::Email(Email::default()), ..spec("ops") };
        let channel = given::<Channel>([create()]);
        let change = Command::Update { spec: mail, expected: None };
        assert_eq!(channel.decide(change).unwrap_err().code, "channel-kind-fixed");
    }

    #[test]
    fn a_removed_channel_takes_no_command() {
        let channel = given::<Channel>([create(), Command::Remove { expected: None }]);
        for command in [
            update("x", None),
            Command::Remove { expected: None },
            Command::RecordTest(Tested::default()),
            Command::Disable { reason: "gone".into() },
        ] {
            assert_eq!(channel.decide(command).unwrap_err().code, "channel-unknown");
        }
        assert_eq!(channel.decide(create()).unwrap_err().code, "channel-exists");
    }

    #[test]
    fn who_names_an_old_revision_changes_nothing() {
        let channel = given::<Channel>([create(), update("ops 2", Some(1))]);
        assert_eq!(channel.decide(update("ops 3", Some(1))).unwrap_err().code, "outdated");
        assert_eq!(channel.decide(Command::Remove { expected: Some(1) }).unwrap_err().code, "outdated");
        assert_eq!(channel.decide(update("ops 2", Some(2))), Ok(vec![]), "the same again is no news");
    }

    #[test]
    fn a_disabled_channel_is_enabled_by_a_person_and_disabled_once() {
        let disable = || Command::Disable { reason: "410".into() };
        let channel = given::<Channel>([create(), disable()]);
        assert_eq!(channel.decide(disable()), Ok(vec![]));
        let Channel::Active(facts) = channel.clone() else { panic!("{channel:?}") };
        assert_eq!((facts.spec.enabled, facts.revision), (false, 2));
        let enabled = channel.decide(update("ops", Some(2))).unwrap();
        assert!(matches!(&enabled[..], [Event::Updated(e)] if e.revision == 3 && e.spec.enabled));
    }

    #[test]
    fn a_channel_that_failed_for_long_is_disabled_and_one_that_failed_a_little_is_not() {
        let since = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let channel = given::<Channel>([create(), update("ops 2", None)]);
        let after = |hours: i64, deliveries: u32, revision: u64| {
            let error = "the receiver answered 503".to_owned();
            let failing = Failing { revision, since, attempts: 40, deliveries, error };
            let at = since + TimeDelta::hours(hours);
            let command = Command::DisableFailing { failing, at, after: TimeDelta::hours(24) };
            channel.decide(command).unwrap()
        };
        assert_eq!(after(23, 9, 2), vec![], "not for long enough");
        assert_eq!(after(30, FAILING_DELIVERIES - 1, 2), vec![], "it may be the message's fault");
        assert_eq!(after(30, 9, 1), vec![], "somebody changed it meanwhile");
        let events = after(24, FAILING_DELIVERIES, 2);
        let [Event::Disabled(e)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(e.revision, 3);
        assert!(
            e.reason.contains("2023-11-14T22:13:20Z") && e.reason.ends_with("answered 503"),
            "{}",
            e.reason
        );
        let disabled = channel.evolve(&events[0]);
        let failing = Failing { revision: 3, since, deliveries: 9, ..Failing::default() };
        let again =
            Command::DisableFailing { failing, at: since + TimeDelta::hours(99), after: TimeDelta::zero() };
        assert_eq!(disabled.decide(again), Ok(vec![]), "once");
    }

    #[test]
    fn the_same_creation_again_is_no_news() {
        assert_eq!(given::<Channel>([create()]).decide(create()), Ok(vec![]));
    }
}
