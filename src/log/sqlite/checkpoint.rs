//! Moves the write-ahead log into the database, off the commit path.
//!
//! Copying happens here, on a connection of its own, while commits go on. Only when nearly everything is copied is the
//! writer asked to start the WAL from its beginning, which then costs it little; the file keeps its length, because
//! writing over existing blocks syncs faster than growing. A log that rests is copied whole.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::Connection;

use super::Shared;
use super::writer::Job;

/// A WAL of so many pages (of 8 KiB) is started over.
const START_OVER_PAGES: i64 = 6144;
/// What the writer may have left to copy by itself.
const NEARLY: i64 = 256;
/// A log without appends for so long is at rest.
const REST: Duration = Duration::from_secs(2);

/// Runs until the other end of `signals` is gone.
pub(super) fn run(connection: &Connection, shared: &Shared, signals: &Receiver<()>, writer: &Sender<Job>) {
    let mut dirty = true;
    loop {
        match signals.recv_timeout(REST) {
            Ok(()) => dirty = true,
            Err(RecvTimeoutError::Timeout) if dirty => dirty = false,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if shared.refused.lock().is_some() {
            // What space comes back is for appends first.
            dirty = true;
            continue;
        }
        match copy(connection) {
            Ok(left) if left.pages > START_OVER_PAGES => {
                if left.behind < NEARLY {
                    let _ = writer.try_send(Job::ResetWal);
                }
            }
            Ok(_) => {}
            // A full disk, mostly: what is in the WAL is durable there, and the next round tries again.
            Err(error) => {
                tracing::warn!(%error, "cannot move the write-ahead log into the database");
                dirty = true;
            }
        }
    }
}

struct Left {
    /// All pages of the WAL.
    pages: i64,
    /// Those that are not in the database yet.
    behind: i64,
}

/// Copies what is there. Appends go on meanwhile, so a long WAL is copied again until little is left of it.
fn copy(connection: &Connection) -> rusqlite::Result<Left> {
    let mut rounds = 0;
    loop {
        let left = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            let (pages, copied) = (row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
            Ok(Left { pages, behind: pages - copied })
        })?;
        rounds += 1;
        if left.pages <= START_OVER_PAGES || left.behind < NEARLY || rounds == 4 {
            return Ok(left);
        }
    }
}
