//! The network between the service and its PostgreSQL is cut for half a minute, in a network namespace of the server's own.
//!
//! Nobody is told: packets vanish, as where a cable is pulled. The service has to say so, refuse appends clearly, go on
//! reading and say how old that is, and go on by itself afterwards.

use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde_json::{Value, json};

use super::service::{PROJECT, Service};
use crate::backends::daliuge::SCRIPTS;

/// How long the network is away.
const CUT: Duration = Duration::from_secs(30);
/// Within this the service has to say that its log is away.
const SAID_WITHIN: Duration = Duration::from_secs(5);

struct Cable {
    directory: tempfile::TempDir,
    url: String,
}

impl Cable {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("beampipe-cable.").tempdir_in("/var/tmp").unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), permissions).unwrap();
        let mut cable = Self { directory, url: String::new() };
        cable.url = cable.call("start");
        cable
    }

    #[track_caller]
    fn call(&self, verb: &str) -> String {
        let script = format!("{SCRIPTS}/netcut.sh");
        let done = Command::new(script).arg(self.directory.path()).arg(verb).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        assert!(
            done.status.success(),
            "netcut.sh {verb}: {said}{} (it needs root, or sudo; tests/realparts/postgres.sh install brings the rest)",
            String::from_utf8_lossy(&done.stderr)
        );
        said
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.call("stop");
    }
}

struct Seen {
    status: u16,
    body: Value,
    as_of: Option<DateTime<Utc>>,
    age: Option<u64>,
    retry_after: Option<u64>,
    took: Duration,
}

async fn send(request: reqwest::RequestBuilder) -> Seen {
    let begun = Instant::now();
    let answer = request.timeout(Duration::from_secs(20)).send().await.expect("it is answered");
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (as_of, age, retry_after) = (header("beampipe-as-of"), header("age"), header("retry-after"));
    let status = answer.status().as_u16();
    Seen {
        status,
        body: answer.json().await.unwrap_or_default(),
        as_of: as_of.map(|at| at.parse().unwrap()),
        age: age.map(|age| age.parse().unwrap()),
        retry_after: retry_after.map(|after| after.parse().unwrap()),
        took: begun.elapsed(),
    }
}

async fn get(service: &Service, path: &str) -> Seen {
    send(service.request(reqwest::Method::GET, path)).await
}

async fn register(service: &Service, name: &str) -> Seen {
    let body = json!({"project_module": PROJECT, "source_identifier": name});
    send(service.request(reqwest::Method::POST, "/sources").json(&body)).await
}

/// Waits until readiness has this status; answers what it says, and in what time from `begun` on.
async fn ready_is(service: &Service, status: u16, begun: Instant, bound: Duration) -> (Value, Duration) {
    let http = crate::backends::daliuge::http();
    loop {
        let asked = Instant::now();
        let answer = http.get(service.ready_url()).send().await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "readiness is answered from what is known");
        if answer.status() == status {
            return (answer.json().await.unwrap(), begun.elapsed());
        }
        assert!(begun.elapsed() < bound, "readiness is not {status}:\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_network_that_is_cut_for_half_a_minute_is_said_read_past_and_recovered_from() {
    let cable = Cable::start();
    let mut service = Service::start(&[("BEAMPIPE_LOG__URL", &cable.url)]).await;
    service.configure(|yaml| yaml.replace("enabled: true", "enabled: false")).await;
    service.simulate(500).await;
    let known = register(&service, "BEFORE").await;
    assert_eq!(known.status, 201);
    let source = known.body["uuid"].as_str().unwrap().to_owned();
    let (pid, profile) = (service.pid(), service.get("/deployment-profiles").await[0]["uuid"].clone());
    let paths = [
        format!("/sources/{source}"),
        format!("/sources/{source}/status"),
        format!("/sources?project_module={PROJECT}"),
        format!("/deployment-profiles/{}", profile.as_str().unwrap()),
        "/executions".to_owned(),
        "/workers".to_owned(),
    ];
    let before = get(&service, &paths[0]).await;
    assert_eq!((before.status, before.age), (200, None));
    let follow = service.request(reqwest::Method::GET, &format!("/projects/{PROJECT}/events"));
    let follow = follow.header("accept", "text/event-stream").send().await.unwrap();

    cable.call("cut");
    let cut = Instant::now();
    let (said, after) = ready_is(&service, 503, cut, SAID_WITHIN).await;
    assert!(said["reasons"].to_string().contains("the log refuses appends"), "{said}");
    let clock = beampipe::clock::Clock::system();
    let mut longest_read = Duration::ZERO;
    let mut refused = 0;
    while cut.elapsed() < CUT {
        let refusal = register(&service, &format!("DURING{refused}")).await;
        assert_eq!(refusal.status, 503, "{}", refusal.body);
        assert!(refusal.retry_after.is_some(), "it says when to come again");
        assert!(refusal.took < Duration::from_secs(5), "refused after {:?}", refusal.took);
        refused += 1;
        for path in &paths {
            let silent_at_least = cut.elapsed();
            let read = get(&service, path).await;
            assert_eq!(read.status, 200, "{path}: {}", read.body);
            longest_read = longest_read.max(read.took);
            let old = (clock.now() - read.as_of.expect("every read says of when it is")).to_std().unwrap();
            assert!(
                old >= silent_at_least && old < silent_at_least + Duration::from_secs(5),
                "{path} says {old:?}"
            );
            if silent_at_least > Duration::from_secs(5) {
                assert!(read.age.unwrap().abs_diff(old.as_secs()) <= 2, "{:?} for {old:?}", read.age);
            }
        }
        // What nobody can know is not denied.
        let unknown = get(&service, "/sources/00000000-0000-4000-8000-000000000000").await;
        assert_eq!((unknown.status, unknown.body["code"].as_str()), (503, Some("log-unavailable")));
        let events = get(&service, &format!("/sources/{source}/events")).await;
        assert_eq!(events.status, 503, "events are read from the log itself");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(longest_read < Duration::from_secs(3), "the slowest read took {longest_read:?}");

    cable.call("heal");
    let healed = Instant::now();
    let mut tries = 0;
    while register(&service, &format!("AFTER{tries}")).await.status != 201 {
        tries += 1;
        assert!(healed.elapsed() < Duration::from_secs(60), "it does not go on:\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let appended = healed.elapsed();
    let (_, ready) = ready_is(&service, 200, healed, Duration::from_secs(60)).await;
    assert!(service.is_running() && service.pid() == pid, "without a restart");
    let again = get(&service, &paths[0]).await;
    assert_eq!((again.status, again.age), (200, None));
    let gone = get(&service, "/sources/00000000-0000-4000-8000-000000000000").await;
    assert_eq!(gone.status, 404);
    // Whoever followed all the time has heard of it, too.
    let mut chunks = follow.bytes_stream();
    let mut heard = String::new();
    while !heard.contains(&format!("AFTER{tries}")) {
        let chunk = tokio::time::timeout(Duration::from_secs(20), chunks.next()).await;
        heard.push_str(std::str::from_utf8(&chunk.expect("the stream goes on").unwrap().unwrap()).unwrap());
    }
    service.verify_log();
    eprintln!(
        "cut for {CUT:?}: said after {after:.1?}; {refused} appends refused with 503 and Retry-After; \
         {} reads of each kind, the slowest {longest_read:.1?}; appends again {appended:.1?} and ready {ready:.1?} after it was healed",
        refused
    );
}
