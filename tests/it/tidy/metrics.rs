//! The reference of metrics is generated from what the code says of each family.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use beampipe::metrics::{Described, Metrics, projected};
use beampipe_projections::{
    AlertGauges, DependencyGauges, ExecutionGauges, Gauges, JobGauges, ProjectGauges, SourceGauges,
};

use super::{read, root};

/// Numbers in which every map has an entry, so that every family has a sample to take the labels from.
fn gauges() -> Gauges {
    let pair = |a: &str, b: &str| BTreeMap::from([((a.to_owned(), b.to_owned()), 0)]);
    Gauges {
        executions: Arc::new(ExecutionGauges {
            by_external_state: pair("daliuge", "running"),
            oldest_active_created_at: BTreeMap::from([("pending".into(), None)]),
            in_flight_by_scheduler: BTreeMap::from([("daliuge".into(), 0)]),
            ..Default::default()
        }),
        sources: Arc::new(SourceGauges::default()),
        jobs: Arc::new(JobGauges { entered: pair("execute", "queued"), ..Default::default() }),
        dependencies: Arc::new(DependencyGauges {
            up: BTreeMap::from([("dim_demo".into(), true)]),
            ..Default::default()
        }),
        alerts: Arc::new(AlertGauges {
            firing: BTreeMap::from([("critical".into(), 0)]),
            deliveries: pair("webhook", "sent"),
        }),
        projects: Arc::new(ProjectGauges {
            paused: BTreeMap::from([("survey".into(), false)]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What the text format says of each family in it.
fn families(text: &str) -> Vec<Described> {
    let mut families: Vec<Described> = vec![];
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.push(Described {
                name: name.to_owned(),
                kind: "",
                labels: vec![],
                help: help.to_owned(),
            });
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let kinds = ["counter", "gauge", "histogram"];
            families.last_mut().unwrap().kind = kinds.into_iter().find(|known| *known == kind).unwrap();
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels = labels.split("=\"").filter_map(|part| part.rsplit(['{', ',']).next());
            let labels: Vec<String> = labels.map(str::to_owned).collect();
            // The last part is what follows the last value.
            families.last_mut().unwrap().labels = labels[..labels.len() - 1].to_vec();
        }
    }
    families
}

fn projected_families() -> Vec<Described> {
    let mut text = String::new();
    projected::write(&mut text, &gauges(), chrono::DateTime::UNIX_EPOCH);
    families(&text)
}

fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\nGenerated from the HELP texts; `UPDATE_REFERENCE=1 cargo nextest run metric_reference` writes it anew.\n\
         They are on the listener `metrics.listen` and on `/api/v2/metrics`. No label is an id; every known label value is\n\
         there with a zero before anything happens.\n",
    );
    let process = Metrics::new("0.0.0", "sqlite");
    let parts: [(&str, &str, &[Described]); 2] = [
        ("Of the process", "Each process counts these by itself, from its start.", process.described()),
        (
            "Folded from the log",
            "Every process exports the same: take `max without (instance, job)`, never `sum`. Absent until a process has read\n\
             the log to its end.",
            &projected_families(),
        ),
    ];
    for (title, note, families) in parts {
        write!(page, "\n## {title}\n\n{note}\n\n| family | kind | labels | |\n|---|---|---|---|\n").unwrap();
        let mut families: Vec<&Described> = families.iter().collect();
        families.sort_by(|a, b| a.name.cmp(&b.name));
        for Described { name, kind, labels, help } in families {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(" ")).unwrap();
        }
    }
    page
}

#[test]
fn the_metric_reference_is_what_the_code_does() {
    let path = root().join("docs/reference/metrics.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == reference(), "docs/reference/metrics.md is old: see its first lines");
}

#[test]
fn the_metric_reference_has_every_family_that_rules_stand_on_and_no_id_for_a_label() {
    let page = reference();
    let words = |text: &str| -> Vec<String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(|c: char| !is_word(c))
            .filter(|word| word.starts_with("beampipe_"))
            .map(str::to_owned)
            .collect()
    };
    for file in ["prometheus.rules.yml", "docs/operating.md"] {
        for word in words(&read(file)) {
            let family = word.trim_end_matches("_count").trim_end_matches("_sum").trim_end_matches("_bucket");
            // `beampipe_errors` and its like may be Python's or a path's; families are what the page says they are.
            let has = page.contains(&format!("| `{family}` |"));
            assert!(has || !word.contains("_seconds") && !word.ends_with("_total"), "{file} names {word}");
        }
    }
    for label in
        ["execution", "execution_id", "source", "source_id", "job_id", "session_id", "worker_id", "uuid"]
    {
        assert!(!page.contains(&format!("`{label}`")), "{label} is a label");
    }
}
