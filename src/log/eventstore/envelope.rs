//! The **envelope** on the server: what of it is the server's own (id, type, data, revision, position, time) and what is in
//! the metadata of the event, as JSON, version 1. `docs/log-format.md` lists the fields.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use eventstore::RecordedEvent;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{Hash, Position, Recorded};
use crate::leaf::{self, Interner};
use crate::{ReadError, prepare::to_micros};

/// The version of the metadata.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Metadata {
    /// Says that the event is one of ours.
    beampipe: u32,
    schema_version: u16,
    /// Microseconds since 1970, as in the leaf.
    occurred_at: i64,
    actor: String,
    /// These two have the names by which the server's own tools know them.
    #[serde(rename = "$correlationId")]
    correlation_id: Uuid,
    #[serde(rename = "$causationId", default, skip_serializing_if = "Option::is_none")]
    causation_id: Option<Uuid>,
    tags: Vec<String>,
    salt: String,
    commitment: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prev_hash: Option<String>,
    hash: String,
    /// The event whose redaction this one records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redacts: Option<Uuid>,
    /// Of an event that was taken over from another log: when that one recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recorded_at: Option<i64>,
    /// Of an event that was taken over from another log without salt and data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    redacted: bool,
}

/// What an event brings with it beside its envelope.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Brings {
    /// The event whose redaction it records.
    pub redacts: Option<Uuid>,
    /// Whether it keeps the time at which another log recorded it.
    pub taken_over: bool,
}

/// The metadata of `event`.
pub(super) fn encode(event: &Recorded, brings: Brings) -> Bytes {
    let metadata = Metadata {
        beampipe: VERSION,
        schema_version: event.schema_version,
        occurred_at: event.occurred_at.timestamp_micros(),
        actor: event.actor.to_string(),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        tags: event.tags.iter().map(ToString::to_string).collect(),
        salt: event.salt.map(hex::encode).unwrap_or_default(),
        commitment: event.commitment.to_hex(),
        prev_hash: event.prev_hash.map(Hash::to_hex),
        hash: event.hash.to_hex(),
        redacts: brings.redacts,
        recorded_at: brings.taken_over.then(|| event.recorded_at.timestamp_micros()),
        redacted: event.is_redacted(),
    };
    serde_json::to_vec(&metadata).expect("texts and numbers are JSON").into()
}

/// One of our events, as the server has it: with its data, even if a later event redacts it.
pub(super) struct Ours {
    pub event: Recorded,
    pub redacts: Option<Uuid>,
}

/// Whether a name is one that the server or we ourselves give to streams beside the log.
pub(super) fn is_beside(stream: &str) -> bool {
    stream.starts_with('$') || stream.starts_with(super::presence::PREFIX)
}

/// The name by which the log knows a stream of the server; `None` where it is not in the log.
pub(super) fn name_of<'a>(event: &'a RecordedEvent, namespace: &str) -> Option<&'a str> {
    event.stream_id().strip_prefix(namespace).filter(|stream| !is_beside(stream))
}

fn damaged(event: &RecordedEvent, what: impl Into<String>) -> ReadError {
    let place = format!("stream {} revision {} ({})", event.stream_id(), event.revision, event.position);
    ReadError::Damaged { place, what: what.into() }
}

/// The time at which the server took the event, in microseconds. The client's own reading of it stops at seconds.
pub(super) fn created(event: &RecordedEvent) -> DateTime<Utc> {
    let ticks = event.metadata.get("created").and_then(|ticks| ticks.parse::<i64>().ok());
    let precise = ticks.and_then(|ticks| DateTime::from_timestamp_micros(ticks / 10));
    to_micros(precise.unwrap_or(event.created))
}

/// Reads and verifies an event. `None` where it is nobody's of ours.
pub(super) fn decode(
    event: &RecordedEvent,
    namespace: &str,
    texts: &mut Interner,
) -> Result<Option<Ours>, ReadError> {
    let Some(stream) = name_of(event, namespace) else { return Ok(None) };
    if !is_marked(&event.custom_metadata) {
        return Ok(None);
    }
    let metadata: Metadata = serde_json::from_slice(&event.custom_metadata)
        .map_err(|error| damaged(event, format!("its metadata cannot be read: {error}")))?;
    if metadata.beampipe != VERSION {
        return Err(damaged(
            event,
            format!("its metadata has version {}, not known here", metadata.beampipe),
        ));
    }
    let position = position(event)?;
    let hash = |name: &str, text: &str| {
        Hash::from_hex(text).ok_or_else(|| damaged(event, format!("its {name} is not 64 hex digits")))
    };
    let occurred_at = DateTime::from_timestamp_micros(metadata.occurred_at)
        .ok_or_else(|| damaged(event, "its time is out of range"))?;
    let recorded_at = match metadata.recorded_at {
        None => created(event),
        Some(micros) => DateTime::from_timestamp_micros(micros)
            .ok_or_else(|| damaged(event, "its time of recording is out of range"))?,
    };
    let (data, salt) = match metadata.redacted {
        true => (None, None),
        false => (Some(event.data.clone()), Some(hash("salt", &metadata.salt)?.0)),
    };
    let read = Recorded {
        position,
        stream: texts.share(stream),
        revision: event.revision,
        id: event.id,
        event_type: texts.share(&event.event_type),
        schema_version: metadata.schema_version,
        occurred_at,
        recorded_at,
        actor: texts.share(&metadata.actor),
        correlation_id: metadata.correlation_id,
        causation_id: metadata.causation_id,
        tags: metadata.tags.iter().map(|tag| texts.share(tag)).collect(),
        data,
        salt,
        commitment: hash("commitment", &metadata.commitment)?,
        prev_hash: metadata.prev_hash.as_deref().map(|prev| hash("prev_hash", prev)).transpose()?,
        hash: hash("hash", &metadata.hash)?,
        rendered: OnceLock::new(),
    };
    leaf::check(&read).map_err(|broken| damaged(event, broken.to_string()))?;
    Ok(Some(Ours { event: read, redacts: metadata.redacts }))
}

/// Where the event is in the whole log.
fn position(event: &RecordedEvent) -> Result<Position, ReadError> {
    let at = event.position;
    if at.commit == u64::MAX {
        let what = "the server does not say its position: EventStoreDB 22.6 or later is needed";
        return Err(damaged(event, what));
    }
    if at.commit != at.prepare || at.commit == 0 || at.commit > i64::MAX as u64 {
        // Several events of one explicit transaction share a commit position; ours are never written so.
        return Err(damaged(event, "its position is none that an append of ours has"));
    }
    Ok(at.commit)
}

fn is_marked(metadata: &[u8]) -> bool {
    let fields = serde_json::from_slice::<BTreeMap<&str, serde::de::IgnoredAny>>(metadata);
    fields.is_ok_and(|fields| fields.contains_key("beampipe"))
}

/// What an event says once what is known of it elsewhere counts: a later time of recording, a redaction.
pub(super) fn amend(mut event: Recorded, late: Option<DateTime<Utc>>, redacted: bool) -> Arc<Recorded> {
    if let Some(late) = late {
        event.recorded_at = late;
    }
    Arc::new(if redacted { crate::redaction::without_data(&event) } else { event })
}
