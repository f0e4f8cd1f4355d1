//! The real Slurm behind a real login node: the one that `tests/realparts/up.sh` started, shared by all, or one's own
//! whose daemons a test may stop.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use beampipe::backends::slurm::cluster::{Cluster, Upload};
use beampipe::ssh::{Pool, Settings, Target};

use super::daliuge::{SCRIPTS, fresh};
use crate::ssh::login::{Slots, told};

pub struct Site {
    variables: BTreeMap<String, String>,
    slots: Slots,
    /// Of a site of one's own: what up.sh made.
    own: Option<tempfile::TempDir>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            let path = own.path().join("state");
            let _ = Command::new(format!("{SCRIPTS}/down.sh")).arg(path).arg("--remove").output();
        }
    }
}

impl Site {
    pub fn shared() -> Self {
        let names = ["SSH_PORT", "SSH_USER", "SSH_DIR", "SSH_WORK", "SLURM_CONF"];
        let variables =
            names.map(|name| format!("BEAMPIPE_TEST_{name}")).map(|name| (name.clone(), told(&name)));
        Self::with(variables.into(), None)
    }

    /// Takes some seconds to start.
    pub fn own() -> Self {
        Self::own_of(&["slurm", "sshd"])
    }

    /// A login node without a Slurm, for what stands in for one.
    pub fn without_slurm() -> Self {
        Self::own_of(&["sshd"])
    }

    fn own_of(parts: &[&str]) -> Self {
        told("BEAMPIPE_TEST_SLURM_CONF");
        let own = tempfile::tempdir().unwrap();
        let state = own.path().join("state");
        let mut up = Command::new(format!("{SCRIPTS}/up.sh"));
        // What the shared one is told is not for this one.
        for name in std::env::vars_os().map(|(name, _)| name) {
            let text = name.to_string_lossy();
            if text.starts_with("SLURM_") || text.starts_with("SSHD_") || text.starts_with("REALPARTS_SHARED")
            {
                up.env_remove(&name);
            }
        }
        let done = up.arg(&state).args(parts).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let script = format!(". '{}' && env", state.join("env").display());
        let said = Command::new("bash").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        let variables = text.lines().filter_map(|line| line.split_once('='));
        Self::with(variables.map(|(name, value)| (name.into(), value.into())).collect(), Some(own))
    }

    fn with(variables: BTreeMap<String, String>, own: Option<tempfile::TempDir>) -> Self {
        let slots = Slots::of(Path::new(&variables["BEAMPIPE_TEST_SSH_DIR"]));
        Self { variables, slots, own }
    }

    pub fn told(&self, name: &str) -> &str {
        &self.variables[name]
    }

    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    pub fn target(&self) -> Target {
        let port = self.told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap();
        Target::new("127.0.0.1", port, self.told("BEAMPIPE_TEST_SSH_USER"), "default").unwrap()
    }

    pub fn pool(&self) -> Pool {
        self.slots.pool_with(Settings::default())
    }

    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.pool(), self.target())
    }

    /// The name of a session and its directory, on a path that is hard to quote.
    pub fn session(&self) -> (String, String) {
        let name = fresh("exec");
        let directory = format!("{}/it's a $(touch x) \"dir\"/{name}", self.told("BEAMPIPE_TEST_SSH_WORK"));
        (name, directory)
    }

    /// Puts a script before a program of the login node. Only where no other test is disturbed.
    pub fn put_before(&self, program: &str, script: &str) {
        assert!(self.own.is_some(), "others use this site");
        let path = Path::new(self.told("BEAMPIPE_TEST_SSH_FRONT")).join(program);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        crate::ssh::login::mode(&path, 0o755);
    }

    /// `slurm.sh`, with one of its verbs, as root.
    pub fn slurm(&self, verb: &str) {
        let mut command = Command::new(format!("{SCRIPTS}/slurm.sh"));
        let done = command.arg(verb).envs(&self.variables).output().unwrap();
        assert!(done.status.success(), "slurm.sh {verb}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A command of Slurm's, as its administrator.
    pub fn admin(&self, program: &str, arguments: &[&str]) -> String {
        let conf = self.told("BEAMPIPE_TEST_SLURM_CONF");
        let done = Command::new(program).args(arguments).env("SLURM_CONF", conf).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&done.stderr));
        said
    }

    /// A daemon's process.
    pub fn daemon(&self, name: &str) -> u32 {
        let conf = Path::new(self.told("BEAMPIPE_TEST_SLURM_CONF"));
        let file = conf.parent().unwrap().parent().unwrap().join(format!("run/{name}.pid"));
        let text = std::fs::read_to_string(file).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
}

/// A job that takes its mark, does something, and leaves its code.
pub async fn prepare(cluster: &Cluster, directory: &str, option: &str, body: &str) {
    let script = format!(
        "#!/bin/sh\n#SBATCH --output=job.out\n{option}\nmkdir started || exit 75\n{body}\necho $? >ended.part; mv ended.part ended\n"
    );
    let uploads = [
        Upload { name: "job.sh", bytes: script.as_bytes(), mode: 0o750 },
        Upload { name: "graphs/physical.json", bytes: b"[]", mode: 0o640 },
    ];
    cluster.prepare(directory, &uploads).await.unwrap();
}

/// Ids and states that Slurm's accounting and its queue have under a name.
pub async fn jobs(cluster: &Cluster, name: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in [
        format!("sacct -X -n -P --name='{name}' -S now-1hours -o jobid,state"),
        format!("squeue -h -t all -n '{name}' -o '%i|%T'"),
    ] {
        let said = cluster.run(&line).await.unwrap();
        assert!(said.success() && !said.truncated, "{line}: {said:?}");
        let text = said.stdout_text();
        found.extend(
            text.lines().filter_map(|line| line.split_once('|')).map(|(id, state)| (id.into(), state.into())),
        );
    }
    found
}

/// The jobs of a name once there is one; accounting may be late.
pub async fn jobs_in_time(cluster: &Cluster, name: &str) -> BTreeMap<String, String> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until && jobs(cluster, name).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // A second one would come as late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    jobs(cluster, name).await
}
