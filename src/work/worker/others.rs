//! The **other workers**, as this one hears them: whose heartbeat stands still, and who could take watches.
//!
//! A watch is given away only to somebody who was heard to beat here and has said that there is room: a worker that is on
//! the list of workers and has died since would leave live executions unwatched for a lease.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use beampipe_domain::worker::can_do;
use beampipe_log::Beat;
use beampipe_projections::workers::Worker;
use serde_json::Value;

/// The fact of a heartbeat that says how many more watches its worker takes.
pub(super) const WATCH_ROOM: &str = "watch_room";

/// What was heard of each.
#[derive(Default)]
pub(super) struct Others(HashMap<String, Heard>);

struct Heard {
    counter: u64,
    /// Since when the counter stands there, by this process's monotonic clock.
    since: Instant,
    /// Whether it was heard to beat, and not only found to have beaten once.
    beats: bool,
    watch_room: u64,
}

impl Others {
    /// Takes in the heartbeats of the workers that are asked about, and forgets the rest.
    pub fn hear(&mut self, beats: &[Beat], workers: &BTreeSet<String>) {
        let said: HashMap<&str, &Beat> = beats.iter().map(|beat| (beat.who.as_str(), beat)).collect();
        self.0.retain(|id, _| workers.contains(id));
        for id in workers {
            let beat = said.get(id.as_str());
            let counter = beat.map_or(0, |beat| beat.counter);
            let first = || Heard { counter, since: Instant::now(), beats: false, watch_room: 0 };
            let heard = self.0.entry(id.clone()).or_insert_with(first);
            if heard.counter != counter {
                (heard.counter, heard.since, heard.beats) = (counter, Instant::now(), true);
            }
            let room = beat.and_then(|beat| beat.facts.get(WATCH_ROOM)).and_then(Value::as_u64);
            heard.watch_room = room.unwrap_or(0);
        }
    }

    /// A heartbeat that cannot be read does not stand still: the clocks begin anew.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// For how long a worker's heartbeat has stood still.
    pub fn silence(&self, worker: &str) -> Duration {
        self.0.get(worker).map_or(Duration::ZERO, |heard| heard.since.elapsed())
    }

    /// Who of `workers` could take watches, but for this one.
    pub fn takers(&self, workers: &[Worker], own: &str, lease: Duration) -> Takers {
        let room = |worker: &Worker| {
            let heard = self.0.get(&worker.id)?;
            let lives = heard.beats && heard.since.elapsed() < lease;
            (lives && worker.status == "active" && worker.id != own).then_some(heard.watch_room)
        };
        let takers = workers.iter().filter_map(|one| Some((one.capabilities.clone(), room(one)?)));
        Takers(takers.filter(|(_, room)| *room > 0).collect())
    }
}

/// What others can do, and how many more watches they take.
#[derive(Clone, Debug, Default)]
pub(super) struct Takers(Vec<(Vec<String>, u64)>);

impl Takers {
    /// Whether somebody could take a watch that needs this.
    pub fn can(&self, needs: Option<&str>) -> bool {
        self.0.iter().any(|(able, room)| fits(able, *room, needs))
    }

    /// Counts a watch as taken; answers whether somebody could.
    pub fn take(&mut self, needs: Option<&str>) -> bool {
        let taker = self.0.iter_mut().find(|(able, room)| fits(able, *room, needs));
        taker.map(|(_, room)| *room -= 1).is_some()
    }
}

fn fits(able: &[String], room: u64, needs: Option<&str>) -> bool {
    room > 0 && needs.is_none_or(|needs| can_do(able, needs))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn worker(id: &str, status: &str) -> Worker {
        Worker {
            started_position: 1,
            id: id.into(),
            instance_name: String::new(),
            host: String::new(),
            pool: String::new(),
            capabilities: vec!["dim".into()],
            concurrency_limit: 1,
            process_id: 1,
            version: String::new(),
            status: status.into(),
            reason: None,
            started_at: DateTime::UNIX_EPOCH,
            draining_at: None,
            stopped_at: None,
            lost: false,
            revision: 0,
            last_event_at: DateTime::UNIX_EPOCH,
        }
    }

    fn beat(who: &str, counter: u64, room: u64) -> Beat {
        Beat { who: who.into(), counter, at: DateTime::UNIX_EPOCH, facts: json!({ WATCH_ROOM: room }) }
    }

    fn heard(beats: &[&[Beat]]) -> Others {
        let mut others = Others::default();
        for beats in beats {
            others.hear(beats, &["a", "b", "me"].map(str::to_owned).into());
        }
        others
    }

    #[test]
    fn a_watch_is_only_given_to_somebody_who_was_heard_to_beat_and_has_room() {
        let can = |others: &Others, worker: &Worker, needs: &str| {
            others.takers(std::slice::from_ref(worker), "me", LEASE).can(Some(needs))
        };
        let active = worker("a", "active");
        assert!(!can(&heard(&[&[beat("a", 7, 5)]]), &active, "dim"), "found, and perhaps dead since");
        let lives = heard(&[&[beat("a", 7, 5)], &[beat("a", 8, 5)]]);
        assert!(can(&lives, &active, "dim"));
        assert!(!can(&lives, &active, "slurm:x"), "it cannot do it");
        assert!(!can(&lives, &worker("a", "draining"), "dim"), "it gives its own away");
        assert!(
            lives.takers(std::slice::from_ref(&active), "a", LEASE).0.is_empty(),
            "nobody gives to himself"
        );
        assert!(
            lives.takers(std::slice::from_ref(&active), "me", Duration::ZERO).0.is_empty(),
            "silent for a lease"
        );
        assert!(!can(&heard(&[&[beat("a", 7, 5)], &[beat("a", 8, 0)]]), &active, "dim"), "it is full");
        assert!(!can(&heard(&[&[], &[]]), &active, "dim"), "it was never heard");
    }

    #[test]
    fn no_more_is_given_away_than_there_is_room_for() {
        let others = heard(&[&[beat("a", 1, 2), beat("b", 1, 1)], &[beat("a", 2, 2), beat("b", 2, 1)]]);
        let mut takers = others.takers(&[worker("a", "active"), worker("b", "active")], "me", LEASE);
        let taken = (0..5).filter(|_| takers.take(Some("dim"))).count();
        assert_eq!(taken, 3);
        assert!(!takers.can(Some("dim")));
    }
}
