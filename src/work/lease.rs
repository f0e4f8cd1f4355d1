//! Which process acts as **scheduler**: one, by a lease in the log; the others stand by.
//!
//! Who holds the lease beats; who stands by watches that heartbeat by its own monotonic clock, and takes the lease over from
//! a holder that has been silent for `work.scheduler_lease_seconds`, naming the claim it takes it from, so that of several
//! contenders one wins. A holder looks before every tick whether the lease is still its own; one that slept through its
//! loss finds out then, and what it may have asked for meanwhile were commands, which are decided like everyone else's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::lease::{Command, Lease, SCHEDULER, Taken};
use beampipe_log::Position;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shop;
use crate::handle::{Context, HandleError};

/// How often the lease is looked at, and how often its holder beats.
const EVERY: Duration = Duration::from_secs(1);

/// Whether this process acts: from which position on, which its read models have to have reached.
pub type Acting = watch::Receiver<Option<Position>>;

/// Keeps, or stands by for, the lease until `stop`; then releases it. `alone` says that no other process can be working on
/// this log, so that whoever holds the lease is gone.
pub async fn keep(
    shop: Arc<Shop>,
    acting: watch::Sender<Option<Position>>,
    stop: CancellationToken,
    alone: bool,
) {
    let mut keeper = Keeper {
        name: format!("{SCHEDULER}/{}", shop.process),
        context: Context::system(&shop.clock, SCHEDULER),
        patience: if alone {
            Duration::ZERO
        } else {
            Duration::from_secs(shop.settings.scheduler_lease_seconds)
        },
        held: None,
        heard: HashMap::new(),
        shop,
    };
    let mut looks = tokio::time::interval(EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = looks.tick() => {}
        }
        let from = match keeper.look().await {
            Ok(from) => from,
            Err(error) => {
                // Who cannot reach the log cannot act on it.
                tracing::warn!(%error, "the scheduler's lease cannot be seen");
                None
            }
        };
        if *acting.borrow() != from {
            tracing::info!(acting = from.is_some(), "the scheduler's lease has moved");
            keeper.shop.metrics.scheduler_acting.set(i64::from(from.is_some()));
            acting.send_replace(from);
        }
        keeper.beat(from.is_some()).await;
    }
    acting.send_replace(None);
    if let Some(claim_id) = keeper.held {
        let release = Command::Release { role: SCHEDULER.into(), claim_id };
        if let Err(error) = keeper.shop.handle.handle::<Lease>(SCHEDULER, &keeper.context, release).await {
            tracing::warn!(%error, "the scheduler's lease could not be released; it runs out");
        }
    }
}

struct Keeper {
    shop: Arc<Shop>,
    /// Under which this process beats as scheduler.
    name: String,
    context: Context,
    patience: Duration,
    /// The claim under which this process holds the lease.
    held: Option<Uuid>,
    /// By holder: its counter, and since when it stands there.
    heard: HashMap<String, (u64, Instant)>,
}

impl Keeper {
    /// Looks at the lease, and takes it if it is to be had; answers from where on this process acts, if it does.
    async fn look(&mut self) -> Result<Option<Position>, HandleError> {
        let loaded = self.shop.handle.load::<Lease>(SCHEDULER).await?;
        let (holder, claim_id) = match loaded.state {
            Lease::Free => return self.take(None, None).await,
            Lease::Held { claim_id, .. } if self.held == Some(claim_id) => return Ok(Some(loaded.position)),
            Lease::Held { holder, claim_id } => (holder, claim_id),
        };
        if self.held.take().is_some() {
            tracing::warn!(
                holder,
                "this process fell silent, and another one took the scheduler's lease over"
            );
        }
        let silent = self.silence(&holder).await;
        if silent < self.patience {
            return Ok(None);
        }
        self.take(Some(claim_id), Some(silent.as_secs())).await
    }

    /// For how long the holder's counter has stood still, as seen from here.
    async fn silence(&mut self, holder: &str) -> Duration {
        let Ok(beats) = self.shop.handle.log().beats().await else {
            // A heartbeat that cannot be read does not stand still.
            self.heard.clear();
            return Duration::ZERO;
        };
        let beat = beats.iter().find(|beat| beat.who == holder);
        if let Some(beat) = beat {
            self.shop.seen.learn(&beat.facts);
        }
        let counter = beat.map_or(0, |beat| beat.counter);
        self.heard.retain(|name, _| name == holder);
        let seen = self.heard.entry(holder.to_owned()).or_insert((counter, Instant::now()));
        if seen.0 != counter {
            *seen = (counter, Instant::now());
        }
        seen.1.elapsed()
    }

    async fn take(
        &mut self,
        taken_from: Option<Uuid>,
        silent_seconds: Option<u64>,
    ) -> Result<Option<Position>, HandleError> {
        let claim_id = self.shop.clock.id();
        let taken =
            Taken { role: SCHEDULER.into(), holder: self.name.clone(), claim_id, taken_from, silent_seconds };
        match self.shop.handle.handle::<Lease>(SCHEDULER, &self.context, Command::Take(taken)).await {
            Ok(done) => {
                self.held = Some(claim_id);
                Ok(Some(done.position))
            }
            // Another one was faster.
            Err(HandleError::Rejected(_) | HandleError::Outdated { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn beat(&self, acting: bool) {
        let mut facts = json!({"role": SCHEDULER, "acting": acting});
        if acting {
            self.shop.seen.tell(&mut facts);
        }
        self.shop.handle.log().beat(&self.name, facts).await;
    }
}
