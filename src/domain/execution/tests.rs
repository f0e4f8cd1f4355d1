//! Given events, when a command, then events or a rejection.

use proptest::prelude::*;

use super::*;
use crate::testing::given;

fn create() -> Command {
    Command::Create(Box::new(Created {
        project_module: "wallaby".into(),
        source_identifiers: vec!["HIPASSJ1318-21".into()],
        sources: vec![RequestedSource { source_id: Uuid::from_u128(7), ..RequestedSource::default() }],
        ..Created::default()
    }))
}

fn execute(do_submit: bool) -> Command {
    Command::Execute { job_id: Uuid::from_u128(1), do_stage: true, do_submit }
}

fn translate() -> Command {
    Command::RecordTranslation(Translated { physical_graph_sha256: "p".into(), ..Translated::default() })
}

/// The session of an attempt; the first one's is 9.
fn session(attempt: u32) -> Uuid {
    Uuid::from_u128(8 + u128::from(attempt))
}

fn submit_as(attempt: u32) -> Command {
    Command::BeginSubmission(SubmissionStarted {
        attempt,
        session_id: session(attempt),
        ..SubmissionStarted::default()
    })
}

fn submit() -> Command {
    submit_as(1)
}

fn receipt() -> Command {
    receipt_of(1)
}

fn receipt_of(attempt: u32) -> Command {
    Command::RecordReceipt {
        session_id: session(attempt),
        receipt: Receipt::Simulated { deployed_at: DateTime::UNIX_EPOCH },
        settled_by: None,
    }
}

fn lose() -> Command {
    lose_of(1)
}

fn lose_of(attempt: u32) -> Command {
    Command::LoseReceipt { session_id: session(attempt), step: "create".into(), reason: "timeout".into() }
}

fn fail() -> Command {
    Command::Fail { failure_class: "internal".into(), error: "x".into(), terminal: None }
}

fn refuse() -> Command {
    refuse_of(1)
}

fn refuse_of(attempt: u32) -> Command {
    let session_id = session(attempt);
    Command::RecordRefusal { session_id, failure_class: "conflict".into(), error: "x".into(), evidence: None }
}

/// What the last look at an attempt's session saw.
fn seen_of(attempt: u32) -> Terminal {
    Terminal { session_id: session(attempt), ..Terminal::default() }
}

fn observe_of(attempt: u32, axes: Axes) -> Command {
    Command::Observe { session_id: session(attempt), axes, observation: Observation::default() }
}

fn cancelled_of(attempt: u32) -> Command {
    Command::ConfirmCancel { session_id: session(attempt), terminal: None }
}

fn failed_of(attempt: u32) -> Command {
    Command::Fail { failure_class: "timeout".into(), error: "x".into(), terminal: Some(seen_of(attempt)) }
}

fn retry() -> Command {
    Command::Retry { reason: "again".into() }
}

fn cancel() -> Command {
    Command::RequestCancel { reason: None }
}

fn abandon() -> Command {
    abandon_of(1)
}

fn abandon_of(attempt: u32) -> Command {
    Command::Abandon(Abandonment {
        reason: "gone".into(),
        evidence: Some("squeue and sacct know no such name".into()),
        acknowledged: true,
        expected_submission_state: "uncertain".into(),
        expected_session_id: Some(session(attempt)),
        expected_deadline_at: None,
    })
}

fn code(state: &Execution, command: Command) -> &'static str {
    state.decide(command).unwrap_err().code
}

#[test]
fn submission_is_never_repeated() {
    let submitting = given::<Execution>([create(), execute(true), translate(), submit()]);
    assert_eq!(code(&submitting, submit()), "may-be-running");
    assert_eq!(code(&submitting, fail()), "may-be-running");
    assert_eq!(code(&submitting, retry()), "may-be-running");
    let uncertain = given::<Execution>([create(), execute(true), translate(), submit(), lose()]);
    assert_eq!(code(&uncertain, submit()), "may-be-running");
    assert_eq!(code(&uncertain, fail()), "may-be-running");
    assert_eq!(code(&uncertain, retry()), "may-be-running");
}

#[test]
fn a_lost_answer_is_settled_by_evidence() {
    let uncertain = || given::<Execution>([create(), execute(true), translate(), submit(), lose()]);
    assert!(matches!(uncertain().decide(receipt()).unwrap()[..], [Event::SubmissionRecorded(_)]));
    assert!(matches!(
        uncertain().decide(refuse()).unwrap()[..],
        [Event::SubmissionRefused(_), Event::Failed(_)]
    ));
    assert!(matches!(
        uncertain().decide(abandon()).unwrap()[..],
        [Event::SubmissionAbandoned(_), Event::Failed(_)]
    ));
}

#[test]
fn what_is_told_of_another_session_is_refused() {
    let again = [abandon(), retry(), execute(true), translate(), submit_as(2)];
    let way = || [create(), execute(true), translate(), submit(), lose()].into_iter().chain(again.clone());
    let old = [
        receipt(),
        refuse(),
        lose(),
        cancelled_of(1),
        failed_of(1),
        Command::Complete(seen_of(1)),
        observe_of(1, Axes::default()),
    ];
    let lost = given::<Execution>(way().chain([lose_of(2)]));
    let recorded = given::<Execution>(way().chain([receipt_of(2)]));
    for state in [given::<Execution>(way()), lost.clone(), recorded.clone()] {
        for command in &old {
            assert_eq!(code(&state, command.clone()), "not-this-session", "{command:?} on {state:?}");
        }
    }
    assert!(matches!(
        &lost.decide(receipt_of(2)).unwrap()[..],
        [Event::SubmissionRecorded(e)] if (e.attempt, e.session_id) == (2, session(2))
    ));
    assert_eq!(recorded.decide(receipt_of(2)), Ok(vec![]), "what is known is no news");
}

#[test]
fn a_session_that_was_given_up_does_not_end_the_attempt_that_is_prepared() {
    let way = [create(), execute(true), translate(), submit(), lose(), abandon(), retry(), execute(true)];
    let preparing = given::<Execution>(way.into_iter().chain([translate()]));
    for command in [receipt(), refuse(), lose(), cancelled_of(1), failed_of(1), Command::Complete(seen_of(1))]
    {
        assert_eq!(code(&preparing, command.clone()), "not-now", "{command:?}");
    }
    assert_eq!(
        code(&preparing, submit()),
        "not-now",
        "the session of the first attempt is not announced again"
    );
}

#[test]
fn an_abandonment_names_what_it_believes() {
    let uncertain = given::<Execution>([create(), execute(true), translate(), submit(), lose()]);
    let Command::Abandon(word) = abandon() else { unreachable!() };
    let other = Abandonment { expected_session_id: Some(Uuid::from_u128(8)), ..word.clone() };
    assert_eq!(code(&uncertain, Command::Abandon(other)), "abandonment-outdated");
    let silent = Abandonment { acknowledged: false, ..word };
    assert_eq!(code(&uncertain, Command::Abandon(silent)), "not-acknowledged");
}

#[test]
fn what_waits_at_the_facility_is_pending_there() {
    let way = [create(), execute(true), translate(), submit(), receipt()];
    let waits = given::<Execution>(
        way.into_iter().chain([Command::AwaitScheduler { session_id: session(1), reason: None }]),
    );
    let Execution::Submitted { axes: known, .. } = &waits else { panic!("{waits:?}") };
    assert_eq!((known.scheduler_state.as_deref(), known.awaiting_scheduler), (Some("pending"), true));
    let seen = |axes: Axes| waits.decide(observe_of(1, axes)).unwrap();
    assert_eq!(seen(known.clone()), vec![], "that it still waits is no news");
    let running = Axes { scheduler_state: Some("running".into()), ..Axes::default() };
    assert!(matches!(seen(running)[..], [Event::Observed(_)]));
}

#[test]
fn a_retry_needs_an_end() {
    let failed = given::<Execution>([create(), execute(true), fail()]);
    let events = failed.decide(retry()).unwrap();
    assert!(matches!(&events[..], [Event::RetryRequested(e)] if e.attempt == 2));
    let pending = given::<Execution>([create()]);
    assert_eq!(code(&pending, retry()), "nothing-to-retry");
}

#[test]
fn an_end_is_final() {
    let done = given::<Execution>([
        create(),
        execute(true),
        translate(),
        submit(),
        receipt(),
        Command::Complete(seen_of(1)),
    ]);
    assert_eq!(code(&done, fail()), "execution-ended");
    assert_eq!(code(&done, cancel()), "execution-ended");
    assert_eq!(code(&done, retry()), "nothing-to-retry");
    assert_eq!(code(&done, Command::Begin { phase: "submit".into() }), "execution-ended");
}

#[test]
fn a_cancelled_execution_is_not_submitted() {
    let cancelled = given::<Execution>([create(), execute(true), translate(), cancel()]);
    assert_eq!(code(&cancelled, submit()), "execution-ended");
}

#[test]
fn a_cancel_while_submitted_waits_for_the_backend() {
    let asked = given::<Execution>([create(), execute(true), translate(), submit(), receipt(), cancel()]);
    assert!(matches!(asked, Execution::Submitted { .. }));
    assert_eq!(asked.decide(cancel()), Ok(vec![]));
    assert!(matches!(asked.decide(cancelled_of(1)).unwrap()[..], [Event::Cancelled(_)]));
}

#[test]
fn the_same_flags_are_the_same_order_and_others_are_refused() {
    let preparing = given::<Execution>([create(), execute(true)]);
    assert_eq!(preparing.decide(execute(true)), Ok(vec![]));
    assert_eq!(code(&preparing, execute(false)), "other-flags");
}

#[test]
fn what_is_not_to_be_submitted_ends_as_not_submitted() {
    let staged = given::<Execution>([create(), execute(false), translate()]);
    assert_eq!(code(&staged, submit()), "not-to-be-submitted");
    assert!(matches!(staged.decide(Command::NotSubmit).unwrap()[..], [Event::NotSubmitted(_)]));
}

#[test]
fn the_same_state_seen_again_is_not_an_event() {
    let running = Axes { daliuge_state: Some("running".into()), ..Axes::default() };
    let see = |axes: &Axes| observe_of(1, axes.clone());
    let state =
        given::<Execution>([create(), execute(true), translate(), submit(), receipt(), see(&running)]);
    assert_eq!(state.decide(see(&running)), Ok(vec![]));
}

#[test]
fn sources_are_told_of_creation_submission_and_end() {
    let state = given::<Execution>([create()]);
    let source = format!("source:{}", Uuid::from_u128(7));
    let started = Event::Running(Running::default());
    assert!(!state.tags("x", &started).contains(&source));
    let failed = Event::Failed(Failed::default());
    assert!(state.tags("x", &failed).contains(&source));
    assert!(state.tags("x", &failed).contains(&"project:wallaby".to_owned()));
}

/// Any command, also one about a session that another attempt had or will have.
fn any_command() -> impl Strategy<Value = Command> {
    let attempt = || 1..4_u32;
    prop_oneof![
        Just(create()),
        any::<bool>().prop_map(execute),
        Just(Command::Begin { phase: "submit".into() }),
        Just(translate()),
        attempt().prop_map(submit_as),
        attempt().prop_map(receipt_of),
        attempt().prop_map(refuse_of),
        attempt().prop_map(lose_of),
        attempt().prop_map(abandon_of),
        attempt().prop_map(|attempt| Command::Complete(seen_of(attempt))),
        Just(fail()),
        attempt().prop_map(failed_of),
        Just(Command::NotSubmit),
        Just(cancel()),
        attempt().prop_map(cancelled_of),
        attempt().prop_map(|attempt| observe_of(attempt, Axes::default())),
        Just(retry()),
    ]
}

/// The session that an event speaks of.
fn told_of(event: &Event) -> Option<Uuid> {
    match event {
        Event::SubmissionRecorded(e) => Some(e.session_id),
        Event::SubmissionRefused(e) => Some(e.session_id),
        Event::SubmissionUncertain(e) => Some(e.session_id),
        Event::SubmissionAbandoned(e) => Some(e.session_id),
        Event::Completed(e) => Some(e.terminal.session_id),
        Event::Failed(e) => e.terminal.as_ref().map(|terminal| terminal.session_id),
        Event::Cancelled(e) => e.terminal.as_ref().map(|terminal| terminal.session_id),
        _ => None,
    }
}

/// Commands that bring a fresh execution to the announcement of its first session, then any.
fn from_the_announcement() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(any_command(), 0..60).prop_map(|commands| {
        [create(), execute(true), translate(), submit()].into_iter().chain(commands).collect()
    })
}

proptest! {
    #[test]
    fn no_sequence_of_commands_records_anything_of_a_session_that_is_not_the_announced_one(commands in from_the_announcement()) {
        let (mut state, mut announced) = (Execution::default(), None);
        for command in commands {
            let Ok(events) = state.decide(command) else { continue };
            for event in events {
                match &event {
                    Event::SubmissionStarted(e) => {
                        prop_assert_eq!(Some(e.attempt), state.facts().map(|facts| facts.attempt));
                        announced = Some(e.session_id);
                    }
                    // The next attempt has announced nothing yet.
                    Event::RetryRequested(_) => announced = None,
                    event => {
                        if let Some(told) = told_of(event) {
                            prop_assert_eq!(Some(told), announced, "{:?}", event);
                        }
                    }
                }
                state = state.evolve(&event);
            }
        }
    }

    #[test]
    fn no_sequence_of_commands_hands_an_attempt_over_twice(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut state = Execution::default();
        let mut handed_over = std::collections::BTreeMap::<u32, u32>::new();
        for command in commands {
            let Ok(events) = state.decide(command) else { continue };
            for event in events {
                let attempt = state.facts().map_or(1, |facts| facts.attempt);
                if matches!(event, Event::SubmissionStarted(_)) {
                    *handed_over.entry(attempt).or_default() += 1;
                }
                state = state.evolve(&event);
            }
        }
        prop_assert!(handed_over.values().all(|times| *times == 1), "{handed_over:?}");
    }

    #[test]
    fn an_accepted_command_repeated_at_once_adds_no_second_end(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut state = Execution::default();
        let mut ends_since_retry = 0;
        for command in commands {
            let Ok(events) = state.decide(command) else { continue };
            for event in events {
                match event {
                    Event::Completed(_) | Event::Failed(_) | Event::Cancelled(_) | Event::NotSubmitted(_) => ends_since_retry += 1,
                    Event::RetryRequested(_) => ends_since_retry = 0,
                    _ => {}
                }
                state = state.evolve(&event);
            }
            prop_assert!(ends_since_retry <= 1);
        }
    }
}

#[test]
fn a_job_that_nobody_speaks_of_any_more_can_be_given_up_by_a_person() {
    let submitted = given::<Execution>([create(), execute(true), translate(), submit(), receipt()]);
    let Command::Abandon(word) = abandon() else { panic!("it is an abandonment") };
    assert_eq!(
        code(&submitted, Command::Abandon(word.clone())),
        "abandonment-outdated",
        "another state was expected"
    );
    let word = Abandonment { expected_submission_state: "submitted".into(), ..word };
    let events = submitted.decide(Command::Abandon(word)).unwrap();
    assert!(matches!(events[..], [Event::SubmissionAbandoned(_), Event::Failed(_)]));
}
