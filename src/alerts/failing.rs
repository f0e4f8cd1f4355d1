//! A channel that fails for long: it is disabled, and the others are told.
//!
//! What failed is counted by the read model of channels, from the log; whether it is enough decides the channel. Who is told
//! is a to-do list of the same read model: a channel that is disabled by the service adds a row for each other channel, the
//! delivery that is enqueued for it takes it away, whichever process sees to it.

use beampipe_domain::channel::{self, Channel, Failing};
use beampipe_domain::delivery::{Command, Delivery, Enqueued, MAX_ATTEMPTS, Message};
use beampipe_projections::Models;
use beampipe_projections::alerts::Notice;
use uuid::Uuid;

use super::deliver::{Made, Sender};
use super::message;
use crate::handle::{Context, HandleError};

/// How long is waited until the read model knows of an attempt.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// After an attempt in vain: disables the channel if it fails for too long.
pub async fn look(
    sender: &Sender,
    models: &Models,
    channel: Uuid,
    made: &Made,
    context: &Context,
) -> anyhow::Result<()> {
    // A success that the read model does not know yet would be taken for a failure that goes on.
    if made.tested.taken || !models.wait_for(made.position, PATIENCE).await {
        return Ok(());
    }
    let alerts = models.alerts();
    let row = tokio::task::spawn_blocking(move || alerts.channel(channel)).await??;
    let Some((row, since)) = row.and_then(|row| row.failing_since.map(|since| (row, since))) else {
        return Ok(());
    };
    let failing = Failing {
        revision: row.channel_revision,
        since,
        attempts: row.failing_attempts,
        deliveries: row.failing_deliveries,
        error: made.tested.error.clone().unwrap_or_default(),
    };
    let (at, after) = (sender.handle.clock().now(), sender.disable_after);
    let command = channel::Command::DisableFailing { failing, at, after };
    Ok(sender.tell_channel(channel, context, vec![command]).await?)
}

/// Enqueues what others are to be told of a channel that was disabled; what is enqueued already is left as it is.
pub async fn tell(sender: &Sender, notice: &Notice, context: &Context) -> Result<(), HandleError> {
    let handle = &sender.handle;
    let channel = handle.load::<Channel>(&notice.channel_id.to_string()).await?.state;
    let kind = match &channel {
        Channel::Absent => "unknown",
        Channel::Active(facts) | Channel::Removed(facts) => facts.spec.config.kind(),
    };
    let order = Enqueued {
        message: Message::Notice,
        channel_id: notice.channel_id,
        channel_kind: kind.to_owned(),
        dedup_key: format!("channel-{}-{}", notice.disabled_id, notice.cause),
        payload: message::of_disabled(&notice.name, &notice.kind, &notice.reason, notice.disabled_at),
        next_attempt_at: handle.clock().now(),
        max_attempts: MAX_ATTEMPTS,
        ..Enqueued::default()
    };
    let (id, context) = (notice.delivery_id.to_string(), context.because_of(notice.cause));
    handle.handle::<Delivery>(&id, &context, Command::Enqueue(Box::new(order))).await?;
    Ok(())
}
