//! **Evaluation**: a process manager that follows the log, and at every point of a 15 s grid writes what the rules make of the
//! facts: events of alerts, and the deliveries that these call for.
//!
//! What it writes is decided by [`beampipe_domain::alerting`], from the log alone; this is the part that follows, waits and
//! appends. A point is judged [`SETTLE`] after it has passed, so that what happened before it is in the log; a process that
//! begins late goes through the missed points in their order. Judging a point again changes nothing: alerts refuse points
//! before their last, what happened is told in a stream named after it, and a delivery is named after its cause. So it is enough to
//! know roughly how far somebody has come, and two that judge at once cost a few rejected appends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::alert::Alert;
use beampipe_domain::alerting::groups::{self, Batch};
use beampipe_domain::alerting::judge::{Round, Verdict, judge};
use beampipe_domain::alerting::timeline::Timeline;
use beampipe_domain::alerting::{GRID_SECONDS, next, point};
use beampipe_domain::channel::Channel;
use beampipe_domain::delivery::{Command, Delivery, Enqueued, MAX_ATTEMPTS};
use beampipe_domain::rule::Spec;
use beampipe_domain::{Aggregate as _, id};
use beampipe_log::{Filter, Position, ReadError, Subscription};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::hear;
use super::payload::{self, Links};
use crate::handle::{Context, Handle, HandleError};
use crate::metrics::Metrics;
use crate::work::lease::Acting;

/// For how long after a point events that happened before it may still be on their way into the log.
pub const SETTLE: TimeDelta = TimeDelta::seconds(2);
/// A point that is judged later than this is said to be late.
const LATE: TimeDelta = TimeDelta::seconds(2 * GRID_SECONDS);
/// How far a process that acts for the first time, and finds nobody who says how far he came, looks back.
const LOOK_BACK: TimeDelta = TimeDelta::hours(24);
/// What was missed longer ago is not told any more.
const CATCH_UP: TimeDelta = TimeDelta::days(7);
/// How far behind one that stands by stays, so that it can go on where whoever acted has stopped.
const STAND_BACK: TimeDelta = TimeDelta::minutes(10);
/// Appends at once.
const AT_ONCE: usize = 16;
/// How many events are taken at once.
const CHUNK: usize = 1000;
/// A log that has not been heard of for longer is not judged by.
const SILENT: Duration = Duration::from_secs(5);
/// After how long a log that could not be read is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// Under which name processes say how far they came.
const BEATS_AS: &str = "alerts/";

/// What an evaluator needs.
pub struct Setting {
    pub handle: Handle,
    pub links: Links,
    /// The file in which this process notes how far it came.
    pub noted: PathBuf,
    /// The process, as in its heartbeats.
    pub process: String,
    pub metrics: Arc<Metrics>,
}

impl Setting {
    /// How far somebody came: this process by its note, another by its heartbeat.
    async fn known(&self) -> DateTime<Utc> {
        let note = tokio::fs::read_to_string(&self.noted).await.unwrap_or_default();
        let mut known: Option<DateTime<Utc>> = note.trim().parse().ok();
        for beat in self.handle.log().beats().await.unwrap_or_default() {
            let through = beat.facts["judged_through"].as_str().and_then(|text| text.parse().ok());
            if beat.who.starts_with(BEATS_AS) {
                known = known.max(through);
            }
        }
        let now = point(self.handle.clock().now());
        known.unwrap_or(now - LOOK_BACK).clamp(now - CATCH_UP, now)
    }

    /// Says how far it came. Who does not find it judges a few points again, which changes nothing.
    async fn note(&self, at: DateTime<Utc>) {
        let new = self.noted.with_extension("new");
        let written = async {
            tokio::fs::write(&new, at.to_rfc3339()).await?;
            tokio::fs::rename(&new, &self.noted).await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, path = %self.noted.display(), "how far alerting came cannot be noted");
        }
        let who = format!("{BEATS_AS}{}", self.process);
        let facts = serde_json::json!({"role": "alerts", "judged_through": at});
        self.handle.log().beat(&who, facts).await;
    }

    /// Carries a verdict out; answers up to where the log has to be read to see it.
    async fn say(&self, context: &Context, verdict: Verdict) -> Result<Position, HandleError> {
        let context = match verdict.cause {
            Some(cause) => context.because_of(cause),
            None => context.clone(),
        };
        let said = self.handle.handle::<Alert>(&verdict.alert, &context, verdict.command).await;
        match said {
            Ok(done) => Ok(done.position),
            Err(HandleError::Rejected(rejection)) => {
                tracing::warn!(alert = verdict.alert, %rejection, "an alert refused what was judged");
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Enqueues a message; one that is enqueued already is left as it is.
    async fn enqueue(
        &self,
        context: &Context,
        batch: Batch,
        spec: Option<&Spec>,
    ) -> Result<Position, HandleError> {
        let Some(first) = batch.owed.first() else { return Ok(0) };
        let handle = &self.handle;
        let channel = handle.load::<Channel>(&batch.channel.to_string()).await?.state;
        let kind = match &channel {
            Channel::Absent => "unknown",
            Channel::Active(facts) | Channel::Removed(facts) => facts.spec.config.kind(),
        };
        let order = Enqueued {
            message: batch.message,
            channel_id: batch.channel,
            channel_kind: kind.to_owned(),
            rule_id: Some(batch.rule),
            alert: Some(first.alert.clone()),
            group: Some(batch.group.clone()),
            causes: batch.causes(),
            at: Some(batch.at),
            project_module: first.subject.project_module.clone(),
            dedup_key: batch.group.clone(),
            payload: payload::of(&batch, spec, &self.links),
            next_attempt_at: handle.clock().now(),
            max_attempts: MAX_ATTEMPTS,
        };
        let delivery = id::delivery(first.cause, batch.channel).to_string();
        let context = context.because_of(first.cause);
        let done = handle.handle::<Delivery>(&delivery, &context, Command::Enqueue(Box::new(order))).await?;
        Ok(done.position)
    }
}

/// Follows the log, and judges while this process acts as scheduler, until it is stopped.
pub async fn run(setting: Setting, mut acting: Acting, stop: CancellationToken) {
    let mut evaluator = Evaluator::begin(&setting).await;
    loop {
        let Err(stopped) = evaluator.go_on(&mut acting, &stop).await else { return };
        let anew = match stopped {
            Stopped::Log(ReadError::Unavailable(why)) => {
                tracing::warn!(why, "the log cannot be read on; alerting tries again");
                // What came back may be a standby that had not heard of everything.
                setting.handle.log().rewinds() != evaluator.rewinds
            }
            Stopped::Log(error @ ReadError::Rewound { .. }) => {
                tracing::error!(%error, "alerting begins again from the start of the log");
                true
            }
            // Nothing is skipped: as the read models, it stands until a release that knows the event, or a whole log, is there.
            stopped @ (Stopped::Log(ReadError::Damaged { .. }) | Stopped::Unknown(_)) => {
                tracing::error!(error = %stopped, "alerting stops here: no rule is judged any more");
                return;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        if anew {
            evaluator = Evaluator::begin(&setting).await;
        } else {
            evaluator.log = setting.handle.log().subscribe(Filter::All, evaluator.position);
            evaluator.caught_up = false;
        }
    }
}

/// Follows the log with the facts of alerting.
pub struct Evaluator<'a> {
    setting: &'a Setting,
    timeline: Timeline,
    log: Subscription,
    position: Position,
    caught_up: bool,
    /// How often the log had lost its end when it was read from its start.
    rewinds: u64,
    /// The last point that was judged, or passed.
    at: DateTime<Utc>,
    /// Whether this process judges: it acts, and knows how far others came.
    judges: bool,
}

impl<'a> Evaluator<'a> {
    /// At the start of the log.
    pub async fn begin(setting: &'a Setting) -> Self {
        let mut evaluator = Self {
            setting,
            timeline: Timeline::default(),
            log: setting.handle.log().subscribe(Filter::All, 0),
            position: 0,
            caught_up: false,
            rewinds: setting.handle.log().rewinds(),
            at: DateTime::UNIX_EPOCH,
            judges: false,
        };
        evaluator.at = setting.known().await;
        evaluator
    }

    fn now(&self) -> DateTime<Utc> {
        self.setting.handle.clock().now()
    }

    async fn go_on(&mut self, acting: &mut Acting, stop: &CancellationToken) -> Result<(), Stopped> {
        let mut looks = tokio::time::interval(Duration::from_millis(500));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                batch = self.log.next_batch(CHUNK) => self.take(batch?)?,
                _ = looks.tick() => {}
            }
            if !self.judges {
                // While it reads up, nothing waits that came before it begins.
                self.timeline.pass_through(self.at);
            }
            let from = *acting.borrow_and_update();
            if !from.is_some_and(|from| self.caught_up && self.position >= from) {
                self.judges &= from.is_some();
                self.stand_by();
                continue;
            }
            if !self.judges {
                self.judges = true;
                self.at = self.at.max(self.setting.known().await);
                self.timeline.pass_through(self.at);
                tracing::info!(from = %self.at, "alert rules are judged here");
            }
            if let Err(error) = self.judge_what_is_due(stop).await {
                match error {
                    Hindered::Stopped(stopped) => return Err(stopped),
                    Hindered::Handle(error) => {
                        tracing::warn!(%error, at = %next(self.at), "a point could not be judged; it is tried again");
                    }
                }
            }
        }
    }

    /// Who does not act stays a little behind.
    fn stand_by(&mut self) {
        if self.caught_up {
            self.at = self.at.max(point(self.now() - STAND_BACK));
            self.timeline.pass_through(self.at);
        }
    }

    fn take(&mut self, batch: beampipe_log::Batch) -> Result<(), Stopped> {
        for recorded in &batch.events {
            if let Some(told) = hear::told(recorded)? {
                self.timeline.take(told);
            }
        }
        self.position = batch.through;
        self.caught_up = batch.caught_up;
        Ok(())
    }

    /// Reads on until `position` is in the facts.
    async fn read_to(&mut self, position: Position) -> Result<(), Stopped> {
        while self.position < position {
            let batch = self.log.next_batch(CHUNK).await?;
            self.take(batch)?;
        }
        Ok(())
    }

    async fn judge_what_is_due(&mut self, stop: &CancellationToken) -> Result<(), Hindered> {
        loop {
            let (at, log) = (next(self.at), self.setting.handle.log());
            let settled = at + SETTLE <= self.now() && log.health().silent_for < SILENT;
            if !settled || stop.is_cancelled() {
                return Ok(());
            }
            let head = log.head().position;
            self.read_to(head).await?;
            self.judge(at).await?;
            self.at = at;
            self.setting.metrics.alerts_judged_through.with_label_values(&[] as &[&str]).set(at.timestamp());
            // Every point of a long time would be a file and a heartbeat too many.
            if next(at) + SETTLE > self.now() || at.timestamp() % 900 == 0 {
                self.setting.note(at).await;
            }
        }
    }

    /// Judges every point after `from` up to `to`, from what is in the log now.
    pub async fn judge_between(&mut self, from: DateTime<Utc>, to: DateTime<Utc>) -> anyhow::Result<()> {
        self.at = point(from);
        while self.at < to {
            self.read_to(self.setting.handle.log().head().position).await?;
            self.timeline.pass_through(self.at);
            let at = next(self.at);
            self.judge(at).await?;
            self.at = at;
        }
        Ok(())
    }

    async fn judge(&mut self, at: DateTime<Utc>) -> Result<(), Hindered> {
        self.timeline.reach(at);
        let context = Context::system(self.setting.handle.clock(), "scheduler/alerts");
        let late = self.now() - at > LATE;
        for round in Round::ALL {
            let verdicts = judge(&self.timeline.facts, round, at, late, None);
            // What changes nothing is most of it, and costs no look at the log.
            let verdicts = verdicts.into_iter().filter(|verdict| self.changes(verdict));
            let appends = verdicts.map(|verdict| self.setting.say(&context, verdict));
            let position = all(appends.collect()).await?;
            self.read_to(position).await?;
        }
        let batches = groups::flush(&self.timeline.facts, at);
        let rules = &self.timeline.facts.rules;
        let appends = batches.into_iter().map(|batch| {
            let spec = rules.get(&batch.rule).map(|rule| &rule.spec);
            self.setting.enqueue(&context, batch, spec)
        });
        let position = all(appends.collect()).await?;
        self.read_to(position).await?;
        self.timeline.facts.pass(at);
        Ok(())
    }

    fn changes(&self, verdict: &Verdict) -> bool {
        let known = self.timeline.facts.alerts.get(&verdict.alert).cloned().unwrap_or_default();
        known.decide(verdict.command.clone()).is_ok_and(|events| !events.is_empty())
    }
}

/// Makes these appends, several at once; answers the last position of any.
async fn all<F: Future<Output = Result<Position, HandleError>>>(
    appends: Vec<F>,
) -> Result<Position, HandleError> {
    let mut done = futures::stream::iter(appends).buffer_unordered(AT_ONCE);
    let mut last = 0;
    while let Some(position) = done.next().await {
        last = last.max(position?);
    }
    Ok(last)
}

/// Why the log cannot be followed on.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Unknown(#[from] crate::codec::DecodeError),
}

/// Why a point was not judged.
#[derive(Debug, thiserror::Error)]
enum Hindered {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Handle(#[from] HandleError),
}
