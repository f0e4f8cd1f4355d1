//! What goes wrong between a service and a cluster: connections that are cut, daemons that are away, services that are
//! killed, login nodes that refuse. Every execution ends, and Slurm has had exactly one job for each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use beampipe::backends::slurm::cluster::Cluster;
use serde_json::{Value, json};

use super::crash::Random;
use super::service::{Service, is_terminal};
use super::slurm::{GOOD, by_hand, discovered, profile};
use crate::ssh::login::Slots;

mod access;
mod crowd;
mod cuts;
mod daemons;
mod kills;
mod stuck;

/// What makes a job end as soon as it has taken its session, with a code that is told from others.
const ENDS_AT_ONCE: &str = "exit 7";

/// Whether this is a soak, and where its chances come from.
fn storm() -> (bool, Random) {
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`, and a seed to repeat a run")]
    let (soak, seed) = (std::env::var("BEAMPIPE_TEST_SOAK").is_ok(), std::env::var("SEED").ok());
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()) | 1);
    eprintln!("SEED={seed}");
    (soak, Random(seed))
}

/// A service with a project whose executions are started by hand, and a source that is discovered.
async fn ready(slots: &Slots, settings: &[(&str, &str)]) -> Service {
    let credentials = slots.directory.path().to_str().unwrap();
    let settings = [&[("BEAMPIPE_SSH__CREDENTIALS_DIR", credentials)], settings].concat();
    let service = Service::start(&settings).await;
    service.configure(by_hand).await;
    service.register(&[GOOD]).await;
    discovered(&service, 1).await;
    service
}

/// A profile whose jobs do nothing but this; answers its id.
async fn add(
    service: &Service,
    root: &str,
    name: &str,
    setup: &str,
    change: impl FnOnce(&mut Value),
) -> String {
    let body = profile(root, |profile| {
        profile["name"] = json!(name);
        profile["is_default"] = json!(false);
        profile["max_concurrent_executions"] = Value::Null;
        profile["deployment"]["environment_setup"] = json!(setup);
        change(&mut profile["deployment"]);
    });
    service.post("/deployment-profiles", body).await["uuid"].as_str().unwrap().to_owned()
}

/// Waits until all are at their end.
async fn all_ended(service: &Service, count: usize, bound: Duration) -> Vec<Value> {
    let ended = |all: &[Value]| all.len() == count && all.iter().all(is_terminal);
    service.until("all at their end", bound, ended).await
}

/// The session that an execution announced, once.
async fn session_of(service: &Service, id: &str) -> String {
    let events = service.events(&format!("/executions/{id}/events")).await;
    let announced: Vec<&Value> =
        events.iter().filter(|event| event["event_type"] == "execution.submission_started").collect();
    assert_eq!(announced.len(), 1, "{id} was announced {} times", announced.len());
    announced[0]["payload"]["session_id"].as_str().unwrap().to_owned()
}

/// Every execution has exactly one job, by accounting and by the execution's own word.
async fn one_job_each(service: &Service, cluster: &Cluster, executions: &[Value]) {
    let mut wanted = BTreeMap::new();
    for execution in executions {
        let session = session_of(service, execution["uuid"].as_str().unwrap()).await;
        wanted.insert(session, execution["scheduler_job_id"].as_str().map(str::to_owned));
    }
    let begun = Instant::now();
    let found = loop {
        let found = jobs_by_name(cluster).await;
        // Accounting may be late, and first knows a short job by another name.
        if wanted.keys().all(|session| found.contains_key(session)) {
            break found;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{wanted:#?} {found:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for (session, job) in &wanted {
        assert_eq!(Some(&found[session]), job.as_ref().map(|job| vec![job.clone()]).as_ref(), "{session}");
    }
    // A second one of a name would be as late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = jobs_by_name(cluster).await;
    for session in wanted.keys() {
        assert_eq!(later[session], found[session], "{session}");
    }
}

/// The ids of the jobs that accounting has, by name.
async fn jobs_by_name(cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    let said = cluster.run("sacct -X -n -P --allusers -S now-3hours -o jobid,jobname").await.unwrap();
    assert!(said.success() && !said.truncated, "{said:?}");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, name) in said.stdout_text().lines().filter_map(|line| line.split_once('|')) {
        found.entry(name.to_owned()).or_default().push(id.to_owned());
    }
    found
}

/// Waits until something is so.
async fn within(what: &str, bound: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < bound, "not {what} after {bound:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    begun.elapsed()
}

/// The types of the events of an execution, in order.
async fn told_of(service: &Service, id: &str) -> Vec<String> {
    let events = service.events(&format!("/executions/{id}/events")).await;
    events.iter().map(|event| event["event_type"].as_str().unwrap().to_owned()).collect()
}

/// An execution as it is now.
async fn now(service: &Service, id: &str) -> Value {
    service.get(&format!("/executions/{id}")).await
}

/// What is known of the project's executions by their ids.
fn by_id(all: &[Value]) -> BTreeMap<&str, &Value> {
    all.iter().map(|execution| (execution["uuid"].as_str().unwrap(), execution)).collect()
}
