//! Graphs: digests, the manifest's place, patches, and what must not be guessed.

use beampipe::project::canonical::sha256_of;
use beampipe::project::config::{Graph as GraphSource, GraphPatch};
use beampipe::project::graph::{Graph, GraphError, load};
use beampipe::project::manifest::{Manifest, Selection, build};
use serde_json::{Value, json};

use super::manifest::{config, prepared};
use crate::archives::http;

fn node(id: &str, name: &str, fields: &[(&str, &str, Value)]) -> Value {
    let fields: Vec<Value> = fields
        .iter()
        .map(|(id, name, value)| json!({"id": id, "name": name, "value": value, "readonly": false}))
        .collect();
    json!({"id": id, "name": name, "fields": fields})
}

fn sample() -> Value {
    json!({"modelData": {}, "linkDataArray": [], "nodeDataArray": [
        node("n1", "beampipe-ingest", &[("f1", "manifest_path", json!("")), ("f2", "other", json!(1))]),
        node("n2", "Scatter", &[("f3", "num_of_copies", json!(1))]),
    ]})
}

fn graph(value: &Value) -> Result<Graph, GraphError> {
    let bytes = serde_json::to_vec(value).unwrap();
    Graph::check(&bytes, &sha256_of(&bytes))
}

fn manifest() -> Manifest {
    let records = json!([
        {"sbid": "1", "dataset_id": "a \"quoted\" {name}", "size": 3},
        {"sbid": "1", "dataset_id": "b", "size": 4},
        {"sbid": "2", "dataset_id": "c", "size": 5},
    ]);
    build(&config(json!({})), &[Selection { prepared: &prepared("s", records, json!({})), sbids: None }])
        .unwrap()
}

fn patches(list: Value) -> Vec<GraphPatch> {
    serde_json::from_value(list).unwrap()
}

fn patch(node: &str, set: Value) -> Value {
    json!({"match": {"kind": "node_name", "equals": node}, "set": set})
}

#[test]
fn the_manifest_is_injected_read_only_and_patches_are_summed_up() {
    let source = graph(&sample()).unwrap();
    let manifest = manifest();
    let list = patches(json!([
        patch("Scatter", json!({"num_of_copies": "$count(sbids[].datasets[])"})),
        patch("beampipe-ingest", json!({"other": "$sum(sbids[].datasets[].size)"})),
    ]));
    let patched = source.patch(&list, &manifest).unwrap();
    let nodes = &patched.value["nodeDataArray"];
    assert_eq!(nodes[0]["fields"][0]["value"], manifest.text);
    assert_eq!(nodes[0]["fields"][0]["readonly"], true);
    assert_eq!(nodes[1]["fields"][0]["value"], 3);
    assert_eq!(nodes[1]["fields"][0]["readonly"], false);
    assert_eq!(nodes[0]["fields"][1]["value"], 12);
    assert_eq!(
        json!(patched.summary),
        json!([
            {"node": "beampipe-ingest", "node_id": "n1", "field": "manifest_path", "before": "",
             "after": format!("sha256:{}", manifest.sha256)},
            {"node": "Scatter", "node_id": "n2", "field": "num_of_copies", "before": 1, "after": 3,
             "expression": "$count(sbids[].datasets[])"},
            {"node": "beampipe-ingest", "node_id": "n1", "field": "other", "before": 1, "after": 12,
             "expression": "$sum(sbids[].datasets[].size)"},
        ])
    );
    assert_eq!(patched.sha256, sha256_of(patched.text.as_bytes()));
    assert_eq!(serde_json::from_str::<Value>(&patched.text).unwrap(), patched.value);
    assert_ne!(patched.sha256, source.sha256);
    assert_eq!(source.patch(&list, &manifest).unwrap().text, patched.text);
}

#[test]
fn a_graph_without_an_ingest_node_gets_its_work_through_patches_only() {
    let mut value = sample();
    value["nodeDataArray"].as_array_mut().unwrap().remove(0);
    let source = graph(&value).unwrap();
    assert!(!source.has_ingest_node());
    let list = patches(json!([patch("Scatter", json!({"num_of_copies": "7"}))]));
    let patched = source.patch(&list, &manifest()).unwrap();
    assert_eq!(patched.summary.len(), 1);
    assert_eq!(patched.value["nodeDataArray"][0]["fields"][0]["value"], "7");
}

#[test]
fn a_target_that_is_missing_or_not_one_is_an_error() {
    let twice = |pointer: &str| {
        let mut value = sample();
        let list = value.pointer_mut(pointer).unwrap().as_array_mut().unwrap();
        let mut copy = list[0].clone();
        copy["id"] = json!("other");
        list.push(copy);
        value
    };
    let mut no_field = sample();
    no_field["nodeDataArray"][0]["fields"] = json!([]);
    let scatter = |set: Value| json!([patch("Scatter", set)]);
    for (value, list, message) in [
        (sample(), json!([patch("Gather", json!({"x": 1}))]), "the graph has no node `Gather`"),
        (sample(), scatter(json!({"copies": 1})), "the node `Scatter` has no field `copies`"),
        (twice("/nodeDataArray"), json!([]), "the graph has 2 nodes `beampipe-ingest`"),
        (
            twice("/nodeDataArray/1/fields"),
            scatter(json!({"num_of_copies": 1})),
            "the node `Scatter` has 2 fields `num_of_copies`",
        ),
        (no_field, json!([]), "the node `beampipe-ingest` has no field `manifest_path`"),
        (
            sample(),
            json!([patch("beampipe-ingest", json!({"manifest_path": "x"}))]),
            "two patches set `beampipe-ingest`.`manifest_path`",
        ),
        (
            sample(),
            scatter(json!({"num_of_copies": "$sum(sbids[].datasets[].beam)"})),
            "`Scatter`.`num_of_copies`: the manifest has no `sbids[].datasets[].beam`",
        ),
    ] {
        let error = graph(&value).unwrap().patch(&patches(list), &manifest()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.failure_class(), "validation");
    }
}

#[test]
fn a_field_that_the_active_configuration_overrides_is_changed_there_too() {
    let mut value = sample();
    value["activeGraphConfigId"] = json!("c");
    value["graphConfigurations"] = json!({
        "c": {"id": "c", "nodes": {"n2": {"fields": {"f3": {"value": 99, "comment": ""}}}}},
        "d": {"id": "d", "nodes": {"n2": {"fields": {"f3": {"value": 5}}}}},
    });
    let list = patches(json!([patch("Scatter", json!({"num_of_copies": "$count(sbids[])"}))]));
    let patched = graph(&value).unwrap().patch(&list, &manifest()).unwrap();
    assert_eq!(patched.value["graphConfigurations"]["c"]["nodes"]["n2"]["fields"]["f3"]["value"], 2);
    assert_eq!(patched.value["graphConfigurations"]["d"]["nodes"]["n2"]["fields"]["f3"]["value"], 5);
    assert!(patched.summary[1].in_configuration && !patched.summary[0].in_configuration);

    // What the translator would ignore in silence is said.
    value["graphConfigurations"]["c"]["nodes"] = json!({"n7": {"fields": {}}});
    assert!(graph(&value).unwrap_err().to_string().contains("names a node n7"));
    value["graphConfigurations"]["c"]["nodes"] = json!({"n2": {"fields": {"f9": {}}}});
    assert!(graph(&value).unwrap_err().to_string().contains("names a field f9"));
}

#[test]
fn a_graph_is_only_taken_with_the_digest_it_must_have() {
    let bytes = serde_json::to_vec(&sample()).unwrap();
    assert!(matches!(Graph::check(&bytes, &"0".repeat(64)), Err(GraphError::Digest { .. })));
    assert!(Graph::check(&bytes, &sha256_of(&bytes).to_uppercase()).is_ok());
    for value in [
        json!({"nodes": []}),
        json!({"nodeDataArray": [{"name": "a"}]}),
        json!({"nodeDataArray": [{"id": "a"}, {"id": "a"}]}),
    ] {
        assert!(matches!(graph(&value), Err(GraphError::Malformed(_))), "{value}");
    }
    assert!(matches!(Graph::check(b"no json", &sha256_of(b"no json")), Err(GraphError::Malformed(_))));
}

#[tokio::test]
async fn a_graph_is_loaded_from_a_file_or_an_address_within_limits() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = serde_json::to_vec(&sample()).unwrap();
    std::fs::write(directory.path().join("a.graph"), &bytes).unwrap();
    std::fs::write(directory.path().join("big.graph"), vec![b' '; 16 * 1024 * 1024 + 1]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let served = bytes.clone();
    let router = axum::Router::new()
        .route("/a", axum::routing::get(move || async move { served }))
        .route("/big", axum::routing::get(|| async { vec![b' '; 16 * 1024 * 1024 + 1] }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let file = |path: &str| GraphSource { path: Some(path.into()), url: None, sha256: sha256_of(&bytes) };
    let address = |path: &str| GraphSource {
        path: None,
        url: Some(format!("{base}{path}")),
        sha256: sha256_of(&bytes),
    };
    let fetch = async |source: GraphSource| load(&source, &http(), directory.path()).await;
    assert_eq!(fetch(file("a.graph")).await.unwrap().value(), &sample());
    assert_eq!(fetch(address("/a")).await.unwrap().value(), &sample());
    assert!(matches!(fetch(file("none.graph")).await, Err(GraphError::Read { .. })));
    assert!(matches!(fetch(file("big.graph")).await, Err(GraphError::TooLarge)));
    assert!(matches!(fetch(address("/big")).await, Err(GraphError::TooLarge)));
    assert!(matches!(fetch(address("/none")).await, Err(GraphError::Status { status: 404, .. })));
    server.abort();
}
