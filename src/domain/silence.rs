//! A **silence**: for some time nobody is told of alerts with certain labels. Stream `silence-{id}`.
//!
//! Absent ─Create→ Set ─Expire (by a person, before its time)→ Expired ; a silence that has come to its end has no event
//!
//! Invariants: a silence ends, and not too late (`a_silence_ends_and_not_too_late`); it holds back what all its matchers
//! match and nothing else (`a_silence_holds_back_what_all_its_matchers_match`). It changes no alert's state: an alert fires
//! in silence, and what was held back is said so in its stream.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::{Aggregate, INSTALLATION, Rejection};

/// The longest silence, in days.
pub const LONGEST_DAYS: i64 = 30;
/// The most matchers of one silence.
pub const MOST_MATCHERS: usize = 60;

words! {
    /// How a label is compared.
    #[derive(Default)]
    pub enum Op { #[default] Is = "=", IsNot = "!=", Matches = "=~", MatchesNot = "!~" }
}

/// What is asked of one label. A label that is not there is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    pub name: String,
    #[serde(default)]
    pub op: Op,
    /// A text, or a regular expression that has to match the whole label.
    pub value: String,
}

/// The largest expression, compiled, in bytes: enough for a list of names, and nothing that takes long to compile.
const EXPRESSION_BYTES: usize = 64 * 1024;

impl Matcher {
    fn regex(&self) -> Result<Regex, regex::Error> {
        RegexBuilder::new(&format!("^(?:{})$", self.value))
            .size_limit(EXPRESSION_BYTES)
            .dfa_size_limit(EXPRESSION_BYTES)
            .build()
    }

    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        if self.name.is_empty() {
            return Some("a matcher names a label".into());
        }
        let is_regex = matches!(self.op, Op::Matches | Op::MatchesNot);
        let error = if is_regex { self.regex().err() } else { None };
        error.map(|error| format!("{:?} is no regular expression: {error}", self.value))
    }

    /// Whether a label of these fits. Whoever asks often compiles them once: [`Matchers`].
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        Matchers::of(std::slice::from_ref(self)).fit(labels)
    }
}

/// Matchers whose expressions are compiled.
#[derive(Clone, Debug, Default)]
pub struct Matchers(Vec<(Matcher, Option<Regex>)>);

impl Matchers {
    pub fn of(matchers: &[Matcher]) -> Self {
        let compiled = matchers.iter().map(|matcher| {
            let is_regex = matches!(matcher.op, Op::Matches | Op::MatchesNot);
            (matcher.clone(), if is_regex { matcher.regex().ok() } else { None })
        });
        Self(compiled.collect())
    }

    /// Whether all of them fit. An expression that cannot be read fits nothing, and so does nothing at all.
    pub fn fit(&self, labels: &BTreeMap<String, String>) -> bool {
        let fits = |(matcher, regex): &(Matcher, Option<Regex>)| {
            let label = labels.get(&matcher.name).map_or("", String::as_str);
            match matcher.op {
                Op::Is => label == matcher.value,
                Op::IsNot => label != matcher.value,
                Op::Matches => regex.as_ref().is_some_and(|regex| regex.is_match(label)),
                Op::MatchesNot => regex.as_ref().is_some_and(|regex| !regex.is_match(label)),
            }
        };
        !self.0.is_empty() && self.0.iter().all(fits)
    }
}

payload! {
    /// `silence.created`
    pub struct Created {
        pub matchers: Vec<Matcher>,
        pub comment: String,
        pub starts_at: DateTime<Utc>,
        pub ends_at: DateTime<Utc>,
    }

    /// `silence.expired`, before its time.
    pub struct Expired {
        pub at: DateTime<Utc>,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Created),
    Expired(Expired),
}

#[derive(Clone, Debug)]
pub enum Command {
    Create(Created),
    Expire { at: DateTime<Utc> },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Silence {
    #[default]
    Absent,
    Set(Created),
    Expired(Created),
}

impl Silence {
    /// Whether it holds back, at `at`, what has these labels.
    pub fn holds_back(&self, labels: &BTreeMap<String, String>, at: DateTime<Utc>) -> bool {
        match self {
            Self::Set(set) => {
                (set.starts_at..set.ends_at).contains(&at) && Matchers::of(&set.matchers).fit(labels)
            }
            Self::Absent | Self::Expired(_) => false,
        }
    }
}

fn check(set: &Created) -> Result<(), Rejection> {
    let refuse = |detail: String| Err(Rejection::new("invalid-silence", detail));
    if set.ends_at <= set.starts_at {
        return refuse("a silence ends after it starts".into());
    }
    if set.ends_at - set.starts_at > TimeDelta::days(LONGEST_DAYS) {
        return refuse(format!("a silence lasts at most {LONGEST_DAYS} days; renew it when it has ended"));
    }
    if set.comment.trim().is_empty() {
        return refuse("a silence has a comment that says why".into());
    }
    if set.matchers.is_empty() || set.matchers.len() > MOST_MATCHERS {
        return refuse(format!("a silence has 1 to {MOST_MATCHERS} matchers"));
    }
    if let Some(fault) = set.matchers.iter().find_map(Matcher::fault) {
        return refuse(fault);
    }
    if Matchers::of(&set.matchers).fit(&BTreeMap::new()) {
        return refuse(
            "every matcher fits what has no such label, so this would silence everything; name a label that is there, \
             such as severity=~\".+\""
                .into(),
        );
    }
    Ok(())
}

impl Aggregate for Silence {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "silence";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Create(set)) => {
                check(&set)?;
                Ok(vec![Event::Created(set)])
            }
            (Self::Set(present), Command::Create(set)) if *present == set => Ok(vec![]),
            (_, Command::Create(_)) => {
                Err(Rejection::new("silence-exists", "a silence was created before under this id"))
            }
            (Self::Absent, Command::Expire { .. }) => {
                Err(Rejection::new("silence-unknown", "no such silence"))
            }
            (Self::Set(set), Command::Expire { at }) if at < set.ends_at => {
                Ok(vec![Event::Expired(Expired { at })])
            }
            // It has come to its end by itself.
            (Self::Set(_) | Self::Expired(_), Command::Expire { .. }) => Ok(vec![]),
        }
    }

    fn evolve(self, event: &Event) -> Self {
        match (self, event) {
            (_, Event::Created(set)) => Self::Set(set.clone()),
            (Self::Set(set) | Self::Expired(set), Event::Expired(_)) => Self::Expired(set),
            (Self::Absent, Event::Expired(_)) => Self::Expired(Created::default()),
        }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Silence(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn matcher(name: &str, op: Op, value: &str) -> Matcher {
        Matcher { name: name.into(), op, value: value.into() }
    }

    fn silence(matchers: Vec<Matcher>, seconds: i64) -> Created {
        Created { matchers, comment: "maintenance".into(), starts_at: at(0), ends_at: at(seconds) }
    }

    fn of_project() -> Vec<Matcher> {
        vec![matcher("project_module", Op::Is, "wallaby")]
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_silence_ends_and_not_too_late() {
        let refused = |set| Silence::Absent.decide(Command::Create(set)).unwrap_err();
        for seconds in [-1, 0, LONGEST_DAYS * 86_400 + 1] {
            assert_eq!(refused(silence(of_project(), seconds)).code, "invalid-silence");
        }
        assert!(
            Silence::Absent.decide(Command::Create(silence(of_project(), LONGEST_DAYS * 86_400))).is_ok()
        );
        assert!(refused(Created { comment: " ".into(), ..silence(of_project(), 60) }).detail.contains("why"));
        assert!(refused(silence(vec![], 60)).detail.contains("matchers"));
        assert!(refused(silence(vec![matcher("a", Op::Matches, "(")], 60)).detail.contains("expression"));
    }

    #[test]
    fn a_silence_holds_back_what_all_its_matchers_match() {
        let matchers = vec![
            matcher("project_module", Op::Matches, "wal.*"),
            matcher("severity", Op::IsNot, "critical"),
            matcher("rule", Op::MatchesNot, "backlog|stale"),
        ];
        let set = given::<Silence>([Command::Create(silence(matchers, 60))]);
        let quiet = labels(&[("project_module", "wallaby"), ("severity", "warning")]);
        assert!(set.holds_back(&quiet, at(0)) && set.holds_back(&quiet, at(59)));
        assert!(!set.holds_back(&quiet, at(-1)) && !set.holds_back(&quiet, at(60)), "only in its time");
        for (name, value) in [("severity", "critical"), ("rule", "stale"), ("project_module", "a wallaby")] {
            let mut loud = quiet.clone();
            loud.insert(name.into(), value.into());
            assert!(!set.holds_back(&loud, at(5)), "{name}={value}");
        }
        assert!(!set.holds_back(&labels(&[]), at(5)), "a label that is not there is empty");
    }

    #[test]
    fn an_expired_silence_holds_nothing_back_and_expires_once() {
        let expire = || Command::Expire { at: at(10) };
        let set = given::<Silence>([Command::Create(silence(of_project(), 60)), expire()]);
        assert!(!set.holds_back(&labels(&[("project_module", "wallaby")]), at(11)));
        assert_eq!(set.decide(expire()), Ok(vec![]));
        let over = given::<Silence>([Command::Create(silence(of_project(), 60))]);
        assert_eq!(over.decide(Command::Expire { at: at(60) }), Ok(vec![]), "it has ended by itself");
        assert_eq!(Silence::Absent.decide(expire()).unwrap_err().code, "silence-unknown");
    }

    #[test]
    fn an_expression_that_takes_long_to_compile_and_what_would_silence_everything_are_refused() {
        let refused = |matchers| Silence::Absent.decide(Command::Create(silence(matchers, 60))).unwrap_err();
        let heavy = refused(vec![matcher("rule", Op::Matches, r"\pL{120}")]);
        assert!(heavy.detail.contains("no regular expression"), "{heavy}");
        for everything in [
            matcher("projct_module", Op::IsNot, "wallaby"),
            matcher("rule", Op::Matches, ".*"),
            matcher("rule", Op::Is, ""),
        ] {
            assert!(refused(vec![everything]).detail.contains("silence everything"));
        }
        let some = vec![matcher("severity", Op::Matches, ".+"), matcher("team", Op::IsNot, "a")];
        assert!(Silence::Absent.decide(Command::Create(silence(some, 60))).is_ok());
    }
}
