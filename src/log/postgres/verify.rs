//! `verify`: reads the whole log and recomputes everything that can be recomputed. Reports every fault with its place and
//! goes on behind it.
//!
//! It changes nothing and takes no lock, so it may run while processes append: it checks the log up to where it ended
//! when the check began.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::ReadError;
use crate::event::{Hash, Position, Recorded, Revision, category};
use crate::leaf::Interner;
use crate::verify::{Entries, Fault, MOST_FAULTS, VerifyProgress, VerifyReport};

use super::decode::{self, columns};
use super::reader::Reader;
use super::session::ANSWER;
use super::{Shared, word_of_category, word_of_tag};

const STEP: i64 = 1000;

/// With what the tables beside the events say of each.
const EVENTS: &str = concat!(
    "SELECT ",
    columns!(),
    ", (SELECT r.record FROM redactions r WHERE r.event = e.position), e.id, e.correlation,
            (SELECT w.word FROM words w WHERE w.id = e.category)
     FROM events e WHERE e.position BETWEEN $1 AND $2 ORDER BY e.position LIMIT $3"
);
const TAGS: &str = "SELECT t.word, t.position, w.word FROM tags t LEFT JOIN words w ON w.id = t.word
     WHERE (t.word, t.position) > ($1, $2) ORDER BY t.word, t.position LIMIT $3";

struct Run<'a> {
    schema: &'a str,
    report: VerifyReport,
    /// By digest of the name: a log may have more names than fit in memory.
    streams: HashMap<[u8; 16], (Revision, Hash)>,
    recorded_at: i64,
    tags: Entries,
}

pub(super) async fn run(
    shared: &Arc<Shared>,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<VerifyReport, ReadError> {
    let last = Reader::borrow(shared).await?.head().await?;
    let mut run = Run {
        schema: &shared.target.schema,
        report: VerifyReport { head: last, ..VerifyReport::default() },
        streams: HashMap::new(),
        recorded_at: i64::MIN,
        tags: Entries::default(),
    };
    let mut texts = Interner::default();
    let mut next = 1;
    while next <= last.position {
        let range: [i64; 2] = [next as i64, last.position as i64];
        // A connection for each step: a check of a large log outlives some.
        let rows =
            Reader::borrow(shared).await?.ask(EVENTS, &[&range[0], &range[1], &STEP], ANSWER * 3).await?;
        if rows.is_empty() {
            let what = format!("nothing from here to position {} can be found", last.position);
            run.fault(next, what);
            break;
        }
        for row in &rows {
            run.row(row, &mut next, &mut texts)?;
        }
        progress(VerifyProgress { position: next - 1, of: last.position });
    }
    run.report.streams = run.streams.len() as u64;
    let found = tags(shared, last.position).await?;
    if found != run.tags {
        let what = format!(
            "it does not say what the leaves say ({} entries, {} expected)",
            found.count, run.tags.count
        );
        run.report.faults.push(Fault { place: format!("table {}.tags", run.schema), what });
    }
    Ok(run.report)
}

/// What the table of tags says of the events up to `end`.
async fn tags(shared: &Arc<Shared>, end: Position) -> Result<Entries, ReadError> {
    let mut found = Entries::default();
    let mut at = (0_i32, 0_i64);
    loop {
        let mut reader = Reader::borrow(shared).await?;
        let rows = reader.ask(TAGS, &[&at.0, &at.1, &(STEP * 10)], ANSWER * 3).await?;
        for row in &rows {
            at = (cell(row, 0)?, cell(row, 1)?);
            if at.1 as Position <= end {
                let word: Option<&str> = cell(row, 2)?;
                found.add((word.unwrap_or_default(), at.1));
            }
        }
        if (rows.len() as i64) < STEP * 10 {
            return Ok(found);
        }
    }
}

fn cell<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, ReadError> {
    row.try_get(column).map_err(|error| ReadError::Unavailable(error.to_string()))
}

impl Run<'_> {
    fn fault(&mut self, position: Position, what: impl ToString) {
        if self.report.faults.len() < MOST_FAULTS {
            let place = decode::place(self.schema, position);
            self.report.faults.push(Fault { place, what: what.to_string() });
        }
    }

    fn row(&mut self, row: &Row, next: &mut Position, texts: &mut Interner) -> Result<(), ReadError> {
        let position = cell::<i64>(row, 0)? as Position;
        if position != *next {
            self.fault(*next, format!("it is missing; position {position} follows"));
        }
        *next = position + 1;
        self.report.events += 1;
        match decode::event(row, self.schema, texts) {
            Ok(event) => self.event(&event, row),
            Err(ReadError::Damaged { what, .. }) => {
                self.fault(position, what);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn event(&mut self, event: &Recorded, row: &Row) -> Result<(), ReadError> {
        let position = event.position;
        let record: Option<i64> = cell(row, 9)?;
        let (id, correlation): (Uuid, Uuid) = (cell(row, 10)?, cell(row, 11)?);
        let named: Option<&str> = cell(row, 12)?;
        let recorded_at = event.recorded_at.timestamp_micros();
        if recorded_at < self.recorded_at {
            self.fault(position, "it was recorded before the event before it");
        }
        self.recorded_at = self.recorded_at.max(recorded_at);
        match (event.is_redacted(), record) {
            (true, None) => self.fault(position, "its data is gone and no redaction is recorded"),
            (false, Some(_)) => self.fault(position, "it has data though its redaction is recorded"),
            (true, Some(_)) => self.report.redacted += 1,
            (false, None) => {}
        }
        if (id, correlation) != (event.id, event.correlation_id)
            || named != Some(&word_of_category(category(&event.stream)))
        {
            self.fault(position, "the columns beside its leaf say something else than the leaf");
        }
        for tag in &event.tags {
            self.tags.add((&*word_of_tag(tag), position as i64));
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
            let (revision, stream) = (event.revision, &event.stream);
            self.fault(
                position,
                format!("revision {revision} of {stream} does not follow what is before it: {before}"),
            );
        }
        Ok(())
    }
}
