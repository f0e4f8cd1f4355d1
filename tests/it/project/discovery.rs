//! From answers to datasets: rows, fields, flags, enrichments, and what fails a source.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use beampipe::archives::tap::{Column, Table, TapError};
use beampipe::project::discover::{AdapterMap, Discovery, Outcome, TapQuery, discover};
use beampipe::project::metadata::Prepared;
use beampipe::project::{ProjectConfig, validate};
use serde_json::{Value, json};

type Answers = BTreeMap<&'static str, Result<Value, &'static str>>;

/// Answers a query with the rows whose key appears in it; rows are objects, errors `timeout` or a message.
struct Archive {
    answers: Answers,
    asked: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl TapQuery for Archive {
    async fn query(&self, adql: &str) -> Result<Table, TapError> {
        self.asked.lock().unwrap().push(adql.to_owned());
        let (_, answer) = self.answers.iter().find(|(key, _)| adql.contains(**key)).expect("an answer");
        match answer {
            Ok(rows) => Ok(table(rows)),
            Err("timeout") => {
                Err(TapError::Timeout { host: "archive".into(), after: Duration::from_secs(30) })
            }
            Err(message) => Err(TapError::Query { message: (*message).to_owned() }),
        }
    }
}

fn table(rows: &Value) -> Table {
    let rows = rows.as_array().unwrap();
    let names: Vec<&String> =
        rows.first().map(|row| row.as_object().unwrap().keys().collect()).unwrap_or_default();
    Table {
        columns: names
            .iter()
            .map(|name| Column {
                // Archives write names as they like.
                name: name.to_uppercase(),
                datatype: "char".into(),
                arraysize: Some("*".into()),
                unit: None,
            })
            .collect(),
        rows: rows.iter().map(|row| names.iter().map(|name| row[name.as_str()].clone()).collect()).collect(),
    }
}

fn config(discovery: Value, fail_open: bool) -> ProjectConfig {
    let spec = json!({
        "apiVersion": "beampipe.dev/v2", "kind": "ProjectConfig", "metadata": {"id": "p"},
        "definitions": {"transforms": {"short": {"kind": "strip_prefix", "prefix": "HIPASS"}}},
        "source_identity": {"template_vars": {"name": {"transform": "short"}}},
        "adapters": {"endpoints": {"a": "http://a/tap", "b": "http://b/tap"}, "tap": {"fail_open": fail_open}},
        "discovery": discovery,
        "graph": {"path": "g", "sha256": "0".repeat(64)},
    });
    let validation = validate::validate_spec(spec);
    validation.config.unwrap_or_else(|| panic!("{:#?}", validation.report.errors))
}

fn query(name: &str, template: &str) -> Value {
    json!({"name": name, "adapter": "a", "template": template})
}

async fn run(config: &ProjectConfig, answers: Answers) -> (Discovery, Vec<String>) {
    let archive = Arc::new(Archive { answers, asked: Mutex::default() });
    let adapters = AdapterMap::from([("a".to_owned(), Arc::clone(&archive) as Arc<dyn TapQuery>)]);
    let discovery = discover(config, "HIPASSJ1", &adapters, "2024-01-01T00:00:00Z".parse().unwrap()).await;
    let asked = archive.asked.lock().unwrap().clone();
    (discovery, asked)
}

fn prepared(discovery: Discovery) -> Prepared {
    match discovery.outcome {
        Outcome::Prepared(prepared) => *prepared,
        other => panic!("{other:?}"),
    }
}

fn plain() -> Value {
    json!({
        "queries": [query("first", "SELECT 1 FROM t WHERE n = '{source_identifier}'")],
        "prepare_metadata": {"field_map": {
            "sbid": {"from": "obs_id", "transform": "extract_digits"},
            "dataset_id": {"from": "File"},
        }},
    })
}

#[tokio::test]
async fn columns_join_the_mapped_fields_lower_cased() {
    let rows = json!([{"obs_id": "ASKAP-12", "file": "a.ms", "Extra": 1.5}]);
    let (discovery, asked) = run(&config(plain(), false), Answers::from([("FROM t", Ok(rows))])).await;
    assert_eq!(asked, ["SELECT 1 FROM t WHERE n = 'HIPASSJ1'"]);
    let prepared = prepared(discovery);
    assert_eq!(
        json!(prepared.records),
        json!([{"obs_id": "ASKAP-12", "file": "a.ms", "extra": 1.5, "sbid": "12", "dataset_id": "a.ms"}])
    );
    assert_eq!((prepared.sbids, prepared.datasets), (vec!["12".to_owned()], 1));
}

#[tokio::test]
async fn one_bad_row_fails_the_source_and_is_named() {
    for (row, message) in [
        (json!({"obs_id": "ASKAP", "file": "b.ms"}), "row 1 (b.ms): no `sbid`"),
        (
            json!({"obs_id": "ASKAP-12", "file": null}),
            "row 1 (ASKAP-12): neither `dataset_id` nor `visibility_filename`",
        ),
        (
            json!({"obs_id": "ASKAP-12", "file": " "}),
            "row 1 ( ): neither `dataset_id` nor `visibility_filename`",
        ),
    ] {
        let rows = json!([{"obs_id": "ASKAP-12", "file": "a.ms"}, row]);
        let (discovery, _) = run(&config(plain(), false), Answers::from([("FROM t", Ok(rows))])).await;
        match discovery.outcome {
            Outcome::Error { step, message: said, may_be_retried, .. } => {
                assert_eq!(
                    (step.as_str(), said.as_str(), may_be_retried),
                    ("prepare_metadata", message, false)
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_column_the_answer_does_not_have_is_an_error() {
    let rows = json!([{"obs_id": "ASKAP-12"}]);
    let (discovery, _) = run(&config(plain(), false), Answers::from([("FROM t", Ok(rows))])).await;
    assert!(
        matches!(&discovery.outcome, Outcome::Error { message, .. } if message.contains("`dataset_id` comes from `File`")),
        "{:?}",
        discovery.outcome
    );
}

#[tokio::test]
async fn no_rows_are_no_datasets_and_failures_say_their_step() {
    for (answer, expected) in [
        (Ok(json!([])), Outcome::NoDatasets),
        (
            Err("timeout"),
            Outcome::Timeout { step: "first".into(), message: "archive did not answer within 30 s".into() },
        ),
        (
            Err("no such table"),
            Outcome::Error {
                step: "first".into(),
                message: "the query was refused: no such table".into(),
                failure_class: "validation",
                may_be_retried: false,
            },
        ),
    ] {
        // `fail_open` is for what comes after the first query only.
        for fail_open in [false, true] {
            let (discovery, _) =
                run(&config(plain(), fail_open), Answers::from([("FROM t", answer.clone())])).await;
            assert_eq!(discovery.outcome, expected);
        }
    }
}

#[tokio::test]
async fn a_service_that_may_not_be_asked_skips_the_source() {
    let config = config(plain(), false);
    let none = AdapterMap::new();
    let discovery = discover(&config, "HIPASSJ1", &none, "2024-01-01T00:00:00Z".parse().unwrap()).await;
    assert_eq!(discovery.outcome, Outcome::TapSkipped { adapter: "a".into() });
    assert!(discovery.asked.is_empty());
}

fn enriched() -> Value {
    json!({
        "queries": [
            query("first", "SELECT 1 FROM t WHERE n = '{name}'"),
            {"name": "catalogue", "adapter": "a", "template": "SELECT 1 FROM c WHERE n = '{source_identifier}'",
             "source_id_transform": ["short", "lowercase"]},
        ],
        "enrichments": [query("files", "SELECT 1 FROM f WHERE sbid = '{sbid}' AND field = '{field}'")],
        "prepare_metadata": {
            "field_map": {
                "sbid": {"from": "obs_id", "transform": "extract_digits"},
                "dataset_id": {"from": "file"},
                "field": {"from": "field"},
                "ra": {"from": "enrichments.catalogue.RA", "transform": "degrees_to_hms"},
                "project": {"from": "enrichments.files.project"},
                "who": {"from": "canonical"},
            },
            "discovery_flags": {
                "known": {"from": "enrichments.catalogue", "transform": "is_present"},
                "file": {"from": "enrichments.files", "transform": "select_eval_file_by_size"},
            },
        },
    })
}

fn two_blocks() -> Value {
    json!([
        {"obs_id": "A-2", "file": "c.ms", "field": "x"},
        {"obs_id": "A-10", "file": "b.ms", "field": "y"},
        {"obs_id": "A-2", "file": "a.ms", "field": "x"},
    ])
}

const CALIBRATION: &str = "calibration-metadata-processing-logs-SB";

fn answers() -> Answers {
    Answers::from([
        ("FROM t", Ok(two_blocks())),
        ("FROM c", Ok(json!([{"ra": 199.6}]))),
        (
            "sbid = '2'",
            Ok(json!([{"project": "AS1", "filename": format!("{CALIBRATION}2_a.tar"), "filesize": 5}])),
        ),
        ("sbid = '10'", Ok(json!([]))),
    ])
}

#[tokio::test]
async fn enrichments_run_once_for_each_block_and_reach_its_records() {
    let (discovery, asked) = run(&config(enriched(), false), answers()).await;
    assert_eq!(
        asked,
        [
            "SELECT 1 FROM t WHERE n = 'J1'",
            "SELECT 1 FROM c WHERE n = 'j1'",
            "SELECT 1 FROM f WHERE sbid = '2' AND field = 'x'",
            "SELECT 1 FROM f WHERE sbid = '10' AND field = 'y'",
        ]
    );
    let prepared = prepared(discovery);
    assert_eq!(prepared.sbids, ["2", "10"], "numbers are in the order of numbers");
    assert_eq!(json!(prepared.flags), json!({"known": true}));
    let of = |file: &str| prepared.records.iter().find(|record| record["dataset_id"] == file).unwrap();
    assert_eq!(of("a.ms")["ra"], "13h18m24.0s");
    assert_eq!(of("a.ms")["project"], "AS1");
    assert_eq!(of("a.ms")["file"]["filename"], format!("{CALIBRATION}2_a.tar"));
    assert_eq!((&of("b.ms")["project"], &of("b.ms")["file"]), (&Value::Null, &Value::Null));
    assert_eq!(of("b.ms")["who"], "HIPASSJ1");
}

#[tokio::test]
async fn a_later_query_that_fails_fails_the_source_unless_it_may() {
    for (key, step) in [("FROM c", "catalogue"), ("sbid = '10'", "files (SBID 10)")] {
        let mut answers = answers();
        answers.insert(key, Err("broken"));
        let (discovery, _) = run(&config(enriched(), false), answers.clone()).await;
        assert!(
            matches!(&discovery.outcome, Outcome::Error { step: said, .. } if said == step),
            "{:?}",
            discovery.outcome
        );
        let (discovery, _) = run(&config(enriched(), true), answers).await;
        let warnings = prepared(discovery).warnings;
        assert_eq!(warnings, [format!("gone on without `{step}`: the query was refused: broken")]);
    }
}

#[tokio::test]
async fn several_rows_where_one_is_needed_are_an_error() {
    let mut answers = answers();
    answers.insert("FROM c", Ok(json!([{"ra": 1.0}, {"ra": 2.0}])));
    let (discovery, _) = run(&config(enriched(), false), answers).await;
    assert!(
        matches!(&discovery.outcome, Outcome::Error { message, .. }
            if message == "`catalogue` has 2 rows, and one is needed for `enrichments.catalogue.RA`"),
        "{:?}",
        discovery.outcome
    );
}

#[tokio::test]
async fn an_enrichment_cannot_use_a_field_that_differs_within_a_block() {
    let mut answers = answers();
    let mut rows = two_blocks();
    rows[2]["field"] = json!("z");
    answers.insert("FROM t", Ok(rows));
    let (discovery, _) = run(&config(enriched(), false), answers).await;
    assert!(
        matches!(&discovery.outcome, Outcome::Error { message, .. } if message.contains("`field` differs")),
        "{:?}",
        discovery.outcome
    );
}

#[tokio::test]
async fn a_dataset_that_does_not_meet_a_condition_is_held_and_the_others_go_on() {
    let mut discovery = plain();
    discovery["require"] =
        json!([{"field": "quality", "not_in": ["REJECTED"]}, {"field": "released", "reached": true}]);
    let row = |file: &str, quality: &str, released: &str| json!({"obs_id": "A-1", "file": file, "quality": quality, "released": released});
    let rows = json!([
        row("a.ms", "GOOD", "2023-01-01"),
        row("b.ms", "REJECTED", "2023-01-01"),
        row("c.ms", "GOOD", "2030-01-01"),
    ]);
    let config = config(discovery, false);
    let (found, _) = run(&config, Answers::from([("FROM t", Ok(rows.clone()))])).await;
    let prepared = prepared(found);
    assert_eq!(prepared.datasets, 1);
    let held: Vec<_> =
        prepared.held.iter().map(|held| (held.dataset.as_str(), held.reason.as_str())).collect();
    assert_eq!(held, [("b.ms", "quality is REJECTED"), ("c.ms", "released is 2030-01-01, which is to come")]);
    let (found, _) = run(&config, Answers::from([("FROM t", Ok(json!([rows[2]])))])).await;
    assert!(matches!(&found.outcome, Outcome::Held(held) if held.len() == 1), "{:?}", found.outcome);
}

#[tokio::test]
async fn the_signature_is_of_the_data_and_not_of_its_order() {
    let config = config(plain(), false);
    let rows = json!([{"obs_id": "A-1", "file": "a", "z": 1}, {"obs_id": "A-2", "file": "b", "z": 2}]);
    let turned = json!([{"z": 2, "file": "b", "obs_id": "A-2"}, {"z": 1, "file": "a", "obs_id": "A-1"}]);
    let mut changed = rows.clone();
    changed[0]["z"] = json!(3);
    let mut signatures = Vec::new();
    for rows in [rows, turned, changed] {
        let (found, _) = run(&config, Answers::from([("FROM t", Ok(rows))])).await;
        signatures.push(prepared(found).signature);
    }
    assert_eq!(signatures[0], signatures[1]);
    assert_ne!(signatures[0], signatures[2]);
}

#[tokio::test]
async fn an_identifier_cannot_leave_its_string_and_a_bad_one_is_an_error() {
    let config = config(plain(), false);
    let archive =
        Arc::new(Archive { answers: Answers::from([("FROM t", Ok(json!([])))]), asked: Mutex::default() });
    let adapters = AdapterMap::from([("a".to_owned(), Arc::clone(&archive) as Arc<dyn TapQuery>)]);
    let now = "2024-01-01T00:00:00Z".parse().unwrap();
    let found = discover(&config, "x' OR 'a'='a", &adapters, now).await;
    assert_eq!(found.outcome, Outcome::NoDatasets);
    assert_eq!(archive.asked.lock().unwrap()[0], "SELECT 1 FROM t WHERE n = 'x'' OR ''a''=''a'");
    let found = discover(&config, "x\n", &adapters, now).await;
    assert!(matches!(found.outcome, Outcome::Error { may_be_retried: false, .. }));
    assert_eq!(archive.asked.lock().unwrap().len(), 1);
}
