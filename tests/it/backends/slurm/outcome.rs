//! What an end means: every end of Slurm, with and without a word of DALiuGE's.

use beampipe::backends::slurm::job::State;
use beampipe::backends::slurm::outcome::{End, Marks, Outcome, Seen, class, judge};
use beampipe::backends::slurm::sacct::Exit;
use beampipe::backends::slurm::session_file::{SessionFile, SessionFileError};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::SESSION;
use super::words::accounts;

fn file(changes: Value) -> SessionFile {
    let mut whole = json!({
        "session": SESSION, "state": "finished", "ended_at": 1795392257, "started_at": 1795392196, "interrupted": false,
        "error": null, "exit_code": 0, "what nobody knows": [1],
        "progress": {"total": 10, "completed": 10, "running": 0, "failed": 0},
    });
    whole.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    SessionFile::read(whole.to_string().as_bytes(), SESSION).unwrap()
}

fn end(state: State, exit: Exit) -> End {
    End { state, exit: Some(exit), reason: None, elapsed: None, limit: None, nodes: None, max_rss: None }
}

fn judged(end: &End, marks: &Marks, file: Option<&SessionFile>) -> Outcome {
    judge(&Seen { end, marks, file, cancel_requested: false, own_uid: Some(1001) }).unwrap()
}

fn started() -> Marks {
    Marks { started: true, ended: None }
}

fn failed() -> SessionFile {
    file(json!({
        "state": "failed", "exit_code": 1, "progress": {"total": 7, "completed": 3, "running": 0, "failed": 4},
        "error_drops": [{"oid": "a", "name": "bad", "culprit": true, "status": {"status": 3, "execStatus": 3}, "logs": [
            {"time": "t", "Level": "ERROR", "Module": "m", "Message": "<pre>no such beam</pre>", "Line #": 5}]}],
    }))
}

#[test]
fn a_graph_that_failed_says_which_drop_and_what_it_logged() {
    let outcome = judged(&end(State::Failed, Exit { code: 1, signal: 0 }), &started(), Some(&failed()));
    assert_eq!(outcome.failure_class(), Some(class::DALIUGE_DROP_ERROR));
    assert_eq!(outcome.error(), Some("bad: no such beam (4 drops in error)"));
}

#[test]
fn each_end_of_slurm_has_its_class() {
    let by_hand = accounts("by-hand");
    let running = file(
        json!({"state": "running", "ended_at": null, "progress": {"total": 10, "completed": 4, "running": 1, "failed": 0}}),
    );
    for (place, class, said) in [
        (0, class::OUT_OF_MEMORY, "2047 MiB; 4 of 10 drops were complete"),
        (1, class::NODE_FAILURE, "(node[1-2])"),
        (2, class::PREEMPTED, "preempted"),
        (3, class::BOOT_FAILURE, "boot"),
        (4, class::TIME_LIMIT, "deadline"),
    ] {
        let outcome = judged(&(&by_hand[place]).into(), &started(), Some(&running));
        assert_eq!(outcome.failure_class(), Some(class));
        assert!(outcome.error().unwrap().contains(said), "{outcome:?}");
    }
    let ended = accounts("ended");
    let outcome = judged(&(&ended[0]).into(), &started(), None);
    let error = "the job exceeded its time limit of 1 min; DALiuGE had not been started";
    assert_eq!((outcome.failure_class(), outcome.error()), (Some(class::TIME_LIMIT), Some(error)));
    let outcome = judged(&(&ended[2]).into(), &Marks { started: true, ended: Some(7) }, None);
    assert_eq!(outcome.failure_class(), Some(class::APPLICATION_EXIT));
    assert!(outcome.error().unwrap().contains("exit code 7"));
    let outcome = judged(&(&ended[3]).into(), &started(), None);
    assert!(outcome.error().unwrap().contains("signal 11"), "{outcome:?}");
}

#[test]
fn who_cancelled_is_said_unless_it_was_asked_for() {
    let by = |uid| end(State::Cancelled { by: uid }, Exit::default());
    for (uid, said) in [
        (Some(1001), "the remote user itself (user id 1001)"),
        (Some(0), "by root"),
        (Some(4711), "by user id 4711"),
        (None, "does not name"),
    ] {
        let outcome = judged(&by(uid), &started(), None);
        assert!(
            matches!(&outcome, Outcome::Cancelled { error: Some(error) } if error.contains(said)),
            "{outcome:?}"
        );
    }
    let seen =
        Seen { end: &by(Some(1001)), marks: &started(), file: None, cancel_requested: true, own_uid: None };
    assert_eq!(judge(&seen), Some(Outcome::Cancelled { error: None }));
}

#[test]
fn an_engine_that_could_not_run_is_not_the_graphs_fault() {
    let file = file(json!({"state": "pristine", "exit_code": 3, "error": "there is no program `dlg`",
        "progress": {"total": 0, "completed": 0, "running": 0, "failed": 0}}));
    let outcome = judged(&end(State::Failed, Exit { code: 3, signal: 0 }), &started(), Some(&file));
    assert_eq!(outcome.failure_class(), Some(class::ENGINE_FAILURE));
    assert!(outcome.error().unwrap().contains("no program `dlg`"));
}

#[test]
fn a_job_that_found_the_session_taken_is_a_conflict() {
    let outcome = judged(&end(State::Failed, Exit { code: 75, signal: 0 }), &started(), None);
    assert_eq!(outcome.failure_class(), Some(class::CONFLICT));
}

#[test]
fn success_without_a_word_of_daliuges_is_none() {
    let done = end(State::Completed, Exit::default());
    for file in [None, Some(file(json!({"state": "running", "ended_at": null})))] {
        let outcome = judged(&done, &started(), file.as_ref());
        assert_eq!(outcome.failure_class(), Some(class::INCONSISTENT_STATE), "{outcome:?}");
    }
    assert_eq!(judged(&done, &started(), Some(&file(json!({})))), Outcome::Completed);
}

#[test]
fn a_session_that_finished_stays_finished_whatever_became_of_the_job() {
    for state in [State::Timeout, State::NodeFail, State::Cancelled { by: None }, State::Failed] {
        assert_eq!(
            judged(&end(state, Exit::default()), &started(), Some(&file(json!({})))),
            Outcome::Completed
        );
    }
}

#[test]
fn a_job_that_has_not_ended_is_not_judged() {
    for word in ["RUNNING", "COMPLETING", "REQUEUED", "HIBERNATED"] {
        let end = end(word.parse().unwrap(), Exit::default());
        let file = file(json!({}));
        let seen =
            Seen { end: &end, marks: &started(), file: Some(&file), cancel_requested: true, own_uid: None };
        assert_eq!(judge(&seen), None, "{word}");
    }
}

#[test]
fn a_file_that_is_not_this_sessions_is_refused() {
    let other = br#"{"session": "other", "state": "finished", "ended_at": 1}"#;
    assert!(matches!(SessionFile::read(other, SESSION), Err(SessionFileError::OtherSession { .. })));
    for odd in ["", "{", "[]", r#"{"session": 5}"#] {
        assert!(
            matches!(SessionFile::read(odd.as_bytes(), SESSION), Err(SessionFileError::Malformed(_))),
            "{odd}"
        );
    }
    let large = vec![b' '; 33 << 20];
    assert!(matches!(SessionFile::read(&large, SESSION), Err(SessionFileError::TooLarge(_))));
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "COMPLETED",
            "FAILED",
            "TIMEOUT",
            "NODE_FAIL",
            "CANCELLED",
            "OUT_OF_MEMORY",
            "RUNNING"
        ]),
        Just("PREEMPTED"),
        Just("HIBERNATED"),
    ]
    .prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn nothing_completes_without_a_finished_session(
        word in word(),
        (code, signal) in (0u32..160, 0u32..16),
        has_file in any::<bool>(),
        state in prop::sample::select(vec!["finished", "running", "failed", "cancelled", "lost", "pristine", "Finished"]),
        final_ in any::<bool>(),
        error in prop::option::of("[a-z]{1,9}"),
        (started, ended) in (any::<bool>(), prop::option::of(0u32..160)),
        (interrupted, cancel_requested) in (any::<bool>(), any::<bool>()),
    ) {
        let file = file(json!({"state": state, "ended_at": final_.then_some(1795392257), "error": error, "interrupted": interrupted}));
        let file = has_file.then_some(&file);
        let end = end(word.parse().unwrap(), Exit { code, signal });
        let marks = Marks { started, ended };
        let outcome = judge(&Seen { end: &end, marks: &marks, file, cancel_requested, own_uid: None });
        let finished = has_file && state == "finished" && final_ && error.is_none();
        prop_assert_eq!(outcome == Some(Outcome::Completed), finished && end.state.is_terminal());
        prop_assert_eq!(outcome.is_none(), !end.state.is_terminal());
        if let Some(outcome) = outcome && outcome != Outcome::Completed {
            prop_assert!(outcome.failure_class().is_some());
        }
    }
}

#[test]
fn the_manual_has_every_class() {
    let manual = include_str!("../../../../docs/slurm.md");
    let told: Vec<&str> =
        manual.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for class in [
        class::OUT_OF_MEMORY,
        class::TIME_LIMIT,
        class::NODE_FAILURE,
        class::PREEMPTED,
        class::BOOT_FAILURE,
        class::CANCELLED,
        class::APPLICATION_EXIT,
        class::DALIUGE_DROP_ERROR,
        class::ENGINE_FAILURE,
        class::CONFLICT,
        class::INCONSISTENT_STATE,
    ] {
        assert!(told.contains(&class), "docs/slurm.md does not have {class}");
    }
}
