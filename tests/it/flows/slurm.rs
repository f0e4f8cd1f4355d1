//! Executions on a real Slurm, through a real login node, with DALiuGE inside the jobs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::service::{PROJECT, SOURCES, Service, is_terminal, status_is, words};
use crate::backends::daliuge::told;
use crate::ssh::login::{Slots, scratch, target};

/// A source whose graph finishes, and one whose graph fails.
pub(super) const GOOD: &str = "HIPASSJ1318-21";
const BAD: &str = "HIPASSJ1245-00";

/// A profile on the cluster, with its sessions below `root`.
pub(super) fn profile(root: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut profile = json!({
        "name": "demo", "project_module": PROJECT, "is_default": true, "max_concurrent_executions": 4,
        "translation": {"algo": "metis", "num_par": 1, "num_islands": 1, "tm_url": told("BEAMPIPE_TEST_TM_URL")},
        "deployment": {
            "kind": "slurm_remote",
            "login_node": "127.0.0.1", "ssh_port": told("BEAMPIPE_TEST_SSH_PORT").parse::<u16>().unwrap(),
            "remote_user": told("BEAMPIPE_TEST_SSH_USER"), "ssh_credential": "default",
            "account": "survey", "facility": "testcluster",
            "home_dir": root, "log_dir": format!("{root}/log"), "dlg_root": root,
            "venv": format!("source {}/bin/activate", told("BEAMPIPE_TEST_SLURM_VENV")),
            "exec_prefix": "srun", "job_duration_minutes": 5, "num_nodes": 1, "num_islands": 1,
            "verbose_level": 1, "max_threads": 2, "all_nics": false,
            "zerorun": false, "sleepncopy": false, "check_with_session": false,
            "resources": {"partition": "work", "cpus_per_task": 1, "memory": "500M"},
            "poll_floor_seconds": 1,
        },
    });
    change(&mut profile);
    profile
}

/// Another profile on the same login node.
pub(super) async fn also(service: &Service, root: &str, name: &str, change: impl FnOnce(&mut Value)) {
    let other = profile(root, |profile| {
        profile["name"] = json!(name);
        profile["is_default"] = json!(false);
        change(&mut profile["deployment"]);
    });
    service.post("/deployment-profiles", other).await;
}

/// Creates an execution of a source on a profile and has it executed; answers its id.
pub(super) async fn execute(service: &Service, source: &str, profile: &str) -> String {
    let order = json!({
        "project_module": PROJECT, "sources": [{"source_identifier": source}], "archive_name": "casda",
        "deployment_profile_name": profile,
    });
    let created = service.post("/executions", order).await;
    let id = created["uuid"].as_str().unwrap().to_owned();
    service.post(&format!("/executions/{id}/execute"), json!({})).await;
    id
}

/// Waits until an execution is as `wanted` says.
pub(super) async fn until(service: &Service, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let all = service
        .until(what, Duration::from_secs(240), |all| all.iter().any(|e| e["uuid"] == *id && wanted(e)));
    all.await.into_iter().find(|e| e["uuid"] == *id).unwrap()
}

/// No execution by itself; discovery goes on.
pub(super) fn by_hand(yaml: String) -> String {
    let (before, automation) =
        often(yaml).split_once("  execution:").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    format!("{before}  execution:{}", automation.replacen("enabled: true", "enabled: false", 1))
}

/// The demo's survey, polled as often as the floor allows.
fn often(yaml: String) -> String {
    yaml.replace(
        "execution_rest_remote_poll_interval_seconds:",
        "execution_slurm_remote_poll_interval_seconds: 1\n    execution_rest_remote_poll_interval_seconds:",
    )
}

/// A service with credentials for the login node, and a survey on it.
async fn surveying(slots: &Slots, root: &str, change: impl FnOnce(&mut Value)) -> Service {
    surveying_by(slots, root, often, change).await
}

async fn surveying_by(
    slots: &Slots,
    root: &str,
    configuration: impl Fn(String) -> String,
    change: impl FnOnce(&mut Value),
) -> Service {
    let credentials = slots.directory.path().to_str().unwrap();
    let service = Service::start(&[("BEAMPIPE_SSH__CREDENTIALS_DIR", credentials)]).await;
    service.configure(configuration).await;
    service.post("/deployment-profiles", profile(root, change)).await;
    service
}

#[tokio::test]
async fn a_survey_runs_on_the_cluster_and_each_end_has_its_evidence() {
    let (slots, root) = (Slots::new(), scratch());
    let service = surveying(&slots, &root, |_| {}).await;
    let doctor = service.command(&["doctor", "--profile", "demo"]);
    let said = words(&doctor);
    assert!(doctor.status.success(), "{said}");
    for check in ["connection", "dlg_root", "DALiuGE with Python", "sbatch --test-only", "translator"] {
        assert!(said.contains(check), "{check}: {said}");
    }
    service.register(&SOURCES).await;
    let executions = service
        .until("five ended", Duration::from_secs(300), |all| {
            all.iter().filter(|e| is_terminal(e)).count() >= 5
        })
        .await;
    let completed: Vec<&Value> = executions.iter().filter(status_is("completed")).collect();
    let failed: Vec<&Value> = executions.iter().filter(status_is("failed")).collect();
    assert_eq!((completed.len(), failed.len()), (4, 1), "{executions:#?}");
    let failed = failed[0];
    assert_eq!(failed["failure_class"], "daliuge_drop_error", "{failed:#?}");
    for execution in &executions {
        let record = &execution["beampipe_run_record"]["slurm"];
        assert_eq!(execution["scheduler_name"], "slurm");
        assert_eq!(execution["slurm_login_node"], "127.0.0.1");
        assert_eq!(execution["slurm_session_dir"], record["paths"]["session_dir"]);
        assert!(record["slurm_job_id"].is_string(), "{record:#?}");
        assert_eq!(record["terminal"]["ledger_status"], execution["status"]);
        assert!(record["terminal"]["diagnostics"]["elapsed_seconds"].is_u64(), "{record:#?}");
    }
    service.verify_log();
}

#[tokio::test]
async fn twenty_executions_end_each_in_its_own_way_with_the_evidence() {
    let (slots, root) = (Slots::new(), scratch());
    let service = surveying_by(&slots, &root, by_hand, |profile| {
        profile["max_concurrent_executions"] = Value::Null;
    })
    .await;
    also(&service, &root, "exits", |deployment| deployment["environment_setup"] = json!("exit 7")).await;
    also(&service, &root, "sleeps", |deployment| {
        deployment["environment_setup"] = json!("sleep 600");
        deployment["job_duration_minutes"] = json!(1);
    })
    .await;
    also(&service, &root, "asks-too-much", |deployment| deployment["resources"]["memory"] = json!("900G"))
        .await;
    service.register(&[GOOD, BAD]).await;
    discovered(&service, 2).await;

    let late = execute(&service, GOOD, "sleeps").await;
    let taken = execute(&service, GOOD, "sleeps").await;
    let ended = execute(&service, GOOD, "sleeps").await;
    let mut good = vec![];
    for _ in 0..12 {
        good.push(execute(&service, GOOD, "demo").await);
    }
    let bad = [execute(&service, BAD, "demo").await, execute(&service, BAD, "demo").await];
    let exits = [execute(&service, GOOD, "exits").await, execute(&service, GOOD, "exits").await];
    let refused = execute(&service, GOOD, "asks-too-much").await;

    // One is cancelled by its user on the cluster, one here.
    let pool = slots.pool();
    let job = until(&service, &taken, "submitted", |e| e["scheduler_job_id"].is_string()).await;
    let scancel = format!("scancel {}", job["scheduler_job_id"].as_str().unwrap());
    assert!(pool.run(&target(), scancel.as_str()).await.unwrap().success());
    until(&service, &ended, "submitted", |e| e["scheduler_job_id"].is_string()).await;
    let cancel = service.request(reqwest::Method::PATCH, &format!("/executions/{ended}"));
    let cancel = cancel.json(&json!({"status": "cancelled", "reason": "not needed"})).send().await.unwrap();
    assert_eq!(cancel.status(), 200);

    let all = service
        .until("all ended", Duration::from_secs(400), |all| all.len() == 20 && all.iter().all(is_terminal))
        .await;
    let of = |id: &String| all.iter().find(|e| e["uuid"] == **id).unwrap();
    for id in &good {
        assert_eq!(of(id)["status"], "completed", "{:#?}", of(id));
    }
    let ends = [
        (&late, "failed", "time_limit", "time limit of 1 min"),
        (&taken, "cancelled", "cancelled", "was cancelled at Slurm by"),
        (&ended, "cancelled", "cancelled", ""),
        (&exits[0], "failed", "application_exit", "exit code 7"),
        (&exits[1], "failed", "application_exit", "exit code 7"),
        (&bad[0], "failed", "daliuge_drop_error", ""),
        (&bad[1], "failed", "daliuge_drop_error", ""),
        (&refused, "failed", "configuration", "Slurm refused the job"),
    ];
    let mut held = vec![];
    for (id, status, class, words) in ends {
        let execution = of(id);
        assert_eq!(
            (&execution["status"], &execution["failure_class"]),
            (&json!(status), &json!(class)),
            "{execution:#?}"
        );
        let record = &execution["beampipe_run_record"]["slurm"];
        let said = format!("{} {}", execution["last_error"], record["terminal"]["reason"]);
        assert!(said.contains(words), "{said}");
        if class == "daliuge_drop_error" {
            held.push(held_after_failure(&service, execution).await);
            assert!(record["terminal"]["error_drops"][0]["message"].is_string(), "{record:#?}");
        }
        if *id == refused {
            assert!(record["slurm_job_id"].is_null());
        } else {
            assert!(record["terminal"]["diagnostics"]["state"].is_string(), "{record:#?}");
        }
    }
    assert!(held.iter().all(|seconds| *seconds < 30), "{held:?}");
    // What the answers name is there, for whoever looks on the cluster.
    for execution in all.iter().filter(|e| e["uuid"] != *refused) {
        let directory = execution["beampipe_run_record"]["slurm"]["paths"]["session_dir"].as_str().unwrap();
        let listed = pool.run(&target(), format!("ls '{directory}'").as_str()).await.unwrap();
        assert!(
            listed.success() && listed.stdout_text().contains("job.sh"),
            "{directory}: {}",
            listed.stdout_text()
        );
    }
    service.verify_log();
    eprintln!("twenty ended as they should; a failed graph held its allocation for {held:?} s");
}

/// How long a job went on after its session had failed, in seconds.
async fn held_after_failure(service: &Service, execution: &Value) -> i64 {
    let id = execution["uuid"].as_str().unwrap();
    let artifacts = service.get(&format!("/executions/{id}/artifacts")).await;
    let session = artifacts.as_array().unwrap().iter().find(|a| a["kind"] == "session").unwrap();
    let path = format!("/executions/{id}/artifacts/{}", session["sha256"].as_str().unwrap());
    let session = service.get(&path).await;
    let failed_at = session["ended_at"].as_i64().unwrap();
    let job = &execution["beampipe_run_record"]["slurm"]["terminal"]["diagnostics"]["ended_at"];
    let ended_at: DateTime<Utc> = job.as_str().unwrap().parse().unwrap();
    ended_at.timestamp() - failed_at
}

pub(super) async fn discovered(service: &Service, count: usize) {
    for _ in 0..300 {
        let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
        let known = |s: &&Value| s["discovery_signature"].is_string();
        if sources.as_array().unwrap().iter().filter(known).count() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the sources are not discovered:\n{}", service.said());
}

#[tokio::test]
async fn what_is_executed_on_a_paused_profile_waits_until_it_is_resumed() {
    let service = Service::start(&[]).await;
    service.configure(by_hand).await;
    service.simulate(100).await;
    service.register(&[GOOD]).await;
    discovered(&service, 1).await;
    let profile = service.get("/deployment-profiles").await[0]["uuid"].as_str().unwrap().to_owned();
    service.post(&format!("/deployment-profiles/{profile}/pause"), json!({"reason": "repairs"})).await;
    let id = execute(&service, GOOD, "demo").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let waiting = service.get(&format!("/executions/{id}")).await;
    assert_eq!(waiting["submission_state"], "preparing", "{waiting:#?}");
    assert!(waiting["why"]["text"].as_str().unwrap().contains("paused: repairs"), "{}", waiting["why"]);
    service.post(&format!("/deployment-profiles/{profile}/resume"), json!({})).await;
    until(&service, &id, "completed", |e| e["status"] == "completed").await;
}
