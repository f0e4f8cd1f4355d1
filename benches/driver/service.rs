//! The service as a process of its own, as an operator starts it, on loopback and in a directory of the bench.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::{Client, Target};
use crate::{Settings, story};

/// A port that nobody has now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running service; it ends with this value.
pub struct Service {
    child: Child,
    pub target: Target,
    pub metrics: SocketAddr,
    /// From the start of the process to its first `ready`.
    pub ready_after: Duration,
}

fn key_file(state: &Path) -> PathBuf {
    state.join("bench.key")
}

impl Service {
    /// Starts `beampipe serve` on `state` and waits until it is ready, for as long as `patience`.
    ///
    /// The key is printed at the first start only; it is kept beside the state for the next one.
    pub async fn start(settings: &Settings, state: &Path, patience: Duration) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let errors = std::fs::File::create(state.join("serve.log"))?;
        let started = Instant::now();
        let mut child = Command::new(&settings.beampipe)
            .arg("serve")
            .arg("--state-dir")
            .arg(state)
            .env("BEAMPIPE_HTTP__LISTEN", address.to_string())
            .env("BEAMPIPE_METRICS__LISTEN", metrics.to_string())
            .env("BEAMPIPE_WORK__TICK_SECONDS", "1")
            .env("BEAMPIPE_TELEMETRY__FILTER", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", settings.beampipe.display()))?;
        let stdout = child.stdout.take().context("the service has an output")?;
        let (sender, mut keys) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, key)) = line.split_once("API key:") {
                    let _ = sender.send(key.trim().to_owned());
                }
            }
        });
        let open = Target { address, key: String::new() };
        loop {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(state.join("serve.log")).unwrap_or_default();
                bail!("the service ended with {status}\n{log}");
            }
            if let Ok(mut client) = Client::connect(&open).await
                && let Ok(answer) = client.get("/api/v2/ready").await
                && answer.status == 200
            {
                break;
            }
            ensure!(started.elapsed() < patience, "the service was not ready within {patience:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ready_after = started.elapsed();
        let kept = key_file(state);
        let key = match std::fs::read_to_string(&kept) {
            Ok(key) => key,
            Err(_) => {
                let key = tokio::time::timeout(Duration::from_secs(5), keys.recv()).await;
                let key = key.ok().flatten().context("the service printed no API key at its first start")?;
                std::fs::write(&kept, &key)?;
                key
            }
        };
        Ok(Self { child, target: Target { address, key }, metrics, ready_after })
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(&self.target).await
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("the service runs")?;
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        tokio::time::timeout(Duration::from_secs(60), self.child.wait())
            .await
            .context("it does not stop")??;
        Ok(())
    }

    /// Uploads the bench's project and its profile.
    pub async fn set_up_project(&self, project: &Project) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        let profile = json!({
            "name": "bench",
            "project_module": story::PROJECT,
            "is_default": true,
            "max_concurrent_executions": 1000,
            "translation": {"algo": "metis", "num_par": 1, "num_islands": 1},
            "deployment": {"kind": "simulated", "latency_ms": 100},
        });
        let yaml = project.yaml()?;
        let answer = client.post_as("/api/v2/project-configs", "application/x-yaml", yaml.as_bytes()).await?;
        ensure!(answer.status < 300, "the project is refused: {}", answer.text());
        let answer = client.post("/api/v2/deployment-profiles", &profile).await?;
        ensure!(answer.status < 300, "the profile is refused: {}", answer.text());
        Ok(())
    }

    /// Registers `count` enabled sources in one request; gives their names.
    pub async fn register(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = (0..count).map(|number| format!("HIPASSJ{number:04}-21")).collect();
        let items: Vec<Value> = names
            .iter()
            .map(|name| json!({"project_module": story::PROJECT, "source_identifier": name, "enabled": true}))
            .collect();
        let answer = self.client().await?.post("/api/v2/sources/bulk", &json!({"items": items})).await?;
        ensure!(answer.status < 300, "the sources are refused: {}", answer.text());
        Ok(names)
    }

    /// Asks for the project's events until there are at least `wanted` of a type.
    pub async fn wait_for_events(&self, event_type: &str, wanted: usize) -> anyhow::Result<()> {
        let path =
            format!("/api/v2/projects/{}/events?type={event_type}&order=asc&limit=1000", story::PROJECT);
        let mut client = self.client().await?;
        let started = Instant::now();
        loop {
            let answer = client.get(&path).await?;
            ensure!(answer.status == 200, "{path}: {}", answer.text());
            let seen = answer.json()?.as_array().map_or(0, Vec::len);
            if seen >= wanted {
                return Ok(());
            }
            ensure!(started.elapsed() < Duration::from_secs(120), "{seen} of {wanted} events {event_type}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What the bench's project does by itself.
#[derive(Default)]
pub struct Project {
    /// Where to discover; without it nothing is discovered by itself.
    pub tap: Option<String>,
    /// Whether what was discovered is executed by itself.
    pub execute: bool,
}

impl Project {
    fn yaml(&self) -> anyhow::Result<String> {
        let graph =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/realparts/graphs/ingest-scatter.graph");
        let graph = graph.canonicalize().with_context(|| graph.display().to_string())?;
        let digest = sha2::Sha256::digest(std::fs::read(&graph)?);
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!(
            r#"apiVersion: beampipe.dev/v2
kind: ProjectConfig
metadata: {{id: {module}, description: what the bench measures with}}
definitions:
  transforms:
    digits: {{kind: extract_digits}}
source_identity:
  canonical: source_identifier
  template_vars:
    source_identifier: {{from: canonical}}
adapters:
  required: [casda]
  casda_tap_url: "{tap}"
discovery:
  queries:
    - name: visibilities
      adapter: casda
      template: "SELECT obs_id, filename FROM ivoa.obscore WHERE filename LIKE '{{source_identifier}}%'"
  prepare_metadata:
    field_map:
      sbid: {{from: obs_id, transform: digits}}
      dataset_id: {{from: filename}}
manifest:
  group_by: [source_identifier, sbid]
graph:
  path: "{graph}"
  sha256: "{sha256}"
automation:
  discovery:
    enabled: {discover}
    stale_after_hours: 87600
    tick_discovery_source_limit: 1000
    tick_discovery_batch_limit: 100
    concurrent_discovery_batch_limit: 100
    queue_max_depth: 1000
  execution:
    enabled: {execute}
    archive_name: casda
    deployment_profile_name: bench
    max_sources_per_execution: 1
    min_sources_to_trigger: 1
    tick_execution_source_limit: 1000
    tick_execution_run_limit: 1000
    concurrent_execution_run_limit: 1000
"#,
            module = story::PROJECT,
            tap = self.tap.as_deref().unwrap_or("http://127.0.0.1:9/tap"),
            graph = graph.display(),
            discover = self.tap.is_some(),
            execute = self.execute,
        ))
    }
}
