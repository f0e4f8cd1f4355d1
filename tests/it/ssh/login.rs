//! The real login node that `tests/realparts/up.sh` started, and credential slots for it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use beampipe::ssh::{Credentials, Pool, Settings, Target};

#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are by up.sh")]
pub fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; bring the servers: tests/realparts/up.sh DIR slurm sshd && . DIR/env")
    })
}

/// A file that sshd.sh made: `client_<kind>`, `host_<kind>.pub`, `known_hosts`.
pub fn made(name: &str) -> PathBuf {
    Path::new(&told("BEAMPIPE_TEST_SSH_DIR")).join(name)
}

pub fn port() -> u16 {
    told("BEAMPIPE_TEST_SSH_PORT").parse().unwrap()
}

pub fn user() -> String {
    told("BEAMPIPE_TEST_SSH_USER")
}

/// The line of known_hosts for one of the server's keys.
pub fn line(kind: &str) -> String {
    let key = fs::read_to_string(made(&format!("host_{kind}.pub"))).unwrap();
    let words: Vec<&str> = key.split(' ').take(2).collect();
    format!("[127.0.0.1]:{} {}\n", port(), words.join(" "))
}

/// The known_hosts of a login node that is reached through these ports of ours.
pub fn known_at(ports: &[u16]) -> String {
    let lines = ports.iter().flat_map(|port| {
        let there = format!("[127.0.0.1]:{port} ");
        ["ed25519", "ecdsa", "rsa"]
            .map(|kind| line(kind).replacen(&format!("[127.0.0.1]:{} ", self::port()), &there, 1))
    });
    lines.collect()
}

/// A slot of one's own: a key of the client, and what it knows of hosts.
pub struct Slots {
    pub directory: tempfile::TempDir,
    /// Where the server's files are.
    server: PathBuf,
}

impl Slots {
    /// With the slot `default`, which works.
    pub fn new() -> Self {
        Self::of(Path::new(&told("BEAMPIPE_TEST_SSH_DIR")))
    }

    /// For the server whose files are in `server`.
    pub fn of(server: &Path) -> Self {
        let slots = Self { directory: tempfile::tempdir().unwrap(), server: server.to_owned() };
        slots.add("default", "ed25519", &fs::read_to_string(server.join("known_hosts")).unwrap());
        slots
    }

    pub fn path(&self, slot: &str, name: &str) -> PathBuf {
        self.directory.path().join("ssh").join(slot).join(name)
    }

    pub fn add(&self, slot: &str, kind: &str, known_hosts: &str) {
        let place = self.path(slot, "");
        fs::create_dir_all(&place).unwrap();
        for directory in [place.as_path(), place.parent().unwrap()] {
            mode(directory, 0o700);
        }
        fs::copy(self.server.join(format!("client_{kind}")), self.path(slot, "private_key")).unwrap();
        mode(&self.path(slot, "private_key"), 0o600);
        fs::write(self.path(slot, "known_hosts"), known_hosts).unwrap();
        mode(&self.path(slot, "known_hosts"), 0o644);
    }

    /// Encrypts the key of a slot.
    pub fn encrypt(&self, slot: &str, phrase: &str) {
        let key = self.path(slot, "private_key");
        keygen(&["-q", "-p", "-P", "", "-N", phrase, "-f", key.to_str().unwrap()]);
    }

    pub fn write(&self, slot: &str, name: &str, text: &str, bits: u32) {
        let path = self.path(slot, name);
        fs::write(&path, text).unwrap();
        mode(&path, bits);
    }

    pub fn credentials(&self) -> Credentials {
        Credentials::new(self.directory.path())
    }

    pub fn pool(&self) -> Pool {
        self.pool_with(Settings::default())
    }

    pub fn pool_with(&self, settings: Settings) -> Pool {
        Pool::new(self.credentials(), settings)
    }
}

pub fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

pub fn keygen(arguments: &[&str]) {
    let done = Command::new("ssh-keygen").args(arguments).output().unwrap();
    assert!(done.status.success(), "ssh-keygen {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn target() -> Target {
    by("default")
}

/// The way in with another slot.
pub fn by(slot: &str) -> Target {
    Target::new("127.0.0.1", port(), &user(), slot).unwrap()
}

/// The server's process for this connection, of the job user.
pub async fn server_process(pool: &Pool, target: &Target) -> u32 {
    let said = pool.run(target, "echo $PPID").await.unwrap();
    said.stdout_text().trim().parse().unwrap()
}

pub fn kill(pid: u32, signal: &str) {
    let done = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(done.success(), "kill {signal} {pid}");
}

/// A directory on the login node that no other test uses.
pub fn scratch() -> String {
    let id = beampipe::clock::Clock::system().id();
    format!("{}/{id}", told("BEAMPIPE_TEST_SSH_WORK"))
}

pub const SECOND: Duration = Duration::from_secs(1);
