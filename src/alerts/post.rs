//! The **post**: a process manager that tries deliveries that are due, while this process acts as scheduler.
//!
//! Its to-do list is a read model, the deliveries that are due; it acts when that has caught up with the lease it acts under. It keeps nothing of its own but which attempts run now, so that a process that takes over goes on where the
//! log is. A channel that hangs holds only its own places.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use beampipe_projections::Models;
use beampipe_projections::alerts as rows;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::deliver::Sender;
use super::failing;
use crate::handle::Context;
use crate::work::lease::Acting;

/// How often is looked for what is due.
const EVERY: Duration = Duration::from_millis(500);
/// Attempts at once, and at once to one channel.
const AT_ONCE: usize = 32;
const TO_ONE_CHANNEL: usize = 4;
/// How many notices are enqueued in one turn.
const IN_A_TURN: u64 = 1000;
/// How many of those that are due to one channel are looked at in one turn.
const OF_A_CHANNEL: u64 = 100;

/// Delivers, while this process acts as scheduler, until it is stopped.
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
            tracing::warn!(%error, "what is due could not be delivered");
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
            Ok::<_, beampipe_projections::ReadModelError>((
                alerts.notices(IN_A_TURN)?,
                alerts.due(now, OF_A_CHANNEL)?,
            ))
        };
        let (notices, due) = tokio::task::spawn_blocking(read).await??;
        for notice in &notices {
            if let Err(error) = failing::tell(&self.sender, notice, &context).await {
                tracing::warn!(delivery = %notice.delivery_id, %error, "a notice could not be enqueued");
            }
        }
        self.due = due.into();
        self.try_what_is_due();
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
