//! The read model behind channels, rules, silences, alerts and deliveries: follows `channel-*`, `rule-*`, `silence-*`,
//! `alert-*` and `delivery-*`; reads nothing but its own rows. The deliveries that are due are the to-do list of the post.
//! `notices` is that of what other channels are to be told of one that was disabled; `delivery.enqueued` takes it away.

use std::sync::Arc;

use beampipe_domain::Event;
use beampipe_domain::rule::Severity;
use rusqlite::{Connection, Result};

use crate::counts::Counts;
use crate::projection::Projection;
use crate::{AlertGauges, Envelope, Gauges};

mod alert;
#[cfg(test)]
mod channel_tests;
mod delivery;
mod managed;
mod read;
#[cfg(test)]
mod tests;
pub use read::*;

/// How deliveries end, as counters name it.
pub const ENDS: &[&str] = &["sent", "failed"];

pub(crate) struct Projected;

impl Projection for Projected {
    const NAME: &'static str = "alerts";
    const VERSION: u32 = 2;
    const SCHEMA: &'static str = include_str!("../migrations/views/alerts.sql");
    const CATEGORIES: &'static [&'static str] = &["channel", "rule", "silence", "alert", "delivery"];
    type Rows = ();
    type Gauges = AlertGauges;

    fn wants(event: &Event) -> bool {
        use Event as E;
        matches!(event, E::Channel(_) | E::Rule(_) | E::Silence(_) | E::Alert(_) | E::Delivery(_))
    }

    fn apply(db: &Connection, _rows: &mut (), counts: &mut Counts, envelope: &Envelope) -> Result<()> {
        match &envelope.event {
            Event::Channel(event) => managed::channel(db, envelope, event),
            Event::Rule(event) => managed::rule(db, envelope, event),
            Event::Silence(event) => managed::silence(db, envelope, event),
            Event::Alert(event) => alert::apply(db, counts, envelope, event),
            Event::Delivery(event) => delivery::apply(db, counts, envelope, event),
            _ => Ok(()),
        }
    }

    fn gauges(_db: &Connection, counts: &Counts) -> Result<AlertGauges> {
        let mut firing = counts.by_first("firing");
        for severity in Severity::ALL {
            firing.entry(severity.as_str().to_owned()).or_default();
        }
        let mut deliveries = counts.by_both("deliveries");
        for kind in beampipe_domain::channel::Config::KINDS {
            for end in ENDS {
                deliveries.entry(((*kind).to_owned(), (*end).to_owned())).or_default();
            }
        }
        Ok(AlertGauges { firing, deliveries })
    }

    fn publish(gauges: &mut Gauges, part: Arc<AlertGauges>) {
        gauges.alerts = part;
    }
}
