//! Slurm's daemons are away while jobs run.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::service::Service;
use super::super::slurm::{GOOD, execute, until};
use super::{add, is_terminal, now, one_job_each, ready, storm, told_of};
use crate::backends::slurm_site::Site;

/// Nothing is said of an execution but that it waits, runs, or could not be asked for.
async fn goes_on(service: &Service, id: &str, daemon: &str) -> usize {
    let execution = now(service, id).await;
    assert!(!is_terminal(&execution), "{daemon} is away: {execution:#?}");
    let told = told_of(service, id).await;
    for ended in ["completed", "failed", "cancelled", "not_submitted", "submission_uncertain"] {
        assert!(!told.contains(&format!("execution.{ended}")), "{daemon} is away: {told:?}");
    }
    assert_ne!(execution["scheduler_state"], "unknown", "{daemon} is away: {execution:#?}");
    told.len()
}

#[tokio::test]
async fn a_storm_over_slurms_daemons_declares_no_execution_ended_or_lost() {
    let (soak, _) = storm();
    let away = Duration::from_secs(if soak { 120 } else { 12 });
    let site = Site::own();
    let port: u16 = site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    let root = format!("{}/daemons", site.told("BEAMPIPE_TEST_SSH_WORK"));
    let service = ready(site.slots(), &[]).await;
    // One lasts through everything, and one ends while a daemon is away.
    let go = format!("{root}/go");
    let lasts = format!("while ! [ -e {go} ]; do sleep 0.5; done; exit 7");
    let ends = format!("sleep {}; exit 7", away.as_secs() / 2);
    for (name, setup) in [("lasts", &lasts), ("ends", &ends)] {
        add(&service, &root, name, setup, |deployment| {
            deployment["ssh_port"] = port.into();
            deployment["job_duration_minutes"] = 20.into();
        })
        .await;
    }
    let running = |execution: &Value| execution["scheduler_state"] == "running";
    let lasting = execute(&service, GOOD, "lasts").await;
    until(&service, &lasting, "running", running).await;
    let mut all = vec![lasting];
    for daemon in ["munged", "slurmctld", "slurmdbd"] {
        let ending = execute(&service, GOOD, "ends").await;
        until(&service, &ending, "running", running).await;
        all.push(ending.clone());
        site.slurm(&format!("stop-{daemon}"));
        let begun = Instant::now();
        let mut events = 0;
        while begun.elapsed() < away {
            // The one that ends meanwhile cannot be known to have ended until accounting says so.
            goes_on(&service, &ending, daemon).await;
            events = goes_on(&service, &all[0], daemon).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        site.slurm(&format!("start-{daemon}"));
        let begun = Instant::now();
        let ended = until(&service, &ending, "at its end", is_terminal).await;
        right(&ended);
        eprintln!(
            "{daemon} was away for {away:?}: {events} events of the one that lasts; ends were known after {:.1?}",
            begun.elapsed()
        );
    }
    std::fs::write(go, "").unwrap();
    let mut ended = vec![];
    for id in &all {
        ended.push(until(&service, id, "at its end", is_terminal).await);
    }
    ended.iter().for_each(right);
    one_job_each(&service, &site.cluster(), &ended).await;
    service.verify_log();
}

/// The job's own code, and nothing of what was wrong with Slurm.
fn right(execution: &Value) {
    assert_eq!(execution["failure_class"], "application_exit", "{execution:#?}");
    let said = execution["last_error"].as_str().unwrap();
    assert!(said.contains("exit code 7"), "{said}");
}
