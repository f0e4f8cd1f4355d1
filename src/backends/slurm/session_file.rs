//! The file `session.json` that the launcher leaves in a session's directory: the last word of DALiuGE itself.
//!
//! It is read as what a remote machine wrote: bounded, fields we do not know are ignored, plain text only. A file without an
//! end ([`SessionFile::is_final`]) tells how far the session is, and of no end.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use crate::backends::dim::answers;
use crate::backends::evidence::{self, DropState, ErrorDrop, Evidence};
use crate::backends::{Progress, State};

/// The launcher lists 20,000 drops at most, some hundred bytes each.
pub const LARGEST: usize = 32 << 20;
/// Lines kept of what the managers said.
const MOST_LINES: usize = 100;

/// What the launcher tells of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionFile {
    pub session: String,
    pub state: State,
    /// By node, as the manager answered.
    pub status: Value,
    /// The job that wrote it.
    pub job: Option<String>,
    pub nodes: Vec<String>,
    pub progress: Progress,
    pub started_at: Option<DateTime<Utc>>,
    pub updated_at: Option<DateTime<Utc>>,
    /// Absent while it runs, and for ever if the launcher was killed.
    pub ended_at: Option<DateTime<Utc>>,
    /// The job was told to end while the session ran.
    pub interrupted: bool,
    /// Why the session could not be run to its end, if it could not.
    pub error: Option<String>,
    /// Of the launcher.
    pub exit_code: Option<u32>,
    /// Culprits first.
    pub error_drops: Vec<ErrorDrop>,
    /// Where drops stood at the end.
    pub drops: BTreeMap<String, DropState>,
    /// The end of what the managers said when they could not run it.
    pub log: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionFileError {
    #[error("session.json has {0} bytes; at most {LARGEST} are read")]
    TooLarge(usize),
    #[error("session.json cannot be read: {0}")]
    Malformed(String),
    #[error("session.json is of session {found:?}, not of {wanted:?}")]
    OtherSession { found: String, wanted: String },
}

#[derive(Deserialize)]
struct Wire {
    session: String,
    state: String,
    #[serde(default)]
    status: Value,
    #[serde(default)]
    job: Option<String>,
    #[serde(default)]
    nodes: Vec<String>,
    #[serde(default)]
    progress: Progress,
    #[serde(default)]
    started_at: Option<i64>,
    #[serde(default)]
    updated_at: Option<i64>,
    #[serde(default)]
    ended_at: Option<i64>,
    #[serde(default)]
    interrupted: bool,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    exit_code: Option<u32>,
    #[serde(default)]
    error_drops: Vec<WireDrop>,
    #[serde(default)]
    drops: BTreeMap<String, DropState>,
    #[serde(default)]
    log: Vec<String>,
}

#[derive(Deserialize)]
struct WireDrop {
    oid: String,
    name: String,
    #[serde(default)]
    dropclass: Option<String>,
    #[serde(default)]
    culprit: bool,
    status: DropState,
    /// As the manager gave them: written for a web page.
    #[serde(default)]
    logs: Vec<BTreeMap<String, Value>>,
    #[serde(default)]
    log_missing: Option<String>,
}

impl SessionFile {
    /// Reads the file of this session.
    pub fn read(bytes: &[u8], session: &str) -> Result<Self, SessionFileError> {
        if bytes.len() > LARGEST {
            return Err(SessionFileError::TooLarge(bytes.len()));
        }
        let malformed = |error: serde_json::Error| SessionFileError::Malformed(error.to_string());
        let wire: Wire = serde_json::from_slice(bytes).map_err(malformed)?;
        if wire.session != session {
            let (found, wanted) = (evidence::shorten(&wire.session, 100), session.to_owned());
            return Err(SessionFileError::OtherSession { found, wanted });
        }
        let time = |seconds: Option<i64>| seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        let short = |text: String| evidence::shorten(&text, evidence::LONGEST_LINE);
        Ok(Self {
            session: wire.session,
            state: evidence::shorten(&wire.state, 100).into(),
            status: wire.status,
            job: wire.job,
            nodes: wire.nodes,
            progress: wire.progress,
            started_at: time(wire.started_at),
            updated_at: time(wire.updated_at),
            ended_at: time(wire.ended_at),
            interrupted: wire.interrupted,
            error: wire.error.map(short),
            exit_code: wire.exit_code,
            error_drops: wire.error_drops.into_iter().take(evidence::MOST_DROPS).map(error_drop).collect(),
            drops: wire.drops,
            log: wire.log.into_iter().take(MOST_LINES).map(short).collect(),
        })
    }

    /// Whether the launcher has said its last word.
    pub fn is_final(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Whether the session ran to its end and every node says that it finished.
    pub fn has_finished(&self) -> bool {
        self.is_final() && self.state == State::Finished && self.error.is_none()
    }

    /// Whether the graph itself failed.
    pub fn has_failed(&self) -> bool {
        self.is_final() && self.state == State::Failed
    }

    /// What is kept of it as an artifact, in the form of every backend.
    pub fn evidence(&self) -> Evidence {
        let cancelled = self.state == State::Cancelled;
        let progress =
            Progress { failed: if cancelled { 0 } else { self.progress.failed }, ..self.progress.clone() };
        Evidence {
            session_id: self.session.clone(),
            state: self.state.clone(),
            error_drops_count: progress.failed,
            error_drops: if cancelled { vec![] } else { self.error_drops.clone() },
            progress,
        }
    }
}

fn error_drop(wire: WireDrop) -> ErrorDrop {
    ErrorDrop {
        oid: wire.oid,
        name: evidence::shorten(&wire.name, 500),
        dropclass: wire.dropclass,
        culprit: wire.culprit,
        status: wire.status,
        log: answers::log_lines(&wire.logs),
        log_missing: wire.log_missing.map(|text| evidence::shorten(&text, evidence::LONGEST_LINE)),
    }
}
