//! The **contract**: what every engine must answer, one clause a function, generic over the port.
//!
//! An engine's tests say [`log_contract!`](crate::log_contract) with a way to make an empty log, and get one test a clause.
//! The clauses panic where they are broken; this module is for tests and is public because engines live in several crates.

#![expect(clippy::unwrap_used, reason = "a broken clause is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use uuid::Uuid;

use crate::event::{NewEvent, Position, Recorded};
use crate::{
    AppendError, Appended, Clock, Direction, Expected, Filter, Log, MAX_APPEND_BYTES, MAX_EVENT_BYTES,
    RedactError, StreamHead, Subscription, leaf, redaction,
};

mod following;
mod redacting;
mod writing;

pub use following::*;
pub use redacting::*;
pub use writing::*;

/// How long a clause waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// One test for each clause. `$make` is an async function that gives `(Arc<dyn Log>, guard)`, an empty log and whatever
/// must live as long as it.
#[macro_export]
macro_rules! log_contract {
    ($make:expr) => {
        $crate::log_contract!(@clauses $make;
            a_fresh_log_is_empty
            what_was_appended_is_read_back_as_it_was
            positions_rise_in_order_of_commit
            recorded_at_never_decreases
            each_event_is_chained_to_the_one_before
            an_unmet_expectation_is_a_conflict_that_says_where_the_stream_is
            an_expected_hash_that_differs_is_a_conflict
            the_same_append_again_gets_the_first_answer
            the_same_append_again_is_known_when_the_stream_has_moved_on
            other_events_at_the_same_place_are_a_conflict
            appends_race_and_one_wins_each_revision
            an_append_is_all_or_nothing
            what_is_over_a_limit_is_refused_and_says_so
            an_append_without_events_is_refused
            a_stream_is_read_in_both_directions
            everything_is_read_in_both_directions_by_pages
            every_filter_reads_what_it_matches_and_nothing_else
            an_event_is_found_by_its_id
            a_subscription_catches_up_and_goes_on_live
            a_subscription_says_once_that_it_caught_up
            a_subscription_that_races_with_appends_misses_and_repeats_nothing
            a_slow_subscriber_misses_nothing_and_stalls_nobody
            a_filtered_subscription_equals_a_filtered_read
            a_checkpoint_moves_on_when_nothing_matches
            a_dropped_wait_loses_nothing
            an_answered_append_is_seen_by_every_reader
            a_reader_that_saw_a_position_never_sees_an_earlier_one_appear
            a_redaction_removes_data_and_keeps_proofs
            a_redaction_is_recorded_once
            a_redaction_needs_a_record_that_names_its_event
            beats_rise_and_the_last_facts_win
            a_closed_log_refuses_and_keeps_what_it_took
        );
    };
    (@clauses $make:expr; $($clause:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $clause() {
                let (log, guard) = $make().await;
                $crate::contract::$clause(log).await;
                drop(guard);
            }
        )*
    };
}

/// A clock that stands still until it is moved.
#[derive(Clone)]
pub struct HandClock(Arc<parking_lot::Mutex<DateTime<Utc>>>);

impl Default for HandClock {
    fn default() -> Self {
        Self(Arc::new(parking_lot::Mutex::new(DateTime::from_timestamp(1_790_000_000, 123_456_000).unwrap())))
    }
}

impl HandClock {
    pub fn now(&self) -> DateTime<Utc> {
        *self.0.lock()
    }

    pub fn advance(&self, by: TimeDelta) {
        *self.0.lock() += by;
    }

    pub fn clock(&self) -> Clock {
        let hand = self.clone();
        Arc::new(move || hand.now())
    }
}

/// A clock for logs whose times do not matter: each reading is a microsecond later.
pub fn ticking_clock() -> Clock {
    let hand = HandClock::default();
    Arc::new(move || {
        hand.advance(TimeDelta::microseconds(1));
        hand.now()
    })
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A random id.
pub fn random_id() -> Uuid {
    uuid::Builder::from_random_bytes(random()).into_uuid()
}

/// An event that says `text`.
pub fn sample(text: &str) -> NewEvent {
    NewEvent {
        id: random_id(),
        event_type: "thing.happened".into(),
        schema_version: 1,
        occurred_at: DateTime::from_timestamp(1_780_000_000, 987_654_321).unwrap(),
        actor: "system:test/1".into(),
        correlation_id: random_id(),
        causation_id: None,
        tags: vec!["project:wallaby".into()],
        data: Bytes::from(serde_json::json!({ "text": text }).to_string()),
        salt: random(),
    }
}

/// As [`sample`], with these tags.
pub fn tagged(text: &str, tags: &[&str]) -> NewEvent {
    NewEvent { tags: tags.iter().map(|&tag| tag.to_owned()).collect(), ..sample(text) }
}

/// Appends where the stream is, however often somebody else is faster.
pub async fn append_at_end(log: &dyn Log, stream: &str, events: Vec<NewEvent>) -> Appended {
    let mut expected = Expected::from(log.stream_head(stream).await.unwrap());
    loop {
        match log.append(stream, expected, events.clone()).await {
            Ok(appended) => return appended,
            Err(AppendError::Conflict { actual, .. }) => expected = actual.into(),
            Err(AppendError::Busy) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Every event that matches, by pages.
pub async fn read_matching(log: &dyn Log, filter: &Filter, page: usize) -> Vec<Arc<Recorded>> {
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        let page = log.read_all(from, Direction::Forward, page, filter).await.unwrap();
        found.extend(page.events);
        match page.next {
            Some(next) => {
                assert!(next > from, "a next page starts later");
                from = next;
            }
            None => return found,
        }
    }
}

/// Takes from a subscription until it has been through `position`.
pub async fn follow_through(
    subscription: &mut Subscription,
    position: Position,
    max: usize,
) -> Vec<Arc<Recorded>> {
    let mut found = Vec::new();
    let mut through = 0;
    while through < position {
        let batch = tokio::time::timeout(PATIENCE, subscription.next_batch(max)).await;
        let batch = batch.expect("the subscription goes on").unwrap();
        assert!(batch.events.len() <= max, "no more than was asked for");
        assert!(batch.through >= through, "a checkpoint never goes back");
        if let Some(last) = batch.events.last() {
            assert!(last.position <= batch.through, "a checkpoint covers its events");
        }
        through = batch.through;
        found.extend(batch.events);
    }
    found
}

/// The positions of events.
pub fn positions(events: &[Arc<Recorded>]) -> Vec<Position> {
    events.iter().map(|event| event.position).collect()
}
