//! A real DALiuGE manager: what every step does, and what it answers to one that makes no sense.

use super::daliuge::{Own, dim, dim_port, end, fresh, http, mapped, state, submit};
use beampipe::backends::dim::answers::SessionStatus;
use beampipe::backends::{Backend, Created, Look, LookError, Progress, State, SubmitError};
use bytes::Bytes;

#[tokio::test]
async fn a_session_goes_from_its_name_to_its_end() {
    let (dim, session) = (dim(), fresh("ok"));
    let (bytes, graph) = mapped("fanout-ok", dim_port()).await;
    graph.belongs_to(&dim.nodes().await.unwrap()).unwrap();

    assert_eq!(dim.look(&session).await.unwrap(), Look::Absent);
    assert_eq!(dim.create(&session).await.unwrap(), Created::New);
    assert_eq!(state(&dim, &session).await, State::Pristine);
    assert_eq!(dim.size(&session).await.unwrap(), 0);
    assert_eq!(dim.progress(&session).await.unwrap(), Progress::default());
    dim.append(&session, bytes).await.unwrap();
    assert_eq!(state(&dim, &session).await, State::Building);
    assert_eq!(dim.size(&session).await.unwrap(), 10);
    dim.deploy(&session, &graph.roots()).await.unwrap();
    assert!(dim.evidence(&session, b"").await.unwrap().error_drops.is_empty());
    assert_eq!(end(&dim, &session).await, State::Finished);

    let progress = dim.progress(&session).await.unwrap();
    assert_eq!((progress.total, progress.completed, progress.failed), (10, 10, 0));
    let listed = dim.sessions().await.unwrap();
    assert_eq!(listed.iter().filter(|one| one.session_id == session).count(), 1);
    for url in [dim.session_status_url(&session), Backend::graph_status_url(&dim, &session)] {
        let answer = http().get(url.unwrap()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.text().await.unwrap().contains("127.0.0.1") || progress.total == 10);
    }
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let (dim, session) = (dim(), fresh("name"));
    assert_eq!(dim.create(&session).await.unwrap(), Created::New);
    assert_eq!(dim.create(&session).await.unwrap(), Created::Existed);
}

#[tokio::test]
async fn of_twenty_who_take_a_name_at_once_one_gets_it() {
    let (dim, session) = (dim(), fresh("race"));
    let attempts = (0..20).map(|_| {
        let (dim, session) = (dim.clone(), session.clone());
        tokio::spawn(async move { dim.create(&session).await.unwrap() })
    });
    let answers = futures::future::join_all(attempts).await;
    assert_eq!(answers.into_iter().filter(|answer| *answer.as_ref().unwrap() == Created::New).count(), 1);
}

#[tokio::test]
async fn a_graph_is_appended_once_and_a_second_deploy_proves_nothing() {
    let (dim, session) = (dim(), fresh("twice"));
    let (bytes, graph) = mapped("fanout-ok", dim_port()).await;
    submit(&dim, &session, bytes.clone(), &graph).await;
    let again = dim.append(&session, bytes).await.unwrap_err();
    assert!(matches!(again, SubmitError::Refused { status: 555, .. }), "{again}");
    // The refusal reads as if nothing ran, and the run goes on.
    let again = dim.deploy(&session, &graph.roots()).await.unwrap_err();
    assert!(matches!(again, SubmitError::Unknown { .. }), "{again}");
    assert_eq!(end(&dim, &session).await, State::Finished);
}

#[tokio::test]
async fn a_failed_drop_is_named_with_what_it_said() {
    let (dim, session) = (dim(), fresh("fail"));
    let (bytes, graph) = mapped("one-fails", dim_port()).await;
    submit(&dim, &session, bytes.clone(), &graph).await;
    assert_eq!(end(&dim, &session).await, State::Failed);

    let evidence = dim.evidence(&session, &bytes).await.unwrap();
    assert_eq!((evidence.error_drops_count, evidence.state.clone()), (4, State::Failed));
    let culprits: Vec<_> = evidence.error_drops.iter().filter(|drop| drop.culprit).collect();
    assert_eq!(culprits.len(), 1);
    assert_eq!(culprits[0].name, "bad");
    assert!(culprits[0].log.iter().any(|line| line.message.contains("no such beam")));
    assert!(evidence.summary().starts_with("bad: Command didn't finish successfully (exit code 3)"));
}

#[tokio::test]
async fn nothing_but_the_status_speaks_of_a_session_that_is_not_there() {
    let (dim, session) = (dim(), fresh("nobody"));
    assert_eq!(dim.session_status(&session).await.unwrap().0, SessionStatus::Absent);
    assert_eq!(dim.size(&session).await.unwrap(), 0);
    assert!(matches!(dim.graph_status(&session).await, Err(LookError::NoSuch { .. })));
    assert!(matches!(dim.drop_detail(&session, "x").await, Err(LookError::Unavailable { .. })));
    let (bytes, graph) = mapped("one-fails", dim_port()).await;
    for refused in [
        dim.append(&session, bytes).await,
        dim.deploy(&session, &graph.roots()).await,
        dim.cancel(&session).await,
    ] {
        match refused.unwrap_err() {
            SubmitError::Refused { kinds, .. } => assert_eq!(kinds, ["NoSessionException"]),
            other => panic!("{other}"),
        }
    }
    assert_eq!(dim.look(&session).await.unwrap(), Look::Absent);
}

#[tokio::test]
async fn a_cancelled_session_is_not_a_failed_one() {
    let (dim, session) = (dim(), fresh("cancel"));
    let (bytes, graph) = mapped("fanout-ok", dim_port()).await;
    dim.create(&session).await.unwrap();
    dim.append(&session, bytes.clone()).await.unwrap();
    assert!(matches!(dim.cancel(&session).await, Err(SubmitError::Refused { .. })), "it does not run yet");
    dim.deploy(&session, &graph.roots()).await.unwrap();
    dim.cancel(&session).await.unwrap();
    assert_eq!(state(&dim, &session).await, State::Cancelled);
    dim.cancel(&session).await.unwrap();
    let evidence = dim.evidence(&session, &bytes).await.unwrap();
    assert_eq!((evidence.error_drops_count, evidence.state), (0, State::Cancelled));
}

#[tokio::test]
async fn a_graph_that_was_not_mapped_is_refused_and_the_session_stays_empty() {
    let (dim, session) = (dim(), fresh("unmapped"));
    dim.create(&session).await.unwrap();
    let template = super::daliuge::translator()
        .unroll_and_partition(
            &super::daliuge::logical_graph("fanout-ok"),
            beampipe::backends::translator::Algorithm::Metis,
            1,
            1,
            &session,
        )
        .await
        .unwrap();
    match dim.append(&session, template).await.unwrap_err() {
        SubmitError::Refused { status: 400, kinds, .. } => assert_eq!(kinds, ["InvalidGraphException"]),
        other => panic!("{other}"),
    }
    assert_eq!(state(&dim, &session).await, State::Pristine);
}

#[tokio::test]
async fn a_deploy_from_a_root_that_is_not_there_leaves_a_session_to_be_cancelled() {
    let (dim, session) = (dim(), fresh("root"));
    let (bytes, _) = mapped("fanout-ok", dim_port()).await;
    dim.create(&session).await.unwrap();
    dim.append(&session, bytes).await.unwrap();
    let none = dim.deploy(&session, &[]).await.unwrap_err();
    assert!(matches!(none, SubmitError::NotSent { .. }), "{none}");
    assert_eq!(state(&dim, &session).await, State::Building);
    match dim.deploy(&session, &["nope".into()]).await.unwrap_err() {
        SubmitError::Refused { detail, .. } => assert!(detail.contains("nope"), "{detail}"),
        other => panic!("{other}"),
    }
    assert_eq!(state(&dim, &session).await, State::Running);
    dim.cancel(&session).await.unwrap();
    assert_eq!(state(&dim, &session).await, State::Cancelled);
}

#[tokio::test]
async fn any_name_reaches_the_manager_as_it_is() {
    let dim = dim();
    for name in ["a b", "a+b", "100%", "é?x=1#y&z", "%2e%2e"] {
        let session = fresh(name);
        assert_eq!(dim.create(&session).await.unwrap(), Created::New, "{name}");
        assert_eq!(state(&dim, &session).await, State::Pristine, "{name}");
        assert!(dim.sessions().await.unwrap().iter().any(|one| one.session_id == session), "{name}");
    }
}

#[tokio::test]
async fn a_graph_of_eleven_megabytes_is_taken() {
    let (dim, session) = (dim(), fresh("large"));
    let (bytes, graph) = mapped("one-fails", dim_port()).await;
    let mut list: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    list[0]["description"] = "x".repeat(11_000_000).into();
    let large = Bytes::from(list.to_string());
    assert!(large.len() > 11_000_000);
    submit(&dim, &session, large, &graph).await;
    assert_eq!(end(&dim, &session).await, State::Failed);
}

#[tokio::test]
async fn the_probe_names_the_nodes() {
    let alive = dim().probe().await.unwrap();
    assert_eq!(alive.nodes.len(), 1);
    assert!(alive.nodes[0].starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn a_stopped_manager_was_surely_not_asked() {
    let own = Own::dim();
    let dim = own.client();
    let (bytes, graph) = mapped("one-fails", own.port()).await;
    own.call("stop-dim");
    for step in [
        dim.create("s").await.map(|_| ()),
        dim.append("s", bytes).await,
        dim.deploy("s", &graph.roots()).await,
        dim.cancel("s").await,
    ] {
        let error = step.unwrap_err();
        assert!(matches!(error, SubmitError::NotSent { .. }) && error.surely_not_done(), "{error}");
    }
    assert!(matches!(dim.look("s").await, Err(LookError::Unreachable { .. })));
    assert!(matches!(dim.probe().await, Err(LookError::Unreachable { .. })));
}

#[tokio::test]
async fn a_restarted_manager_still_finds_what_its_nodes_know() {
    let own = Own::dim();
    let (dim, run, begun) = (own.client(), fresh("restart-run"), fresh("restart-begun"));
    let (bytes, graph) = mapped("one-fails", own.port()).await;
    submit(&dim, &run, bytes.clone(), &graph).await;
    let (other_bytes, other) = mapped("fanout-ok", own.port()).await;
    dim.create(&begun).await.unwrap();
    dim.append(&begun, other_bytes).await.unwrap();

    own.call("stop-dim");
    own.call("start-dim");
    assert!(dim.sessions().await.unwrap().is_empty(), "the manager has forgotten its list");
    assert_eq!(dim.create(&run).await.unwrap(), Created::Existed);
    assert_eq!(end(&dim, &run).await, State::Failed);
    assert_eq!(dim.evidence(&run, &bytes).await.unwrap().error_drops[0].name, "bad");

    // A graph appended before cannot be deployed any more: the manager has forgotten where its drops are.
    assert_eq!((state(&dim, &begun).await, dim.size(&begun).await.unwrap()), (State::Building, other.len()));
    let refused = dim.deploy(&begun, &other.roots()).await.unwrap_err();
    assert!(matches!(refused, SubmitError::Refused { .. }), "{refused}");
    assert_eq!(state(&dim, &begun).await, State::Running);
    let progress = dim.progress(&begun).await.unwrap();
    assert_eq!((progress.completed, progress.running), (0, 0));
    dim.cancel(&begun).await.unwrap();
    assert_eq!(state(&dim, &begun).await, State::Cancelled);
}

#[tokio::test]
async fn a_manager_without_its_node_proves_nothing_and_a_restarted_node_has_lost_the_session() {
    let own = Own::island();
    let (dim, session) = (own.client(), fresh("node"));
    dim.create(&session).await.unwrap();
    own.call("stop-nm");
    let new = fresh("node-down");
    // One after the other: the manager waits 10 s for the node, for one request at a time.
    let create = dim.create(&new).await.unwrap_err();
    assert!(matches!(create, SubmitError::Unknown { .. }), "{create}");
    let probe = dim.probe().await;
    assert!(matches!(probe, Err(LookError::Unavailable { status: 555, .. })), "{probe:?}");
    own.call("start-nm");
    assert_eq!(dim.look(&session).await.unwrap(), Look::Absent);
    assert_eq!(dim.look(&new).await.unwrap(), Look::Absent);
}
