//! The simulated backend: the same life of a session, with loss and failure as they are asked for.

use beampipe::backends::simulated::{Settings, Simulated, World};
use beampipe::backends::{Backend, Created, Look, State, SubmitError};
use bytes::Bytes;
use std::time::Duration;

const GRAPH: &str = r#"[{"oid":"a","name":"a","categoryType":"Application","node":"n"},
    {"oid":"b","name":"b","categoryType":"Data","producers":["a"],"node":"n"},{}]"#;

fn quick() -> Settings {
    Settings { latency_ms: 0, run_ms: 40, ..Settings::default() }
}

async fn state(backend: &Simulated, session: &str) -> State {
    match backend.look(session).await.unwrap() {
        Look::Present { state, .. } => state,
        Look::Absent => panic!("{session} is absent"),
    }
}

#[tokio::test]
async fn a_simulated_session_lives_like_a_real_one() {
    let backend = Simulated::new(World::default(), quick());
    assert_eq!(backend.look("s").await.unwrap(), Look::Absent);
    assert_eq!(backend.create("s").await.unwrap(), Created::New);
    assert_eq!(backend.create("s").await.unwrap(), Created::Existed);
    assert_eq!(state(&backend, "s").await, State::Pristine);
    backend.append("s", Bytes::from(GRAPH)).await.unwrap();
    assert!(matches!(backend.append("s", Bytes::from(GRAPH)).await, Err(SubmitError::Refused { .. })));
    assert_eq!((state(&backend, "s").await, backend.size("s").await.unwrap()), (State::Building, 2));
    assert!(matches!(backend.cancel("s").await, Err(SubmitError::Refused { .. })));
    backend.deploy("s", &["a".into()]).await.unwrap();
    assert!(matches!(backend.deploy("s", &["a".into()]).await, Err(SubmitError::Unknown { .. })));
    assert_eq!(state(&backend, "s").await, State::Running);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(state(&backend, "s").await, State::Finished);
    assert_eq!(backend.progress("s").await.unwrap().completed, 2);
    assert_eq!(backend.session_status_url("s"), None);
}

#[tokio::test]
async fn a_simulated_failure_has_evidence_and_a_cancel_has_none() {
    let backend =
        Simulated::new(World::default(), Settings { failure_probability: 1.0, run_ms: 20, ..quick() });
    for session in ["fails", "cancelled"] {
        backend.create(session).await.unwrap();
        backend.append(session, Bytes::from(GRAPH)).await.unwrap();
        backend.deploy(session, &["a".into()]).await.unwrap();
    }
    backend.cancel("cancelled").await.unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(state(&backend, "fails").await, State::Failed);
    assert_eq!(state(&backend, "cancelled").await, State::Cancelled);
    let evidence = backend.evidence("fails", GRAPH.as_bytes()).await.unwrap();
    assert_eq!((evidence.error_drops_count, evidence.error_drops[0].name.as_str()), (1, "b"));
    assert_eq!(backend.evidence("cancelled", GRAPH.as_bytes()).await.unwrap().error_drops_count, 0);
}

#[tokio::test]
async fn what_is_lost_depends_on_seed_and_session_only_and_half_of_it_happened() {
    let settings = Settings { loss_probability: 0.4, seed: 7, ..quick() };
    let mut earlier: Option<Vec<bool>> = None;
    for _ in 0..2 {
        let world = World::default();
        let backend = Simulated::new(world.clone(), settings.clone());
        let (mut lost, mut happened) = (Vec::new(), 0);
        for n in 0..500 {
            let session = format!("s{n}");
            let answer = backend.create(&session).await;
            lost.push(answer.is_err());
            if answer.is_err() && backend.look(&session).await.unwrap() != Look::Absent {
                happened += 1;
            }
        }
        let count = lost.iter().filter(|lost| **lost).count();
        assert!((150..250).contains(&count), "{count} of 500 at 0.4");
        assert!((60..140).contains(&happened), "{happened} of {count} happened");
        assert_eq!(world.sessions(), 500 - count + happened);
        assert!(earlier.is_none_or(|earlier| earlier == lost), "the second run differs");
        earlier = Some(lost);
    }
    let other = Simulated::new(World::default(), Settings { seed: 8, ..settings });
    let mut lost = Vec::new();
    for n in 0..500 {
        lost.push(other.create(&format!("s{n}")).await.is_err());
    }
    assert_ne!(earlier.unwrap(), lost, "another seed is another world");
}

#[tokio::test]
async fn a_step_that_was_lost_is_not_lost_for_ever() {
    let settings = Settings { loss_probability: 0.5, seed: 7, ..quick() };
    let backend = Simulated::new(World::default(), settings);
    for n in 0..100 {
        let session = format!("s{n}");
        let mut tries = 0;
        while backend.create(&session).await.is_err() {
            tries += 1;
            assert!(tries < 30, "{session} is lost at every try");
        }
    }
}
