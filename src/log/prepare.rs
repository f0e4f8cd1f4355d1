//! What every engine does with an append before it queues it: refuse what is over a limit, put it in canonical form, and
//! hash it. An expectation names the leaf before, so the whole chain of an append is computed here, on the caller's
//! thread, and a writer has nothing left to do but to compare and write.

use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};

use crate::event::{Hash, NewEvent, Position, Recorded, Revision};
use crate::{AppendError, Appended, Expected, MAX_APPEND_BYTES, MAX_EVENT_BYTES, StreamHead, leaf};

/// The longest name of a stream, event type, actor or tag, in bytes.
pub const MAX_NAME_BYTES: usize = 512;
/// The most tags of one event.
pub const MAX_TAGS: usize = 64;

/// An event that waits for its position.
#[derive(Debug)]
pub struct Unplaced {
    /// Position 0, and recorded_at as occurred_at: both are the engine's to set.
    pub event: Recorded,
    /// The leaf bytes, whose hash is `event.hash`.
    pub leaf: Vec<u8>,
}

impl Unplaced {
    /// Its encoded size, which the limits are about.
    pub fn bytes(&self) -> usize {
        self.leaf.len() + 32 + self.event.data.as_ref().map_or(0, bytes::Bytes::len)
    }
}

/// An append in canonical form.
#[derive(Debug)]
pub struct Prepared {
    pub stream: Arc<str>,
    pub expected: Expected,
    pub events: Vec<Unplaced>,
    /// Its encoded size.
    pub bytes: usize,
}

/// Cuts what is finer than a microsecond off, as the leaf does.
pub fn to_micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

impl Prepared {
    /// Checks the limits, sorts the tags, and chains the hashes from what is expected.
    pub fn new(stream: &str, expected: Expected, events: Vec<NewEvent>) -> Result<Self, AppendError> {
        let refuse = |reason: String| AppendError::Unacceptable { stream: shorten(stream), reason };
        if events.is_empty() {
            return Err(refuse("it has no events".into()));
        }
        check_name("the stream's name", stream).map_err(refuse)?;
        let (mut revision, mut prev_hash) = match expected {
            Expected::NoStream => (0, None),
            Expected::At { revision, hash } => match revision.checked_add(1) {
                Some(next) if next < i64::MAX as u64 => (next, Some(hash)),
                _ => return Err(refuse(format!("revision {revision} is out of range"))),
            },
        };
        let stream: Arc<str> = stream.into();
        let mut bytes = 0;
        let mut prepared = Vec::with_capacity(events.len());
        for (index, event) in events.into_iter().enumerate() {
            let unplaced = unplaced(&stream, revision, prev_hash, event)
                .map_err(|reason| refuse(format!("event {index}: {reason}")))?;
            let size = unplaced.bytes();
            if size > MAX_EVENT_BYTES {
                return Err(refuse(format!(
                    "event {index} ({}) has {size} bytes encoded, {MAX_EVENT_BYTES} are allowed",
                    unplaced.event.event_type
                )));
            }
            bytes += size;
            prev_hash = Some(unplaced.event.hash);
            revision += 1;
            prepared.push(unplaced);
        }
        if bytes > MAX_APPEND_BYTES {
            return Err(refuse(format!(
                "its {} events have {bytes} bytes encoded, {MAX_APPEND_BYTES} are allowed in one append",
                prepared.len()
            )));
        }
        Ok(Self { stream, expected, events: prepared, bytes })
    }

    /// The revision of its first event.
    pub fn first_revision(&self) -> Revision {
        self.events[0].event.revision
    }

    /// Where the stream is once this is in it. Its hash proves every event of the append: each leaf names the one before.
    pub fn head(&self) -> StreamHead {
        let last = &self.events[self.events.len() - 1].event;
        StreamHead { revision: last.revision, hash: last.hash }
    }

    /// The answer, given the position of the last event.
    pub fn answer(&self, position: Position, repeated: bool) -> Appended {
        Appended { first_revision: self.first_revision(), head: self.head(), position, repeated }
    }

    /// The refusal, given where the stream is.
    pub fn conflict(&self, actual: Option<StreamHead>) -> AppendError {
        AppendError::Conflict { stream: self.stream.to_string(), actual }
    }
}

fn unplaced(
    stream: &Arc<str>,
    revision: Revision,
    prev_hash: Option<Hash>,
    event: NewEvent,
) -> Result<Unplaced, String> {
    check_name("its type", &event.event_type)?;
    check_name("its actor", &event.actor)?;
    if event.tags.len() > MAX_TAGS {
        return Err(format!("it has {} tags, {MAX_TAGS} are allowed", event.tags.len()));
    }
    for tag in &event.tags {
        check_name("a tag", tag)?;
    }
    let mut tags: Vec<Arc<str>> = event.tags.into_iter().map(Arc::from).collect();
    tags.sort_unstable();
    tags.dedup();
    let occurred_at = to_micros(event.occurred_at);
    let mut recorded = Recorded {
        position: 0,
        stream: Arc::clone(stream),
        revision,
        id: event.id,
        event_type: event.event_type.into(),
        schema_version: event.schema_version,
        occurred_at,
        recorded_at: occurred_at,
        actor: event.actor.into(),
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
        tags,
        commitment: leaf::commitment(&event.salt, &event.data),
        data: Some(event.data),
        salt: Some(event.salt),
        prev_hash,
        hash: Hash::default(),
        rendered: OnceLock::new(),
    };
    let leaf = leaf::encode(&(&recorded).into());
    recorded.hash = leaf::hash(&leaf);
    Ok(Unplaced { event: recorded, leaf })
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.len() {
        0 => Err(format!("{what} is empty")),
        n if n > MAX_NAME_BYTES => Err(format!("{what} has {n} bytes, {MAX_NAME_BYTES} are allowed")),
        _ if name.contains('\0') => Err(format!("{what} has a NUL in it")),
        _ => Ok(()),
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::sample;

    #[test]
    fn an_append_is_chained_before_any_engine_sees_it() {
        let prepared = Prepared::new("s-1", Expected::NoStream, vec![sample("a"), sample("b")]).unwrap();
        let [first, second] = &prepared.events[..] else { panic!("two events") };
        assert_eq!((first.event.revision, first.event.prev_hash), (0, None));
        assert_eq!((second.event.revision, second.event.prev_hash), (1, Some(first.event.hash)));
        assert_eq!(prepared.head(), StreamHead { revision: 1, hash: second.event.hash });
        assert!(leaf::check(&second.event).is_ok());
    }

    #[test]
    fn tags_are_sorted_and_said_once() {
        let mut event = sample("a");
        event.tags = vec!["b".into(), "a".into(), "b".into()];
        let prepared = Prepared::new("s-1", Expected::NoStream, vec![event]).unwrap();
        let tags: Vec<&str> = prepared.events[0].event.tags.iter().map(|tag| &**tag).collect();
        assert_eq!(tags, ["a", "b"]);
    }

    #[test]
    fn a_name_that_cannot_be_is_refused_with_its_reason() {
        for (name, reason) in [("", "empty"), (&"x".repeat(600)[..], "600 bytes"), ("a\0b", "NUL")] {
            let refusal = Prepared::new(name, Expected::NoStream, vec![sample("a")]).unwrap_err();
            assert!(refusal.to_string().contains(reason), "{refusal}");
        }
    }
}
