//! A survey's logical graph: fetched, checked against its digest, given the manifest, patched.
//!
//! Invariant: a change either reaches exactly one field of exactly one node or is an error; DALiuGE's translator ignores
//! silently what it does not find. A field that the graph's active configuration overrides is changed there as well, as
//! the translator would put the override back. Deliberately absent: translation, see the backends.

pub mod count;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use super::config::{Graph as GraphSource, GraphPatch};
use super::manifest::Manifest;

pub use count::{CountError, Expression};

/// Most bytes of a graph.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;
/// For fetching a graph, from connecting to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The node that takes the manifest, and its field.
pub const INGEST_NODE: &str = "beampipe-ingest";
pub const INGEST_FIELD: &str = "manifest_path";

/// Why there is no graph to run.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error("cannot read the graph {path}")]
    Read {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("cannot fetch the graph from {host}")]
    Fetch {
        host: String,
        #[source]
        cause: reqwest::Error,
    },
    #[error("{host} answered {status} for the graph")]
    Status { host: String, status: u16 },
    #[error("the graph did not arrive within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the graph is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Says not what was found: whoever may name a path would learn the digest of any file.
    #[error("the graph's SHA-256 is not {expected}, which the configuration requires")]
    Digest { expected: String },
    #[error("the graph {path} lies outside of the service's graph directory (work.graph_dir)")]
    Outside { path: String },
    #[error("the graph cannot be read: {0}")]
    Malformed(String),
    #[error("the graph has no node `{0}`")]
    NoNode(String),
    #[error("the graph has {count} nodes `{name}`")]
    AmbiguousNode { name: String, count: usize },
    #[error("the node `{node}` has no field `{field}`")]
    NoField { node: String, field: String },
    #[error("the node `{node}` has {count} fields `{field}`")]
    AmbiguousField { node: String, field: String, count: usize },
    #[error("two patches set `{node}`.`{field}`")]
    PatchedTwice { node: String, field: String },
    #[error("`{node}`.`{field}`: {cause}")]
    Count {
        node: String,
        field: String,
        #[source]
        cause: CountError,
    },
}

impl GraphError {
    /// The word operators see as `failure_class`.
    pub fn failure_class(&self) -> &'static str {
        match self {
            Self::Fetch { .. } => "connectivity",
            Self::Timeout => "timeout",
            Self::Status { status: 404, .. } => "not_found",
            Self::Status { .. } => "dependency_unavailable",
            Self::Read { .. } => "configuration",
            _ => "validation",
        }
    }
}

/// A graph as its source has it: the bytes have the digest the configuration requires.
#[derive(Debug, Clone)]
pub struct Graph {
    value: Value,
    /// As they came.
    pub bytes: Bytes,
    pub sha256: String,
}

/// A graph ready to be translated.
#[derive(Debug, Clone, PartialEq)]
pub struct Patched {
    pub value: Value,
    /// The bytes that are hashed, kept and sent.
    pub text: String,
    pub sha256: String,
    pub summary: Vec<Change>,
}

/// One field that was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub node: String,
    pub node_id: String,
    pub field: String,
    pub before: Value,
    /// The new value; for the manifest its digest, as it may be megabytes.
    pub after: Value,
    /// The `$count(…)` or `$sum(…)` behind the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Whether the active graph configuration overrode the field and was changed too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_configuration: bool,
}

/// Fetches a graph and checks its digest. A relative path starts at `directory`, and every path stays in it.
pub async fn load(
    source: &GraphSource,
    http: &reqwest::Client,
    directory: &Path,
) -> Result<Graph, GraphError> {
    let bytes = tokio::time::timeout(TIMEOUT, async {
        match (&source.path, &source.url) {
            (Some(path), _) => read(directory, path).await,
            (None, Some(url)) => fetch(http, url).await,
            (None, None) => Err(GraphError::Malformed("neither a path nor a url is given".to_owned())),
        }
    });
    let bytes = bytes.await.map_err(|_| GraphError::Timeout)??;
    Graph::check(&bytes, &source.sha256)
}

/// The same for a graph that is a file; `None` when it is at a URL.
pub async fn load_file(source: &GraphSource, directory: &Path) -> Option<Result<Graph, GraphError>> {
    let path = source.path.as_ref()?;
    let bytes = tokio::time::timeout(TIMEOUT, read(directory, path)).await;
    Some(bytes.unwrap_or(Err(GraphError::Timeout)).and_then(|bytes| Graph::check(&bytes, &source.sha256)))
}

async fn read(directory: &Path, path: &str) -> Result<Vec<u8>, GraphError> {
    use tokio::io::AsyncReadExt as _;
    let failed = |cause| GraphError::Read { path: path.to_owned(), cause };
    // Links are followed before it is compared.
    let directory = tokio::fs::canonicalize(directory).await.map_err(failed)?;
    let found = tokio::fs::canonicalize(directory.join(path)).await.map_err(failed)?;
    if !found.starts_with(&directory) {
        return Err(GraphError::Outside { path: path.to_owned() });
    }
    let file = tokio::fs::File::open(&found).await.map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > MAX_BYTES { Err(GraphError::TooLarge) } else { Ok(bytes) }
}

async fn fetch(http: &reqwest::Client, url: &str) -> Result<Vec<u8>, GraphError> {
    let host =
        url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let failed = |cause: reqwest::Error| {
        if cause.is_timeout() {
            GraphError::Timeout
        } else {
            GraphError::Fetch { host: host.clone(), cause: cause.without_url() }
        }
    };
    let response = http.get(url).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(GraphError::Status { host, status: response.status().as_u16() });
    }
    let mut bytes = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(failed)?;
        if bytes.len() + chunk.len() > MAX_BYTES {
            return Err(GraphError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

impl Graph {
    /// A graph from its bytes, if they have the digest and are a graph.
    pub fn check(bytes: &[u8], sha256: &str) -> Result<Self, GraphError> {
        let found = canonical::sha256_of(bytes);
        if !found.eq_ignore_ascii_case(sha256) {
            return Err(GraphError::Digest { expected: sha256.to_owned() });
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| GraphError::Malformed(error.to_string()))?;
        let graph = Self { value, bytes: Bytes::copy_from_slice(bytes), sha256: found };
        graph.check_ids()?;
        Ok(graph)
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Node ids are how everything else refers to nodes, and the translator ignores those it does not know.
    fn check_ids(&self) -> Result<(), GraphError> {
        let wrong = |message: String| Err(GraphError::Malformed(message));
        let Some(nodes) = self.value.get("nodeDataArray").and_then(Value::as_array) else {
            return wrong("no nodeDataArray".to_owned());
        };
        let mut ids = std::collections::BTreeSet::new();
        for node in nodes {
            let Some(id) = id_of(node) else {
                return wrong(format!("the node `{}` has no id", name_of(node)));
            };
            if !ids.insert(id) {
                return wrong(format!("two nodes have the id {id}"));
            }
        }
        let Some(overrides) = active_configuration(&self.value) else { return Ok(()) };
        for (node_id, entry) in overrides {
            let Some(node) = nodes.iter().find(|node| id_of(node) == Some(node_id)) else {
                return wrong(format!("the active configuration names a node {node_id} that there is not"));
            };
            let fields = entry.get("fields").and_then(Value::as_object);
            for field_id in fields.into_iter().flat_map(|fields| fields.keys()) {
                let known = fields_of(node).iter().any(|field| id_of(field) == Some(field_id));
                if !known {
                    let name = name_of(node);
                    return wrong(format!(
                        "the active configuration names a field {field_id} that `{name}` has not"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether the graph takes its manifest at an ingest node. One without gets its work through patches only.
    pub fn has_ingest_node(&self) -> bool {
        nodes_named(&self.value, INGEST_NODE) > 0
    }

    /// The graph with the manifest injected and every patch applied.
    pub fn patch(&self, patches: &[GraphPatch], manifest: &Manifest) -> Result<Patched, GraphError> {
        let mut value = self.value.clone();
        let mut summary: Vec<Change> = Vec::new();
        if self.has_ingest_node() {
            let mut change =
                set(&mut value, INGEST_NODE, INGEST_FIELD, Value::from(manifest.text.as_str()), true)?;
            change.after = Value::from(format!("sha256:{}", manifest.sha256));
            summary.push(change);
        }
        for patch in patches {
            let node = &patch.target.equals;
            for (field, wanted) in &patch.set {
                if summary.iter().any(|change| change.node == *node && change.field == *field) {
                    return Err(GraphError::PatchedTwice { node: node.clone(), field: field.clone() });
                }
                let failed = |cause| GraphError::Count { node: node.clone(), field: field.clone(), cause };
                let expression = Expression::parse(wanted).map_err(failed)?;
                let new = match &expression {
                    Some(expression) => expression.evaluate(&manifest.value).map_err(failed)?,
                    None => wanted.clone(),
                };
                let mut change = set(&mut value, node, field, new, false)?;
                change.expression = expression.map(|expression| expression.to_string());
                summary.push(change);
            }
        }
        let text = canonical::text(&value);
        Ok(Patched { sha256: canonical::sha256_of(text.as_bytes()), value, text, summary })
    }
}

/// Gives one field of one node a value; `lock` also makes it read-only for who opens the graph in an editor.
fn set(graph: &mut Value, node: &str, field: &str, new: Value, lock: bool) -> Result<Change, GraphError> {
    match nodes_named(graph, node) {
        1 => {}
        0 => return Err(GraphError::NoNode(node.to_owned())),
        count => return Err(GraphError::AmbiguousNode { name: node.to_owned(), count }),
    }
    let no_field = || GraphError::NoField { node: node.to_owned(), field: field.to_owned() };
    let nodes = graph.get_mut("nodeDataArray").and_then(Value::as_array_mut);
    let found = nodes.into_iter().flatten().find(|other| name_of(other) == node);
    let found = found.ok_or_else(|| GraphError::NoNode(node.to_owned()))?;
    let node_id = id_of(found).unwrap_or_default().to_owned();
    let fields = found.get_mut("fields").and_then(Value::as_array_mut).ok_or_else(no_field)?;
    let mut matching: Vec<&mut Value> = fields.iter_mut().filter(|other| name_of(other) == field).collect();
    if matching.len() > 1 {
        let count = matching.len();
        return Err(GraphError::AmbiguousField { node: node.to_owned(), field: field.to_owned(), count });
    }
    let entry = matching.pop().and_then(|field| field.as_object_mut()).ok_or_else(no_field)?;
    let before = entry.insert("value".to_owned(), new.clone()).unwrap_or_default();
    if lock {
        entry.insert("readonly".to_owned(), Value::Bool(true));
    }
    let field_id = entry.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let in_configuration = set_override(graph, &node_id, &field_id, &new);
    Ok(Change {
        node: node.to_owned(),
        node_id,
        field: field.to_owned(),
        before,
        after: new,
        expression: None,
        in_configuration,
    })
}

fn set_override(graph: &mut Value, node_id: &str, field_id: &str, new: &Value) -> bool {
    let Some(active) = graph.get("activeGraphConfigId").and_then(Value::as_str).map(str::to_owned) else {
        return false;
    };
    let entry = graph
        .get_mut("graphConfigurations")
        .and_then(|all| all.get_mut(active))
        .and_then(|configuration| configuration.get_mut("nodes"))
        .and_then(|nodes| nodes.get_mut(node_id))
        .and_then(|node| node.get_mut("fields"))
        .and_then(|fields| fields.get_mut(field_id))
        .and_then(Value::as_object_mut);
    entry.is_some_and(|entry| entry.insert("value".to_owned(), new.clone()).is_some())
}

/// The overrides of the configuration that the translator applies, by node id.
fn active_configuration(graph: &Value) -> Option<&serde_json::Map<String, Value>> {
    let active = graph.get("activeGraphConfigId")?.as_str()?;
    graph.get("graphConfigurations")?.get(active)?.get("nodes")?.as_object()
}

fn nodes_named(graph: &Value, name: &str) -> usize {
    let nodes = graph.get("nodeDataArray").and_then(Value::as_array);
    nodes.into_iter().flatten().filter(|node| name_of(node) == name).count()
}

fn fields_of(node: &Value) -> &[Value] {
    node.get("fields").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn name_of(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn id_of(value: &Value) -> Option<&str> {
    value.get("id").and_then(Value::as_str).filter(|id| !id.is_empty())
}
