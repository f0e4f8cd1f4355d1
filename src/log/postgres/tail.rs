//! The tail: keeps the hub up with what every process appends, and says whether the server is there.
//!
//! A task with a connection of its own hears notifications, looks once a second in case one was lost, and reads what is
//! new. The writer shows its own events itself. Both do it under one lock and in order of position. The same look finds
//! out that the server is away, that it became a standby, and that the log has lost events that we have seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;

use crate::event::{Position, Recorded};
use crate::{Direction, Filter, Head, ReadError, redaction};

use super::Shared;
use super::decode::{self, columns};
use super::reader::Reader;
use super::session::{ANSWER, Bell, Look, Session, Trouble, told};

/// How often the end of the log is looked at without being told.
const EVERY: Duration = Duration::from_secs(1);
/// How long that may take before the server counts as away.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first and the longest wait before another attempt to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is further away than this is left for followers to read, each at its own pace.
const MOST_SHOWN: u64 = 4096;
const STEP: i64 = 512;
const NO_GRANT: &str =
    "this role may read the log and not append to it: grant it EXECUTE on the functions of the schema";

/// From the last known event on: what follows it is only shown while it is there.
const NEXT: &str =
    concat!("SELECT ", columns!(), " FROM events e WHERE e.position >= $1 ORDER BY e.position LIMIT $2");
const HASHES: &str = "SELECT e.position, e.hash FROM events e WHERE e.position = ANY($1)";

/// Follows the log until `closing`.
pub(super) async fn run(
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    mut closing: tokio::sync::watch::Receiver<bool>,
) {
    let work = async {
        let mut pause = FIRST_PAUSE;
        loop {
            let lost = match Session::connect(&shared.target, "tail", Some(Arc::clone(&bell))).await {
                Ok(session) => match follow(&shared, &session, &bell, &mut pause).await {
                    // A connection that broke says little of the server: the next attempt tells.
                    Trouble::Lost(why) => {
                        tracing::debug!(why, "the tail's connection broke");
                        None
                    }
                    silent_or_refused => Some(silent_or_refused),
                },
                Err(trouble) => Some(trouble),
            };
            if let Some(lost) = lost {
                shared.is_away(Some(lost.said()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    tokio::select! {
        () = work => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

async fn follow(shared: &Arc<Shared>, session: &Session, bell: &Bell, pause: &mut Duration) -> Trouble {
    let listen = format!("LISTEN beampipe_{}", shared.target.schema);
    if let Err(error) = session.client.batch_execute(&listen).await {
        return Trouble::Lost(told(&error));
    }
    let mut look = true;
    let mut looked = Instant::now();
    loop {
        if look || looked.elapsed() >= EVERY {
            match session.look(shared.hub.head(), PATIENCE).await {
                Err(trouble) => return trouble,
                Ok(seen) if seen.standby && !shared.read_only => {
                    return Trouble::Silent("the server is a standby: it can be read, not written".into());
                }
                Ok(seen) => {
                    if !seen.may_append && !shared.read_only {
                        // Said again and again, for as long as it is so.
                        shared.trouble(Some(NO_GRANT));
                    }
                    // What we knew when we asked may be less than what we know now, but it was all committed.
                    if !seen.known
                        && let Err(trouble) = rewind(shared, session, &seen).await
                    {
                        return trouble;
                    }
                }
            }
            looked = Instant::now();
            shared.is_away(None);
            *pause = FIRST_PAUSE;
        }
        match catch_up(shared, session).await {
            Err(trouble) => return trouble,
            Ok(false) => {
                look = true;
                continue;
            }
            Ok(true) => *shared.heard.lock() = Instant::now(),
        }
        look = tokio::time::timeout(EVERY, bell.rung.notified()).await.is_err();
        if session.client.is_closed() {
            return Trouble::Lost("the connection to the server ended".into());
        }
    }
}

/// Shows what others have appended. Says whether the log still has what we know.
async fn catch_up(shared: &Arc<Shared>, session: &Session) -> Result<bool, Trouble> {
    loop {
        let _order = shared.showing.lock().await;
        let known = shared.hub.head();
        let rows = session.ask(NEXT, &[&(known.position as i64), &STEP], PATIENCE).await?;
        let mut events = decoded(shared, session, &rows);
        let whole = rows.len() == events.len();
        if known.position > 0 {
            match events.first() {
                Some(first) if first.position == known.position && first.hash == known.hash => {
                    events.remove(0)
                }
                // Damage was noted; that the event is another one is not damage.
                _ => return Ok(!whole),
            };
        }
        let more = rows.len() as i64 == STEP;
        if more && whole {
            let end = session.look(known, PATIENCE).await?.head;
            if end.position > known.position + MOST_SHOWN {
                shared.hub.skip_to(end);
                return Ok(true);
            }
        }
        if !events.is_empty() {
            shared.show(&events).await;
            shared.hub.wake(&events);
        }
        if !more || !whole {
            return Ok(true);
        }
    }
}

/// The events of rows, up to the first that is damaged.
fn decoded(shared: &Shared, session: &Session, rows: &[Row]) -> Vec<Arc<Recorded>> {
    let mut texts = session.texts.lock();
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        match decode::event(row, &shared.target.schema, &mut texts) {
            Ok(event) => events.push(event),
            Err(error) => {
                shared.note(&error);
                break;
            }
        }
    }
    events
}

/// Finds out what is left of what was seen, and takes the head back to where the log ends.
pub(super) async fn rewind(shared: &Arc<Shared>, session: &Session, seen: &Look) -> Result<(), Trouble> {
    let _order = shared.showing.lock().await;
    let recent = shared.hub.recent();
    let places: Vec<i64> = recent.iter().map(|known| known.position as i64).collect();
    let rows = session.ask(HASHES, &[&places], ANSWER).await?;
    let there: std::collections::HashMap<i64, &[u8]> =
        rows.iter().filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))).collect();
    let same = |known: &&Head| there.get(&(known.position as i64)).is_some_and(|hash| **hash == known.hash.0);
    let known = shared.hub.head();
    if recent.first().is_some_and(|last| *last == known && same(&last)) {
        // Somebody else has taken it back already.
        return Ok(());
    }
    let kept = recent.iter().find(same).map_or(0, |known| known.position);
    tracing::error!(
        seen = known.position,
        kept,
        head = seen.head.position,
        "the log has lost events that were seen: it is unchanged only up to position {kept}"
    );
    shared.readers.forget();
    shared.presence.forget();
    shared.hub.rewind(kept, seen.head);
    Ok(())
}

impl Shared {
    /// Publishes events that follow the head. The caller has the lock and wakes whoever waits.
    pub(super) async fn show(self: &Arc<Self>, events: &[Arc<Recorded>]) {
        for record in events {
            for id in redaction::named_by(record) {
                // The ring may still have what another process has taken out of the log. Whoever sees the record does not.
                match self.read_event(id).await {
                    Ok(Some(event)) if event.is_redacted() => self.hub.replace(&event),
                    Ok(_) => {}
                    Err(_) => self.hub.skip_to(self.hub.head()),
                }
            }
        }
        self.hub.publish(events);
    }

    async fn read_event(self: &Arc<Self>, id: uuid::Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        Reader::borrow(self).await?.event(id).await
    }

    /// Makes sure that what is shown goes up to `position`, which is in the log.
    pub(super) async fn reach(self: &Arc<Self>, position: Position) {
        if self.hub.head().position >= position {
            return;
        }
        let _order = self.showing.lock().await;
        let known = self.hub.head().position;
        if known < position
            && let Some(others) = self.between(known, position).await
        {
            self.show(&others).await;
            self.hub.wake(&others);
        }
    }

    /// Shows what our writer has appended behind `before`, and before it what others had.
    pub(super) async fn show_own(self: &Arc<Self>, before: Position, events: &[Arc<Recorded>]) {
        let Some(last) = events.last() else { return };
        let end = Head { position: last.position, hash: last.hash };
        let _order = self.showing.lock().await;
        let known = self.hub.head().position;
        if known < before {
            match self.between(known, before).await {
                Some(others) => {
                    self.show(&others).await;
                    self.hub.wake(&others);
                }
                // They are in the log, where followers find them.
                None => return self.hub.skip_to(end),
            }
        }
        let known = self.hub.head().position;
        let new = events.partition_point(|event| event.position <= known);
        self.show(&events[new..]).await;
    }

    async fn between(self: &Arc<Self>, after: Position, through: Position) -> Option<Vec<Arc<Recorded>>> {
        if through - after > MOST_SHOWN {
            return None;
        }
        let mut found = Vec::new();
        let mut reader = Reader::borrow(self).await.ok()?;
        let mut from = after + 1;
        while from <= through {
            let limit = (through + 1 - from) as usize;
            let page = reader.page(from, Direction::Forward, limit, &Filter::All).await.ok()?;
            from = page.events.last()?.position + 1;
            found.extend(page.events);
        }
        found.truncate((through - after) as usize);
        Some(found)
    }
}
