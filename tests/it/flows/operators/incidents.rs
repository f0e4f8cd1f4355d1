//! What goes wrong outside, and what an operator does about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{SIMULATED, by_hand, done, refused, simulated, survey, text, until, until_get};
use crate::backends::daliuge::{dim_port, http, told};
use crate::flows::service::{Service, is_terminal};

/// A stand-in for a server that hangs: it accepts connections, keeps them open and never answers.
async fn a_stand_in_that_never_answers() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = vec![];
        while let Ok((connection, _)) = listener.accept().await {
            open.push(connection);
        }
    });
    port
}

/// A stand-in for an archive that says it is well and answers every query with something that is no table.
async fn a_stand_in_that_answers_nonsense() -> u16 {
    use axum::routing::{any, get};
    const AVAILABLE: &str = r#"<?xml version="1.0"?><availability xmlns="http://www.ivoa.net/xml/VOSIAvailability/v1.0"><available>true</available></availability>"#;
    const CAPABILITIES: &str = r#"<?xml version="1.0"?><vosi:capabilities xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0"><capability standardID="ivo://ivoa.net/std/TAP"/></vosi:capabilities>"#;
    let xml = |text: &'static str| move || async move { ([("content-type", "text/xml")], text) };
    let app = axum::Router::new()
        .route("/tap/availability", get(xml(AVAILABLE)))
        .route("/tap/capabilities", get(xml(CAPABILITIES)))
        .fallback(any(|| async { ([("content-type", "application/x-votable+xml")], "the cat sat on it") }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    port
}

fn archive_at(port: u16) -> impl Fn(String) -> String {
    move |yaml| yaml.replace(&told("BEAMPIPE_TEST_TAP_URL"), &format!("http://127.0.0.1:{port}/tap"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_hangs_delays_no_other_project() {
    let port = a_stand_in_that_never_answers().await;
    let service = Service::start(&[("BEAMPIPE_DEPENDENCIES__PROBE_TIMEOUT_SECONDS", "2")]).await;
    // More sources than there are hands for discovery, one a batch, in two projects that both hang.
    let hung = |yaml: String| {
        let mut yaml = archive_at(port)(yaml);
        for (setting, was, is) in [
            ("batch_size", 3, 1),
            ("concurrent_discovery_batch_limit", 5, 20),
            ("tick_discovery_batch_limit", 5, 20),
        ] {
            yaml = yaml.replace(&format!("    {setting}: {was}"), &format!("    {setting}: {is}"));
        }
        yaml
    };
    for module in ["a_hung", "also_hung"] {
        simulated(&service, module, json!({}), hung);
        let names: Vec<String> = (0..12).map(|n| format!("J{n:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        done(&service, &[&["source", "add", module], &names[..]].concat());
    }
    until_get(&service, "/jobs?limit=500", "busy", |jobs| {
        let running = jobs.as_array().unwrap().iter().filter(|job| job["status"] == "running");
        running.count() >= 8
    })
    .await;
    simulated(&service, "well", json!({"latency_ms": 200}), |yaml| yaml);
    let begun = Instant::now();
    done(&service, &["source", "add", "well", SIMULATED[0], SIMULATED[1]]);
    let all = until(&service, "well", "run", |all| all.len() == 2 && all.iter().all(is_terminal)).await;
    let took = begun.elapsed();
    println!("two executions beside two projects whose archive hangs: {took:?}");
    assert!(all.iter().all(|one| one["status"] == "completed"), "{all:#?}");
    assert!(took < Duration::from_secs(12), "the archive of others delayed it: {took:?}");
    // The hung archive is told from the one that is well, though both projects call theirs `casda`.
    let hung = service.get("/sources?project_module=a_hung&limit=1").await;
    assert!(hung[0]["why"]["text"].is_string(), "{hung}");
    until_get(&service, "/ready", "degraded", |ready| ready["status"] == "degraded").await;
    until(&service, "a_hung", "empty", |all| all.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_hangs_delays_no_other_project() {
    let port = a_stand_in_that_never_answers().await;
    let service = Service::start(&[]).await;
    simulated(&service, "stuck", json!({}), by_hand);
    simulated(&service, "well", json!({"latency_ms": 200}), |yaml| yaml);
    // The translator maps onto a manager that is well; the one that is handed to hangs.
    let profile = json!({
        "name": "hangs",
        "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": told("BEAMPIPE_TEST_TM_URL")},
        "deployment": {
            "kind": "rest_remote", "dim_host_for_tm": "127.0.0.1", "dim_port_for_tm": dim_port(),
            "deploy_host": "127.0.0.1", "deploy_port": port, "use_https": false, "verify_ssl": true,
        },
    });
    service.post("/deployment-profiles", profile).await;
    done(&service, &["source", "add", "stuck", SIMULATED[0]]);
    let source = done(&service, &["source", "show", &format!("stuck/{}", SIMULATED[0])]);
    let status = format!("/sources/{}/status", text(&source, "uuid"));
    until_get(&service, &status, "ready", |status| status["ready_for_execution"] == true).await;
    // More than there are hands for executions.
    for _ in 0..12 {
        let order =
            ["execution", "create", "stuck", "--source", SIMULATED[0], "--profile", "hangs", "--execute"];
        done(&service, &order);
    }
    until(&service, "stuck", "handed over", |all| {
        all.iter().any(|one| one["submission_state"] == "in_flight")
    })
    .await;
    let begun = Instant::now();
    done(&service, &["source", "add", "well", SIMULATED[0], SIMULATED[1]]);
    let all = until(&service, "well", "run", |all| all.len() == 2 && all.iter().all(is_terminal)).await;
    let took = begun.elapsed();
    println!("two executions beside twelve whose manager hangs: {took:?}");
    assert!(all.iter().all(|one| one["status"] == "completed"), "{all:#?}");
    assert!(took < Duration::from_secs(12), "the manager of others delayed it: {took:?}");
    let stuck = until(&service, "stuck", "there", |all| all.len() == 12).await;
    assert!(stuck.iter().all(|one| one["why"]["text"].is_string() && !is_terminal(one)), "{stuck:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_put_back_by_hand_and_then_comes_to_its_end() {
    let port = a_stand_in_that_answers_nonsense().await;
    let service = Service::start(&[("BEAMPIPE_WORK__MAX_ATTEMPTS", "2")]).await;
    simulated(&service, "dead", json!({"latency_ms": 100}), archive_at(port));
    done(&service, &["source", "add", "dead", SIMULATED[0]]);
    let dead =
        until_get(&service, "/jobs?status=dead_lettered", "dead", |jobs| jobs[0]["uuid"].is_string()).await;
    let listed = done(&service, &["job", "list", "--status", "dead_lettered"]);
    assert_eq!(listed[0]["uuid"], dead[0]["uuid"]);
    assert!(text(&listed[0], "last_error").contains(SIMULATED[0]), "{listed:#}");
    let job = text(&dead[0], "uuid").to_owned();
    let source = done(&service, &["source", "show", &format!("dead/{}", SIMULATED[0])]);
    assert!(text(&source["why"], "text").contains("error"), "{}", source["why"]);
    let events = service.events(&format!("/sources/{}/events", text(&source, "uuid"))).await;
    assert!(events.iter().any(|event| event["event_type"] == "discovery.error"), "{events:#?}");

    // The cause is mended: another configuration. Then the letter is put back.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("project.yaml");
    std::fs::write(&file, survey("dead")).unwrap();
    done(&service, &["project", "add", file.to_str().unwrap()]);
    let requeued = done(&service, &["job", "requeue", &job, "--reason", "the archive is back"]);
    assert_eq!(requeued["uuid"], job.as_str());
    until_get(&service, &format!("/jobs/{job}"), "completed", |job| job["status"] == "completed").await;
    until(&service, "dead", "run", |all| all.len() == 1 && all[0]["status"] == "completed").await;
    let no = refused(&service, &["job", "requeue", &job]);
    assert!(!no.is_empty());
    let all = service.events("/events").await;
    let story: Vec<&str> = super::types(&all).into_iter().filter(|kind| kind.starts_with("job.")).collect();
    assert!(story.contains(&"job.dead_lettered") && story.contains(&"job.requeued"), "{story:?}");
}

/// Reads until told to stop; answers how many reads there were, and the first that was not as it should be.
async fn hammer(
    url: String,
    key: String,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Result<(), String> {
    let http = http();
    while !stop.load(Ordering::Relaxed) {
        let answer = http.get(&url).bearer_auth(&key).send().await.map_err(|e| format!("{url}: {e}"))?;
        let (status, body) = (answer.status(), answer.text().await.map_err(|e| format!("{url}: {e}"))?);
        if status != 200 {
            return Err(format!("{url}: {status} {body}"));
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Every counter of the text.
fn counters(text: &str) -> BTreeMap<String, f64> {
    let is_counter = |line: &&str| line.starts_with("beampipe_") && line.contains("_total");
    let lines = text.lines().filter(is_counter).filter_map(|line| line.rsplit_once(' '));
    lines.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_do_not_fail_and_counters_do_not_step_back_while_everything_is_rebuilt() {
    let service = Service::start(&[]).await;
    simulated(&service, "again", json!({"latency_ms": 50}), |yaml| yaml);
    done(&service, &["source", "add", "again", SIMULATED[0]]);
    let directory = tempfile::tempdir().unwrap();
    let csv = directory.path().join("many.csv");
    let many: String = (0..900).map(|n| format!("K{n:04},false\n")).collect();
    std::fs::write(&csv, format!("source_identifier,enabled\n{many}")).unwrap();
    done(&service, &["source", "import", "again", csv.to_str().unwrap()]);
    let all = until(&service, "again", "run", |all| all.len() == 1 && all.iter().all(is_terminal)).await;
    let execution = text(&all[0], "uuid");

    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let paths = [
        "/sources?project_module=again&limit=50".to_owned(),
        "/executions?project_module=again".to_owned(),
        format!("/executions/{execution}"),
        "/jobs".to_owned(),
        "/projects".to_owned(),
        "/workers".to_owned(),
    ];
    let mut readers = tokio::task::JoinSet::new();
    for path in &paths {
        readers.spawn(hammer(service.url(path), service.key.clone(), stop.clone(), count.clone()));
    }
    let metrics = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    let until_told = stop.clone();
    let watched = tokio::spawn(async move {
        let (http, mut before) = (http(), BTreeMap::new());
        while !until_told.load(Ordering::Relaxed) {
            let text = http.get(&metrics).send().await.unwrap().text().await.unwrap();
            let now = counters(&text);
            for (series, value) in &before {
                let has = now.get(series).copied();
                assert!(
                    has.is_some_and(|has| has >= *value),
                    "{series} stepped back from {value} to {has:?}"
                );
            }
            before = now;
        }
    });
    let before = answers(&service, &paths).await;
    for _ in 0..3 {
        let rebuilt = tokio::task::block_in_place(|| done(&service, &["projections", "rebuild", "--all"]));
        for one in rebuilt.as_array().unwrap() {
            assert!(one["rebuild"].is_null() && one["alarm"].is_null(), "{one:#}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(read) = readers.join_next().await {
        read.unwrap().unwrap();
    }
    watched.await.unwrap();
    println!("{} reads while everything was rebuilt three times", count.load(Ordering::Relaxed));
    assert!(count.load(Ordering::Relaxed) > 50);
    assert_eq!(answers(&service, &paths[..3]).await, before[..3]);
    let listed = done(&service, &["projections", "list"]);
    assert!(listed.as_array().unwrap().iter().all(|one| one["state"] == "live"), "{listed:#}");
}

async fn answers(service: &Service, paths: &[String]) -> Vec<Value> {
    let mut answers = vec![];
    for path in paths {
        answers.push(service.get(path).await);
    }
    answers
}
