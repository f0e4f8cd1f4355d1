//! **Metrics**: every family that this process counts by itself, each declared here with its HELP.
//!
//! What is folded from the log (queue depth, execution counts, …) is not counted here: it comes from the read models at a
//! scrape and is written beside these by [`projected`]. A family names every label value it knows with a zero from the
//! start; no label is an id; no label value has a `}`, which simple scrapers trip over. Route labels are matched routes, so
//! unknown paths make no new series.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub mod exposition;
pub mod measured;
pub mod projected;

/// The media type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The steps of an execution that `beampipe_execute_duration_seconds` tells apart.
pub const PHASES: &[&str] = &["stage_and_manifest", "submit"];
/// What the scheduler's ticks are called.
pub const TICK_KINDS: &[&str] = &["reconcile", "discovery", "execution"];
/// Why a poll of Slurm failed.
pub const SLURM_POLL_ERRORS: &[&str] = &["connect", "squeue", "sacct", "parse"];
/// What is checked of who asks.
pub const SECURITY_CHECKS: &[&str] = &["token", "login", "role", "rate_limit", "refresh_reuse"];
/// How an event endpoint is followed.
pub const SUBSCRIPTION_KINDS: &[&str] = &["sse", "ndjson"];

/// The route of requests that match none.
const UNMATCHED: &str = "unmatched";

const REQUEST_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const APPEND_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
const WORK_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// What a family is, for the reference in `docs/`.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: String,
    pub kind: &'static str,
    pub labels: Vec<String>,
    pub help: String,
}

/// The families of this process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
    /// Requests to the API, by matched route.
    pub api_requests_total: IntCounterVec,
    /// How long the API took to answer.
    pub api_request_duration_seconds: HistogramVec,
    /// How long jobs took.
    pub job_duration_seconds: HistogramVec,
    /// How long the scheduler's ticks took.
    pub scheduler_tick_duration_seconds: HistogramVec,
    /// How long an append to the log took, until it was durable.
    pub log_append_duration_seconds: HistogramVec,
    /// The last position of the log.
    pub log_head_position: IntGaugeVec,
    /// Up to where a read model has come.
    pub projection_position: IntGaugeVec,
    /// How far a read model is behind, in time.
    pub projection_lag_seconds: GaugeVec,
    /// How far a read model is behind, in positions of a log whose positions are dense.
    pub projection_lag_events: IntGaugeVec,
    /// How long the read models took to reach the log's end after the start.
    pub bootstrap_seconds: GaugeVec,
    /// How many events that took.
    pub bootstrap_events: IntGaugeVec,
    /// Event streams that are followed now.
    pub subscriptions_active: IntGaugeVec,
    /// How long the steps of an execution took.
    pub execute_duration_seconds: HistogramVec,
    /// Decisions of admission, by the reason why no more was admitted; `none` when everything was.
    pub execution_admitted_total: IntCounterVec,
    /// Polls of Slurm that failed.
    pub slurm_poll_errors_total: IntCounterVec,
    /// Executions that one poll of Slurm asked for.
    pub slurm_poll_batch_size: Histogram,
    /// Open SSH sessions to login nodes.
    pub slurm_ssh_sessions_active: IntGaugeVec,
    /// Whether credentials for a login node are configured.
    pub slurm_ssh_configured: IntGauge,
    /// Tokens, logins and roles that were refused.
    pub security_check_failures_total: IntCounterVec,
    /// Whether this process holds the scheduler's lease.
    pub scheduler_acting: IntGauge,
    /// Leases that the workers of a pool hold.
    pub worker_active_leases: IntGaugeVec,
    /// The age of the oldest heartbeat of a live worker of a pool.
    pub worker_heartbeat_age_seconds: GaugeVec,
    /// Up to which time this process has judged alert rules; absent until it did.
    pub alerts_judged_through: IntGaugeVec,
    /// Always 1; the labels say what is running.
    pub build_info: IntGaugeVec,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[derive(Default)]
struct Registrar {
    registry: Registry,
    described: RefCell<Vec<Described>>,
}

impl Registrar {
    fn keep<C: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        family: Result<C, prometheus::Error>,
    ) -> C {
        let family = family.expect("names and labels are constants");
        self.described.borrow_mut().extend(family.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            kind,
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
        self.registry.register(Box::new(family.clone())).expect("every family is named once");
        family
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn reals(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.keep("gauge", GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep("histogram", HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// `engine` is the log's, such as `sqlite`.
    pub fn new(version: &str, engine: &'static str) -> Arc<Self> {
        let r = Registrar::default();
        let metrics = Self {
            api_requests_total: r.counters(
                "beampipe_api_requests_total",
                "Requests to the API, by matched route.",
                &["method", "route", "status"],
            ),
            api_request_duration_seconds: r.histograms(
                "beampipe_api_request_duration_seconds",
                "Time until the API began to answer, by matched route.",
                &["method", "route", "status"],
                REQUEST_SECONDS,
            ),
            job_duration_seconds: r.histograms(
                "beampipe_job_duration_seconds",
                "Time that a job took in this process, by kind.",
                &["kind"],
                WORK_SECONDS,
            ),
            scheduler_tick_duration_seconds: r.histograms(
                "beampipe_scheduler_tick_duration_seconds",
                "Time that a tick of the scheduler took, by kind.",
                &["tick_kind"],
                REQUEST_SECONDS,
            ),
            log_append_duration_seconds: r.histograms(
                "beampipe_log_append_duration_seconds",
                "Time until an append to the log was durable.",
                &["engine"],
                APPEND_SECONDS,
            ),
            log_head_position: r.gauges(
                "beampipe_log_head_position",
                "The last position of the log.",
                &["engine"],
            ),
            projection_position: r.gauges(
                "beampipe_projection_position",
                "The position up to which a read model contains the log.",
                &["projection"],
            ),
            projection_lag_seconds: r.reals(
                "beampipe_projection_lag_seconds",
                "The age of the oldest event that a read model does not contain; 0 when it has caught up.",
                &["projection"],
            ),
            projection_lag_events: r.gauges(
                "beampipe_projection_lag_events",
                "Events that a read model does not contain yet, on a log whose positions are dense.",
                &["projection"],
            ),
            bootstrap_seconds: r.reals(
                "beampipe_bootstrap_seconds",
                "Time from opening the read models at the start until all of them had reached the end of the log; absent until then.",
                &[],
            ),
            bootstrap_events: r.gauges(
                "beampipe_bootstrap_events",
                "Events that were read until all read models had reached the end of the log: those since the oldest checkpoint, or all.",
                &[],
            ),
            subscriptions_active: r.gauges(
                "beampipe_subscriptions_active",
                "Event streams that are followed at the moment.",
                &["kind"],
            ),
            execute_duration_seconds: r.histograms(
                "beampipe_execute_duration_seconds",
                "Time that the steps of an execution took in this process, by phase.",
                &["phase"],
                WORK_SECONDS,
            ),
            execution_admitted_total: r.counters(
                "beampipe_execution_admitted_total",
                "Decisions of automatic admission, by the reason why no more was admitted (none: everything was).",
                &["project_module", "skip_reason"],
            ),
            slurm_poll_errors_total: r.counters(
                "beampipe_slurm_poll_errors_total",
                "Polls of Slurm that failed, by reason.",
                &["reason"],
            ),
            slurm_poll_batch_size: r.keep(
                "histogram",
                Histogram::with_opts(
                HistogramOpts::new(
                    "beampipe_slurm_poll_batch_size",
                    "Executions that one poll of Slurm asked for.",
                )
                .buckets(vec![1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0]),
            )),
            slurm_ssh_sessions_active: r.gauges(
                "beampipe_slurm_ssh_sessions_active",
                "Open SSH sessions, by login node.",
                &["login_node"],
            ),
            slurm_ssh_configured: r.keep("gauge", IntGauge::new(
                "beampipe_slurm_ssh_configured",
                "Whether credentials for a Slurm login node are configured.",
            )),
            security_check_failures_total: r.counters(
                "beampipe_security_check_failures_total",
                "Tokens, logins and roles that were refused, by what was checked.",
                &["check"],
            ),
            scheduler_acting: r.keep("gauge", IntGauge::new(
                "beampipe_scheduler_acting",
                "Whether this process acts as scheduler: 1 in one process of an installation, 0 in the others.",
            )),
            worker_active_leases: r.gauges(
                "beampipe_worker_active_leases",
                "Leases that the live workers of a pool hold.",
                &["pool"],
            ),
            worker_heartbeat_age_seconds: r.reals(
                "beampipe_worker_heartbeat_age_seconds",
                "The age of the oldest heartbeat among the live workers of a pool.",
                &["pool"],
            ),
            alerts_judged_through: r.gauges(
                "beampipe_alerts_judged_through_timestamp_seconds",
                "The last point of time at which this process judged alert rules; absent until it did. The acting scheduler's moves every 15 s.",
                &[],
            ),
            build_info: r.gauges(
                "beampipe_build_info",
                "Always 1; the labels say what is running.",
                &["version", "log_engine"],
            ),
            described: r.described.into_inner(),
            registry: r.registry,
        };
        metrics.start_at_zero(version, engine);
        Arc::new(metrics)
    }

    fn start_at_zero(&self, version: &str, engine: &str) {
        self.build_info.with_label_values(&[version, engine]).set(1);
        self.log_head_position.with_label_values(&[engine]);
        self.log_append_duration_seconds.with_label_values(&[engine]);
        for kind in beampipe_domain::job::Kind::ALL {
            self.job_duration_seconds.with_label_values(&[kind.as_str()]);
        }
        for kind in TICK_KINDS {
            self.scheduler_tick_duration_seconds.with_label_values(&[kind]);
        }
        for kind in SUBSCRIPTION_KINDS {
            self.subscriptions_active.with_label_values(&[kind]);
        }
        for phase in PHASES {
            self.execute_duration_seconds.with_label_values(&[phase]);
        }
        for reason in SLURM_POLL_ERRORS {
            self.slurm_poll_errors_total.with_label_values(&[reason]);
        }
        for check in SECURITY_CHECKS {
            self.security_check_failures_total.with_label_values(&[check]);
        }
    }

    /// Every family that this process counts by itself.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// Names a project that exists, so that the decisions of its admission begin at zero.
    pub fn know_project(&self, project_module: &str) {
        for reason in beampipe_domain::admission::Skip::ALL.iter().map(|skip| skip.as_str()).chain(["none"]) {
            self.execution_admitted_total.with_label_values(&[project_module, reason]);
        }
    }

    /// Names what requests that match no route are counted as, so that not even the first makes a series.
    pub fn know_unmatched(&self) {
        for status in [404, 405] {
            let labels = ["OTHER", UNMATCHED, exposition::status_word(status)];
            self.api_requests_total.with_label_values(&labels);
            self.api_request_duration_seconds.with_label_values(&labels);
        }
    }

    /// Counts a request that matched no route, whatever its path and method: names from outside make no series.
    pub fn unmatched(&self, status: u16, took: Duration) {
        self.answered("OTHER", UNMATCHED, status, took);
    }

    /// Names a route that exists, so that its series is there before its first request.
    pub fn know_route(&self, method: &str, route: &str, status: u16) {
        self.api_requests_total.with_label_values(&[method, route, exposition::status_word(status)]);
    }

    /// Counts a request that was answered.
    pub fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = [method, route, exposition::status_word(status)];
        self.api_requests_total.with_label_values(&labels).inc();
        self.api_request_duration_seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// Counts a refusal that concerns security.
    pub fn refused(&self, check: &str) {
        self.security_check_failures_total.with_label_values(&[check]).inc();
    }

    /// Counts a decision of admission.
    pub fn admitted(&self, project_module: &str, skip_reason: Option<&str>) {
        let labels = [project_module, skip_reason.unwrap_or("none")];
        self.execution_admitted_total.with_label_values(&labels).inc();
    }

    /// The process families in the text format.
    pub fn process_families(&self) -> String {
        let mut text = Vec::with_capacity(32 * 1024);
        // Writing to memory does not fail, and a family without series is left out rather than written empty.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics could not be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_there_before_it_happens() {
        let text = Metrics::new("1.2.3", "sqlite").process_families();
        for line in [
            "beampipe_build_info{log_engine=\"sqlite\",version=\"1.2.3\"} 1",
            "beampipe_subscriptions_active{kind=\"sse\"} 0",
            "beampipe_security_check_failures_total{check=\"login\"} 0",
            "beampipe_job_duration_seconds_count{kind=\"execute\"} 0",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}
