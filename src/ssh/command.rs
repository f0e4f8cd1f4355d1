//! A command on a login node, and what came of it.
//!
//! Invariant: from the moment the request is given to the connection, an error is `Unknown` unless the server says that it
//! did not run the command.

use std::time::Duration;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::link::Link;
use super::{Error, Settings};

/// How long after its end a command's output may still arrive. Something it left behind may hold it open for ever.
const AFTER_THE_END: Duration = Duration::from_secs(2);

/// What becomes of a command whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It is told to end.
    End,
    /// It goes on, because half of it would be worse.
    Leave,
}

/// A line for the remote user's shell.
#[derive(Clone, Debug)]
pub struct Command {
    text: String,
    timeout: Option<Duration>,
    late: Late,
}

impl Command {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), timeout: None, late: Late::End }
    }

    /// Another bound than the settings'.
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    pub fn when_late(self, late: Late) -> Self {
        Self { late, ..self }
    }
}

impl From<&str> for Command {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Command {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// What a command that ended left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Absent when a signal ended it.
    pub code: Option<u32>,
    /// Without `SIG`.
    pub signal: Option<String>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// There was more than is kept: what is here is not the whole answer.
    pub truncated: bool,
}

impl Output {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A channel in use. However it is left, it is closed, and only then its room is free again.
struct Open {
    write: Option<ChannelWriteHalf<Msg>>,
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the command is told to end: else its server keeps a session for it, of the few that it has.
    signal: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let (Some(write), permit, signal) = (self.write.take(), self.permit.take(), self.signal) else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // The connection may have gone, and the channel with it.
            if signal {
                let _ = write.signal(Sig::TERM).await;
            }
            let _ = write.close().await;
            drop(permit);
        });
    }
}

/// Runs `command` over `link`.
pub(super) async fn run(link: &Link, command: &Command, settings: &Settings) -> Result<Output, Error> {
    let limit = command.timeout.unwrap_or(settings.command);
    let (channel, permit) = link.channel(limit).await?;
    let (mut read, write) = channel.split();
    // The request is queued or it is not; only a queued one can leave.
    write
        .exec(true, command.text.as_bytes())
        .await
        .map_err(|error| Error::not_sent(&link.target, "the connection has ended").because(error))?;
    let mut open = Open { write: Some(write), permit: Some(permit), signal: command.late == Late::End };
    let collected = tokio::select! {
        collected = timeout(limit, collect(&mut read, settings.output)) => collected,
        () = link.ended() => return Err(Error::unknown(&link.target, "the connection was lost")),
    };
    open.signal &= collected.is_err();
    match collected {
        Err(_) => Err(Error::unknown(&link.target, format!("no end within {} s", limit.as_secs_f32()))),
        Ok(Ended::Refused) => Err(Error::Refused {
            target: link.target.to_string(),
            what: "to run a command".into(),
            detail: "the server runs no commands for this user".into(),
            absent: false,
        }),
        Ok(Ended::Lost) => Err(Error::unknown(&link.target, "the connection ended before the command did")),
        Ok(Ended::With(output)) => Ok(output),
    }
}

enum Ended {
    With(Output),
    Refused,
    Lost,
}

async fn collect(read: &mut ChannelReadHalf, limit: usize) -> Ended {
    let mut output = Output::default();
    let mut until: Option<Instant> = None;
    loop {
        let next = match until {
            None => read.wait().await,
            Some(until) => timeout_at(until, read.wait()).await.unwrap_or(None),
        };
        match next {
            Some(ChannelMsg::Data { data }) => {
                output.truncated |= keep(&mut output.stdout, &data, limit);
            }
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                output.truncated |= keep(&mut output.stderr, &data, limit);
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                output.code = Some(exit_status);
                until = Some(Instant::now() + AFTER_THE_END);
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                output.signal = Some(match signal_name {
                    Sig::Custom(name) => name,
                    known => format!("{known:?}"),
                });
                until = Some(Instant::now() + AFTER_THE_END);
            }
            Some(ChannelMsg::Failure) => return Ended::Refused,
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    if output.code.is_none() && output.signal.is_none() { Ended::Lost } else { Ended::With(output) }
}

/// Keeps what there is room for. Says whether that was not all.
fn keep(kept: &mut Vec<u8>, more: &[u8], limit: usize) -> bool {
    let room = limit.saturating_sub(kept.len()).min(more.len());
    kept.extend_from_slice(&more[..room]);
    room < more.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_dropped_and_said() {
        let mut kept = Vec::new();
        assert!(!keep(&mut kept, b"abc", 5) && !keep(&mut kept, b"de", 5));
        assert!(keep(&mut kept, b"f", 5));
        assert_eq!(kept, b"abcde");
    }
}
