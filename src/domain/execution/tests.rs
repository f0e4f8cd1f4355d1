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

fn submit() -> Command {
    Command::BeginSubmission(SubmissionStarted {
        attempt: 1,
        session_id: Uuid::from_u128(9),
        ..SubmissionStarted::default()
    })
}

fn receipt() -> Command {
    Command::RecordReceipt {
        receipt: Receipt::Simulated { deployed_at: DateTime::UNIX_EPOCH },
        settled_by: None,
    }
}

fn lose() -> Command {
    Command::LoseReceipt { step: "create".into(), reason: "timeout".into() }
}

fn fail() -> Command {
    Command::Fail { failure_class: "internal".into(), error: "x".into(), terminal: None }
}

fn refuse() -> Command {
    Command::RecordRefusal { failure_class: "conflict".into(), error: "x".into(), evidence: None }
}

fn retry() -> Command {
    Command::Retry { reason: "again".into() }
}

fn cancel() -> Command {
    Command::RequestCancel { reason: None }
}

fn abandon() -> Command {
    Command::Abandon(Abandonment {
        reason: "gone".into(),
        evidence: Some("squeue and sacct know no such name".into()),
        acknowledged: true,
        expected_submission_state: "uncertain".into(),
        expected_session_id: Some(Uuid::from_u128(9)),
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
    let waits = given::<Execution>(way.into_iter().chain([Command::AwaitScheduler { reason: None }]));
    let Execution::Submitted { axes: known, .. } = &waits else { panic!("{waits:?}") };
    assert_eq!((known.scheduler_state.as_deref(), known.awaiting_scheduler), (Some("pending"), true));
    let seen =
        |axes: Axes| waits.decide(Command::Observe { axes, observation: Observation::default() }).unwrap();
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
        Command::Complete(Terminal::default()),
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
    assert!(matches!(
        asked.decide(Command::ConfirmCancel { terminal: None }).unwrap()[..],
        [Event::Cancelled(_)]
    ));
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
    let see = |axes: &Axes| Command::Observe { axes: axes.clone(), observation: Observation::default() };
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

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(create()),
        any::<bool>().prop_map(execute),
        Just(Command::Begin { phase: "submit".into() }),
        Just(translate()),
        Just(submit()),
        Just(receipt()),
        Just(refuse()),
        Just(lose()),
        Just(abandon()),
        Just(Command::Complete(Terminal::default())),
        Just(fail()),
        Just(Command::NotSubmit),
        Just(cancel()),
        Just(Command::ConfirmCancel { terminal: None }),
        Just(retry()),
    ]
}

proptest! {
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
