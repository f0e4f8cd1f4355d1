//! `slurm_poll_tick`: watches every execution of one login node, from its hand-over to its end.
//!
//! One such job for each login node, whoever submits there: so its queue and its accounting are asked once for all of its
//! jobs, and no more often than its floor, however many workers there are. It has hand-overs settled whose answer was lost
//! ([`hand_overs`]), carries cancellations out at once, writes an event where an axis changed, and brings the evidence home
//! at an end ([`ending`]). A node that does not answer is asked less and less often; nothing is concluded from its silence
//! ([`reach`]). What only this process knows of an execution is in its [`memory`]. The job ends when nothing is left, and
//! goes on when there is something again.

use std::collections::HashSet;
use std::time::Duration;

use beampipe_domain::execution::{Axes, Command, Execution, Observation, Receipt};
use beampipe_log::{Filter, Subscription};
use chrono::{DateTime, TimeDelta, Utc};
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use self::asking::Look;
use self::ours::{Ours, Running};
use super::Claimed;
use crate::backends::slurm::cluster::Cluster;
use crate::backends::slurm::poll::{Asked, Poll as Told};
use crate::handle::HandleError;
use crate::work::cluster::Site;
use crate::work::{JobError, Poll, Shop};

// What Slurm is asked, and how it is said.
mod asking;
// What an end means, and what is kept of it.
mod ending;
// What became of hand-overs whose answer was lost.
mod hand_overs;
// What only this process knows.
mod memory;
// Which executions live there.
mod ours;
// Whether the login node answers.
mod reach;

/// How long a login node with nothing to watch keeps its job.
const IDLE: Duration = Duration::from_secs(60);
/// How often it is looked whether there is something new, where there was nothing.
const TICK: Duration = Duration::from_secs(2);
/// After so many polls that say nothing of a job its marks are looked at.
const SILENT_POLLS: u32 = 5;
/// How long one whose files could not be read in time is left alone.
const SLOW_AGAIN: Duration = Duration::from_secs(300);
/// After so long a cancellation that was asked for and did not come is asked for again.
const CANCEL_AGAIN: Duration = Duration::from_secs(20);
/// Ends that are brought home at once.
const AT_ONCE: usize = 4;

pub async fn run(shop: &Shop, job: &Claimed) -> Result<Option<Value>, JobError> {
    let site: Site = serde_json::from_value(job.order.payload.clone())
        .map_err(|error| JobError::Fail(format!("the job names no login node: {error}")))?;
    let log = shop.handle.log();
    let (to_settle, open) = mpsc::unbounded();
    let (say, settled) = mpsc::unbounded();
    let mut watch = Watch {
        shop,
        job,
        reach: reach::Reach::default(),
        site,
        began: shop.clock.now(),
        round: 0,
        pace: Duration::from_secs(u64::from(shop.settings.slurm_poll_floor_seconds)),
        memory: memory::Memory::new(&shop.polls),
        to_settle,
        settling: HashSet::new(),
        settled,
    };
    let mut news = log.subscribe(Filter::category("execution"), log.head().position);
    let watching = async {
        let ended = watch.until_nothing_is_left(&mut news).await;
        // Nothing more is to be settled, which lets the other one end.
        drop(watch);
        ended
    };
    // Side by side, and each goes on while the other waits: a hand-over that hangs keeps no poll and no cancellation.
    let (ended, ()) = tokio::join!(watching, hand_overs::settle_all(shop, job, open, say));
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
    memory: memory::Memory<'a>,
    to_settle: mpsc::UnboundedSender<Uuid>,
    /// Whose hand-over is being settled.
    settling: HashSet<Uuid>,
    settled: mpsc::UnboundedReceiver<hand_overs::Settled>,
}

impl Watch<'_> {
    async fn until_nothing_is_left(&mut self, news: &mut Subscription) -> Result<Option<Value>, JobError> {
        let mut next_poll = None;
        let mut idle_since = Instant::now();
        let mut unwanted = vec![];
        loop {
            let ours = ours::of(self.shop, &self.site)?;
            self.memory.keep(ours.iter().map(|one| (one.id, one.attempt)));
            self.pace = ours::pace(self.shop, &ours).await;
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
                    self.cancel_now(ours, &unwanted).await?;
                }
            }
            unwanted = self.wait(news, until).await?;
        }
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
        let (running, open) = ours::sort(self.shop, ours).await?;
        let answered = if running.is_empty() {
            reach::probe(self.shop, &self.site).await
        } else {
            self.poll(&cluster, running).await?
        };
        match &answered {
            Ok(()) => open.into_iter().for_each(|id| self.settle(id)),
            Err(reason) => open.into_iter().for_each(|id| self.tell(id, Some(reason.clone()), None)),
        }
        Ok(answered)
    }

    /// Has a hand-over settled, unless it is being settled.
    fn settle(&mut self, id: Uuid) {
        if self.settling.insert(id) && self.to_settle.unbounded_send(id).is_err() {
            self.settling.remove(&id);
        }
    }

    fn note_settled(&mut self, (id, outcome): hand_overs::Settled) {
        self.settling.remove(&id);
        match outcome {
            Ok(None) => {}
            Ok(Some(reason)) => self.tell(id, Some(reason), None),
            Err(error) => {
                tracing::warn!(execution = %id, %error, "a hand-over could not be settled");
                self.tell(id, Some(error.to_string()), None);
            }
        }
    }

    /// Ends at once what somebody wants to be ended: cancelling does not wait for the next poll. Of `unwanted` the log says
    /// so; the read model may not yet.
    async fn cancel_now(&mut self, ours: Vec<Ours>, unwanted: &[Uuid]) -> Result<(), JobError> {
        for one in ours {
            let asked = self.memory.of(one.id).is_none_or(|known| known.told_to_cancel.is_some());
            if asked || !one.cancel && !unwanted.contains(&one.id) {
                continue;
            }
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
        if let Some(known) = self.memory.of(execution) {
            known.told_to_cancel = Some(Instant::now());
        }
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
            let Some(known) = self.memory.of(one.ours.id) else { continue };
            if !matches!(told.get(&one.job), Some(Told::NotSaid) | None) {
                known.silent = 0;
            }
            let again = known.told_to_cancel.is_none_or(|at| at.elapsed() > CANCEL_AGAIN);
            let lives = !matches!(told.get(&one.job), Some(Told::Ended(_)));
            if one.cancel && again && lives {
                self.cancel(cluster, one.ours.id, &one.job.to_string()).await;
            }
            match told.get(&one.job) {
                Some(Told::Ended(row)) => ended.push((one, Some(row.clone()))),
                Some(Told::Living(row)) => {
                    self.observe(&one, Look::in_queue(row)).await?;
                }
                Some(Told::Recorded(row)) => {
                    self.observe(&one, Look::in_accounting(row)).await?;
                }
                Some(Told::Leaving(row)) => {
                    let note = format!("it has ended as {}; accounting does not have it yet", row.state);
                    self.tell(one.ours.id, Some(note), None);
                }
                Some(Told::NotSaid) | None => {
                    let silent = self.memory.of(one.ours.id).map_or(0, |known| {
                        known.silent += 1;
                        known.silent
                    });
                    // What neither of them speaks of may still have left its marks.
                    if silent >= SILENT_POLLS {
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
        let mut due = |id| {
            let slow = self.memory.of(id).and_then(|known| known.slow);
            slow.is_none_or(|at| at.elapsed() > SLOW_AGAIN)
        };
        let ended: Vec<_> = ended.into_iter().filter(|(one, _)| due(one.ours.id)).collect();
        let homing = ended.into_iter().map(|(one, row)| async move {
            let outcome = ending::bring_home(shop, context, cluster, &one, row.as_ref(), polls).await;
            (one.ours.id, outcome)
        });
        let homed: Vec<_> = stream::iter(homing).buffer_unordered(AT_ONCE).collect().await;
        for (id, outcome) in homed {
            match outcome {
                Ok(ending::Home::Ended) => self.memory.forget(id),
                Ok(ending::Home::NotYet(reason)) => self.tell(id, Some(reason), None),
                Ok(ending::Home::Slow(reason)) => {
                    if let Some(known) = self.memory.of(id) {
                        known.slow = Some(Instant::now());
                    }
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
        let word = state.scheduler_state();
        let is_news = one.axes.scheduler_state.as_deref() != Some(word);
        let Some(known) = self.memory.of(one.ours.id) else { return Ok(()) };
        let previous_polls = known.seen;
        known.seen = if is_news { 1 } else { previous_polls + 1 };
        let sentence = (word == "pending").then(|| asking::waiting(why.unwrap_or_default(), expected_at));
        self.tell(one.ours.id, None, sentence.clone());
        if !is_news {
            return Ok(());
        }
        let known = &one.axes;
        let awaits = word == "pending";
        let command = if awaits && known.scheduler_state.is_none() {
            Command::AwaitScheduler { session_id: one.session, reason: sentence }
        } else {
            // What the graph does inside the job is only known at its end.
            let daliuge_state =
                if word == "running" { Some("unknown".to_owned()) } else { known.daliuge_state.clone() };
            Command::Observe {
                session_id: one.session,
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
            // It was ended, or even tried again, while Slurm was asked: what was seen is not about its present state.
            Err(HandleError::Rejected(_)) => Ok(()),
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
        self.memory.tell(execution, poll);
    }

    /// Sleeps until it is time to look, somebody wants an end, or the worker stops; answers whose end is wanted.
    async fn wait(&mut self, news: &mut Subscription, until: Instant) -> Result<Vec<Uuid>, JobError> {
        loop {
            let batch = tokio::select! {
                () = self.job.stop.cancelled() => return Err(JobError::HandBack("the worker stops or is drained".into())),
                () = tokio::time::sleep_until(until) => return Ok(vec![]),
                Some(settled) = self.settled.next() => {
                    self.note_settled(settled);
                    continue;
                }
                batch = news.next_batch(1000) => batch.map_err(|error| JobError::Retry(error.to_string()))?,
            };
            let mut unwanted = vec![];
            for event in &batch.events {
                let Some(id) = execution_of(&event.stream) else { continue };
                match &*event.event_type {
                    "execution.cancel_requested" => unwanted.push(id),
                    // Nobody watches it any more; what was said of the watch is not so now.
                    "execution.submission_abandoned" => self.memory.forget(id),
                    _ => {}
                }
            }
            if !unwanted.is_empty() {
                return Ok(unwanted);
            }
        }
    }
}

/// Whose stream it is.
fn execution_of(stream: &str) -> Option<Uuid> {
    stream.strip_prefix("execution-").and_then(|id| Uuid::try_parse(id).ok())
}
