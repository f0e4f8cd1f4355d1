use std::io::Write;
use std::process::Stdio;

use beampipe_domain::dependency::{Command, Dependency};

use crate::support::{self, Service, answered};

async fn scrape(service: &Service) -> String {
    let answer = service.http.get(format!("{}/metrics", service.metrics_url)).send().await.unwrap();
    let answer = answered(answer).await;
    assert_eq!(answer.status.as_u16(), 200);
    answer.body
}

/// Runs `promtool check metrics`.
fn promtool(text: &str) {
    let missing = "promtool is needed: apt-get install prometheus (tests/realparts/prometheus.sh install)";
    let mut child = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(missing);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.trim().is_empty(), "{said}");
}

async fn busy(service: &Service) {
    service.execution("p").await;
    let up = Command::SeeUp { dependency: "dim_sim".into(), latency_ms: 1 };
    let done = service.handle.handle::<Dependency>("dim_sim", &service.context(), up).await.unwrap();
    service.api.settle(done.position).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say() {
    let service = support::service().await;
    promtool(&scrape(&service).await);
    busy(&service).await;
    let text = scrape(&service).await;
    promtool(&text);
    promtool(&service.get("/metrics").await.body);
    for family in [
        "beampipe_api_requests_total",
        "beampipe_api_request_duration_seconds",
        "beampipe_jobs_queue_depth",
        "beampipe_jobs_running",
        "beampipe_jobs_queued",
        "beampipe_jobs_oldest_queued_age_seconds",
        "beampipe_jobs_total",
        "beampipe_job_duration_seconds",
        "beampipe_dependency_up",
        "beampipe_executions_active",
        "beampipe_executions_oldest_active_age_seconds",
        "beampipe_executions_total",
        "beampipe_executions_by_external_state",
        "beampipe_sources_processing",
        "beampipe_workflow_pending_sources",
        "beampipe_pending_age_seconds",
        "beampipe_discovery_sources_total",
        "beampipe_scheduler_tick_duration_seconds",
        "beampipe_log_head_position",
        "beampipe_log_append_duration_seconds",
        "beampipe_projection_position",
        "beampipe_projection_lag_seconds",
        "beampipe_projection_lag_events",
        "beampipe_subscriptions_active",
        "beampipe_build_info",
        "beampipe_reconciliation_risk_executions",
        "beampipe_execution_retries_total",
        "beampipe_slurm_ssh_configured",
        "beampipe_deployment_profile_dependency_up",
        "beampipe_executions_inflight",
        "beampipe_execute_duration_seconds",
        "beampipe_slurm_poll_errors_total",
        "beampipe_security_check_failures_total",
        "beampipe_execute_terminal_total",
        "beampipe_slurm_poll_batch_size",
    ] {
        assert!(text.contains(&format!("# TYPE {family} ")), "{family} is missing");
        let has_sample = text.lines().any(|line| line.starts_with(family) && !line.starts_with('#'));
        assert!(has_sample, "{family} has no sample");
    }
    assert!(text.contains("beampipe_executions_active{status=\"pending\"} 1"));
    assert!(text.contains("beampipe_executions_active{status=\"running\"} 0"), "zeros are there");
    assert!(text.contains("beampipe_dependency_up{dependency=\"dim_sim\"} 1"));
    assert!(text.contains("route=\"/deployment-profiles\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_is_an_id_and_none_has_a_brace() {
    let service = support::service().await;
    busy(&service).await;
    let execution = service.get("/executions").await.is(200)["items"][0]["uuid"].as_str().unwrap().to_owned();
    service.get(&format!("/executions/{execution}")).await.is(200);
    let text = scrape(&service).await;
    assert!(text.contains("route=\"/executions/:id\""), "{text}");
    let id = regex::Regex::new(r"[0-9a-f]{8}-[0-9a-f]{4}|[0-9a-f]{32}").unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(!id.is_match(line), "{line}");
        assert!(line.matches('}').count() <= 1 && line.matches('{').count() <= 1, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_make_no_new_series() {
    let service = support::service().await;
    let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    for path in ["/warm", "/sources/1", "/events?x=1"] {
        service.get(path).await;
        answered(service.request(reqwest::Method::PUT, path).send().await.unwrap()).await;
    }
    scrape(&service).await;
    let before = lines(&scrape(&service).await);
    for n in 0..300 {
        service.get(&format!("/nowhere/{n}")).await;
        answered(service.http.get(format!("{}/{n}", service.base_url)).send().await.unwrap()).await;
        let method = reqwest::Method::from_bytes(format!("M{n}").as_bytes()).unwrap();
        answered(service.request(method, "/sources").send().await.unwrap()).await;
    }
    let text = scrape(&service).await;
    // The first of its kind made a series; three hundred made no more.
    assert!(lines(&text) <= before + 40, "{} after {before}", lines(&text));
    assert!(text.contains("route=\"unmatched\""));
    assert!(!text.contains("nowhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_answer_text_whatever_is_accepted_and_need_a_key_unless_public() {
    let service = support::service().await;
    let answer = service.request(reqwest::Method::GET, "/metrics").header("accept", "application/json");
    let answer = answered(answer.send().await.unwrap()).await;
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    answered(service.http.get(service.url("/metrics")).send().await.unwrap()).await.is(401);
    let settings = beampipe::api::Settings { metrics_public: true, ..beampipe::api::Settings::default() };
    let public = support::service_with(settings).await;
    assert_eq!(public.http.get(public.url("/metrics")).send().await.unwrap().status().as_u16(), 200);
}
