//! One writer at a time: an advisory lock on `<log>.lock`, which holds the writer's process id for whoever is refused.
//!
//! The kernel takes the lock back when the process ends, however it ends; a left-over file means nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::schema::{OpenError, beside};

/// Held for as long as this process may write.
#[derive(Debug)]
pub(crate) struct WriterLock {
    file: File,
}

impl WriterLock {
    pub(crate) fn take(log: &Path) -> Result<Self, OpenError> {
        let path = beside(log, ".lock");
        let fail = |error| OpenError::io(&path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(fail)?;
                return Err(OpenError::Locked { path: log.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        // On a full disk the pid cannot be written; the lock holds all the same.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot note the writer's pid");
        }
        Ok(Self { file })
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Closing unlocks too, but only once every duplicate of the descriptor is gone.
        let _ = self.file.unlock();
    }
}
