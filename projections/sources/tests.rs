use beampipe_domain::execution::{Completed, Created, Event as X, Failed, RequestedSource};
use beampipe_domain::source::{Check, Command as C, Outcome, Source as State};

use proptest::prelude::*;

use super::*;
use crate::reader::Window;
use crate::testing::{Folded, History, at, id};

fn stream(n: u128) -> String {
    format!("source-{}", id(n))
}

fn register(n: u128) -> C {
    C::Register { project_module: "p".into(), source_identifier: format!("S{n}"), enabled: true }
}

fn found(signature: &str) -> C {
    check(Outcome::Found {
        signature: signature.into(),
        dataset_count: 3,
        sbids: vec!["34275".into()],
        metadata_sha256: "m".into(),
    })
}

fn check(outcome: Outcome) -> C {
    C::RecordDiscovery { outcome, check: Check { duration_ms: 5, ..Check::default() } }
}

fn admit(execution: u128, signature: &str) -> C {
    C::Admit { execution_id: id(execution), signature: signature.into() }
}

fn error() -> C {
    check(Outcome::Error { step: "prepare".into(), error: "no file".into() })
}

fn run(execution: u128, source: u128, signature: &str) -> (String, X) {
    let sources = vec![RequestedSource {
        source_id: id(source),
        signature: Some(signature.into()),
        ..RequestedSource::default()
    }];
    let created = Created { project_module: "p".into(), sources, ..Created::default() };
    (format!("execution-{}", id(execution)), X::Created(Box::new(created)))
}

fn given(history: &mut History, n: u128, commands: impl IntoIterator<Item = C>) -> State {
    let mut state = State::default();
    for command in commands {
        assert!(history.decide(&stream(n), &mut state, command.clone()), "{command:?} on {state:?}");
    }
    state
}

fn then(history: &History) -> (Sources, Folded) {
    let folded = history.fold::<Projected>(&[]);
    (Sources(folded.reader.clone()), folded)
}

fn phase(history: &History) -> String {
    then(history).0.get(id(1)).unwrap().unwrap().phase
}

#[test]
fn a_source_goes_through_its_phases() {
    let mut history = History::default();
    let mut state = given(&mut history, 1, [register(1)]);
    assert_eq!(phase(&history), "registered");
    let mut step = |history: &mut History, command| {
        assert!(history.decide(&stream(1), &mut state, command));
        phase(history)
    };
    assert_eq!(step(&mut history, check(Outcome::NoDatasets)), "no_datasets");
    assert_eq!(step(&mut history, found("a")), "pending");
    assert_eq!(step(&mut history, admit(90, "a")), "executing");
    assert_eq!(then(&history).0.halves(9).unwrap().len(), 1, "reserved for an execution that is not there");
    let (execution, created) = run(90, 1, "a");
    history.tell(&execution, created);
    assert_eq!(then(&history).0.halves(9).unwrap().len(), 0);
    history.tell(&execution, X::Completed(Completed::default()));
    let source = then(&history).0.get(id(1)).unwrap().unwrap();
    assert_eq!((source.phase.as_str(), source.executed_signature.as_deref()), ("executed", Some("a")));
    assert_eq!(source.admitted_execution_status.as_deref(), Some("completed"));
    assert_eq!((source.revision, source.last_position), (3, 4), "its own stream's");
    assert_eq!(step(&mut history, error()), "error");
    assert_eq!(step(&mut history, found("b")), "pending");
    assert_eq!(step(&mut history, admit(91, "b")), "executing");
    let (execution, created) = run(91, 1, "b");
    history.tell(&execution, created);
    history.tell(&execution, X::Failed(Failed::default()));
    assert_eq!(phase(&history), "failed");
    let source = then(&history).0.get(id(1)).unwrap().unwrap();
    assert_eq!(source.executed_signature.as_deref(), Some("a"), "b was not executed");
    assert_eq!(step(&mut history, C::Update { enabled: Some(false), stale_after_hours: None }), "disabled");
    assert_eq!(step(&mut history, C::Remove), "removed");
    assert_eq!(then(&history).1.gauges.sources.registered, 0);
    assert_eq!(step(&mut history, register(1)), "failed", "its stream goes on");
}

#[test]
fn what_waits_is_listed_from_the_longest_waiting() {
    let mut history = History::default();
    for n in 1..=3 {
        given(&mut history, n, [register(n), found("a")]);
    }
    given(
        &mut history,
        4,
        [register(4), found("a"), C::Update { enabled: Some(false), stale_after_hours: None }],
    );
    let (sources, folded) = then(&history);
    let ids: Vec<u128> = sources.pending("p", 2).unwrap().iter().map(|s| s.id.as_u128()).collect();
    assert_eq!(ids, [1, 2]);
    let gauges = &folded.gauges.sources;
    assert_eq!((gauges.pending["p"], gauges.oldest_pending_at["p"]), (3, Some(at(2))));
    assert_eq!(gauges.by_phase[&("p".into(), "disabled".into())], 1);
    assert_eq!(gauges.discoveries[&("p".into(), "changed".into())], 4);
    assert_eq!(gauges.discoveries[&("p".into(), "timeout".into())], 0, "zeros are shown");
}

#[test]
fn a_new_signature_does_not_shorten_the_wait() {
    let mut history = History::default();
    given(&mut history, 1, [register(1), found("a"), found("b")]);
    assert_eq!(then(&history).0.get(id(1)).unwrap().unwrap().pending_at, Some(at(2)));
}

#[test]
fn due_are_first_the_asked_for_then_the_never_seen_then_the_stale() {
    let mut history = History::default();
    let own = |hours| C::Update { enabled: None, stale_after_hours: Some(Some(hours)) };
    given(&mut history, 1, [register(1), found("a")]); // asked at 2
    given(&mut history, 2, [register(2)]);
    given(&mut history, 3, [register(3), found("a"), C::RequestDiscovery]);
    given(&mut history, 4, [register(4), error()]); // failed at 8
    given(&mut history, 5, [register(5), found("a"), own(0.01)]); // 36 s after 10
    given(&mut history, 6, [register(6), found("a"), own(1000.0)]);
    given(&mut history, 7, [register(7), C::Update { enabled: Some(false), stale_after_hours: None }]);
    let (sources, _folded) = then(&history);
    let due = |seconds, limit| {
        let staleness = Staleness { now: at(seconds), default_stale_hours: 1.0, retry_minutes: 10 };
        let due = sources.due_for_discovery("p", staleness, limit).unwrap();
        due.iter().map(|source| source.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(due(20, 99), [3, 2], "only what was asked for or never seen");
    assert_eq!(due(20, 1), [3]);
    assert_eq!(due(46, 99), [3, 2, 5], "its own staleness");
    assert_eq!(due(8 + 600, 99), [3, 2, 5, 4], "a failed look is repeated sooner");
    assert_eq!(due(2 + 3600, 99), [3, 2, 5, 1, 4]);
    assert_eq!(due(2 + 3600, 4).len(), 4);
    assert!(
        sources
            .due_for_discovery(
                "q",
                Staleness { now: at(99_999), default_stale_hours: 1.0, retry_minutes: 1 },
                9
            )
            .unwrap()
            .is_empty()
    );
}

#[test]
fn lists_leave_out_the_removed() {
    let mut history = History::default();
    given(&mut history, 1, [register(1)]);
    given(&mut history, 2, [register(2), C::Remove]);
    given(&mut history, 3, [register(3)]);
    let (sources, _folded) = then(&history);
    let ids: Vec<u128> =
        sources.list(Some("p"), Window::first(9)).unwrap().iter().map(|s| s.id.as_u128()).collect();
    assert_eq!(ids, [3, 1]);
    assert_eq!((sources.count(Some("p")).unwrap(), sources.count(Some("q")).unwrap()), (2, 0));
    assert!(sources.get(id(2)).unwrap().unwrap().removed);
}

#[test]
fn a_redacted_registration_still_folds() {
    let mut history = History::default();
    history.tell(&stream(1), S::Registered(Default::default()));
    let mut state = given(&mut History::default(), 1, [register(1)]);
    assert!(history.decide(&stream(1), &mut state, found("a")));
    let (sources, _folded) = then(&history);
    assert_eq!(sources.get(id(1)).unwrap().unwrap().project_module, "p");
}

fn history(steps: Vec<(u128, usize)>) -> History {
    let mut history = History::default();
    let mut states: std::collections::HashMap<u128, State> = Default::default();
    for (index, (n, step)) in steps.into_iter().enumerate() {
        let state = states.entry(n).or_default();
        let execution = 1000 + index as u128;
        let signature = state.facts().and_then(|facts| facts.signature.clone()).unwrap_or_default();
        let command = match step {
            0 => register(n),
            1 => found("a"),
            2 => found("b"),
            3 => check(Outcome::NoDatasets),
            4 => error(),
            5 => check(Outcome::Timeout { step: "q".into(), limit_seconds: 3 }),
            6 => check(Outcome::TapSkipped { adapter: "casda".into(), reason: "down".into() }),
            7 => C::Update { enabled: Some(false), stale_after_hours: Some(Some(2.0)) },
            8 => C::Update { enabled: Some(true), stale_after_hours: Some(None) },
            9 => C::Remove,
            10 => C::RequestDiscovery,
            _ => admit(execution, &signature),
        };
        if history.decide(&stream(n), state, command) && step > 10 {
            let (execution, created) = run(execution, n, &signature);
            history.tell(&execution, created);
            match step {
                11 => _ = history.tell(&execution, X::Completed(Completed::default())),
                12 => _ = history.tell(&execution, X::Failed(Failed::default())),
                _ => {}
            }
        }
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_rows_do_not_depend_on_where_batches_are_cut(
        steps in prop::collection::vec((1u128..5, 0usize..14), 1..120),
        sizes in prop::collection::vec(0usize..9, 0..30),
    ) {
        let history = history(steps);
        let whole = history.fold::<Projected>(&[]).rows();
        prop_assert_eq!(history.fold::<Projected>(&sizes).rows(), whole.clone());
        let each = vec![1; history.envelopes.len()];
        prop_assert_eq!(history.fold::<Projected>(&each).rows(), whole);
    }

    #[test]
    fn the_numbers_equal_a_recount(steps in prop::collection::vec((1u128..9, 0usize..14), 1..200)) {
        let folded = history(steps).fold::<Projected>(&[]);
        let gauges = &folded.gauges.sources;
        for ((_, phase), n) in &gauges.by_phase {
            let counted = folded.number(&format!("SELECT count(*) FROM sources WHERE phase = '{phase}'"));
            prop_assert_eq!(*n, counted, "{}", phase);
        }
        let pending = folded.number("SELECT count(*) FROM sources WHERE pending AND enabled AND NOT removed");
        prop_assert_eq!(gauges.pending.values().sum::<u64>(), pending);
        prop_assert_eq!(gauges.registered, folded.number("SELECT count(*) FROM sources WHERE NOT removed"));
    }

    #[test]
    fn pending_is_what_the_decider_says(steps in prop::collection::vec((1u128..2, 0usize..14), 1..60)) {
        let history = history(steps);
        let events = history.envelopes.iter().filter_map(|envelope| State::pick(&envelope.event));
        let state = beampipe_domain::Aggregate::evolve;
        let facts = events.fold(State::default(), state).facts().cloned();
        let source = then(&history).0.get(id(1)).unwrap();
        prop_assert_eq!(source.as_ref().map(|s| s.pending), facts.as_ref().map(|f| f.pending));
        prop_assert_eq!(source.as_ref().and_then(|s| s.signature.clone()), facts.and_then(|f| f.signature));
    }
}

use beampipe_domain::Aggregate as _;
