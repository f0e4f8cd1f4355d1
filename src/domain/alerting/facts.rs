//! What is known at a point: a fold over the log of what rules can ask for. It holds what lives (waiting sources, live
//! executions, unfinished jobs) and counts by minute what has ended, so that its size follows the work and not the history.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Told;
use super::groups::Owed;
use crate::alert::Alert;
use crate::rule::{Ending, Spec};
use crate::silence::Matchers;
use crate::{Event, dependency, job, project, rule, silence, worker};

mod alerts;
mod executions;
mod minutes;
mod sources;
pub use executions::{Live, happening};
pub use minutes::{Count, Minutes, WINDOW_MINUTES};
pub use sources::Source;

/// An alert rule as it is.
#[derive(Clone, Debug)]
pub struct Rule {
    pub version: u64,
    pub spec: Spec,
    /// Since when it is as it is.
    pub since: DateTime<Utc>,
    /// What happened before it was created is not its business.
    pub created_at: DateTime<Utc>,
    /// What its alerts hold back, and the labels that have to be the same.
    pub inhibits: Vec<(Matchers, Vec<String>)>,
}

impl Rule {
    pub fn new(version: u64, spec: Spec, since: DateTime<Utc>, created_at: DateTime<Utc>) -> Self {
        let inhibits = spec.inhibitions().into_iter().map(|one| (Matchers::of(&one.matchers), one.equal));
        Self { version, since, created_at, inhibits: inhibits.collect(), spec }
    }
}

/// A silence, until somebody ended it.
#[derive(Clone, Debug)]
pub struct Silence {
    pub set: silence::Created,
    pub matchers: Matchers,
}

/// What is known of a project.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// Whether it has an active configuration.
    pub configured: bool,
    pub paused: bool,
    /// Sources that are enabled and not removed.
    pub sources: u64,
    /// Of these, those that wait for an execution, and since when.
    pub pending: BTreeSet<(DateTime<Utc>, Uuid)>,
    /// When a discovery last ended, or the first source was registered.
    pub discovered_at: Option<DateTime<Utc>>,
    pub minutes: Minutes,
}

/// An unfinished job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    pub kind: job::Kind,
    /// When it can be claimed; absent: it is.
    pub ready_at: Option<DateTime<Utc>>,
    /// The event that said so.
    pub event: Uuid,
}

/// Whether something that work needs is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependency {
    pub up: bool,
    pub since: DateTime<Utc>,
    pub reason: String,
    pub event: Uuid,
}

/// A read model of a process that is behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Lag {
    pub projection: String,
    pub process: String,
    pub since: DateTime<Utc>,
    pub event: Uuid,
}

/// What happened since the last point.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    pub event: Uuid,
    pub at: DateTime<Utc>,
    pub project: Option<String>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Ended {
        execution: Uuid,
        how: Ending,
        failure_class: Option<String>,
        /// What it was at.
        step: &'static str,
        /// The first line of the error, with the drop that it came from.
        error: Option<String>,
        sources: Vec<String>,
    },
    Changed {
        source: String,
    },
    WorkerLost {
        worker: String,
        silent_seconds: u64,
    },
}

/// What is known at a point.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub rules: BTreeMap<Uuid, Rule>,
    pub silences: BTreeMap<String, Silence>,
    /// Every alert of a condition, by its stream's name without the category.
    pub alerts: BTreeMap<String, Alert>,
    /// When somebody was last told of an alert of a rule.
    pub said_at: BTreeMap<Uuid, DateTime<Utc>>,
    /// Messages that alerts call for and that are not enqueued yet, oldest first.
    pub owed: Vec<Owed>,
    /// When a group's last message was enqueued, by group and channel.
    pub flushed: BTreeMap<(String, Uuid), DateTime<Utc>>,
    pub projects: BTreeMap<String, Project>,
    /// Whether admission is paused for every project.
    pub all_paused: bool,
    pub sources: HashMap<Uuid, Source>,
    pub executions: BTreeMap<Uuid, Live>,
    pub jobs: HashMap<Uuid, Job>,
    pub dependencies: BTreeMap<String, Dependency>,
    pub lags: BTreeMap<String, Lag>,
    /// In the order of the log.
    pub happened: Vec<Happening>,
}

/// The name of the project stream that stands for all of them.
const EVERY_PROJECT: &str = "*";

impl Facts {
    /// Whether a type of event tells anything here. What does not need not be decoded.
    pub fn wants(event_type: &str) -> bool {
        let (thing, what) = event_type.split_once('.').unwrap_or_default();
        match thing {
            "source" | "discovery" | "execution" | "job" | "dependency" | "rule" | "silence" | "alert"
            | "projection" => true,
            "config" => what == "activated",
            "project" => matches!(what, "paused" | "resumed"),
            "worker" => matches!(what, "lost" | "stopped"),
            "delivery" => what == "enqueued",
            _ => false,
        }
    }

    /// What alerting wrote itself: it is seen at once, whatever the point.
    pub fn is_of_alerting(event: &Event) -> bool {
        matches!(event, Event::Alert(_) | Event::Delivery(_))
    }

    /// Folds an event in.
    pub fn apply(&mut self, told: &Told) {
        match &told.event {
            Event::Source(event) => self.source(told, event),
            Event::Execution(event) => self.execution(told, event),
            Event::Job(event) => self.job(told, event),
            Event::Dependency(event) => self.dependency(told, event),
            Event::Project(event) => self.project(told, event),
            Event::Worker(event) => self.worker(told, event),
            Event::Rule(event) => self.rule(told, event),
            Event::Silence(event) => self.silence(told, event),
            Event::Alert(event) => self.alert(told, event),
            Event::Delivery(event) => self.delivery(event),
            Event::Follower(event) => self.follower(told, event),
            Event::Profile(_)
            | Event::Lease(_)
            | Event::Account(_)
            | Event::Session(_)
            | Event::Channel(_)
            | Event::LogRedacted(_) => {}
        }
    }

    pub(crate) fn of_project(&mut self, module: &str) -> &mut Project {
        if !self.projects.contains_key(module) {
            self.projects.insert(module.to_owned(), Project::default());
        }
        self.projects.get_mut(module).expect("it was put there")
    }

    fn project(&mut self, told: &Told, event: &project::Event) {
        use project::Event as E;
        if told.stream == EVERY_PROJECT {
            match event {
                E::Paused(_) => self.all_paused = true,
                E::Resumed(_) => self.all_paused = false,
                E::ConfigUploaded(_) | E::ConfigActivated(_) | E::DefaultProfileSet(_) => {}
            }
            return;
        }
        let project = self.of_project(&told.stream);
        match event {
            E::ConfigActivated(_) => project.configured = true,
            E::Paused(_) => project.paused = true,
            E::Resumed(_) => project.paused = false,
            E::ConfigUploaded(_) | E::DefaultProfileSet(_) => {}
        }
    }

    fn job(&mut self, told: &Told, event: &job::Event) {
        use job::Event as E;
        let id = told.uuid();
        let mut ready = |at: Option<DateTime<Utc>>| {
            if let Some(job) = self.jobs.get_mut(&id) {
                (job.ready_at, job.event) = (at, told.id);
            }
        };
        match event {
            E::Enqueued(e) => {
                let ready_at = Some(e.next_run_at.max(told.occurred_at));
                self.jobs.insert(id, Job { kind: e.kind, ready_at, event: told.id });
            }
            E::Claimed(_) => ready(None),
            E::HandedBack(e) => ready(Some(e.next_run_at)),
            E::RetryScheduled(e) => ready(Some(e.next_run_at)),
            // A standing job that was done is asked for again under its name, without saying its kind.
            E::Requeued(e) => {
                let job = Job { kind: job::Kind::SlurmPollTick, ready_at: None, event: told.id };
                let job = self.jobs.entry(id).or_insert(job);
                (job.ready_at, job.event) = (Some(e.next_run_at), told.id);
            }
            E::Failed(_) => {}
            E::Completed(_) | E::DeadLettered(_) => {
                self.jobs.remove(&id);
            }
        }
    }

    fn dependency(&mut self, told: &Told, event: &dependency::Event) {
        let (name, up, reason) = match event {
            dependency::Event::Up(e) => (&e.dependency, true, String::new()),
            dependency::Event::Down(e) => (&e.dependency, false, e.reason.clone()),
        };
        let name = if name.is_empty() { &told.stream } else { name };
        let dependency = Dependency { up, since: told.occurred_at, reason, event: told.id };
        self.dependencies.insert(name.clone(), dependency);
    }

    fn worker(&mut self, told: &Told, event: &worker::Event) {
        match event {
            worker::Event::Lost(e) => {
                self.lags.retain(|_, lag| lag.process != told.stream);
                let what = What::WorkerLost { worker: told.stream.clone(), silent_seconds: e.silent_seconds };
                self.happens(told, None, what);
            }
            worker::Event::Stopped(_) => self.lags.retain(|_, lag| lag.process != told.stream),
            worker::Event::Started(_) | worker::Event::Drained(_) | worker::Event::Resumed(_) => {}
        }
    }

    fn follower(&mut self, told: &Told, event: &crate::follower::Event) {
        use crate::follower::Event as E;
        match event {
            E::FellBehind(e) => {
                let lag = Lag {
                    projection: e.projection.clone(),
                    process: e.process.clone(),
                    since: e.since,
                    event: told.id,
                };
                self.lags.insert(told.stream.clone(), lag);
            }
            E::CaughtUp(_) => {
                self.lags.remove(&told.stream);
            }
        }
    }

    fn rule(&mut self, told: &Told, event: &rule::Event) {
        let id = told.uuid();
        let (version, spec) = match event {
            rule::Event::Created(e) => (e.version, &e.spec),
            rule::Event::Updated(e) => (e.version, &e.spec),
            rule::Event::Removed(_) => {
                self.rules.remove(&id);
                return;
            }
        };
        let created_at = self.rules.get(&id).map_or(told.occurred_at, |rule| rule.created_at);
        self.rules.insert(id, Rule::new(version, spec.clone(), told.occurred_at, created_at));
    }

    fn silence(&mut self, told: &Told, event: &silence::Event) {
        match event {
            silence::Event::Created(set) => {
                let matchers = Matchers::of(&set.matchers);
                self.silences.insert(told.stream.clone(), Silence { set: set.clone(), matchers });
            }
            silence::Event::Expired(_) => {
                self.silences.remove(&told.stream);
            }
        }
    }

    pub(crate) fn happens(&mut self, told: &Told, project: Option<String>, what: What) {
        let at = told.occurred_at;
        self.happened.push(Happening { event: told.id, at, project, what });
    }

    /// Forgets what happened: it was judged. Silences that are over at `at` go too.
    pub fn pass(&mut self, at: DateTime<Utc>) {
        self.happened.clear();
        self.silences.retain(|_, silence| silence.set.ends_at > at);
    }
}
