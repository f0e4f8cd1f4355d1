//! Executions on a real Slurm, through a real login node, with DALiuGE inside the jobs.

use std::time::Duration;

use serde_json::{Value, json};

use super::service::{PROJECT, SOURCES, Service, is_terminal, status_is};
use crate::backends::daliuge::told;
use crate::ssh::login::{Slots, scratch};

/// A profile on the cluster, with its sessions below `root`.
fn profile(root: &str, change: impl FnOnce(&mut Value)) -> Value {
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

/// The demo's survey, polled as often as the floor allows.
fn often(yaml: String) -> String {
    yaml.replace(
        "execution_rest_remote_poll_interval_seconds:",
        "execution_slurm_remote_poll_interval_seconds: 1\n    execution_rest_remote_poll_interval_seconds:",
    )
}

/// A service with credentials for the login node, and a survey on it.
async fn surveying(slots: &Slots, root: &str, change: impl FnOnce(&mut Value)) -> Service {
    let credentials = slots.directory.path().to_str().unwrap();
    let service = Service::start(&[("BEAMPIPE_SSH__CREDENTIALS_DIR", credentials)]).await;
    service.configure(often).await;
    service.post("/deployment-profiles", profile(root, change)).await;
    service
}

#[tokio::test]
async fn a_survey_runs_on_the_cluster_and_each_end_has_its_evidence() {
    let (slots, root) = (Slots::new(), scratch());
    let service = surveying(&slots, &root, |_| {}).await;
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
