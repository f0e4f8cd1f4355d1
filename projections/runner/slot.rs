//! One read model as the other threads see it: where it stands, and its writer's inbox.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use beampipe_log::Position;
use chrono::{DateTime, Utc};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::status::{ProjectionStatus, RebuildProgress, State};
use crate::Envelope;
use crate::file::{Checkpoint, Fold};
use crate::projection::Kind;
use crate::reader::Reader;

/// Decoded events, for every read model.
pub(super) struct Batch {
    pub envelopes: Vec<Envelope>,
    /// Whether nothing was left in the log when they were read.
    pub caught_up: bool,
}

#[derive(Clone)]
pub(super) enum Message {
    Batch(Arc<Batch>),
    /// The file that was built beside is ready to take the place of this one.
    Adopt {
        path: PathBuf,
        /// The end of the log when it was begun.
        head: Position,
    },
    /// The log is another one: everything from the beginning.
    StartOver(String),
    /// The log cannot be read on.
    Stop(String),
    Close,
}

/// One read model, as the others see it.
pub(super) struct Slot {
    pub kind: Kind,
    pub path: PathBuf,
    pub reader: Arc<Reader>,
    outbox: Sender<Message>,
    was_live: AtomicBool,
    pub seen: Mutex<Seen>,
}

/// Where it stands.
pub(super) struct Seen {
    pub checkpoint: Checkpoint,
    pub state: State,
    pub alarm: Option<String>,
    pub outdated: bool,
    pub rebuild: Option<RebuildProgress>,
    /// When the log took the last event that was applied.
    pub recorded_at: Option<DateTime<Utc>>,
    /// When nothing was known to be missing.
    pub complete_at: Option<DateTime<Utc>>,
}

impl Slot {
    pub fn new(
        kind: Kind,
        path: PathBuf,
        outbox: Sender<Message>,
        file: &dyn Fold,
        alarm: Option<String>,
    ) -> Self {
        let reader = Reader::new(kind.name, path.clone());
        reader.set_position(file.checkpoint().position);
        let seen = Seen {
            checkpoint: file.checkpoint(),
            state: State::CatchingUp,
            alarm,
            outdated: file.is_outdated(),
            rebuild: None,
            recorded_at: None,
            complete_at: None,
        };
        Self { kind, path, reader, outbox, was_live: AtomicBool::new(false), seen: Mutex::new(seen) }
    }

    /// A thread that has ended hears nothing; it has said why.
    pub fn tell(&self, message: Message) {
        let _ended = self.outbox.send(message);
    }

    /// Asks the thread to end; it also looks at the closing flag, should its inbox be full.
    pub fn hang_up(&self) {
        let _full_or_ended = self.outbox.try_send(Message::Close);
    }

    /// Notes whether it has reached the end of the log.
    pub fn set_live(&self, live: bool) {
        self.was_live.store(live, Ordering::Release);
    }

    pub fn was_live(&self) -> bool {
        self.was_live.load(Ordering::Acquire)
    }

    /// Notes that a rebuild has begun, unless one is under way.
    pub fn begin_rebuild(&self, head: Position) -> bool {
        let rebuild = &mut self.seen.lock().rebuild;
        if rebuild.as_ref().is_some_and(|rebuild| rebuild.failed.is_none()) {
            return false;
        }
        *rebuild = Some(RebuildProgress { position: 0, head, failed: None });
        true
    }

    pub fn rebuilding(&self, change: impl FnOnce(&mut RebuildProgress)) {
        if let Some(rebuild) = &mut self.seen.lock().rebuild {
            change(rebuild);
        }
    }

    pub fn status(&self, head: Position, now: DateTime<Utc>) -> ProjectionStatus {
        let mut seen = self.seen.lock();
        let position = seen.checkpoint.position;
        if position >= head {
            seen.complete_at = Some(now);
        }
        let since = [seen.recorded_at, seen.complete_at].into_iter().flatten().max();
        let late = |since: DateTime<Utc>| (now - since).as_seconds_f64().max(0.0);
        ProjectionStatus {
            name: self.kind.name,
            version: self.kind.version,
            position,
            hash: seen.checkpoint.hash.to_hex(),
            lag_events: head.saturating_sub(position),
            lag_seconds: if position >= head { 0.0 } else { since.map_or(0.0, late) },
            state: seen.state.clone(),
            alarm: seen.alarm.clone(),
            outdated: seen.outdated,
            rebuild: seen.rebuild.clone(),
        }
    }
}
