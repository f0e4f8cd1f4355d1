//! A PostgreSQL with a streaming standby: the primary is killed and the standby takes its place.
//!
//! With synchronous replication nothing that was acknowledged is lost. With asynchronous replication the end of the log may be
//! gone: that is noticed and said, and nothing that was built on it stays.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

use super::service::{PROJECT, Service};
use crate::backends::daliuge::SCRIPTS;

struct Pair {
    /// Below nobody's home: the servers do not run as root.
    directory: tempfile::TempDir,
    ports: [u16; 2],
}

impl Pair {
    fn start(replication: &str) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::Builder::new().prefix("beampipe-pair.").tempdir_in("/var/tmp").unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), permissions).unwrap();
        let pair = Self { directory, ports: [free(), free()] };
        pair.call(&["start", replication]);
        pair
    }

    #[track_caller]
    fn call(&self, verb: &[&str]) {
        let done = Command::new(format!("{SCRIPTS}/pgpair.sh"))
            .arg(self.directory.path())
            .args(self.ports.map(|port| port.to_string()))
            .args(verb)
            .output()
            .unwrap();
        let said =
            [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
        assert!(
            done.status.success(),
            "pgpair.sh {verb:?}: {said} (tests/realparts/postgres.sh install brings PostgreSQL)"
        );
    }

    /// Whichever of the two may be written to.
    fn url(&self) -> String {
        let [one, other] = self.ports;
        format!("postgres://beampipe@127.0.0.1:{one},127.0.0.1:{other}/postgres")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.call(&["stop"]);
    }
}

/// Registers a source; whether it was acknowledged.
async fn register(service: &Service, name: &str) -> bool {
    let body = json!({"project_module": PROJECT, "source_identifier": name});
    let request = service.request(reqwest::Method::POST, "/sources").json(&body);
    request.timeout(Duration::from_secs(5)).send().await.is_ok_and(|answer| answer.status() == 201)
}

async fn names(service: &Service) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    loop {
        let path = format!("/sources?project_module={PROJECT}&limit=1000&offset={}", names.len());
        let page = service.get(&path).await;
        let page = page.as_array().unwrap();
        names.extend(page.iter().map(|s| s["source_identifier"].as_str().unwrap().to_owned()));
        if page.len() < 1000 {
            return names;
        }
    }
}

/// Waits until a source can be registered again; answers in what time, from `begun` on.
async fn resumed(service: &Service, begun: Instant, name: &str) -> Duration {
    for n in 0.. {
        if register(service, &format!("{name}{n}")).await {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not go on:\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

/// No discovery and no execution: only what the test writes is written.
fn quiet(yaml: String) -> String {
    yaml.replace("enabled: true", "enabled: false")
}

#[tokio::test]
async fn with_synchronous_replication_a_failover_loses_nothing_that_was_acknowledged() {
    let pair = Arc::new(Pair::start("sync"));
    let service = Service::start(&[("BEAMPIPE_LOG__URL", &pair.url())]).await;
    service.configure(quiet).await;
    let mut acknowledged = BTreeSet::new();
    let killed = AtomicBool::new(false);
    // Under load until the primary is away: what is answered at that very moment counts, too.
    let writing = async {
        for n in 0.. {
            let (name, last) = (format!("BEFORE{n}"), killed.load(Relaxed));
            if register(&service, &name).await {
                acknowledged.insert(name);
            }
            if last {
                break;
            }
        }
    };
    let killing = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let begun = Instant::now();
        for verb in ["kill-primary", "promote"] {
            let pair = Arc::clone(&pair);
            tokio::task::spawn_blocking(move || pair.call(&[verb])).await.unwrap();
            killed.store(true, Relaxed);
        }
        begun
    };
    let ((), begun) = tokio::join!(writing, killing);
    let took = resumed(&service, begun, "AFTER").await;
    let registered = names(&service).await;
    let lost: Vec<_> = acknowledged.difference(&registered).collect();
    assert!(
        acknowledged.len() > 20 && lost.is_empty(),
        "{} acknowledged, gone: {lost:?}",
        acknowledged.len()
    );
    service.verify_log();
    eprintln!(
        "{} acknowledged before the primary was killed, all there; appends again after {took:.1?}",
        acknowledged.len()
    );
}

#[tokio::test]
async fn with_asynchronous_replication_a_lost_end_is_said_and_nothing_built_on_it_stays() {
    let pair = Pair::start("async");
    let mut service = Service::start(&[("BEAMPIPE_LOG__URL", &pair.url())]).await;
    service.configure(quiet).await;
    for n in 0..5 {
        assert!(register(&service, &format!("KEPT{n}")).await);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    pair.call(&["cut"]);
    for n in 0..5 {
        assert!(register(&service, &format!("LOST{n}")).await);
    }
    // Somebody has seen them.
    let request = service.request(reqwest::Method::GET, &format!("/projects/{PROJECT}/events?after=0"));
    let open = request.header("accept", "text/event-stream").send().await.unwrap();
    let mut chunks = open.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("LOST4") {
        seen.push_str(std::str::from_utf8(&chunks.next().await.unwrap().unwrap()).unwrap());
    }
    let last_id = seen.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap().to_owned();

    let begun = Instant::now();
    pair.call(&["kill-primary"]);
    pair.call(&["promote"]);
    let took = resumed(&service, begun, "AFTER").await;
    // The open stream ends and says why; going on from what was lost is refused.
    let mut rest = String::new();
    while let Ok(Some(Ok(chunk))) = tokio::time::timeout(Duration::from_secs(30), chunks.next()).await {
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(rest.contains("event: log-changed"), "{rest}");
    let request = service.request(reqwest::Method::GET, &format!("/projects/{PROJECT}/events"));
    let request = request.header("accept", "text/event-stream").header("last-event-id", &last_id);
    assert_eq!(request.send().await.unwrap().status(), 410);

    // The read models are folded again from what is there.
    let settled = Instant::now();
    loop {
        let registered = names(&service).await;
        let lost = registered.iter().any(|name| name.starts_with("LOST"));
        if !lost && registered.contains("KEPT4") && registered.iter().any(|name| name.starts_with("AFTER")) {
            break;
        }
        assert!(settled.elapsed() < Duration::from_secs(60), "{registered:?}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(service.said().contains("the log has lost events"), "it was not said:\n{}", service.said());
    // What was lost is not taken for being there: it can be registered again.
    assert!(register(&service, "LOST0").await, "{}", service.said());
    assert!(names(&service).await.contains("LOST0"));
    service.verify_log();
    service.stop().await;
    let clean = service.command(&["projections", "verify"]);
    assert!(clean.status.success(), "{}", super::service::words(&clean));
    eprintln!("5 acknowledged events were lost, and that was said; appends again after {took:.1?}");
}
