//! The configuration: read once in `main` from a TOML file, then the environment (`BEAMPIPE_…`, sections divided by two
//! underscores), then flags; passed down in sections. Nobody else reads the environment.
//!
//! No value is a secret: a secret is a reference to one (`{env = "…"}` or `{file = "…"}`). `beampipe config explain`
//! prints each value with where it comes from.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use crate::artifacts;
use crate::engine::Place;
use crate::outgoing::Outgoing;
use crate::secrets::SecretRef;

mod alerts;
mod check;
mod ssh;
pub use alerts::Alerts;
use check::has_password;
pub use ssh::Ssh;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this process does: `api`, `scheduler`, `worker` in any mix. All of them share the log.
    pub roles: BTreeSet<Role>,
    /// Where the log, the read models and the artifacts are kept unless told otherwise.
    pub state_dir: PathBuf,
    pub log: Log,
    pub artifacts: Artifacts,
    pub http: Http,
    pub metrics: Metrics,
    pub auth: Auth,
    pub work: Work,
    pub dependencies: Dependencies,
    /// Requests to addresses that people configure: receivers of alerts.
    pub outgoing: Outgoing,
    pub alerts: Alerts,
    pub ssh: Ssh,
    pub telemetry: Telemetry,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Answers requests.
    Api,
    /// Says what is to be done; of several, one acts and the others stand by.
    Scheduler,
    /// Does it.
    Worker,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `sqlite:<path>`, `postgres://user@host[:port]/database[?schema=…&sslmode=…&sslrootcert=…]`, or
    /// `esdb://[user@]host[:port][,host[:port]…][?tls=…&tlsCaFile=…]`; empty: `events.sqlite` in the state directory.
    pub url: String,
    /// The user of an EventStoreDB server, if its address does not name one.
    pub username: Option<String>,
    /// The password of the log's server.
    pub password: Option<SecretRef>,
    /// The file of this process's index of an EventStoreDB log. Absent: `log-index.sqlite` in the state directory.
    pub index: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Artifacts {
    /// `file:<path>` or `s3://<bucket>[/<prefix>]`; empty: `artifacts` in the state directory. Processes that share a log
    /// share this place.
    pub url: String,
    /// The S3 server, such as `https://s3.example.org`, with the bucket as the first part of its paths; absent: AWS.
    pub endpoint: Option<String>,
    pub region: String,
    /// Whether the endpoint may be `http:`.
    pub allow_http: bool,
    /// Both or none; with none, the role of the machine (AWS instance metadata).
    pub access_key_id: Option<SecretRef>,
    pub secret_access_key: Option<SecretRef>,
    /// How often a small object is written and read, in seconds, to see whether the place can be used.
    pub probe_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub listen: SocketAddr,
    /// The longest request body, in bytes.
    pub max_body_bytes: usize,
    /// How long open requests may take to end when the service stops, in seconds.
    pub drain_seconds: u64,
    /// Where people reach this API, such as `https://beampipe.example.org`: what links in messages begin with. Absent:
    /// links are paths.
    pub public_url: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The listener that Prometheus scrapes without a key: loopback unless told otherwise.
    pub listen: SocketAddr,
    /// Whether `/api/v2/metrics` answers without a key.
    pub public: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    pub access_token_minutes: i64,
    pub refresh_token_hours: i64,
    /// Failed logins a minute for one user name and for one address, before 429.
    pub login_attempts_per_minute: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Work {
    /// What the worker is called in the list of workers; empty: the host's name.
    pub instance_name: String,
    pub pool: String,
    /// What this worker can do: `tap`, `dim`, `slurm:<profile>` for one profile, `slurm` for every one.
    pub capabilities: Vec<String>,
    /// Jobs of one lane (a kind that waits for one dependency) and of one project at once.
    pub concurrency: usize,
    /// Executions watched at once; a watch mostly sleeps.
    pub watch_concurrency: usize,
    /// A job whose worker was silent for so long is taken over, in seconds.
    pub lease_seconds: u64,
    pub heartbeat_seconds: u64,
    /// A scheduler that was silent for so long is replaced by one that stands by, in seconds.
    pub scheduler_lease_seconds: u64,
    /// How often the scheduler looks for work, in seconds.
    pub tick_seconds: u64,
    pub max_attempts: u32,
    /// The first wait before a retry, in milliseconds; it doubles, jittered, up to five minutes.
    pub retry_base_ms: u64,
    /// Executions live at once in the whole installation; absent: no bound.
    pub max_in_flight: Option<usize>,
    /// A queue this old, in seconds, makes the service degraded.
    pub queue_age_limit_seconds: u64,
    /// How often a session on a DIM is looked at unless the project says otherwise, in milliseconds.
    pub dim_poll_ms: u64,
    /// The bound on one request to a DIM, in seconds; an answer later than this counts as lost.
    pub dim_timeout_seconds: u64,
    pub translator_timeout_seconds: u64,
    /// A login node is asked for its jobs no more often than this, in seconds, unless its profiles say otherwise.
    pub slurm_poll_floor_seconds: u32,
    /// How late accounting may know a job; a submission without an answer is looked for this long, in seconds.
    pub slurm_settle_seconds: u64,
    /// After so many failures in a row to reach a login node, nothing more is admitted to its profiles until it answers.
    pub slurm_pause_after_failures: u32,
    /// How long a stop waits for running jobs before it hands them back, in seconds.
    pub drain_seconds: u64,
    /// Where the relative graph paths of project configurations start.
    pub graph_dir: PathBuf,
    /// Where the sessions of profiles of kind `simulated` live; processes that share them name one directory. Absent:
    /// `simulated` in the state directory.
    pub simulated_dir: Option<PathBuf>,
    /// The Translator Manager for profiles that name none.
    pub tm_url: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dependencies {
    pub probe_seconds: u64,
    pub probe_timeout_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// A filter such as `info` or `beampipe=debug,warn`.
    pub filter: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for Artifacts {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: None,
            region: "us-east-1".into(),
            allow_http: false,
            access_key_id: None,
            secret_access_key: None,
            probe_seconds: 15,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body_bytes: 4 * 1024 * 1024,
            drain_seconds: 5,
            public_url: None,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), public: false }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { access_token_minutes: 60, refresh_token_hours: 24 * 7, login_attempts_per_minute: 10 }
    }
}

impl Default for Work {
    fn default() -> Self {
        Self {
            instance_name: String::new(),
            pool: "default".into(),
            capabilities: vec!["tap".into(), "dim".into(), "slurm".into()],
            concurrency: 8,
            watch_concurrency: 2000,
            lease_seconds: 30,
            heartbeat_seconds: 5,
            scheduler_lease_seconds: 10,
            tick_seconds: 5,
            max_attempts: 5,
            retry_base_ms: 2000,
            max_in_flight: None,
            queue_age_limit_seconds: 900,
            dim_poll_ms: 5000,
            dim_timeout_seconds: 30,
            translator_timeout_seconds: 120,
            slurm_poll_floor_seconds: 10,
            slurm_settle_seconds: 240,
            slurm_pause_after_failures: 4,
            drain_seconds: 10,
            graph_dir: PathBuf::from("."),
            simulated_dir: None,
            tm_url: None,
        }
    }
}

impl Default for Dependencies {
    fn default() -> Self {
        Self { probe_seconds: 15, probe_timeout_seconds: 10 }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { filter: "info".into(), format: "text".into() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: BTreeSet::from([Role::Api, Role::Scheduler, Role::Worker]),
            state_dir: PathBuf::from("beampipe-state"),
            log: Log::default(),
            artifacts: Artifacts::default(),
            http: Http::default(),
            metrics: Metrics::default(),
            auth: Auth::default(),
            work: Work::default(),
            dependencies: Dependencies::default(),
            outgoing: Outgoing::default(),
            alerts: Alerts::default(),
            ssh: Ssh::default(),
            telemetry: Telemetry::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration cannot be read")]
    Read(#[source] Box<figment::Error>),
    #[error("{field}: {detail}")]
    Invalid { field: &'static str, detail: String },
}

/// The layers of the configuration: defaults, the file, the environment.
///
/// `BEAMPIPE_URL` and `BEAMPIPE_KEY` belong to the command line's client and not to the service.
pub fn layers(file: Option<&Path>) -> Figment {
    let mut layers = Figment::from(Serialized::defaults(Config::default()));
    if let Some(file) = file {
        layers = layers.merge(Toml::file_exact(file));
    }
    layers.merge(
        Env::prefixed("BEAMPIPE_")
            .ignore(&["url", "key", "config"])
            .filter(|key| !key.starts_with("test_"))
            .split("__"),
    )
}

impl Config {
    /// Reads and checks the configuration.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let config: Self = layers(file).extract().map_err(|error| ConfigError::Read(Box::new(error)))?;
        config.check()?;
        Ok(config)
    }

    /// Where the log is.
    pub fn log_place(&self) -> Place {
        match self.log.url.as_str() {
            "" => Place::Sqlite(self.state_dir.join("events.sqlite")),
            // What `check` has let pass can be read.
            address => match Place::parse(address) {
                Ok(Place::EventStore { address, index: None }) => {
                    let index = || self.state_dir.join("log-index.sqlite");
                    Place::EventStore { address, index: Some(self.log.index.clone().unwrap_or_else(index)) }
                }
                Ok(place) => place,
                Err(_) => Place::Sqlite(address.into()),
            },
        }
    }

    /// Where artifacts are; an error says what is wrong with `artifacts.url`.
    pub fn artifacts_place(&self) -> Result<artifacts::Place, String> {
        match self.artifacts.url.as_str() {
            "" => Ok(artifacts::Place::Directory(self.state_dir.join("artifacts"))),
            url => url.parse(),
        }
    }

    /// Whether no other process can append to this log: whoever worked on it before is gone.
    pub fn alone_on_the_log(&self) -> bool {
        self.log_place().is_embedded()
    }

    /// The key that what people send as plain text is sealed with.
    pub fn sealing_key(&self) -> PathBuf {
        self.state_dir.join("sealing.key")
    }

    pub fn read_models_dir(&self) -> PathBuf {
        self.state_dir.join("read-models")
    }
}

/// An address without the password that it should not have.
fn without_password(address: &str) -> String {
    if !has_password(address) {
        return address.to_owned();
    }
    let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
    format!("{scheme}://[REDACTED]")
}

/// Every value with where it comes from, one a line.
pub fn explain(file: Option<&Path>) -> Result<Vec<(String, String, String)>, ConfigError> {
    let layers = layers(file);
    let config: Config = layers.extract().map_err(|error| ConfigError::Read(Box::new(error)))?;
    let tree = serde_json::to_value(&config).expect("the configuration is plain data");
    let mut lines = Vec::new();
    walk(&layers, "", &tree, &mut lines);
    Ok(lines)
}

fn walk(layers: &Figment, path: &str, value: &serde_json::Value, lines: &mut Vec<(String, String, String)>) {
    if let serde_json::Value::Object(fields) = value {
        for (name, value) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(layers, &path, value, lines);
        }
        return;
    }
    let source = layers.find_metadata(path).map_or_else(
        || "default".to_owned(),
        |found| match (&found.source, found.name.contains("Config")) {
            (Some(figment::Source::File(file)), _) => file.display().to_string(),
            (_, true) => "default".to_owned(),
            _ => found.name.to_string(),
        },
    );
    let shown = match value {
        serde_json::Value::String(text) => serde_json::Value::String(without_password(text)).to_string(),
        other => other.to_string(),
    };
    lines.push((path.to_owned(), shown, source));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("beampipe.toml");
        std::fs::write(&file, "[work]\nconcurency = 3\n").unwrap();
        let error = Config::load(Some(&file)).unwrap_err();
        let ConfigError::Read(cause) = error else { panic!("{error}") };
        assert!(cause.to_string().contains("concurency"), "{cause}");
    }

    #[test]
    fn a_secret_is_named_in_the_file_and_never_written_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("beampipe.toml");
        let text = "[artifacts]\nurl = \"s3://b\"\naccess_key_id = {env = \"ID\"}\nsecret_access_key = {file = \"/s\"}\n";
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!(config.artifacts.access_key_id, Some(SecretRef::Env("ID".into())));
        std::fs::write(&file, text.replace("{env = \"ID\"}", "\"the key itself\"")).unwrap();
        Config::load(Some(&file)).unwrap_err();
    }

    #[test]
    fn explain_says_where_a_value_comes_from() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("beampipe.toml");
        std::fs::write(&file, "[work]\nconcurrency = 3\n").unwrap();
        let lines = explain(Some(&file)).unwrap();
        let line = lines.iter().find(|(name, ..)| name == "work.concurrency").unwrap();
        assert_eq!((line.1.as_str(), line.2.ends_with("beampipe.toml")), ("3", true));
        let line = lines.iter().find(|(name, ..)| name == "http.listen").unwrap();
        assert_eq!(line.2, "default");
    }
}
