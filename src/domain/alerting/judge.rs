//! What each rule makes of the facts at a point: commands for its alerts. Rules that hold others back are judged first.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::conditions::{self, Instance, NAMED, labels, words};
use super::facts::{Count, Facts, Happening, Rule, What};
use crate::alert::{Command, HeldBack, Holder, Observation, Phase, Seen, Subject};
use crate::id;
use crate::rule::{Ending, Trigger};

/// A command for an alert.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The alert's stream without its category.
    pub alert: String,
    /// What happened, if it tells of that.
    pub cause: Option<Uuid>,
    pub command: Command,
}

/// Which rules are judged together. What the first of them say is known when the second are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Those that hold alerts of others back.
    Inhibiting,
    Others,
}

impl Round {
    pub const ALL: [Self; 2] = [Self::Inhibiting, Self::Others];
}

/// Judges every enabled rule of a round at `at`; `only`: this one, and those that hold others back.
pub fn judge(facts: &Facts, round: Round, at: DateTime<Utc>, late: bool, only: Option<Uuid>) -> Vec<Verdict> {
    let mut verdicts = vec![];
    for (id, rule) in &facts.rules {
        let inhibits = !rule.inhibits.is_empty();
        let judged = rule.spec.enabled && inhibits == (round == Round::Inhibiting);
        if !judged || only.is_some_and(|only| only != *id && !inhibits) {
            continue;
        }
        let judge = Judge { facts, id: *id, rule, at, late };
        if rule.spec.trigger.is_occurrence() {
            judge.occurrences(&mut verdicts);
        } else {
            judge.conditions(&mut verdicts);
        }
    }
    if round == Round::Others {
        verdicts.extend(orphans(facts, at));
    }
    verdicts
}

/// Open alerts whose rule is gone, disabled or tells of something else now.
fn orphans(facts: &Facts, at: DateTime<Utc>) -> impl Iterator<Item = Verdict> {
    let open = facts.alerts.iter().filter(|(_, alert)| is_open(&alert.phase));
    let orphans = open.filter(move |(_, alert)| {
        let rule = facts.rules.get(&alert.subject.rule_id);
        rule.is_none_or(|rule| !rule.spec.enabled || rule.spec.trigger.is_occurrence())
    });
    orphans.map(move |(alert, _)| Verdict { alert: alert.clone(), cause: None, command: Command::End { at } })
}

/// The alert by which a rule tells of one thing that happened: its stream's name without the category.
pub fn alert_of(facts: &Facts, id: Uuid, rule: &Rule, one: &Happening) -> Option<String> {
    let judge = Judge { facts, id, rule, at: one.at, late: false };
    let story = match &rule.spec.trigger {
        Trigger::ExecutionTerminal { statuses } => judge.ended(one, statuses)?,
        Trigger::WorkerLost {} => judge.lost(one)?,
        _ => return None,
    };
    Some(format!("{id}-{}", id::fingerprint(&story.subject.labels, Some(story.name))))
}

fn is_open(phase: &Phase) -> bool {
    matches!(phase, Phase::Pending { .. } | Phase::Firing(_))
}

/// What holds back an alert with these labels at `at`: a silence, or an alert of another rule that fires.
pub fn held_back(
    facts: &Facts,
    rule: Uuid,
    labels: &BTreeMap<String, String>,
    at: DateTime<Utc>,
) -> Option<HeldBack> {
    let silence = facts.silences.iter().find(|(_, silence)| {
        let set = &silence.set;
        (set.starts_at..set.ends_at).contains(&at) && silence.matchers.fit(labels)
    });
    if let Some((id, _)) = silence {
        return Some(HeldBack { by: Holder::Silence, id: Some(id.clone()) });
    }
    for (name, alert) in facts.alerts.iter().filter(|(_, alert)| matches!(alert.phase, Phase::Firing(_))) {
        let source = alert.subject.rule_id;
        let Some(inhibiting) = facts.rules.get(&source).filter(|_| source != rule) else { continue };
        let held = inhibiting.inhibits.iter().any(|(matchers, equal)| {
            let same = |name: &String| alert.subject.labels.get(name) == labels.get(name);
            matchers.fit(labels) && equal.iter().all(same)
        });
        if held {
            return Some(HeldBack { by: Holder::Inhibition, id: Some(name.clone()) });
        }
    }
    None
}

struct Judge<'a> {
    facts: &'a Facts,
    id: Uuid,
    rule: &'a Rule,
    at: DateTime<Utc>,
    late: bool,
}

impl Judge<'_> {
    fn subject(&self, project: Option<String>, labels: BTreeMap<String, String>) -> Subject {
        let spec = &self.rule.spec;
        Subject {
            rule_id: self.id,
            rule_version: self.rule.version,
            rule_name: spec.name.clone(),
            project_module: project,
            severity: spec.severity,
            labels,
            annotations: spec.annotations.clone(),
            ..Subject::default()
        }
    }

    fn observation(&self, subject: Subject, seen: Seen) -> Observation {
        let spec = &self.rule.spec;
        // A sign of life that is said once is none.
        let repeat = match spec.trigger {
            Trigger::Heartbeat {} => spec.repeat_interval_seconds.or(Some(HEARTBEAT_SECONDS)),
            _ => spec.repeat_interval_seconds,
        };
        Observation {
            at: self.at,
            seen,
            late: self.late,
            held_back: held_back(self.facts, self.id, &subject.labels, self.at),
            subject,
            channel_ids: spec.channel_ids.clone(),
            for_seconds: spec.for_seconds,
            keep_firing_for_seconds: spec.keep_firing_for_seconds,
            no_data: spec.no_data,
            repeat_interval_seconds: repeat,
            cooldown_seconds: spec.cooldown_minutes.saturating_mul(60),
            escalation: spec.escalation.clone(),
            flapping: spec.flapping,
        }
    }

    fn conditions(&self, verdicts: &mut Vec<Verdict>) {
        let mut seen = BTreeSet::new();
        for instance in conditions::instances(self.facts, self.rule, self.at) {
            let Instance { labels, project, execution, sources, seen: what } = instance;
            let alert = format!("{}-{}", self.id, id::fingerprint(&labels, None));
            seen.insert(alert.clone());
            // An instance that was never heard of, and does not hold, is nothing to say.
            if what == Seen::Ended && !self.facts.alerts.contains_key(&alert) {
                continue;
            }
            let mut subject = self.subject(project, labels);
            (subject.execution_id, subject.source_identifiers) = (execution, sources);
            let observation = self.observation(subject, what);
            verdicts.push(Verdict { alert, cause: None, command: Command::Observe(Box::new(observation)) });
        }
        // What is not among them any more has ended.
        let mine = self.facts.alerts.range(self.id.to_string()..);
        let mine = mine.take_while(|(_, alert)| alert.subject.rule_id == self.id);
        for (name, alert) in mine.filter(|(name, alert)| is_open(&alert.phase) && !seen.contains(*name)) {
            let observation = self.observation(alert.subject.clone(), Seen::Ended);
            let command = Command::Observe(Box::new(observation));
            verdicts.push(Verdict { alert: name.clone(), cause: None, command });
        }
    }

    fn occurrences(&self, verdicts: &mut Vec<Verdict>) {
        let mut said_at = self.facts.said_at.get(&self.id).copied();
        let cooldown =
            TimeDelta::minutes(i64::try_from(self.rule.spec.cooldown_minutes).unwrap_or(i64::MAX / 60_000));
        for story in self.stories() {
            let mut observation = self.observation(story.subject, story.seen);
            if observation.held_back.is_none() && said_at.is_some_and(|said| self.at - said < cooldown) {
                observation.held_back = Some(HeldBack { by: Holder::Cooldown, id: None });
            }
            if observation.held_back.is_none() {
                said_at = Some(self.at);
            }
            // That of the rule is counted above: an alert that tells once has none of its own.
            observation.cooldown_seconds = 0;
            let fingerprint = id::fingerprint(&observation.subject.labels, Some(story.name));
            verdicts.push(Verdict {
                alert: format!("{}-{fingerprint}", self.id),
                cause: story.cause,
                command: Command::Occur(Box::new(observation)),
            });
        }
    }

    /// What happened since the last point that the rule tells of: ends and lost workers one by one, changed data by project.
    fn stories(&self) -> Vec<Story> {
        let spec = &self.rule.spec;
        let mine = self.facts.happened.iter().filter(|one| {
            let watched = match (&spec.project_module, &one.project) {
                (None, _) => true,
                (Some(wanted), project) => project.as_ref() == Some(wanted),
            };
            watched && one.at >= self.rule.created_at
        });
        match &spec.trigger {
            Trigger::ExecutionTerminal { statuses } => {
                mine.filter_map(|one| self.ended(one, statuses)).collect()
            }
            Trigger::WorkerLost {} => mine.filter_map(|one| self.lost(one)).collect(),
            Trigger::DiscoveryChanged {} => {
                let mut by_project: BTreeMap<Option<&str>, Vec<(&Happening, &String)>> = BTreeMap::new();
                for one in mine {
                    if let What::Changed { source } = &one.what {
                        by_project.entry(one.project.as_deref()).or_default().push((one, source));
                    }
                }
                by_project
                    .into_iter()
                    .filter_map(|(project, changes)| self.changed(project, &changes))
                    .collect()
            }
            Trigger::DailySummary { window_hours } => self.summary(*window_hours).into_iter().collect(),
            _ => vec![],
        }
    }

    fn ended(&self, one: &Happening, statuses: &[Ending]) -> Option<Story> {
        let What::Ended { execution, how, failure_class, step, error, sources } = &one.what else {
            return None;
        };
        if !statuses.contains(how) {
            return None;
        }
        let project = one.project.as_deref();
        let class = failure_class.as_deref().map(|class| ("failure_class", class));
        let more: Vec<_> = [("status", how.as_str())].into_iter().chain(class).collect();
        let mut subject = self.subject(one.project.clone(), labels(&self.rule.spec, project, &more));
        subject.execution_id = Some(*execution);
        subject.source_identifiers = sources.iter().take(NAMED).cloned().collect();
        let mut said = format!("execution {execution} of {}: {how}", project.unwrap_or("no project"));
        if *how == Ending::Failed && !step.is_empty() {
            said.push_str(&format!(" at {step}"));
        }
        if let Some(error) = error.as_deref().filter(|error| !error.is_empty()) {
            said.push_str(&format!(": {error}"));
        }
        Some(Story::of(one.event, subject, said, vec![one.event]))
    }

    fn lost(&self, one: &Happening) -> Option<Story> {
        let What::WorkerLost { worker, silent_seconds } = &one.what else { return None };
        let subject = self.subject(None, labels(&self.rule.spec, None, &[("worker", worker)]));
        let said = match silent_seconds {
            // A process that starts where another one worked knows that the other one is gone.
            0 => format!("worker {worker} ended without saying so"),
            seconds => {
                let silent = words(i64::try_from(*seconds).unwrap_or(i64::MAX));
                format!("worker {worker} has been silent for {silent} and is taken for lost")
            }
        };
        Some(Story::of(one.event, subject, said, vec![one.event]))
    }

    fn changed(&self, project: Option<&str>, changes: &[(&Happening, &String)]) -> Option<Story> {
        let (first, _) = changes.first()?;
        let sources: BTreeSet<&String> = changes.iter().map(|(_, source)| *source).collect();
        let mut subject = self.subject(project.map(Into::into), labels(&self.rule.spec, project, &[]));
        subject.changed_count = Some(sources.len() as u64);
        let (count, project) = (sources.len(), project.unwrap_or("no project"));
        let what = if count == 1 { "1 source".to_owned() } else { format!("{count} sources") };
        subject.source_identifiers = sources.into_iter().take(NAMED).cloned().collect();
        let causes = changes.iter().map(|(one, _)| one.event).take(MOST_CAUSES).collect();
        Some(Story::of(first.event, subject, format!("the data of {what} of {project} changed"), causes))
    }

    fn summary(&self, window_hours: u64) -> Option<Story> {
        let window = i64::try_from(window_hours).ok()?.checked_mul(3600).filter(|window| *window > 0)?;
        if self.at.timestamp().rem_euclid(window) != 0 || self.at <= self.rule.created_at {
            return None;
        }
        let spec = &self.rule.spec;
        let watched = |module: &String| spec.project_module.as_ref().is_none_or(|project| project == module);
        let minute = TimeDelta::minutes(1);
        let mut lines = vec![];
        for (module, project) in
            self.facts.projects.iter().filter(|(module, project)| project.configured && watched(module))
        {
            // The window ends with the minute before this point.
            let count =
                |what| project.minutes.within(self.at - minute, window_hours.saturating_mul(60), what);
            let live = self.facts.executions.values().filter(|live| live.project == *module).count();
            lines.push(format!(
                "{module}: {} completed, {} failed, {} cancelled, {live} live; {} sources changed, {} discoveries failed, {} wait",
                count(Count::Completed),
                count(Count::Failed),
                count(Count::Cancelled),
                count(Count::Changed),
                count(Count::DiscoveryError) + count(Count::DiscoveryTimeout),
                project.pending.len(),
            ));
        }
        let open = self.facts.alerts.values().filter(|alert| matches!(alert.phase, Phase::Firing(_))).count();
        let lines = if lines.is_empty() { "no project".to_owned() } else { lines.join("; ") };
        let said = format!("the last {window_hours} h: {lines}; {open} alerts fire");
        let subject =
            self.subject(spec.project_module.clone(), labels(spec, spec.project_module.as_deref(), &[]));
        let name = id::summary(self.id, self.at.timestamp());
        Some(Story {
            name,
            cause: None,
            subject,
            seen: Seen::Holds { value: None, summary: said, causes: vec![] },
        })
    }
}

/// How often a heartbeat is said whose rule does not say.
const HEARTBEAT_SECONDS: u64 = 3600;
/// The most events that an alert cites.
const MOST_CAUSES: usize = 1000;

/// What is told once.
struct Story {
    /// What sets it apart from others with the same labels.
    name: Uuid,
    cause: Option<Uuid>,
    subject: Subject,
    seen: Seen,
}

impl Story {
    fn of(event: Uuid, subject: Subject, summary: String, causes: Vec<Uuid>) -> Self {
        Self { name: event, cause: Some(event), subject, seen: Seen::Holds { value: None, summary, causes } }
    }
}
