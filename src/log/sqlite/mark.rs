//! The **acknowledgement mark**: `<log>.acked`, the last position that was acknowledged, and its leaf hash.
//!
//! SQLite drops whatever follows a frame of the WAL whose checksum fails, without a word. The mark is written after every
//! commit and before its acknowledgements, so a log that ends before its mark has lost something that was promised.
//! It is not synced: a power cut may leave an older mark, which proves less but accuses nobody falsely.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Head;
use crate::event::Hash;

use super::schema::beside;

const MAGIC: &[u8; 8] = b"bpacked1";
const LENGTH: usize = 8 + 8 + 32 + 16;

#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    failing: bool,
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

impl Mark {
    pub(super) fn path(log: &Path) -> PathBuf {
        beside(log, ".acked")
    }

    /// What was acknowledged last, if a whole mark is there.
    pub(super) fn read(log: &Path) -> Option<Head> {
        let bytes = std::fs::read(Self::path(log)).ok()?;
        let body = bytes.get(..LENGTH - 16)?;
        if &body[..8] != MAGIC || bytes.get(LENGTH - 16..LENGTH)? != digest(body) {
            return None;
        }
        let position = u64::from_be_bytes(*body[8..].first_chunk()?);
        Some(Head { position, hash: Hash(*body[16..].first_chunk()?) })
    }

    pub(super) fn open(log: &Path) -> io::Result<Self> {
        let path = Self::path(log);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        Ok(Self { file, path, failing: false })
    }

    /// Notes `head`. A failure is told once and does not fail the append: the events are durable.
    pub(super) fn write(&mut self, head: Head) {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&head.position.to_be_bytes());
        bytes[16..48].copy_from_slice(&head.hash.0);
        let check = digest(&bytes[..48]);
        bytes[48..].copy_from_slice(&check);
        match self.file.write_all_at(&bytes, 0) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::warn!(path = %self.path.display(), %error, "cannot note what was acknowledged");
            }
            Err(_) => {}
        }
    }
}
