//! The remote side of a session on a real Slurm: at most one job, whoever asks how often, and whatever is cut.

use std::time::{Duration, Instant};

use beampipe::backends::slurm::cluster::{Account, Cluster, Ended, Marks, Submission, Submitted, Taken};
use beampipe::ssh::{Class, Part};

use super::slurm_site::{Site, jobs, jobs_in_time, prepare};
use crate::ssh::login::{kill, server_process};

async fn until(cluster: &Cluster, directory: &str, what: &str, holds: impl Fn(&Marks) -> bool) -> Marks {
    let limit = Instant::now() + Duration::from_secs(40);
    loop {
        let marks = cluster.marks(directory).await.unwrap();
        if holds(&marks) {
            return marks;
        }
        assert!(Instant::now() < limit, "{what}: {marks:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_session_is_prepared_submitted_and_leaves_its_marks() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    assert!(!cluster.marks(&directory).await.unwrap().directory);
    prepare(&cluster, &directory, "", "echo was here; false").await;
    let before = cluster.marks(&directory).await.unwrap();
    assert_eq!(
        before,
        Marks { directory: true, submission: Submission::NoMark, started: false, ended: None }
    );

    let Submitted::Accepted(accepted) = cluster.submit(&directory, &name).await.unwrap() else {
        panic!("not accepted")
    };
    let age = beampipe::clock::Clock::system().now() - accepted.submitted_at.unwrap();
    assert!(age.num_seconds().abs() < 60, "{accepted:?}");
    let after = until(&cluster, &directory, "the end", |marks| marks.ended.is_some()).await;
    assert_eq!((after.started, after.ended), (true, Some(Ended { code: Some(1) })));
    assert_eq!(after.submission, Submission::Accepted(accepted.clone()), "a lost answer is read later");
    assert_eq!(
        jobs_in_time(&cluster, &name).await.into_keys().collect::<Vec<_>>(),
        vec![accepted.job_id.clone()]
    );

    let log = cluster.fetch(&directory, "job.out", Part::End, 100).await.unwrap();
    assert_eq!(log.bytes, b"was here\n");
    assert!(cluster.fetch(&directory, "none", Part::End, 100).await.unwrap_err().is_absent());
    // Accounting may first know a job that was short as `allocation`.
    let line = format!("sacct -X -n -P -j {} -o jobname,comment", accepted.job_id);
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let told = cluster.run(&line).await.unwrap().stdout_text();
        if told.trim() == format!("{name}|{name}") {
            break;
        }
        assert!(Instant::now() < limit, "{told}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn of_twenty_who_submit_at_once_one_does() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "true").await;
    // Some over one connection, some over their own.
    let others: Vec<Cluster> = (0..4).map(|_| site.cluster()).collect();
    let all = (0..20).map(|n| others[n % 4].submit(&directory, &name));
    let done: Vec<Submitted> =
        futures::future::join_all(all).await.into_iter().map(|done| done.unwrap()).collect();
    let accepted = done.iter().filter(|done| matches!(done, Submitted::Accepted(_))).count();
    let taken = done.iter().filter(|done| **done == Submitted::Taken).count();
    assert_eq!((accepted, taken), (1, 19), "{done:?}");
    assert_eq!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Taken);
    assert_eq!(jobs_in_time(&cluster, &name).await.len(), 1);
}

#[tokio::test]
async fn what_slurm_refuses_is_told_in_its_own_words() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "#SBATCH --partition=nowhere", "true").await;
    let refused = cluster.submit(&directory, &name).await.unwrap();
    let Submitted::Refused { code, stderr } = &refused else { panic!("{refused:?}") };
    assert!(*code == 1 && stderr.contains("invalid partition specified: nowhere"), "{refused:?}");
    let marks = cluster.marks(&directory).await.unwrap();
    assert_eq!(marks.submission, Submission::Refused { code: *code, stderr: stderr.clone() });
    assert_eq!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Taken, "the mark stays");
    assert!(jobs(&cluster, &name).await.is_empty());
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_said_and_leaves_the_mark_free() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "true").await;
    let place = directory.replace('\'', r"'\''");
    cluster.run(&format!("chmod 500 '{place}'")).await.unwrap();
    let error = cluster.submit(&directory, &name).await.unwrap_err();
    assert!(error.class() == Class::Refused && error.to_string().contains("cannot be written to"), "{error}");
    cluster.run(&format!("chmod 700 '{place}'")).await.unwrap();
    assert_eq!(cluster.marks(&directory).await.unwrap().submission, Submission::NoMark);
    assert!(matches!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Accepted(_)));
}

#[tokio::test]
async fn a_session_whose_mark_was_taken_is_never_submitted() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    let early = cluster.submit(&directory, &name).await.unwrap_err();
    assert!(early.class() == Class::Refused && early.to_string().contains("job.sh"), "{early}");
    assert_eq!(cluster.take(&directory).await.unwrap(), Taken::Ours, "also before anything was uploaded");
    assert_eq!(cluster.take(&directory).await.unwrap(), Taken::Already);
    prepare(&cluster, &directory, "", "true").await;
    assert_eq!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Taken);
    assert_eq!(cluster.marks(&directory).await.unwrap().submission, Submission::Withheld);
    assert!(jobs(&cluster, &name).await.is_empty());
}

#[tokio::test]
async fn a_job_of_a_fenced_session_ends_at_once() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "touch has-run").await;
    assert_eq!(cluster.fence(&directory).await.unwrap(), Taken::Ours);
    assert!(matches!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Accepted(_)));
    let limit = Instant::now() + Duration::from_secs(30);
    while jobs(&cluster, &name).await.values().all(|state| state != "FAILED") {
        assert!(Instant::now() < limit, "{:?}", jobs(&cluster, &name).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(cluster.fetch(&directory, "has-run", Part::End, 1).await.unwrap_err().is_absent());
    assert_eq!(cluster.fence(&directory).await.unwrap(), Taken::Already);
}

#[tokio::test]
async fn a_job_is_cancelled_and_an_id_is_nothing_else() {
    let site = Site::shared();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "sleep 300").await;
    let Submitted::Accepted(accepted) = cluster.submit(&directory, &name).await.unwrap() else {
        panic!("not accepted")
    };
    assert!(cluster.cancel(&accepted.job_id).await.unwrap().success());
    let limit = Instant::now() + Duration::from_secs(30);
    while !jobs(&cluster, &name).await.values().any(|state| state.starts_with("CANCELLED")) {
        assert!(Instant::now() < limit);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for id in ["", "-u hpcuser", "1;id", "$(id)", "--me"] {
        assert_eq!(cluster.cancel(id).await.unwrap_err().class(), Class::Invalid, "{id}");
    }
}

/// What the ending of a connection leaves of a submission, made a fact.
async fn settle(site: &Site, directory: &str) -> Option<String> {
    let cluster = site.cluster();
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        match cluster.marks(directory).await.unwrap().submission {
            Submission::Accepted(accepted) => return Some(accepted.job_id),
            Submission::NoMark => match cluster.take(directory).await.unwrap() {
                Taken::Ours => return None,
                // Who is on the way was faster.
                Taken::Already => {}
            },
            Submission::Unclear { .. } => tokio::time::sleep(Duration::from_millis(50)).await,
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < limit, "unclear for too long");
    }
}

/// Submits, cuts the connection after `delay`, and settles: whether it was cut, and whether there is a job.
async fn cut(site: &Site, delay: Duration) -> (bool, bool) {
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "true").await;
    let pool = site.pool();
    let server = server_process(&pool, &site.target()).await;
    let doomed = Cluster::new(pool.clone(), site.target());
    let submitting = {
        let (name, directory) = (name.clone(), directory.clone());
        tokio::spawn(async move { doomed.submit(&directory, &name).await })
    };
    tokio::time::sleep(delay).await;
    kill(server, "-KILL");
    let answer = submitting.await.unwrap();
    let settled = settle(site, &directory).await;
    match &answer {
        Ok(Submitted::Accepted(accepted)) => assert_eq!(settled.as_ref(), Some(&accepted.job_id)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => assert_eq!(error.class(), Class::Unknown, "{error}"),
    }
    let found = match settled {
        Some(_) => jobs_in_time(&cluster, &name).await,
        None => jobs(&cluster, &name).await,
    };
    assert_eq!(found.into_keys().collect::<Vec<_>>(), settled.clone().into_iter().collect::<Vec<_>>());
    (answer.is_err(), settled.is_some())
}

#[tokio::test]
async fn a_submission_that_is_cut_anywhere_is_settled_by_its_marks() {
    let site = Site::shared();
    let (mut uncertain, mut submitted) = (0, 0);
    for round in 0..8 {
        let delays = (0..5).map(|step| Duration::from_millis(round * 10 + step * 2));
        for (cut, job) in futures::future::join_all(delays.map(|delay| cut(&site, delay))).await {
            uncertain += u32::from(cut);
            submitted += u32::from(job);
        }
    }
    println!("of 40, {uncertain} without an answer, {submitted} submitted");
    assert!(uncertain > 0, "no connection was cut in time");
}

#[tokio::test]
async fn a_slurm_that_is_not_reached_takes_the_job_later() {
    let site = Site::own();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "true").await;
    for (part, words) in [("munged", "Munge"), ("slurmctld", "connect failure")] {
        site.slurm(&format!("stop-{part}"));
        let away = cluster.submit(&directory, &name).await.unwrap();
        let Submitted::NotReached { stderr } = &away else { panic!("{part}: {away:?}") };
        assert!(stderr.contains(words), "{stderr}");
        assert_eq!(
            cluster.marks(&directory).await.unwrap().submission,
            Submission::NoMark,
            "the mark is free again"
        );
        site.slurm(&format!("start-{part}"));
    }
    assert!(matches!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Accepted(_)));
    assert_eq!(jobs_in_time(&cluster, &name).await.len(), 1);
}

#[tokio::test]
async fn a_shell_killed_while_sbatch_waits_leaves_a_doubt_that_only_a_fence_ends() {
    let site = Site::own();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "touch has-run").await;
    let controller = site.daemon("slurmctld");
    kill(controller, "-STOP");
    let submitting = {
        let (cluster, name, directory) = (cluster.clone(), name.clone(), directory.clone());
        tokio::spawn(async move { cluster.submit(&directory, &name).await })
    };
    let sbatch = until(&cluster, &directory, "sbatch", |marks| {
        matches!(marks.submission, Submission::Unclear { sbatch_began: true, .. })
    });
    sbatch.await;
    // The shell first, so that it cannot say how sbatch ended.
    for program in ["sh -c", "sbatch"] {
        let found =
            cluster.run(&format!("pgrep -f '^{program}.*{name}' || true")).await.unwrap().stdout_text();
        for pid in found.lines() {
            let _ = cluster.run(&format!("kill -KILL {pid}")).await;
        }
    }
    let error = submitting.await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    let marks = cluster.marks(&directory).await.unwrap();
    assert!(matches!(marks.submission, Submission::Unclear { sbatch_began: true, .. }), "{marks:?}");
    assert_eq!(cluster.take(&directory).await.unwrap(), Taken::Already);
    assert_eq!(cluster.fence(&directory).await.unwrap(), Taken::Ours);
    kill(controller, "-CONT");
    // The request may have lain in the controller's socket: then there is a job, and it ends at once.
    let found = jobs_in_time(&cluster, &name).await;
    println!("{found:?}");
    assert!(found.len() <= 1, "{found:?}");
    assert!(cluster.fetch(&directory, "has-run", Part::End, 1).await.unwrap_err().is_absent());
}

#[tokio::test]
async fn a_shell_that_stood_still_before_sbatch_does_no_harm_when_it_goes_on() {
    let site = Site::own();
    let (cluster, (name, directory)) = (site.cluster(), site.session());
    prepare(&cluster, &directory, "", "touch has-run").await;
    let go = format!("{}/go", site.told("BEAMPIPE_TEST_SSH_WORK"));
    site.put_before(
        "sbatch",
        &format!("while [ ! -e '{go}' ]; do sleep 0.1; done; exec /usr/bin/sbatch \"$@\""),
    );
    let pool = site.pool();
    let server = server_process(&pool, &site.target()).await;
    let doomed = Cluster::new(pool.clone(), site.target());
    let submitting = {
        let (name, directory) = (name.clone(), directory.clone());
        tokio::spawn(async move { doomed.submit(&directory, &name).await })
    };
    until(&cluster, &directory, "the mark", |marks| matches!(marks.submission, Submission::Unclear { .. }))
        .await;
    kill(server, "-KILL");
    assert_eq!(submitting.await.unwrap().unwrap_err().class(), Class::Unknown);

    // Somebody else settles it: nothing is found, and the right to start is taken from whatever may still come.
    assert_eq!(cluster.take(&directory).await.unwrap(), Taken::Already);
    assert!(jobs(&cluster, &name).await.is_empty());
    assert_eq!(cluster.fence(&directory).await.unwrap(), Taken::Ours);
    cluster.run(&format!("touch '{go}'")).await.unwrap();
    let found = jobs_in_time(&cluster, &name).await;
    assert_eq!(found.values().collect::<Vec<_>>(), ["FAILED"], "it came, and ended at once");
    assert!(cluster.fetch(&directory, "has-run", Part::End, 1).await.unwrap_err().is_absent());
    let late = cluster.marks(&directory).await.unwrap();
    assert!(
        matches!(&late.submission, Submission::Accepted(late) if found.contains_key(&late.job_id)),
        "{late:?}"
    );
}

#[tokio::test]
async fn a_shell_killed_after_sbatch_leaves_the_id_or_a_job_of_the_sessions_name() {
    let site = Site::own();
    let cluster = site.cluster();
    for (printed, script) in [
        (true, "/usr/bin/sbatch \"$@\"; kill -KILL $PPID"),
        (false, "/usr/bin/sbatch \"$@\" >/dev/null; kill -KILL $PPID"),
    ] {
        let (name, directory) = site.session();
        prepare(&cluster, &directory, "", "touch has-run").await;
        site.put_before("sbatch", script);
        let error = cluster.submit(&directory, &name).await.unwrap_err();
        assert_eq!(error.class(), Class::Unknown, "{error}");
        let marks = until(&cluster, &directory, "the end", |marks| marks.ended.is_some()).await;
        let found = jobs_in_time(&cluster, &name).await;
        assert_eq!(found.len(), 1, "{found:?}");
        match marks.submission {
            Submission::Accepted(accepted) => assert!(printed && found.contains_key(&accepted.job_id)),
            Submission::Unclear { sbatch_began, .. } => assert!(!printed && sbatch_began),
            other => panic!("{other:?}"),
        }
        assert_eq!(cluster.fence(&directory).await.unwrap(), Taken::Already, "it has run");
        assert_eq!(cluster.submit(&directory, &name).await.unwrap(), Submitted::Taken);
    }
}

#[tokio::test]
async fn a_site_tells_its_room_its_maintenance_and_whose_account_it_is() {
    let site = Site::own();
    let cluster = site.cluster();
    let space =
        cluster.space(&format!("{}/not/yet", site.told("BEAMPIPE_TEST_SSH_WORK"))).await.unwrap().unwrap();
    assert!(space.total >= space.available && space.available > 0, "{space:?}");

    assert_eq!(cluster.maintenance().await.unwrap(), []);
    let create = ["create", "reservation", "ReservationName=service", "starttime=now+3600", "duration=60"];
    site.admin("scontrol", &[&create[..], &["nodes=ALL", "flags=maint", "users=root"]].concat());
    let planned = cluster.maintenance().await.unwrap();
    assert_eq!(planned.len(), 1, "{planned:?}");
    let wait = planned[0].start - beampipe::clock::Clock::system().now();
    assert!((58..=60).contains(&wait.num_minutes()), "{planned:?}");
    assert_eq!((planned[0].end - planned[0].start).num_minutes(), 60);

    assert_eq!(cluster.account("survey").await.unwrap(), Account::Untold);
    site.admin("sacctmgr", &["-i", "-Q", "add", "account", "survey"]);
    let user = site.told("BEAMPIPE_TEST_SSH_USER").to_owned();
    site.admin("sacctmgr", &["-i", "-Q", "add", "user", &user, "account=survey"]);
    assert_eq!(cluster.account("other").await.unwrap(), Account::NotOurs { ours: vec!["survey".into()] });
    assert_eq!(cluster.account("survey").await.unwrap(), Account::Ours { cpu_minutes: None });
    site.admin("sacctmgr", &["-i", "-Q", "modify", "account", "survey", "set", "GrpTRESMins=cpu=1000"]);
    assert_eq!(cluster.account("survey").await.unwrap(), Account::Ours { cpu_minutes: Some((1000, 0)) });
}
