//! A worker that hands an execution over and sleeps, while a person gives the session up and the execution is tried again: what it
//! learns when it wakes is of its own session, and is not taken for the next attempt's.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{Cluster, GOOD, simulated_profile, survey, until};

async fn asleep(pid: u32, what: &str) {
    let begun = Instant::now();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not come to {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_job_that_was_given_up_is_not_recorded_for_the_next_attempt() {
    let mut cluster = Cluster::start(&["api", "scheduler"]).await;
    simulated_profile(cluster.api(), 300).await;
    survey(cluster.api(), "overtaken", "sim").await;
    for _ in 0..2 {
        cluster.join("worker").await.stop().await;
    }
    let (first, second) = (2, 3);
    cluster.members[first].start_again(&[("BEAMPIPE_TEST_STOP_AT", "session_deployed")]).await;
    cluster
        .api()
        .post("/sources", json!({"project_module": "overtaken", "source_identifier": GOOD[0]}))
        .await;
    asleep(cluster.members[first].pid(), "its deployment").await;
    let bound = Duration::from_secs(60);
    let one = &until(cluster.api(), "announced", bound, |all| all.len() == 1).await[0];
    let path = format!("/executions/{}", one["uuid"].as_str().unwrap());
    assert_eq!(one["submission_state"], "in_flight");
    let deployed = cluster.simulated_sessions();
    assert_eq!(deployed.len(), 1);

    let word = json!({
        "reason": "nobody hears of it", "acknowledge_external_job_may_exist": true,
        "expected_submission_state": "in_flight",
        "expected_daliuge_session_id": deployed.first(),
        "expected_submission_deadline_at": one["submission_deadline_at"],
    });
    cluster.api().post(&format!("{path}/submission/abandon"), word).await;
    cluster.api().post(&format!("{path}/retry"), json!({"reason": "again"})).await;
    // The next attempt has announced its session, and that has not come to the backend.
    cluster.members[second].start_again(&[("BEAMPIPE_TEST_STOP_AT", "session_asked_for")]).await;
    asleep(cluster.members[second].pid(), "the second attempt's session").await;
    let announced = cluster.api().get(&path).await;
    assert_eq!((&announced["submission_state"], &announced["retry_count"]), (&json!("in_flight"), &json!(1)));
    assert_eq!(cluster.simulated_sessions(), deployed);

    cluster.members[first].signal("-CONT");
    let all = until(cluster.api(), "completed", bound, |all| all[0]["status"] == "completed").await;
    assert_eq!(all.len(), 1);
    assert!(cluster.members[first].said().contains("was given up while it was handed over"));
    let events = cluster.api().events(&format!("{path}/events")).await;
    let of = |kind: &str| -> Vec<&Value> {
        let of_kind = events.iter().filter(|event| event["event_type"] == kind);
        of_kind.map(|event| &event["payload"]).collect()
    };
    let [old, new] = of("execution.submission_started")[..] else { panic!("{events:#?}") };
    let [recorded] = of("execution.submission_recorded")[..] else { panic!("{events:#?}") };
    assert_eq!((&recorded["attempt"], &recorded["session_id"]), (&json!(2), &new["session_id"]));
    assert!(recorded["settled_by"].is_string(), "whoever settled it looked: {recorded}");
    let sessions = cluster.simulated_sessions();
    let of_events = [old, new].map(|started| started["session_id"].as_str().unwrap().to_owned());
    assert_eq!(sessions, of_events.into_iter().collect());
    cluster.api().verify_log();
}
