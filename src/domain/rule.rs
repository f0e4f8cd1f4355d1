//! An **alert rule**: what people want to be told of, and how. Stream `rule-{id}`.
//!
//! Absent ─Create→ Active ─Update→ Active ─Remove→ Removed
//!
//! Invariants: every change is a version of its own (`every_change_is_a_version_of_its_own`), which alerts name, so that it
//! can be told later by what was judged; whoever names the version that he saw changes that one and no other
//! (`who_names_an_old_version_changes_nothing`). Whether a condition holds is not judged here, see [`alert`](crate::alert).

use crate::channel::as_seen;
use crate::{Aggregate, INSTALLATION, Rejection};

mod spec;
mod trigger;
pub use spec::*;
pub use trigger::*;

payload! {
    /// `rule.created`
    pub struct Created {
        pub version: u64,
        pub spec: Spec,
    }

    /// `rule.updated`
    pub struct Updated {
        pub version: u64,
        pub spec: Spec,
    }

    /// `rule.removed`
    pub struct Removed {
        pub name: String,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Created),
    Updated(Updated),
    Removed(Removed),
}

#[derive(Clone, Debug)]
pub enum Command {
    Create {
        spec: Spec,
    },
    /// `expected`: the version that the caller saw.
    Update {
        spec: Spec,
        expected: Option<u64>,
    },
    Remove {
        expected: Option<u64>,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub spec: Spec,
    /// Counts from 1 and rises with every change.
    pub version: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Rule {
    #[default]
    Absent,
    Active(Facts),
    Removed(Facts),
}

/// The tag of a project, or of the installation.
pub(crate) fn scope(project_module: Option<&str>) -> String {
    project_module.map_or_else(|| INSTALLATION.to_owned(), |project| format!("project:{project}"))
}

impl Aggregate for Rule {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "rule";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Create { spec }) => {
                Ok(vec![Event::Created(Created { version: 1, spec })])
            }
            (Self::Active(facts), Command::Create { spec }) if facts.spec == spec => Ok(vec![]),
            (_, Command::Create { spec }) => Err(Rejection::new(
                "rule-exists",
                format!("rule {:?} was created before under this id", spec.name),
            )),
            (Self::Absent | Self::Removed(_), _) => Err(Rejection::new("rule-unknown", "no such alert rule")),
            (Self::Active(facts), Command::Update { spec, expected }) => {
                as_seen(expected, facts.version)?;
                if spec == facts.spec {
                    return Ok(vec![]);
                }
                Ok(vec![Event::Updated(Updated { version: facts.version + 1, spec })])
            }
            (Self::Active(facts), Command::Remove { expected }) => {
                as_seen(expected, facts.version)?;
                Ok(vec![Event::Removed(Removed { name: facts.spec.name.clone() })])
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match event {
            Event::Created(Created { version, spec }) | Event::Updated(Updated { version, spec }) => {
                Self::Active(Facts { spec: spec.clone(), version: *version })
            }
            Event::Removed(_) => match self {
                Self::Absent => Self::Removed(Facts::default()),
                Self::Active(facts) | Self::Removed(facts) => Self::Removed(facts),
            },
        }
    }

    fn tags(&self, id: &str, _event: &Event) -> Vec<String> {
        let project = match self {
            Self::Absent => None,
            Self::Active(facts) | Self::Removed(facts) => facts.spec.project_module.as_deref(),
        };
        vec![scope(project), format!("rule:{id}")]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Rule(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::given;

    fn spec(name: &str) -> Spec {
        Spec { name: name.into(), ..Spec::default() }
    }

    fn create() -> Command {
        Command::Create { spec: spec("backlog") }
    }

    fn update(name: &str, expected: Option<u64>) -> Command {
        Command::Update { spec: spec(name), expected }
    }

    #[test]
    fn every_change_is_a_version_of_its_own() {
        let rule = given::<Rule>([create(), update("backlog 2", None)]);
        assert!(matches!(&rule, Rule::Active(facts) if facts.version == 2));
        assert_eq!(rule.decide(update("backlog 2", None)), Ok(vec![]), "the same again is no news");
        assert_eq!(given::<Rule>([create()]).decide(create()), Ok(vec![]));
    }

    #[test]
    fn who_names_an_old_version_changes_nothing() {
        let rule = given::<Rule>([create(), update("backlog 2", Some(1))]);
        assert_eq!(rule.decide(update("backlog 3", Some(1))).unwrap_err().code, "outdated");
        assert_eq!(rule.decide(Command::Remove { expected: Some(1) }).unwrap_err().code, "outdated");
    }

    #[test]
    fn a_removed_rule_takes_no_command() {
        let rule = given::<Rule>([create(), Command::Remove { expected: Some(1) }]);
        assert_eq!(rule.decide(update("x", None)).unwrap_err().code, "rule-unknown");
        assert_eq!(rule.decide(create()).unwrap_err().code, "rule-exists");
    }

    #[test]
    fn a_rule_is_tagged_with_what_it_watches() {
        let tags = |project: Option<&str>| {
            let spec = Spec { project_module: project.map(Into::into), ..spec("r") };
            let rule = given::<Rule>([Command::Create { spec }]);
            rule.tags("7", &Event::Removed(Removed::default()))
        };
        assert_eq!(tags(Some("wallaby")), ["project:wallaby", "rule:7"]);
        assert_eq!(tags(None), [INSTALLATION, "rule:7"]);
    }

    #[test]
    fn every_kind_of_trigger_has_the_defaults_of_earlier_releases() {
        let read = |kind: &str| serde_json::from_value::<Trigger>(json!({"kind": kind})).unwrap();
        for kind in Trigger::KINDS {
            assert_eq!(read(kind).kind(), *kind);
        }
        assert_eq!(read("pending_backlog"), Trigger::PendingBacklog { threshold: 50 });
        assert_eq!(read("pending_stale"), Trigger::PendingStale { max_age_seconds: 21_600 });
        assert_eq!(read("discovery_stall"), Trigger::DiscoveryStall { window_minutes: 120 });
        assert_eq!(read("dependency_down"), Trigger::DependencyDown { dependency: "postgres".into() });
        assert_eq!(read("daily_summary"), Trigger::DailySummary { window_hours: 24 });
        let misspelt = json!({"kind": "pending_backlog", "treshold": 3});
        assert!(serde_json::from_value::<Trigger>(misspelt).is_err());
    }
}
