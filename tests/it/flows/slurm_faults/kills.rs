//! Services are killed, or stopped where it hurts most, while they submit and poll.

use std::time::{Duration, Instant};

use super::super::cluster::Cluster;
use super::super::service::is_terminal;
use super::super::slurm::{GOOD, by_hand, execute, until};
use super::{ENDS_AT_ONCE, add, all_ended, one_job_each, ready, storm, told_of};
use crate::backends::slurm_site::Site;
use crate::ssh::login::{Slots, scratch};

#[tokio::test]
async fn a_storm_of_kills_submits_every_execution_on_a_cluster_once() {
    let (soak, mut random) = storm();
    let (slots, root, kills) = (Slots::new(), scratch(), if soak { 30 } else { 5 });
    let mut service = ready(
        &slots,
        &[
            // A killed process is noticed by its silence.
            ("BEAMPIPE_WORK__LEASE_SECONDS", "4"),
            ("BEAMPIPE_WORK__HEARTBEAT_SECONDS", "1"),
            ("BEAMPIPE_WORK__SLURM_SETTLE_SECONDS", "30"),
        ],
    )
    .await;
    add(&service, &root, "killed", ENDS_AT_ONCE, |_| {}).await;
    let (mut started, mut hit) = (0, 0);
    for _ in 0..kills {
        for _ in 0..2 {
            execute(&service, GOOD, "killed").await;
            started += 1;
        }
        tokio::time::sleep(Duration::from_millis(100 + random.below(2500))).await;
        hit += u32::from(!service.executions().await.iter().all(is_terminal));
        service.kill();
        service.start_again(&[]).await;
    }
    let all = all_ended(&service, started, Duration::from_secs(180)).await;
    assert!(hit > 0, "no kill hit a live execution");
    for execution in &all {
        assert_eq!(execution["failure_class"], "application_exit", "{execution:#?}");
    }
    one_job_each(&service, &Site::shared().cluster(), &all).await;
    service.stop().await;
    service.verify_log();
    eprintln!("{hit} of {kills} kills hit live executions; {started} executions, one job each");
}

#[tokio::test]
async fn a_worker_that_slept_right_before_sbatch_submits_nothing_when_it_wakes() {
    let (slots, root) = (Slots::new(), scratch());
    let credentials = slots.directory.path().to_str().unwrap();
    let settings = [("BEAMPIPE_SSH__CREDENTIALS_DIR", credentials)];
    let mut cluster = Cluster::start_with(&["api", "scheduler"], &settings).await;
    cluster.join("worker").await;
    cluster.api().configure(by_hand).await;
    cluster.api().register(&[GOOD]).await;
    super::discovered(cluster.api(), 1).await;
    add(cluster.api(), &root, "slept", ENDS_AT_ONCE, |_| {}).await;
    let sleeper = &mut cluster.members[2];
    sleeper.stop().await;
    sleeper.start_again(&[("BEAMPIPE_TEST_STOP_AT", "slurm_uploaded")]).await;
    let pid = sleeper.pid();
    let id = execute(cluster.api(), GOOD, "slept").await;
    let begun = Instant::now();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not come to sbatch");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.join("worker").await;
    let ended = until(cluster.api(), &id, "ended by the other worker", is_terminal).await;
    assert_eq!(ended["failure_class"], "application_exit", "{ended:#?}");
    let before = told_of(cluster.api(), &id).await;

    cluster.members[2].signal("-CONT");
    // It goes on with its sbatch, finds itself lost, and starts again as another worker.
    let begun = Instant::now();
    loop {
        let workers = cluster.api().get("/workers?include_stopped=true").await;
        let of_it = workers.as_array().unwrap().iter().filter(|worker| worker["process_id"] == pid);
        if of_it.clone().any(|worker| worker["health"] == "healthy" && worker["lost"] != true) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", cluster.members[2].said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    one_job_each(cluster.api(), &Site::shared().cluster(), &[ended]).await;
    assert_eq!(before, told_of(cluster.api(), &id).await, "what it still did was written down");
    cluster.api().verify_log();
}
