//! The thread of one read model: the only one that writes its file.
//!
//! A redacted event is to be found in no read model: what was folded while its data were still there is built anew beside.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::Event;
use beampipe_log::{Position, category};
use chrono::{DateTime, Utc};
use crossbeam_channel::Receiver;

use super::core::{Core, Interrupted};
use super::rebuild;
use super::slot::{Batch, Message, Slot};
use super::status::State;
use crate::file::{self, Fold};

/// How often the numbers are shown while there is more to catch up with.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);

/// Follows until the process stops.
pub(super) fn run(core: &Arc<Core>, slot: &Arc<Slot>, file: Box<dyn Fold>, inbox: &Receiver<Message>) {
    let known = file.checkpoint().position;
    let trusted = if known == 0 { core.log.head().position } else { known };
    let (file, published) = (Some(file), Instant::now());
    let mut writer = Writer { core, slot, file, unpublished: false, published, trusted, redacted: None };
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
            Message::Adopt { path, head } => writer.adopt(&path, head),
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
    core: &'a Arc<Core>,
    slot: &'a Arc<Slot>,
    /// Absent only while it is being exchanged.
    file: Option<Box<dyn Fold>>,
    unpublished: bool,
    published: Instant,
    /// Redactions up to here were in force when the rows were folded.
    trusted: Position,
    /// The last redaction that was not.
    redacted: Option<Position>,
}

impl Writer<'_> {
    fn file(&mut self) -> &mut dyn Fold {
        self.file.as_deref_mut().expect("the file is absent only while it is being exchanged")
    }

    /// Applies a batch; while the disk is full, as often as it takes.
    fn apply(&mut self, batch: &Batch) -> Result<(), Interrupted> {
        let before = self.file().checkpoint();
        let redaction = self.redaction_in(batch, before.position);
        loop {
            // Before the checkpoint passes the redaction: the process may end before the rows are built anew.
            let marked = if redaction.is_some() { self.file().distrust() } else { Ok(()) };
            match marked.and_then(|()| self.file().apply(&batch.envelopes)) {
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
        if let Some(redaction) = redaction.filter(|position| *position > self.trusted) {
            self.redacted = Some(redaction);
            self.forget_redacted();
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
            self.slot.set_live(true);
        } else if seen.state != State::Live {
            seen.state = State::CatchingUp;
        }
        drop(seen);
        if caught_up {
            self.core.note_bootstrap();
        }
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
        self.slot.set_live(false);
        self.trusted = self.core.log.head().position;
        self.redacted = None;
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
    fn adopt(&mut self, path: &Path, head: Position) -> Result<(), Interrupted> {
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
        self.trusted = head;
        self.redacted = self.redacted.filter(|position| *position > head);
        self.forget_redacted();
        Ok(())
    }

    /// The last redaction of what may be in the rows.
    fn redaction_in(&self, batch: &Batch, after: Position) -> Option<Position> {
        let after = after.max(self.trusted);
        let mine = |stream: &str| self.slot.kind.categories.contains(&category(stream));
        let redactions = batch.envelopes.iter().filter(|envelope| match &envelope.event {
            // A redaction that was redacted does not say of what.
            Event::LogRedacted(e) => e.stream.is_empty() || mine(&e.stream),
            _ => false,
        });
        redactions.map(|envelope| envelope.recorded.position).filter(|at| *at > after).max()
    }

    /// Builds the rows anew if they have what was redacted since.
    fn forget_redacted(&self) {
        if self.redacted.is_none() {
            return;
        }
        match rebuild::start(self.core, self.slot) {
            Ok(()) | Err(rebuild::RebuildError::UnderWay(_)) => {}
            Err(error) => {
                tracing::error!(read_model = self.slot.kind.name, %error, "what was redacted cannot be forgotten");
            }
        }
    }

    /// Closes the file, lets `change` put another in its place, and opens that.
    fn exchange(&mut self, change: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), Interrupted> {
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
