//! A survey from its files to its products, on the command line alone; executions are simulated.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{
    SIMULATED, by_hand, done, executions, refused, simulated, text, told_to_a_person, types, until, until_get,
};
use crate::flows::service::{Service, is_terminal};

fn ready_source(service: &Service, module: &str, source: &str) -> impl Future<Output = Value> {
    let status = done(service, &["source", "status", &format!("{module}/{source}")]);
    let _ = text(&status, "uuid");
    let path = format!("/sources/{}/status", text(&status, "uuid"));
    async move { until_get(service, &path, "ready", |status| status["ready_for_execution"] == true).await }
}

#[tokio::test]
async fn an_operator_goes_from_two_files_to_a_finished_execution_on_the_command_line() {
    let service = Service::start(&[]).await;
    simulated(&service, "hand", json!({"latency_ms": 300}), by_hand);
    assert_eq!(done(&service, &["project", "list"])[0]["project_id"], "hand");
    assert!(told_to_a_person(&service, &["project", "list"]).contains("hand"));
    assert_eq!(done(&service, &["profile", "list"])[0]["name"], "sim-hand");
    assert_eq!(done(&service, &["profile", "show", "sim-hand"])["deployment"]["kind"], "simulated");

    done(&service, &["source", "add", "hand", SIMULATED[0]]);
    let directory = tempfile::tempdir().unwrap();
    let csv = directory.path().join("more.csv");
    std::fs::write(
        &csv,
        format!("source_identifier,enabled\n{},true\n{},false\n", SIMULATED[1], SIMULATED[2]),
    )
    .unwrap();
    done(&service, &["source", "import", "hand", csv.to_str().unwrap()]);
    let sources = done(&service, &["source", "list", "--project", "hand"]);
    let mut named: Vec<(&str, bool)> = sources
        .as_array()
        .unwrap()
        .iter()
        .map(|source| (text(source, "source_identifier"), source["enabled"] == true))
        .collect();
    named.sort_unstable();
    let mut wanted = vec![(SIMULATED[0], true), (SIMULATED[1], true), (SIMULATED[2], false)];
    wanted.sort_unstable();
    assert_eq!(named, wanted);

    let source = format!("hand/{}", SIMULATED[0]);
    let uuid = text(&done(&service, &["source", "show", &source]), "uuid").to_owned();
    let status = format!("/sources/{uuid}/status");
    until_get(&service, &status, "ready", |status| status["ready_for_execution"] == true).await;
    assert_eq!(done(&service, &["source", "status", &source])["ready_for_execution"], true);
    let disabled = done(&service, &["source", "status", &format!("hand/{}", SIMULATED[2])]);
    assert!(!disabled["blockers"].as_array().unwrap().is_empty(), "{disabled}");

    let order = ["execution", "create", "hand", "--source", SIMULATED[0]];
    let dry = done(&service, &[&order[..], &["--dry-run"]].concat());
    assert_eq!(dry["valid"], true, "{dry}");
    assert!(executions(&service, "hand").await.is_empty(), "a dry run created something");
    let created = done(&service, &order);
    let id = text(&created, "uuid").to_owned();
    assert_eq!(created["status"], "pending");
    assert!(text(&created["why"], "text").contains("execute"), "{}", created["why"]);

    // A live tail that is there before anything happens shows what the page has afterwards.
    let mut tail = Command::new(env!("CARGO_BIN_EXE_beampipe"))
        .args(["events", "follow", "--execution", &id, "--json", "--until-terminal"])
        .env("BEAMPIPE_URL", format!("http://127.0.0.1:{}", service.port))
        .env("BEAMPIPE_KEY", &service.key)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let first = done(&service, &["execution", "execute", &id]);
    let again = done(&service, &["execution", "execute", &id]);
    assert_eq!(first["job_id"], again["job_id"], "the same flags are the same job");
    let other = refused(&service, &["execution", "execute", &id, "--no-submit"]);
    assert!(other.contains("flags"), "{other}");
    until(&service, "hand", "completed", |all| all.len() == 1 && all[0]["status"] == "completed").await;
    assert!(tail.wait().unwrap().success());
    let mut followed = String::new();
    tail.stdout.take().unwrap().read_to_string(&mut followed).unwrap();
    let followed: Vec<Value> = followed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The page has what came after the end, too: the end of the job that watched it.
    let page = service.events(&format!("/executions/{id}/events")).await;
    assert_eq!(followed, page[..followed.len()]);
    assert_eq!(types(&followed).last(), Some(&"execution.completed"));
    let wanted = [
        "execution.created",
        "execution.execute_started",
        "execution.running",
        "execution.manifest_built",
        "execution.graph_prepared",
        "execution.translated",
        "execution.submission_started",
        "execution.submission_recorded",
        "execution.observed",
        "execution.completed",
    ];
    let own: Vec<&str> = types(&page).into_iter().filter(|kind| kind.starts_with("execution.")).collect();
    assert_eq!(own, wanted);

    let line = told_to_a_person(&service, &["timeline", "execution", &id]);
    let mut rest = line.as_str();
    for event in wanted {
        let at = rest.find(event).unwrap_or_else(|| panic!("{event} is not in its place in\n{line}"));
        rest = &rest[at + event.len()..];
    }
    assert!(
        line.contains(&format!("{} events in ", page.len())) && line.contains("the longest wait"),
        "{line}"
    );
    assert!(line.contains('┬') && line.contains('┴'), "{line}");
    let line = told_to_a_person(&service, &["timeline", "source", &source]);
    for event in ["source.registered", "discovery.changed", "execution.created", "execution.completed"] {
        assert!(line.contains(event), "{event} is not in\n{line}");
    }
    let record = done(&service, &["execution", "run-record", &id]);
    assert_eq!(record["requested_sources"]["count"], 1, "{record}");
    let artifacts = done(&service, &["execution", "artifacts", &id]);
    let manifest = artifacts.as_array().unwrap().iter().find(|one| one["kind"] == "manifest").unwrap();
    let bytes =
        told_to_a_person(&service, &["execution", "artifacts", &id, "--get", text(manifest, "sha256")]);
    assert!(bytes.contains(SIMULATED[0]), "{bytes}");

    // What has come to its end is left alone.
    let no = refused(&service, &["execution", "cancel", &id]);
    assert!(no.contains("ended"), "{no}");
    let no = refused(&service, &["execution", "retry", &id, "--reason", "once more"]);
    assert!(no.contains("completed"), "{no}");
    let no = refused(&service, &["execution", "abandon", &id, "--reason", "why not"]);
    assert!(!no.is_empty());
    let no = refused(&service, &["source", "status", "hand/NOWHERE"]);
    assert!(no.contains("source"), "{no}");
    let no = refused(&service, &["execution", "create", "hand", "--source", "NOWHERE"]);
    assert!(no.contains("NOWHERE"), "{no}");
}

#[tokio::test]
async fn a_submission_whose_answer_was_lost_is_abandoned_only_by_who_knows() {
    let service = Service::start(&[]).await;
    // Every answer is lost, so that a hand-over stays open until somebody decides.
    simulated(&service, "lost", json!({"latency_ms": 60_000, "loss_probability": 1.0}), by_hand);
    done(&service, &["source", "add", "lost", SIMULATED[0]]);
    ready_source(&service, "lost", SIMULATED[0]).await;
    let created = done(&service, &["execution", "create", "lost", "--source", SIMULATED[0], "--execute"]);
    let id = text(&created, "uuid").to_owned();
    let path = format!("/executions/{id}");
    until_get(&service, &path, "uncertain", |one| one["submission_state"] == "uncertain").await;
    let risk = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    let metrics = crate::backends::daliuge::http().get(risk).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("beampipe_reconciliation_risk_executions 1"), "{metrics}");
    let no = refused(&service, &["execution", "retry", &id, "--reason", "impatient"]);
    assert!(no.contains("external work may exist"), "{no}");
    let no = refused(&service, &["execution", "abandon", &id, "--reason", "impatient"]);
    assert!(no.contains("acknowledge"), "{no}");
    let given_up = done(
        &service,
        &[
            "execution",
            "abandon",
            &id,
            "--reason",
            "the machine is gone",
            "--acknowledge-external-job-may-exist",
        ],
    );
    assert!(is_terminal(&given_up), "{given_up:#}");
    assert!(given_up["submission_abandoned_at"].is_string(), "{given_up:#}");
    let retried = done(&service, &["execution", "retry", &id, "--reason", "another machine"]);
    assert_eq!(retried["retry_count"], 1);
}

#[tokio::test]
async fn nothing_is_admitted_while_a_project_or_all_admission_is_paused_and_why_says_so() {
    let service = Service::start(&[]).await;
    simulated(&service, "held", json!({"latency_ms": 100}), |yaml| yaml);
    let pauses: [(&[&str], &[&str]); 2] = [
        (
            &["project", "pause", "held", "--reason", "the beam is being mended"],
            &["project", "resume", "held"],
        ),
        (&["admission", "pause", "--reason", "the roof is open"], &["admission", "resume"]),
    ];
    for (n, (pause, resume)) in pauses.into_iter().enumerate() {
        done(&service, pause);
        done(&service, &["source", "add", "held", SIMULATED[n]]);
        let source = done(&service, &["source", "show", &format!("held/{}", SIMULATED[n])]);
        let path = format!("/sources/{}", text(&source, "uuid"));
        let source = until_get(&service, &path, "pending", |one| one["workflow_run_pending"] == true).await;
        let why = text(&source["why"], "text");
        assert!(why.contains("paused") && why.contains(pause.last().unwrap()), "{why}");
        // Several ticks of the scheduler, and admission asked for by hand.
        let tick = json!({"kind": "execution_scheduler_tick", "payload": {"project_module": "held"}});
        let job = service.post("/jobs", tick).await;
        let job = format!("/jobs/{}", text(&job, "uuid"));
        let job = until_get(&service, &job, "done", |job| job["status"] == "completed").await;
        assert_eq!(job["result"]["held"]["admitted"], 0, "{job:#}");
        assert_eq!(job["result"]["held"]["skip_reason"], "disabled", "{job:#}");
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!(executions(&service, "held").await.len(), n, "something was admitted");
        done(&service, resume);
        until(&service, "held", "run", |all| all.len() == n + 1 && all.iter().all(is_terminal)).await;
    }
    let events = service.events("/projects/held/events").await;
    let types = types(&events);
    assert!(types.contains(&"project.paused") && types.contains(&"project.resumed"), "{types:?}");
}

#[tokio::test]
async fn a_drained_worker_claims_nothing_until_it_is_resumed() {
    let service = Service::start(&[]).await;
    simulated(&service, "drained", json!({"latency_ms": 100}), |yaml| yaml);
    let workers = done(&service, &["worker", "list"]);
    let id = text(&workers[0], "id").to_owned();
    let drained = done(&service, &["worker", "drain", &id, "--reason", "new disks"]);
    assert_eq!(drained["status"], "draining", "{drained}");
    done(&service, &["source", "add", "drained", SIMULATED[0]]);
    until_get(&service, "/jobs", "queued", |jobs| {
        jobs.as_array().unwrap().iter().any(|j| j["status"] == "queued")
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let queued = done(&service, &["job", "list", "--status", "queued"]);
    assert_eq!(queued.as_array().unwrap().len(), 1, "{queued}");
    let resumed = done(&service, &["worker", "resume", &id]);
    assert_eq!(resumed["status"], "active", "{resumed}");
    until(&service, "drained", "run", |all| all.len() == 1 && all.iter().all(is_terminal)).await;
}

#[tokio::test]
async fn accounts_and_keys_are_made_and_taken_back() {
    let service = Service::start(&[]).await;
    let created = done(&service, &["account", "create", "ruth", "--role", "operator", "--generate"]);
    let password = text(&created, "one_time_password").to_owned();
    let login = json!({"username": "ruth", "password": password});
    let ruth = service.post("/login", login).await;
    let ruth = text(&ruth, "access_token").to_owned();
    let issued = done(&service, &["account", "key", "issue", "dashboards", "--scope", "viewer"]);
    let (key, id) = (text(&issued, "api_key").to_owned(), text(&issued, "uuid").to_owned());
    let http = crate::backends::daliuge::http();
    let status = |token: String, method: reqwest::Method, path: &str| {
        let request = http.request(method, service.url(path)).bearer_auth(token).json(&json!({}));
        async move { request.send().await.unwrap().status().as_u16() }
    };
    use reqwest::Method;
    assert_eq!(status(key.clone(), Method::GET, "/sources").await, 200);
    assert_eq!(status(key.clone(), Method::POST, "/sources").await, 403, "a viewer registers nothing");
    assert_eq!(
        status(ruth.clone(), Method::POST, "/sources").await,
        422,
        "an operator may, with another body"
    );
    assert_eq!(status(ruth.clone(), Method::GET, "/accounts").await, 403, "accounts are the administrators'");
    let listed = done(&service, &["account", "key", "list"]);
    assert!(!listed.to_string().contains(&key), "a key is shown once");
    done(&service, &["account", "key", "revoke", &id]);
    assert_eq!(status(key, Method::GET, "/sources").await, 401, "a key that was taken back");
    done(&service, &["account", "disable", "ruth", "--reason", "left the survey"]);
    assert_eq!(status(ruth, Method::GET, "/sources").await, 401, "an account that was disabled");
    let accounts = done(&service, &["account", "list"]);
    let ruth = accounts.as_array().unwrap().iter().find(|account| account["username"] == "ruth").unwrap();
    assert_eq!(ruth["disabled"], true, "{ruth}");
    let twice = refused(&service, &["account", "create", "ruth", "--generate"]);
    assert!(twice.contains("ruth"), "{twice}");
}
