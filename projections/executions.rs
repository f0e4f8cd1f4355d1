//! The read model behind executions: follows `execution-*`, reads nothing but its own rows.
//!
//! One row an execution as it is now, one an attempt that was announced to a backend (`sessions`, whose `terminal` is
//! written once), one an artifact. What an execution looked like at some time is not here: its events say it.

use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe_domain::Event;
use rusqlite::{Connection, OptionalExtension, Result};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::{Envelope, ExecutionGauges, Gauges};

mod fold;
mod read;
mod stored;
mod words;
pub use read::*;
pub use words::{LIVE_STATUSES, STATUSES, SUBMISSION_STATES};

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "executions";
    const VERSION: u32 = 4;
    const SCHEMA: &'static str = include_str!("../migrations/views/executions.sql");
    const CATEGORIES: &'static [&'static str] = &["execution"];
    type Rows = stored::Rows;
    type Gauges = ExecutionGauges;

    fn wants(event: &Event) -> bool {
        matches!(event, Event::Execution(_))
    }

    fn apply(db: &Connection, rows: &mut Self::Rows, counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        let Event::Execution(event) = &envelope.event else { return Ok(()) };
        fold::fold(db, rows, counts, envelope, event)
    }

    fn flush(db: &Connection, rows: &mut Self::Rows) -> Result<()> {
        rows.executions.flush(db)?;
        rows.sessions.flush(db)
    }

    fn gauges(db: &Connection, counts: &Counts) -> Result<ExecutionGauges> {
        let mut by_status: BTreeMap<String, u64> = STATUSES.iter().map(|s| ((*s).to_owned(), 0)).collect();
        for (_, status, n) in counts.of("status") {
            *by_status.entry(status.to_owned()).or_default() += n;
        }
        let mut oldest = db.prepare_cached(
            "SELECT created_at FROM executions WHERE status = ?1 ORDER BY created_position LIMIT 1",
        )?;
        let mut oldest_active_created_at = BTreeMap::new();
        for status in LIVE_STATUSES {
            let at = match by_status.get(*status) {
                Some(0) | None => None,
                Some(_) => oldest.query_row([status], |row| crate::sql::column(row, 0)).optional()?,
            };
            oldest_active_created_at.insert((*status).to_owned(), at);
        }
        let by_external_state = counts.by_both("state");
        let uncertain = ("submission".to_owned(), "uncertain".to_owned());
        Ok(ExecutionGauges {
            by_status,
            by_project_status: counts.by_both("status"),
            entered: counts.by_both("entered"),
            oldest_active_created_at,
            in_flight_by_scheduler: counts.by_first("in_flight_scheduler"),
            in_flight_by_project: counts.by_first("in_flight_project"),
            in_flight_by_profile: counts.by_first("in_flight_profile"),
            in_flight: counts.total("in_flight_scheduler"),
            retries: counts.by_first("retries"),
            admitted: counts.by_first("admitted"),
            terminal: counts.by_both("terminal"),
            reconciliation_risk: by_external_state.get(&uncertain).copied().unwrap_or(0),
            by_external_state,
        })
    }

    fn publish(gauges: &mut Gauges, part: Arc<ExecutionGauges>) {
        gauges.executions = part;
    }
}

#[cfg(test)]
mod tests;
