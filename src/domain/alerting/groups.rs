//! **Groups**: which messages go together, and when. What an alert calls for is *owed* to a channel until a delivery is enqueued
//! that names it as a cause; a group waits for its rule's `group_wait` and keeps `group_interval` between two messages; messages
//! of severity info wait for the end of the quiet hours.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::facts::Facts;
use crate::alert::{Subject, span};
use crate::delivery::Message;
use crate::rule::Spec;

/// How many causes one message names; what is over comes with the next.
const MOST_IN_A_MESSAGE: usize = 1000;

/// A message that an event of an alert calls for, on one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Owed {
    /// The event.
    pub cause: Uuid,
    /// The alert's stream without its category.
    pub alert: String,
    pub rule: Uuid,
    pub group: String,
    pub channel: Uuid,
    pub message: Message,
    /// The point at which it was decided.
    pub at: DateTime<Utc>,
    pub occurrence: bool,
    pub subject: Subject,
    pub summary: String,
    /// Since when the condition held.
    pub since: DateTime<Utc>,
    /// When it began to fire.
    pub fired_at: DateTime<Utc>,
    pub late: bool,
}

/// Everything that one message says.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub group: String,
    pub channel: Uuid,
    pub rule: Uuid,
    /// Firing if any of its alerts is.
    pub message: Message,
    pub at: DateTime<Utc>,
    /// In the order in which they were decided.
    pub owed: Vec<Owed>,
}

/// The labels of a group.
pub fn labels(subject: &Subject, spec: Option<&Spec>) -> BTreeMap<String, String> {
    let Some(by) = spec.and_then(|spec| spec.group_by.as_ref()) else { return subject.labels.clone() };
    by.iter().map(|name| (name.clone(), subject.labels.get(name).cloned().unwrap_or_default())).collect()
}

/// The name of the group of an alert: the alert's own, where a rule does not group.
pub fn of(alert: &str, subject: &Subject, spec: Option<&Spec>) -> String {
    match spec.and_then(|spec| spec.group_by.as_ref()) {
        None => alert.to_owned(),
        Some(_) => format!("{}-{}", subject.rule_id, crate::id::fingerprint(&labels(subject, spec), None)),
    }
}

/// When a group's message may go, as its rule says; a rule that is gone holds nothing back.
fn due(
    facts: &Facts,
    spec: Option<&Spec>,
    group: &str,
    channel: Uuid,
    first: DateTime<Utc>,
) -> DateTime<Utc> {
    let Some(spec) = spec else { return first };
    let wait = first + span(spec.group_wait_seconds);
    match facts.flushed.get(&(group.to_owned(), channel)) {
        Some(last) => wait.max(*last + span(spec.group_interval_seconds)),
        None => wait,
    }
}

/// What a message that is owed waits for at `at`, in words; `None`: it goes at this point.
pub fn waits_for(facts: &Facts, owed: &Owed, at: DateTime<Utc>) -> Option<String> {
    let spec = facts.rules.get(&owed.rule).map(|rule| &rule.spec)?;
    if spec.is_quiet(at) {
        let later = (1..=1440).map(|minutes| at + TimeDelta::minutes(minutes));
        let over = later.into_iter().find(|later| !spec.is_quiet(*later));
        let over = over.map(|over| format!(", until about {}", over.format("%Y-%m-%d %H:%M UTC")));
        return Some(format!("the end of quiet hours{}", over.unwrap_or_default()));
    }
    let mine = |one: &&Owed| one.group == owed.group && one.channel == owed.channel;
    let first = facts.owed.iter().find(mine).map_or(owed.at, |first| first.at);
    let due = due(facts, Some(spec), &owed.group, owed.channel, first);
    (due > at).then(|| format!("others of its group, until {}", due.format("%Y-%m-%d %H:%M:%S UTC")))
}

/// The messages that go at `at`, in a fixed order.
pub fn flush(facts: &Facts, at: DateTime<Utc>) -> Vec<Batch> {
    let mut groups: BTreeMap<(&str, Uuid), Vec<&Owed>> = BTreeMap::new();
    for owed in &facts.owed {
        groups.entry((&owed.group, owed.channel)).or_default().push(owed);
    }
    let mut batches = vec![];
    for ((group, channel), owed) in groups {
        let Some((rule, began)) = owed.first().map(|first| (first.rule, first.at)) else { continue };
        let spec = facts.rules.get(&rule).map(|rule| &rule.spec);
        if spec.is_some_and(|spec| spec.is_quiet(at)) || due(facts, spec, group, channel, began) > at {
            continue;
        }
        let owed: Vec<Owed> =
            owed.into_iter().filter(|owed| owed.at <= at).take(MOST_IN_A_MESSAGE).cloned().collect();
        let ended: BTreeSet<&str> = owed
            .iter()
            .rev()
            .scan(BTreeSet::new(), |seen, owed| Some((seen.insert(owed.alert.as_str()), owed)))
            .filter(|(last, owed)| *last && owed.message == Message::Resolved)
            .map(|(_, owed)| owed.alert.as_str())
            .collect();
        let fires = owed.iter().any(|owed| !ended.contains(owed.alert.as_str()));
        let message = if fires { Message::Firing } else { Message::Resolved };
        batches.push(Batch { group: group.to_owned(), channel, rule, message, at, owed });
    }
    batches
}

impl Batch {
    /// The events that it tells of.
    pub fn causes(&self) -> Vec<Uuid> {
        self.owed.iter().map(|owed| owed.cause).collect()
    }

    /// Each alert once, as it is in the end, in the order in which they came: the first thing that was owed of it, and whether
    /// it is resolved since when.
    pub fn alerts(&self) -> Vec<(&Owed, Option<DateTime<Utc>>)> {
        let mut alerts: Vec<(&Owed, Option<DateTime<Utc>>)> = vec![];
        for owed in &self.owed {
            let ended = (owed.message == Message::Resolved).then_some(owed.at);
            match alerts.iter_mut().find(|(first, _)| first.alert == owed.alert) {
                Some((_, end)) => *end = ended,
                None => alerts.push((owed, ended)),
            }
        }
        alerts
    }
}
