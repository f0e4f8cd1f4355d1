//! The **post**: a process manager that enqueues what alerts call for, and tries what is due, while this process acts as
//! scheduler.
//!
//! Its to-do lists are read models, `owed` and the deliveries that are due; it acts when they have caught up with the lease it
//! acts under. It keeps nothing of its own but which attempts run now, so that a process that takes over goes on where the
//! log is. A channel that hangs holds only its own places.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use beampipe_domain::channel::Channel;
use beampipe_domain::delivery::{Command, Delivery, Enqueued, MAX_ATTEMPTS, Message};
use beampipe_projections::Models;
use beampipe_projections::alerts::{self as rows, Owed};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::deliver::Sender;
use super::{failing, message};
use crate::handle::{Context, HandleError};
use crate::work::lease::Acting;

/// How often is looked for what is due.
const EVERY: Duration = Duration::from_millis(500);
/// Attempts at once, and at once to one channel.
const AT_ONCE: usize = 32;
const TO_ONE_CHANNEL: usize = 4;
/// How many messages are enqueued in one turn.
const IN_A_TURN: u64 = 1000;
/// How many of those that are due to one channel are looked at in one turn.
const OF_A_CHANNEL: u64 = 100;

/// Enqueues and delivers, while this process acts as scheduler, until it is stopped.
pub async fn run(sender: Sender, models: Arc<Models>, mut acting: Acting, stop: CancellationToken) {
    let mut post =
        Post { sender, models, running: HashMap::new(), attempts: JoinSet::new(), due: VecDeque::new() };
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = looks.tick() => {}
            Some(ended) = post.attempts.join_next() => {
                post.ended(ended);
                if acting.borrow().is_some() {
                    post.try_what_is_due();
                }
                continue;
            }
        }
        let Some(from) = *acting.borrow_and_update() else { continue };
        if !post.models.wait_for(from, EVERY).await || !post.models.caught_up() {
            continue;
        }
        if let Err(error) = post.turn().await {
            tracing::warn!(%error, "what alerts call for could not be seen to");
        }
    }
    // An attempt has a bound of its own; what it ended as is recorded before the process goes.
    while let Some(ended) = post.attempts.join_next().await {
        post.ended(ended);
    }
}

struct Post {
    sender: Sender,
    models: Arc<Models>,
    /// The deliveries that are tried now, and their channels.
    running: HashMap<Uuid, Uuid>,
    attempts: JoinSet<Uuid>,
    /// What was due when it was last looked, and was not tried since.
    due: VecDeque<rows::Delivery>,
}

impl Post {
    fn ended(&mut self, ended: Result<Uuid, tokio::task::JoinError>) {
        match ended {
            Ok(delivery) => {
                self.running.remove(&delivery);
            }
            Err(error) => {
                tracing::error!(%error, "an attempt to deliver broke off");
                // Which one is not known any more: those that still run are found by the next turn's appends.
                self.running.clear();
            }
        }
    }

    async fn turn(&mut self) -> anyhow::Result<()> {
        let context = Context::system(self.sender.handle.clock(), "scheduler/post");
        let models = self.models.clone();
        let now = self.sender.handle.clock().now();
        let read = move || {
            let alerts = models.alerts();
            let owed = alerts.owed(IN_A_TURN)?;
            let with: Result<Vec<_>, _> =
                owed.into_iter().map(|one| Ok((alerts.alert(&one.alert)?, one))).collect();
            let (notices, due) = (alerts.notices(IN_A_TURN)?, alerts.due(now, OF_A_CHANNEL)?);
            Ok::<_, beampipe_projections::ReadModelError>((with?, notices, due))
        };
        let (owed, notices, due) = tokio::task::spawn_blocking(read).await??;
        for (alert, owed) in owed {
            if let Err(error) = self.enqueue(&context, alert, &owed).await {
                tracing::warn!(delivery = %owed.delivery_id, %error, "a message could not be enqueued");
            }
        }
        for notice in &notices {
            if let Err(error) = failing::tell(&self.sender, notice, &context).await {
                tracing::warn!(delivery = %notice.delivery_id, %error, "a notice could not be enqueued");
            }
        }
        self.due = due.into();
        self.try_what_is_due();
        Ok(())
    }

    /// Enqueues a message; one that is enqueued already is left as it is.
    async fn enqueue(
        &self,
        context: &Context,
        alert: Option<rows::Alert>,
        owed: &Owed,
    ) -> Result<(), HandleError> {
        let Some(alert) = alert else { return Ok(()) };
        let handle = &self.sender.handle;
        let channel = handle.load::<Channel>(&owed.channel_id.to_string()).await?.state;
        let kind = match &channel {
            Channel::Absent => "unknown",
            Channel::Active(facts) | Channel::Removed(facts) => facts.spec.config.kind(),
        };
        let message = Message::parse(&owed.message).unwrap_or_default();
        let order = Enqueued {
            message,
            channel_id: owed.channel_id,
            channel_kind: kind.to_owned(),
            rule_id: Some(alert.rule_id),
            alert: Some(owed.alert.clone()),
            project_module: alert.project_module.clone(),
            dedup_key: owed.alert.clone(),
            payload: message::of_alert(&alert, message),
            next_attempt_at: handle.clock().now(),
            max_attempts: MAX_ATTEMPTS,
        };
        let command = Command::Enqueue(Box::new(order));
        handle
            .handle::<Delivery>(&owed.delivery_id.to_string(), &context.because_of(owed.cause), command)
            .await?;
        Ok(())
    }

    /// Begins what is due, as far as there is room; the rest waits for what runs to end.
    fn try_what_is_due(&mut self) {
        let mut busy: HashMap<Uuid, usize> = HashMap::new();
        for channel in self.running.values() {
            *busy.entry(*channel).or_default() += 1;
        }
        for row in std::mem::take(&mut self.due) {
            if self.running.contains_key(&row.id) {
                continue;
            }
            let places = busy.entry(row.channel_id).or_default();
            if *places >= TO_ONE_CHANNEL || self.running.len() >= AT_ONCE {
                self.due.push_back(row);
                continue;
            }
            *places += 1;
            self.running.insert(row.id, row.channel_id);
            let (sender, models) = (self.sender.clone(), self.models.clone());
            self.attempts.spawn(async move {
                let context = Context::system(sender.handle.clock(), "scheduler/post");
                if let Err(error) = attempt(&sender, &models, &row, &context).await {
                    tracing::warn!(delivery = %row.id, %error, "an attempt to deliver could not be recorded");
                }
                row.id
            });
        }
    }
}

async fn attempt(
    sender: &Sender,
    models: &Models,
    row: &rows::Delivery,
    context: &Context,
) -> anyhow::Result<()> {
    match sender.attempt(row.id, context).await? {
        Some(made) => failing::look(sender, models, row.channel_id, &made, context).await,
        None => Ok(()),
    }
}
