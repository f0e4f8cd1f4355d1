//! What only this process **knows** of the executions that it watches: counts and times that are worth no event.
//!
//! Kept for what is ours now, and for nothing else: what has left (ended, abandoned, given to another attempt) leaves with
//! what was told of its watch, or the heartbeat would go on saying that it is looked at.

use std::collections::HashMap;

use tokio::time::Instant;
use uuid::Uuid;

use crate::work::{Poll, Polls};

/// One execution, in its present attempt.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known {
    attempt: u32,
    /// Polls that saw its present state.
    pub seen: u64,
    /// Polls in a row that said nothing of its job.
    pub silent: u32,
    /// When what its job left could last not be read in time.
    pub slow: Option<Instant>,
    /// When Slurm was last asked to end its job.
    pub told_to_cancel: Option<Instant>,
}

pub(super) struct Memory<'a> {
    polls: &'a Polls,
    of: HashMap<Uuid, Known>,
}

impl<'a> Memory<'a> {
    /// `polls` is what is told of the watches of this process.
    pub fn new(polls: &'a Polls) -> Self {
        Self { polls, of: HashMap::new() }
    }

    /// Begins to know what is ours, and forgets the rest.
    pub fn keep(&mut self, ours: impl Iterator<Item = (Uuid, u32)>) {
        let mut before = std::mem::take(&mut self.of);
        for (id, attempt) in ours {
            let known = before.remove(&id).filter(|known| known.attempt == attempt);
            self.of.insert(id, known.unwrap_or(Known { attempt, ..Known::default() }));
        }
        before.into_keys().for_each(|id| self.polls.forget(id));
    }

    pub fn of(&mut self, id: Uuid) -> Option<&mut Known> {
        self.of.get_mut(&id)
    }

    pub fn forget(&mut self, id: Uuid) {
        if self.of.remove(&id).is_some() {
            self.polls.forget(id);
        }
    }

    /// Says how a watch goes, of what is still watched.
    pub fn tell(&self, id: Uuid, poll: Poll) {
        if self.of.contains_key(&id) {
            self.polls.note(id, poll);
        }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.keep(std::iter::empty());
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn poll() -> Poll {
        let at = DateTime::<Utc>::UNIX_EPOCH;
        Poll { round: 1, started_at: at, last_poll_at: at, next_poll_at: at, trouble: None, note: None }
    }

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    #[test]
    fn what_has_left_is_forgotten_with_what_was_told_of_it() {
        let polls = Polls::default();
        let mut memory = Memory::new(&polls);
        memory.keep([(ONE, 1), (OTHER, 1)].into_iter());
        memory.tell(ONE, poll());
        memory.tell(OTHER, poll());
        memory.of(ONE).unwrap().seen = 7;
        memory.keep([(ONE, 1)].into_iter());
        assert_eq!(polls.all().into_keys().collect::<Vec<_>>(), [ONE]);
        assert_eq!(memory.of(ONE).unwrap().seen, 7, "what stayed is known as before");
        assert_eq!(memory.of(OTHER), None);
        memory.tell(OTHER, poll());
        assert!(polls.get(OTHER).is_none(), "a late word about it is not passed on");
        memory.forget(ONE);
        assert!(polls.all().is_empty());
    }

    #[test]
    fn another_attempt_is_another_job() {
        let polls = Polls::default();
        let mut memory = Memory::new(&polls);
        memory.keep([(ONE, 1)].into_iter());
        memory.of(ONE).unwrap().told_to_cancel = Some(Instant::now());
        memory.keep([(ONE, 2)].into_iter());
        assert_eq!(*memory.of(ONE).unwrap(), Known { attempt: 2, ..Known::default() });
    }

    #[test]
    fn a_watch_that_ends_takes_back_what_it_told_and_nothing_else() {
        let polls = Polls::default();
        polls.note(OTHER, poll());
        let mut memory = Memory::new(&polls);
        memory.keep([(ONE, 1)].into_iter());
        memory.tell(ONE, poll());
        drop(memory);
        assert_eq!(polls.all().into_keys().collect::<Vec<_>>(), [OTHER]);
    }
}
