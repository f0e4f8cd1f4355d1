//! What a verification of a whole log says, whatever keeps the log.

use std::hash::{DefaultHasher, Hasher};

use crate::Head;
use crate::event::Position;

/// Something that is not as it was written, or not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A file or table, and where in it.
    pub place: String,
    pub what: String,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    pub position: Position,
    pub of: Position,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub events: u64,
    pub streams: u64,
    pub redacted: u64,
    /// The end of what was checked.
    pub head: Head,
    /// Empty when all is well.
    pub faults: Vec<Fault>,
}

/// More faults than this are not listed: a log that bad is replaced, not read about.
pub(crate) const MOST_FAULTS: usize = 1000;

/// A sum over entries that does not depend on their order: the same entries, the same sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub count: u64,
    sum: u64,
}

impl Entries {
    pub fn add(&mut self, entry: impl std::hash::Hash) {
        let mut hasher = DefaultHasher::new();
        entry.hash(&mut hasher);
        self.count += 1;
        self.sum = self.sum.wrapping_add(hasher.finish());
    }
}
