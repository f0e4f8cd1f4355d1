//! `verify`: reads the whole log and recomputes everything that can be recomputed. Reports every fault with its place
//! and goes on behind it.
//!
//! It works on connections of its own and changes nothing, so it may run while another process writes: it checks
//! the log up to where it ended when the check began.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use crate::event::{Hash, Position, Recorded, Revision, category};
use crate::leaf::Interner;
use crate::verify::{Entries, Fault, MOST_FAULTS, VerifyProgress, VerifyReport};
use crate::{Head, ReadError};

use super::schema::{open_reader, read_error};
use super::{decode, index, last, runs};

const STEP: i64 = 4096;

/// What the index must hold, or does.
#[derive(Debug, Default, PartialEq, Eq)]
struct Indexed {
    revisions: Entries,
    words: Entries,
    correlations: Entries,
    ids: Entries,
}

impl Indexed {
    fn add(&mut self, event: &Recorded) {
        let position = event.position as i64;
        self.revisions.add((&*event.stream, event.revision as i64, position));
        self.words.add((format!("c:{}", category(&event.stream)), position));
        for tag in &event.tags {
            self.words.add((format!("t:{tag}"), position));
        }
        self.correlations.add((event.correlation_id.as_bytes(), position));
        self.ids.add((event.id.as_bytes(), position));
    }
}

struct Run<'a> {
    log: &'a Path,
    report: VerifyReport,
    /// By digest of the name: a log may have more names than fit in memory.
    streams: HashMap<[u8; 16], (Revision, Hash)>,
    expected: Indexed,
    indexed_through: Position,
    recorded_at: i64,
}

pub(super) fn run(log: &Path, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyReport, ReadError> {
    let fail = |error: rusqlite::Error| read_error(log, &error);
    // The index first: it is never ahead of a log that is looked at later.
    let index = index::open_for_reading(log).ok();
    if let Some(index) = &index {
        index.execute_batch("BEGIN").map_err(|e| read_error(&index::path(log), &e))?;
    }
    let indexed = index.as_ref().map(index::through).transpose().unwrap_or_default().unwrap_or_default();
    let events = open_reader(log).map_err(fail)?;
    let end = last(&events).map_err(fail)?.map_or(Head::default(), |(head, _)| head);
    let mut run = Run {
        log,
        report: VerifyReport { head: end, ..VerifyReport::default() },
        streams: HashMap::new(),
        expected: Indexed::default(),
        indexed_through: indexed.position,
        recorded_at: i64::MIN,
    };
    run.events(&events, end.position, progress)?;
    run.report.streams = run.streams.len() as u64;
    run.pages(&events);
    if let Some(index) = &index {
        run.index(index, indexed);
    }
    Ok(run.report)
}

impl Run<'_> {
    fn fault(&mut self, place: String, what: impl ToString) {
        if self.report.faults.len() < MOST_FAULTS {
            self.report.faults.push(Fault { place, what: what.to_string() });
        }
    }

    fn events(
        &mut self,
        events: &Connection,
        end: Position,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(), ReadError> {
        let mut texts = Interner::default();
        let mut next = 1;
        let mut failures = 0;
        while next <= end {
            match self.step(events, &mut next, end, &mut texts) {
                Ok(()) => failures = 0,
                Err(error) => {
                    let error = read_error(self.log, &error);
                    let ReadError::Damaged { what, .. } = error else { return Err(error) };
                    self.fault(decode::place(self.log, next), what);
                    // A page that cannot be read hides the few events on it; look behind them.
                    next += 1;
                    failures += 1;
                    if failures > 256 {
                        return Ok(());
                    }
                }
            }
            progress(VerifyProgress { position: next.min(end + 1) - 1, of: end });
        }
        Ok(())
    }

    fn step(
        &mut self,
        events: &Connection,
        next: &mut Position,
        end: Position,
        texts: &mut Interner,
    ) -> rusqlite::Result<()> {
        let mut statement = events.prepare_cached(&format!(
            "SELECT {}, (SELECT record FROM redactions WHERE event = position) FROM events
             WHERE position BETWEEN ?1 AND ?2 ORDER BY position LIMIT {STEP}",
            decode::COLUMNS
        ))?;
        let mut rows = statement.query((*next as i64, end as i64))?;
        let mut any = false;
        while let Some(row) = rows.next()? {
            any = true;
            let position = row.get::<_, i64>(0)? as Position;
            if position != *next {
                self.fault(
                    decode::place(self.log, *next),
                    format!("it is missing; position {position} follows"),
                );
            }
            *next = position + 1;
            self.report.events += 1;
            match decode::event(row, self.log, texts) {
                Ok(event) => self.event(&event, row.get(7)?),
                Err(ReadError::Damaged { place, what }) => self.fault(place, what),
                Err(error) => self.fault(decode::place(self.log, position), error),
            }
        }
        if !any {
            self.fault(
                decode::place(self.log, *next),
                format!("nothing from here to position {end} can be found"),
            );
            *next = end + 1;
        }
        Ok(())
    }

    fn event(&mut self, event: &Recorded, record: Option<i64>) {
        let place = decode::place(self.log, event.position);
        let recorded_at = event.recorded_at.timestamp_micros();
        if recorded_at < self.recorded_at {
            self.fault(place.clone(), "it was recorded before the event before it");
        }
        self.recorded_at = self.recorded_at.max(recorded_at);
        match (event.is_redacted(), record) {
            (true, None) => self.fault(place.clone(), "its data is gone and no redaction is recorded"),
            (false, Some(_)) => self.fault(place.clone(), "it has data though its redaction is recorded"),
            (true, Some(_)) => self.report.redacted += 1,
            (false, None) => {}
        }
        let digest: [u8; 32] = Sha256::digest(event.stream.as_bytes()).into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let before = self.streams.insert(key, (event.revision, event.hash));
        let follows = match before {
            None => event.revision == 0 && event.prev_hash.is_none(),
            Some((revision, hash)) => event.revision == revision + 1 && event.prev_hash == Some(hash),
        };
        if !follows {
            let before = before
                .map_or("nothing".into(), |(revision, hash)| format!("revision {revision}, leaf {hash}"));
            self.fault(
                place,
                format!(
                    "revision {} of {} does not follow what is before it: {before}",
                    event.revision, event.stream
                ),
            );
        }
        if event.position <= self.indexed_through {
            self.expected.add(event);
        }
    }

    /// SQLite's own view of its pages.
    fn pages(&mut self, events: &Connection) {
        let check = || -> rusqlite::Result<Vec<String>> {
            let mut statement = events.prepare("PRAGMA quick_check(20)")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        };
        let place = self.log.display().to_string();
        match check() {
            Ok(lines) => {
                for line in lines.iter().filter(|line| *line != "ok") {
                    self.fault(place.clone(), line);
                }
            }
            Err(error) => self.fault(place, error),
        }
    }

    fn index(&mut self, index: &Connection, through: Head) {
        let path = index::path(self.log).display().to_string();
        if through.position > self.report.head.position {
            self.fault(path, "it goes further than the log: it belongs to another; stop and delete it");
            return;
        }
        let actual = match contents(index) {
            Ok(actual) => actual,
            Err(error) => return self.fault(path, format!("{error}; it is derived: stop and delete it")),
        };
        let tables = [
            ("revisions", self.expected.revisions, actual.revisions),
            ("word_positions", self.expected.words, actual.words),
            ("correlation_positions", self.expected.correlations, actual.correlations),
            ("id_positions", self.expected.ids, actual.ids),
        ];
        for (table, expected, actual) in tables {
            if expected != actual {
                let what = format!(
                    "it does not say what the log says ({} entries, {} expected); it is derived: stop and delete the file",
                    actual.count, expected.count
                );
                self.fault(format!("{path}, table {table}"), what);
            }
        }
    }
}

fn contents(index: &Connection) -> rusqlite::Result<Indexed> {
    let mut found = Indexed::default();
    // A run that cannot be read is missing from the sums, and so it is found.
    let run = |row: &rusqlite::Row<'_>, column: usize| -> rusqlite::Result<Vec<Position>> {
        Ok(runs::decode(row.get(column)?, row.get_ref(column + 1)?.as_blob()?).unwrap_or_default())
    };
    let mut statement = index.prepare(
        "SELECT s.name, r.revision, r.first, r.others FROM revisions r LEFT JOIN streams s ON s.id = r.stream",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str_or_null()?.unwrap_or_default();
        for (revision, position) in (row.get::<_, i64>(1)?..).zip(run(row, 2)?) {
            found.revisions.add((name, revision, position as i64));
        }
    }
    let mut statement = index.prepare(
        "SELECT w.word, p.first, p.others FROM word_positions p LEFT JOIN words w ON w.id = p.word",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let word = row.get_ref(0)?.as_str_or_null()?.unwrap_or_default();
        for position in run(row, 1)? {
            found.words.add((word, position as i64));
        }
    }
    let mut statement = index.prepare("SELECT correlation, first, others FROM correlation_positions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let correlation = row.get::<_, [u8; 16]>(0)?;
        for position in run(row, 1)? {
            found.correlations.add((&correlation, position as i64));
        }
    }
    let mut statement = index.prepare("SELECT id, position FROM id_positions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.ids.add((&row.get::<_, [u8; 16]>(0)?, row.get::<_, i64>(1)?));
    }
    Ok(found)
}
