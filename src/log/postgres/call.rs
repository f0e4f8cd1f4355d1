//! One call of the function that writes a group: its arguments, and what its answer means.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::event::{Hash, Position, Recorded, category};
use crate::prepare::{Prepared, Unplaced};
use crate::{AppendError, Appended, Expected, StreamHead};

use super::session::{Session, Trouble, told};
use super::{word_of_category, word_of_tag};

const APPEND: &str = "SELECT outcomes, positions, revisions, hashes, recorded_at, before
     FROM append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)";
/// How long an append may take before its connection is given up.
const CALL: Duration = Duration::from_secs(6);
/// How long a call for a bulk of events may take.
const BULK: Duration = Duration::from_secs(29);
const RESTORE: &str = "SELECT restore($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";

/// The columns of some events, borrowed from them.
#[derive(Default)]
struct Columns<'a> {
    revisions: Vec<i64>,
    categories: Vec<i32>,
    ids: Vec<Uuid>,
    correlations: Vec<Uuid>,
    hashes: Vec<&'a [u8]>,
    leaves: Vec<&'a [u8]>,
    salts: Vec<Option<&'a [u8]>>,
    data: Vec<Option<&'a [u8]>>,
    words: Vec<String>,
    tag_words: Vec<i32>,
    tag_events: Vec<i32>,
    known: HashMap<String, i32>,
}

impl<'a> Columns<'a> {
    /// The place of a word in `words`, from 1.
    fn word(&mut self, word: String) -> i32 {
        if let Some(place) = self.known.get(&word) {
            return *place;
        }
        self.words.push(word.clone());
        let place = self.words.len() as i32;
        self.known.insert(word, place);
        place
    }

    fn add(&mut self, Unplaced { event, leaf }: &'a Unplaced) {
        let category = self.word(word_of_category(category(&event.stream)));
        self.categories.push(category);
        self.revisions.push(event.revision as i64);
        self.ids.push(event.id);
        self.correlations.push(event.correlation_id);
        self.hashes.push(&event.hash.0);
        self.leaves.push(leaf);
        self.salts.push(event.salt.as_ref().map(|salt| &salt[..]));
        self.data.push(event.data.as_deref());
        let place = self.ids.len() as i32;
        for tag in &event.tags {
            let word = self.word(word_of_tag(tag));
            self.tag_words.push(word);
            self.tag_events.push(place);
        }
    }
}

/// What the writer asks of the server.
#[derive(Clone, Copy)]
pub(super) enum Call<'a> {
    Append {
        group: &'a [Prepared],
        /// The position of the event whose redaction the one event of the one append records.
        redacts: Option<Position>,
    },
    /// Takes events over behind `head`.
    Restore {
        head: Position,
        events: &'a [Unplaced],
        /// An event's position and its record's.
        redactions: &'a [(Position, Position)],
    },
}

impl Call<'_> {
    pub async fn make(self, session: &Session) -> Result<Vec<Row>, Trouble> {
        match self {
            Self::Append { group, redacts } => append(session, group, redacts).await,
            Self::Restore { head, events, redactions } => restore(session, head, events, redactions).await,
        }
    }
}

/// What became of a group.
pub(super) struct Written {
    pub answers: Vec<Result<Appended, AppendError>>,
    /// The new events in order of position, and the position before them.
    pub events: Vec<Arc<Recorded>>,
    pub before: Position,
}

async fn append(
    session: &Session,
    group: &[Prepared],
    redacts: Option<Position>,
) -> Result<Vec<Row>, Trouble> {
    let mut columns = Columns::default();
    let mut owners = Vec::new();
    let (mut streams, mut befores) = (Vec::new(), Vec::new());
    let (mut expected_revisions, mut expected_hashes) = (Vec::new(), Vec::new());
    let (mut last_revisions, mut last_hashes) = (Vec::new(), Vec::new());
    let heads: Vec<StreamHead> = group.iter().map(|prepared| prepared.head()).collect();
    let mut latest: HashMap<&str, i32> = HashMap::new();
    for (place, (prepared, head)) in (1_i32..).zip(group.iter().zip(&heads)) {
        streams.push(&*prepared.stream);
        befores.push(latest.insert(&prepared.stream, place).unwrap_or(0));
        let (revision, hash) = match &prepared.expected {
            Expected::NoStream => (None, None),
            Expected::At { revision, hash } => (Some(*revision as i64), Some(&hash.0[..])),
        };
        expected_revisions.push(revision);
        expected_hashes.push(hash);
        last_revisions.push(head.revision as i64);
        last_hashes.push(&head.hash.0[..]);
        for event in &prepared.events {
            owners.push(place);
            columns.add(event);
        }
    }
    let redacts = redacts.map(|position| position as i64);
    let Columns { revisions, categories, ids, correlations, hashes, leaves, salts, data, .. } = &columns;
    session
        .ask(
            APPEND,
            &[
                &streams,
                &befores,
                &expected_revisions,
                &expected_hashes,
                &last_revisions,
                &last_hashes,
                &owners,
                revisions,
                categories,
                ids,
                correlations,
                hashes,
                leaves,
                salts,
                data,
                &columns.words,
                &columns.tag_words,
                &columns.tag_events,
                &redacts,
            ],
            CALL,
        )
        .await
}

/// What the answer to an append says of its group.
pub(super) fn read(rows: &[Row], group: Vec<Prepared>) -> Result<Written, Trouble> {
    let bad = |error: tokio_postgres::Error| Trouble::Lost(told(&error));
    let nonsense = || Trouble::Lost("the answer to an append cannot be read".into());
    let row = rows.first().ok_or_else(nonsense)?;
    let outcomes: &str = row.try_get(0).map_err(bad)?;
    let positions: Vec<Option<i64>> = row.try_get(1).map_err(bad)?;
    let revisions: Vec<Option<i64>> = row.try_get(2).map_err(bad)?;
    let hashes: Vec<Option<&[u8]>> = row.try_get(3).map_err(bad)?;
    let recorded_at =
        DateTime::<Utc>::from_timestamp_micros(row.try_get(4).map_err(bad)?).ok_or_else(nonsense)?;
    let before = row.try_get::<_, i64>(5).map_err(bad)? as Position;
    if [outcomes.len(), positions.len(), revisions.len(), hashes.len()] != [group.len(); 4] {
        return Err(nonsense());
    }
    let mut written = Written { answers: Vec::with_capacity(group.len()), events: Vec::new(), before };
    for (index, prepared) in group.into_iter().enumerate() {
        let position = positions[index].map(|position| position as Position);
        let answer = match (outcomes.as_bytes()[index], position) {
            (b'w', Some(position)) => Ok(prepared.answer(position, false)),
            (b'r', Some(position)) => Ok(prepared.answer(position, true)),
            _ => {
                let hash = hashes[index].and_then(|hash| hash.try_into().ok()).map(Hash);
                let actual = revisions[index].zip(hash);
                let actual = actual.map(|(revision, hash)| StreamHead { revision: revision as u64, hash });
                Err(prepared.conflict(actual))
            }
        };
        if matches!(&answer, Ok(appended) if !appended.repeated) {
            for unplaced in prepared.events {
                let position = before + written.events.len() as Position + 1;
                written.events.push(Arc::new(Recorded { position, recorded_at, ..unplaced.event }));
            }
        }
        written.answers.push(answer);
    }
    Ok(written)
}

async fn restore(
    session: &Session,
    head: Position,
    events: &[Unplaced],
    redactions: &[(Position, Position)],
) -> Result<Vec<Row>, Trouble> {
    let mut columns = Columns::default();
    events.iter().for_each(|event| columns.add(event));
    let streams: Vec<&str> = events.iter().map(|unplaced| &*unplaced.event.stream).collect();
    let recorded: Vec<i64> =
        events.iter().map(|unplaced| unplaced.event.recorded_at.timestamp_micros()).collect();
    let redacted: Vec<i64> = redactions.iter().map(|(event, _)| *event as i64).collect();
    let records: Vec<i64> = redactions.iter().map(|(_, record)| *record as i64).collect();
    let Columns { revisions, categories, ids, correlations, hashes, leaves, salts, data, .. } = &columns;
    session
        .ask(
            RESTORE,
            &[
                &(head as i64),
                &recorded,
                &streams,
                revisions,
                categories,
                ids,
                correlations,
                hashes,
                leaves,
                salts,
                data,
                &columns.words,
                &columns.tag_words,
                &columns.tag_events,
                &redacted,
                &records,
            ],
            BULK,
        )
        .await
}
