//! Asking the index: which positions, in which order. Each answer costs what it returns, plus at most one run on either side.

use std::ops::RangeInclusive;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use crate::event::{Position, Revision};
use crate::{Direction, Filter};

use super::{index, runs};

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The run in columns `column` and the next.
fn run(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Position>> {
    let malformed = || {
        let error = "a run of positions cannot be read";
        rusqlite::Error::FromSqlConversionFailure(column + 1, Type::Blob, error.into())
    };
    runs::decode(row.get(column)?, row.get_ref(column + 1)?.as_blob()?).ok_or_else(malformed)
}

/// The last run that starts at or before `bound`, for those that start their reading in its middle.
fn start(index: &Connection, table: &str, key: &str, value: &dyn ToSql, bound: i64) -> rusqlite::Result<i64> {
    let sql =
        format!("SELECT first FROM {table} WHERE {key} = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1");
    let first = index.prepare_cached(&sql)?.query_row((value, bound), |row| row.get(0)).optional()?;
    Ok(first.unwrap_or(0))
}

/// Up to `most` positions of one key of one table of runs.
fn positions(
    index: &Connection,
    (table, key, value): (&str, &str, &dyn ToSql),
    within: &RangeInclusive<Position>,
    direction: Direction,
    most: usize,
) -> rusqlite::Result<Vec<Position>> {
    let (order, low) = match direction {
        Direction::Forward => ("", start(index, table, key, value, signed(*within.start()))?),
        Direction::Backward => ("DESC", 0),
    };
    let sql = format!(
        "SELECT first, others FROM {table} WHERE {key} = ?1 AND first BETWEEN ?2 AND ?3 ORDER BY first {order}"
    );
    let mut statement = index.prepare_cached(&sql)?;
    let mut rows = statement.query((value, low, signed(*within.end())))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut run = run(row, 0)?;
        if direction == Direction::Backward {
            run.reverse();
        }
        found.extend(run.into_iter().filter(|position| within.contains(position)));
        if found.len() >= most {
            break;
        }
    }
    found.truncate(most);
    Ok(found)
}

fn id(index: &Connection, sql: &str, text: &str) -> rusqlite::Result<Option<i64>> {
    index.prepare_cached(sql)?.query_row([text], |row| row.get(0)).optional()
}

fn stream_id(index: &Connection, stream: &str) -> rusqlite::Result<Option<i64>> {
    id(index, "SELECT id FROM streams WHERE name = ?1", stream)
}

/// Up to `most` positions `within` that match `filter`.
pub(crate) fn places(
    index: &Connection,
    filter: &Filter,
    within: RangeInclusive<Position>,
    direction: Direction,
    most: usize,
) -> rusqlite::Result<Vec<Position>> {
    match filter {
        Filter::Stream(name) => stream_places(index, name, &within, direction, most),
        Filter::Correlation(correlation) => {
            let key: &[u8] = correlation.as_bytes();
            positions(index, ("correlation_positions", "correlation", &key), &within, direction, most)
        }
        Filter::All | Filter::Tag(_) | Filter::Category(_) => {
            let Some(word) = index::word(filter) else { return Ok(Vec::new()) };
            match id(index, "SELECT id FROM words WHERE word = ?1", &word)? {
                Some(word) => positions(index, ("word_positions", "word", &word), &within, direction, most),
                None => Ok(Vec::new()),
            }
        }
    }
}

/// A stream's positions rise with its revisions, which are its key: the place to start is found by halving.
fn stream_places(
    index: &Connection,
    stream: &str,
    within: &RangeInclusive<Position>,
    direction: Direction,
    most: usize,
) -> rusqlite::Result<Vec<Position>> {
    let Some(id) = stream_id(index, stream)? else { return Ok(Vec::new()) };
    let bound = match direction {
        Direction::Forward => *within.start(),
        Direction::Backward => *within.end(),
    };
    // The run that starts last at or before `bound`: by halving the revisions of the starts.
    let mut run_at = index.prepare_cached(
        "SELECT revision, first FROM revisions WHERE stream = ?1 AND revision <= ?2 ORDER BY revision DESC LIMIT 1",
    )?;
    let mut at = |revision: i64| -> rusqlite::Result<Option<(i64, i64)>> {
        run_at.query_row((id, revision), |row| Ok((row.get(0)?, row.get(1)?))).optional()
    };
    let Some((last, _)) = at(i64::MAX)? else { return Ok(Vec::new()) };
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low + 1) / 2;
        match at(middle)? {
            Some((revision, first)) if first > signed(bound) => high = (revision - 1).max(low),
            _ => low = middle,
        }
    }
    let start = at(low)?.map_or(0, |(revision, _)| revision);
    let sql = match direction {
        Direction::Forward => {
            "SELECT first, others FROM revisions WHERE stream = ?1 AND revision >= ?2 ORDER BY revision"
        }
        Direction::Backward => {
            "SELECT first, others FROM revisions WHERE stream = ?1 AND revision <= ?2 ORDER BY revision DESC"
        }
    };
    let mut statement = index.prepare_cached(sql)?;
    let mut rows = statement.query((id, start))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut run = run(row, 0)?;
        if direction == Direction::Forward && run[0] > *within.end() {
            break;
        }
        if direction == Direction::Backward {
            run.reverse();
        }
        found.extend(run.into_iter().filter(|position| within.contains(position)));
        if found.len() >= most {
            break;
        }
    }
    found.truncate(most);
    Ok(found)
}

/// Up to `limit` revisions of a stream from `from` on, none after position `through`.
pub(super) fn revisions(
    index: &Connection,
    stream: &str,
    from: Revision,
    direction: Direction,
    limit: usize,
    through: Position,
) -> rusqlite::Result<Vec<(Revision, Position)>> {
    let Some(id) = stream_id(index, stream)? else { return Ok(Vec::new()) };
    let sql = match direction {
        Direction::Forward => {
            "SELECT revision, first, others FROM revisions WHERE stream = ?1 AND revision >= coalesce(
                 (SELECT max(revision) FROM revisions WHERE stream = ?1 AND revision <= ?2), 0) ORDER BY revision"
        }
        Direction::Backward => {
            "SELECT revision, first, others FROM revisions WHERE stream = ?1 AND revision <= ?2
             ORDER BY revision DESC"
        }
    };
    let mut statement = index.prepare_cached(sql)?;
    let mut rows = statement.query((id, signed(from)))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut run: Vec<_> = (row.get::<_, i64>(0)? as Revision..).zip(run(row, 1)?).collect();
        if direction == Direction::Backward {
            run.reverse();
        }
        let wanted = |&(revision, position): &(Revision, Position)| {
            let fits = match direction {
                Direction::Forward => revision >= from,
                Direction::Backward => revision <= from,
            };
            fits && position <= through
        };
        found.extend(run.into_iter().filter(wanted));
        if found.len() >= limit {
            break;
        }
    }
    found.truncate(limit);
    Ok(found)
}
