//! Histories that are made once and kept: a million events of the story, as a log and as a UmaDB database.
//!
//! They are never measured on; every run works on copies, so that a run does not change what the next one finds.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use beampipe_log::ndjson::Restore;
use beampipe_log::{Direction, Filter, Log, SqliteLog, SqliteOptions};
use sha2::Digest;

use crate::story::{Teller, beginning, clock};
use crate::{Settings, umadb};

/// How many events are handed over at once.
const CHUNK: usize = 4000;

/// Whatever decides what a made history looks like: when one of these changes, it is made again.
const MADE_OF: [&[u8]; 3] = [
    include_bytes!("story.rs"),
    include_bytes!("../../migrations/log-sqlite/0001_events.sql"),
    include_bytes!("../../migrations/log-sqlite/index.sql"),
];

/// The directory of a history that is kept.
pub fn kept(settings: &Settings, name: &str) -> PathBuf {
    let digest =
        MADE_OF.iter().fold(sha2::Sha256::new(), |digest, part| digest.chain_update(part)).finalize();
    settings.state.join(format!("made-{:02x}{:02x}{:02x}-{name}", digest[0], digest[1], digest[2]))
}

/// Opens a log with the usual limits.
pub fn open(path: &Path) -> anyhow::Result<SqliteLog> {
    SqliteLog::open(path, SqliteOptions::new(clock())).with_context(|| path.display().to_string())
}

/// Copies a file or a directory, and sees that it is on disk before anything is measured.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// An empty directory for one suite's files.
pub fn scratch(settings: &Settings, name: &str) -> anyhow::Result<PathBuf> {
    let directory = settings.state.join(format!("scratch-{name}"));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// The directory with a log of `settings.events` events in `log.sqlite`, complete and closed.
pub async fn log(settings: &Settings) -> anyhow::Result<PathBuf> {
    let directory = kept(settings, &format!("log-{}", settings.events));
    let done = directory.join("done");
    if done.exists() {
        return Ok(directory);
    }
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory)?;
    eprintln!("making a log of {} events", settings.events);
    let log = open(&directory.join("log.sqlite"))?;
    let mut teller = Teller::new(1, beginning());
    let mut number = 0;
    let mut left = settings.events;
    while left > 0 {
        while (teller.told() as usize) < settings.events && teller.waiting() < CHUNK {
            teller.source_executed(number)?;
            number += 1;
        }
        let mut events = teller.take();
        events.truncate(left);
        left -= events.len();
        log.restore(events).await?;
    }
    log.close().await;
    drop(log);
    // Opening takes the index to the end, so that no measurement meets it on its way there.
    open(&directory.join("log.sqlite"))?.close().await;
    std::fs::write(done, "")?;
    Ok(directory)
}

/// The same events in a UmaDB database.
pub async fn peer(settings: &Settings) -> anyhow::Result<PathBuf> {
    let directory = kept(settings, &format!("umadb-{}", settings.events));
    let done = directory.join("done");
    if done.exists() {
        return Ok(directory);
    }
    let source = log(settings).await?;
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory)?;
    eprintln!("making a UmaDB database of {} events", settings.events);
    let server = umadb::Server::start(&settings.umadb, &directory.join("uma.db")).await?;
    let mut client = server.connect().await?;
    let log = open(&source.join("log.sqlite"))?;
    let mut from = 1;
    loop {
        let page = log.read_all(from, Direction::Forward, 2000, &Filter::All).await?;
        client.append(page.events.iter().map(|event| umadb::copied(event)).collect()).await?;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    let head = client.head().await?;
    ensure!(head as usize == settings.events, "the peer has {head} events of {}", settings.events);
    std::fs::write(done, "")?;
    Ok(directory)
}
