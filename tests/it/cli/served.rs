//! A service for verbs that ask one: it keeps its address and its files over a kill.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::run::{Ran, command, ran};

pub struct Served {
    directory: tempfile::TempDir,
    child: Option<Child>,
    address: SocketAddr,
    metrics: SocketAddr,
    pub key: String,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Whether `/ready` answers 200: it listens before it serves.
fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        connection.write_all(b"GET /api/v2/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

impl Served {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut served =
            Self { directory, child: None, address: free(), metrics: free(), key: String::new() };
        served.start_again();
        let said = std::fs::read_to_string(served.said()).unwrap();
        let key = said.split_whitespace().find(|word| word.starts_with("bpk_"));
        served.key = key.unwrap_or_else(|| panic!("the first start printed no key: {said}")).to_owned();
        served
    }

    pub fn start_again(&mut self) {
        let out = File::options().create(true).append(true).open(self.said()).unwrap();
        let listen = [self.address.to_string(), self.metrics.to_string()];
        let mut command = command(self.path());
        command
            .args(["serve", "--state-dir", "state", "--listen", &listen[0], "--metrics-listen", &listen[1]])
            .env("BEAMPIPE_WORK__TICK_SECONDS", "1")
            .env("BEAMPIPE_WORK__GRAPH_DIR", env!("CARGO_MANIFEST_DIR"))
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        while !is_ready(self.address) {
            let said = || std::fs::read_to_string(self.said()).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "the service ended: {}", said());
            assert!(begun.elapsed() < Duration::from_secs(30), "the service is not ready: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn said(&self) -> PathBuf {
        self.path().join("said.log")
    }

    /// A verb that knows this service.
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.path());
        command.args(arguments).env("BEAMPIPE_URL", format!("http://{}", self.address));
        command.env("BEAMPIPE_KEY", &self.key);
        command
    }

    /// Runs a verb to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.verb(arguments).output().unwrap())
    }

    /// Runs a verb that has to do what it is asked, and reads its answer.
    pub fn ask(&self, arguments: &[&str]) -> serde_json::Value {
        let ran = self.run(&[arguments, &["-o", "json"]].concat());
        assert_eq!(ran.status, 0, "{arguments:?}: {ran:?}");
        if ran.out.is_empty() { serde_json::Value::Null } else { ran.json() }
    }

    /// Runs a verb with something on standard input.
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let file = self.path().join("input");
        std::fs::write(&file, input).unwrap();
        ran(self.verb(arguments).stdin(Stdio::from(File::open(file).unwrap())).output().unwrap())
    }

    /// Writes the demo's survey on the archive at `tap`, which nobody works on by itself unless `automatic`.
    pub fn survey(&self, tap: &str, automatic: bool) -> &'static str {
        let parts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/realparts");
        let graph = format!("{parts}/graphs/ingest-scatter.graph");
        let sha256 = beampipe::artifacts::digest(&std::fs::read(&graph).unwrap());
        let yaml = std::fs::read_to_string(format!("{parts}/demo/project.yaml")).unwrap();
        let yaml =
            yaml.replace("@TAP_URL@", tap).replace("@GRAPH_PATH@", &graph).replace("@GRAPH_SHA256@", &sha256);
        let yaml = if automatic { yaml } else { yaml.replace("enabled: true", "enabled: false") };
        std::fs::write(self.path().join("project.yaml"), yaml).unwrap();
        "wallaby_demo"
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.said()).unwrap_or_default());
        }
    }
}
