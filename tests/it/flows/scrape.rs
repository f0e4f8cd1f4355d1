//! A real Prometheus scrapes the service as `prometheus.yml` says, on loopback and more often.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::operators::{self, SIMULATED};
use super::service::{Service, is_terminal};
use crate::backends::daliuge::{Own, SCRIPTS, http};

/// What dashboards and alerts stand on.
const FAMILIES: [&str; 7] = [
    "beampipe_executions_active",
    "beampipe_jobs_queue_depth",
    "beampipe_jobs_oldest_queued_age_seconds",
    "beampipe_dependency_up",
    "beampipe_sources_processing",
    "beampipe_scheduler_tick_duration_seconds_count",
    "beampipe_api_requests_total",
];

/// A Prometheus of a test's own; stopped at its end.
struct Prometheus {
    directory: tempfile::TempDir,
    port: u16,
}

impl Prometheus {
    /// Scrapes `service` with a loopback copy of the `prometheus.yml` that is delivered.
    fn of(service: &Service, key: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = env!("CARGO_MANIFEST_DIR");
        let key_file = directory.path().join("metrics.key");
        std::fs::write(&key_file, key).unwrap();
        let delivered = std::fs::read_to_string(format!("{root}/prometheus.yml")).unwrap();
        // One process here: it is every target of a job.
        let one = |line: &str| match line.split_once("targets: [") {
            Some((start, targets)) => {
                let api = targets.contains(":8080");
                format!(
                    "{start}targets: [\"127.0.0.1:{}\"]",
                    if api { service.port } else { service.metrics_port }
                )
            }
            None => line.to_owned(),
        };
        let copy = delivered
            .lines()
            .map(one)
            .collect::<Vec<_>>()
            .join("\n")
            .replace("/run/secrets/beampipe_metrics_key", key_file.to_str().unwrap())
            .replace("prometheus.rules.yml", &format!("{root}/prometheus.rules.yml"))
            .replace("_interval: 15s", "_interval: 1s");
        let config = directory.path().join("prometheus.yml");
        std::fs::write(&config, copy).unwrap();
        let port = reserve(&directory);
        let prometheus = Self { directory, port };
        let started = prometheus.script(&["start", config.to_str().unwrap()]);
        let said = [started.stdout, started.stderr].concat();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&said));
        prometheus
    }

    fn script(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(format!("{SCRIPTS}/prometheus.sh"))
            .args(arguments)
            .env("REALPARTS_DIR", self.directory.path())
            .env("PROMETHEUS_PORT", self.port.to_string())
            .output()
            .unwrap()
    }

    async fn api(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port);
        let url = reqwest::Url::parse_with_params(&url, query).unwrap();
        let answer: Value = http().get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{answer}");
        answer["data"].clone()
    }

    /// The scrape job, the path and the health of every target.
    async fn targets(&self) -> BTreeSet<(String, String, String)> {
        let data = self.api("targets", &[("state", "active")]).await;
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let targets = data["activeTargets"].as_array().unwrap().iter();
        targets
            .map(|target| {
                let url: reqwest::Url = word(&target["scrapeUrl"]).parse().unwrap();
                (word(&target["labels"]["job"]), url.path().to_owned(), word(&target["health"]))
            })
            .collect()
    }

    /// The values of an instant query.
    async fn values(&self, expression: &str) -> Vec<f64> {
        let data = self.api("query", &[("query", expression)]).await;
        let samples = data["result"].as_array().unwrap().iter();
        samples.map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Waits until a query's values are as `wanted` says; answers how long it took.
    async fn until(&self, expression: &str, bound: Duration, wanted: impl Fn(&[f64]) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let values = self.values(expression).await;
            if wanted(&values) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < bound, "{expression} is {values:?} after {bound:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.script(&["stop"]);
        let release = format!(". {SCRIPTS}/lib.sh; release_ports {}", self.directory.path().display());
        let _ = Command::new("bash").args(["-c", &release]).output();
    }
}

fn reserve(directory: &tempfile::TempDir) -> u16 {
    let script = format!(". {SCRIPTS}/lib.sh; reserve_port {}", directory.path().display());
    let out = Command::new("bash").args(["-c", &script]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

/// A key of role viewer, issued over the API.
async fn viewer_key(service: &Service) -> String {
    let issued = service.post("/api-keys", json!({"name": "prometheus", "scope": "viewer"})).await;
    issued["api_key"].as_str().unwrap().to_owned()
}

/// `promtool check metrics` has nothing to say.
fn promtool(text: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: tests/realparts/prometheus.sh install");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

async fn listener(service: &Service) -> String {
    let url = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    http().get(url).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn prometheus_scrapes_the_process_and_the_api_and_finds_every_family() {
    let service = Service::start(&[]).await;
    operators::simulated(&service, "watched", json!({"latency_ms": 200}), |yaml| yaml);
    let key = viewer_key(&service).await;
    let prometheus = Prometheus::of(&service, &key);
    service.post("/sources", json!({"project_module": "watched", "source_identifier": SIMULATED[0]})).await;
    operators::until(&service, "watched", "at its end", |all| all.len() == 1 && all.iter().all(is_terminal))
        .await;

    let up = |job: &str, path: &str| (job.to_owned(), path.to_owned(), "up".to_owned());
    let both = BTreeSet::from([up("beampipe", "/metrics"), up("beampipe-api", "/api/v2/metrics")]);
    let begun = Instant::now();
    while prometheus.targets().await != both {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", prometheus.targets().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for family in FAMILIES {
        for job in ["beampipe", "beampipe-api"] {
            let has = format!("count({family}{{job=\"{job}\"}})");
            prometheus.until(&has, Duration::from_secs(20), |n| n.iter().any(|n| *n > 0.0)).await;
        }
    }
    let completed = "max(beampipe_executions_total{project_module=\"watched\",status=\"completed\"})";
    prometheus.until(completed, Duration::from_secs(20), |n| n == [1.0]).await;
    // The rules that are delivered record it, once for all replicas and both ways to scrape.
    let recorded = "beampipe:dependency_up:max{dependency=\"tap_casda\"}";
    prometheus.until(recorded, Duration::from_secs(20), |n| n == [1.0]).await;
    prometheus
        .until("max(beampipe:api_errors:ratio5m or vector(0))", Duration::from_secs(5), |n| n == [0.0])
        .await;

    promtool(&listener(&service).await);
    let (status, text) = service.text("/metrics", "application/json").await;
    assert_eq!(status, 200);
    promtool(&text);
}

#[tokio::test]
async fn a_stopped_manager_is_down_in_prometheus_within_a_minute() {
    let own = Own::island();
    let service = Service::start(&[]).await;
    service.survey(own.port(), |yaml| yaml).await;
    let prometheus = Prometheus::of(&service, &viewer_key(&service).await);
    let up = "max(beampipe_dependency_up{dependency=\"dim_demo\"})";
    prometheus.until(up, Duration::from_secs(30), |n| n == [1.0]).await;
    own.call("stop-dim");
    let took = prometheus.until(up, Duration::from_secs(60), |n| n == [0.0]).await;
    println!("down in Prometheus after {took:?}");
    let of_profile = "max(beampipe_deployment_profile_dependency_up{profile=\"demo\",dependency=\"dim\"})";
    assert_eq!(prometheus.values(of_profile).await, [0.0]);
    let events = service.events("/events").await;
    let down = |event: &Value| {
        event["event_type"] == "dependency.down" && event["payload"]["dependency"] == "dim_demo"
    };
    assert!(events.iter().any(down), "{events:#?}");
}

#[tokio::test]
async fn known_label_values_are_zeros_before_anything_happens_and_no_label_is_an_id() {
    let service = Service::start(&[]).await;
    operators::simulated(&service, "quiet", json!({}), |yaml| yaml);
    let text = listener(&service).await;
    for line in [
        "beampipe_jobs_queue_depth 0",
        "beampipe_jobs_running 0",
        "beampipe_jobs_queued{kind=\"discover_batch\"} 0",
        "beampipe_jobs_oldest_queued_age_seconds{kind=\"execute\"} 0",
        "beampipe_jobs_total{kind=\"dim_poll\",status=\"dead_lettered\"} 0",
        "beampipe_job_duration_seconds_count{kind=\"execute\"} 0",
        "beampipe_executions_active{status=\"running\"} 0",
        "beampipe_executions_oldest_active_age_seconds{status=\"pending\"} 0",
        "beampipe_executions_total{project_module=\"quiet\",status=\"failed\"} 0",
        "beampipe_executions_by_external_state{axis=\"daliuge\",state=\"running\"} 0",
        "beampipe_execute_terminal_total{project_module=\"quiet\",status=\"completed\"} 0",
        "beampipe_execution_retries_total{project_module=\"quiet\"} 0",
        "beampipe_executions_inflight{scheduler_name=\"daliuge\"} 0",
        "beampipe_reconciliation_risk_executions 0",
        "beampipe_sources_processing{project_module=\"quiet\",phase=\"pending\"} 0",
        "beampipe_workflow_pending_sources{project_module=\"quiet\"} 0",
        "beampipe_pending_age_seconds{project_module=\"quiet\"} 0",
        "beampipe_discovery_sources_total{project_module=\"quiet\",outcome=\"error\"} 0",
        "beampipe_subscriptions_active{kind=\"sse\"} 0",
        "beampipe_worker_active_leases{pool=\"default\"} 0",
        "beampipe_slurm_ssh_configured 0",
        "beampipe_execution_admitted_total{project_module=\"quiet\",skip_reason=\"queue_full\"} 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
    let id = regex::Regex::new(r"[0-9a-f]{8}-[0-9a-f]{4}|[0-9a-f]{32}").unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(!id.is_match(line), "{line}");
    }
}
