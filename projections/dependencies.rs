//! The read model behind dependencies: follows `dependency-*`, reads nothing but its own rows. A change is an event, a look
//! that found nothing new is not; so `since` is true and "last checked" is presence.

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::dependency::Event as D;
use rusqlite::{Connection, Result};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, micros, stream_rest};
use crate::{DependencyGauges, Envelope, Gauges};

mod read;
pub use read::*;

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "dependencies";
    const VERSION: u32 = 1;
    const SCHEMA: &'static str = include_str!("../migrations/views/dependencies.sql");
    const CATEGORIES: &'static [&'static str] = &["dependency"];
    type Rows = ();
    type Gauges = DependencyGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Dependency(_))
    }

    fn apply(db: &Connection, _rows: &mut (), _counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let Event::Dependency(event) = &envelope.event else { return Ok(()) };
        let (up, latency, reason) = match event {
            D::Up(e) => (true, Some(e.latency_ms), None),
            D::Down(e) => (false, None, Some(&e.reason)),
        };
        let recorded = &envelope.recorded;
        db.prepare_cached(
            "INSERT INTO dependencies (name, up, since, latency_ms, reason, changes, last_event_id, last_position) \
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7) \
             ON CONFLICT (name) DO UPDATE SET up = ?2, since = ?3, latency_ms = ?4, reason = ?5, changes = changes + 1, \
             last_event_id = ?6, last_position = ?7",
        )?
        .execute((
            stream_rest(&recorded.stream),
            up,
            micros(recorded.occurred_at),
            latency,
            reason,
            blob(&recorded.id),
            recorded.position,
        ))?;
        Ok(())
    }

    fn gauges(db: &Connection, _counts: &Counts) -> Result<DependencyGauges> {
        let mut gauges = DependencyGauges::default();
        // As many rows as there are services: a handful.
        let mut statement = db.prepare_cached("SELECT name, up, since FROM dependencies")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            gauges.up.insert(name.clone(), row.get(1)?);
            gauges.since.insert(name, crate::sql::column(row, 2)?);
        }
        Ok(gauges)
    }

    fn publish(gauges: &mut Gauges, part: Arc<DependencyGauges>) {
        gauges.dependencies = part;
    }
}

#[cfg(test)]
mod tests {
    use beampipe_domain::dependency::{Down, Up};

    use super::*;
    use crate::testing::{History, at};

    #[test]
    fn a_dependency_is_as_it_was_last_seen() {
        let mut history = History::default();
        let name = || "tap:casda".to_owned();
        history.tell("dependency-tap:casda", D::Up(Up { dependency: name(), latency_ms: 8 }));
        history.tell("dependency-dim-a", D::Up(Up { dependency: "dim-a".into(), latency_ms: 1 }));
        history.tell("dependency-tap:casda", D::Down(Down { dependency: name(), reason: "refused".into() }));
        let folded = history.fold::<Projected>(&[1]);
        let dependencies = Dependencies(folded.reader.clone());
        let casda = dependencies.get("tap:casda").unwrap().unwrap();
        assert_eq!((casda.up, casda.since, casda.reason.as_deref()), (false, at(3), Some("refused")));
        assert_eq!((casda.latency_ms, casda.changes), (None, 2));
        assert_eq!(dependencies.list().unwrap().len(), 2);
        let gauges = &folded.gauges.dependencies;
        assert_eq!((gauges.up["tap:casda"], gauges.up["dim-a"], gauges.since["dim-a"]), (false, true, at(2)));
    }
}
