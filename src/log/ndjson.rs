//! A log as lines of JSON: export, and import that keeps positions, times of recording and redactions.
//!
//! One line is one envelope (`docs/log-format.md` says the fields). An export of an import is the same bytes. An import
//! goes on where it was broken off: what is there already is compared, not written. Nothing is taken on trust: every
//! line's leaf and data are hashed again, and every stream's chain is checked.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::event::{Hash, Position, Recorded};
use crate::leaf::Interner;
use crate::{AppendError, Direction, Filter, Log, ReadError, StreamHead};

/// About how many bytes of lines are parsed at once.
const CHUNK: usize = 4 << 20;
/// How many chunks are parsed while one is written.
const AHEAD: usize = 2;
/// A line that is longer holds no event that could be in a log.
const LONGEST_LINE: usize = 1 << 20;
const PAGE: usize = 1000;

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    position: Position,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    revision: u64,
    id: Uuid,
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    schema_version: u16,
    #[serde(borrow)]
    occurred_at: Cow<'a, str>,
    #[serde(borrow)]
    recorded_at: Cow<'a, str>,
    #[serde(borrow)]
    actor: Cow<'a, str>,
    correlation_id: Uuid,
    causation_id: Option<Uuid>,
    #[serde(borrow)]
    tags: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<Cow<'a, str>>,
    #[serde(borrow)]
    salt: Option<Cow<'a, str>>,
    #[serde(borrow)]
    commitment: Cow<'a, str>,
    #[serde(borrow)]
    prev_hash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    hash: Cow<'a, str>,
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// The line of one event, with its line feed.
pub fn line(event: &Recorded) -> Vec<u8> {
    let line = Line {
        position: event.position,
        stream: Cow::Borrowed(&event.stream),
        revision: event.revision,
        id: event.id,
        event_type: Cow::Borrowed(&event.event_type),
        schema_version: event.schema_version,
        occurred_at: time(event.occurred_at).into(),
        recorded_at: time(event.recorded_at).into(),
        actor: Cow::Borrowed(&event.actor),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        tags: event.tags.iter().map(|tag| Cow::Borrowed(&**tag)).collect(),
        data: event.data.as_ref().map(|data| STANDARD.encode(data).into()),
        salt: event.salt.map(|salt| hex::encode(salt).into()),
        commitment: event.commitment.to_hex().into(),
        prev_hash: event.prev_hash.map(|hash| hash.to_hex().into()),
        hash: event.hash.to_hex().into(),
    };
    let mut out = Vec::with_capacity(1024 + event.data.as_ref().map_or(0, |data| data.len() * 4 / 3));
    // Neither a map with odd keys nor a failing writer is involved.
    serde_json::to_writer(&mut out, &line).expect("strings and numbers are JSON");
    out.push(b'\n');
    out
}

/// The event of one line, as it says; nothing is verified. The reason is for people.
pub fn parse(line: &[u8], texts: &mut Interner) -> Result<Recorded, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let time = |name: &str, text: &str| {
        let parsed = DateTime::parse_from_rfc3339(text).map_err(|error| format!("{name}: {error}"))?;
        Ok::<_, String>(parsed.to_utc())
    };
    let hash =
        |name: &str, text: &str| Hash::from_hex(text).ok_or_else(|| format!("{name} is not 64 hex digits"));
    let data = line.data.map(|data| STANDARD.decode(data.as_bytes()).map(Bytes::from));
    Ok(Recorded {
        position: line.position,
        stream: texts.share(&line.stream),
        revision: line.revision,
        id: line.id,
        event_type: texts.share(&line.event_type),
        schema_version: line.schema_version,
        occurred_at: time("occurred_at", &line.occurred_at)?,
        recorded_at: time("recorded_at", &line.recorded_at)?,
        actor: texts.share(&line.actor),
        correlation_id: line.correlation_id,
        causation_id: line.causation_id,
        tags: line.tags.iter().map(|tag| texts.share(tag)).collect(),
        data: data.transpose().map_err(|error| format!("data: {error}"))?,
        salt: line.salt.map(|salt| hash("salt", &salt).map(|hash| hash.0)).transpose()?,
        commitment: hash("commitment", &line.commitment)?,
        prev_hash: line.prev_hash.map(|prev| hash("prev_hash", &prev)).transpose()?,
        hash: hash("hash", &line.hash)?,
        rendered: OnceLock::new(),
    })
}

/// How far an export or import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last position that is done.
    pub position: Position,
    /// Events written so far.
    pub written: u64,
    /// Events that were there already (imports).
    pub skipped: u64,
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot read the log")]
    Read(#[from] ReadError),
    #[error("cannot write the export")]
    Write(#[from] std::io::Error),
}

/// Writes every event after `after`, up to where the log ends when the export gets there.
pub async fn export(
    log: &dyn Log,
    after: Position,
    out: &mut (dyn AsyncWrite + Unpin + Send),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ExportError> {
    let mut done = Progress { position: after, ..Progress::default() };
    let mut from = after + 1;
    let mut buffer = Vec::new();
    loop {
        let page = log.read_all(from, Direction::Forward, PAGE, &Filter::All).await?;
        buffer.clear();
        for event in &page.events {
            buffer.extend_from_slice(&line(event));
            done.position = event.position;
            done.written += 1;
        }
        out.write_all(&buffer).await?;
        progress(done);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    out.flush().await?;
    Ok(done)
}

/// Takes events over as another log had them.
#[async_trait::async_trait]
pub trait Restore: Send + Sync {
    /// Appends `events`, which go on from the head, with their own positions and times, durably and all or none.
    async fn restore(&self, events: Vec<Recorded>) -> Result<(), RestoreError>;
}

/// Why events cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("position {expected} is next, the import has {found}")]
    Gap { expected: Position, found: Position },
    #[error("event {id} at position {position} in {stream}: {what}")]
    Broken { position: Position, stream: String, id: Uuid, what: String },
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl RestoreError {
    /// `event` is not what it says.
    pub fn broken(event: &Recorded, what: String) -> Self {
        Self::Broken { position: event.position, stream: event.stream.to_string(), id: event.id, what }
    }

    /// Refuses an event that does not follow the last one of its stream.
    pub fn check_chain(event: &Recorded, head: Option<StreamHead>) -> Result<(), Self> {
        let follows = match head {
            None => event.revision == 0 && event.prev_hash.is_none(),
            Some(head) => event.revision == head.revision + 1 && event.prev_hash == Some(head.hash),
        };
        if follows {
            return Ok(());
        }
        let what = format!("revision {} does not follow where its stream is: {head:?}", event.revision);
        Err(Self::broken(event, what))
    }
}

/// Why an import ended early. What was taken over before stays; the same import goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("line {line}: {what}")]
    Line { line: u64, what: String },
    #[error("the log has another event at position {position} than the import: it is not its beginning")]
    Different { position: Position },
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("cannot read the log")]
    Read(#[from] ReadError),
    #[error("cannot read the import")]
    Input(#[from] std::io::Error),
}

/// Takes lines over into a log that is empty or a beginning of what they say.
pub async fn import<L: Log + Restore + ?Sized>(
    log: &L,
    input: &mut (dyn AsyncBufRead + Unpin + Send),
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Progress, ImportError> {
    let mut done = Progress::default();
    let mut ahead = VecDeque::new();
    let mut lines = 0;
    let mut ended = false;
    loop {
        while !ended && ahead.len() < AHEAD {
            let first_line = lines + 1;
            let chunk = read_chunk(input, &mut lines).await?;
            ended = chunk.is_empty();
            if !ended {
                ahead.push_back(tokio::task::spawn_blocking(move || parse_chunk(&chunk, first_line)));
            }
        }
        let Some(parsed) = ahead.pop_front() else { return Ok(done) };
        let mut events = parsed.await.map_err(std::io::Error::other)??;
        let there = already(log, &events).await?;
        let new = events.split_off(there);
        compare(log, &events).await?;
        done.skipped += events.len() as u64;
        if let Some(last) = new.last().or(events.last()) {
            done.position = last.position;
        }
        done.written += new.len() as u64;
        if !new.is_empty() {
            log.restore(new).await?;
        }
        progress(done);
    }
}

/// How many of these the log has, if it is a beginning of what they say.
async fn already<L: Log + ?Sized>(log: &L, events: &[Recorded]) -> Result<usize, ImportError> {
    if log.health().dense {
        let head = log.head().position;
        return Ok(events.partition_point(|event| event.position <= head));
    }
    // Positions are the engine's: its last event says how far it is.
    let page = log.read_all(Position::MAX, Direction::Backward, 1, &Filter::All).await?;
    let (Some(ours), Some(last)) = (page.events.first(), events.last()) else { return Ok(0) };
    match events.iter().position(|event| event.id == ours.id) {
        Some(place) => Ok(place + 1),
        None => Ok(if log.event(last.id).await?.is_some() { events.len() } else { 0 }),
    }
}

async fn compare<L: Log + ?Sized>(log: &L, events: &[Recorded]) -> Result<(), ImportError> {
    let Some(first) = events.first() else { return Ok(()) };
    let dense = log.health().dense;
    let mut from = first.position;
    if !dense {
        let ours = log.event(first.id).await?.ok_or(ImportError::Different { position: first.position })?;
        from = ours.position;
    }
    let mut rest = events.iter();
    while rest.len() > 0 {
        let page = log.read_all(from, Direction::Forward, rest.len(), &Filter::All).await?;
        for (ours, theirs) in page.events.iter().zip(rest.by_ref()) {
            if dense && ours.position != theirs.position || ours.hash != theirs.hash {
                return Err(ImportError::Different { position: theirs.position });
            }
        }
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    match rest.next() {
        Some(missing) => Err(ImportError::Different { position: missing.position }),
        None => Ok(()),
    }
}

async fn read_chunk(
    input: &mut (dyn AsyncBufRead + Unpin + Send),
    lines: &mut u64,
) -> Result<Vec<u8>, ImportError> {
    let mut chunk = Vec::with_capacity(CHUNK + LONGEST_LINE / 8);
    while chunk.len() < CHUNK {
        let before = chunk.len();
        let read = input.read_until(b'\n', &mut chunk).await?;
        if read == 0 {
            break;
        }
        *lines += 1;
        if chunk.len() - before > LONGEST_LINE {
            return Err(ImportError::Line {
                line: *lines,
                what: format!("it is longer than {LONGEST_LINE} bytes"),
            });
        }
    }
    Ok(chunk)
}

fn parse_chunk(chunk: &[u8], first_line: u64) -> Result<Vec<Recorded>, ImportError> {
    let mut texts = Interner::default();
    let mut events = Vec::with_capacity(chunk.len() / 1024);
    for (line, bytes) in (first_line..).zip(chunk.split(|&byte| byte == b'\n')) {
        if bytes.is_empty() {
            continue;
        }
        let event = parse(bytes, &mut texts).map_err(|what| ImportError::Line { line, what })?;
        events.push(event);
    }
    Ok(events)
}
