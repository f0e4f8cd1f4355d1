//! What the threads of the read models share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use beampipe_log::{Filter, Log, Position, ReadError, Recorded, Subscription};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::is_in_log;
use super::slot::Slot;
use super::status::Bootstrap;
use crate::file::{Checkpoint, Fold};
use crate::{Decode, Envelope, Gauges, Now};

/// How many events are read at once.
pub(super) const MAX_BATCH: usize = 8192;

pub(super) struct Core {
    pub dir: PathBuf,
    pub log: Arc<dyn Log>,
    pub decode: Decode,
    pub now: Now,
    pub runtime: tokio::runtime::Handle,
    pub closing: watch::Sender<bool>,
    pub gauges: ArcSwap<Gauges>,
    /// The position that every read model has reached.
    pub minimum: watch::Sender<Position>,
    pub slots: Vec<Arc<Slot>>,
    pub began: Instant,
    /// How many events were read to follow the log.
    pub followed: AtomicU64,
    pub bootstrap: OnceLock<Bootstrap>,
    pub rebuilds: Mutex<Vec<JoinHandle<()>>>,
}

/// Why folding ended before it was through.
#[derive(Debug, thiserror::Error)]
pub(super) enum Interrupted {
    #[error("the process stops")]
    Closing,
    /// What is in the log cannot be read; asking again cannot help.
    #[error("{0}")]
    Stopped(String),
    #[error(transparent)]
    File(#[from] rusqlite::Error),
}

/// Events with what they say, and why it stops there if it does.
pub(super) struct Decoded {
    pub envelopes: Vec<Envelope>,
    pub stop: Option<String>,
}

impl Core {
    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits a little; says whether to go on.
    pub fn pause(&self, time: Duration) -> bool {
        let mut closing = self.closing.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
        });
        !self.is_closing()
    }

    /// Notes what it took, once every read model has reached the end of the log for the first time.
    pub fn note_bootstrap(&self) {
        if self.bootstrap.get().is_none() && self.slots.iter().all(|slot| slot.was_live()) {
            let events = self.followed.load(Ordering::Relaxed);
            let _was_noted = self.bootstrap.set(Bootstrap { took: self.began.elapsed(), events });
        }
    }

    /// The next batch of a subscription; `None` when the process stops.
    pub fn next(&self, subscription: &mut Subscription) -> Option<Result<beampipe_log::Batch, ReadError>> {
        let mut closing = self.closing.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => None,
                batch = subscription.next_batch(MAX_BATCH) => Some(batch),
            }
        })
    }

    pub fn decode(&self, events: Vec<Arc<Recorded>>) -> Decoded {
        let mut envelopes = Vec::with_capacity(events.len());
        for recorded in events {
            match (self.decode)(&recorded) {
                Ok(event) => envelopes.push(Envelope { recorded, event }),
                Err(why) => {
                    let stop = format!("at position {}: {why}", recorded.position);
                    return Decoded { envelopes, stop: Some(stop) };
                }
            }
        }
        Decoded { envelopes, stop: None }
    }

    /// Folds the log into `file` until it contains `until`.
    pub fn catch_up(
        &self,
        file: &mut dyn Fold,
        until: Position,
        mut progress: impl FnMut(Checkpoint),
    ) -> Result<(), Interrupted> {
        let mut subscription = self.log.subscribe(Filter::All, file.checkpoint().position);
        while file.checkpoint().position < until {
            match self.next(&mut subscription) {
                None => return Err(Interrupted::Closing),
                Some(Ok(batch)) => {
                    let Decoded { envelopes, stop } = self.decode(batch.events);
                    file.apply(&envelopes)?;
                    progress(file.checkpoint());
                    if let Some(why) = stop {
                        return Err(Interrupted::Stopped(why));
                    }
                }
                // What was folded so far is of a history that is no more.
                Some(Err(error @ (ReadError::Damaged { .. } | ReadError::Rewound { .. }))) => {
                    return Err(Interrupted::Stopped(error.to_string()));
                }
                Some(Err(ReadError::Unavailable(reason))) => {
                    tracing::warn!(reason, "the log cannot be read; trying again");
                    if !self.pause(Duration::from_millis(500)) {
                        return Err(Interrupted::Closing);
                    }
                    let here = self.runtime.block_on(is_in_log(file.checkpoint(), &*self.log));
                    if matches!(here, Ok(false)) {
                        let why = "the log has changed while it was folded".to_owned();
                        return Err(Interrupted::Stopped(why));
                    }
                    subscription = self.log.subscribe(Filter::All, file.checkpoint().position);
                }
            }
        }
        Ok(())
    }

    /// Says what every read model has reached now.
    pub fn announce(&self) {
        // Computed under the watch's lock: of two that announce at once, the later one sees what both have done.
        self.minimum.send_if_modified(|minimum| {
            let now = self.slots.iter().map(|slot| slot.reader.position()).min().unwrap_or(0);
            std::mem::replace(minimum, now) != now
        });
    }
}
