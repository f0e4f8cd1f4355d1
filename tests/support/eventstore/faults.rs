//! What calls are to suffer, in the order in which they come.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

/// What happens to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut before anything is written.
    CutBefore,
    /// It is written, and the connection is cut before the answer.
    CutAfter,
    /// It is written this much later, whether or not anybody still waits.
    WriteLate(Duration),
    /// It is written, and answered this much later.
    AnswerLate(Duration),
}

/// Faults to come.
#[derive(Debug, Default)]
pub struct Faults {
    appends: Mutex<VecDeque<Fault>>,
    reads: Mutex<Option<Duration>>,
}

impl Faults {
    /// The append after those already spoken for suffers `fault`. Beats are no appends.
    pub fn next_append(&self, fault: Fault) {
        self.appends.lock().push_back(fault);
    }

    /// Every read is answered this much later.
    pub fn delay_reads(&self, by: Option<Duration>) {
        *self.reads.lock() = by;
    }

    pub(crate) fn take_append(&self) -> Option<Fault> {
        self.appends.lock().pop_front()
    }

    pub(crate) fn read_delay(&self) -> Option<Duration> {
        *self.reads.lock()
    }
}
