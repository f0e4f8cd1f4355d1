//! A worker is drained while it watches: somebody else watches on, or it does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{Cluster, GOOD, simulated_profile, survey, until};
use super::service::Service;

/// Executions that are watched: as many as the survey lets run at once.
const COUNT: usize = 3;

/// The workers that have watches, with how many.
async fn watches(service: &Service) -> BTreeMap<String, usize> {
    let jobs = service.get("/jobs?kind=dim_poll&status=running").await;
    let mut held = BTreeMap::new();
    for job in jobs.as_array().unwrap() {
        *held.entry(job["worker_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    held
}

/// The worker that a process is.
async fn worker_of(cluster: &Cluster, member: usize) -> String {
    let pid = cluster.members[member].pid();
    let begun = Instant::now();
    loop {
        let workers = cluster.api().get("/workers").await;
        let found = workers.as_array().unwrap().iter().find(|worker| worker["process_id"] == pid);
        if let Some(worker) = found {
            return worker["id"].as_str().unwrap().to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{workers:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn drain(cluster: &Cluster, worker: &str) {
    cluster.api().post(&format!("/workers/{worker}/drain"), json!({"reason": "upgrade"})).await;
}

/// Waits until one worker has all the watches; answers how long that took.
async fn all_with(cluster: &Cluster, worker: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let held = watches(cluster.api()).await;
        if held == BTreeMap::from([(worker.to_owned(), COUNT)]) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{worker} has not all of them: {held:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The streams of the jobs that were handed back, one for each time.
async fn handed_back(service: &Service) -> Vec<String> {
    let events = service.get("/events?type=job.handed_back&order=asc&limit=100").await;
    let streams = events.as_array().unwrap().iter().map(|event| event["stream"].as_str().unwrap().to_owned());
    streams.collect()
}

#[tokio::test]
async fn a_drained_worker_gives_its_watches_to_another_and_watches_on_while_there_is_none() {
    let mut cluster = Cluster::start(&["api", "scheduler", "worker"]).await;
    simulated_profile(cluster.api(), 45_000).await;
    survey(cluster.api(), "drained", "sim").await;
    for source in &GOOD[..COUNT] {
        let source = json!({"project_module": "drained", "source_identifier": source});
        cluster.api().post("/sources", source).await;
    }
    let one = worker_of(&cluster, 2).await;
    all_with(&cluster, &one).await;

    // Alone, it keeps them.
    drain(&cluster, &one).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(watches(cluster.api()).await, BTreeMap::from([(one.clone(), COUNT)]));
    }
    assert_eq!(handed_back(cluster.api()).await, [""; 0]);

    // With another one beside it, it gives them away, each once, and is done.
    cluster.join("worker").await;
    let other = worker_of(&cluster, 3).await;
    let took = all_with(&cluster, &other).await;
    eprintln!("{} watches changed hands within {took:.1?}", COUNT);
    let given = handed_back(cluster.api()).await;
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!((given.len(), distinct.len()), (COUNT, COUNT), "{given:?}");
    let begun = Instant::now();
    loop {
        let worker = cluster.api().get(&format!("/workers/{one}")).await;
        if (&worker["status"], &worker["active_leases"]) == (&json!("draining"), &json!(0)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{worker:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // Nobody is left but who is drained, and one of them dies: what lives is watched all the same.
    drain(&cluster, &other).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(watches(cluster.api()).await, BTreeMap::from([(other.clone(), COUNT)]));
    cluster.members[3].kill();
    let took = all_with(&cluster, &one).await;
    eprintln!("taken back from a drained worker that died within {took:.1?}");
    let done = |all: &[Value]| all.len() == COUNT && all.iter().all(|e| e["status"] == "completed");
    until(cluster.api(), "completed", Duration::from_secs(60), done).await;
    cluster.api().verify_log();
}
