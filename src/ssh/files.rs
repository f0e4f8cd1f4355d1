//! Files on a login node, over SFTP.
//!
//! A file appears whole or not at all: it is written beside its place under a name nobody else has, and renamed. So a
//! repeated upload does no harm. What is read is bounded.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::link::Link;
use super::{Error, Settings};
use crate::clock::Clock;

/// One request's worth; every server takes as much.
const CHUNK: usize = 32 * 1024;
/// Requests on their way at once, so that distance costs little.
const AT_ONCE: usize = 16;

/// Which part of a file is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Beginning,
    End,
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    /// Of the whole file.
    pub size: u64,
}

impl Content {
    /// Whether some of the file is not here.
    pub fn truncated(&self) -> bool {
        (self.bytes.len() as u64) < self.size
    }
}

/// A channel for files. It takes one of the connection's channels until it is dropped.
pub struct Files {
    sftp: RawSftpSession,
    link: std::sync::Arc<Link>,
    posix_rename: bool,
    fsync: bool,
    limit: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Files {
    fn drop(&mut self) {
        // The server ends its side when ours is closed; an error says that it has.
        let _ = self.sftp.close_session();
    }
}

impl Files {
    pub(super) async fn open(link: std::sync::Arc<Link>, settings: &Settings) -> Result<Self, Error> {
        let (channel, permit) = link.channel(settings.command).await?;
        let not_sent = |detail: String| Error::not_sent(&link.target, detail);
        let starting = async {
            channel
                .request_subsystem(true, "sftp")
                .await
                .map_err(|error| not_sent("no SFTP was started".into()).because(error))?;
            let sftp = RawSftpSession::new(channel.into_stream());
            sftp.set_timeout(settings.transfer.as_secs().max(1));
            let version = sftp.init().await.map_err(|error| not_sent(format!("no SFTP: {error}")))?;
            Ok::<_, Error>((sftp, version))
        };
        let started = tokio::select! {
            started = timeout(settings.command, starting) => started,
            // The library waits on for an answer that cannot come any more.
            () = link.ended() => return Err(not_sent("the connection was lost before SFTP was started".into())),
        };
        let (sftp, version) = match started {
            Ok(started) => started?,
            Err(_) => return Err(not_sent(format!("no SFTP within {} s", settings.command.as_secs_f32()))),
        };
        let has = |name: &str| version.extensions.contains_key(name);
        Ok(Self {
            posix_rename: has("posix-rename@openssh.com"),
            fsync: has("fsync@openssh.com"),
            sftp,
            limit: settings.transfer,
            link,
            _permit: permit,
        })
    }

    /// Writes `bytes` to `path`, which appears whole, with the permissions `mode`.
    pub async fn upload(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        let part = format!("{path}.{}.part", hex::encode(Clock::system().random::<6>()));
        let done = self.bounded(path, "to write", self.write(&part, path, bytes, mode)).await;
        if done.is_err() && !self.link.is_closed() {
            // What is left of it would only take room.
            let _ = timeout(Duration::from_secs(5), self.sftp.remove(&part)).await;
        }
        done
    }

    async fn write(&self, part: &str, path: &str, bytes: &[u8], mode: u32) -> Result<(), SftpError> {
        let attributes = || FileAttributes { permissions: Some(mode), ..FileAttributes::empty() };
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let handle = self.sftp.open(part, flags, attributes()).await?.handle;
        stream::iter((0..bytes.len()).step_by(CHUNK))
            .map(|at| {
                let end = bytes.len().min(at + CHUNK);
                self.sftp.write(handle.as_str(), at as u64, bytes[at..end].to_vec())
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        // The umask has taken from what was asked for at first.
        self.sftp.fsetstat(handle.as_str(), attributes()).await?;
        if self.fsync {
            self.sftp.fsync(handle.as_str()).await?;
        }
        self.sftp.close(handle).await?;
        self.rename(part, path).await
    }

    /// Takes the place of what was there, which plain SFTP's rename does not.
    async fn rename(&self, from: &str, to: &str) -> Result<(), SftpError> {
        if !self.posix_rename {
            return self.sftp.rename(from, to).await.map(|_| ());
        }
        let mut names = Vec::new();
        for name in [from, to] {
            let length =
                u32::try_from(name.len()).map_err(|_| SftpError::Limited("a name this long".into()))?;
            names.extend_from_slice(&length.to_be_bytes());
            names.extend_from_slice(name.as_bytes());
        }
        match self.sftp.extended("posix-rename@openssh.com", names).await? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(SftpError::Status(status)),
            _ => Err(SftpError::UnexpectedPacket),
        }
    }

    /// Reads at most `limit` bytes of `path`.
    pub async fn read(&self, path: &str, part: Part, limit: usize) -> Result<Content, Error> {
        self.bounded(path, "to read", async {
            let handle = self.sftp.open(path, OpenFlags::READ, FileAttributes::empty()).await?.handle;
            let content = self.contents(&handle, part, limit).await;
            // It was only read.
            let _ = self.sftp.close(handle).await;
            content
        })
        .await
    }

    async fn contents(&self, handle: &str, part: Part, limit: usize) -> Result<Content, SftpError> {
        let size = self.sftp.fstat(handle).await?.attrs.size.unwrap_or(0);
        let start = match part {
            Part::Beginning => 0,
            Part::End => size.saturating_sub(limit as u64),
        };
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            let wanted = (limit - bytes.len()).min(CHUNK) as u32;
            match self.sftp.read(handle, start + bytes.len() as u64, wanted).await {
                Ok(data) => bytes.extend_from_slice(&data.data),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => break,
                Err(error) => return Err(error),
            }
        }
        // A file that somebody still writes to may have grown meanwhile.
        Ok(Content { size: size.max(start + bytes.len() as u64), bytes })
    }

    /// Makes `path` and what leads to it, as far as it is not there.
    pub async fn make_dirs(&self, path: &str, mode: u32) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut at = path.trim_end_matches('/');
        // From the end, because a user need not be able to look at what lies above.
        while !at.is_empty() && !self.exists(at).await? {
            missing.push(at);
            at = at.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        for path in missing.into_iter().rev() {
            // Somebody else may have been first, which is as good.
            self.make_new_dir(path, mode).await?;
        }
        Ok(())
    }

    /// Makes one directory; false when there was something already. Of those who ask for the same, one makes it.
    pub async fn make_new_dir(&self, path: &str, mode: u32) -> Result<bool, Error> {
        let attributes = FileAttributes { permissions: Some(mode), ..FileAttributes::empty() };
        let made =
            self.bounded(path, "to make", async { self.sftp.mkdir(path, attributes).await.map(|_| ()) });
        match made.await {
            Ok(()) => Ok(true),
            // Servers have one word for all that is wrong with a name.
            Err(error @ Error::Refused { .. }) => {
                if self.exists(path).await? {
                    Ok(false)
                } else {
                    Err(error)
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there is something at `path`.
    pub async fn exists(&self, path: &str) -> Result<bool, Error> {
        let found = self.bounded(path, "to look at", async { self.sftp.stat(path).await.map(|_| ()) }).await;
        match found {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn bounded<T>(
        &self,
        path: &str,
        what: &str,
        doing: impl Future<Output = Result<T, SftpError>>,
    ) -> Result<T, Error> {
        let target = &self.link.target;
        let done = tokio::select! {
            done = timeout(self.limit, doing) => done,
            () = self.link.ended() => return Err(Error::unknown(target, format!("the connection was lost, asked {what} {path:?}"))),
        };
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(SftpError::Status(status))) => Err(Error::Refused {
                target: target.to_string(),
                what: format!("{what} {path:?}"),
                absent: status.status_code == StatusCode::NoSuchFile,
                detail: status.error_message,
            }),
            Ok(Err(error)) => Err(Error::unknown(target, format!("asked {what} {path:?}: {error}"))),
            Err(_) => {
                let limit = self.limit.as_secs_f32();
                Err(Error::unknown(target, format!("asked {what} {path:?}: no answer within {limit} s")))
            }
        }
    }
}
