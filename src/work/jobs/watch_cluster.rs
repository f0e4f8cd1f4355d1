//! `slurm_poll_tick`: watches every execution of one login node, from its hand-over to its end.
//!
//! One such job for each login node, whoever submits there: so its queue and its accounting are asked once for all of its
//! jobs, and no more often than its floor, however many workers there are. It settles hand-overs whose answer was lost,
//! carries cancellations out at once, writes an event where an axis changed, and brings the evidence home at an end
//! ([`ending`]). A node that does not answer is asked less and less often; nothing is concluded from its silence
//! ([`reach`]). The job ends when nothing is left, and goes on when there is something again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use beampipe_domain::execution::{Axes, Command, Execution, JobFacts, Observation, Receipt, Submission};
use beampipe_domain::job::Kind;
use beampipe_domain::profile::{Deployment, SlurmRemote};
use beampipe_log::{Filter, Subscription};
use beampipe_projections::executions::{self as rows, Live};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::Claimed;
use crate::backends::slurm::cluster::Cluster;
use crate::backends::slurm::job::State;
use crate::backends::slurm::poll::{Asked, Poll as Told};
use crate::handle::HandleError;
use crate::work::cluster::Site;
use crate::work::stage;
use crate::work::submit::{HandedOver, settle};
use crate::work::{JobError, Poll, Shop};

// What Slurm is asked, and how it is said.
mod asking;
// What an end means, and what is kept of it.
mod ending;
// Whether the login node answers.
mod reach;

/// Live executions that are looked at.
const MOST: u64 = 10_000;
/// How long a login node with nothing to watch keeps its job.
const IDLE: Duration = Duration::from_secs(60);
/// How often it is looked whether there is something new, where there was nothing.
const TICK: Duration = Duration::from_secs(2);
/// What a read model needs at most to hear what its process has heard, mostly.
const SOON: Duration = Duration::from_millis(100);
/// After so many polls that say nothing of a job its marks are looked at.
const SILENT_POLLS: u32 = 5;
/// How long one whose files could not be read in time is left alone.
const SLOW_AGAIN: Duration = Duration::from_secs(300);
/// Hand-overs that are settled, and ends that are brought home, at once.
const AT_ONCE: usize = 4;

/// An execution that lives on the login node.
struct Ours {
    id: Uuid,
    project: String,
    config: Uuid,
    remote: SlurmRemote,
    cancel: bool,
}

/// One whose job is known.
struct Running {
    ours: Ours,
    job: u64,
    session: Uuid,
    directory: String,
    cancel: bool,
    axes: Axes,
    submission: Submission,
}

/// What was said of a job that has not ended.
struct Look<'a> {
    source: &'static str,
    state: &'a State,
    why: Option<&'a str>,
    expected_at: Option<DateTime<Utc>>,
    job: JobFacts,
}

pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    let site: Site = serde_json::from_value(job.order.payload.clone())
        .map_err(|error| JobError::Fail(format!("the job names no login node: {error}")))?;
    let log = shop.handle.log();
    let mut watch = Watch {
        shop,
        job,
        reach: reach::Reach::default(),
        site,
        began: shop.clock.now(),
        round: 0,
        pace: Duration::from_secs(u64::from(shop.settings.slurm_poll_floor_seconds)),
        seen: HashMap::new(),
        silent: HashMap::new(),
        slow: HashMap::new(),
        told_to_cancel: HashMap::new(),
    };
    let mut news = log.subscribe(Filter::category("execution"), log.head().position);
    let ended = watch.until_nothing_is_left(&mut news).await;
    for execution in watch.seen.keys() {
        shop.polls.forget(*execution);
    }
    ended
}

struct Watch<'a> {
    shop: &'a Shop,
    job: &'a Claimed,
    site: Site,
    reach: reach::Reach,
    began: DateTime<Utc>,
    round: u64,
    /// Between two polls, while the node answers.
    pace: Duration,
    /// Polls that saw an execution's present state.
    seen: HashMap<Uuid, u64>,
    /// Polls in a row that said nothing of a job.
    silent: HashMap<Uuid, u32>,
    /// When what a job left could last not be read in time.
    slow: HashMap<Uuid, Instant>,
    /// When Slurm was last asked to end a job.
    told_to_cancel: HashMap<Uuid, Instant>,
}

impl Watch<'_> {
    async fn until_nothing_is_left(&mut self, news: &mut Subscription) -> Result<Option<Value>, JobError> {
        let mut next_poll = None;
        let mut idle_since = Instant::now();
        loop {
            let ours = self.ours()?;
            self.pace = self.pace(&ours).await;
            // Whoever had the job before may have polled a moment ago.
            let due_at = *next_poll.get_or_insert_with(|| Instant::now() + self.pace);
            let mut until = due_at;
            if ours.is_empty() && !reach::has_paused(self.shop, &self.site).await? {
                if idle_since.elapsed() > IDLE {
                    return Ok(Some(json!({"polls": self.round})));
                }
                until = Instant::now() + TICK;
            } else {
                idle_since = Instant::now();
                if Instant::now() >= due_at {
                    let outcome = self.round(ours).await?;
                    let failures = self.reach.note(self.shop, &self.job.context, &self.site, outcome).await?;
                    until = Instant::now() + self.reach.pause(self.pace, failures);
                    next_poll = Some(until);
                } else {
                    self.cancel_now(ours).await?;
                }
            }
            wait(self.job, news, until).await?;
        }
    }

    /// The live executions of this login node that have been handed over, or may have been.
    fn ours(&self) -> Result<Vec<Ours>, JobError> {
        let unread = |error: beampipe_projections::ReadModelError| JobError::Retry(error.to_string());
        let mut ours = vec![];
        for row in self.shop.models.executions().live(Live::All, MOST).map_err(unread)? {
            if row.scheduler_name != "slurm"
                || row.submitted_at.is_none() && row.submission_pending_at.is_none()
            {
                continue;
            }
            if let Some(one) = Ours::of(row)
                && Site::of(&one.remote).as_ref() == Ok(&self.site)
            {
                ours.push(one);
            }
        }
        Ok(ours)
    }

    /// How often to poll: as the projects wish, and never more often than the login node's floor.
    async fn pace(&self, ours: &[Ours]) -> Duration {
        let floor = ours
            .iter()
            .map(|one| one.remote.poll_floor_seconds.unwrap_or(self.shop.settings.slurm_poll_floor_seconds))
            .max()
            .unwrap_or(self.shop.settings.slurm_poll_floor_seconds);
        let mut wish: Option<f64> = None;
        let configs: BTreeMap<Uuid, &str> =
            ours.iter().map(|one| (one.config, one.project.as_str())).collect();
        for (config, project) in configs {
            if let Ok(config) = self.shop.config(project, config).await {
                let seconds = config.automation.execution.execution_slurm_remote_poll_interval_seconds;
                wish = Some(wish.map_or(seconds, |known| known.min(seconds)));
            }
        }
        let wish = Duration::from_secs_f64(wish.unwrap_or(0.0).clamp(0.0, 86_400.0));
        wish.max(Duration::from_secs(u64::from(floor.max(1))))
    }

    /// One look at everything; answers why the login node did not answer, if so.
    async fn round(&mut self, ours: Vec<Ours>) -> Result<Result<(), String>, JobError> {
        self.round += 1;
        let node = self.site.login_node.as_str();
        let open = self.shop.ssh.open_connections().iter().filter(|target| target.host == node).count();
        self.shop
            .metrics
            .slurm_ssh_sessions_active
            .with_label_values(&[node])
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        let Some(first) = ours.first() else {
            return Ok(reach::probe(self.shop, &self.site).await);
        };
        let cluster = self.shop.cluster(&first.remote).map_err(JobError::Fail)?;
        let (running, open) = self.sort(ours).await?;
        let answered = if running.is_empty() {
            reach::probe(self.shop, &self.site).await
        } else {
            self.poll(&cluster, running).await?
        };
        match &answered {
            Ok(()) => self.settle(open).await,
            Err(reason) => open.iter().for_each(|(id, _)| self.tell(*id, Some(reason.clone()), None)),
        }
        Ok(answered)
    }

    /// Which executions have a job, and which have a hand-over that is open and that nobody else works on.
    async fn sort(&self, ours: Vec<Ours>) -> Result<(Vec<Running>, Vec<(Uuid, Execution)>), JobError> {
        let (mut running, mut open) = (vec![], vec![]);
        for one in ours {
            match self.shop.handle.load::<Execution>(&one.id.to_string()).await?.state {
                Execution::Submitted { facts, submission, receipt, axes, .. } => {
                    let Receipt::Slurm { slurm_job_id, session_dir, .. } = *receipt else { continue };
                    let Ok(job) = slurm_job_id.parse() else { continue };
                    let (session, directory, cancel) =
                        (submission.session_id, session_dir, facts.cancel_requested);
                    running.push(Running { ours: one, job, session, directory, cancel, axes, submission });
                }
                state @ (Execution::Submitting { .. } | Execution::Uncertain { .. }) => {
                    let jobs = self.shop.models.jobs();
                    let handing_over = jobs.unfinished_for_execution(one.id, Kind::Execute);
                    if handing_over.map_err(|error| JobError::Retry(error.to_string()))?.is_none() {
                        open.push((one.id, state));
                    }
                }
                _ => {}
            }
        }
        Ok((running, open))
    }

    async fn settle(&self, open: Vec<(Uuid, Execution)>) {
        let settling = open.into_iter().map(|(id, state)| async move {
            let over = match stage::hand_over(self.shop, id, &state).await {
                Ok(over) => over,
                Err(error) => return (id, Err(error)),
            };
            (id, settle(self.shop, &self.job.context, &over).await.map_err(JobError::from))
        });
        let settled: Vec<_> = stream::iter(settling).buffer_unordered(AT_ONCE).collect().await;
        for (id, outcome) in settled {
            match outcome {
                Ok(HandedOver::Open { reason }) => self.tell(id, Some(reason), None),
                Ok(HandedOver::Recorded | HandedOver::Refused | HandedOver::Cancelled) => {}
                Err(error) => {
                    tracing::warn!(execution = %id, %error, "a hand-over could not be settled");
                    self.tell(id, Some(error.to_string()), None);
                }
            }
        }
    }

    /// Ends at once what somebody wants to be ended: cancelling does not wait for the next poll.
    async fn cancel_now(&mut self, ours: Vec<Ours>) -> Result<(), JobError> {
        let wanted = |one: &Ours| one.cancel && !self.told_to_cancel.contains_key(&one.id);
        for one in ours.into_iter().filter(wanted).collect::<Vec<_>>() {
            let state = self.shop.handle.load::<Execution>(&one.id.to_string()).await?.state;
            if let Execution::Submitted { facts, receipt, .. } = &state
                && let Receipt::Slurm { slurm_job_id, .. } = &**receipt
                && facts.cancel_requested
            {
                let cluster = self.shop.cluster(&one.remote).map_err(JobError::Fail)?;
                self.cancel(&cluster, one.id, slurm_job_id).await;
            }
        }
        Ok(())
    }

    async fn cancel(&mut self, cluster: &Cluster, execution: Uuid, job: &str) {
        self.told_to_cancel.insert(execution, Instant::now());
        match cluster.cancel(job).await {
            Ok(said) if said.success() => {}
            Ok(said) => {
                let stderr = said.stderr_text();
                tracing::warn!(%execution, job, stderr, "scancel did not succeed; it is asked again");
            }
            Err(error) => {
                tracing::warn!(%execution, job, %error, "a job could not be cancelled; it is asked again")
            }
        }
    }

    /// Asks for all jobs in one batch of at most two commands, and acts on what is said of each.
    async fn poll(
        &mut self,
        cluster: &Cluster,
        running: Vec<Running>,
    ) -> Result<Result<(), String>, JobError> {
        let wanted: Vec<Asked> =
            running.iter().map(|one| Asked { job: one.job, session: one.session.to_string() }).collect();
        self.shop.metrics.slurm_poll_batch_size.observe(wanted.len() as f64);
        let told = match asking::ask(self.shop, cluster, &wanted).await {
            Ok(told) => told,
            Err(reason) => {
                for one in &running {
                    self.tell(one.ours.id, Some(reason.clone()), None);
                }
                return Ok(Err(reason));
            }
        };
        let mut ended = vec![];
        for one in running {
            if one.cancel {
                let again = self
                    .told_to_cancel
                    .get(&one.ours.id)
                    .is_none_or(|at| at.elapsed() > Duration::from_secs(20));
                let lives = !matches!(told.get(&one.job), Some(Told::Ended(_)));
                if again && lives {
                    self.cancel(cluster, one.ours.id, &one.job.to_string()).await;
                }
            }
            if !matches!(told.get(&one.job), Some(Told::NotSaid) | None) {
                self.silent.remove(&one.ours.id);
            }
            match told.get(&one.job) {
                Some(Told::Ended(row)) => ended.push((one, Some(row.clone()))),
                Some(Told::Living(row)) => {
                    let look = Look {
                        source: "squeue",
                        state: &row.state,
                        why: row.reason.as_deref(),
                        expected_at: row.started_at,
                        job: ending::facts_of_queue(row),
                    };
                    self.observe(&one, look).await?;
                }
                Some(Told::Recorded(row)) => {
                    let look = Look {
                        source: "sacct",
                        state: &row.state,
                        why: row.reason.as_deref(),
                        expected_at: None,
                        job: ending::facts(row),
                    };
                    self.observe(&one, look).await?;
                }
                Some(Told::Leaving(row)) => {
                    let note = format!("it has ended as {}; accounting does not have it yet", row.state);
                    self.tell(one.ours.id, Some(note), None);
                }
                Some(Told::NotSaid) | None => {
                    let silent = self.silent.entry(one.ours.id).or_default();
                    *silent += 1;
                    // What neither of them speaks of may still have left its marks.
                    if *silent >= SILENT_POLLS {
                        ended.push((one, None));
                    } else {
                        let note = format!("neither the queue nor accounting speaks of job {}", one.job);
                        self.tell(one.ours.id, Some(note), None);
                    }
                    continue;
                }
            }
        }
        let (shop, context, polls) = (self.shop, &self.job.context, self.round);
        let slow = &self.slow;
        let due = |id: &Uuid| slow.get(id).is_none_or(|at| at.elapsed() > SLOW_AGAIN);
        let ended: Vec<_> = ended.into_iter().filter(|(one, _)| due(&one.ours.id)).collect();
        let homing = ended.into_iter().map(|(one, row)| async move {
            let outcome = ending::bring_home(shop, context, cluster, &one, row.as_ref(), polls).await;
            (one.ours.id, outcome)
        });
        let homed: Vec<_> = stream::iter(homing).buffer_unordered(AT_ONCE).collect().await;
        for (id, outcome) in homed {
            match outcome {
                Ok(ending::Home::Ended) => {
                    self.seen.remove(&id);
                    self.told_to_cancel.remove(&id);
                    self.shop.polls.forget(id);
                }
                Ok(ending::Home::NotYet(reason)) => self.tell(id, Some(reason), None),
                Ok(ending::Home::Slow(reason)) => {
                    self.slow.insert(id, Instant::now());
                    self.tell(id, Some(reason), None);
                }
                Err(error) => {
                    tracing::warn!(execution = %id, %error, "the end of a job could not be recorded");
                    self.tell(id, Some(error.to_string()), None);
                }
            }
        }
        Ok(Ok(()))
    }

    /// Writes an event if an axis has changed.
    async fn observe(&mut self, one: &Running, look: Look<'_>) -> Result<(), JobError> {
        let Look { source, state, why, expected_at, job } = look;
        let polls = self.seen.entry(one.ours.id).or_default();
        *polls += 1;
        let previous_polls = *polls - 1;
        let word = state.scheduler_state();
        let sentence = (word == "pending").then(|| asking::waiting(why.unwrap_or_default(), expected_at));
        self.tell(one.ours.id, None, sentence.clone());
        let known = &one.axes;
        if known.scheduler_state.as_deref() == Some(word) {
            return Ok(());
        }
        let awaits = word == "pending";
        self.seen.insert(one.ours.id, 1);
        let command = if awaits && known.scheduler_state.is_none() {
            Command::AwaitScheduler { reason: sentence }
        } else {
            // What the graph does inside the job is only known at its end.
            let daliuge_state =
                if word == "running" { Some("unknown".to_owned()) } else { known.daliuge_state.clone() };
            Command::Observe {
                axes: Axes {
                    scheduler_state: Some(word.to_owned()),
                    awaiting_scheduler: awaits,
                    daliuge_state,
                    ..known.clone()
                },
                observation: Observation {
                    source: source.to_owned(),
                    observed_at: self.shop.clock.now(),
                    raw_state: Some(state.to_string()),
                    reason: sentence.or_else(|| why.map(str::to_owned)),
                    previous_polls,
                    job: Some(Box::new(job)),
                },
            }
        };
        match self.shop.handle.handle::<Execution>(&one.ours.id.to_string(), &self.job.context, command).await
        {
            Ok(_) => Ok(()),
            Err(HandleError::Rejected(rejection)) if rejection.code == "execution-ended" => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Says how the watch of an execution goes, to whoever asks now.
    fn tell(&self, execution: Uuid, trouble: Option<String>, note: Option<String>) {
        let now = self.shop.clock.now();
        let next_poll_at = now + TimeDelta::from_std(self.pace).unwrap_or_default();
        let poll = Poll {
            round: self.round,
            started_at: self.began,
            last_poll_at: now,
            next_poll_at,
            trouble,
            note,
        };
        self.shop.polls.note(execution, poll);
    }
}

/// Sleeps until it is time to look, somebody wants an end, or the worker stops.
async fn wait(job: &Claimed, news: &mut Subscription, until: Instant) -> Result<(), JobError> {
    loop {
        tokio::select! {
            () = job.stop.cancelled() => return Err(JobError::HandBack("the worker stops".into())),
            () = tokio::time::sleep_until(until) => return Ok(()),
            batch = news.next_batch(1000) => match batch {
                Ok(batch) if batch.events.iter().any(|e| &*e.event_type == "execution.cancel_requested") => {
                    // The read model that says whose cancellation it is hears of it now, too.
                    tokio::time::sleep(SOON).await;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => return Err(JobError::Retry(error.to_string())),
            },
        }
    }
}

impl Ours {
    fn of(row: rows::Execution) -> Option<Self> {
        let spec = row.profile_spec?;
        let Deployment::SlurmRemote(remote) = spec.deployment else { return None };
        Some(Self {
            id: row.id,
            project: row.project_module,
            config: row.project_config_id,
            remote: *remote,
            cancel: row.cancel_requested,
        })
    }
}
