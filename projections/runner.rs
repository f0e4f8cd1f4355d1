//! Keeps every read model up with the log: one follower reads and decodes each event once, one thread a read model applies it.
//!
//! Rows and checkpoint change in one transaction. Nothing is ever skipped: at an event that this release cannot read, and at
//! damage in the log, every read model stops and says why. A file that cannot be trusted (damaged, or following a log that
//! is not this one any more) is an alarm, is set aside, and is folded again from the beginning.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use beampipe_log::{Direction, Filter, Log, Position, ReadError};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::file::{self, Checkpoint, Fold};
use crate::projection::{ALL, Kind};
use crate::reader::Reader;
use crate::{
    Accounts, Alerts, Decode, Dependencies, Executions, Gauges, Jobs, Now, Projects, Sources, Workers,
};

mod core;
mod follow;
mod rebuild;
mod slot;
mod status;
mod writer;

use self::core::Core;
pub use rebuild::RebuildError;
use slot::Slot;
pub use status::Bootstrap;
pub use status::{ProjectionStatus, RebuildProgress, State};

/// How many decoded batches wait for a read model before the follower waits too.
const QUEUED_BATCHES: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the directory {dir} of the read models cannot be used")]
    Directory {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the read models in {dir} are in use by another process")]
    InUse { dir: PathBuf },
    #[error("the read model {name} cannot be opened")]
    File {
        name: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the checkpoints of the read models cannot be checked")]
    Log(#[from] ReadError),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// The read models of one directory, kept up with the log while this lives.
pub struct Models {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held for as long as the files are written.
    _lock: std::fs::File,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").field("dir", &self.core.dir).field("position", &self.position()).finish()
    }
}

impl Models {
    /// Opens the read models in `dir`, making what is missing, and starts to follow the log.
    pub async fn open(
        dir: impl Into<PathBuf>,
        log: Arc<dyn Log>,
        decode: Decode,
        now: Now,
    ) -> Result<Self, OpenError> {
        let began = Instant::now();
        let dir = dir.into();
        let lock = lock(&dir)?;
        let mut opened = Vec::with_capacity(ALL.len());
        for kind in ALL {
            opened.push(open_checked(&dir, kind, &*log).await?);
        }
        let from = opened.iter().map(|opened| opened.file.checkpoint()).min_by_key(|at| at.position);
        let mut inboxes = Vec::with_capacity(opened.len());
        let mut slots = Vec::with_capacity(opened.len());
        for Opened { kind, path, file, alarm } in opened {
            let (outbox, inbox) = crossbeam_channel::bounded(QUEUED_BATCHES);
            let slot = Arc::new(Slot::new(kind, path, outbox, &*file, alarm));
            slots.push(slot.clone());
            inboxes.push((slot, file, inbox));
        }
        let core = Arc::new(Core {
            dir,
            log,
            decode,
            now,
            runtime: tokio::runtime::Handle::current(),
            closing: watch::Sender::new(false),
            gauges: ArcSwap::default(),
            minimum: watch::Sender::new(from.unwrap_or_default().position),
            slots,
            began,
            followed: AtomicU64::new(0),
            bootstrap: OnceLock::new(),
            rebuilds: Mutex::default(),
        });
        let mut threads = Vec::with_capacity(inboxes.len() + 1);
        for (slot, file, inbox) in inboxes {
            let outdated = file.is_outdated();
            file.publish(&core.gauges).map_err(|source| OpenError::File { name: slot.kind.name, source })?;
            let (core_, slot_) = (core.clone(), slot.clone());
            let run = move || writer::run(&core_, &slot_, file, &inbox);
            threads.push(spawn(slot.kind.name, run).map_err(OpenError::Thread)?);
            if outdated && let Err(error) = rebuild::start(&core, &slot) {
                tracing::error!(read_model = slot.kind.name, %error, "a read model of another version cannot be rebuilt");
            }
        }
        let (core_, from) = (core.clone(), from.unwrap_or_default());
        threads.push(spawn("follower", move || follow::run(&core_, from)).map_err(OpenError::Thread)?);
        Ok(Self { core, threads: Mutex::new(threads), _lock: lock })
    }

    pub fn executions(&self) -> Executions {
        Executions(self.reader("executions"))
    }

    pub fn sources(&self) -> Sources {
        Sources(self.reader("sources"))
    }

    pub fn jobs(&self) -> Jobs {
        Jobs(self.reader("jobs"))
    }

    pub fn workers(&self) -> Workers {
        Workers(self.reader("workers"))
    }

    pub fn dependencies(&self) -> Dependencies {
        Dependencies(self.reader("dependencies"))
    }

    pub fn projects(&self) -> Projects {
        Projects(self.reader("projects"))
    }

    pub fn accounts(&self) -> Accounts {
        Accounts(self.reader("accounts"))
    }

    pub fn alerts(&self) -> Alerts {
        Alerts(self.reader("alerts"))
    }

    fn reader(&self, name: &str) -> Arc<Reader> {
        let slot = self.core.slots.iter().find(|slot| slot.kind.name == name);
        slot.expect("every handle names one of the read models").reader.clone()
    }

    /// Every read model contains every event up to here.
    pub fn position(&self) -> Position {
        *self.core.minimum.borrow()
    }

    /// Waits until every read model contains `position`; `false` when it takes longer than `timeout`.
    pub async fn wait_for(&self, position: Position, timeout: Duration) -> bool {
        let mut minimum = self.core.minimum.subscribe();
        let reached = minimum.wait_for(|reached| *reached >= position);
        matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)))
    }

    /// A watch on [`Models::position`], for whoever acts on every change.
    pub fn positions(&self) -> watch::Receiver<Position> {
        self.core.minimum.subscribe()
    }

    /// Whether every read model has reached the end of the log since it was opened.
    pub fn caught_up(&self) -> bool {
        self.core.slots.iter().all(|slot| slot.was_live())
    }

    /// What it took until every read model had reached the end of the log; `None` until then.
    pub fn bootstrap(&self) -> Option<Bootstrap> {
        self.core.bootstrap.get().copied()
    }

    /// How each read model stands.
    pub fn status(&self) -> Vec<ProjectionStatus> {
        let head = self.core.log.head().position;
        self.core.slots.iter().map(|slot| slot.status(head, (self.core.now)())).collect()
    }

    /// The numbers as they were after the last commit; touches no SQLite.
    pub fn gauges(&self) -> Arc<Gauges> {
        self.core.gauges.load_full()
    }

    /// Starts to build a read model anew beside the present one, which goes on serving; then they are switched.
    /// How far it is, [`Models::status`] says.
    pub fn rebuild(&self, name: &str) -> Result<(), RebuildError> {
        let slot = self.core.slots.iter().find(|slot| slot.kind.name == name);
        rebuild::start(&self.core, slot.ok_or_else(|| RebuildError::Unknown(name.to_owned()))?)
    }

    /// Stops following, writes the checkpoints and closes the files.
    pub async fn close(self) {
        let joined = tokio::task::spawn_blocking(move || drop(self)).await;
        if let Err(error) = joined {
            tracing::error!(%error, "the read models were not closed in order");
        }
    }

    /// The same for whoever shares them; blocks until the files are closed.
    pub fn stop(&self) {
        self.core.closing.send_replace(true);
        for slot in &self.core.slots {
            slot.hang_up();
        }
        let rebuilds = std::mem::take(&mut *self.core.rebuilds.lock());
        for thread in self.threads.lock().drain(..).chain(rebuilds) {
            if thread.join().is_err() {
                tracing::error!("a thread of the read models panicked");
            }
        }
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("view-{name}")).spawn(run)
}

/// Takes a directory for writing.
pub(crate) fn lock(dir: &Path) -> Result<std::fs::File, OpenError> {
    let unusable = |source| OpenError::Directory { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(unusable)?;
    let lock = std::fs::File::create(dir.join("lock")).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Where a read model's file is.
pub(crate) fn path(dir: &Path, kind: Kind, what: &str) -> PathBuf {
    dir.join(format!("{}{what}.sqlite", kind.name))
}

struct Opened {
    kind: Kind,
    path: PathBuf,
    file: Box<dyn Fold>,
    alarm: Option<String>,
}

/// Opens a file and looks whether its checkpoint is in this log. What cannot be trusted is set aside.
async fn open_checked(dir: &Path, kind: Kind, log: &dyn Log) -> Result<Opened, OpenError> {
    let Kind { name, open, .. } = kind;
    let path = path(dir, kind, "");
    let unusable = |source| OpenError::Directory { dir: dir.to_owned(), source };
    let failed = |source| OpenError::File { name, source };
    // What a broken-off rebuild left.
    file::remove(&self::path(dir, kind, ".rebuild")).map_err(unusable)?;
    let wrong = match open(&path) {
        Ok(file) => match is_in_log(file.checkpoint(), log).await {
            Ok(true) => return Ok(Opened { kind, path, file, alarm: None }),
            Ok(false) => {
                format!("its checkpoint at position {} is not in the log", file.checkpoint().position)
            }
            Err(ReadError::Damaged { place, what }) => {
                let alarm =
                    format!("its checkpoint cannot be checked: the log is damaged at {place}: {what}");
                return Ok(Opened { kind, path, file, alarm: Some(alarm) });
            }
            Err(error) => return Err(error.into()),
        },
        Err(error) if file::is_hopeless(&error) => format!("its file cannot be used: {error}"),
        Err(error) => return Err(failed(error)),
    };
    tracing::error!(
        read_model = name,
        wrong,
        "a read model is set aside and folded again from the beginning"
    );
    file::remove(&path).map_err(unusable)?;
    let file = open(&path).map_err(failed)?;
    Ok(Opened { kind, path, file, alarm: Some(wrong) })
}

/// Whether a checkpoint was made of this log.
async fn is_in_log(checkpoint: Checkpoint, log: &dyn Log) -> Result<bool, ReadError> {
    let Checkpoint { position, hash } = checkpoint;
    if position == 0 {
        return Ok(true);
    }
    let page = log.read_all(position, Direction::Forward, 1, &Filter::All).await?;
    Ok(page.events.first().is_some_and(|event| (event.position, event.hash) == (position, hash)))
}

#[cfg(test)]
mod tests;
