//! The configuration as types. Field names are those of the YAML; [`super::validate()`] explains what is wrong with one.
//!
//! Invariant: a [`ProjectConfig`] that [`super::validate::validate`] handed out has no diagnostics of severity error.
//! Sections a survey leaves out have their defaults here, and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::archives::tap::Limits;

use super::transforms::{Transform, TransformSpec};

pub const API_VERSION: &str = "beampipe.dev/v2";
pub const KIND: &str = "ProjectConfig";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectConfig {
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub definitions: Definitions,
    pub source_identity: SourceIdentity,
    pub adapters: Adapters,
    pub discovery: Discovery,
    pub manifest: Manifest,
    pub graph: Graph,
    pub graph_patches: Vec<GraphPatch>,
    pub output_verification: OutputVerification,
    pub automation: Automation,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metadata {
    /// The project module.
    pub id: String,
    pub description: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Definitions {
    pub transforms: BTreeMap<String, TransformSpec>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceIdentity {
    pub canonical: String,
    pub template_vars: BTreeMap<String, TemplateVar>,
}

impl Default for SourceIdentity {
    fn default() -> Self {
        Self { canonical: SOURCE_IDENTIFIER.to_owned(), template_vars: BTreeMap::new() }
    }
}

/// The variable and field every source has.
pub const SOURCE_IDENTIFIER: &str = "source_identifier";

/// A variable made from the source identifier.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateVar {
    /// `canonical`, the identifier itself; it is also what is meant when this is left out.
    pub from: Option<String>,
    pub transform: Names,
}

/// One name, or a list of names applied in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Names {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::None => &[][..],
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
        .iter()
        .map(String::as_str)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapters {
    pub required: Vec<String>,
    pub casda_tap_url: Option<String>,
    pub vizier_tap_url: Option<String>,
    /// TAP address of any archive by its name; goes before the two fields above.
    pub endpoints: BTreeMap<String, String>,
    pub tap: TapSettings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapSettings {
    /// For one request, in seconds.
    pub timeout_seconds: u64,
    pub retries: usize,
    /// Whether a source is prepared although a query after the first one failed.
    pub fail_open: bool,
}

impl Default for TapSettings {
    fn default() -> Self {
        Self { timeout_seconds: 30, retries: 2, fail_open: false }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// The first gives the datasets; all run once a source.
    pub queries: Vec<Query>,
    /// Run once for each SBID of the source.
    pub enrichments: Vec<Query>,
    pub prepare_metadata: PrepareMetadata,
    pub require: Vec<Requirement>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    pub name: String,
    pub adapter: String,
    /// ADQL with `{variable}` places, see [`crate::archives::tap::adql`].
    pub template: String,
    /// What `{source_identifier}` is in this template.
    pub source_id_transform: Names,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareMetadata {
    pub field_map: BTreeMap<String, FieldSource>,
    pub discovery_flags: BTreeMap<String, FieldSource>,
    pub signature: SignatureSettings,
}

/// Where a field or flag comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldSource {
    /// A column of the first query, `source_identifier`, `enrichments.<query>` (all its rows) or
    /// `enrichments.<query>.<column>` (of its one row).
    pub from: String,
    pub transform: Names,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignatureSettings {
    pub exclude_fields: Vec<String>,
    pub include_discovery_flags: bool,
}

/// A condition a dataset must meet; else it is held back with the reason. Exactly one of the tests is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requirement {
    pub field: String,
    /// The field has a value (or, `false`, has none).
    pub present: Option<bool>,
    pub equals: Option<Value>,
    pub one_of: Option<Vec<Value>>,
    pub not_in: Option<Vec<Value>>,
    /// The field is a date or time that is not in the future.
    pub reached: Option<bool>,
    /// Said instead of the reason made from the condition.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    pub group_by: Vec<String>,
    pub source_template: BTreeMap<String, Value>,
    pub dataset_template: Option<BTreeMap<String, Value>>,
    /// Accepted from older configurations; without effect, and validation says so.
    pub path: Option<String>,
    pub expand_from: Option<String>,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            group_by: vec![SOURCE_IDENTIFIER.to_owned(), "sbid".to_owned()],
            source_template: BTreeMap::new(),
            dataset_template: None,
            path: None,
            expand_from: None,
        }
    }
}

/// The graph a survey runs: at one of two places, and always known by its digest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Graph {
    pub path: Option<String>,
    pub url: Option<String>,
    pub sha256: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphPatch {
    #[serde(rename = "match")]
    pub target: PatchMatch,
    pub set: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatchMatch {
    /// `node_name` is the only kind there is.
    pub kind: String,
    pub equals: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputVerification {
    pub required: bool,
    pub inventory_schema: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Automation {
    pub discovery: DiscoveryAutomation,
    pub execution: ExecutionAutomation,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryAutomation {
    pub enabled: bool,
    pub batch_size: u64,
    pub stale_after_hours: f64,
    pub tick_discovery_source_limit: u64,
    pub tick_discovery_batch_limit: u64,
    pub concurrent_discovery_batch_limit: u64,
    pub queue_max_depth: u64,
    pub claim_ttl_minutes: u64,
}

impl Default for DiscoveryAutomation {
    fn default() -> Self {
        Self {
            enabled: true,
            batch_size: 10,
            stale_after_hours: 24.0,
            tick_discovery_source_limit: 100,
            tick_discovery_batch_limit: 10,
            concurrent_discovery_batch_limit: 4,
            queue_max_depth: 1000,
            claim_ttl_minutes: 30,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExecutionAutomation {
    pub enabled: bool,
    pub archive_name: String,
    pub deployment_profile_name: Option<String>,
    pub max_sources_per_execution: u64,
    pub min_sources_to_trigger: u64,
    pub max_wait_minutes: u64,
    pub tick_execution_source_limit: u64,
    pub tick_execution_run_limit: u64,
    pub concurrent_execution_run_limit: u64,
    pub claim_ttl_minutes: u64,
    pub execution_rest_remote_poll_interval_seconds: f64,
    pub execution_rest_remote_poll_max_rounds: u64,
    pub execution_slurm_remote_poll_interval_seconds: f64,
    pub execution_slurm_remote_poll_max_rounds: u64,
}

impl Default for ExecutionAutomation {
    fn default() -> Self {
        Self {
            enabled: false,
            archive_name: "casda".to_owned(),
            deployment_profile_name: None,
            max_sources_per_execution: 1,
            min_sources_to_trigger: 1,
            max_wait_minutes: 60,
            tick_execution_source_limit: 100,
            tick_execution_run_limit: 10,
            concurrent_execution_run_limit: 4,
            claim_ttl_minutes: 30,
            execution_rest_remote_poll_interval_seconds: 10.0,
            execution_rest_remote_poll_max_rounds: 8640,
            execution_slurm_remote_poll_interval_seconds: 30.0,
            execution_slurm_remote_poll_max_rounds: 20160,
        }
    }
}

/// Hooks written by a survey; refused by validation until they can be run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extension {
    pub wasm_sha256: Option<String>,
    pub hooks: Vec<String>,
}

impl ProjectConfig {
    /// A configuration from the specification kept in the log. It was validated when it was uploaded.
    pub fn from_spec(spec: &Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(super::validate::without_nulls(spec))
    }

    /// The project module.
    pub fn id(&self) -> &str {
        &self.metadata.id
    }

    /// The TAP address of every adapter that has one.
    pub fn endpoints(&self) -> BTreeMap<String, String> {
        let mut endpoints = BTreeMap::new();
        let named = [("casda", &self.adapters.casda_tap_url), ("vizier", &self.adapters.vizier_tap_url)];
        for (name, url) in named {
            if let Some(url) = url {
                endpoints.insert(name.to_owned(), url.clone());
            }
        }
        endpoints.extend(self.adapters.endpoints.clone());
        endpoints
    }

    /// What a TAP client of this project allows a service.
    pub fn tap_limits(&self) -> Limits {
        Limits {
            timeout: Duration::from_secs(self.adapters.tap.timeout_seconds),
            retries: self.adapters.tap.retries,
            ..Limits::default()
        }
    }

    /// The transforms behind a name or a list of names. Unknown names were refused by validation and change nothing.
    pub fn transforms(&self, names: &Names) -> Vec<Transform> {
        names.iter().filter_map(|name| Transform::named(name, &self.definitions.transforms).ok()).collect()
    }
}
