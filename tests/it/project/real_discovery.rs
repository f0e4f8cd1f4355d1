//! The example survey's seven sources, discovered at the real TAP service: what the demonstration depends on.

use std::collections::BTreeMap;
use std::sync::Arc;

use beampipe::archives::tap::TapClient;
use beampipe::project::discover::{AdapterMap, Discovery, Outcome, TapQuery, discover};
use beampipe::project::graph::Graph;
use beampipe::project::manifest::{Selection, build};
use beampipe::project::metadata::Prepared;
use beampipe::project::{ProjectConfig, graph};
use serde_json::{Value, json};

use super::example::example;
use crate::archives::{http, service};

fn survey() -> (ProjectConfig, AdapterMap) {
    let config = example(Some(service().as_str())).config.unwrap();
    let adapters = config
        .endpoints()
        .into_iter()
        .map(|(name, url)| {
            let client = TapClient::new(http(), url.parse().unwrap(), config.tap_limits());
            (name, Arc::new(client) as Arc<dyn TapQuery>)
        })
        .collect();
    (config, adapters)
}

async fn find(identifier: &str) -> Discovery {
    let (config, adapters) = survey();
    discover(&config, identifier, &adapters, "2026-01-01T00:00:00Z".parse().unwrap()).await
}

async fn prepared(identifier: &str) -> Prepared {
    match find(identifier).await.outcome {
        Outcome::Prepared(prepared) => *prepared,
        other => panic!("{identifier}: {other:?}"),
    }
}

#[tokio::test]
async fn each_source_has_the_datasets_it_should() {
    for (identifier, blocks) in [
        ("HIPASSJ1318-21", json!({"34275": 3})),
        ("HIPASSJ0039-14", json!({"51535": 2})),
        ("HIPASSJ1305-20", json!({"52001": 2, "52002": 1})),
        ("HIPASSJ1321-19", json!({"52001": 1})),
        ("HIPASSJ1245-00", json!({"53300": 2})),
    ] {
        let prepared = prepared(identifier).await;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for record in &prepared.records {
            *counts.entry(record["sbid"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(json!(counts), blocks, "{identifier}");
        assert_eq!(prepared.datasets, prepared.records.len());
        assert_eq!(prepared.signature.len(), 64);
        assert_eq!(prepared.warnings, Vec::<String>::new());
    }
}

#[tokio::test]
async fn position_velocity_and_calibration_are_what_the_catalogue_and_the_files_say() {
    for (identifier, flags, file) in [
        (
            "HIPASSJ1318-21",
            json!({"ra_string": "13h18m24.0s", "dec_string": "-21.3.0.0", "vsys": 570.9}),
            "SB34275_2022-04-06-101512.tar",
        ),
        (
            "HIPASSJ0039-14",
            json!({"ra_string": null, "dec_string": null, "vsys": null}),
            "SB51535_2023-08-02-220101.tar",
        ),
        (
            "HIPASSJ1321-19",
            json!({"ra_string": "13h21m12.0s", "dec_string": "-19.24.0.0", "vsys": 2301.4}),
            "SB52001_2023-08-26-030303.tar",
        ),
        (
            "HIPASSJ1245-00",
            json!({"ra_string": "12h45m12.0s", "dec_string": "-0.27.0.0", "vsys": 1489.2}),
            "SB53300_2023-10-18-111111.tar",
        ),
    ] {
        let prepared = prepared(identifier).await;
        assert_eq!(Value::Object(prepared.flags), flags, "{identifier}");
        for record in &prepared.records {
            let chosen = record["evaluation_file"].as_str().unwrap();
            assert_eq!(chosen, format!("calibration-metadata-processing-logs-{file}"), "{identifier}");
            assert!(record["evaluation_file_access_url"].as_str().unwrap().starts_with("http"));
        }
    }
}

#[tokio::test]
async fn a_source_without_a_calibration_file_is_an_error_and_an_unknown_one_has_no_datasets() {
    match find("HIPASSJ1250-20").await.outcome {
        Outcome::Error { step, message, failure_class, may_be_retried } => {
            assert_eq!(step, "prepare_metadata");
            assert_eq!(message, "SBID 60001 has no calibration archive among its evaluation files");
            assert_eq!((failure_class, may_be_retried), ("validation", false));
        }
        other => panic!("{other:?}"),
    }
    let unknown = find("HIPASSJ9999-99").await;
    assert_eq!(unknown.outcome, Outcome::NoDatasets);
    assert_eq!(unknown.asked.len(), 1, "nothing more is asked once there are no datasets");
}

#[tokio::test]
async fn the_same_data_has_the_same_signature_and_enrichments_run_once_a_block() {
    let (one, two) = (find("HIPASSJ1305-20").await, find("HIPASSJ1305-20").await);
    let signature = |discovery: &Discovery| match &discovery.outcome {
        Outcome::Prepared(prepared) => prepared.signature.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(signature(&one), signature(&two));
    let steps: Vec<_> =
        one.asked.iter().map(|asked| (asked.planned.name.as_str(), asked.planned.sbid.as_deref())).collect();
    assert_eq!(
        steps,
        [
            ("visibilities", None),
            ("ra_dec_vsys", None),
            ("sbid_to_eval_file", Some("52001")),
            ("sbid_to_eval_file", Some("52002")),
        ]
    );
}

#[tokio::test]
async fn the_sample_graph_gets_the_manifest_and_as_many_copies_as_datasets() {
    let (config, _) = survey();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let graph: Graph = graph::load(&config.graph, &http(), root)
        .await
        .unwrap_or_else(|error| panic!("{error}: tests/realparts/graphs holds the sample graphs"));
    let found = prepared("HIPASSJ1305-20").await;
    let manifest = build(&config, &[Selection { prepared: &found, sbids: None }]).unwrap();
    assert_eq!(manifest.total_datasets, 3);
    let patched = graph.patch(&config.graph_patches, &manifest).unwrap();
    let node = |name: &str| {
        let nodes = patched.value["nodeDataArray"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap().clone()
    };
    assert_eq!(node("Scatter/Beam")["fields"][0]["value"], 3);
    let field = &node("beampipe-ingest")["fields"][0];
    assert_eq!(field["value"], manifest.text);
    assert_eq!(field["readonly"], true);
    let rows: Vec<&str> = manifest.value["sources"][0]["sbids"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|block| block["datasets"].as_array().unwrap())
        .map(|dataset| dataset["visibility_filename"].as_str().unwrap())
        .collect();
    assert_eq!(rows.len(), 3);
}
