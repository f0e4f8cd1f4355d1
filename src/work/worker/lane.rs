//! **Lanes**: kinds of jobs that wait for different things do not wait for each other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use beampipe_domain::job::Kind;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Kinds that wait for the same thing, and how many of them run at once: of each project, or of all.
pub(super) struct Lane {
    pub kinds: &'static [Kind],
    room: usize,
    by_project: bool,
    permits: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Jobs that the last look left because their profile is full: the next one looks behind them.
    pub without_room: AtomicUsize,
}

impl Lane {
    pub fn new(kinds: &'static [Kind], room: usize, by_project: bool) -> Self {
        Self { kinds, room, by_project, permits: Mutex::default(), without_room: AtomicUsize::new(0) }
    }

    /// Room for one more job of a project.
    pub fn permit(&self, project: Option<&str>) -> Option<OwnedSemaphorePermit> {
        let of = if self.by_project { project.unwrap_or_default() } else { "" };
        let mut permits = self.permits.lock();
        let room = permits.entry(of.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.room)));
        room.clone().try_acquire_owned().ok()
    }

    /// For how many more there is room, in a lane that is not by project.
    pub fn free(&self) -> usize {
        self.permits.lock().get("").map_or(self.room, |room| room.available_permits())
    }

    pub fn is_for_watches(&self) -> bool {
        self.kinds == WATCH
    }

    /// Whose room is taken; `None` when nobody has any.
    pub fn full(&self) -> Option<Vec<String>> {
        let mut permits = self.permits.lock();
        permits.retain(|_, room| room.available_permits() < self.room);
        let full = permits.iter().filter(|(_, room)| room.available_permits() == 0);
        let full: Vec<String> = full.map(|(of, _)| of.clone()).collect();
        if self.by_project || full.is_empty() { Some(full) } else { None }
    }
}

pub(super) const DISCOVER: &[Kind] = &[Kind::DiscoverBatch];
pub(super) const EXECUTE: &[Kind] = &[Kind::Execute];
pub(super) const WATCH: &[Kind] = &[Kind::DimPoll, Kind::SlurmPollTick];
pub(super) const TICK: &[Kind] =
    &[Kind::SchedulerTick, Kind::ExecutionSchedulerTick, Kind::DimPollTick, Kind::AlertEvaluatorTick];
