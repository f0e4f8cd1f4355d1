//! What a configuration would do for one source, without doing it: the queries as they would be sent, limits, patches.
//!
//! Pure, so that `beampipe project explain` needs neither a service nor an archive. Enrichments keep their `{sbid}`: which
//! there are only the archive knows.

use serde_json::{Value, json};

use crate::archives::tap::adql::Template;

use super::config::ProjectConfig;
use super::metadata::{PrepareError, plan, variables};
use super::transforms::text_of;

/// The explanation as data; [`text`] is the same for people.
pub fn explain(config: &ProjectConfig, identifier: &str) -> Result<Value, PrepareError> {
    let endpoints = config.endpoints();
    let endpoint = |adapter: &str| endpoints.get(adapter).cloned();
    let queries: Vec<Value> = plan(config, identifier)?
        .into_iter()
        .map(|query| json!({"name": query.name, "url": endpoint(&query.adapter), "adapter": query.adapter, "adql": query.adql}))
        .collect();
    let known = variables(config, identifier);
    let mut enrichments = Vec::new();
    for query in &config.discovery.enrichments {
        let failed = |problem: String| PrepareError::Template { query: query.name.clone(), problem };
        let template = Template::parse(&query.template).map_err(|error| failed(error.to_string()))?;
        let adql = template.preview(&known).map_err(|error| failed(error.to_string()))?;
        enrichments.push(json!({
            "name": query.name, "url": endpoint(&query.adapter), "adapter": query.adapter, "adql": adql,
        }));
    }
    let limits = config.tap_limits();
    let patches: Vec<Value> = config
        .graph_patches
        .iter()
        .flat_map(|patch| {
            patch
                .set
                .iter()
                .map(|(field, value)| json!({"node": patch.target.equals, "field": field, "value": value}))
        })
        .collect();
    Ok(json!({
        "project_id": config.id(),
        "source_identifier": identifier,
        "variables": known,
        "queries": queries,
        "enrichments_for_each_sbid": enrichments,
        "require": config.discovery.require,
        "limits": {
            "timeout_seconds": limits.timeout.as_secs(),
            "retries": limits.retries,
            "max_bytes": limits.max_bytes,
            "max_rows": limits.maxrec,
            "fail_open": config.adapters.tap.fail_open,
        },
        "graph": config.graph,
        "graph_patches": patches,
        "automation": config.automation,
    }))
}

/// The explanation for people.
pub fn text(config: &ProjectConfig, identifier: &str) -> Result<String, PrepareError> {
    let all = explain(config, identifier)?;
    let shown = |value: &Value| text_of(value).unwrap_or_else(|| "-".to_owned());
    let mut out = format!("{} for source {identifier}\n", config.id());
    out.push_str("\nvariables\n");
    for (name, value) in all["variables"].as_object().into_iter().flatten() {
        out.push_str(&format!("  {name} = {}\n", shown(value)));
    }
    for (title, key) in [("queries", "queries"), ("enrichments, for each SBID", "enrichments_for_each_sbid")]
    {
        out.push_str(&format!("\n{title}\n"));
        for query in all[key].as_array().into_iter().flatten() {
            let name = shown(&query["name"]);
            out.push_str(&format!(
                "  {name}, sent to {} ({})\n",
                shown(&query["adapter"]),
                shown(&query["url"])
            ));
            for line in shown(&query["adql"]).lines().filter(|line| !line.trim().is_empty()) {
                out.push_str(&format!("      {}\n", line.trim_end()));
            }
        }
    }
    out.push_str("\nconditions of a dataset\n");
    for condition in all["require"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        let tests = condition.iter().filter(|(name, value)| *name != "field" && !value.is_null());
        let tests: Vec<String> = tests.map(|(name, value)| format!("{name} {}", shown(value))).collect();
        out.push_str(&format!("  {}: {}\n", shown(&condition["field"]), tests.join(", ")));
    }
    out.push_str("\nlimits\n");
    for (name, value) in all["limits"].as_object().into_iter().flatten() {
        out.push_str(&format!("  {name} = {}\n", shown(value)));
    }
    out.push_str("\ngraph\n");
    for name in ["path", "url", "sha256"] {
        if !all["graph"][name].is_null() {
            out.push_str(&format!("  {name} = {}\n", shown(&all["graph"][name])));
        }
    }
    for patch in all["graph_patches"].as_array().into_iter().flatten() {
        let (node, field) = (shown(&patch["node"]), shown(&patch["field"]));
        out.push_str(&format!("  {node}.{field} = {}\n", shown(&patch["value"])));
    }
    for (section, settings) in all["automation"].as_object().into_iter().flatten() {
        out.push_str(&format!("\nautomation.{section}\n"));
        for (name, value) in settings.as_object().into_iter().flatten() {
            out.push_str(&format!("  {name} = {}\n", shown(value)));
        }
    }
    Ok(out)
}
