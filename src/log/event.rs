//! The **envelope**: what every event carries, whatever it says, and the hash that chains it to its stream.
//!
//! The leaf format is written down in `docs/log-format.md` and checked there by test vectors.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// An event's place in the whole log. It starts at 1, is compared and never subtracted; 0 is "before everything".
pub type Position = u64;

/// An event's place in its stream, from 0.
pub type Revision = u64;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Lower-case hexadecimal, 64 characters.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The inverse of [`Hash::to_hex`].
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", &self.to_hex()[..12])
    }
}

/// An event that is to be appended. Its id, salt and time were drawn once: a repeated append sends the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub id: Uuid,
    /// `<thing>.<past participle>`.
    pub event_type: String,
    pub schema_version: u16,
    /// When it happened, by the clock of whoever decided; microseconds count, finer is cut off.
    pub occurred_at: DateTime<Utc>,
    /// `user:<uuid>`, `key:<uuid>` or `system:<role>/<id>`.
    pub actor: String,
    /// The request that it all came from.
    pub correlation_id: Uuid,
    /// The event that led here.
    pub causation_id: Option<Uuid>,
    pub tags: Vec<String>,
    /// The exact bytes that are stored and hashed (JSON by the codec's choice; the log does not look inside).
    pub data: Bytes,
    /// 32 random bytes that keep a commitment to short data from being guessed.
    pub salt: [u8; 32],
}

/// An event as the log has it.
#[derive(Debug)]
pub struct Recorded {
    pub position: Position,
    pub stream: Arc<str>,
    pub revision: Revision,
    pub id: Uuid,
    pub event_type: Arc<str>,
    pub schema_version: u16,
    pub occurred_at: DateTime<Utc>,
    /// When the log took it; never decreases with position.
    pub recorded_at: DateTime<Utc>,
    pub actor: Arc<str>,
    pub correlation_id: Uuid,
    pub causation_id: Option<Uuid>,
    /// Sorted, without repeats.
    pub tags: Vec<Arc<str>>,
    /// `None` after a redaction, as is the salt.
    pub data: Option<Bytes>,
    pub salt: Option<[u8; 32]>,
    /// SHA-256 of salt and data; stays after a redaction.
    pub commitment: Hash,
    /// The leaf before it in its stream; `None` for revision 0.
    pub prev_hash: Option<Hash>,
    /// The leaf hash.
    pub hash: Hash,
    /// Where whoever serialises events for many subscribers keeps the result, so that it is made once.
    pub rendered: OnceLock<Bytes>,
}

impl Recorded {
    /// The same event in another log, where its position is `position`.
    pub fn placed_at(&self, position: Position) -> Self {
        let Self { stream, event_type, actor, tags, data, .. } = self;
        Self {
            position,
            stream: stream.clone(),
            revision: self.revision,
            id: self.id,
            event_type: event_type.clone(),
            schema_version: self.schema_version,
            occurred_at: self.occurred_at,
            recorded_at: self.recorded_at,
            actor: actor.clone(),
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            tags: tags.clone(),
            data: data.clone(),
            salt: self.salt,
            commitment: self.commitment,
            prev_hash: self.prev_hash,
            hash: self.hash,
            rendered: OnceLock::new(),
        }
    }

    /// Whether its data was removed by a redaction.
    pub fn is_redacted(&self) -> bool {
        self.data.is_none()
    }

    /// The rest of the first tag that starts with `prefix` (such as `project:`).
    pub fn tag(&self, prefix: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(prefix))
    }
}

/// The part of a stream's name before the first `-`, or all of it.
pub fn category(stream: &str) -> &str {
    stream.split_once('-').map_or(stream, |(category, _)| category)
}
