//! Checks of the discovery section: queries and their templates, fields, flags, requirements.

use std::collections::BTreeSet;

use crate::archives::tap::adql::{Template, TemplateError, is_name};
use crate::project::config::{FieldSource, ProjectConfig, Query, SOURCE_IDENTIFIER};
use crate::project::metadata::{
    EVALUATION_FLAGS, POSITION_FLAGS, RA_DEC_VSYS, SBID_TO_EVAL_FILE, enrichment_of,
};

use super::identity::{adapter_without_endpoint, check_names};
use super::{Report, nearest};

pub(super) fn check(config: &ProjectConfig, report: &mut Report) {
    let discovery = &config.discovery;
    if discovery.queries.is_empty() && !report.errors.iter().any(|error| error.path.starts_with("discovery"))
    {
        report.error(
            "discovery.queries",
            "no_queries",
            "the first query gives the datasets, so one is needed",
        );
    }
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (list, queries, by_block) in
        [("queries", &discovery.queries, false), ("enrichments", &discovery.enrichments, true)]
    {
        for (index, query) in queries.iter().enumerate() {
            let path = format!("discovery.{list}[{index}]");
            check_query(config, query, by_block, &path, report);
            if !query.name.is_empty() && !names.insert(&query.name) {
                let message = format!("two queries are called `{}`", query.name);
                report.error(format!("{path}.name"), "duplicate_name", message);
            }
            used.insert(query.adapter.as_str());
        }
    }
    for name in used {
        if !name.is_empty() && !config.adapters.required.iter().any(|other| other == name) {
            let message =
                format!("queries ask `{name}`, so its health is not watched for this project unless listed");
            report.warn("adapters.required", "adapter_not_required", message);
        }
    }
    check_fields(config, report);
    check_flags(config, report);
    for (index, condition) in discovery.require.iter().enumerate() {
        let tests = [
            condition.present.is_some(),
            condition.equals.is_some(),
            condition.one_of.is_some(),
            condition.not_in.is_some(),
            condition.reached.is_some(),
        ];
        let path = format!("discovery.require[{index}]");
        if tests.into_iter().filter(|given| *given).count() != 1 {
            let message = "exactly one of `present`, `equals`, `one_of`, `not_in`, `reached` is needed";
            report.error(&path, "requirement_tests", message);
        }
        if condition.reached == Some(false) {
            report.error(format!("{path}.reached"), "requirement_tests", "`reached` can only be true");
        }
    }
}

/// The names `{…}` may have in a query of a source, or of a block.
fn known_variables(config: &ProjectConfig, by_block: bool) -> BTreeSet<&str> {
    let mut known: BTreeSet<&str> = config.source_identity.template_vars.keys().map(String::as_str).collect();
    known.insert(SOURCE_IDENTIFIER);
    if by_block {
        known.insert("sbid");
        let fields = &config.discovery.prepare_metadata.field_map;
        known.extend(
            fields.iter().filter(|(_, from)| enrichment_of(from).is_none()).map(|(name, _)| name.as_str()),
        );
    }
    known
}

fn check_query(config: &ProjectConfig, query: &Query, by_block: bool, path: &str, report: &mut Report) {
    if !query.name.is_empty() && !is_name(&query.name) {
        let message = format!("`{}` cannot be referred to as `enrichments.<name>`", query.name);
        report.error_hint(
            format!("{path}.name"),
            "bad_query_name",
            message,
            Some("letters, digits and `_`".to_owned()),
        );
    }
    let endpoints = config.endpoints();
    if !query.adapter.is_empty() && !endpoints.contains_key(&query.adapter) {
        adapter_without_endpoint(&format!("{path}.adapter"), &query.adapter, &endpoints, report);
    }
    check_names(config, &query.source_id_transform, &format!("{path}.source_id_transform"), report);
    let path = format!("{path}.template");
    if query.template.is_empty() {
        if !report.errors.iter().any(|error| error.path == path) {
            report.error(path, "template_not_a_query", "an empty query");
        }
        return;
    }
    match Template::parse(&query.template) {
        Err(error) => {
            let code = match error {
                TemplateError::Forbidden { .. } => "template_unsafe_place",
                TemplateError::Semicolon | TemplateError::NotSelect => "template_not_a_query",
                _ => "template_syntax",
            };
            report.error(path, code, error.to_string());
        }
        Ok(template) => {
            let known = known_variables(config, by_block);
            for name in template.variables().into_iter().filter(|name| !known.contains(name)) {
                let late = by_block && config.discovery.prepare_metadata.field_map.contains_key(name);
                if late {
                    let message = format!("`{{{name}}}` is known only when the enrichments are");
                    report.error(&path, "enrichment_variable", message);
                    continue;
                }
                let hint = if name == "sbid" && !by_block {
                    Some("a query that needs `{sbid}` belongs under `discovery.enrichments`".to_owned())
                } else {
                    nearest(name, known.iter().copied())
                };
                let message = format!("there is no variable `{name}`");
                report.error_hint(&path, "unknown_variable", message, hint);
            }
        }
    }
}

fn check_fields(config: &ProjectConfig, report: &mut Report) {
    let fields = &config.discovery.prepare_metadata.field_map;
    for (field, source) in fields {
        let path = format!("discovery.prepare_metadata.field_map.{field}");
        check_names(config, &source.transform, &format!("{path}.transform"), report);
        check_from(config, source, &format!("{path}.from"), report);
        if field == "sbid" && enrichment_of(source).is_some() {
            let message = "enrichments run for each SBID, so it cannot come from one";
            report.error(format!("{path}.from"), "sbid_from_enrichment", message);
        }
    }
    // Columns of the first query count too, and only the archive knows them.
    if !fields.contains_key("sbid") {
        let message = "no field `sbid`: the first query must have a column of that name";
        report.warn("discovery.prepare_metadata.field_map", "no_sbid_field", message);
    }
    if !fields.contains_key("dataset_id") && !fields.contains_key("visibility_filename") {
        let message =
            "neither `dataset_id` nor `visibility_filename`: the first query must have such a column";
        report.warn("discovery.prepare_metadata.field_map", "no_dataset_field", message);
    }
}

fn check_from(config: &ProjectConfig, source: &FieldSource, path: &str, report: &mut Report) {
    let Some((query, column)) = enrichment_of(source) else {
        if source.from.contains('.') {
            let hint = Some("a column of the first query, or `enrichments.<query>.<column>`".to_owned());
            report.error_hint(
                path,
                "bad_from",
                format!("`{}` is no place to take it from", source.from),
                hint,
            );
        }
        return;
    };
    let later = config.discovery.queries.iter().skip(1);
    let known: Vec<&str> =
        later.chain(&config.discovery.enrichments).map(|query| query.name.as_str()).collect();
    if config.discovery.queries.first().is_some_and(|first| first.name == query) {
        let message = format!("`{query}` is the first query: its columns are named without `enrichments.`");
        report.error(path, "from_first_query", message);
    } else if !known.contains(&query) {
        let message = format!("there is no query `{query}` after the first");
        report.error_hint(path, "unknown_query", message, nearest(query, known));
    } else if column.is_some_and(|column| column.is_empty() || column.contains('.')) {
        report.error(path, "bad_from", format!("`{}` does not name a column", source.from));
    }
}

fn check_flags(config: &ProjectConfig, report: &mut Report) {
    let metadata = &config.discovery.prepare_metadata;
    let preset = preset_flags(config);
    for (flag, source) in &metadata.discovery_flags {
        let path = format!("discovery.prepare_metadata.discovery_flags.{flag}");
        if flag.is_empty() || flag.contains('.') || flag.contains(['{', '}']) {
            report.error(&path, "bad_flag_name", format!("`{flag}` cannot stand in a template"));
        }
        if let Some((_, query)) = preset.iter().find(|(name, _)| name == flag) {
            let message = if EVALUATION_FLAGS.contains(&flag.as_str()) {
                format!("the query `{query}` sets this flag by its name, and not from here")
            } else {
                format!("the query `{query}` sets this flag by its name; what is said here goes before")
            };
            report.warn(&path, "preset_flag", message);
        }
        if metadata.field_map.contains_key(flag) {
            report.error(&path, "duplicate_name", format!("there is a field `{flag}` too"));
        }
        check_names(config, &source.transform, &format!("{path}.transform"), report);
        let own = source.from == "canonical" || source.from == SOURCE_IDENTIFIER;
        if enrichment_of(source).is_none() && !own {
            let hint = Some("`enrichments.<query>`, or put it under `field_map`".to_owned());
            let message =
                format!("a flag is of the whole source and cannot come from the column `{}`", source.from);
            report.error_hint(format!("{path}.from"), "flag_from_column", message, hint);
        } else {
            check_from(config, source, &format!("{path}.from"), report);
        }
    }
}

/// The flags that queries set by their own name, with that name.
pub(super) fn preset_flags(config: &ProjectConfig) -> Vec<(&'static str, &'static str)> {
    let asks = |name: &str| {
        config.discovery.queries.iter().chain(&config.discovery.enrichments).any(|query| query.name == name)
    };
    let mut preset = Vec::new();
    if asks(RA_DEC_VSYS) {
        preset.extend(POSITION_FLAGS.map(|flag| (flag, RA_DEC_VSYS)));
    }
    if asks(SBID_TO_EVAL_FILE) {
        preset.extend(EVALUATION_FLAGS.map(|flag| (flag, SBID_TO_EVAL_FILE)));
    }
    preset
}
