//! What a projection is, and the list of them.

use std::path::Path;
use std::sync::Arc;

use beampipe_domain::Event;
use rusqlite::{Connection, Result};

use crate::counts::Counts;
use crate::file::{File, Fold};
use crate::{Envelope, Gauges, accounts, alerts, dependencies, executions, jobs, projects, sources, workers};

/// The code that follows the log and keeps the rows of one read model: a pure function of events.
///
/// The runner owns the transaction, the checkpoint and the counts, so that none can be forgotten.
pub(crate) trait Projection: Send + 'static {
    const NAME: &'static str;
    /// Raise it when `apply` or the schema changes meaning: the runner rebuilds beside and switches.
    const VERSION: u32;
    const SCHEMA: &'static str;
    /// The categories of the streams it follows.
    const CATEGORIES: &'static [&'static str];
    /// Rows that are changed in memory until their batch is written; `()` where every event is a statement.
    type Rows: Default;
    /// The numbers it shows.
    type Gauges: Send + Sync;

    /// Whether `apply` does anything with it.
    fn wants(event: &Event) -> bool;

    /// Folds one event into the rows and counts.
    fn apply(db: &Connection, rows: &mut Self::Rows, counts: &mut Counts, envelope: &Envelope) -> Result<()>;

    /// Writes the rows that were changed in memory, before the transaction ends.
    fn flush(_db: &Connection, _rows: &mut Self::Rows) -> Result<()> {
        Ok(())
    }

    /// The numbers as they are now, from counts and indexed queries.
    fn gauges(db: &Connection, counts: &Counts) -> Result<Self::Gauges>;

    /// Puts its part into the whole.
    fn publish(gauges: &mut Gauges, part: Arc<Self::Gauges>);
}

/// A read model, without its type.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub name: &'static str,
    pub version: u32,
    pub categories: &'static [&'static str],
    pub open: fn(&Path) -> Result<Box<dyn Fold>>,
}

fn open<P: Projection>(path: &Path) -> Result<Box<dyn Fold>> {
    Ok(Box::new(File::<P>::open(path)?))
}

const fn kind<P: Projection>() -> Kind {
    Kind { name: P::NAME, version: P::VERSION, categories: P::CATEGORIES, open: open::<P> }
}

/// Every read model. The order is that of the handles in [`crate::Models`].
pub(crate) const ALL: [Kind; 8] = [
    kind::<executions::Projected>(),
    kind::<sources::Projected>(),
    kind::<jobs::Projected>(),
    kind::<workers::Projected>(),
    kind::<dependencies::Projected>(),
    kind::<projects::Projected>(),
    kind::<accounts::Projected>(),
    kind::<alerts::Projected>(),
];

/// The names of the read models.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|kind| kind.name)
}
