//! **Evaluation**: what enabled rules watch is judged at the points of a 15 s grid, while this process acts as scheduler.
//!
//! Two kinds. What *happened* (an execution's end, changed data) is a to-do list of the alerts read model: each row is told by
//! an alert whose stream is named after the event, so that it is told once, late or not, whoever sees it. What *lasts* (a
//! backlog, a source that waits, a dependency that is away) is looked up in the read models and observed; the alert's decider
//! keeps the state. An observation is of the point at which it was made: while nobody acts nothing is observed, and how long a
//! condition has lasted is counted from the first point that saw it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::alert::{Alert, Command, HeldBack, Holder, Observation, Seen, Subject};
use beampipe_domain::id;
use beampipe_domain::rule::{Spec, Trigger};
use beampipe_projections::alerts::{self as rows, Noticed};
use beampipe_projections::{Models, ReadModelError, Window};
use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::handle::{Context, Handle, HandleError};
use crate::work::lease::Acting;

/// The distance of the grid's points, in seconds.
pub const GRID: i64 = 15;
/// The kinds of triggers that are judged.
pub const JUDGED: &[&str] =
    &["execution_terminal", "discovery_changed", "pending_backlog", "pending_stale", "dependency_down"];
/// The name under which rules watch the log, whatever its engine. Who can judge it can reach it.
const THE_LOG: &str = "postgres";
/// How many sources a message names.
const NAMED: usize = 20;
/// How much is looked at in one turn.
const IN_A_TURN: u64 = 10_000;

/// Judges, while this process acts as scheduler, until it is stopped.
pub async fn run(handle: Handle, models: Arc<Models>, mut acting: Acting, stop: CancellationToken) {
    let mut last = None;
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let Some(from) = *acting.borrow_and_update() else { continue };
        let at = point(handle.clock().now());
        // What its predecessor judged is in its read models first.
        if last >= Some(at) || !models.wait_for(from, Duration::from_secs(1)).await || !models.caught_up() {
            continue;
        }
        last = Some(at);
        if let Err(error) = turn(&handle, &models, at).await {
            tracing::warn!(%error, "alert rules could not be judged");
        }
    }
}

/// The last point of the grid that is not after `now`.
pub fn point(now: DateTime<Utc>) -> DateTime<Utc> {
    let seconds = now.timestamp();
    DateTime::from_timestamp(seconds - seconds.rem_euclid(GRID), 0).unwrap_or(now)
}

/// What one turn looks at.
struct Look {
    rules: Vec<rows::Rule>,
    silences: Vec<rows::Silence>,
    noticed: Vec<Noticed>,
    open: Vec<rows::Alert>,
    /// When somebody was last told of an alert of each rule.
    said_at: HashMap<Uuid, DateTime<Utc>>,
}

/// One instance of a condition.
struct Instance {
    labels: BTreeMap<String, String>,
    project: Option<String>,
    sources: Vec<String>,
    seen: Seen,
}

/// Judges every rule at `at`. A rule that cannot be judged holds no other back.
pub async fn turn(handle: &Handle, models: &Arc<Models>, at: DateTime<Utc>) -> anyhow::Result<()> {
    let (look, instances) = {
        let models = models.clone();
        tokio::task::spawn_blocking(move || {
            let look = look(&models, at)?;
            let lasting = look.rules.iter().filter(|rule| !rule.spec.trigger.is_occurrence());
            let instances = lasting.map(|rule| Ok((rule.id, instances(&models, rule, at)?)));
            let instances = instances.collect::<Result<HashMap<_, _>, ReadModelError>>()?;
            Ok::<_, ReadModelError>((look, instances))
        })
        .await??
    };
    let judge = Judge { handle, at, context: Context::system(handle.clock(), "scheduler/alerts") };
    judge.tell_what_happened(&look).await?;
    judge.observe(&look, instances).await?;
    Ok(())
}

fn look(models: &Models, at: DateTime<Utc>) -> Result<Look, ReadModelError> {
    let alerts = models.alerts();
    let rules = alerts.rules(None, Window::first(IN_A_TURN))?;
    let rules: Vec<_> = rules.into_iter().filter(|rule| rule.enabled).collect();
    let mut open = alerts.alerts(Some("firing"), None, Window::first(IN_A_TURN))?;
    open.extend(alerts.alerts(Some("pending"), None, Window::first(IN_A_TURN))?);
    let mut said_at = HashMap::new();
    for rule in rules.iter().filter(|rule| rule.spec.cooldown_minutes > 0) {
        said_at.extend(alerts.said_at(rule.id)?.map(|said| (rule.id, said)));
    }
    Ok(Look {
        rules,
        silences: alerts.silences(Some(at), Window::first(IN_A_TURN))?,
        noticed: alerts.noticed(IN_A_TURN)?,
        open,
        said_at,
    })
}

/// The labels that every alert of a rule has.
fn labels(spec: &Spec, project: Option<&str>, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    labels.insert("rule".into(), spec.name.clone());
    labels.insert("severity".into(), spec.severity.to_string());
    let project = project.map(|project| ("project_module", project));
    labels.extend(project.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into())));
    labels
}

/// The projects that a rule watches.
fn projects(models: &Models, rule: &rows::Rule) -> Result<Vec<String>, ReadModelError> {
    if let Some(project) = &rule.project_module {
        return Ok(vec![project.clone()]);
    }
    Ok(models.projects().list()?.into_iter().map(|project| project.project_module).collect())
}

/// The instances of a condition, and whether each holds.
fn instances(models: &Models, rule: &rows::Rule, at: DateTime<Utc>) -> Result<Vec<Instance>, ReadModelError> {
    let spec = &rule.spec;
    let mut found = vec![];
    match &spec.trigger {
        Trigger::DependencyDown { dependency } => {
            let seen = if dependency == THE_LOG {
                Seen::Ended
            } else {
                match models.dependencies().get(dependency)? {
                    None => Seen::Unknown,
                    Some(row) if row.up => Seen::Ended,
                    Some(row) => Seen::Holds {
                        value: Some((at - row.since).num_seconds().max(0) as f64),
                        summary: format!("{dependency} is down: {}", row.reason.unwrap_or_default()),
                        causes: vec![row.last_event_id],
                    },
                }
            };
            let labels = labels(spec, spec.project_module.as_deref(), &[("dependency", dependency)]);
            found.push(Instance { labels, project: spec.project_module.clone(), sources: vec![], seen });
        }
        Trigger::PendingBacklog { threshold } => {
            let gauges = models.gauges();
            for project in projects(models, rule)? {
                let waiting = gauges.sources.pending.get(&project).copied().unwrap_or(0);
                let holds = Seen::Holds {
                    value: Some(waiting as f64),
                    summary: format!(
                        "{waiting} sources of {project} wait to be executed, {threshold} are too many"
                    ),
                    causes: vec![],
                };
                let seen = if waiting >= *threshold { holds } else { Seen::Ended };
                let labels = labels(spec, Some(&project), &[]);
                found.push(Instance { labels, project: Some(project), sources: vec![], seen });
            }
        }
        Trigger::PendingStale { max_age_seconds } => {
            for project in projects(models, rule)? {
                let oldest = models.sources().pending(&project, NAMED as u64)?;
                let most = TimeDelta::try_seconds(i64::try_from(*max_age_seconds).unwrap_or(i64::MAX));
                let most = most.unwrap_or(TimeDelta::MAX);
                let stale: Vec<_> = oldest
                    .iter()
                    .filter(|row| row.pending_at.is_some_and(|since| at - since >= most))
                    .collect();
                let seen = match stale.first() {
                    None => Seen::Ended,
                    Some(first) => Seen::Holds {
                        value: first.pending_at.map(|since| (at - since).num_seconds() as f64),
                        summary: format!(
                            "{} of {project} waits to be executed since {}",
                            first.source_identifier,
                            first.pending_at.map(|since| since.to_rfc3339()).unwrap_or_default()
                        ),
                        causes: vec![first.last_event_id],
                    },
                };
                let sources = stale.iter().map(|row| row.source_identifier.clone()).collect();
                let labels = labels(spec, Some(&project), &[]);
                found.push(Instance { labels, project: Some(project), sources, seen });
            }
        }
        Trigger::ExecutionTerminal { .. }
        | Trigger::DiscoveryChanged {}
        | Trigger::DiscoveryStall { .. }
        | Trigger::DailySummary { .. } => {}
    }
    Ok(found)
}

struct Judge<'a> {
    handle: &'a Handle,
    at: DateTime<Utc>,
    context: Context,
}

impl Judge<'_> {
    /// The silence that holds back what has these labels.
    fn silenced(&self, look: &Look, labels: &BTreeMap<String, String>) -> Option<HeldBack> {
        let silence = look.silences.iter().find(|silence| {
            silence.starts_at <= self.at && silence.matchers.iter().all(|matcher| matcher.fits(labels))
        })?;
        Some(HeldBack { by: Holder::Silence, id: Some(silence.id.to_string()) })
    }

    fn observation(&self, look: &Look, rule: &rows::Rule, subject: Subject, seen: Seen) -> Observation {
        let spec = &rule.spec;
        Observation {
            at: self.at,
            seen,
            late: false,
            held_back: self.silenced(look, &subject.labels),
            subject,
            channel_ids: spec.channel_ids.clone(),
            for_seconds: spec.for_seconds,
            keep_firing_for_seconds: spec.keep_firing_for_seconds,
            no_data: spec.no_data,
            repeat_interval_seconds: spec.repeat_interval_seconds,
            cooldown_seconds: spec.cooldown_minutes.saturating_mul(60),
        }
    }

    async fn handle(&self, alert: &str, command: Command) {
        match self.handle.handle::<Alert>(alert, &self.context, command).await {
            Ok(_) | Err(HandleError::Rejected(_)) => {}
            Err(error) => tracing::warn!(alert, %error, "an alert could not be judged"),
        }
    }

    /// Tells of what happened: an alert for each end of an execution, one for all sources of a project that changed.
    async fn tell_what_happened(&self, look: &Look) -> anyhow::Result<()> {
        let mut said_at = look.said_at.clone();
        for rule in &look.rules {
            let mine = look.noticed.iter().filter(|noticed| noticed.rule_id == rule.id);
            let (changed, ended): (Vec<_>, Vec<_>) = mine.partition(|noticed| noticed.word == "changed");
            let mut stories: Vec<Vec<&Noticed>> = ended.into_iter().map(|one| vec![one]).collect();
            let mut by_project: BTreeMap<Option<&str>, Vec<&Noticed>> = BTreeMap::new();
            for noticed in changed {
                by_project.entry(noticed.project_module.as_deref()).or_default().push(noticed);
            }
            stories.extend(by_project.into_values());
            for story in stories {
                let Some(first) = story.first() else { continue };
                let subject = subject_of(rule, &story);
                let mut observation = self.observation(look, rule, subject, seen_in(&story));
                observation.late = self.at - first.occurred_at > TimeDelta::seconds(2 * GRID);
                let cooldown = TimeDelta::minutes(i64::try_from(rule.spec.cooldown_minutes).unwrap_or(0));
                let cooling = said_at.get(&rule.id).is_some_and(|said| self.at - *said < cooldown);
                if cooling && observation.held_back.is_none() {
                    observation.held_back = Some(HeldBack { by: Holder::Cooldown, id: None });
                }
                if observation.held_back.is_none() {
                    said_at.insert(rule.id, self.at);
                }
                // The oldest cause names the stream: who sees more of them, later, finds it told.
                let fingerprint = id::fingerprint(&observation.subject.labels, Some(first.event_id));
                let context = self.context.because_of(first.event_id);
                let alert = format!("{}-{fingerprint}", rule.id);
                Judge { handle: self.handle, at: self.at, context }
                    .handle(&alert, Command::Occur(Box::new(observation)))
                    .await;
            }
        }
        Ok(())
    }

    /// Observes what lasts, and ends what no rule watches any more.
    async fn observe(&self, look: &Look, mut all: HashMap<Uuid, Vec<Instance>>) -> anyhow::Result<()> {
        let mut watched = BTreeSet::new();
        for rule in &look.rules {
            for instance in all.remove(&rule.id).unwrap_or_default() {
                let Instance { labels, project, sources, seen } = instance;
                let alert = format!("{}-{}", rule.id, id::fingerprint(&labels, None));
                let mut subject = subject(rule, project, labels);
                subject.source_identifiers = sources;
                let observation = self.observation(look, rule, subject, seen);
                self.handle(&alert, Command::Observe(Box::new(observation))).await;
                watched.insert(alert);
            }
        }
        for open in look.open.iter().filter(|open| !watched.contains(&open.id)) {
            self.handle(&open.id, Command::End { at: self.at }).await;
        }
        Ok(())
    }
}

fn subject(rule: &rows::Rule, project: Option<String>, labels: BTreeMap<String, String>) -> Subject {
    Subject {
        rule_id: rule.id,
        rule_version: rule.rule_version,
        rule_name: rule.name.clone(),
        project_module: project,
        severity: rule.spec.severity,
        labels,
        annotations: rule.spec.annotations.clone(),
        ..Subject::default()
    }
}

fn subject_of(rule: &rows::Rule, story: &[&Noticed]) -> Subject {
    let first = story.first();
    let project = first.and_then(|first| first.project_module.clone());
    let word = first.map_or("", |first| first.word.as_str());
    let more = [("status", word)];
    let labels = labels(&rule.spec, project.as_deref(), if word == "changed" { &[] } else { &more });
    let sources: BTreeSet<&String> = story.iter().flat_map(|one| &one.source_identifiers).collect();
    Subject {
        execution_id: first.and_then(|first| first.execution_id),
        changed_count: (word == "changed").then_some(sources.len() as u64),
        source_identifiers: sources.into_iter().take(NAMED).cloned().collect(),
        ..subject(rule, project, labels)
    }
}

fn seen_in(story: &[&Noticed]) -> Seen {
    let causes: Vec<Uuid> = story.iter().map(|one| one.event_id).collect();
    let Some(first) = story.first() else { return Seen::Ended };
    let project = first.project_module.as_deref().unwrap_or("no project");
    let summary = match (first.execution_id, &first.detail) {
        (Some(execution), Some(error)) => {
            let line = error.lines().next().unwrap_or_default();
            format!("execution {execution} of {project}: {}: {line}", first.word)
        }
        (Some(execution), None) => format!("execution {execution} of {project}: {}", first.word),
        (None, _) => format!("the data of {} sources of {project} changed", story.len()),
    };
    Seen::Holds { value: None, summary, causes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_points_of_the_grid_are_the_same_for_everybody() {
        let at = |seconds| DateTime::from_timestamp(seconds, 999_000_000).unwrap();
        assert_eq!(point(at(1_700_000_010)).timestamp(), 1_700_000_010);
        assert_eq!(point(at(1_700_000_024)), point(at(1_700_000_010)));
        assert_eq!(point(at(1_700_000_025)).timestamp(), 1_700_000_025);
    }

    #[test]
    fn what_is_said_to_be_judged_is_a_kind_of_trigger() {
        assert!(JUDGED.iter().all(|kind| Trigger::KINDS.contains(kind)));
    }
}
