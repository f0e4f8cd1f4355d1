//! The process ends at the worst moments: afterwards every execution ends, and nothing was handed over twice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::service::{PROJECT, Service, is_terminal, sessions_on, status_is};
use crate::backends::daliuge::Own;

/// Sources that finish.
const GOOD: [&str; 4] = ["HIPASSJ1318-21", "HIPASSJ0039-14", "HIPASSJ1305-20", "HIPASSJ1321-19"];

async fn ended_between(place: &str) {
    let island = Own::island();
    let mut service = Service::start(&[]).await;
    service.survey(island.port(), |yaml| yaml).await;
    service.stop().await;
    service.start_again(&[("BEAMPIPE_TEST_CRASH_AT", place)]).await;
    service.register(&GOOD[..1]).await;
    service.wait_for_end().await;
    service.start_again(&[]).await;
    let executions = service
        .until("at its end", Duration::from_secs(60), |all| all.len() == 1 && all.iter().all(is_terminal))
        .await;
    assert_eq!(executions.iter().filter(status_is("completed")).count(), 1, "{place}: {executions:#?}");
    one_session_an_attempt(&service, island.port(), &executions).await;
    service.stop().await;
    service.verify_log();
}

/// Every attempt that was announced has exactly one session on the manager, and its events say so once.
async fn one_session_an_attempt(service: &Service, dim_port: u16, executions: &[Value]) {
    let on_the_manager = sessions_on(dim_port).await;
    for execution in executions {
        let id = execution["uuid"].as_str().unwrap();
        let events = service.events(&format!("/executions/{id}/events")).await;
        let announced: Vec<&str> = events
            .iter()
            .filter(|event| event["event_type"] == "execution.submission_started")
            .map(|event| event["payload"]["session_id"].as_str().unwrap())
            .collect();
        let distinct: BTreeSet<&str> = announced.iter().copied().collect();
        assert_eq!(announced.len(), distinct.len(), "an attempt of {id} was announced twice");
        for session in announced {
            let found = on_the_manager.iter().filter(|name| *name == session).count();
            assert_eq!(found, 1, "session {session} of {id}");
        }
    }
}

#[tokio::test]
async fn killed_after_the_announcement_there_is_one_session() {
    ended_between("submission_started").await;
}

#[tokio::test]
async fn killed_after_the_session_was_created_there_is_one_session() {
    ended_between("session_created").await;
}

#[tokio::test]
async fn killed_after_the_graph_was_appended_there_is_one_session() {
    ended_between("graph_appended").await;
}

#[tokio::test]
async fn killed_after_the_deployment_there_is_one_session() {
    ended_between("session_deployed").await;
}

#[tokio::test]
async fn killed_after_a_source_was_admitted_its_execution_is_created() {
    ended_between("source_admitted").await;
}

/// `kill -9` at random moments while executions run; 30 of them in a soak, as many as fit into 30 seconds otherwise.
#[tokio::test]
async fn a_storm_of_kills_loses_nothing_and_submits_nothing_twice() {
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`, and a seed to repeat a run")]
    let (soak, seed) = (std::env::var("BEAMPIPE_TEST_SOAK").is_ok(), std::env::var("SEED").ok());
    let mut random =
        Random(seed.and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()) | 1));
    eprintln!("SEED={}", random.0);
    let own = Own::island();
    let mut service = Service::start(&[]).await;
    service.survey(own.port(), |yaml| yaml).await;
    service.register(&GOOD).await;
    // Kills are to hit executions: what is killed before its discovery has run nothing.
    service
        .until("running", Duration::from_secs(60), |all| {
            all.iter().any(|e| e["submission_state"] == "submitted")
        })
        .await;
    let mut hit = 0;
    let mut acknowledged = BTreeSet::new();
    let (kills, begun) = (if soak { 30 } else { 8 }, Instant::now());
    for n in 0..kills {
        if !soak && begun.elapsed() > Duration::from_secs(30) {
            break;
        }
        let until = Instant::now() + Duration::from_millis(200 + random.below(2500));
        while Instant::now() < until {
            // What was acknowledged has to be there at the end.
            let name = format!("EXTRA{n}-{}", random.below(1_000_000));
            let body = serde_json::json!({"project_module": PROJECT, "source_identifier": name});
            let request = service.request(reqwest::Method::POST, "/sources").json(&body);
            if request.send().await.is_ok_and(|answer| answer.status() == 201) {
                acknowledged.insert(name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hit += usize::from(!service.executions().await.iter().all(is_terminal));
        service.kill();
        service.start_again(&[]).await;
        if soak && n % 5 == 4 {
            again(&service).await;
        }
    }
    let executions = service
        // One at a time on one Node Manager: a soak leaves a line of them.
        .until("all at their end", Duration::from_secs(if soak { 600 } else { 180 }), |all| {
            all.len() >= 4 && all.iter().all(is_terminal)
        })
        .await;
    one_session_an_attempt(&service, own.port(), &executions).await;
    let completed = executions.iter().filter(status_is("completed")).count();
    assert_eq!(completed, executions.len(), "{executions:#?}");
    let registered = registered(&service).await;
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !registered.contains(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    assert!(hit > 0, "no kill hit a live execution");
    eprintln!(
        "{hit} of {} kills hit live executions, {} executions, {} acknowledged sources",
        kills,
        executions.len(),
        acknowledged.len()
    );
    service.stop().await;
    service.verify_log();
}

/// New executions of what has been discovered, so that a long storm has something to hit.
async fn again(service: &Service) {
    for source in GOOD {
        let body = serde_json::json!({
            "project_module": PROJECT, "archive_name": "casda", "deployment_profile_name": "demo",
            "sources": [{"source_identifier": source}],
        });
        let request = service.request(reqwest::Method::POST, "/executions").json(&body);
        // It may not have been discovered yet: then there is nothing to run.
        let Ok(answer) = request.send().await else { continue };
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        if status != 201 {
            eprintln!("{source} is not run again: {status} {text}");
            continue;
        }
        let created: Value = serde_json::from_str(&text).unwrap();
        let path = format!("/executions/{}/execute", created["uuid"].as_str().unwrap());
        service.post(&path, serde_json::json!({"do_stage": true, "do_submit": true})).await;
    }
}

async fn registered(service: &Service) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for offset in (0..).step_by(500) {
        let page = service.get(&format!("/sources?project_module={PROJECT}&limit=500&offset={offset}")).await;
        let page = page.as_array().unwrap();
        names.extend(page.iter().map(|source| source["source_identifier"].as_str().unwrap().to_owned()));
        if page.len() < 500 {
            break;
        }
    }
    names
}

/// xorshift: a seed repeats the run, nothing more is asked of it.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test]
async fn a_manager_that_is_away_delays_executions_and_fails_none() {
    let own = Own::island();
    let service = Service::start(&[("BEAMPIPE_DEPENDENCIES__PROBE_SECONDS", "1")]).await;
    service.survey(own.port(), |yaml| yaml).await;
    own.call("stop-dim");
    service.register(&GOOD[..2]).await;
    let waiting = service
        .until("waiting", Duration::from_secs(60), |all| {
            // One at a time: the second source waits for the first's end.
            all.len() == 1 && all.iter().all(|e| e["status"] == "running" && e["why"].is_object())
        })
        .await;
    assert!(waiting.iter().all(|e| !is_terminal(e)));
    let mut ready = service.get("/ready").await;
    for _ in 0..100 {
        if ready["status"] == "degraded" && ready.to_string().contains("dim_demo") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        ready = service.get("/ready").await;
    }
    assert!(ready["status"] == "degraded" && ready.to_string().contains("dim_demo"), "{ready:#}");
    own.call("start-dim");
    let executions = service
        .until("at their end", Duration::from_secs(120), |all| all.len() == 2 && all.iter().all(is_terminal))
        .await;
    assert_eq!(executions.iter().filter(status_is("completed")).count(), 2, "{executions:#?}");
}
