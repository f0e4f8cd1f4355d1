//! Folding without serving, for the command line: rebuild the files of a stopped process, or verify those of any.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beampipe_log::{Direction, Filter, Log, Position, ReadError};
use rusqlite::Connection;
use serde::Serialize;

use crate::file::{self, Fold};
use crate::projection::{ALL, Kind};
use crate::reader::open_read_only;
use crate::runner::{self, OpenError};
use crate::{Decode, Envelope};

mod compare;
mod snapshot;
pub use compare::Difference;
pub use snapshot::{Copying, Manifest, ModelCopy, Restored, SnapshotError, restore, take as snapshot};

/// How many events are read at once.
const PAGE: usize = 8192;

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("no read model is named {0:?}")]
    Unknown(String),
    #[error(transparent)]
    Log(#[from] ReadError),
    /// An event that this release cannot read; nothing is skipped.
    #[error("the log cannot be folded on at position {position}: {why}")]
    Stopped { position: Position, why: String },
    #[error("the file {path} cannot be used")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the read model {name} cannot be folded")]
    Fold {
        name: &'static str,
        #[source]
        source: rusqlite::Error,
    },
}

/// How far the fold is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub position: Position,
    pub until: Position,
}

/// What came of verifying one read model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    pub name: &'static str,
    /// Up to where it was compared; `None` when there is no such file.
    pub position: Option<Position>,
    /// How many rows were compared.
    pub rows: u64,
    pub differences: Vec<Difference>,
}

/// What came of verifying every read model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub models: Vec<Verified>,
}

impl Report {
    /// Whether every row is as the log says.
    pub fn is_clean(&self) -> bool {
        self.models.iter().all(|model| model.differences.is_empty())
    }
}

struct Target {
    kind: Kind,
    path: PathBuf,
    file: Box<dyn Fold>,
    until: Position,
}

impl Target {
    /// A new file.
    fn new(dir: &Path, kind: Kind, what: &str, until: Position) -> Result<Self, OfflineError> {
        let path = runner::path(dir, kind, what);
        remove(&path)?;
        let file = (kind.open)(&path).map_err(|source| OfflineError::Fold { name: kind.name, source })?;
        Ok(Self { kind, path, file, until })
    }

    fn apply(&mut self, envelopes: &[Envelope]) -> Result<(), OfflineError> {
        let wanted = envelopes.partition_point(|envelope| envelope.recorded.position <= self.until);
        let applied = self.file.apply(&envelopes[..wanted]);
        applied.map_err(|source| OfflineError::Fold { name: self.kind.name, source })?;
        Ok(())
    }

    fn close(self) -> Result<PathBuf, OfflineError> {
        let name = self.kind.name;
        self.file.close().map_err(|source| OfflineError::Fold { name, source })?;
        Ok(self.path)
    }
}

fn remove(path: &Path) -> Result<(), OfflineError> {
    file::remove(path).map_err(|source| OfflineError::File { path: path.to_owned(), source })
}

/// Folds the read models `names` (all, if there are none) of a directory that no process uses anew, and puts each in its place.
pub async fn rebuild(
    dir: &Path,
    names: &[&str],
    log: Arc<dyn Log>,
    decode: Decode,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), OfflineError> {
    let _lock = runner::lock(dir)?;
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|kind| kind.name != **name)) {
        return Err(OfflineError::Unknown((*unknown).to_owned()));
    }
    let until = log.head().position;
    let wanted = |kind: &Kind| names.is_empty() || names.contains(&kind.name);
    let targets = ALL.into_iter().filter(wanted);
    let mut targets: Vec<Target> =
        targets.map(|kind| Target::new(dir, kind, ".rebuild", until)).collect::<Result<_, _>>()?;
    fold(&*log, &decode, &mut targets, progress).await?;
    for target in targets {
        let present = runner::path(dir, target.kind, "");
        let built = target.close()?;
        remove(&present)?;
        std::fs::rename(&built, &present).map_err(|source| OfflineError::File { path: present, source })?;
    }
    Ok(())
}

/// Folds every read model of a directory again into scratch files and compares row by row. The directory may be in use:
/// each file is compared as it was at one moment, and none is changed.
pub async fn verify(
    dir: &Path,
    log: Arc<dyn Log>,
    decode: Decode,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, OfflineError> {
    let mut report = Report::default();
    let (mut targets, mut served) = (vec![], vec![]);
    for kind in ALL {
        let path = runner::path(dir, kind, "");
        if !path.exists() {
            report.models.push(Verified { name: kind.name, position: None, rows: 0, differences: vec![] });
            continue;
        }
        let failed = |source| OfflineError::Fold { name: kind.name, source };
        let (connection, position) = seen_now(&path).map_err(failed)?;
        targets.push(Target::new(dir, kind, ".verify", position)?);
        served.push(connection);
    }
    fold(&*log, &decode, &mut targets, progress).await?;
    for (target, served) in targets.into_iter().zip(served) {
        let (kind, position) = (target.kind, target.until);
        let failed = |source| OfflineError::Fold { name: kind.name, source };
        let scratch = target.close()?;
        let right = open_read_only(&scratch).map_err(failed)?;
        let (rows, differences) = compare::compare(&served, &right).map_err(failed)?;
        drop(right);
        remove(&scratch)?;
        report.models.push(Verified { name: kind.name, position: Some(position), rows, differences });
    }
    Ok(report)
}

/// A connection that sees a file as it is now, whatever is written after, and the position of that.
fn seen_now(path: &Path) -> rusqlite::Result<(Connection, Position)> {
    let connection = open_read_only(path)?;
    connection.execute_batch("BEGIN")?;
    let position = connection.query_row("SELECT position FROM checkpoint", [], |row| row.get(0))?;
    Ok((connection, position))
}

/// Folds the log into every target, each up to its own end.
async fn fold(
    log: &dyn Log,
    decode: &Decode,
    targets: &mut [Target],
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), OfflineError> {
    let until = targets.iter().map(|target| target.until).max().unwrap_or(0);
    let mut next = Some(1);
    while let Some(from) = next.filter(|from| *from <= until) {
        let page = log.read_all(from, Direction::Forward, PAGE, &Filter::All).await?;
        let mut envelopes = Vec::with_capacity(page.events.len());
        for recorded in page.events.into_iter().filter(|recorded| recorded.position <= until) {
            let position = recorded.position;
            let event = decode(&recorded).map_err(|why| OfflineError::Stopped { position, why })?;
            envelopes.push(Envelope { recorded, event });
        }
        std::thread::scope(|scope| {
            let envelopes = &*envelopes;
            let threads: Vec<_> =
                targets.iter_mut().map(|target| scope.spawn(|| target.apply(envelopes))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("applying does not panic"))
        })?;
        if let Some(last) = envelopes.last() {
            progress(Progress { position: last.recorded.position, until });
        }
        next = page.next;
    }
    Ok(())
}
