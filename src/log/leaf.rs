//! The **leaf**: the bytes of an event that are hashed, and how its data is committed to.
//!
//! `docs/log-format.md` is the normative text; `docs/log-vectors.json` are its vectors, which the tests here and an
//! independent script check. Invariant: two events that differ in anything but position, recorded_at or the presence of
//! redacted data have different leaf bytes, because every variable part carries its length and absence has its own mark.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::{Hash, Recorded, Revision};

/// The version of the encoding, its first byte.
pub const VERSION: u8 = 1;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// What binds an event to its data without saying it: SHA-256 of the salt and the exact bytes.
pub fn commitment(salt: &[u8; 32], data: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(data);
    Hash(hasher.finalize().into())
}

/// The leaf hash of encoded leaf bytes.
pub fn hash(encoded: &[u8]) -> Hash {
    Hash(Sha256::digest(encoded).into())
}

/// Everything a leaf says, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    pub stream: &'a str,
    pub revision: Revision,
    pub id: Uuid,
    pub event_type: &'a str,
    pub schema_version: u16,
    pub occurred_at: DateTime<Utc>,
    pub actor: &'a str,
    pub correlation_id: Uuid,
    pub causation_id: Option<Uuid>,
    /// Sorted by bytes, without repeats.
    pub tags: &'a [Arc<str>],
    pub commitment: Hash,
    pub prev_hash: Option<Hash>,
}

impl<'a> From<&'a Recorded> for Fields<'a> {
    fn from(event: &'a Recorded) -> Self {
        Self {
            stream: &event.stream,
            revision: event.revision,
            id: event.id,
            event_type: &event.event_type,
            schema_version: event.schema_version,
            occurred_at: event.occurred_at,
            actor: &event.actor,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            tags: &event.tags,
            commitment: event.commitment,
            prev_hash: event.prev_hash,
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // `prepare` refuses names that do not fit, long before this.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

fn put_optional(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push(ABSENT),
        Some(bytes) => {
            out.push(PRESENT);
            out.extend_from_slice(bytes);
        }
    }
}

/// The leaf bytes. Texts are at most 65,535 bytes long and tags at most 65,535 many; [`crate::prepare`] sees to it.
pub fn encode(fields: &Fields<'_>) -> Vec<u8> {
    let texts = fields.stream.len() + fields.event_type.len() + fields.actor.len();
    let tags: usize = fields.tags.iter().map(|tag| tag.len() + 2).sum();
    let mut out = Vec::with_capacity(160 + texts + tags);
    out.push(VERSION);
    put_text(&mut out, fields.stream);
    out.extend_from_slice(&fields.revision.to_be_bytes());
    out.extend_from_slice(fields.id.as_bytes());
    put_text(&mut out, fields.event_type);
    out.extend_from_slice(&fields.schema_version.to_be_bytes());
    out.extend_from_slice(&fields.occurred_at.timestamp_micros().to_be_bytes());
    put_text(&mut out, fields.actor);
    out.extend_from_slice(fields.correlation_id.as_bytes());
    put_optional(&mut out, fields.causation_id.as_ref().map(|id| &id.as_bytes()[..]));
    let count = u16::try_from(fields.tags.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&count.to_be_bytes());
    for tag in &fields.tags[..usize::from(count)] {
        put_text(&mut out, tag);
    }
    out.extend_from_slice(&fields.commitment.0);
    put_optional(&mut out, fields.prev_hash.as_ref().map(|hash| &hash.0[..]));
    out
}

/// Why leaf bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("leaf version {0} is not known")]
    Version(u8),
    #[error("the leaf ends early")]
    Short,
    #[error("the leaf has bytes after its end")]
    Long,
    #[error("a text of the leaf is not UTF-8")]
    Text,
    #[error("a presence mark of the leaf is neither 0 nor 1")]
    Mark,
    #[error("a time of the leaf is out of range")]
    Time,
}

/// Keeps one copy of texts that come again and again while events are decoded.
///
/// A table of the latest text in each of a fixed number of places: it never grows, and two texts that share a place only
/// cost each other a copy.
#[derive(Debug)]
pub struct Interner {
    latest: Vec<Option<Arc<str>>>,
}

impl Default for Interner {
    fn default() -> Self {
        Self { latest: vec![None; Self::PLACES] }
    }
}

impl Interner {
    const PLACES: usize = 4096;

    /// The place of a text: FNV-1a over words. Who writes the texts gains nothing by making them collide.
    fn place(text: &str) -> usize {
        const PRIME: u64 = 0x0100_0000_01b3;
        let (words, rest) = text.as_bytes().as_chunks::<8>();
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ text.len() as u64;
        for word in words {
            hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
            hash ^= hash >> 32;
        }
        for byte in rest {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
        (hash ^ (hash >> 29)) as usize % Self::PLACES
    }

    /// The shared copy of `text`.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        let latest = &mut self.latest[Self::place(text)];
        match latest {
            Some(known) if **known == *text => Arc::clone(known),
            _ => Arc::clone(latest.insert(text.into())),
        }
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = u16::from_be_bytes(self.array()?);
        std::str::from_utf8(self.take(length.into())?).map_err(|_| Malformed::Text)
    }

    fn optional<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Malformed> {
        match self.array::<1>()?[0] {
            ABSENT => Ok(None),
            PRESENT => self.array().map(Some),
            _ => Err(Malformed::Mark),
        }
    }
}

/// What an engine keeps beside the leaf bytes.
#[derive(Debug)]
pub struct Beside {
    pub position: u64,
    pub recorded_at: DateTime<Utc>,
    pub salt: Option<[u8; 32]>,
    pub data: Option<bytes::Bytes>,
    /// The leaf hash as it was stored, to be compared by whoever verifies.
    pub hash: Hash,
}

/// Reads leaf bytes back into an event. Nothing is verified but the shape; see [`check`].
pub fn decode(encoded: &[u8], beside: Beside, texts: &mut Interner) -> Result<Recorded, Malformed> {
    let mut cursor = Cursor(encoded);
    match cursor.array::<1>()?[0] {
        VERSION => {}
        other => return Err(Malformed::Version(other)),
    }
    let stream = texts.share(cursor.text()?);
    let revision = u64::from_be_bytes(cursor.array()?);
    let id = Uuid::from_bytes(cursor.array()?);
    let event_type = texts.share(cursor.text()?);
    let schema_version = u16::from_be_bytes(cursor.array()?);
    let micros = i64::from_be_bytes(cursor.array()?);
    let occurred_at = DateTime::from_timestamp_micros(micros).ok_or(Malformed::Time)?;
    let actor = texts.share(cursor.text()?);
    let correlation_id = Uuid::from_bytes(cursor.array()?);
    let causation_id = cursor.optional()?.map(Uuid::from_bytes);
    let count = u16::from_be_bytes(cursor.array()?);
    let mut tags = Vec::with_capacity(usize::from(count).min(64));
    for _ in 0..count {
        tags.push(texts.share(cursor.text()?));
    }
    let commitment = Hash(cursor.array()?);
    let prev_hash = cursor.optional()?.map(Hash);
    if !cursor.0.is_empty() {
        return Err(Malformed::Long);
    }
    let Beside { position, recorded_at, salt, data, hash } = beside;
    Ok(Recorded {
        position,
        stream,
        revision,
        id,
        event_type,
        schema_version,
        occurred_at,
        recorded_at,
        actor,
        correlation_id,
        causation_id,
        tags,
        data,
        salt,
        commitment,
        prev_hash,
        hash,
        rendered: std::sync::OnceLock::new(),
    })
}

/// What does not hold of an event on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("its leaf hash is not the hash of what it says")]
    Leaf,
    #[error("its data is not what its commitment is to")]
    Data,
    #[error("it has data without salt, or salt without data")]
    HalfRedacted,
}

/// Recomputes the leaf hash and, unless redacted, the commitment.
pub fn check(event: &Recorded) -> Result<(), Broken> {
    check_encoded(&encode(&event.into()), event)
}

/// As [`check`], for who has the stored leaf bytes at hand.
pub fn check_encoded(encoded: &[u8], event: &Recorded) -> Result<(), Broken> {
    if hash(encoded) != event.hash {
        return Err(Broken::Leaf);
    }
    match (&event.salt, &event.data) {
        (Some(salt), Some(data)) if commitment(salt, data) == event.commitment => Ok(()),
        (Some(_), Some(_)) => Err(Broken::Data),
        (None, None) => Ok(()),
        _ => Err(Broken::HalfRedacted),
    }
}
