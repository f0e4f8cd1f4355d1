//! What could keep an execution from ever coming to its end: a fence that nobody recorded, and files that hang. The login node
//! is real; stand-ins for Slurm's commands do what cannot be provoked in the real ones at a given moment.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::super::service::is_terminal;
use super::super::slurm::{GOOD, execute, until};
use super::{ENDS_AT_ONCE, add, now, ready, told_of, within};
use crate::backends::slurm_site::Site;

#[tokio::test]
async fn a_fence_that_nobody_recorded_is_settled_by_whoever_comes_next() {
    let site = Site::without_slurm();
    // The shell dies where sbatch should have run, and nobody knows a job of the name.
    site.put_before("sbatch", "kill -9 $PPID");
    site.put_before("squeue", "exit 0");
    site.put_before("sacct", "exit 0");
    let settings = [
        ("BEAMPIPE_WORK__SLURM_SETTLE_SECONDS", "3"),
        ("BEAMPIPE_WORK__LEASE_SECONDS", "4"),
        ("BEAMPIPE_WORK__HEARTBEAT_SECONDS", "1"),
    ];
    let mut service = ready(site.slots(), &settings).await;
    service.stop().await;
    service.start_again(&[("BEAMPIPE_TEST_CRASH_AT", "slurm_fenced")]).await;
    let root = format!("{}/fenced", site.told("BEAMPIPE_TEST_SSH_WORK"));
    let port: u16 = site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    add(&service, &root, "fenced", ENDS_AT_ONCE, |deployment| deployment["ssh_port"] = json!(port)).await;
    let id = execute(&service, GOOD, "fenced").await;
    service.wait_for_end().await;
    service.start_again(&[]).await;
    let ended = until(&service, &id, "ended", is_terminal).await;
    assert_eq!(
        (&ended["status"], &ended["failure_class"]),
        (&json!("failed"), &json!("inconsistent_state")),
        "{ended:#?}"
    );
    let told = told_of(&service, &id).await;
    assert_eq!(told.iter().filter(|word| *word == "execution.submission_refused").count(), 1, "{told:?}");
    service.verify_log();
}

#[tokio::test]
async fn a_file_that_hangs_keeps_its_own_execution_waiting_and_no_other() {
    let site = Site::without_slurm();
    let place = format!("{}/hangs", site.told("BEAMPIPE_TEST_SSH_WORK"));
    std::fs::create_dir_all(&place).unwrap();
    crate::ssh::login::mode(Path::new(&place), 0o777);
    // Every job has ended when it is asked for. The first one has left a pipe that nobody writes into, where its words should be.
    site.put_before(
        "sbatch",
        &format!(
            "for word; do case $word in --job-name=*) name=${{word#*=}};; esac; script=$word; done\n\
             cd '{place}'; exec 9>>lock; flock 9; id=$(($(cat last 2>/dev/null || echo 0) + 1)); echo $id >last; echo $id $name >>jobs\n\
             [ $id -ne 1 ] || mkfifo \"$(dirname \"$script\")/slurm.out\"; echo $id"
        ),
    );
    site.put_before("squeue", "exit 0");
    let row = "{ print $1, \"FAILED\", \"7:0\", \"0:0\", \"None\", \"u\", \"testcluster\", \"survey\", \"work\", \"n1\", \
         1795392199, 1795392199, 1795392211, 12, 60, \"\", \"00:00:00\", 12, 0, \"billing=1,cpu=1,mem=500,node=1\", $2, $2 }";
    site.put_before(
        "sacct",
        &format!("awk 'BEGIN {{ OFS = \"\\037\" }} {row}' '{place}/jobs' 2>/dev/null; exit 0"),
    );
    let service = ready(site.slots(), &[]).await;
    let port: u16 = site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    add(&service, &format!("{place}/root"), "hangs", ENDS_AT_ONCE, |deployment| {
        deployment["ssh_port"] = json!(port)
    })
    .await;
    let stuck = execute(&service, GOOD, "hangs").await;
    within("submitted", Duration::from_secs(60), async || {
        now(&service, &stuck).await["scheduler_job_id"].is_string()
    })
    .await;
    let good = execute(&service, GOOD, "hangs").await;
    let ended = until(&service, &good, "ended beside it", is_terminal).await;
    assert_eq!(ended["failure_class"], "application_exit", "{ended:#?}");
    let waiting = now(&service, &stuck).await;
    assert_eq!(waiting["submission_state"], "submitted", "{waiting:#?}");
    let said =
        async || now(&service, &stuck).await["why"]["text"].as_str().unwrap().contains("could not be read");
    within("said why", Duration::from_secs(60), said).await;
    service.verify_log();
}
