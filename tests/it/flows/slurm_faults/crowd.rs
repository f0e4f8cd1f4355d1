//! Many live jobs on one profile, with four workers on one log. What stands in for sbatch, squeue and sacct on the login
//! node counts how often it is asked; Slurm itself is not there, and a thousand jobs would not fit onto this machine.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use beampipe::backends::slurm::poll::{Asked, Poll, poll};
use beampipe::backends::slurm::{sacct, squeue};
use serde_json::Value;

use super::super::cluster::Cluster;
use super::super::slurm::{GOOD, by_hand, execute};
use super::{ENDS_AT_ONCE, add, discovered, is_terminal, storm};
use crate::backends::slurm_site::Site;

/// The first ones have ended for the controller and not for accounting, so each poll has to ask both.
const LEAVING: u64 = 10;
/// Seconds between two polls that the profile asks for.
const FLOOR: u64 = 3;

/// Stand-ins for Slurm's commands, on a login node of one's own.
struct StandIn {
    site: Site,
    place: PathBuf,
}

impl StandIn {
    fn new() -> Self {
        let site = Site::without_slurm();
        let place = PathBuf::from(site.told("BEAMPIPE_TEST_SSH_WORK")).join("stand-in");
        let cd = format!("cd '{}' || exit 1", place.display());
        site.put_before(
            "sbatch",
            &format!(
                "{cd}\nfor word; do case $word in --job-name=*) name=${{word#*=}};; esac; done\n\
                 exec 9>>lock; flock 9\nid=$(($(cat last) + 1)); echo $id >last\n\
                 echo $id $name >>jobs; echo $id"
            ),
        );
        // The fields of `--format`, separated by the unit separator, as Slurm 22.05 prints them.
        let squeue = format!(
            "{{ state = $1 <= {LEAVING} ? \"COMPLETED\" : \"RUNNING\"; print $1, state, \"None\", \"u\", \"survey\", \"work\", \
             \"n1\", 1795392199, 1795392199, 1795395799, \"0:12\", \"1:00:00\", $2, $2 }}"
        );
        let sacct = "{ print $1, \"RUNNING\", \"0:0\", \"0:0\", \"None\", \"u\", \"testcluster\", \"survey\", \"work\", \"n1\", \
             1795392199, 1795392199, \"Unknown\", 12, 60, \"\", \"00:00:00\", 12, 0, \
             \"billing=1,cpu=1,mem=500,node=1\", $2, $2 }";
        for (program, row) in [("squeue", squeue.as_str()), ("sacct", sacct)] {
            let script =
                format!("{cd}\ndate +%s.%N >>{program}.calls\nawk 'BEGIN {{ OFS = \"\\037\" }} {row}' jobs");
            site.put_before(program, &script);
        }
        let stand_in = Self { site, place };
        std::fs::create_dir(&stand_in.place).unwrap();
        crate::ssh::login::mode(&stand_in.place, 0o777);
        for (file, text) in
            [("last", "0\n"), ("jobs", ""), ("squeue.calls", ""), ("sacct.calls", ""), ("lock", "")]
        {
            std::fs::write(stand_in.place.join(file), text).unwrap();
            crate::ssh::login::mode(&stand_in.place.join(file), 0o666);
        }
        stand_in
    }

    fn lines(&self, file: &str) -> Vec<String> {
        std::fs::read_to_string(self.place.join(file)).unwrap().lines().map(str::to_owned).collect()
    }

    /// When a program was called, in seconds since 1970.
    fn calls(&self, program: &str) -> Vec<f64> {
        self.lines(&format!("{program}.calls")).iter().map(|at| at.parse().unwrap()).collect()
    }
}

/// What the service does in a poll, over the real connection.
async fn one_poll(stand_in: &StandIn) -> (usize, Duration) {
    let jobs: Vec<(u64, String)> = stand_in
        .lines("jobs")
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, name)| (id.parse().unwrap(), name.to_owned()))
        .collect();
    let (ids, cluster) = (jobs.iter().map(|(id, _)| *id).collect::<Vec<u64>>(), stand_in.site.cluster());
    cluster.run("true").await.unwrap();
    let begun = Instant::now();
    let mut said = vec![];
    for line in [squeue::by_id(&ids).unwrap(), sacct::by_id(&ids).unwrap()] {
        let done = cluster.run(&line).await.unwrap();
        assert!(done.success() && !done.truncated, "{}", done.stderr_text());
        said.push(done.stdout);
    }
    let printed = |n: usize| beampipe::backends::slurm::Printed { exit: 0, stdout: &said[n], stderr: b"" };
    let (queue, accounts) = (squeue::read(printed(0)).unwrap(), sacct::read(printed(1)).unwrap());
    let asked: Vec<Asked> = jobs.into_iter().map(|(job, session)| Asked { job, session }).collect();
    let told = poll(&asked, &queue, &accounts);
    let took = begun.elapsed();
    let living = told.values().filter(|poll| matches!(poll, Poll::Living(_))).count();
    assert_eq!(living + usize::try_from(LEAVING).unwrap(), asked.len(), "a job was not told of");
    (asked.len(), took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_live_jobs_is_polled_in_two_commands_and_under_the_floor() {
    let (soak, _) = storm();
    let (count, watched) = if soak { (1000, 60) } else { (40, 9) };
    let stand_in = StandIn::new();
    let credentials = stand_in.site.slots().directory.path().to_str().unwrap();
    let settings = [("BEAMPIPE_SSH__CREDENTIALS_DIR", credentials)];
    let roles = ["api", "scheduler", "worker", "worker", "worker", "worker"];
    let mut cluster = Cluster::start_with(&roles, &settings).await;
    let service = cluster.api();
    service.configure(by_hand).await;
    service.register(&[GOOD]).await;
    discovered(service, 1).await;
    let port: u16 = stand_in.site.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
    let root = format!("{}/crowd", stand_in.site.told("BEAMPIPE_TEST_SSH_WORK"));
    add(service, &root, "crowd", ENDS_AT_ONCE, |deployment| {
        deployment["ssh_port"] = port.into();
        deployment["poll_floor_seconds"] = FLOOR.into();
    })
    .await;
    let begun = Instant::now();
    for _ in 0..count {
        execute(service, GOOD, "crowd").await;
    }
    let submitted = || stand_in.lines("jobs").len();
    while submitted() < count {
        assert!(
            begun.elapsed() < Duration::from_secs(if soak { 1200 } else { 120 }),
            "{} of {count}",
            submitted()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let took = begun.elapsed();

    // From here on all of them are polled, and nothing else is asked.
    tokio::time::sleep(Duration::from_secs(2 * FLOOR)).await;
    let before = (stand_in.calls("squeue").len(), stand_in.calls("sacct").len());
    tokio::time::sleep(Duration::from_secs(watched)).await;
    let (queue, accounts) =
        (stand_in.calls("squeue").split_off(before.0), stand_in.calls("sacct").split_off(before.1));
    assert!(queue.len() >= 2, "it is not polled");
    assert!(queue.len() as u64 <= watched / FLOOR + 1, "{} polls in {watched} s", queue.len());
    assert!(queue.len().abs_diff(accounts.len()) <= 1, "{} squeue, {} sacct", queue.len(), accounts.len());
    // The watch goes from worker to worker, and none of them asks too early.
    for (n, worker) in cluster.members.iter_mut().skip(2).enumerate() {
        if n % 2 == 0 {
            worker.stop().await
        } else {
            worker.kill()
        }
        worker.start_again(&[]).await;
    }
    let service = cluster.api();
    // Those that were killed are noticed by their silence.
    tokio::time::sleep(Duration::from_secs(4 * FLOOR)).await;
    let handed = stand_in.calls("squeue").split_off(before.0);
    assert!(handed.len() > queue.len(), "it is polled no more");
    let apart = handed.windows(2).map(|two| two[1] - two[0]).fold(f64::INFINITY, f64::min);
    assert!(apart > FLOOR as f64 - 0.5, "two polls were {apart} s apart");

    let (jobs, poll_took) = one_poll(&stand_in).await;
    assert_eq!(jobs, count, "one job each");
    assert!(poll_took < Duration::from_secs(5), "a poll took {poll_took:?}");
    let page = service.get("/executions?items_per_page=500").await;
    let live = |all: &Value| all["items"].as_array().unwrap().iter().all(|e| !is_terminal(e));
    assert!(live(&page), "nothing has ended");
    eprintln!(
        "{count} live jobs, submitted within {took:.1?}: {} polls of two commands in {watched} s by four workers with a floor of \
         {FLOOR} s, at least {apart:.1} s apart; one poll takes {poll_took:.2?}",
        queue.len()
    );
}
