//! Conditions in **CEL**, the Common Expression Language (github.com/google/cel-spec): no loops but over what is there, no access
//! to anything but these values, all of one project at one point:
//!
//! | name | type | |
//! |---|---|---|
//! | `project` | string | its name |
//! | `paused` | bool | whether admission to it is paused |
//! | `sources` | int | enabled sources |
//! | `pending` | int | sources that wait for an execution |
//! | `oldest_pending_seconds` | int | for how long the one that waits longest has; 0 when none does |
//! | `live` | map | live executions by status |
//! | `oldest_live_seconds` | int | since when nothing has happened to the live execution that is stuck longest; 0 when none lives |
//! | `last_hour`, `last_day` | map | what ended within the last 60, the last 1,440 minutes, see [`Count`] |
//! | `queued` | map | jobs that could run, by kind; of the installation |
//! | `oldest_queued_seconds` | int | of the installation |
//! | `up` | map | by dependency, whether it is there; one that was never seen is missing |
//!
//! `last_hour.failed > 3 && double(last_hour.failed) / double(last_hour.failed + last_hour.completed) > 0.5`

use std::collections::{BTreeMap, HashMap};

use cel::objects::{Key, Map, Value};
use cel::{Context, Program};
use chrono::{DateTime, Utc};

use super::facts::{Count, Facts};
use crate::job;

/// The longest expression, in characters.
pub const LONGEST: usize = 1000;
/// What an execution can be while it lives.
pub const LIVE: &[&str] = &["pending", "running", "awaiting_scheduler", "retrying"];
/// The names that an expression can use.
pub const NAMES: &[&str] = &[
    "project",
    "paused",
    "sources",
    "pending",
    "oldest_pending_seconds",
    "live",
    "oldest_live_seconds",
    "last_hour",
    "last_day",
    "queued",
    "oldest_queued_seconds",
    "up",
];

fn seconds(at: DateTime<Utc>, since: Option<DateTime<Utc>>) -> i64 {
    since.map_or(0, |since| (at - since).num_seconds().max(0))
}

fn map<V: Into<Value>>(entries: impl IntoIterator<Item = (String, V)>) -> Value {
    let entries = entries.into_iter().map(|(name, value)| (Key::from(name), value.into()));
    Value::Map(Map { map: std::sync::Arc::new(entries.collect::<HashMap<_, _>>()) })
}

/// The values of a project at a point.
fn values(facts: &Facts, module: &str, at: DateTime<Utc>) -> Vec<(&'static str, Value)> {
    let empty = Default::default();
    let project = facts.projects.get(module).unwrap_or(&empty);
    let (mut live, mut oldest_live) = (BTreeMap::new(), None);
    for execution in facts.executions.values().filter(|live| live.project == module) {
        *live.entry(execution.status).or_insert(0_i64) += 1;
        oldest_live = oldest_live.map_or(Some(execution.since), |oldest| Some(execution.since.min(oldest)));
    }
    let (mut queued, mut oldest_queued) = (BTreeMap::new(), None);
    for job in facts.jobs.values() {
        let Some(ready) = job.ready_at.filter(|ready| *ready <= at) else { continue };
        *queued.entry(job.kind).or_insert(0_i64) += 1;
        oldest_queued = oldest_queued.map_or(Some(ready), |oldest| Some(ready.min(oldest)));
    }
    let ended = |window: u64| {
        map(Count::ALL.iter().map(|count| {
            (count.to_string(), i64::try_from(project.minutes.within(at, window, *count)).unwrap_or(i64::MAX))
        }))
    };
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    vec![
        ("project", module.into()),
        ("paused", Value::Bool(project.paused || facts.all_paused)),
        ("sources", int(project.sources)),
        ("pending", int(project.pending.len() as u64)),
        ("oldest_pending_seconds", Value::Int(seconds(at, project.pending.first().map(|(since, _)| *since)))),
        (
            "live",
            map(LIVE.iter().map(|status| ((*status).to_owned(), live.get(status).copied().unwrap_or(0)))),
        ),
        ("oldest_live_seconds", Value::Int(seconds(at, oldest_live))),
        ("last_hour", ended(60)),
        ("last_day", ended(1440)),
        (
            "queued",
            map(job::Kind::ALL.iter().map(|kind| (kind.to_string(), queued.get(kind).copied().unwrap_or(0)))),
        ),
        ("oldest_queued_seconds", Value::Int(seconds(at, oldest_queued))),
        ("up", map(facts.dependencies.iter().map(|(name, dependency)| (name.clone(), dependency.up)))),
    ]
}

/// A condition that was read.
pub struct Condition(Program);

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Condition")
    }
}

impl Condition {
    /// Reads an expression. What is wrong with it is said in a sentence.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.chars().count() > LONGEST {
            return Err(format!("it has from 1 to {LONGEST} characters"));
        }
        let program = Program::compile(text).map_err(|errors| {
            errors.to_string().lines().next().unwrap_or("it cannot be read").trim().to_owned()
        })?;
        let references = program.references();
        if let Some(name) = references.variables().into_iter().find(|name| !NAMES.contains(name)) {
            return Err(format!("{name:?} is not known; there are {}", NAMES.join(", ")));
        }
        Ok(Self(program))
    }

    /// Reads it and tries it on a project that has nothing, so that a wrong type is found when the rule is saved.
    pub fn check(text: &str) -> Result<(), String> {
        let condition = Self::read(text)?;
        match condition.holds(&Facts::default(), "", DateTime::UNIX_EPOCH) {
            Ok(_) => Ok(()),
            // Which dependencies there are is not known yet; a division by a count that is zero here is the rule's no data.
            Err(error) if error.contains("No such key") && text.contains("up") => Ok(()),
            Err(error) if error.contains("by zero") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it holds for a project at a point; an error where that cannot be told.
    pub fn holds(&self, facts: &Facts, module: &str, at: DateTime<Utc>) -> Result<bool, String> {
        let mut context = Context::default();
        for (name, value) in values(facts, module, at) {
            context.add_variable_from_value(name, value);
        }
        match self.0.execute(&context) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("it gives {:?} and not true or false", other.type_of())),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_that_cannot_be_judged_is_refused_with_what_would_be_right() {
        let wrong = |text: &str| Condition::check(text).unwrap_err();
        assert!(wrong("pending >").len() > 5);
        assert!(wrong("pendin > 3").contains("there are project"), "{}", wrong("pendin > 3"));
        assert!(wrong("pending + 1").contains("true or false"));
        assert!(wrong("pending > \"3\"").len() > 5);
        assert!(wrong("last_hour.faild > 3").contains("faild"));
        assert!(wrong("").contains("1000") && wrong(&"1".repeat(1001)).contains("1000"));
        assert!(wrong(&format!("{}pending{}", "(".repeat(300), ")".repeat(300))).len() > 5);
    }

    #[test]
    fn an_expression_sees_the_counts_of_its_project_and_nothing_else() {
        for good in [
            "pending > 3 && !paused",
            "last_hour.failed > 3 && double(last_hour.failed) / double(last_hour.failed + last_hour.completed) > 0.5",
            "live.running == 0 && oldest_pending_seconds > 3600",
            "has(up.tap_casda) && !up.tap_casda",
            "up[\"tap_casda\"] == false",
            "queued.discover_batch > 10 || oldest_queued_seconds > 60",
            "project.startsWith(\"wallaby\") && sources > 0",
        ] {
            assert_eq!(Condition::check(good), Ok(()), "{good}");
        }
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let mut facts = Facts::default();
        let project = facts.of_project("p");
        for second in [-30, -90, -4000] {
            project.minutes.add(at + chrono::TimeDelta::seconds(second), Count::Failed);
        }
        project.pending.insert((at - chrono::TimeDelta::seconds(77), uuid::Uuid::nil()));
        let holds = |text: &str, module: &str| Condition::read(text).unwrap().holds(&facts, module, at);
        assert_eq!(holds("last_hour.failed == 2 && last_day.failed == 3", "p"), Ok(true));
        assert_eq!(holds("pending == 1 && oldest_pending_seconds == 77", "p"), Ok(true));
        assert_eq!(holds("pending == 1", "other"), Ok(false));
        assert!(holds("up[\"tap_casda\"]", "p").is_err(), "what was never seen cannot be judged");
    }
}
