//! **Snapshots**: copies of read models from which another process starts, so that it need not fold the whole log.
//!
//! A directory, or a tar file of it: `manifest.json`, then one SQLite file a read model. Each file is what its read model was
//! at one moment, with the checkpoint of that moment; the files need not be of the same one, because each follows the log
//! from its own. The manifest says the digest of each file, so that damage is found; whether a snapshot is of *this* log is
//! found by the checkpoint, whenever a file is opened. It has hashes of passwords and keys, like the read models.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use beampipe_log::Position;
use chrono::{DateTime, Utc};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::file;
use crate::projection::{ALL, Kind};
use crate::reader::open_read_only;
use crate::runner::{self, OpenError};

/// The form of a snapshot.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// A manifest is a few hundred bytes a read model.
const MANIFEST_BYTES: u64 = 1 << 20;
/// How many pages are copied between two words on how far it is.
const PAGES: i32 = 2048;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("there are no read models in {0}")]
    Nothing(PathBuf),
    #[error("there is something at {0} already")]
    Taken(PathBuf),
    #[error("there are read models in {0}: a snapshot is restored into an empty directory")]
    NotEmpty(PathBuf),
    #[error("{path} cannot be used")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the read model {name} cannot be copied")]
    Copy {
        name: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    #[error("the snapshot has the form {0}, and this release reads the form {FORMAT}")]
    Format(u32),
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub made_at: DateTime<Utc>,
    pub models: Vec<ModelCopy>,
}

/// One read model of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCopy {
    pub name: String,
    /// Of the projection that wrote the rows.
    pub version: u32,
    /// Up to where it has followed the log, and the leaf hash there, hexadecimal.
    pub position: Position,
    pub hash: String,
    pub bytes: u64,
    pub sha256: String,
}

/// How far the copying is, in bytes of all files.
#[derive(Clone, Copy, Debug)]
pub struct Copying {
    pub bytes: u64,
    pub of: u64,
}

/// What came of restoring one read model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restored {
    pub name: String,
    /// Up to where it is; `None` when it was left out.
    pub position: Option<Position>,
    /// Why it was left out and is folded from the beginning.
    pub left_out: Option<String>,
}

type Tell<'a> = &'a mut (dyn FnMut(Copying) + Send);

fn unusable(path: &Path) -> impl Fn(io::Error) -> SnapshotError + '_ {
    move |source| SnapshotError::File { path: path.to_owned(), source }
}

/// Copies the read models in `dir` to `to`: a tar file if it is called so, else a directory. A process may be using them.
pub fn take(
    dir: &Path,
    to: &Path,
    made_at: DateTime<Utc>,
    tell: Tell<'_>,
) -> Result<Manifest, SnapshotError> {
    if to.exists() {
        return Err(SnapshotError::Taken(to.to_owned()));
    }
    let present: Vec<Kind> = ALL.into_iter().filter(|kind| runner::path(dir, *kind, "").is_file()).collect();
    if present.is_empty() {
        return Err(SnapshotError::Nothing(dir.to_owned()));
    }
    let part = beside(to, ".part");
    clear(&part)?;
    // What is in there is nobody else's business.
    std::fs::DirBuilder::new().mode(0o700).create(&part).map_err(unusable(&part))?;
    let taken = (|| {
        let mut connections = vec![];
        for kind in present {
            let name = kind.name;
            let opened = seen_now(&runner::path(dir, kind, ""));
            connections.push((name, opened.map_err(|source| SnapshotError::Copy { name, source })?));
        }
        let mut progress = Copying { bytes: 0, of: connections.iter().map(|(_, seen)| seen.bytes).sum() };
        let mut models = vec![];
        for (name, seen) in connections {
            models.push(copy(name, seen, &part, &mut progress, tell)?);
        }
        let manifest = Manifest { format: FORMAT, made_at, models };
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        write(&part.join(MANIFEST), &mut &*text)?;
        if is_tar(to) {
            let packed = beside(to, ".part.tar");
            pack(&part, &manifest, &packed)?;
            std::fs::rename(&packed, to).map_err(unusable(to))?;
        } else {
            sync(&part)?;
            std::fs::rename(&part, to).map_err(unusable(to))?;
        }
        sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(manifest)
    })();
    clear(&part)?;
    taken
}

/// A read model as it is now, whatever is written after.
struct Seen {
    connection: Connection,
    version: u32,
    position: Position,
    hash: String,
    bytes: u64,
}

fn seen_now(path: &Path) -> rusqlite::Result<Seen> {
    let connection = open_read_only(path)?;
    connection.execute_batch("BEGIN")?;
    let (version, position, hash) = checkpoint(&connection)?;
    let bytes = connection.query_row(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        [],
        |row| row.get(0),
    )?;
    Ok(Seen { connection, version, position, hash, bytes })
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<(u32, Position, String)> {
    connection.query_row("SELECT version, position, hash FROM checkpoint", [], |row| {
        Ok((row.get(0)?, row.get(1)?, hex::encode(row.get::<_, [u8; 32]>(2)?)))
    })
}

fn copy(
    name: &'static str,
    seen: Seen,
    part: &Path,
    progress: &mut Copying,
    tell: Tell<'_>,
) -> Result<ModelCopy, SnapshotError> {
    let Seen { connection, version, position, hash, bytes } = seen;
    let path = part.join(file_of(name));
    let before = progress.bytes;
    let mut pages = || -> rusqlite::Result<()> {
        let mut target = Connection::open(&path)?;
        target.execute_batch("PRAGMA synchronous = OFF")?;
        {
            let backup = Backup::new(&connection, &mut target)?;
            loop {
                match backup.step(PAGES)? {
                    StepResult::Done => break,
                    StepResult::More => {}
                    // Nobody else has the copy open, and the source is read in a transaction.
                    _ => std::thread::sleep(Duration::from_millis(10)),
                }
                let at = backup.progress();
                let done = at.pagecount.saturating_sub(at.remaining).max(0);
                let part = bytes / u64::try_from(at.pagecount.max(1)).unwrap_or(1);
                progress.bytes = before + part * u64::try_from(done).unwrap_or(0);
                tell(*progress);
            }
        }
        // One file, which needs nothing beside it.
        target.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        target.close().map_err(|(_, error)| error)
    };
    pages().map_err(|source| SnapshotError::Copy { name, source })?;
    progress.bytes = before + bytes;
    tell(*progress);
    let mut file = File::open(&path).map_err(unusable(&path))?;
    let (bytes, sha256) = drain(&mut file, &mut io::sink()).map_err(unusable(&path))?;
    file.sync_all().map_err(unusable(&path))?;
    Ok(ModelCopy { name: name.to_owned(), version, position, hash, bytes, sha256 })
}

fn pack(part: &Path, manifest: &Manifest, to: &Path) -> Result<(), SnapshotError> {
    let file = create(to).map_err(unusable(to))?;
    let mut tar = tar::Builder::new(file);
    tar.mode(tar::HeaderMode::Deterministic);
    let names = manifest.models.iter().map(|model| file_of(&model.name));
    for name in std::iter::once(MANIFEST.to_owned()).chain(names) {
        tar.append_path_with_name(part.join(&name), &name).map_err(unusable(to))?;
    }
    tar.into_inner().and_then(|file| file.sync_all()).map_err(unusable(to))
}

/// Puts the read models of the snapshot at `from` into `dir`, which has none. All or nothing: what is damaged is refused
/// before anything is in its place. One of another version of its projection is left out: it is folded from the beginning.
pub fn restore(from: &Path, dir: &Path, tell: Tell<'_>) -> Result<Vec<Restored>, SnapshotError> {
    let _lock = runner::lock(dir)?;
    if ALL.iter().any(|kind| runner::path(dir, *kind, "").exists()) {
        return Err(SnapshotError::NotEmpty(dir.to_owned()));
    }
    let staging = dir.join(".restore");
    clear(&staging)?;
    std::fs::create_dir(&staging).map_err(unusable(&staging))?;
    let restored = (|| {
        let manifest = stage(from, &staging, tell)?;
        manifest.models.iter().map(|model| put(model, &staging, dir)).collect::<Result<Vec<_>, _>>()
    })();
    clear(&staging)?;
    sync(dir)?;
    restored
}

/// Copies every file of a snapshot, and checks it.
fn stage(from: &Path, staging: &Path, tell: Tell<'_>) -> Result<Manifest, SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged(what);
    if from.is_dir() {
        let path = from.join(MANIFEST);
        let manifest = manifest(&mut File::open(&path).map_err(unusable(&path))?)?;
        let mut progress = Copying { bytes: 0, of: manifest.models.iter().map(|model| model.bytes).sum() };
        for model in &manifest.models {
            let path = from.join(file_of(&model.name));
            let mut file = File::open(&path).map_err(unusable(&path))?;
            stage_one(model, &mut file, staging, &mut progress, tell)?;
        }
        return Ok(manifest);
    }
    let mut tar = tar::Archive::new(File::open(from).map_err(unusable(from))?);
    let broken = |error: io::Error| damaged(format!("it is no whole tar file: {error}"));
    let mut entries = tar.entries().map_err(broken)?;
    let mut first = entries.next().ok_or_else(|| damaged("it is empty".to_owned()))?.map_err(broken)?;
    if first.path_bytes() != MANIFEST.as_bytes() {
        return Err(damaged(format!("it does not begin with {MANIFEST}")));
    }
    let manifest = manifest(&mut first)?;
    let mut progress = Copying { bytes: 0, of: manifest.models.iter().map(|model| model.bytes).sum() };
    for model in &manifest.models {
        let name = file_of(&model.name);
        let missing = || damaged(format!("{name} is missing"));
        let mut entry = entries.next().ok_or_else(missing)?.map_err(broken)?;
        if entry.path_bytes() != name.as_bytes() {
            return Err(missing());
        }
        stage_one(model, &mut entry, staging, &mut progress, tell)?;
    }
    Ok(manifest)
}

fn manifest(from: &mut impl Read) -> Result<Manifest, SnapshotError> {
    #[derive(Deserialize)]
    struct Form {
        format: u32,
    }
    let damaged = |error: &dyn std::fmt::Display| SnapshotError::Damaged(format!("{MANIFEST}: {error}"));
    let mut text = String::new();
    from.take(MANIFEST_BYTES).read_to_string(&mut text).map_err(|error| damaged(&error))?;
    let Form { format } = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| damaged(&error))?;
    // The names become names of files.
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    match manifest.models.iter().find(|model| !plain(&model.name)) {
        Some(model) => Err(damaged(&format!("{:?} is no read model's name", model.name))),
        None => Ok(manifest),
    }
}

fn stage_one(
    model: &ModelCopy,
    from: &mut impl Read,
    staging: &Path,
    progress: &mut Copying,
    tell: Tell<'_>,
) -> Result<(), SnapshotError> {
    let name = file_of(&model.name);
    let path = staging.join(&name);
    // One byte more than there should be is enough to see that there is more.
    let (bytes, sha256) = write(&path, &mut from.take(model.bytes.saturating_add(1)))?;
    if (bytes, &sha256) != (model.bytes, &model.sha256) {
        let what = format!("{name} is not what was written: its {bytes} bytes or more have another digest");
        return Err(SnapshotError::Damaged(what));
    }
    let wrong = |error: &dyn std::fmt::Display| SnapshotError::Damaged(format!("{name}: {error}"));
    let connection = open_read_only(&path).map_err(|error| wrong(&error))?;
    let (version, position, hash) = checkpoint(&connection).map_err(|error| wrong(&error))?;
    if (version, position, &hash) != (model.version, model.position, &model.hash) {
        return Err(wrong(&format!("its checkpoint at position {position} is not the manifest's")));
    }
    progress.bytes += bytes;
    tell(*progress);
    Ok(())
}

/// Puts a checked file in its place, if this release can go on with it.
fn put(model: &ModelCopy, staging: &Path, dir: &Path) -> Result<Restored, SnapshotError> {
    let kind = ALL.into_iter().find(|kind| kind.name == model.name);
    let left_out = match kind {
        None => Some("this release has no such read model".to_owned()),
        Some(kind) if kind.version != model.version => Some(format!(
            "its rows are of version {}, and this release writes {}",
            model.version, kind.version
        )),
        Some(kind) => {
            let place = runner::path(dir, kind, "");
            // What an older file may have left beside.
            file::remove(&place).map_err(unusable(&place))?;
            std::fs::rename(staging.join(file_of(&model.name)), &place).map_err(unusable(&place))?;
            None
        }
    };
    let position = left_out.is_none().then_some(model.position);
    Ok(Restored { name: model.name.clone(), position, left_out })
}

fn file_of(name: &str) -> String {
    format!("{name}.sqlite")
}

fn is_tar(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes what a broken-off run left.
fn clear(directory: &Path) -> Result<(), SnapshotError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(directory)(error)),
        _ => Ok(()),
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a file, durably; answers its length and its digest.
fn write(path: &Path, from: &mut impl Read) -> Result<(u64, String), SnapshotError> {
    (|| {
        let mut file = create(path)?;
        let written = drain(from, &mut file)?;
        file.sync_all()?;
        Ok(written)
    })()
    .map_err(unusable(path))
}

fn drain(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut digest, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok((bytes, hex::encode(digest.finalize())));
        }
        digest.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
}

fn sync(directory: &Path) -> Result<(), SnapshotError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(unusable(directory))
}
