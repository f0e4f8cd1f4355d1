//! **Explain**: why somebody was told, or was not. The facts as they were at a time, what each rule made of them, and what became
//! of the messages.

use std::ops::ControlFlow;

use beampipe_domain::Event;
use beampipe_domain::alert::{Alert, Phase, Seen};
use beampipe_domain::alerting::conditions::{self, Instance};
use beampipe_domain::alerting::facts::{self, Facts, Happening, Rule, What};
use beampipe_domain::alerting::groups::{self, Owed};
use beampipe_domain::alerting::judge;
use beampipe_domain::alerting::timeline::Timeline;
use beampipe_domain::alerting::{Told, point};
use beampipe_domain::rule::Trigger;
use beampipe_domain::{delivery, id};
use beampipe_log::{Direction, Log};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::hear::{self, HearError};
use crate::codec;

/// How many events of an alert are shown.
const EVENTS: usize = 200;
/// What of a rule that sees many is laid out.
const INSTANCES: usize = 100;

/// What somebody asks about.
#[derive(Clone, Copy, Debug)]
pub enum About {
    Execution(Uuid),
    Rule(Uuid),
}

/// The facts as they were at a point: the world up to it, and what was decided up to it; with the ends of what is asked about.
pub async fn facts_at(
    log: &dyn Log,
    about: About,
    at: DateTime<Utc>,
) -> Result<(Facts, Vec<Told>), HearError> {
    let execution = match about {
        About::Execution(id) => id.to_string(),
        About::Rule(_) => String::new(),
    };
    let at = point(at);
    let (mut timeline, mut ends) = (Timeline::default(), vec![]);
    timeline.pass_through(at);
    hear::history(log, |told| {
        let decided = match &told.event {
            Event::Alert(event) => event.at().unwrap_or(told.occurred_at),
            Event::Delivery(delivery::Event::Enqueued(e)) => e.at.unwrap_or(told.occurred_at),
            _ => told.occurred_at,
        };
        if !Facts::is_of_alerting(&told.event) || decided <= at {
            if told.stream == execution && told.occurred_at <= at && facts::happening(&told).is_some() {
                ends.push(told.clone());
            }
            timeline.take(told);
            timeline.facts.happened.clear();
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok((timeline.facts, ends))
}

/// What is said of one rule.
#[derive(Debug)]
pub struct Answer {
    pub rule: Uuid,
    /// `told`, `no_channel`, `held_back`, `waiting`, `pending`, `resolved`, `quiet`, or `not_watched`.
    pub verdict: &'static str,
    pub why: String,
    pub body: Value,
    /// The alerts that are shown.
    pub alerts: Vec<String>,
}

fn about_rule(rule: &Rule) -> Value {
    json!({
        "name": rule.spec.name,
        "version": rule.version,
        "since": rule.since,
        "enabled": rule.spec.enabled,
        "project_module": rule.spec.project_module,
        "trigger_kind": rule.spec.trigger.kind(),
        "severity": rule.spec.severity,
        "channel_ids": rule.spec.channel_ids,
    })
}

struct Explainer<'a> {
    facts: &'a Facts,
    at: DateTime<Utc>,
    id: Uuid,
    rule: &'a Rule,
}

/// Every rule that has to do with what is asked, and what it made of it.
pub fn answers(facts: &Facts, ends: &[Told], about: About, at: DateTime<Utc>) -> Vec<Answer> {
    let at = point(at);
    let mut answers = vec![];
    for (id, rule) in &facts.rules {
        let explainer = Explainer { facts, at, id: *id, rule };
        match about {
            About::Rule(wanted) if wanted == *id => answers.push(explainer.rule()),
            About::Rule(_) => {}
            About::Execution(execution) => answers.extend(explainer.execution(execution, ends)),
        }
    }
    answers
}

impl Explainer<'_> {
    fn answer(
        &self,
        verdict: &'static str,
        why: impl Into<String>,
        instances: Vec<Value>,
        alerts: Vec<String>,
    ) -> Answer {
        let mut body = about_rule(self.rule);
        body["instances"] = instances.into();
        Answer { rule: self.id, verdict, why: why.into(), body, alerts }
    }

    /// Why a rule tells nobody anything, whatever happens.
    fn idle(&self) -> Option<Answer> {
        (!self.rule.spec.enabled)
            .then(|| self.answer("not_watched", "the rule was not enabled", vec![], vec![]))
    }

    fn rule(&self) -> Answer {
        if let Some(idle) = self.idle() {
            return idle;
        }
        if self.rule.spec.trigger.is_occurrence() {
            let mut owed = self.facts.owed.iter().filter(|owed| owed.rule == self.id);
            if let Some(first) = owed.next() {
                let why = format!("{} messages wait for {}", owed.count() + 1, self.waits_for(first));
                return self.answer("waiting", why, vec![], vec![]);
            }
            let why = match self.facts.said_at.get(&self.id) {
                Some(said) => format!(
                    "it tells of what happens, one by one; the last that nothing held back was judged at {}",
                    said.to_rfc3339()
                ),
                None => "it tells of what happens, one by one, and nothing has happened yet".into(),
            };
            return self.answer("quiet", why, vec![], vec![]);
        }
        let instances = conditions::instances(self.facts, self.rule, self.at);
        self.of(&instances, "the rule sees nothing that it could tell of")
    }

    /// What is said of these instances; the most important of them gives the verdict.
    fn of(&self, instances: &[Instance], nothing: &str) -> Answer {
        let mut told: Vec<(u8, &'static str, String)> = vec![];
        let (mut shown, mut alerts) = (vec![], vec![]);
        for instance in instances.iter().take(INSTANCES) {
            let alert = format!("{}-{}", self.id, id::fingerprint(&instance.labels, None));
            let state = self.facts.alerts.get(&alert);
            let (rank, verdict, why) = self.instance(instance, &alert, state);
            shown.push(self.shown(instance, &alert, state, verdict, &why));
            told.push((rank, verdict, why));
            alerts.push(alert);
        }
        match told.iter().min_by_key(|(rank, ..)| *rank) {
            Some((_, verdict, why)) => self.answer(verdict, why.clone(), shown, alerts),
            None => self.answer("quiet", nothing, shown, alerts),
        }
    }

    fn shown(
        &self,
        instance: &Instance,
        alert: &str,
        state: Option<&Alert>,
        verdict: &str,
        why: &str,
    ) -> Value {
        let (seen, value, summary) = match &instance.seen {
            Seen::Holds { value, summary, .. } => ("holds", *value, Some(summary.clone())),
            Seen::Ended => ("ended", None, None),
            Seen::Unknown => ("no_data", None, None),
        };
        let phase = match state.map(|alert| &alert.phase) {
            None | Some(Phase::Inactive) => "inactive",
            Some(Phase::Pending { .. }) => "pending",
            Some(Phase::Firing(_)) => "firing",
            Some(Phase::Told) => "told",
        };
        json!({
            "alert": alert,
            "labels": instance.labels,
            "state": phase,
            "condition": seen,
            "value": value,
            "summary": summary,
            "verdict": verdict,
            "why": why,
            "waits": self.waits(alert),
        })
    }

    /// Messages that were decided and not enqueued: their group waits, or the hours are quiet.
    fn waits(&self, alert: &str) -> Vec<Value> {
        let owed = self.facts.owed.iter().filter(|owed| owed.alert == alert);
        let shown = owed.map(|owed| {
            json!({
                "channel_id": owed.channel,
                "decided_at": owed.at,
                "group": owed.group,
                "waits_for": self.waits_for(owed),
            })
        });
        shown.collect()
    }

    fn waits_for(&self, owed: &Owed) -> String {
        groups::waits_for(self.facts, owed, self.at).unwrap_or_else(|| "the next point of the grid".into())
    }

    /// For what a message of an alert waits, if one does.
    fn holds(&self, alert: &str) -> Option<String> {
        self.facts.owed.iter().find(|owed| owed.alert == alert).map(|owed| self.waits_for(owed))
    }

    /// Whether there is nobody to tell.
    fn is_mute(&self) -> bool {
        self.rule.spec.channel_ids.is_empty()
    }

    fn instance(
        &self,
        instance: &Instance,
        alert: &str,
        state: Option<&Alert>,
    ) -> (u8, &'static str, String) {
        let phase = state.map_or(&Phase::Inactive, |alert| &alert.phase);
        if let Some(holds) = self.holds(alert) {
            return (1, "waiting", format!("its message waits for {holds}"));
        }
        match (phase, &instance.seen) {
            (Phase::Firing(firing), _) if self.is_mute() => (
                2,
                "no_channel",
                format!("it has fired since {}, and the rule names no channel", firing.since.to_rfc3339()),
            ),
            (Phase::Firing(firing), _) => match &firing.held_back {
                Some(held) if firing.said == 0 => {
                    let by = held.id.as_ref().map(|id| format!(" {id}")).unwrap_or_default();
                    (2, "held_back", format!("it fires, and {}{by} holds it back", held.by))
                }
                _ => (
                    0,
                    "told",
                    format!(
                        "it has fired since {} and was said {} times",
                        firing.since.to_rfc3339(),
                        firing.said
                    ),
                ),
            },
            (Phase::Pending { since }, _) => {
                let wanted = self.rule.spec.for_seconds;
                (
                    3,
                    "pending",
                    format!(
                        "its condition has held since {}, and fires after {wanted} s",
                        since.to_rfc3339()
                    ),
                )
            }
            (_, Seen::Holds { .. }) => {
                (3, "pending", "its condition holds, and is judged at the next point".into())
            }
            (_, Seen::Unknown) => (
                4,
                "quiet",
                format!("there was nothing to judge it by; no_data is {}", self.rule.spec.no_data),
            ),
            (_, Seen::Ended) => match state.and_then(|alert| alert.said_at) {
                Some(said) => (
                    5,
                    "resolved",
                    format!(
                        "its condition does not hold; it last fired, or was repeated, at {}",
                        said.to_rfc3339()
                    ),
                ),
                None => (6, "quiet", "its condition does not hold".into()),
            },
        }
    }

    fn execution(&self, execution: Uuid, ends: &[Told]) -> Option<Answer> {
        let spec = &self.rule.spec;
        let happened: Vec<Happening> =
            ends.iter().filter_map(facts::happening).filter(|one| is_of(one, execution)).collect();
        let live = self.facts.executions.get(&execution);
        let project = live
            .map(|live| live.project.clone())
            .or_else(|| happened.first().and_then(|one| one.project.clone()));
        match &spec.trigger {
            Trigger::ExecutionTerminal { .. } => {}
            Trigger::ExecutionStuck { .. } | Trigger::SubmissionUncertain { .. } => {
                let quiet = |why: &str| Some(self.answer("quiet", why, vec![], vec![]));
                if let Some(idle) = self.idle() {
                    return Some(idle);
                }
                let Some(live) = live else { return quiet("the execution was not live at that time") };
                let instances = conditions::instances(self.facts, self.rule, self.at);
                let mine: Vec<_> =
                    instances.into_iter().filter(|one| one.execution == Some(execution)).collect();
                let age = (self.at - live.since).num_seconds();
                let nothing =
                    format!("something last happened to it {} before: {}", conditions::words(age), live.step);
                return Some(self.of(&mine, &nothing));
            }
            _ => return None,
        }
        if let Some(idle) = self.idle() {
            return Some(idle);
        }
        if let (Some(wanted), Some(project)) = (&spec.project_module, &project)
            && wanted != project
        {
            return Some(self.answer(
                "not_watched",
                format!("the rule watches {wanted}, and not {project}"),
                vec![],
                vec![],
            ));
        }
        let Some(last) = happened.last() else {
            return Some(self.answer("quiet", "the execution had not ended at that time", vec![], vec![]));
        };
        if last.at < self.rule.created_at {
            let why = format!("it ended at {}, before the rule was there", last.at.to_rfc3339());
            return Some(self.answer("not_watched", why, vec![], vec![]));
        }
        let What::Ended { how, .. } = &last.what else { return None };
        let Some(alert) = judge::alert_of(self.facts, self.id, self.rule, last) else {
            return Some(self.answer(
                "not_watched",
                format!("the rule does not tell of executions that are {how}"),
                vec![],
                vec![],
            ));
        };
        let why = format!("it ended as {how} at {}", last.at.to_rfc3339());
        let (verdict, why) = match self.holds(&alert) {
            _ if self.is_mute() => ("no_channel", format!("{why}, and the rule names no channel")),
            Some(holds) => ("waiting", format!("{why}; its message waits for {holds}")),
            None => ("told", why),
        };
        let shown = json!({"alert": alert, "waits": self.waits(&alert)});
        Some(self.answer(verdict, why, vec![shown], vec![alert]))
    }
}

fn is_of(one: &Happening, wanted: Uuid) -> bool {
    matches!(&one.what, What::Ended { execution, .. } if *execution == wanted)
}

/// The events of an alert up to a time, and their ids.
pub async fn events(log: &dyn Log, alert: &str, at: DateTime<Utc>) -> Result<Vec<(Uuid, Value)>, HearError> {
    // A point is judged a little after it has passed, and a late one long after; both count by their point.
    let mut shown = vec![];
    for recorded in log.read_stream(&format!("alert-{alert}"), 0, Direction::Forward, EVENTS).await? {
        let event = codec::decode(&recorded)?;
        let Event::Alert(event) = event else { continue };
        let decided = event.at().unwrap_or(recorded.occurred_at);
        if decided > at {
            continue;
        }
        let data: Value =
            recorded.data.as_ref().and_then(|data| serde_json::from_slice(data).ok()).unwrap_or_default();
        shown.push((
            recorded.id,
            json!({
                "id": recorded.id,
                "event_type": &*recorded.event_type,
                "at": decided,
                "occurred_at": recorded.occurred_at,
                "actor": &*recorded.actor,
                "summary": data["summary"],
                "causes": data["causes"],
                "held_back": data["held_back"],
                "reason": data["reason"],
            }),
        ));
    }
    Ok(shown)
}
