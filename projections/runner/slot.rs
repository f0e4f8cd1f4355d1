//! The thread of one read model: the only one that writes its file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beampipe_log::Position;
use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::core::{Core, Interrupted};
use super::status::{ProjectionStatus, RebuildProgress, State};
use crate::Envelope;
use crate::file::{self, Checkpoint, Fold};
use crate::projection::Kind;
use crate::reader::Reader;

/// How often the numbers are shown while there is more to catch up with.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);

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
    Adopt(PathBuf),
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
    seen: Mutex<Seen>,
}

struct Seen {
    checkpoint: Checkpoint,
    state: State,
    alarm: Option<String>,
    outdated: bool,
    rebuild: Option<RebuildProgress>,
    /// When the log took the last event that was applied.
    recorded_at: Option<DateTime<Utc>>,
    /// When nothing was known to be missing.
    complete_at: Option<DateTime<Utc>>,
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

/// Follows until the process stops.
pub(super) fn run(core: &Core, slot: &Slot, file: Box<dyn Fold>, inbox: &Receiver<Message>) {
    let mut writer = Writer { core, slot, file: Some(file), unpublished: false, published: Instant::now() };
    loop {
        let message = match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok(message) => message,
            Err(crossbeam_channel::RecvTimeoutError::Timeout) if !core.is_closing() => continue,
            Err(_) => break,
        };
        if core.is_closing() {
            break;
        }
        let outcome = match message {
            Message::Batch(batch) => writer.apply(&batch),
            Message::Adopt(path) => writer.adopt(&path),
            Message::StartOver(why) => writer.start_over(why),
            Message::Stop(why) => Err(Interrupted::Stopped(why)),
            Message::Close => break,
        };
        match outcome {
            Ok(()) => {}
            Err(Interrupted::Closing) => break,
            Err(error) => {
                let why = error.to_string();
                tracing::error!(read_model = slot.kind.name, why, "a read model has stopped");
                slot.seen.lock().state = State::Stopped { why };
                // What comes now cannot be applied; rows stay as they are and are served.
                while !matches!(inbox.recv(), Ok(Message::Close) | Err(_)) && !core.is_closing() {}
                break;
            }
        }
    }
    if let Some(file) = writer.file
        && let Err(error) = file.close()
    {
        tracing::warn!(read_model = slot.kind.name, %error, "a read model was not closed in order");
    }
}

struct Writer<'a> {
    core: &'a Core,
    slot: &'a Slot,
    /// Absent only while it is being exchanged.
    file: Option<Box<dyn Fold>>,
    unpublished: bool,
    published: Instant,
}

impl Writer<'_> {
    fn file(&mut self) -> &mut dyn Fold {
        self.file.as_deref_mut().expect("the file is absent only while it is being exchanged")
    }

    /// Applies a batch; while the disk is full, as often as it takes.
    fn apply(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        let before = self.file().checkpoint();
        loop {
            match self.file().apply(&batch.envelopes) {
                Ok(wrote) => {
                    self.unpublished |= wrote;
                    break;
                }
                Err(error) if file::is_hopeless(&error) => {
                    self.start_over(format!("its file cannot be used: {error}"))?;
                    self.catch_up(before.position)?;
                }
                Err(error) => self.stall(&error)?,
            }
        }
        if self.unpublished && (batch.caught_up || self.published.elapsed() >= PUBLISH_EVERY) {
            self.publish();
        }
        let recorded_at = batch.envelopes.last().map(|envelope| envelope.recorded.recorded_at);
        self.seen(recorded_at, batch.caught_up);
        Ok(())
    }

    fn seen(&mut self, recorded_at: Option<DateTime<Utc>>, caught_up: bool) {
        let checkpoint = self.file().checkpoint();
        let mut seen = self.slot.seen.lock();
        seen.checkpoint = checkpoint;
        seen.recorded_at = recorded_at.or(seen.recorded_at);
        if caught_up {
            seen.complete_at = Some((self.core.now)());
            seen.state = State::Live;
            self.slot.was_live.store(true, Ordering::Release);
        } else if seen.state != State::Live {
            seen.state = State::CatchingUp;
        }
        drop(seen);
        self.slot.reader.set_position(checkpoint.position);
        self.core.announce();
    }

    fn publish(&mut self) {
        let core = self.core;
        match self.file().publish(&core.gauges) {
            Ok(()) => self.unpublished = false,
            Err(error) => {
                tracing::warn!(read_model = self.slot.kind.name, %error, "the numbers of a read model cannot be read");
            }
        }
        self.published = Instant::now();
    }

    /// Something that may pass: says so, waits, opens the file again.
    fn stall(&mut self, error: &rusqlite::Error) -> Result<(), Interrupted> {
        let name = self.slot.kind.name;
        tracing::warn!(read_model = name, %error, "a read model cannot be written; trying again");
        self.slot.seen.lock().state = State::Stalled { why: error.to_string() };
        if !self.core.pause(Duration::from_millis(500)) {
            return Err(Interrupted::Closing);
        }
        // The counts in memory are ahead of the rows that were rolled back.
        match (self.slot.kind.open)(&self.slot.path) {
            Ok(file) => self.file = Some(file),
            Err(error) => tracing::warn!(read_model = name, %error, "a read model cannot be opened again"),
        }
        self.slot.seen.lock().state = State::CatchingUp;
        Ok(())
    }

    /// Sets the file aside and begins with an empty one.
    fn start_over(&mut self, why: String) -> Result<(), Interrupted> {
        tracing::error!(
            read_model = self.slot.kind.name,
            why,
            "a read model is set aside and folded again from the beginning"
        );
        {
            let mut seen = self.slot.seen.lock();
            seen.alarm = Some(why);
            seen.state = State::CatchingUp;
            seen.outdated = false;
            seen.recorded_at = None;
        }
        self.slot.was_live.store(false, Ordering::Release);
        self.exchange(file::remove)?;
        self.unpublished = true;
        self.seen(None, false);
        Ok(())
    }

    fn catch_up(&mut self, until: Position) -> Result<(), Interrupted> {
        let mut file = self.file.take().ok_or(Interrupted::Closing)?;
        let outcome = self.core.catch_up(&mut *file, until, |checkpoint| {
            self.slot.seen.lock().checkpoint = checkpoint;
            self.slot.reader.set_position(checkpoint.position);
        });
        self.file = Some(file);
        outcome
    }

    /// Puts the file at `path`, which was built beside, in the place of the present one.
    fn adopt(&mut self, path: &std::path::Path) -> Result<(), Interrupted> {
        let mine = self.file().checkpoint();
        let outcome = (|| {
            let mut new = (self.slot.kind.open)(path)?;
            self.core.catch_up(&mut *new, mine.position, |_| {})?;
            new.close()?;
            self.exchange(|present| {
                file::remove(present)?;
                std::fs::rename(path, present)
            })
        })();
        match outcome {
            Ok(()) => {
                tracing::info!(read_model = self.slot.kind.name, "a rebuilt read model has been switched to");
                let mut seen = self.slot.seen.lock();
                seen.rebuild = None;
                seen.outdated = false;
                seen.alarm = None;
            }
            Err(Interrupted::Closing) => return Err(Interrupted::Closing),
            Err(error) => {
                tracing::error!(read_model = self.slot.kind.name, %error, "a rebuilt read model cannot be switched to");
                self.slot.rebuilding(|rebuild| rebuild.failed = Some(error.to_string()));
                if self.file.is_none() {
                    self.file = Some((self.slot.kind.open)(&self.slot.path)?);
                }
                return Ok(());
            }
        }
        self.publish();
        self.seen(None, false);
        Ok(())
    }

    /// Closes the file, lets `change` put another in its place, and opens that.
    fn exchange(
        &mut self,
        change: impl FnOnce(&std::path::Path) -> std::io::Result<()>,
    ) -> Result<(), Interrupted> {
        let (slot, file) = (self.slot, self.file.take());
        let opened = slot.reader.exchanging(move || {
            drop(file);
            change(&slot.path)
                .map_err(|error| Interrupted::Stopped(format!("its file cannot be exchanged: {error}")))?;
            Ok::<_, Interrupted>((slot.kind.open)(&slot.path)?)
        })?;
        self.file = Some(opened);
        Ok(())
    }
}
