//! Reads a **physical graph**: the list of drops a translator answers with, each with the node it is mapped to. The
//! bytes themselves travel unchanged; only what is needed to start and to judge a run is read here. Pure.
//!
//! Format: DALiuGE 6.6.0. The list ends with one element that is no drop (`{}`, or reproducibility data): it has no
//! `oid`, and it belongs to the list.

use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// The drops of a graph, without the last element that is none.
#[derive(Debug, Clone, Default)]
pub struct PhysicalGraph {
    pub drops: Vec<Drop>,
}

/// One drop, as far as we read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    pub oid: String,
    pub name: String,
    pub kind: Kind,
    pub dropclass: Option<String>,
    /// `host:rest:events:rpc`, or `#0` before it is mapped.
    pub node: Option<String>,
    /// The oids that feed it, streaming ones too.
    pub inputs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Application,
    Data,
    Other(String),
}

#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error("the graph is not a list of drops: {0}")]
    NotAList(#[from] serde_json::Error),
    #[error("the graph has no drops")]
    Empty,
    #[error("drop {oid} is on node {node}, which this manager does not have")]
    ForeignNode { oid: String, node: String },
}

/// `inputs` and its like hold `{"<oid>": "<port>"}` or a bare `"<oid>"`, both in one graph.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Bare(String),
    Named(BTreeMap<String, IgnoredAny>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Element {
    oid: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    category_type: Option<String>,
    #[serde(default)]
    dropclass: Option<String>,
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    inputs: Option<Vec<Reference>>,
    #[serde(default)]
    streaming_inputs: Option<Vec<Reference>>,
    #[serde(default)]
    producers: Option<Vec<Reference>>,
}

impl PhysicalGraph {
    /// Reads the list a translator answered with.
    pub fn parse(bytes: &[u8]) -> Result<Self, GraphError> {
        let elements: Vec<Element> = serde_json::from_slice(bytes)?;
        let drops: Vec<Drop> = elements.into_iter().filter_map(Drop::of).collect();
        if drops.is_empty() { Err(GraphError::Empty) } else { Ok(Self { drops }) }
    }

    pub fn len(&self) -> usize {
        self.drops.len()
    }

    pub fn is_empty(&self) -> bool {
        self.drops.is_empty()
    }

    /// The oids that nothing feeds: where a run starts. Without them a deployed graph stands still for ever.
    pub fn roots(&self) -> Vec<String> {
        roots(&self.drops)
    }

    /// Checks that every drop is on one of the manager's nodes (`host:rest:events:rpc`; a graph may say `host:rest`).
    pub fn belongs_to(&self, nodes: &[String]) -> Result<(), GraphError> {
        let known = |name: &str| {
            nodes
                .iter()
                .any(|node| node == name || node.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))
        };
        let stranger = self.drops.iter().find(|drop| !drop.node.as_deref().is_some_and(known));
        match stranger {
            None => Ok(()),
            Some(drop) => Err(GraphError::ForeignNode {
                oid: drop.oid.clone(),
                node: drop.node.clone().unwrap_or_else(|| "(none)".into()),
            }),
        }
    }
}

impl Drop {
    fn of(element: Element) -> Option<Drop> {
        let kind = match element.category_type.as_deref() {
            Some("Application") => Kind::Application,
            Some("Data") => Kind::Data,
            other => Kind::Other(other.unwrap_or_default().to_owned()),
        };
        let inputs = [element.inputs, element.streaming_inputs, element.producers]
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(|reference| match reference {
                Reference::Bare(oid) => vec![oid],
                Reference::Named(ports) => ports.into_keys().collect(),
            })
            .collect();
        let oid = element.oid?;
        let name = element.name.unwrap_or_else(|| oid.clone());
        Some(Drop { oid, name, kind, dropclass: element.dropclass, node: element.node, inputs })
    }
}

/// The oids of the drops that nothing feeds: data is taken as complete, applications are started.
pub fn roots(drops: &[Drop]) -> Vec<String> {
    drops.iter().filter(|drop| drop.inputs.is_empty()).map(|drop| drop.oid.clone()).collect()
}
