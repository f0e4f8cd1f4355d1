use beampipe_domain::execution::{
    Artifact as Made, Axes, Command as C, Created, Event as E, Execution as State, GraphPrepared,
    ManifestBuilt, Observation, Receipt, RequestedSource, SubmissionStarted, Terminal, Translated,
};
use beampipe_domain::profile::{Deployment, RestRemote, Spec};
use proptest::prelude::*;

use super::*;
use crate::reader::Window;
use crate::testing::{Folded, History, at, id};

fn stream(n: u128) -> String {
    format!("execution-{}", id(n))
}

fn created(n: u128) -> C {
    let spec = Spec {
        name: "dim".into(),
        deployment: Deployment::RestRemote(RestRemote {
            deploy_host: "h".into(),
            deploy_port: 1,
            ..Default::default()
        }),
        ..Spec::default()
    };
    C::Create(Box::new(Created {
        project_module: if n.is_multiple_of(2) { "even".into() } else { "odd".into() },
        archive_name: "casda".into(),
        sources: vec![RequestedSource {
            source_id: id(500 + n % 3),
            source_identifier: format!("S{}", n % 3),
            signature: Some("sig".into()),
            ..Default::default()
        }],
        source_identifiers: vec![format!("S{}", n % 3)],
        discovery_signature: Some("sig".into()),
        profile: beampipe_domain::execution::PinnedProfile {
            profile_id: id(70),
            revision: 2,
            spec_sha256: "e".into(),
            spec,
        },
        project_config_id: id(71),
        project_config_version: 4,
        project_spec_sha256: "f".into(),
        automatic: true,
        created_by_id: None,
    }))
}

fn made(kind: &str) -> Made {
    Made {
        kind: kind.into(),
        sha256: format!("sha-{kind}"),
        size_bytes: 9,
        media_type: "application/json".into(),
    }
}

fn begin(attempt: u32) -> C {
    C::BeginSubmission(SubmissionStarted {
        attempt,
        session_id: id(900 + u128::from(attempt)),
        backend: "rest_remote".into(),
        deadline_at: Some(at(600)),
        dim_rest_base: Some("http://h:1".into()),
        dim_session_status_url: Some("http://h:1/api/sessions/x/status".into()),
        dim_graph_status_url: Some("http://h:1/api/sessions/x/graph/status".into()),
        ..SubmissionStarted::default()
    })
}

fn staged() -> Vec<C> {
    vec![
        C::Execute { job_id: id(60), do_stage: true, do_submit: true },
        C::Begin { phase: "stage_and_manifest".into() },
        C::RecordManifest(ManifestBuilt {
            manifest_sha256: "m".into(),
            dataset_count: 3,
            artifact: made("manifest"),
        }),
        C::RecordGraph(GraphPrepared {
            source_graph_sha256: "sg".into(),
            patched_graph_sha256: "pg".into(),
            patches: vec![],
            artifacts: vec![made("source_graph"), made("patched_graph")],
        }),
        C::RecordTranslation(Translated {
            physical_graph_sha256: "phy".into(),
            drop_count: 4,
            translator: "tm".into(),
            duration_ms: 1,
            artifact: made("physical_graph"),
        }),
    ]
}

fn receipt() -> C {
    let receipt = Receipt::Dim {
        deployed_at: at(100),
        dim_rest_base: "http://h:1".into(),
        verify_ssl: true,
        session_status_url: "u".into(),
        graph_status_url: "g".into(),
    };
    C::RecordReceipt { session_id: id(901), receipt, settled_by: None }
}

fn observe(daliuge: &str, awaiting_scheduler: bool) -> C {
    C::Observe {
        session_id: id(901),
        axes: Axes { daliuge_state: Some(daliuge.into()), awaiting_scheduler, ..Axes::default() },
        observation: Observation {
            source: "dim".into(),
            observed_at: at(200),
            raw_state: Some("2".into()),
            reason: None,
            previous_polls: 3,
            ..Observation::default()
        },
    }
}

fn terminal(state: &str) -> Terminal {
    Terminal {
        session_id: id(901),
        session_state: state.into(),
        observed_at: at(300),
        artifacts: vec![made("log")],
        ..Terminal::default()
    }
}

fn given(history: &mut History, n: u128, commands: impl IntoIterator<Item = C>) -> State {
    let mut state = State::default();
    for command in commands {
        assert!(history.decide(&stream(n), &mut state, command.clone()), "{command:?} on {state:?}");
    }
    state
}

fn then(history: &History) -> (Executions, Folded) {
    let folded = history.fold::<Projected>(&[]);
    (Executions(folded.reader.clone()), folded)
}

#[test]
fn a_completed_execution_shows_its_whole_way() {
    let mut history = History::default();
    let mut way = vec![created(1)];
    way.extend(staged());
    way.extend([begin(1), receipt(), observe("running", false), C::Complete(terminal("finished"))]);
    given(&mut history, 1, way);
    let (executions, folded) = then(&history);
    let e = executions.get(id(1)).unwrap().unwrap();
    let words = [
        &e.status,
        &e.control_phase,
        &e.submission_state,
        &e.scheduler_state,
        &e.daliuge_state,
        &e.output_state,
    ];
    assert_eq!(words, ["completed", "terminal", "submitted", "succeeded", "finished", "not_started"]);
    assert_eq!(e.terminal_outcome.as_deref(), Some("succeeded"));
    assert_eq!((e.scheduler_name.as_str(), e.execution_phase.as_deref()), ("daliuge", None));
    assert_eq!((e.created_at, e.started_at, e.completed_at), (at(1), Some(at(2)), Some(at(10))));
    assert_eq!(e.phase_timestamps()["submitted"], at(8));
    assert_eq!(e.phase_timestamps().len(), 9, "all but output_verification");
    assert_eq!(e.dim_session_status_url.as_deref(), Some("http://h:1/api/sessions/x/status"));
    assert_eq!(e.profile_spec.as_ref().unwrap().name, "dim");
    assert_eq!((e.retry_count(), e.last_revision, e.last_position), (0, 9, 10));
    let sessions = executions.sessions(id(1)).unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].terminal.as_ref().unwrap().session_state, "finished");
    assert_eq!(sessions[0].last_observation.as_ref().unwrap().observation.previous_polls, 3);
    assert!(matches!(sessions[0].receipt, Some(Receipt::Dim { verify_ssl: true, .. })));
    let kinds: Vec<String> = executions.artifacts(id(1)).unwrap().into_iter().map(|a| a.kind).collect();
    assert_eq!(kinds, ["manifest", "patched_graph", "source_graph", "physical_graph", "log"]);
    assert_eq!(executions.artifact_by_sha(id(1), "sha-log").unwrap().unwrap().producer_phase, "terminal");
    assert_eq!(folded.gauges.executions.terminal[&("odd".into(), "completed".into())], 1);
    assert_eq!(folded.gauges.executions.in_flight, 0);
}

#[test]
fn a_wait_at_the_facility_reads_as_the_decider_has_it() {
    let mut history = History::default();
    let mut way = vec![created(1)];
    way.extend(staged());
    way.extend([
        begin(1),
        receipt(),
        C::AwaitScheduler { session_id: id(901), reason: Some("Priority".into()) },
    ]);
    let state = given(&mut history, 1, way);
    let State::Submitted { axes, .. } = state else { panic!("{state:?}") };
    let e = then(&history).0.get(id(1)).unwrap().unwrap();
    assert_eq!((e.status.as_str(), axes.awaiting_scheduler), ("awaiting_scheduler", true));
    assert_eq!(Some(e.scheduler_state.as_str()), axes.scheduler_state.as_deref());
}

#[test]
fn a_retry_opens_a_new_attempt_and_keeps_the_old_session() {
    let mut history = History::default();
    let mut way = vec![created(1)];
    way.extend(staged());
    let failed = Some(terminal("failed"));
    way.extend([
        begin(1),
        receipt(),
        C::Fail { failure_class: "internal".into(), error: "a drop failed".into(), terminal: failed },
        C::Retry { reason: "again".into() },
    ]);
    given(&mut history, 1, way);
    let (executions, folded) = then(&history);
    let e = executions.get(id(1)).unwrap().unwrap();
    assert_eq!((e.status.as_str(), e.attempt, e.retry_count()), ("retrying", 2, 1));
    assert_eq!(
        (e.completed_at, e.started_at, e.manifest_sha256, e.terminal_outcome),
        (None, None, None, None)
    );
    assert_eq!(e.last_error.as_deref(), Some("a drop failed"), "until something is known better");
    assert!(e.dim_session_status_url.is_some(), "kept for ever");
    assert_eq!(executions.sessions(id(1)).unwrap()[0].terminal.as_ref().unwrap().session_state, "failed");
    assert_eq!(executions.live(Live::Status("retrying"), 9).unwrap().len(), 1);
    let gauges = &folded.gauges.executions;
    assert_eq!((gauges.in_flight, gauges.retries["odd"]), (1, 1));
    assert_eq!(gauges.terminal[&("odd".into(), "failed".into())], 1, "an end that was counted stays counted");
    assert_eq!(gauges.oldest_active_created_at["retrying"], Some(at(1)));
}

#[test]
fn a_lost_answer_is_a_reconciliation_risk_until_it_is_settled() {
    let mut history = History::default();
    let mut way = vec![created(1)];
    way.extend(staged());
    way.extend([
        begin(1),
        C::LoseReceipt { session_id: id(901), step: "deploy".into(), reason: "reset".into() },
    ]);
    let mut state = given(&mut history, 1, way);
    let (executions, folded) = then(&history);
    assert_eq!(folded.gauges.executions.reconciliation_risk, 1);
    assert_eq!(executions.live(Live::Submission("uncertain"), 9).unwrap().len(), 1);
    assert_eq!(executions.sessions(id(1)).unwrap()[0].uncertain_step.as_deref(), Some("deploy"));
    let C::RecordReceipt { receipt, .. } = receipt() else { unreachable!() };
    let settled = C::RecordReceipt { session_id: id(901), receipt, settled_by: Some("it was there".into()) };
    assert!(history.decide(&stream(1), &mut state, settled));
    let (executions, folded) = then(&history);
    assert_eq!(folded.gauges.executions.reconciliation_risk, 0);
    let e = executions.get(id(1)).unwrap().unwrap();
    assert_eq!((e.submission_state.as_str(), e.last_reconciled_at), ("submitted", Some(at(9))));
}

#[test]
fn lists_are_newest_first_and_bounded() {
    let mut history = History::default();
    for n in 1..=9 {
        given(&mut history, n, [created(n)]);
    }
    let (executions, _folded) = then(&history);
    let ids = |rows: &[Execution]| rows.iter().map(|e| e.id.as_u128()).collect::<Vec<_>>();
    let (rows, total) = executions.list(None, None, Window::first(3)).unwrap();
    assert_eq!((ids(&rows), total), (vec![9, 8, 7], 9));
    let (rows, total) = executions.list(Some("odd"), Some("pending"), Window::at(1, 2)).unwrap();
    assert_eq!((ids(&rows), total), (vec![7, 5], 5));
    let (rows, _) = executions.list(Some("odd"), None, Window::before(5, 9)).unwrap();
    assert_eq!(ids(&rows), [3, 1]);
    let (rows, total) = executions.list(None, Some("failed"), Window::first(9)).unwrap();
    assert_eq!((rows.len(), total), (0, 0));
    assert_eq!(ids(&executions.by_source(id(501), Window::first(2)).unwrap()), [7, 4]);
    assert_eq!(ids(&executions.live(Live::All, 2).unwrap()), [1, 2]);
    assert_eq!(executions.in_flight().unwrap(), 9);
    assert_eq!(executions.in_flight_in_project("even").unwrap(), 4);
    assert_eq!(executions.in_flight_on_profile(id(70)).unwrap(), 9);
}

#[test]
fn the_line_for_a_profile_is_in_the_order_of_the_log_and_ends_are_no_part_of_it() {
    let mut history = History::default();
    let execute = |n| C::Execute { job_id: id(n), do_stage: true, do_submit: n != 2 };
    let mut states: Vec<State> = (1..=4).map(|n| given(&mut history, n, [created(n)])).collect();
    // Not in the order of their creation; the second only stages.
    for n in [3, 2, 1, 4] {
        assert!(history.decide(&stream(n), &mut states[n as usize - 1], execute(n)));
    }
    let ahead = |history: &History, n: u128| {
        let (executions, _folded) = then(history);
        let place = executions.place_in_line(id(n)).unwrap().unwrap();
        executions.ahead_in_line(place.profile_id, place.executing_position, 9).unwrap()
    };
    assert_eq!([3, 1, 4].map(|n| ahead(&history, n)), [0, 1, 2]);
    let cancel = C::RequestCancel { reason: None };
    assert!(history.decide(&stream(3), &mut states[2], cancel));
    assert_eq!([1, 4].map(|n| ahead(&history, n)), [0, 1]);
    // Retried, it is last.
    assert!(history.decide(&stream(3), &mut states[2], C::Retry { reason: "again".into() }));
    assert!(history.decide(&stream(3), &mut states[2], execute(3)));
    assert_eq!([1, 4, 3].map(|n| ahead(&history, n)), [0, 1, 2]);
}

#[test]
fn a_redacted_creation_still_folds() {
    let mut history = History::default();
    let state = given(&mut history, 1, [created(1)]);
    let mut redacted = History::default();
    redacted.tell(&stream(1), E::Created(Default::default()));
    let mut state = state;
    assert!(redacted.decide(
        &stream(1),
        &mut state,
        C::Execute { job_id: id(1), do_stage: true, do_submit: false }
    ));
    let (executions, folded) = then(&redacted);
    let e = executions.get(id(1)).unwrap().unwrap();
    assert_eq!((e.project_module.as_str(), e.status.as_str(), e.sources.len()), ("p", "running", 0));
    assert_eq!(folded.gauges.executions.by_project_status[&("p".into(), "running".into())], 1);
}

#[test]
fn what_follows_a_beginning_that_is_missing_changes_nothing() {
    let mut history = History::default();
    history.tell(&stream(1), E::RetryRequested(Default::default()));
    let (executions, folded) = then(&history);
    assert_eq!(executions.get(id(1)).unwrap(), None);
    assert_eq!(folded.gauges.executions.in_flight, 0);
}

/// Steps that somebody might take with some execution; most are rejected by the decider.
fn step() -> impl Strategy<Value = (u128, usize)> {
    (1u128..6, 0usize..20)
}

fn history(steps: Vec<(u128, usize)>) -> History {
    let mut history = History::default();
    let mut states: std::collections::HashMap<u128, State> = Default::default();
    for (n, step) in steps {
        let state = states.entry(n).or_default();
        let attempt = state.facts().map_or(1, |facts| facts.attempt);
        let staged = staged();
        let command = match step {
            0..=4 => staged[step].clone(),
            5 => begin(attempt),
            6 => receipt(),
            7 => C::LoseReceipt { session_id: id(901), step: "deploy".into(), reason: "x".into() },
            8 => C::RecordRefusal {
                session_id: id(901),
                failure_class: "conflict".into(),
                error: "no".into(),
                evidence: None,
            },
            9 => C::AwaitScheduler { session_id: id(901), reason: Some("Priority".into()) },
            10 => observe("running", false),
            11 => observe("deploying", true),
            12 => C::Complete(terminal("finished")),
            13 => C::Fail { failure_class: "internal".into(), error: "e".into(), terminal: None },
            14 => C::Fail {
                failure_class: "internal".into(),
                error: "e".into(),
                terminal: Some(terminal("failed")),
            },
            15 => C::RequestCancel { reason: None },
            16 => C::ConfirmCancel { session_id: id(901), terminal: Some(terminal("cancelled")) },
            17 => C::Retry { reason: "again".into() },
            _ => created(n),
        };
        history.decide(&stream(n), state, command);
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_rows_do_not_depend_on_where_batches_are_cut(
        steps in prop::collection::vec(step(), 1..120),
        sizes in prop::collection::vec(0usize..9, 0..30),
    ) {
        let history = history(steps);
        let whole = history.fold::<Projected>(&[]).rows();
        prop_assert_eq!(history.fold::<Projected>(&sizes).rows(), whole.clone());
        let each = vec![1; history.envelopes.len()];
        prop_assert_eq!(history.fold::<Projected>(&each).rows(), whole);
    }

    #[test]
    fn the_numbers_equal_a_recount(steps in prop::collection::vec(step(), 1..200)) {
        let folded = history(steps).fold::<Projected>(&[]);
        let gauges = &folded.gauges.executions;
        for status in STATUSES {
            let counted = folded.number(&format!("SELECT count(*) FROM executions WHERE status = '{status}'"));
            prop_assert_eq!(gauges.by_status[*status], counted, "{}", status);
        }
        let live = folded.number("SELECT count(*) FROM executions WHERE completed_at IS NULL");
        prop_assert_eq!(gauges.in_flight, live);
        prop_assert_eq!(gauges.in_flight_by_project.values().sum::<u64>(), live);
        prop_assert_eq!(gauges.in_flight_by_profile.values().sum::<u64>(), live);
        for ((axis, state), n) in &gauges.by_external_state {
            let column = if axis == "submission" || axis == "scheduler" || axis == "daliuge" || axis == "output" {
                format!("{axis}_state")
            } else {
                panic!("{axis} is no axis")
            };
            let counted = folded.number(&format!("SELECT count(*) FROM executions WHERE {column} = '{state}'"));
            prop_assert_eq!(*n, counted, "{} {}", axis, state);
        }
        let ended = "status IN ('completed', 'failed', 'cancelled', 'not_submitted')";
        let wrong = format!("SELECT count(*) FROM executions WHERE ({ended}) <> (completed_at IS NOT NULL)");
        prop_assert_eq!(folded.number(&wrong), 0, "completed_at says exactly whether it has ended");
    }
}
