//! The service as an operator runs it: a process with a state directory, that can be killed and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backends::daliuge::{SCRIPTS, told};

pub struct Service {
    directory: tempfile::TempDir,
    child: Option<Child>,
    /// Where this start writes what it says.
    starts: u32,
    pub port: u16,
    pub metrics_port: u16,
    pub key: String,
    http: reqwest::Client,
    settings: Vec<(String, String)>,
}

/// The sources of the sample archive: four finish, one fails, one may not be run, one has no data.
pub const SOURCES: [&str; 7] = [
    "HIPASSJ1318-21",
    "HIPASSJ0039-14",
    "HIPASSJ1305-20",
    "HIPASSJ1321-19",
    "HIPASSJ1245-00",
    "HIPASSJ1250-20",
    "HIPASSJ2359-59",
];

pub const PROJECT: &str = "wallaby_demo";

impl Service {
    /// A service on an empty state directory, ready.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let mut service = Self::new(settings);
        service.start_again(&[]).await;
        service
    }

    /// A service on an empty state directory, not started. On a log that others have begun it prints no key: set theirs.
    pub fn new(settings: &[(&str, &str)]) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            child: None,
            starts: 0,
            port: 0,
            metrics_port: 0,
            key: String::new(),
            http: crate::backends::daliuge::http(),
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    /// Starts the process (again) on the same state directory and waits until it is ready.
    pub async fn start_again(&mut self, more: &[(&str, &str)]) {
        self.spawn(more);
        self.wait_until_ready(more).await;
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self, more: &[(&str, &str)]) {
        assert!(self.child.is_none(), "it runs");
        self.starts += 1;
        // The system hands out a port that is free now; the listener of the service takes it over.
        self.port = free_port();
        self.metrics_port = free_port();
        let said = self.said_path();
        let out = File::create(&said).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_beampipe"));
        command
            .arg("serve")
            .env("BEAMPIPE_STATE_DIR", self.state_dir())
            .env("BEAMPIPE_HTTP__LISTEN", format!("127.0.0.1:{}", self.port))
            .env("BEAMPIPE_METRICS__LISTEN", format!("127.0.0.1:{}", self.metrics_port))
            .env("BEAMPIPE_WORK__TICK_SECONDS", "1")
            .env("BEAMPIPE_WORK__RETRY_BASE_MS", "300")
            .env("BEAMPIPE_WORK__GRAPH_DIR", env!("CARGO_MANIFEST_DIR"))
            .envs(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        self.child = Some(command.spawn().unwrap());
    }

    pub async fn wait_until_ready(&mut self, more: &[(&str, &str)]) {
        let begun = Instant::now();
        loop {
            if let Ok(answer) = self.http.get(self.ready_url()).send().await
                && answer.status() != 503
            {
                break;
            }
            if more.iter().any(|(name, _)| *name == "BEAMPIPE_TEST_CRASH_AT") && !self.is_running() {
                break;
            }
            assert!(self.is_running(), "the service ended:\n{}", self.said());
            assert!(begun.elapsed() < Duration::from_secs(60), "the service is not ready:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.starts == 1 && self.key.is_empty() {
            let said = self.said();
            let key = said.split_whitespace().find(|word| word.starts_with("bpk_"));
            self.key =
                key.unwrap_or_else(|| panic!("the first start printed no API key:\n{said}")).to_owned();
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn said_path(&self) -> PathBuf {
        self.directory.path().join(format!("start-{}.log", self.starts))
    }

    /// What this start has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.said_path()).unwrap_or_default()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/api/v2{path}", self.port)
    }

    /// Where readiness is on every process, whether it answers requests or not.
    pub fn ready_url(&self) -> String {
        format!("http://127.0.0.1:{}/ready", self.metrics_port)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// `kill -9`: no clean-up of any kind.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_for_end(&mut self) {
        let begun = Instant::now();
        while self.is_running() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the service goes on:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child = None;
    }

    /// An orderly stop, as by systemd.
    pub async fn stop(&mut self) {
        self.signal("-TERM");
        self.wait_for_end().await;
    }

    /// Sends a signal to this process, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(done.success(), "kill {signal}");
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(self.url(path)).bearer_auth(&self.key).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "GET {path}: {status} {text}\n{}", self.said());
        serde_json::from_str(&text).unwrap()
    }

    /// The bytes of an answer.
    pub async fn text(&self, path: &str, accept: &str) -> (u16, String) {
        let request = self.http.get(self.url(path)).bearer_auth(&self.key).header("accept", accept);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&self.key)
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.request(reqwest::Method::POST, path).json(&body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "POST {path} {body}: {status} {text}\n{}", self.said());
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Uploads the demo's survey, changed by `change`, and a profile on the manager at `dim_port`.
    pub async fn survey(&self, dim_port: u16, change: impl Fn(String) -> String) {
        self.configure(change).await;
        let profile = std::fs::read_to_string(format!("{SCRIPTS}/demo/profile.json")).unwrap();
        let profile = profile
            .replace("@TM_URL@", &told("BEAMPIPE_TEST_TM_URL"))
            .replace("@DIM_PORT@", &dim_port.to_string());
        self.post("/deployment-profiles", serde_json::from_str(&profile).unwrap()).await;
    }

    /// A profile under the name that the demo's survey asks for, whose runs are simulated and last `run_ms`.
    pub async fn simulate(&self, run_ms: u64) {
        let profile = json!({
            "name": "demo", "project_module": PROJECT, "is_default": true,
            "deployment": {"kind": "simulated", "latency_ms": run_ms},
        });
        self.post("/deployment-profiles", profile).await;
    }

    /// Uploads the demo's survey, changed by `change`.
    pub async fn configure(&self, change: impl Fn(String) -> String) {
        let yaml = survey_yaml();
        let request = self.request(reqwest::Method::POST, "/project-configs");
        let answer =
            request.header("content-type", "application/x-yaml").body(change(yaml)).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 201, "{text}");
    }

    pub async fn register(&self, identifiers: &[&str]) {
        for identifier in identifiers {
            let body = json!({"project_module": PROJECT, "source_identifier": identifier});
            self.post("/sources", body).await;
        }
    }

    pub async fn executions(&self) -> Vec<Value> {
        let page = self.get(&format!("/executions?project_module={PROJECT}&items_per_page=500")).await;
        page["items"].as_array().unwrap().clone()
    }

    /// Waits until `done` says so of all executions.
    pub async fn until(&self, what: &str, bound: Duration, done: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let executions = self.executions().await;
            if done(&executions) {
                return executions;
            }
            if begun.elapsed() > bound {
                let of = |e: &Value| format!("{} {} {}", e["status"], e["why"]["text"], e["last_error"]);
                let executions: Vec<String> = executions.iter().map(of).collect();
                let jobs = self.get("/jobs?limit=50").await;
                let of = |j: &Value| {
                    format!("{} {} {} {}", j["kind"], j["status"], j["attempts"], j["last_error"])
                };
                let jobs: Vec<String> = jobs.as_array().unwrap().iter().map(of).collect();
                panic!("not {what} after {bound:?}: {executions:#?} {jobs:#?}\n{}", tail(&self.said()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn events(&self, path: &str) -> Vec<Value> {
        self.get(&format!("{path}?limit=1000&order=asc")).await.as_array().unwrap().clone()
    }

    /// The events of a type, in their order.
    pub async fn events_of(&self, kind: &str) -> Vec<Value> {
        let page = self.get(&format!("/events?type={kind}&limit=5000&order=asc")).await;
        page.as_array().unwrap().clone()
    }

    /// Whether the hash chains of the log hold, by the command an auditor would use.
    pub fn verify_log(&self) {
        let done = self.command(&["log", "verify"]);
        assert!(done.status.success(), "log verify: {}", words(&done));
    }

    /// The command line, on this service's files.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_beampipe"))
            .args(arguments)
            .envs(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .env("BEAMPIPE_STATE_DIR", self.state_dir())
            .env("BEAMPIPE_URL", format!("http://127.0.0.1:{}", self.port))
            .env("BEAMPIPE_KEY", &self.key)
            .output()
            .unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("service-{}", self.port));
            let _ = std::fs::create_dir_all(&kept);
            for n in 1..=self.starts {
                let name = format!("start-{n}.log");
                let _ = std::fs::copy(self.directory.path().join(&name), kept.join(name));
            }
            eprintln!("what the service said is in {}", kept.display());
        }
    }
}

pub fn words(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn status_is<'a>(wanted: &'a str) -> impl Fn(&&Value) -> bool + 'a {
    move |execution| execution["status"] == wanted
}

pub fn is_terminal(execution: &Value) -> bool {
    ["completed", "failed", "cancelled", "not_submitted"].iter().any(|word| execution["status"] == *word)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn tail(text: &str) -> &str {
    let start = text.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
    &text[start..]
}

/// The demo's survey, as it is uploaded.
pub fn survey_yaml() -> String {
    let graph = format!("{SCRIPTS}/graphs/ingest-scatter.graph");
    let sha256 = beampipe::artifacts::digest(&std::fs::read(&graph).unwrap());
    let yaml = std::fs::read_to_string(format!("{SCRIPTS}/demo/project.yaml")).unwrap();
    yaml.replace("@TAP_URL@", &told("BEAMPIPE_TEST_TAP_URL"))
        .replace("@GRAPH_PATH@", &graph)
        .replace("@GRAPH_SHA256@", &sha256)
}

/// The sessions that a manager shows, by id.
pub async fn sessions_on(dim_port: u16) -> Vec<String> {
    let http = crate::backends::daliuge::http();
    let url = format!("http://127.0.0.1:{dim_port}/api/sessions");
    let sessions: Value = http.get(url).send().await.unwrap().json().await.unwrap();
    sessions.as_array().unwrap().iter().map(|s| s["sessionId"].as_str().unwrap().to_owned()).collect()
}
