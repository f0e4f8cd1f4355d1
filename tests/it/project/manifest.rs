//! From prepared sources to the manifest of an execution.

use beampipe::project::manifest::{ManifestError, Selection, build};
use beampipe::project::metadata::{Prepared, Record, sbids};
use beampipe::project::{ProjectConfig, canonical, validate};
use serde_json::{Value, json};

use super::example;

pub fn prepared(identifier: &str, records: Value, flags: Value) -> Prepared {
    let records: Vec<Record> = serde_json::from_value(records).unwrap();
    Prepared {
        source_identifier: identifier.into(),
        sbids: sbids(&records),
        datasets: records.len(),
        records,
        flags: serde_json::from_value(flags).unwrap(),
        signature: "0".repeat(64),
        held: vec![],
        warnings: vec![],
    }
}

pub fn config(manifest: Value) -> ProjectConfig {
    let mut spec = example::example(None).spec.unwrap();
    spec["manifest"] = manifest;
    let validation = validate::validate_spec(spec);
    validation.config.unwrap_or_else(|| panic!("{:#?}", validation.report.errors))
}

fn all<'a>(sources: &[&'a Prepared]) -> Vec<Selection<'a>> {
    sources.iter().map(|prepared| Selection { prepared, sbids: None }).collect()
}

fn two() -> Prepared {
    prepared(
        "HIPASSJ1",
        json!([
            {"sbid": "10", "visibility_filename": "c", "size": 3, "field": "f"},
            {"sbid": "9", "visibility_filename": "b", "size": 2, "field": "f"},
            {"sbid": "9", "visibility_filename": "a", "size": 1, "field": "f"},
        ]),
        json!({"vsys": 570.9, "ra_string": null}),
    )
}

#[test]
fn it_is_grouped_by_source_and_block_in_a_stable_order() {
    let config = config(json!({
        "source_template": {"v": "{flags.vsys}", "ra": "{flags.ra_string}", "as": "{source_name} at {flags.vsys}", "field": "{field}"},
        "dataset_template": {"visibility_filename": "{visibility_filename}", "size": "{size}", "of": "{source_identifier}/{sbid}"},
    }));
    let (one, other) = (
        two(),
        prepared(
            "HIPASSJ0",
            json!([{"sbid": "1", "visibility_filename": "z", "size": 9, "field": "g"}]),
            json!({"vsys": null, "ra_string": null}),
        ),
    );
    let manifest = build(&config, &all(&[&one, &other])).unwrap();
    assert_eq!(
        manifest.value,
        json!({"inputs": {}, "sources": [
            {"source_identifier": "HIPASSJ0", "v": null, "ra": null, "as": "J0 at ", "field": "g", "sbids": [
                {"sbid": "1", "datasets": [{"visibility_filename": "z", "size": 9, "of": "HIPASSJ0/1"}]}]},
            {"source_identifier": "HIPASSJ1", "v": 570.9, "ra": null, "as": "J1 at 570.9", "field": "f", "sbids": [
                {"sbid": "9", "datasets": [
                    {"visibility_filename": "a", "size": 1, "of": "HIPASSJ1/9"},
                    {"visibility_filename": "b", "size": 2, "of": "HIPASSJ1/9"}]},
                {"sbid": "10", "datasets": [{"visibility_filename": "c", "size": 3, "of": "HIPASSJ1/10"}]}]},
        ]})
    );
    assert_eq!(manifest.total_datasets, 4);
    assert_eq!((manifest.sources[1].sbid_count, manifest.sources[1].dataset_count), (2, 3));
    assert_eq!(manifest.text, canonical::text(&manifest.value));
    assert!(manifest.text.starts_with('{'));
    assert_eq!(manifest.sha256, canonical::sha256_of(manifest.text.as_bytes()));

    let mut turned = two();
    turned.records.reverse();
    assert_eq!(build(&config, &all(&[&other, &turned])).unwrap().sha256, manifest.sha256);
}

#[test]
fn without_a_template_a_dataset_is_the_whole_record() {
    let one = two();
    let manifest = build(&config(json!({})), &all(&[&one])).unwrap();
    assert_eq!(manifest.value["sources"][0]["sbids"][1]["datasets"][0], json!(one.records[0]));
}

#[test]
fn only_the_blocks_that_are_asked_for_are_in_it() {
    let (config, one) = (config(json!({})), two());
    let only = ["9".to_owned()];
    let manifest = build(&config, &[Selection { prepared: &one, sbids: Some(&only) }]).unwrap();
    assert_eq!(manifest.total_datasets, 2);
    let unknown = ["11".to_owned()];
    assert_eq!(
        build(&config, &[Selection { prepared: &one, sbids: Some(&unknown) }]),
        Err(ManifestError::UnknownSbid { source_identifier: "HIPASSJ1".into(), sbid: "11".into() })
    );
}

#[test]
fn nothing_to_work_on_is_refused() {
    let (config, one) = (config(json!({})), two());
    let none = prepared("HIPASSJ2", json!([]), json!({}));
    assert_eq!(build(&config, &[]), Err(ManifestError::NoSources));
    assert_eq!(build(&config, &all(&[&one, &none])), Err(ManifestError::NoDatasets("HIPASSJ2".into())));
    assert_eq!(build(&config, &all(&[&one, &one])), Err(ManifestError::Twice("HIPASSJ1".into())));
    assert_eq!(
        build(&config, &[Selection { prepared: &one, sbids: Some(&[]) }]),
        Err(ManifestError::NoDatasets("HIPASSJ1".into()))
    );
}

#[test]
fn a_field_that_is_not_there_or_not_one_is_an_error() {
    let one = two();
    for (manifest, field) in [
        (json!({"dataset_template": {"visibility_filename": "{filename}"}}), "filename"),
        (json!({"source_template": {"x": "{size}"}}), "size"),
        (json!({"source_template": {"x": "{nothing}"}}), "nothing"),
    ] {
        match build(&config(manifest), &all(&[&one])) {
            Err(ManifestError::Template { problem, .. }) => {
                assert_eq!(problem, format!("there is no field `{field}`"));
            }
            other => panic!("{other:?}"),
        }
    }
}
