//! What could keep an execution from ever coming to its end: a fence that nobody recorded, files that hang, and an sbatch
//! that does not come back. The login node is real; stand-ins for Slurm's commands do what cannot be provoked in the real
//! ones at a given moment.

use std::path::{Path, PathBuf};
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

/// Jobs run until they are cancelled. While `away` is there sbatch does not reach its controller; while `hangs` is there it
/// does not come back once it has handed its job over.
fn stand_in() -> (Site, PathBuf) {
    let site = Site::without_slurm();
    let place = PathBuf::from(site.told("BEAMPIPE_TEST_SSH_WORK")).join("stand-in");
    std::fs::create_dir(&place).unwrap();
    crate::ssh::login::mode(&place, 0o777);
    for (file, text) in [("last", "0\n"), ("jobs", ""), ("cancelled", ""), ("lock", "")] {
        std::fs::write(place.join(file), text).unwrap();
        crate::ssh::login::mode(&place.join(file), 0o666);
    }
    let cd = format!("cd '{}' || exit 1", place.display());
    site.put_before(
        "sbatch",
        &format!(
            "{cd}\nfor word; do case $word in --job-name=*) name=${{word#*=}};; esac; done\n\
             [ ! -e away ] || {{ echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1; }}\n\
             exec 9>>lock; flock 9; id=$(($(cat last) + 1)); echo $id >last; echo $id $name >>jobs; exec 9>&-\n\
             while [ -e hangs ]; do sleep 0.2; done; echo $id"
        ),
    );
    site.put_before("scancel", &format!("{cd}\necho $1 >>cancelled"));
    let rows = |row: &str| {
        format!(
            "{cd}\nawk 'BEGIN {{ OFS = \"\\037\" }} FILENAME == \"cancelled\" {{ gone[$1]; next }} {row}' cancelled jobs"
        )
    };
    site.put_before(
        "squeue",
        &rows(
            "!($1 in gone) { print $1, \"RUNNING\", \"None\", \"u\", \"survey\", \"work\", \"n1\", 1795392199, 1795392199, \
             1795395799, \"0:12\", \"1:00:00\", $2, $2 }",
        ),
    );
    site.put_before(
        "sacct",
        &rows(
            "{ state = $1 in gone ? \"CANCELLED\" : \"RUNNING\"; end = $1 in gone ? 1795392211 : \"Unknown\"; \
             print $1, state, \"0:0\", \"0:0\", \"None\", \"u\", \"testcluster\", \"survey\", \"work\", \"n1\", 1795392199, \
             1795392199, end, 12, 60, \"\", \"00:00:00\", 12, 0, \"billing=1,cpu=1,mem=500,node=1\", $2, $2 }",
        ),
    );
    (site, place)
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap().lines().count()
}

#[tokio::test]
async fn an_sbatch_that_hangs_keeps_no_poll_and_no_cancellation_waiting_and_has_submitted_once() {
    let (site, place) = stand_in();
    let settings =
        [("BEAMPIPE_SSH__TRANSFER_TIMEOUT_SECONDS", "12"), ("BEAMPIPE_SSH__COMMAND_TIMEOUT_SECONDS", "8")];
    let service = ready(site.slots(), &settings).await;
    let port: u16 = site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    let root = format!("{}/root", place.display());
    add(&service, &root, "hangs", ENDS_AT_ONCE, |deployment| deployment["ssh_port"] = json!(port)).await;
    let running = execute(&service, GOOD, "hangs").await;
    until(&service, &running, "running", |e| e["scheduler_state"] == "running").await;
    std::fs::write(place.join("away"), "").unwrap();
    let late = execute(&service, GOOD, "hangs").await;
    let why = async |id: &str| now(&service, id).await["why"]["text"].as_str().unwrap_or_default().to_owned();
    let bound = Duration::from_secs(60);
    within("open", bound, async || why(&late).await.contains("cannot reach Slurm's controller")).await;
    std::fs::write(place.join("hangs"), "").unwrap();
    std::fs::remove_file(place.join("away")).unwrap();
    within("hanging", bound, async || lines(&place.join("jobs")) == 2).await;

    // The hand-over is given up after 20 s.
    let cancel = async |id: &str| {
        let asked = service.request(reqwest::Method::PATCH, &format!("/executions/{id}"));
        let answer =
            asked.json(&json!({"status": "cancelled", "reason": "not needed"})).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    cancel(&running).await;
    let told = within("told", Duration::from_secs(3), async || lines(&place.join("cancelled")) == 1).await;
    let ended =
        within("polled", Duration::from_secs(10), async || is_terminal(&now(&service, &running).await)).await;
    assert_eq!(now(&service, &late).await["submission_state"], "in_flight");
    let found = async || now(&service, &late).await["scheduler_job_id"] == "2";
    let settled = within("found by its name", bound, found).await;
    eprintln!(
        "cancelled after {told:.1?}, known to have ended after {ended:.1?}; the one that hung was found after {settled:.1?}"
    );
    let events = service.events(&format!("/executions/{late}/events")).await;
    let recorded: Vec<_> =
        events.iter().filter(|event| event["event_type"] == "execution.submission_recorded").collect();
    assert_eq!(recorded.len(), 1);
    let by = recorded[0]["payload"]["settled_by"].as_str().unwrap();
    assert!(by.contains("the queue has a job of the session's name"), "{by}");
    cancel(&late).await;
    until(&service, &late, "cancelled", is_terminal).await;
    assert_eq!(lines(&place.join("jobs")), 2, "it was submitted again");
    std::fs::remove_file(place.join("hangs")).unwrap();
    service.verify_log();
}

#[tokio::test]
async fn an_abandoned_execution_is_no_longer_said_to_be_looked_at() {
    let (site, place) = stand_in();
    let service = ready(site.slots(), &[("BEAMPIPE_WORK__HEARTBEAT_SECONDS", "1")]).await;
    let port: u16 = site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    let root = format!("{}/root", place.display());
    let profile =
        add(&service, &root, "abandoned", ENDS_AT_ONCE, |deployment| deployment["ssh_port"] = json!(port))
            .await;
    let id = execute(&service, GOOD, "abandoned").await;
    until(&service, &id, "running", |e| e["scheduler_state"] == "running").await;
    // Nobody speaks of it any more, which a person may take for its end.
    site.put_before("squeue", "exit 0");
    site.put_before("sacct", "exit 0");
    let looks = async || now(&service, &id).await["beampipe_run_record"]["slurm_poll"].clone();
    let silent = async || {
        looks().await["trouble"]
            .as_str()
            .is_some_and(|said| said.contains("neither the queue nor accounting"))
    };
    within("silent", Duration::from_secs(30), silent).await;
    let execution = now(&service, &id).await;
    let word = json!({
        "reason": "the facility was rebuilt", "acknowledge_external_job_may_exist": true,
        "evidence": "neither squeue nor sacct knows the job",
        "expected_submission_state": "submitted",
        "expected_daliuge_session_id": execution["daliuge_session_id"],
        "expected_submission_deadline_at": execution["submission_deadline_at"],
    });
    // The next attempt waits, so that what is said of it is not about a session of its own.
    service.post(&format!("/deployment-profiles/{profile}/pause"), json!({"reason": "repairs"})).await;
    service.post(&format!("/executions/{id}/submission/abandon"), word).await;
    service.post(&format!("/executions/{id}/retry"), json!({"reason": "again"})).await;
    assert_eq!(now(&service, &id).await["submission_state"], "preparing");
    within("forgotten", Duration::from_secs(10), async || looks().await["next_poll_at"].is_null()).await;
    // And it stays so over some heartbeats.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(looks().await["next_poll_at"].is_null(), "{}", looks().await);
    }
    service.verify_log();
}
