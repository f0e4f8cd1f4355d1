//! The job's script and the launcher with a real DALiuGE, run by bash as slurmd would.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use beampipe::backends::State;
use beampipe::backends::slurm::script::{self, Session, render};
use beampipe::backends::slurm::session_file::SessionFile;
use beampipe::backends::translator::Algorithm;
use beampipe_domain::profile::SlurmRemote;

use crate::backends::daliuge::{fresh, logical_graph, told, translator};

/// A session's directory with everything in it that a worker uploads.
struct Job {
    root: tempfile::TempDir,
    session: String,
    directory: PathBuf,
}

impl Job {
    /// `setup` is what the site's environment is made of; the engine of the tests unless told otherwise.
    async fn prepare(graph: &str, setup: Option<&str>) -> Job {
        let root = tempfile::Builder::new().prefix("launch").tempdir().unwrap();
        let session = fresh("launch").replace('_', "-");
        let dlg_root = root.path().join("dlg");
        let venv = format!("source '{}/bin/activate'", told("DLG_VENV"));
        let remote = SlurmRemote {
            dlg_root: dlg_root.to_str().unwrap().into(),
            modules: None,
            venv: Some(setup.map_or(venv, str::to_owned)),
            environment_setup: None,
            exec_prefix: "env".into(),
            resources: None,
            ..super::remote()
        };
        // The session's directory may be called anything; what DALiuGE writes into is in commands of the graph.
        let directory = root.path().join(format!("a 'b' \"c\" $d é/{session}"));
        std::fs::create_dir_all(&directory).unwrap();
        let of = Session { id: &session, directory: directory.to_str().unwrap(), run: "a run" };
        let text = render(&remote, of).unwrap();
        let template = translator()
            .unroll_and_partition(&logical_graph(graph), Algorithm::Metis, 1, 1, &fresh("exec"))
            .await
            .unwrap();
        for (name, bytes) in [
            (script::SCRIPT_FILE, text.as_bytes()),
            (script::LAUNCHER_FILE, script::LAUNCHER.as_bytes()),
            (script::TEMPLATE_FILE, &template),
        ] {
            std::fs::write(directory.join(name), bytes).unwrap();
        }
        Job { root, session, directory }
    }

    fn start(&self) -> Child {
        let output = std::fs::File::create(self.directory.join("slurm.out")).unwrap();
        Command::new("bash")
            .arg(self.directory.join(script::SCRIPT_FILE))
            .env("SLURM_JOB_ID", "42")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap()
    }

    fn file(&self) -> Option<SessionFile> {
        let bytes = std::fs::read(self.directory.join("session.json")).ok()?;
        Some(SessionFile::read(&bytes, &self.session).unwrap())
    }

    /// Waits until the file says so; what is read meanwhile is whole every time.
    async fn until(&self, what: impl Fn(&SessionFile) -> bool) -> SessionFile {
        let begun = Instant::now();
        loop {
            if let Some(file) = self.file().filter(|file| what(file)) {
                return file;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "{:?}\n{}", self.file(), self.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.join("slurm.out")).unwrap_or_default()
    }

    fn ended(&self) -> Option<String> {
        std::fs::read_to_string(self.directory.join(script::ENDED_MARK)).ok()
    }

    /// The processes that work below this job's directory.
    fn processes(&self) -> Vec<PathBuf> {
        let below = |process: &Path| {
            let cwd = std::fs::read_link(process.join("cwd")).unwrap_or_default();
            cwd.starts_with(self.root.path())
        };
        let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        processes.filter(|process| below(process)).collect()
    }

    async fn nothing_is_left(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", self.processes());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn end(mut child: Child) -> ExitStatus {
    let wait = tokio::task::spawn_blocking(move || child.wait().unwrap());
    tokio::time::timeout(Duration::from_secs(120), wait).await.unwrap().unwrap()
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn a_graph_that_finishes_ends_its_job_with_success() {
    let job = Job::prepare("fanout-ok", None).await;
    let child = job.start();
    job.until(|file| file.state == State::Running).await;
    let status = end(child).await;
    let file = job.file().unwrap();
    assert_eq!(status.code(), Some(0), "{}", job.said());
    assert!(file.has_finished());
    assert_eq!((file.progress.total, file.progress.completed, file.drops.len()), (10, 10, 10));
    assert_eq!((file.job.as_deref(), file.nodes.len(), file.exit_code), (Some("42"), 1, Some(0)));
    assert_eq!(job.ended().as_deref(), Some("0\n"));
    let written = job.root.path().join("dlg/workspace").join(&job.session).join("total.txt");
    assert!(written.exists() && job.directory.join("log/nm.0.out").exists());
    job.nothing_is_left().await;
}

#[tokio::test]
async fn a_graph_that_fails_ends_its_job_at_once_and_says_why() {
    let job = Job::prepare("one-fails", None).await;
    let status = end(job.start()).await;
    let over = std::time::Instant::now();
    let file = job.file().unwrap();
    assert_eq!(status.code(), Some(1), "{}", job.said());
    assert!(file.has_failed());
    let held = file.ended_at.unwrap() - file.started_at.unwrap();
    assert!(held.num_seconds() < 30, "the allocation was held for {held}");
    let evidence = file.evidence();
    let first = &evidence.error_drops[0];
    assert_eq!((first.name.as_str(), first.culprit, evidence.error_drops_count), ("bad", true, 4));
    assert!(first.log.iter().any(|line| line.level == "ERROR" && line.message.contains("no such beam")));
    assert!(first.log.iter().all(|line| !line.message.contains("<pre>")));
    assert!(evidence.error_drops[1..].iter().all(|drop| !drop.culprit && drop.log.is_empty()));
    assert!(evidence.summary().contains("no such beam"), "{}", evidence.summary());
    job.nothing_is_left().await;
    assert!(over.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_job_that_is_told_to_end_cancels_its_graph_and_says_how_far_it_was() {
    let job = Job::prepare("fanout-ok", None).await;
    let child = job.start();
    job.until(|file| file.progress.completed > 0 && file.state == State::Running).await;
    let told = Instant::now();
    signal(&child, "TERM");
    let status = end(child).await;
    assert!(told.elapsed() < Duration::from_secs(10), "Slurm kills what takes longer");
    let file = job.file().unwrap();
    assert_eq!((status.code(), job.ended().as_deref()), (Some(143), Some("143\n")), "{}", job.said());
    assert!(file.interrupted && file.is_final() && !file.has_finished());
    assert_eq!((&file.state, file.exit_code), (&State::Cancelled, Some(143)));
    assert!(file.progress.completed > 0 && file.progress.completed < 10);
    assert!(file.evidence().error_drops.is_empty(), "what was stopped did not fail");
    job.nothing_is_left().await;
}

#[tokio::test]
async fn a_launcher_that_is_killed_leaves_no_manager_behind() {
    let job = Job::prepare("fanout-ok", None).await;
    let child = job.start();
    job.until(|file| file.state == State::Running).await;
    let launcher = job.processes().into_iter().find(|process| {
        let command = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        command.contains("launch.py")
    });
    let pid = launcher.unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    assert_eq!(end(child).await.code(), Some(137));
    assert!(!job.file().unwrap().is_final(), "nobody said that it ended");
    let manager = |process: &PathBuf| {
        std::fs::read_to_string(process.join("cmdline")).unwrap_or_default().contains("--rpc_port")
    };
    let begun = Instant::now();
    while job.processes().iter().any(manager) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", job.processes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_site_without_daliuge_says_so() {
    let job = Job::prepare("fanout-ok", Some("export PATH=/usr/bin:/bin")).await;
    let status = end(job.start()).await;
    let file = job.file().unwrap();
    assert_eq!((status.code(), file.exit_code), (Some(3), Some(3)), "{}", job.said());
    assert!(file.error.unwrap().contains("no program `dlg`"));
}

#[tokio::test]
async fn several_nodes_are_one_engine_for_as_long_as_the_graph_runs() {
    let job = Job::prepare("fanout-ok", None).await;
    let task = |rank: &str, name: &str, local: &str| {
        Command::new(format!("{}/bin/python3", told("DLG_VENV")))
            .args([
                "-u",
                script::LAUNCHER_FILE,
                "--session",
                &job.session,
                "--template",
                script::TEMPLATE_FILE,
            ])
            .current_dir(&job.directory)
            .env("DLG_ROOT", job.root.path().join("dlg"))
            .envs([("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_NODES", "2"), ("SLURM_STEP_NUM_TASKS", "3")])
            .envs([("SLURM_PROCID", rank), ("SLURMD_NODENAME", name), ("SLURM_LOCALID", local)])
            .spawn()
            .unwrap()
    };
    // The third is the second task of the second node, and only waits.
    let mut others = [task("1", "127.0.0.3", "0"), task("2", "127.0.0.3", "1")];
    let first = task("0", "127.0.0.2", "0");
    job.until(|file| file.state == State::Running).await;
    assert!(others.iter_mut().all(|other| other.try_wait().unwrap().is_none()), "srun would end the others");
    assert_eq!(end(first).await.code(), Some(0));
    for other in others {
        assert_eq!(end(other).await.code(), Some(0));
    }
    let file = job.file().unwrap();
    assert!(file.has_finished());
    assert_eq!(file.nodes.len(), 2);
    assert!(file.nodes[0].starts_with("127.0.0.2:") && file.nodes[1].starts_with("127.0.0.3:"));
    job.nothing_is_left().await;
}

#[tokio::test]
async fn a_node_that_does_not_come_is_no_fault_of_the_graph() {
    let job = Job::prepare("fanout-ok", None).await;
    let child = Command::new(format!("{}/bin/python3", told("DLG_VENV")))
        .args([script::LAUNCHER_FILE, "--session", &job.session, "--template", script::TEMPLATE_FILE])
        .current_dir(&job.directory)
        .env("DLG_ROOT", job.root.path().join("dlg"))
        .env("BEAMPIPE_START_WITHIN", "5")
        .envs([("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_NODES", "2"), ("SLURM_STEP_NUM_TASKS", "2")])
        .envs([("SLURM_PROCID", "0"), ("SLURMD_NODENAME", "127.0.0.2"), ("SLURM_LOCALID", "0")])
        .spawn()
        .unwrap();
    assert_eq!(end(child).await.code(), Some(3));
    assert!(job.file().unwrap().error.unwrap().contains("1 of 2 tasks did not come within 5 s"));
    job.nothing_is_left().await;
}
