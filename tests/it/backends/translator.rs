//! A real Translator Manager.

use super::daliuge::{dim_port, fresh, http, logical_graph, translator};
use beampipe::backends::graph::PhysicalGraph;
use beampipe::backends::translator::{Algorithm, TranslateError, Translator};
use serde_json::Value;
use std::time::Duration;

#[tokio::test]
async fn a_logical_graph_becomes_a_template_and_then_a_physical_graph() {
    let translator = translator();
    for algorithm in [Algorithm::Metis, Algorithm::Mysarkar, Algorithm::MinNumParts] {
        let template = translator
            .unroll_and_partition(&logical_graph("fanout-ok"), algorithm, 1, 0, "exec-42")
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", algorithm.as_str()));
        let template_graph = PhysicalGraph::parse(&template).unwrap();
        assert!(template_graph.drops.iter().all(|drop| drop.oid.starts_with("exec-42_")));
        // No islands is what older consoles ask for; the translator fails on it.
        let mapped = translator.map(&template, "127.0.0.1", dim_port(), 0).await.unwrap();
        let nodes = super::daliuge::dim().nodes().await.unwrap();
        let graph = PhysicalGraph::parse(&mapped).unwrap();
        graph.belongs_to(&nodes).unwrap();
        assert_eq!(graph.len(), 10);
    }
}

#[tokio::test]
async fn the_version_is_read() {
    assert_eq!(translator().version().await.unwrap().as_deref(), Some("6.6.0"));
}

#[tokio::test]
async fn a_graph_of_two_megabytes_is_taken() {
    let mut graph: Value = serde_json::from_slice(&logical_graph("fanout-ok")).unwrap();
    graph["modelData"]["detailedDescription"] = "x&=%é".repeat(400_000).into();
    let graph = graph.to_string();
    assert!(graph.len() > 2_000_000);
    translator().unroll_and_partition(graph.as_bytes(), Algorithm::Metis, 1, 1, "large").await.unwrap();
}

#[tokio::test]
async fn what_the_translator_cannot_read_is_rejected() {
    for (graph, said) in [("{", "malformed"), ("", "LG content")] {
        let unrolled = translator().unroll_and_partition(graph.as_bytes(), Algorithm::Metis, 1, 1, "x").await;
        let error = unrolled.unwrap_err();
        assert!(!error.may_be_asked_again(), "{error}");
        match error {
            TranslateError::Rejected { status: 400, detail, .. } => {
                assert!(detail.contains(said), "{detail}")
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_graph_it_cannot_unroll_looks_like_a_fault_of_its_own() {
    let mut broken: Value = serde_json::from_slice(&logical_graph("fanout-ok")).unwrap();
    broken["nodeDataArray"].as_array_mut().unwrap().pop();
    let mut empty: Value = serde_json::from_slice(&logical_graph("fanout-ok")).unwrap();
    empty["nodeDataArray"] = Value::Array(vec![]);
    for graph in [broken, empty] {
        let graph = graph.to_string();
        let unrolled = translator().unroll_and_partition(graph.as_bytes(), Algorithm::Metis, 1, 1, "x").await;
        match unrolled.unwrap_err() {
            TranslateError::Unavailable { status: 500, detail, .. } => {
                assert!(detail.contains("its log"), "{detail}");
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn mapping_without_the_manager_may_be_asked_again() {
    let translator = translator();
    let template = translator
        .unroll_and_partition(&logical_graph("one-fails"), Algorithm::Metis, 1, 1, &fresh("exec"))
        .await
        .unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = translator.map(&template, "127.0.0.1", nobody, 1).await.unwrap_err();
    assert!(matches!(error, TranslateError::Unavailable { status: 500, .. }), "{error}");
    assert!(error.may_be_asked_again());
}

#[tokio::test]
async fn a_translator_that_is_away_or_hangs_may_be_asked_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let translator = Translator::new(http(), &url).with_timeout(Duration::from_millis(300));
    let hangs = translator.version().await.unwrap_err();
    assert!(matches!(hangs, TranslateError::Timeout { .. }) && hangs.may_be_asked_again(), "{hangs}");
    drop(listener);
    let away = translator.map(b"[]", "127.0.0.1", 1, 1).await.unwrap_err();
    assert!(matches!(away, TranslateError::Unreachable { .. }) && away.may_be_asked_again(), "{away}");
}
