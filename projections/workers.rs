//! The read model behind workers: follows `worker-*` and `lease-*`, reads nothing but its own rows.
//!
//! Heartbeats are presence; a worker that fell silent is here as it was until somebody writes that it is lost.

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::lease::Event as L;
use beampipe_domain::worker::Event as W;
use rusqlite::{Connection, OptionalExtension, Result};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::sql::{blob, json, micros, stream_rest};
use crate::{Envelope, Gauges, WorkerGauges};

mod read;
pub use read::*;

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "workers";
    const VERSION: u32 = 2;
    const SCHEMA: &'static str = include_str!("../migrations/views/workers.sql");
    const CATEGORIES: &'static [&'static str] = &["worker", "lease"];
    type Rows = ();
    type Gauges = WorkerGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Worker(_) | Event::Lease(_))
    }

    fn apply(db: &Connection, _rows: &mut (), counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let event = match &envelope.event {
            Event::Worker(event) => event,
            Event::Lease(event) => return lease(db, envelope, event),
            _ => return Ok(()),
        };
        let recorded = &envelope.recorded;
        let id = stream_rest(&recorded.stream);
        let now = micros(recorded.occurred_at);
        let facets = "SELECT pool, status FROM workers WHERE id = ?1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
        let before = db.prepare_cached(facets)?.query_row([id], read).optional()?;
        match event {
            W::Started(e) => db
                .prepare_cached(
                    "INSERT INTO workers (started_position, id, instance_name, host, pool, capabilities, \
                     concurrency_limit, process_id, version, status, started_at, revision, last_event_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'active', ?10, ?11, ?10)",
                )?
                .execute(rusqlite::params![
                    recorded.position,
                    id,
                    e.instance_name,
                    e.host,
                    e.pool,
                    json(&e.capabilities),
                    e.concurrency_limit,
                    e.process_id,
                    e.version,
                    now,
                    recorded.revision,
                ])?,
            W::Drained(e) => db
                .prepare_cached(
                    "UPDATE workers SET status = 'draining', draining_at = ?2, reason = ?4, revision = ?3, \
                     last_event_at = ?2 WHERE id = ?1",
                )?
                .execute((id, now, recorded.revision, &e.reason))?,
            W::Resumed(_) => db
                .prepare_cached(
                    "UPDATE workers SET status = 'active', draining_at = NULL, reason = NULL, revision = ?3, \
                     last_event_at = ?2 WHERE id = ?1",
                )?
                .execute((id, now, recorded.revision))?,
            W::Stopped(_) => db
                .prepare_cached(
                    "UPDATE workers SET status = 'stopped', stopped_at = ?2, revision = ?3, last_event_at = ?2 \
                     WHERE id = ?1",
                )?
                .execute((id, now, recorded.revision))?,
            W::Lost(_) => {
                counts.add("lost", "", "", 1);
                db.prepare_cached(
                    "UPDATE workers SET status = 'stopped', stopped_at = ?2, lost = 1, revision = ?3, \
                     last_event_at = ?2 WHERE id = ?1",
                )?
                .execute((id, now, recorded.revision))?
            }
        };
        let after = db.prepare_cached(facets)?.query_row([id], read).optional()?;
        counts.move_one(
            "status",
            before.as_ref().map(|(pool, status)| (&**pool, &**status)),
            after.as_ref().map(|(pool, status)| (&**pool, &**status)),
        );
        Ok(())
    }

    fn gauges(_db: &Connection, counts: &Counts) -> Result<WorkerGauges> {
        let mut by_pool_status = counts.by_both("status");
        let pools: Vec<String> = by_pool_status.keys().map(|(pool, _)| pool.clone()).collect();
        for pool in pools {
            by_pool_status.entry((pool.clone(), "active".to_owned())).or_default();
            by_pool_status.entry((pool, "draining".to_owned())).or_default();
        }
        by_pool_status.retain(|(_, status), _| status != "stopped");
        let with = |wanted: &str| {
            by_pool_status.iter().filter(|((_, status), _)| status == wanted).map(|(_, n)| n).sum()
        };
        Ok(WorkerGauges {
            active: with("active"),
            draining: with("draining"),
            by_pool_status,
            lost: counts.total("lost"),
        })
    }

    fn publish(gauges: &mut Gauges, part: Arc<WorkerGauges>) {
        gauges.workers = part;
    }
}

fn lease(db: &Connection, envelope: &Envelope, event: &L) -> Result<()> {
    match event {
        L::Taken(e) => db
            .prepare_cached(
                "INSERT OR REPLACE INTO leases (role, holder, claim_id, taken_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((&e.role, &e.holder, blob(&e.claim_id), micros(envelope.recorded.occurred_at)))?,
        L::Released(e) => db.prepare_cached("DELETE FROM leases WHERE role = ?1")?.execute([&e.role])?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use beampipe_domain::lease::{Released, Taken};
    use beampipe_domain::worker::{Drained, Lost, Resumed, Started, Stopped};

    use super::*;
    use crate::testing::{History, at};

    fn started(pool: &str) -> W {
        W::Started(Started { pool: pool.into(), capabilities: vec!["tap".into()], ..Started::default() })
    }

    #[test]
    fn a_worker_is_counted_in_its_pool_until_it_ends() {
        let mut history = History::default();
        history.tell("worker-a", started("x")).tell("worker-b", started("x")).tell("worker-c", started("y"));
        history.tell("worker-b", W::Drained(Drained { reason: "upgrade".into() }));
        history.tell("worker-c", W::Lost(Lost { silent_seconds: 61 }));
        let folded = history.fold::<Projected>(&[1, 2]);
        let gauges = &folded.gauges.workers;
        assert_eq!((gauges.active, gauges.draining, gauges.lost), (1, 1, 1));
        assert_eq!(gauges.by_pool_status[&("y".into(), "active".into())], 0, "its pool is still shown");
        let workers = Workers(folded.reader.clone());
        let ids = |all| workers.list(all, 9).unwrap().into_iter().map(|w| w.id).collect::<Vec<_>>();
        assert_eq!(
            (ids(false), ids(true)),
            (vec!["b".into(), "a".into()], vec!["c".into(), "b".into(), "a".into()])
        );
        let b = workers.get("b").unwrap().unwrap();
        assert_eq!(
            (b.draining_at, b.reason.as_deref(), b.capabilities),
            (Some(at(4)), Some("upgrade"), vec!["tap".into()])
        );
        assert!(workers.get("c").unwrap().unwrap().lost);
        history
            .tell("worker-b", W::Resumed(Resumed {}))
            .tell("worker-a", W::Stopped(Stopped { handed_back: 0 }));
        let gauges = history.fold::<Projected>(&[]).gauges.workers.clone();
        assert_eq!((gauges.active, gauges.draining), (1, 0));
    }

    #[test]
    fn who_acts_is_whoever_took_the_lease_last() {
        let claim = |n| uuid::Uuid::from_u128(n);
        let taken = |n| {
            let (holder, claim_id) = (format!("scheduler/{n}"), claim(n));
            L::Taken(Taken { role: "scheduler".into(), holder, claim_id, ..Taken::default() })
        };
        let mut history = History::default();
        history.tell("lease-scheduler", taken(1)).tell("lease-scheduler", taken(2));
        let leases =
            |history: &History| Workers(history.fold::<Projected>(&[1]).reader.clone()).leases().unwrap();
        let held = leases(&history);
        assert_eq!((held.len(), held[0].holder.as_str(), held[0].taken_at), (1, "scheduler/2", at(2)));
        history
            .tell("lease-scheduler", L::Released(Released { role: "scheduler".into(), claim_id: claim(2) }));
        assert_eq!(leases(&history), []);
    }
}
