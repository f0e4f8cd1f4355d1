//! **Presence**: volatile facts about processes, kept in memory and lost with it.
//!
//! Engines that serve one process use it as it is; engines that several processes share keep beats where all can see them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::Value;

use crate::{Beat, Clock};

/// The latest beat of everyone in this process.
#[derive(Default)]
pub struct Presence {
    beats: Mutex<BTreeMap<String, Beat>>,
}

impl Presence {
    /// Replaces the facts of `who` and raises its counter.
    pub fn beat(&self, who: &str, facts: Value, clock: &Clock) {
        let at = clock();
        let mut beats = self.beats.lock();
        match beats.get_mut(who) {
            Some(beat) => {
                beat.counter += 1;
                beat.at = at;
                beat.facts = facts;
            }
            None => {
                beats.insert(who.to_owned(), Beat { who: who.to_owned(), counter: 1, at, facts });
            }
        }
    }

    /// Everyone, in order of name.
    pub fn beats(&self) -> Vec<Beat> {
        self.beats.lock().values().cloned().collect()
    }
}
