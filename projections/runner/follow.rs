//! The follower: reads the log once, decodes once, and hands every batch to every read model.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beampipe_log::{Filter, ReadError};

use super::core::{Core, Decoded};
use super::is_in_log;
use super::slot::{Batch, Message};
use crate::file::Checkpoint;

pub(super) fn run(core: &Core, from: Checkpoint) {
    let mut at = from;
    let mut subscription = core.log.subscribe(Filter::All, at.position);
    while let Some(next) = core.next(&mut subscription) {
        match next {
            Ok(batch) => {
                let caught_up = batch.caught_up;
                let Decoded { envelopes, stop } = core.decode(batch.events);
                if let Some(last) = envelopes.last() {
                    at = Checkpoint { position: last.recorded.position, hash: last.recorded.hash };
                }
                core.followed.fetch_add(envelopes.len() as u64, Ordering::Relaxed);
                if !envelopes.is_empty() || caught_up {
                    let caught_up = caught_up && stop.is_none();
                    tell(core, &Message::Batch(Arc::new(Batch { envelopes, caught_up })));
                }
                if let Some(why) = stop {
                    return stopped(core, why);
                }
            }
            Err(error @ ReadError::Damaged { .. }) => return stopped(core, error.to_string()),
            Err(error @ (ReadError::Unavailable(_) | ReadError::Rewound { .. })) => {
                tracing::warn!(%error, "the log cannot be read on; trying again");
                if !core.pause(Duration::from_millis(500)) {
                    return;
                }
                if !still_there(core, at) {
                    let why =
                        format!("after a reconnect, position {} of the log is another event", at.position);
                    tracing::error!(why, "the log has changed; every read model is folded again");
                    tell(core, &Message::StartOver(why));
                    at = Checkpoint::default();
                }
                subscription = core.log.subscribe(Filter::All, at.position);
            }
        }
    }
}

fn tell(core: &Core, message: &Message) {
    for slot in &core.slots {
        slot.tell(message.clone());
    }
}

fn stopped(core: &Core, why: String) {
    tracing::error!(why, "the read models stop here; nothing is skipped");
    tell(core, &Message::Stop(why));
}

/// Whether the log is still the one that was followed; asked until it answers.
fn still_there(core: &Core, at: Checkpoint) -> bool {
    loop {
        match core.runtime.block_on(is_in_log(at, &*core.log)) {
            Ok(there) => return there,
            // Where it is damaged it is at least not another one; the subscription will say what is wrong.
            Err(ReadError::Damaged { .. }) => return true,
            Err(_) if core.pause(Duration::from_millis(500)) => {}
            Err(_) => return true,
        }
    }
}
