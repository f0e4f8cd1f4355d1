//! Checks of what comes after discovery: manifest, graph, patches, and the sections that are not run yet.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::project::config::{ProjectConfig, SOURCE_IDENTIFIER};
use crate::project::graph::{CountError, Expression, INGEST_FIELD, INGEST_NODE};
use crate::project::metadata::{EVALUATION_FLAGS, record_flags};
use crate::project::template;

use super::discovery::preset_flags;
use super::identity::check_url;
use super::{Report, nearest};

pub(super) fn check(config: &ProjectConfig, report: &mut Report) {
    check_manifest(config, report);
    check_graph(config, report);
    check_patches(config, report);
    if config.output_verification.required {
        report.error_hint(
            "output_verification.required",
            "output_verification_unsupported",
            "outputs cannot be verified yet, so an execution would never complete",
            Some("write `required: false`".to_owned()),
        );
    }
    if config.extension.is_some() {
        report.error_hint(
            "extension",
            "extension_unsupported",
            "hooks cannot be run yet, and running without them would not be what is asked for",
            Some("leave the section out".to_owned()),
        );
    }
    let execution = &config.automation.execution;
    let discovery = &config.automation.discovery;
    if execution.min_sources_to_trigger > execution.tick_execution_source_limit {
        let message = "more sources are waited for than a tick looks at: nothing would ever start";
        report.error("automation.execution.min_sources_to_trigger", "limits_contradict", message);
    }
    if discovery.batch_size > discovery.tick_discovery_source_limit {
        let message = "a batch is larger than what a tick takes, so none is ever full";
        report.warn("automation.discovery.batch_size", "limits_contradict", message);
    }
}

fn check_manifest(config: &ProjectConfig, report: &mut Report) {
    let manifest = &config.manifest;
    if manifest.group_by != [SOURCE_IDENTIFIER, "sbid"] {
        report.error_hint(
            "manifest.group_by",
            "unsupported_grouping",
            "a manifest is grouped by source and scheduling block",
            Some("write `group_by: [source_identifier, sbid]`, or leave it out".to_owned()),
        );
    }
    for (field, given) in [("path", &manifest.path), ("expand_from", &manifest.expand_from)] {
        if given.is_some() {
            report.warn(format!("manifest.{field}"), "no_effect", "nothing here depends on it");
        }
    }
    let none = BTreeMap::new();
    let templates = [
        ("source_template", &manifest.source_template),
        ("dataset_template", manifest.dataset_template.as_ref().unwrap_or(&none)),
    ];
    for (section, fields) in templates {
        for (field, value) in fields {
            let path = format!("manifest.{section}.{field}");
            if section == "source_template" && [SOURCE_IDENTIFIER, "sbids"].contains(&field.as_str()) {
                report.error(&path, "reserved_field", format!("`{field}` is set by the manifest itself"));
            }
            check_template(config, section, value, &path, report);
        }
    }
    if let Some(fields) = &manifest.dataset_template
        && !fields.contains_key("dataset_id")
        && !fields.contains_key("visibility_filename")
    {
        let message = "datasets in the manifest have neither `dataset_id` nor `visibility_filename`";
        report.warn("manifest.dataset_template", "no_dataset_field", message);
    }
}

fn check_template(config: &ProjectConfig, section: &str, value: &Value, path: &str, report: &mut Report) {
    let places = match template::places(value) {
        Ok(places) => places,
        Err(error) => return report.error(path, "manifest_template_syntax", error.to_string()),
    };
    let preset = preset_flags(config);
    let own = config.discovery.prepare_metadata.discovery_flags.keys().map(String::as_str);
    let known: BTreeSet<&str> = own.chain(preset.iter().map(|(flag, _)| *flag)).collect();
    let of_block = |flag: &str| {
        record_flags(config).any(|(name, _)| name == flag)
            || (EVALUATION_FLAGS.contains(&flag) && preset.iter().any(|(name, _)| *name == flag))
    };
    for flag in places.iter().filter_map(|place| place.strip_prefix("flags.")) {
        let flag = flag.split('.').next().unwrap_or(flag);
        if !known.contains(flag) {
            let message = format!("there is no flag `{flag}`");
            report.error_hint(path, "unknown_flag", message, nearest(flag, known.iter().copied()));
        } else if section == "source_template" && of_block(flag) {
            let message = format!("`flags.{flag}` is known for each SBID, not for the source");
            let hint = Some("use it in `dataset_template`".to_owned());
            report.error_hint(path, "block_flag_in_source", message, hint);
        }
    }
}

fn check_graph(config: &ProjectConfig, report: &mut Report) {
    let graph = &config.graph;
    // A section that is missing was reported with the shape.
    let reported =
        report.errors.iter().any(|error| error.path == "graph" || error.path.starts_with("graph."));
    match (&graph.path, &graph.url) {
        (Some(_), Some(_)) => {
            report.error("graph", "graph_source_ambiguous", "a graph has a `path` or a `url`, not both");
        }
        (None, None) if !reported => {
            report.error("graph", "graph_source_missing", "a graph has a `path` or a `url`");
        }
        (None, Some(url)) => check_url("graph.url", url, report),
        (Some(path), None) if path.trim().is_empty() || path.contains('\0') => {
            report.error("graph.path", "bad_path", "this is no path");
        }
        _ => {}
    }
    let hex = graph.sha256.len() == 64 && graph.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hex && !graph.sha256.is_empty() {
        let hint = Some("64 hex digits, as `sha256sum` prints them".to_owned());
        report.error_hint("graph.sha256", "bad_sha256", "this is no SHA-256", hint);
    } else if graph.sha256.is_empty() && !reported {
        report.error("graph.sha256", "bad_sha256", "this is no SHA-256");
    }
}

fn check_patches(config: &ProjectConfig, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (index, patch) in config.graph_patches.iter().enumerate() {
        let path = format!("graph_patches[{index}]");
        if !patch.target.kind.is_empty() && patch.target.kind != "node_name" {
            let message = format!("a node is found by `node_name`, not by `{}`", patch.target.kind);
            let hint = Some("write `kind: node_name`".to_owned());
            report.error_hint(format!("{path}.match.kind"), "unknown_match_kind", message, hint);
        }
        if patch.set.is_empty() {
            report.error(format!("{path}.set"), "empty_patch", "this patch sets nothing");
        }
        for (field, value) in &patch.set {
            let path = format!("{path}.set.{field}");
            let node = patch.target.equals.as_str();
            if !seen.insert((node, field.as_str())) {
                let message = format!("`{node}`.`{field}` is set twice");
                report.error(&path, "duplicate_patch", message);
            }
            if node == INGEST_NODE && field == INGEST_FIELD {
                let message = "the manifest is put here; a patch would replace it";
                report.error(&path, "patch_overwrites_manifest", message);
            }
            check_expression(config, value, &path, report);
        }
    }
}

fn check_expression(config: &ProjectConfig, value: &Value, path: &str, report: &mut Report) {
    match Expression::parse(value) {
        Ok(None) => {}
        Ok(Some(expression)) => {
            let own = config.manifest.source_template.keys().map(String::as_str);
            let known: Vec<&str> = own.chain(["sbids"]).collect();
            if !known.contains(&expression.root()) {
                let message = format!("a source in the manifest has no `{}`", expression.root());
                let hint = if expression.root() == "sources" {
                    Some("paths start at each source: `sbids[].datasets[]`".to_owned())
                } else {
                    nearest(expression.root(), known)
                };
                report.error_hint(path, "patch_path_unknown", message, hint);
            }
        }
        Err(error) => {
            let code = match error {
                CountError::Syntax(_) => "patch_syntax",
                _ => "patch_path",
            };
            let hint = Some("such as `$count(sbids[].datasets[])`".to_owned());
            report.error_hint(path, code, error.to_string(), hint);
        }
    }
}
