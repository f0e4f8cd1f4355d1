//! The families that are folded from the log. Every replica exports the same: take `max without(instance)`, never `sum`.
//!
//! They come from the read models' numbers in memory, so a scrape costs the same however long the log is. Known label
//! values are written as zeros. Ages are counted here, from times that the read models give.

use std::collections::{BTreeMap, BTreeSet};

use beampipe_domain::job::Kind;
use beampipe_projections::Gauges;
use beampipe_projections::sources::{OUTCOMES, PHASES};
use chrono::{DateTime, Utc};

use super::exposition::{Family, Text, Type};

/// Every status that an execution can have, and those that are ends.
const STATUSES: &[&str] = &[
    "pending",
    "running",
    "awaiting_scheduler",
    "not_submitted",
    "completed",
    "failed",
    "retrying",
    "cancelled",
];
const ENDS: &[&str] = &["completed", "failed", "cancelled", "not_submitted"];

/// The states that an execution can be seen in from outside, by axis. A word that is none of these is `unknown`.
const EXTERNAL_STATES: &[(&str, &[&str])] = &[
    ("submission", &["not_started", "preparing", "in_flight", "submitted", "uncertain", "failed"]),
    (
        "scheduler",
        &["not_submitted", "pending", "running", "succeeded", "failed", "cancelled", "timed_out", "unknown"],
    ),
    (
        "daliuge",
        &[
            "not_created",
            "pristine",
            "building",
            "deploying",
            "running",
            "finished",
            "cancelled",
            "failed",
            "unknown",
            "unreachable",
        ],
    ),
    ("output", &["not_started", "pending", "verified", "failed"]),
];
/// Who runs executions.
const SCHEDULERS: &[&str] = &["daliuge", "slurm", "simulated"];

/// Every project with a configuration, and whatever else is counted.
fn known_projects<'a>(gauges: &'a Gauges, counted: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    gauges.projects.paused.keys().chain(counted).cloned().collect()
}

/// Writes counts by project and word, with zeros for every known project and word.
fn by_project(
    family: &mut Family<'_>,
    gauges: &Gauges,
    counts: &BTreeMap<(String, String), u64>,
    label: &str,
    words: &[&str],
) {
    for project in known_projects(gauges, counts.keys().map(|(project, _)| project)) {
        let counted = counts.keys().filter(|(of, _)| *of == project).map(|(_, word)| word.as_str());
        let all: BTreeSet<&str> = words.iter().copied().chain(counted).collect();
        for word in all {
            let n = counts.get(&(project.clone(), word.to_owned())).copied().unwrap_or(0);
            family.sample(&[("project_module", &project), (label, word)], real(n));
        }
    }
}

fn age(now: DateTime<Utc>, since: Option<DateTime<Utc>>) -> f64 {
    since.map_or(0.0, |since| ((now - since).num_milliseconds() as f64 / 1000.0).max(0.0))
}

fn real(n: u64) -> f64 {
    n as f64
}

/// Adds the projected families to `text`.
pub fn write(text: &mut String, gauges: &Gauges, now: DateTime<Utc>) {
    let mut out = Text(std::mem::take(text));
    jobs(&mut out, gauges, now);
    executions(&mut out, gauges, now);
    sources(&mut out, gauges, now);
    dependencies(&mut out, gauges);
    workers(&mut out, gauges);
    alerts(&mut out, gauges);
    *text = out.0;
}

fn alerts(out: &mut Text, gauges: &Gauges) {
    let mut firing = out.family("beampipe_alerts_firing", Type::Gauge, "Alerts that fire, by severity.");
    for (severity, n) in &gauges.alerts.firing {
        firing.sample(&[("severity", severity)], real(*n));
    }
    let mut deliveries = out.family(
        "beampipe_alert_deliveries_total",
        Type::Counter,
        "Ends of deliveries, by kind of channel: a count over the whole log, which never resets.",
    );
    for ((kind, outcome), n) in &gauges.alerts.deliveries {
        deliveries.sample(&[("channel_kind", kind), ("outcome", outcome)], real(*n));
    }
}

fn workers(out: &mut Text, gauges: &Gauges) {
    let mut family = out.family(
        "beampipe_workers",
        Type::Gauge,
        "Workers that have not stopped or been lost, by pool and status.",
    );
    for ((pool, status), n) in &gauges.workers.by_pool_status {
        family.sample(&[("pool", pool), ("status", status)], real(*n));
    }
    out.family(
        "beampipe_workers_lost_total",
        Type::Counter,
        "Workers that fell silent for longer than a lease.",
    )
    .sample(&[], real(gauges.workers.lost));
}

fn jobs(out: &mut Text, gauges: &Gauges, now: DateTime<Utc>) {
    let jobs = &gauges.jobs;
    out.family("beampipe_jobs_queue_depth", Type::Gauge, "Jobs that are queued, whether due or not.")
        .sample(&[], real(jobs.queue_depth));
    out.family("beampipe_jobs_running", Type::Gauge, "Jobs that a worker has claimed.")
        .sample(&[], real(jobs.running));
    let mut queued = out.family("beampipe_jobs_queued", Type::Gauge, "Jobs that are queued, by kind.");
    for kind in Kind::ALL {
        let n = jobs.queued.get(kind.as_str()).copied().unwrap_or(0);
        queued.sample(&[("kind", kind.as_str())], real(n));
    }
    let mut oldest = out.family(
        "beampipe_jobs_oldest_queued_age_seconds",
        Type::Gauge,
        "For how long the oldest queued job has been due, by kind; 0 when none is.",
    );
    for kind in Kind::ALL {
        let due = jobs.oldest_due_at.get(kind.as_str()).copied().flatten();
        oldest.sample(&[("kind", kind.as_str())], age(now, due));
    }
    let mut total = out.family(
        "beampipe_jobs_total",
        Type::Counter,
        "How often a job entered a status, by kind: a count over the whole log, which never resets.",
    );
    for ((kind, status), n) in &jobs.entered {
        total.sample(&[("kind", kind), ("status", status)], real(*n));
    }
}

fn executions(out: &mut Text, gauges: &Gauges, now: DateTime<Utc>) {
    let executions = &gauges.executions;
    let mut active =
        out.family("beampipe_executions_active", Type::Gauge, "Executions that have not ended, by status.");
    for status in executions.oldest_active_created_at.keys() {
        let n = executions.by_status.get(status).copied().unwrap_or(0);
        active.sample(&[("status", status)], real(n));
    }
    let mut oldest = out.family(
        "beampipe_executions_oldest_active_age_seconds",
        Type::Gauge,
        "The age of the oldest execution that has not ended, by status; 0 when there is none.",
    );
    for (status, created_at) in &executions.oldest_active_created_at {
        oldest.sample(&[("status", status)], age(now, *created_at));
    }
    let mut total = out.family(
        "beampipe_executions_total",
        Type::Counter,
        "How often an execution entered a status: a count over the whole log, which never resets.",
    );
    by_project(&mut total, gauges, &executions.entered, "status", STATUSES);
    let mut states = out.family(
        "beampipe_executions_by_external_state",
        Type::Gauge,
        "Executions by the state that they are seen in from outside, one axis at a time.",
    );
    let known = EXTERNAL_STATES.iter().flat_map(|(axis, states)| states.iter().map(|state| (*axis, *state)));
    let counted = executions.by_external_state.keys().map(|(axis, state)| (axis.as_str(), state.as_str()));
    for (axis, state) in known.chain(counted).collect::<BTreeSet<_>>() {
        let n = executions.by_external_state.get(&(axis.to_owned(), state.to_owned())).copied().unwrap_or(0);
        states.sample(&[("axis", axis), ("state", state)], real(n));
    }
    out.family(
        "beampipe_reconciliation_risk_executions",
        Type::Gauge,
        "Executions whose hand-over was lost and is not settled.",
    )
    .sample(&[], real(executions.reconciliation_risk));
    let mut retries = out.family(
        "beampipe_execution_retries_total",
        Type::Counter,
        "Retries of executions that were asked for.",
    );
    for project in known_projects(gauges, executions.retries.keys()) {
        let n = executions.retries.get(&project).copied().unwrap_or(0);
        retries.sample(&[("project_module", &project)], real(n));
    }
    let mut in_flight = out.family(
        "beampipe_executions_inflight",
        Type::Gauge,
        "Executions that have not ended, by scheduler.",
    );
    let counted = executions.in_flight_by_scheduler.keys().map(String::as_str);
    for name in SCHEDULERS.iter().copied().chain(counted).collect::<BTreeSet<_>>() {
        let n = executions.in_flight_by_scheduler.get(name).copied().unwrap_or(0);
        in_flight.sample(&[("scheduler_name", name)], real(n));
    }
    let mut terminal = out.family(
        "beampipe_execute_terminal_total",
        Type::Counter,
        "Ends of executions: a count over the whole log, which never resets.",
    );
    by_project(&mut terminal, gauges, &executions.terminal, "status", ENDS);
}

fn sources(out: &mut Text, gauges: &Gauges, now: DateTime<Utc>) {
    let sources = &gauges.sources;
    let mut phases = out.family(
        "beampipe_sources_processing",
        Type::Gauge,
        "Registered sources, by what is done with them.",
    );
    by_project(&mut phases, gauges, &sources.by_phase, "phase", PHASES);
    let mut pending = out.family(
        "beampipe_workflow_pending_sources",
        Type::Gauge,
        "Sources with new data that wait to be executed.",
    );
    for project in known_projects(gauges, sources.pending.keys()) {
        let n = sources.pending.get(&project).copied().unwrap_or(0);
        pending.sample(&[("project_module", &project)], real(n));
    }
    let mut oldest = out.family(
        "beampipe_pending_age_seconds",
        Type::Gauge,
        "For how long the source that has waited longest waits; 0 when none does.",
    );
    for project in known_projects(gauges, sources.oldest_pending_at.keys()) {
        let since = sources.oldest_pending_at.get(&project).copied().flatten();
        oldest.sample(&[("project_module", &project)], age(now, since));
    }
    let mut discoveries = out.family(
        "beampipe_discovery_sources_total",
        Type::Counter,
        "Discoveries of sources, by outcome: a count over the whole log, which never resets.",
    );
    by_project(&mut discoveries, gauges, &sources.discoveries, "outcome", OUTCOMES);
}

fn dependencies(out: &mut Text, gauges: &Gauges) {
    let mut up =
        out.family("beampipe_dependency_up", Type::Gauge, "Whether a dependency was up at the last look.");
    for (name, is_up) in &gauges.dependencies.up {
        up.sample(&[("dependency", name)], f64::from(u8::from(*is_up)));
    }
    let mut of_profile = out.family(
        "beampipe_deployment_profile_dependency_up",
        Type::Gauge,
        "Whether what a deployment profile needs was up at the last look.",
    );
    for (name, is_up) in &gauges.dependencies.up {
        // `dim_<profile>` and `translator_<profile>`, as the probes name them; `slurm_<profile>`, as its watch does.
        if let Some((dependency @ ("dim" | "translator" | "slurm"), profile)) = name.split_once('_') {
            of_profile
                .sample(&[("profile", profile), ("dependency", dependency)], f64::from(u8::from(*is_up)));
        }
    }
    let mut paused = out.family(
        "beampipe_deployment_profile_paused",
        Type::Gauge,
        "Whether nothing is admitted to a deployment profile: by a person, or because its login node does not answer.",
    );
    for (profile, is_paused) in &gauges.projects.paused_profiles {
        paused.sample(&[("profile", profile)], f64::from(u8::from(*is_paused)));
    }
}
