//! From rows to events, each verified: a row whose leaf, data or surroundings are not what was written is damage with a
//! place, never an event.

use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use tokio_postgres::Row;

use crate::ReadError;
use crate::event::{Hash, Position, Recorded};
use crate::leaf::{self, Beside, Interner};

/// In the order that [`event`] takes them, of a table that is called `e`.
macro_rules! columns {
    () => {
        "e.position, e.recorded_at, e.leaf, e.hash, e.salt, e.data, e.seal, e.stream, e.revision"
    };
}
pub(super) use columns;

/// What keeps the fields that the engine adds from changing unseen: the first 8 bytes of the SHA-256 of position,
/// recorded_at and leaf hash.
pub(super) fn seal(position: Position, recorded_at: i64, hash: &Hash) -> [u8; 8] {
    let mut bytes = [0; 48];
    bytes[..8].copy_from_slice(&position.to_be_bytes());
    bytes[8..16].copy_from_slice(&recorded_at.to_be_bytes());
    bytes[16..].copy_from_slice(&hash.0);
    let mut seal = [0; 8];
    seal.copy_from_slice(&leaf::hash(&bytes).0[..8]);
    seal
}

/// Where an event is stored, for people.
pub(super) fn place(schema: &str, position: Position) -> String {
    format!("{schema}.events, position {position}")
}

fn damaged(schema: &str, position: Position, what: impl ToString) -> ReadError {
    ReadError::Damaged { place: place(schema, position), what: what.to_string() }
}

fn array<const N: usize>(bytes: Option<&[u8]>) -> Option<[u8; N]> {
    bytes?.try_into().ok()
}

/// The event of a row of [`columns`].
pub(super) fn event(row: &Row, schema: &str, texts: &mut Interner) -> Result<Arc<Recorded>, ReadError> {
    let unreadable = |error: tokio_postgres::Error| ReadError::Unavailable(error.to_string());
    let position = row.try_get::<_, i64>(0).map_err(unreadable)? as Position;
    let micros: i64 = row.try_get(1).map_err(unreadable)?;
    let bytes = |column: usize| row.try_get::<_, Option<&[u8]>>(column).map_err(unreadable);
    let shape = |what: &str| damaged(schema, position, what);
    let recorded_at = DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| shape("its time of recording cannot be read"))?;
    let encoded = bytes(2)?.ok_or_else(|| shape("it has no leaf"))?;
    let hash = array(bytes(3)?).map(Hash).ok_or_else(|| shape("it has no leaf hash"))?;
    if array(bytes(6)?) != Some(seal(position, micros, &hash)) {
        return Err(shape("its position or time of recording is not what was sealed"));
    }
    let data = bytes(5)?.map(Bytes::copy_from_slice);
    let beside = Beside { position, recorded_at, salt: array(bytes(4)?), data, hash };
    let event = leaf::decode(encoded, beside, texts).map_err(|error| damaged(schema, position, error))?;
    leaf::check_encoded(encoded, &event).map_err(|error| damaged(schema, position, error))?;
    let (stream, revision): (&str, i64) =
        (row.try_get(7).map_err(unreadable)?, row.try_get(8).map_err(unreadable)?);
    if *event.stream != *stream || event.revision as i64 != revision {
        return Err(shape("the columns beside its leaf say another stream or revision"));
    }
    Ok(Arc::new(event))
}
