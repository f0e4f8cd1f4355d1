//! **Admission**: which pending sources become executions now. A pure policy over counts; what it says is carried out by
//! the scheduler through the source's and the execution's own deciders.

use uuid::Uuid;

words! {
    /// Why nothing, or not more, was admitted.
    pub enum Skip {
        Disabled = "disabled",
        QueueFull = "queue_full",
        TapUnreachable = "tap_unreachable",
        InFlightCap = "in_flight_cap",
        ProjectInFlightCap = "project_in_flight_cap",
        ProfileInFlightCap = "profile_in_flight_cap",
        RateLimited = "rate_limited",
        ThresholdNotMet = "threshold_not_met",
        MaxBatchesPerTick = "max_batches_per_tick",
        SourcesSkippedNotReady = "sources_skipped_not_ready",
        NoPendingSources = "no_pending_sources",
    }
}

/// What bounds the admission of one project in one tick. `None` is no bound.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    pub enabled: bool,
    /// Why admission is paused, by a person.
    pub paused: Option<String>,
    pub max_sources_per_execution: usize,
    pub min_sources_to_trigger: usize,
    /// A source that has waited this long, in seconds, is admitted below the threshold.
    pub max_wait_seconds: Option<i64>,
    pub sources_per_tick: Option<usize>,
    pub executions_per_tick: Option<usize>,
    pub project_in_flight: Option<usize>,
    pub profile_in_flight: Option<usize>,
    pub installation_in_flight: Option<usize>,
}

/// What is live now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub installation: usize,
    pub project: usize,
    pub profile: usize,
}

/// A source that waits to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub source_id: Uuid,
    pub signature: String,
    /// How long it has waited, in seconds.
    pub waited_seconds: i64,
}

/// What is admitted, one execution an item, oldest sources first; and why not more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub executions: Vec<Vec<Candidate>>,
    pub skip: Option<Skip>,
}

/// Says which of `candidates` (oldest first) are admitted.
pub fn decide(limits: &Limits, counts: Counts, candidates: &[Candidate]) -> Decision {
    let none = |skip| Decision { executions: vec![], skip: Some(skip) };
    if !limits.enabled || limits.paused.is_some() {
        return none(Skip::Disabled);
    }
    if candidates.is_empty() {
        return none(Skip::NoPendingSources);
    }
    let waited_long = limits
        .max_wait_seconds
        .is_some_and(|limit| candidates.iter().any(|candidate| candidate.waited_seconds >= limit));
    if candidates.len() < limits.min_sources_to_trigger && !waited_long {
        return none(Skip::ThresholdNotMet);
    }
    let room = [
        (limits.installation_in_flight, counts.installation, Skip::InFlightCap),
        (limits.project_in_flight, counts.project, Skip::ProjectInFlightCap),
        (limits.profile_in_flight, counts.profile, Skip::ProfileInFlightCap),
        (limits.executions_per_tick, 0, Skip::MaxBatchesPerTick),
    ];
    let narrowest = room
        .into_iter()
        .filter_map(|(limit, live, skip)| limit.map(|limit| (limit.saturating_sub(live), skip)))
        .min_by_key(|(room, _)| *room);
    let taken = candidates.len().min(limits.sources_per_tick.unwrap_or(usize::MAX));
    let batches =
        candidates[..taken].chunks(limits.max_sources_per_execution.max(1)).map(<[Candidate]>::to_vec);
    let wanted = batches.len();
    match narrowest {
        Some((room, skip)) if room < wanted => {
            Decision { executions: batches.take(room).collect(), skip: Some(skip) }
        }
        _ => Decision {
            executions: batches.collect(),
            skip: (taken < candidates.len()).then_some(Skip::MaxBatchesPerTick),
        },
    }
}

/// Whether an execution goes on, when `ahead` that were asked for before it on its profile have not ended and `most` run
/// there at once. The log orders them, so all who ask agree.
pub fn has_room(most: Option<u32>, ahead: u64) -> bool {
    most.is_none_or(|most| ahead < u64::from(most))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(n: usize) -> Vec<Candidate> {
        let one = |n| Candidate {
            source_id: Uuid::from_u128(n as u128),
            signature: "s".into(),
            waited_seconds: 10,
        };
        (0..n).map(one).collect()
    }

    fn open() -> Limits {
        Limits { enabled: true, max_sources_per_execution: 1, min_sources_to_trigger: 1, ..Limits::default() }
    }

    #[test]
    fn a_paused_project_admits_nothing() {
        let limits = Limits { paused: Some("storm".into()), ..open() };
        assert_eq!(decide(&limits, Counts::default(), &candidates(3)).skip, Some(Skip::Disabled));
    }

    #[test]
    fn the_narrowest_cap_is_named() {
        let limits = Limits { project_in_flight: Some(5), profile_in_flight: Some(3), ..open() };
        let decision = decide(&limits, Counts { installation: 2, project: 2, profile: 2 }, &candidates(4));
        assert_eq!((decision.executions.len(), decision.skip), (1, Some(Skip::ProfileInFlightCap)));
    }

    #[test]
    fn a_source_that_waited_long_is_admitted_below_the_threshold() {
        let limits = Limits { min_sources_to_trigger: 10, max_wait_seconds: Some(11), ..open() };
        assert_eq!(decide(&limits, Counts::default(), &candidates(2)).skip, Some(Skip::ThresholdNotMet));
        let limits = Limits { max_wait_seconds: Some(10), ..limits };
        assert_eq!(decide(&limits, Counts::default(), &candidates(2)).executions.len(), 2);
    }

    #[test]
    fn of_a_line_as_many_go_on_as_there_is_room_for() {
        let going = |most| (0..5).filter(|ahead| has_room(most, *ahead)).count();
        assert_eq!([Some(0), Some(1), Some(3), None].map(going), [0, 1, 3, 5]);
    }

    proptest! {
        #[test]
        fn no_cap_is_ever_exceeded(
            n in 0usize..40, per in 1usize..5, cap in 0usize..10, live in 0usize..10, tick in 0usize..10,
        ) {
            let limits = Limits {
                max_sources_per_execution: per, project_in_flight: Some(cap), executions_per_tick: Some(tick), ..open()
            };
            let decision = decide(&limits, Counts { project: live, ..Counts::default() }, &candidates(n));
            prop_assert!(decision.executions.len() <= tick);
            prop_assert!(decision.executions.is_empty() || live + decision.executions.len() <= cap);
            let admitted: usize = decision.executions.iter().map(Vec::len).sum();
            prop_assert!(admitted == n || decision.skip.is_some(), "whoever is left out is told why");
        }
    }
}
