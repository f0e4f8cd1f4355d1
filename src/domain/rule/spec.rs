//! Everything that can be set of a rule.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Trigger;
use crate::silence::Matcher;

words! {
    /// How urgent.
    #[derive(Default)]
    pub enum Severity { Info = "info", #[default] Warning = "warning", Critical = "critical" }
}

words! {
    /// What an instance does while the rule cannot see.
    #[derive(Default)]
    pub enum NoData { #[default] Keep = "keep", Resolve = "resolve", Fire = "fire" }
}

/// Who else is told when nobody has acknowledged an alert.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    pub after_minutes: u64,
    pub channel_ids: Vec<Uuid>,
}

/// Hours in which messages of severity info wait; they come together when these are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuietHours {
    /// Minutes since midnight.
    pub from_minute: u32,
    /// Exclusive; less than `from_minute` when midnight lies between.
    pub to_minute: u32,
    /// Of the clock that is meant, east of Greenwich.
    #[serde(default)]
    pub utc_offset_minutes: i32,
}

impl QuietHours {
    /// Whether `at` lies within.
    pub fn hold(&self, at: DateTime<Utc>) -> bool {
        let local = at + TimeDelta::minutes(i64::from(self.utc_offset_minutes));
        let minute = local.hour() * 60 + local.minute();
        if self.from_minute <= self.to_minute {
            (self.from_minute..self.to_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.to_minute
        }
    }
}

/// When an alert that comes and goes is no longer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flapping {
    /// So often it may begin to fire within the window.
    pub times: u32,
    pub window_minutes: u32,
}

impl Default for Flapping {
    fn default() -> Self {
        Self { times: 3, window_minutes: 60 }
    }
}

impl Flapping {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which alerts of other rules are not said while an alert of this one fires.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inhibits {
    pub matchers: Vec<Matcher>,
    /// Labels that have to be the same in both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equal: Vec<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Everything about a rule.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: String,
    /// Absent: it watches every project.
    #[serde(default)]
    pub project_module: Option<String>,
    pub severity: Severity,
    pub trigger: Trigger,
    pub channel_ids: Vec<Uuid>,
    pub enabled: bool,
    /// For how long nothing more is said of an instance after something was; of what happened: of the whole rule.
    #[serde(default)]
    pub cooldown_minutes: u64,
    /// For how long a condition holds before it fires.
    #[serde(default)]
    pub for_seconds: u64,
    /// For how long an alert goes on firing after its condition has ended.
    #[serde(default)]
    pub keep_firing_for_seconds: u64,
    #[serde(default)]
    pub no_data: NoData,
    /// How often a firing alert is said again; absent: once.
    #[serde(default)]
    pub repeat_interval_seconds: Option<u64>,
    /// The labels by which alerts are told together; absent: each alert by itself.
    #[serde(default)]
    pub group_by: Option<Vec<String>>,
    /// For how long a message waits for others of its group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub group_wait_seconds: u64,
    /// The least time between two messages of a group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub group_interval_seconds: u64,
    #[serde(default)]
    pub escalation: Option<Escalation>,
    #[serde(default)]
    pub quiet_hours: Option<QuietHours>,
    #[serde(default, skip_serializing_if = "Flapping::is_default")]
    pub flapping: Flapping,
    /// Absent: what its kind of trigger holds back by itself, see [`Spec::inhibitions`].
    #[serde(default)]
    pub inhibits: Option<Vec<Inhibits>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The name by which dependencies that are archives begin.
const ARCHIVE: &str = "tap";

impl Spec {
    /// Whether its messages wait at `at` because the hours are quiet: those that are not urgent do.
    pub fn is_quiet(&self, at: DateTime<Utc>) -> bool {
        self.severity == Severity::Info && self.quiet_hours.is_some_and(|hours| hours.hold(at))
    }

    /// What alerts of this rule hold back. An archive that is away explains why nothing is discovered; that data changed is
    /// news all the same.
    pub fn inhibitions(&self) -> Vec<Inhibits> {
        if let Some(inhibits) = &self.inhibits {
            return inhibits.clone();
        }
        match &self.trigger {
            Trigger::DependencyDown { dependency } if dependency.starts_with(ARCHIVE) => {
                let value = "discovery_stall".into();
                let matcher = Matcher { name: "trigger".into(), value, ..Matcher::default() };
                vec![Inhibits { matchers: vec![matcher], equal: vec![] }]
            }
            _ => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u32, minute: u32) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_006_400 + i64::from(hour * 3600 + minute * 60), 0).unwrap()
    }

    #[test]
    fn quiet_hours_may_reach_over_midnight_and_follow_the_clock_that_is_meant() {
        assert_eq!(at(0, 0).hour(), 0, "the test's day begins at midnight");
        let night = QuietHours { from_minute: 22 * 60, to_minute: 7 * 60, utc_offset_minutes: 0 };
        let held: Vec<bool> = [(21, 59), (22, 0), (3, 0), (6, 59), (7, 0)]
            .iter()
            .map(|(h, m)| night.hold(at(*h, *m)))
            .collect();
        assert_eq!(held, [false, true, true, true, false]);
        let perth = QuietHours { utc_offset_minutes: 480, ..night };
        assert!(perth.hold(at(14, 0)) && !perth.hold(at(13, 59)), "22:00 in Perth is 14:00 UTC");
        let noon = QuietHours { from_minute: 720, to_minute: 780, utc_offset_minutes: 0 };
        assert!(noon.hold(at(12, 30)) && !noon.hold(at(13, 0)));
    }

    #[test]
    fn an_archive_that_is_away_holds_back_what_is_said_of_discovery_unless_the_rule_says_otherwise() {
        let away = |dependency: &str| Spec {
            trigger: Trigger::DependencyDown { dependency: dependency.into() },
            ..Spec::default()
        };
        let discovery = BTreeMap::from([("trigger".to_owned(), "discovery_stall".to_owned())]);
        let held = away("tap_casda").inhibitions();
        assert!(held[0].matchers.iter().all(|matcher| matcher.fits(&discovery)));
        assert_eq!(away("postgres").inhibitions(), []);
        assert_eq!(Spec { inhibits: Some(vec![]), ..away("tap_casda") }.inhibitions(), []);
    }
}
