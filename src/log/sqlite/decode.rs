//! From rows to events, each verified: a row whose leaf or data does not hash to what it should is damage with a place,
//! never an event.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::event::{Hash, Position, Recorded};
use crate::leaf::{self, Beside, Interner};
use crate::{Direction, ReadError};

use super::schema::read_error;

/// In the order that [`event`] takes them.
pub(super) const COLUMNS: &str = "position, recorded_at, leaf, hash, salt, data, seal";

/// What keeps the fields that the engine adds from changing unseen: the first 8 bytes of the SHA-256 of position,
/// recorded_at and leaf hash.
pub(super) fn seal(position: Position, recorded_at: i64, hash: &Hash) -> i64 {
    let mut bytes = [0; 48];
    bytes[..8].copy_from_slice(&position.to_be_bytes());
    bytes[8..16].copy_from_slice(&recorded_at.to_be_bytes());
    bytes[16..].copy_from_slice(&hash.0);
    leaf::hash(&bytes).0.first_chunk().map_or(0, |first| i64::from_be_bytes(*first))
}

/// Where an event is stored, for people.
pub(super) fn place(log: &Path, position: Position) -> String {
    format!("{}, position {position}", log.display())
}

fn damaged(log: &Path, position: Position, what: impl ToString) -> ReadError {
    ReadError::Damaged { place: place(log, position), what: what.to_string() }
}

fn blob<'a>(row: &'a Row<'_>, column: usize) -> Option<&'a [u8]> {
    match row.get_ref(column) {
        Ok(ValueRef::Blob(bytes)) => Some(bytes),
        _ => None,
    }
}

fn array<const N: usize>(row: &Row<'_>, column: usize) -> Option<[u8; N]> {
    blob(row, column)?.try_into().ok()
}

/// The event of a row of [`COLUMNS`].
pub(super) fn event(row: &Row<'_>, log: &Path, texts: &mut Interner) -> Result<Arc<Recorded>, ReadError> {
    let position = row.get::<_, i64>(0).map_err(|error| read_error(log, &error))? as Position;
    let shape = |what: &str| damaged(log, position, what);
    let micros = row.get(1).ok();
    let recorded_at = micros.and_then(DateTime::from_timestamp_micros);
    let recorded_at = recorded_at.ok_or_else(|| shape("its time of recording cannot be read"))?;
    let encoded = blob(row, 2).ok_or_else(|| shape("it has no leaf"))?;
    let hash = array(row, 3).map(Hash).ok_or_else(|| shape("it has no leaf hash"))?;
    if row.get(6).ok() != micros.map(|micros| seal(position, micros, &hash)) {
        return Err(shape("its position or time of recording is not what was sealed"));
    }
    let salt = array(row, 4);
    let data = blob(row, 5).map(Bytes::copy_from_slice);
    let beside = Beside { position, recorded_at, salt, data, hash };
    let event = leaf::decode(encoded, beside, texts).map_err(|error| damaged(log, position, error))?;
    leaf::check_encoded(encoded, &event).map_err(|error| damaged(log, position, error))?;
    Ok(Arc::new(event))
}

/// Events in order of position, without a gap. Gives at most `most`, and no more than about `bytes` of them; fewer, but
/// not none, before damage.
pub(super) fn scan(
    events: &Connection,
    log: &Path,
    from: Position,
    direction: Direction,
    most: usize,
    bytes: usize,
    texts: &mut Interner,
) -> Result<Vec<Arc<Recorded>>, ReadError> {
    let fail = |error: rusqlite::Error| read_error(log, &error);
    let sql = match direction {
        Direction::Forward => {
            format!("SELECT {COLUMNS} FROM events WHERE position >= ?1 ORDER BY position LIMIT ?2")
        }
        Direction::Backward => {
            format!("SELECT {COLUMNS} FROM events WHERE position <= ?1 ORDER BY position DESC LIMIT ?2")
        }
    };
    let mut statement = events.prepare_cached(&sql).map_err(fail)?;
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let mut rows = statement.query((from, i64::try_from(most).unwrap_or(i64::MAX))).map_err(fail)?;
    let mut found: Vec<Arc<Recorded>> = Vec::with_capacity(most.min(4096));
    let mut size = 0;
    let mut expected = match direction {
        Direction::Forward => Some(from.max(1) as Position),
        Direction::Backward => None,
    };
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(_) if !found.is_empty() => break,
            Err(error) => return Err(fail(error)),
        };
        let event = event(row, log, texts).and_then(|event| match expected {
            Some(expected) if event.position != expected => {
                Err(damaged(log, expected, format!("it is missing; position {} follows", event.position)))
            }
            _ => Ok(event),
        });
        let event = match event {
            Ok(event) => event,
            // What is before the damage is good: it is given first, and the damage to whoever asks further.
            Err(_) if !found.is_empty() => break,
            Err(error) => return Err(error),
        };
        expected = match direction {
            Direction::Forward => event.position.checked_add(1),
            Direction::Backward => event.position.checked_sub(1),
        };
        size += event.data.as_ref().map_or(0, Bytes::len);
        found.push(event);
        if size > bytes {
            break;
        }
    }
    Ok(found)
}

/// Up to `most` events from `from` on.
pub(super) fn range(
    events: &Connection,
    log: &Path,
    from: Position,
    most: usize,
    texts: &mut Interner,
) -> Result<Vec<Arc<Recorded>>, ReadError> {
    scan(events, log, from, Direction::Forward, most, 32 << 20, texts)
}

/// The event at `position`.
pub(super) fn at(
    events: &Connection,
    log: &Path,
    position: Position,
    texts: &mut Interner,
) -> Result<Arc<Recorded>, ReadError> {
    let fail = |error: rusqlite::Error| read_error(log, &error);
    let sql = format!("SELECT {COLUMNS} FROM events WHERE position = ?1");
    let mut statement = events.prepare_cached(&sql).map_err(fail)?;
    let mut rows = statement.query([position as i64]).map_err(fail)?;
    match rows.next().map_err(fail)? {
        Some(row) => event(row, log, texts),
        None => Err(damaged(log, position, "the index knows it and the log does not have it")),
    }
}
