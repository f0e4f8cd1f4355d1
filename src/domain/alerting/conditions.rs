//! What a rule sees at a point: the instances of its condition, each with its labels.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::expression::Condition;
use super::facts::{Count, Facts, Rule};
use crate::alert::{Seen, span};
use crate::rule::{Spec, Trigger};

/// The name under which rules watch the log, whatever its engine. Who can judge it can reach it.
const THE_LOG: &str = "postgres";
/// How many sources a message names.
pub const NAMED: usize = 20;

/// One instance of a condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub labels: BTreeMap<String, String>,
    pub project: Option<String>,
    pub execution: Option<Uuid>,
    pub sources: Vec<String>,
    pub seen: Seen,
}

/// The labels that every alert of a rule has; its own labels first, so that nothing takes the place of what is known.
pub fn labels(spec: &Spec, project: Option<&str>, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    labels.insert("rule".into(), spec.name.clone());
    labels.insert("severity".into(), spec.severity.to_string());
    labels.insert("trigger".into(), spec.trigger.kind().into());
    let project = project.map(|project| ("project_module", project));
    labels.extend(project.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).into())));
    labels
}

/// A span in words that people say: at most two units.
pub fn words(seconds: i64) -> String {
    match seconds.max(0) {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

fn holds(value: f64, summary: String, causes: Vec<Uuid>) -> Seen {
    Seen::Holds { value: Some(value), summary, causes }
}

/// What looks at one rule.
struct Look<'a> {
    facts: &'a Facts,
    spec: &'a Spec,
    at: DateTime<Utc>,
}

/// Every instance of a rule's condition that can be told of at `at`: of what belongs to a project, one for each project; of what
/// comes one by one, those that hold.
pub fn instances(facts: &Facts, rule: &Rule, at: DateTime<Utc>) -> Vec<Instance> {
    let look = Look { facts, spec: &rule.spec, at };
    match &rule.spec.trigger {
        Trigger::PendingBacklog { threshold } => look.of_projects(|module| look.backlog(module, *threshold)),
        Trigger::PendingStale { max_age_seconds } => {
            look.of_projects(|module| look.stale(module, *max_age_seconds))
        }
        Trigger::DiscoveryStall { window_minutes } => {
            look.of_projects(|module| (look.stall(module, *window_minutes), vec![]))
        }
        Trigger::ErrorRate { window_minutes, ratio, min_ended } => {
            look.of_projects(|module| (look.error_rate(module, *window_minutes, *ratio, *min_ended), vec![]))
        }
        Trigger::Expression { expression } => {
            let condition = Condition::read(expression);
            look.of_projects(|module| {
                let seen = match condition.as_ref().map(|condition| condition.holds(facts, module, at)) {
                    Ok(Ok(true)) => Seen::Holds {
                        value: None,
                        summary: format!("{module}: {}", expression.trim()),
                        causes: vec![],
                    },
                    Ok(Ok(false)) => Seen::Ended,
                    Ok(Err(_)) | Err(_) => Seen::Unknown,
                };
                (seen, vec![])
            })
        }
        Trigger::DependencyDown { dependency } => vec![look.dependency(dependency)],
        Trigger::ExecutionStuck { max_age_seconds } => look.stuck(*max_age_seconds),
        Trigger::SubmissionUncertain { max_age_seconds } => look.uncertain(*max_age_seconds),
        Trigger::QueueAge { max_age_seconds, job_kind } => look.queue(*max_age_seconds, *job_kind),
        Trigger::ProjectionLag { max_lag_seconds } => look.lag(*max_lag_seconds),
        Trigger::Heartbeat {} => vec![Instance {
            labels: labels(look.spec, None, &[]),
            project: None,
            execution: None,
            sources: vec![],
            seen: Seen::Holds { value: None, summary: "alerts are judged and told".into(), causes: vec![] },
        }],
        Trigger::ExecutionTerminal { .. }
        | Trigger::DiscoveryChanged {}
        | Trigger::DailySummary { .. }
        | Trigger::WorkerLost {} => vec![],
    }
}

impl Look<'_> {
    fn watches(&self, module: &str) -> bool {
        self.spec.project_module.as_deref().is_none_or(|project| project == module)
    }

    /// One instance for each project that the rule watches, as `see` tells, with the sources to be named.
    fn of_projects(&self, see: impl Fn(&str) -> (Seen, Vec<String>)) -> Vec<Instance> {
        let watched =
            self.facts.projects.iter().filter(|(module, project)| project.configured && self.watches(module));
        watched
            .map(|(module, _)| {
                let (seen, sources) = see(module);
                Instance {
                    labels: labels(self.spec, Some(module), &[]),
                    project: Some(module.clone()),
                    execution: None,
                    sources,
                    seen,
                }
            })
            .collect()
    }

    fn named<'s>(&self, sources: impl Iterator<Item = &'s Uuid>) -> Vec<String> {
        let known = sources.filter_map(|id| self.facts.sources.get(id));
        known.take(NAMED).map(|source| source.identifier.clone()).collect()
    }

    fn backlog(&self, module: &str, threshold: u64) -> (Seen, Vec<String>) {
        let pending = &self.facts.projects[module].pending;
        let waiting = pending.len() as u64;
        if waiting < threshold {
            return (Seen::Ended, vec![]);
        }
        let said =
            format!("{waiting} sources of {module} wait to be executed; the rule's threshold is {threshold}");
        let first = pending.first().and_then(|(_, id)| self.facts.sources.get(id)?.pending);
        let sources = self.named(pending.iter().map(|(_, id)| id));
        (holds(waiting as f64, said, first.iter().map(|(_, event)| *event).collect()), sources)
    }

    fn stale(&self, module: &str, max_age_seconds: u64) -> (Seen, Vec<String>) {
        let most = span(max_age_seconds);
        let pending = &self.facts.projects[module].pending;
        let stale: Vec<_> =
            pending.iter().take_while(|(since, _)| self.at - *since >= most).take(NAMED).collect();
        let Some((since, id)) = stale.first() else { return (Seen::Ended, vec![]) };
        let source = self.facts.sources.get(id);
        let age = (self.at - *since).num_seconds();
        let name = source.map_or("a source", |source| source.identifier.as_str());
        let said = format!("{name} of {module} has waited for {} to be executed", words(age));
        let cause = source.and_then(|source| source.pending).map(|(_, event)| event);
        let sources = self.named(stale.iter().map(|(_, id)| id));
        (holds(age as f64, said, cause.into_iter().collect()), sources)
    }

    fn stall(&self, module: &str, window_minutes: u64) -> Seen {
        let project = &self.facts.projects[module];
        let paused = project.paused || self.facts.all_paused;
        let Some(last) = project.discovered_at.filter(|_| project.sources > 0 && !paused) else {
            return Seen::Ended;
        };
        let age = self.at - last;
        if age < span(window_minutes.saturating_mul(60)) {
            return Seen::Ended;
        }
        let said = format!(
            "no discovery of {module} has ended for {}, though it has {} enabled sources",
            words(age.num_seconds()),
            project.sources
        );
        holds(age.num_seconds() as f64, said, vec![])
    }

    fn error_rate(&self, module: &str, window_minutes: u64, ratio: f64, min_ended: u64) -> Seen {
        let minutes = &self.facts.projects[module].minutes;
        let failed = minutes.within(self.at, window_minutes, Count::Failed);
        let ended = failed + minutes.within(self.at, window_minutes, Count::Completed);
        let rate = if ended == 0 { 0.0 } else { failed as f64 / ended as f64 };
        if ended < min_ended.max(1) || rate < ratio {
            return Seen::Ended;
        }
        let window = words(i64::try_from(window_minutes.saturating_mul(60)).unwrap_or(i64::MAX));
        let said =
            format!("{failed} of the {ended} executions of {module} that ended within {window} failed");
        holds(rate, said, vec![])
    }

    fn dependency(&self, name: &str) -> Instance {
        let seen = match self.facts.dependencies.get(name) {
            _ if name == THE_LOG => Seen::Ended,
            None => Seen::Unknown,
            Some(dependency) if dependency.up => Seen::Ended,
            Some(dependency) => {
                let age = (self.at - dependency.since).num_seconds().max(0);
                holds(age as f64, format!("{name} is down: {}", dependency.reason), vec![dependency.event])
            }
        };
        let project = self.spec.project_module.clone();
        let labels = labels(self.spec, project.as_deref(), &[("dependency", name)]);
        Instance { labels, project, execution: None, sources: vec![], seen }
    }

    /// An instance for each live execution of which `see` tells something.
    fn of_executions(
        &self,
        see: impl Fn(&Uuid, &super::facts::Live) -> Option<(f64, String)>,
    ) -> Vec<Instance> {
        let watched = self.facts.executions.iter().filter(|(_, live)| self.watches(&live.project));
        watched
            .filter_map(|(id, live)| {
                let (value, said) = see(id, live)?;
                let name = id.to_string();
                Some(Instance {
                    labels: labels(self.spec, Some(&live.project), &[("execution", &name)]),
                    project: Some(live.project.clone()),
                    execution: Some(*id),
                    sources: vec![],
                    seen: holds(value, said, vec![live.event]),
                })
            })
            .collect()
    }

    fn stuck(&self, max_age_seconds: u64) -> Vec<Instance> {
        let most = span(max_age_seconds);
        self.of_executions(|id, live| {
            let age = self.at - live.since;
            let said = || {
                let age = words(age.num_seconds());
                format!("nothing has happened to execution {id} of {} for {age}: {}", live.project, live.step)
            };
            (age >= most).then(|| (age.num_seconds() as f64, said()))
        })
    }

    fn uncertain(&self, max_age_seconds: u64) -> Vec<Instance> {
        let most = span(max_age_seconds);
        self.of_executions(|id, live| {
            let age = self.at - live.uncertain_since?;
            let said = || {
                let age = words(age.num_seconds());
                format!(
                    "whether execution {id} of {} reached its backend is not known for {age}",
                    live.project
                )
            };
            (age >= most).then(|| (age.num_seconds() as f64, said()))
        })
    }

    fn queue(&self, max_age_seconds: u64, only: Option<crate::job::Kind>) -> Vec<Instance> {
        let most = span(max_age_seconds);
        let mut oldest = BTreeMap::new();
        for job in self.facts.jobs.values().filter(|job| only.is_none_or(|kind| kind == job.kind)) {
            let Some(ready) = job.ready_at.filter(|ready| self.at - *ready >= most) else { continue };
            let (number, first) = oldest.entry(job.kind).or_insert((0_u64, (ready, job.event)));
            *number += 1;
            *first = (*first).min((ready, job.event));
        }
        let instance =
            |(kind, (number, (ready, event))): (crate::job::Kind, (u64, (DateTime<Utc>, Uuid)))| {
                let age = (self.at - ready).num_seconds();
                let said = format!("{number} jobs {kind} wait for a worker, the oldest for {}", words(age));
                Instance {
                    labels: labels(self.spec, None, &[("job_kind", kind.as_str())]),
                    project: None,
                    execution: None,
                    sources: vec![],
                    seen: holds(age as f64, said, vec![event]),
                }
            };
        oldest.into_iter().map(instance).collect()
    }

    fn lag(&self, max_lag_seconds: u64) -> Vec<Instance> {
        let mut behind = BTreeMap::new();
        for lag in self.facts.lags.values() {
            let (since, event) = behind.entry(&lag.projection).or_insert((lag.since, lag.event));
            if lag.since < *since {
                (*since, *event) = (lag.since, lag.event);
            }
        }
        let late = behind.into_iter().filter(|(_, (since, _))| self.at - *since >= span(max_lag_seconds));
        late.map(|(projection, (since, event))| {
            let age = (self.at - since).num_seconds();
            let said = format!("the read model {projection} of a process is {} behind the log", words(age));
            Instance {
                labels: labels(self.spec, None, &[("projection", projection)]),
                project: None,
                execution: None,
                sources: vec![],
                seen: holds(age as f64, said, vec![event]),
            }
        })
        .collect()
    }
}
