//! Checks of what everything else refers to: version, project id, transforms, variables, adapters.

use std::collections::BTreeSet;

use crate::archives::tap::adql::is_name;
use crate::project::config::{API_VERSION, KIND, Names, ProjectConfig, SOURCE_IDENTIFIER};
use crate::project::transforms::{KINDS, Step, Transform, TransformError, TransformSpec};

use super::{Report, nearest};

pub(super) fn check(config: &ProjectConfig, report: &mut Report) {
    if !config.api_version.is_empty() && config.api_version != API_VERSION {
        let hint = Some(format!("write `apiVersion: {API_VERSION}`"));
        let message = format!("`{}` is not a version this service reads", config.api_version);
        report.error_hint("apiVersion", "unknown_api_version", message, hint);
    }
    if !config.kind.is_empty() && config.kind != KIND {
        let hint = Some(format!("write `kind: {KIND}`"));
        report.error_hint("kind", "unknown_kind", format!("`{}` is not a kind there is", config.kind), hint);
    }
    let id = &config.metadata.id;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !id.is_empty()
        && (id.len() > 64 || !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(plain))
    {
        report.error_hint(
            "metadata.id",
            "bad_project_id",
            format!("`{id}` is not a project id"),
            Some("letters, digits, `_` and `-`, at most 64, a letter or digit first".to_owned()),
        );
    }
    check_definitions(config, report);
    if config.source_identity.canonical != SOURCE_IDENTIFIER {
        report.error_hint(
            "source_identity.canonical",
            "unsupported_canonical",
            format!("a source is known by `{SOURCE_IDENTIFIER}` and nothing else"),
            Some(format!("write `canonical: {SOURCE_IDENTIFIER}`")),
        );
    }
    for (name, var) in &config.source_identity.template_vars {
        let path = format!("source_identity.template_vars.{name}");
        if !is_name(name) {
            report.error(&path, "bad_variable_name", format!("`{name}` cannot stand in a template"));
        }
        if let Some(from) = &var.from
            && from != "canonical"
            && from != SOURCE_IDENTIFIER
        {
            let message = format!("a variable comes from `canonical`, not from `{from}`");
            report.error(format!("{path}.from"), "unknown_from", message);
        }
        check_names(config, &var.transform, &format!("{path}.transform"), report);
    }
    check_adapters(config, report);
}

/// Whether the names of transforms are all known.
pub(super) fn check_names(config: &ProjectConfig, names: &Names, path: &str, report: &mut Report) {
    for (index, name) in names.iter().enumerate() {
        let path = if matches!(names, Names::Many(_)) { format!("{path}[{index}]") } else { path.to_owned() };
        // What is wrong with a definition is said once, where it is defined.
        if !config.definitions.transforms.contains_key(name)
            && let Err(error) = Transform::named(name, &config.definitions.transforms)
        {
            report.error_hint(path, "unknown_transform", error.to_string(), hint_for(name, config));
        }
    }
}

fn hint_for(name: &str, config: &ProjectConfig) -> Option<String> {
    if KINDS.iter().any(|(kind, needs, _)| *kind == name && !needs.is_empty()) {
        return Some(format!("`{name}` needs parameters: define one under `definitions.transforms`"));
    }
    let bare = KINDS.iter().filter(|(_, needs, _)| needs.is_empty()).map(|(kind, ..)| *kind);
    nearest(name, config.definitions.transforms.keys().map(String::as_str).chain(bare))
}

fn check_definitions(config: &ProjectConfig, report: &mut Report) {
    let definitions = &config.definitions.transforms;
    for (name, spec) in definitions {
        let path = format!("definitions.transforms.{name}");
        if name.is_empty() || name.contains(char::is_whitespace) {
            report.error(&path, "bad_transform_name", format!("`{name}` is not a name"));
        }
        if KINDS.iter().any(|(kind, ..)| kind == name) {
            let message = format!("`{name}` is also a kind; the definition is what the name means");
            report.warn(&path, "shadowed_kind", message);
        }
        // A kind that is missing was reported with the shape.
        if spec.kind.is_empty() {
            continue;
        }
        if let Err(error) = Transform::compile(spec, definitions) {
            // A broken step that has a name is reported where that is defined.
            if !broken_elsewhere(spec, &error, config) {
                say(&path, &error, config, report);
            }
        } else if let Err(error) = Transform::named(name, definitions) {
            say(&path, &error, config, report);
        }
    }
    let used = used_names(config);
    for name in definitions.keys().filter(|name| !used.contains(name.as_str())) {
        report.warn(format!("definitions.transforms.{name}"), "unused_transform", "nothing uses it");
    }
}

fn broken_elsewhere(spec: &TransformSpec, error: &TransformError, config: &ProjectConfig) -> bool {
    let alone = TransformSpec { steps: None, ..spec.clone() };
    spec.kind == "chain"
        && !matches!(
            error,
            TransformError::Cycle(_) | TransformError::Empty(_) | TransformError::Unneeded { .. }
        )
        && alone != *spec
        && spec.steps.iter().flatten().any(|step| match step {
            Step::Name(name) => {
                config.definitions.transforms.contains_key(name)
                    && Transform::named(name, &config.definitions.transforms).is_err()
            }
            Step::Inline(_) => false,
        })
}

fn say(path: &str, error: &TransformError, config: &ProjectConfig, report: &mut Report) {
    let (below, code, hint) = match error {
        TransformError::UnknownName(name) => (".steps", "unknown_transform", hint_for(name, config)),
        TransformError::UnknownKind(kind) => {
            (".kind", "unknown_transform_kind", nearest(kind, KINDS.iter().map(|(kind, ..)| *kind)))
        }
        TransformError::Missing { .. } => ("", "missing_parameter", None),
        TransformError::Unneeded { .. } => ("", "unneeded_parameter", None),
        TransformError::Pattern(_) => (".pattern", "bad_pattern", None),
        TransformError::Group { .. } => (".group", "no_such_group", None),
        TransformError::Cycle(_) => ("", "transform_cycle", None),
        TransformError::Empty(_) => ("", "empty_parameter", None),
    };
    report.error_hint(format!("{path}{below}"), code, error.to_string(), hint);
}

fn used_names(config: &ProjectConfig) -> BTreeSet<&str> {
    let metadata = &config.discovery.prepare_metadata;
    let queries = config.discovery.queries.iter().chain(&config.discovery.enrichments);
    let lists = config
        .source_identity
        .template_vars
        .values()
        .map(|var| &var.transform)
        .chain(queries.map(|query| &query.source_id_transform))
        .chain(metadata.field_map.values().map(|source| &source.transform))
        .chain(metadata.discovery_flags.values().map(|source| &source.transform));
    let mut used: BTreeSet<&str> = lists.flat_map(Names::iter).collect();
    for spec in config.definitions.transforms.values() {
        used.extend(spec.steps.iter().flatten().filter_map(|step| match step {
            Step::Name(name) => Some(name.as_str()),
            Step::Inline(_) => None,
        }));
    }
    used
}

fn check_adapters(config: &ProjectConfig, report: &mut Report) {
    let adapters = &config.adapters;
    let urls = [("casda_tap_url", &adapters.casda_tap_url), ("vizier_tap_url", &adapters.vizier_tap_url)];
    let named = urls.iter().filter_map(|(field, url)| Some(((*field).to_owned(), url.as_ref()?)));
    let listed = adapters.endpoints.iter().map(|(name, url)| (format!("endpoints.{name}"), url));
    for (field, url) in named.chain(listed) {
        check_url(&format!("adapters.{field}"), url, report);
    }
    let endpoints = config.endpoints();
    let mut seen = BTreeSet::new();
    for (index, name) in adapters.required.iter().enumerate() {
        let path = format!("adapters.required[{index}]");
        if !seen.insert(name) {
            report.error(&path, "duplicate_name", format!("`{name}` is listed twice"));
        }
        if !endpoints.contains_key(name) {
            adapter_without_endpoint(&path, name, &endpoints, report);
        }
        let queries = config.discovery.queries.iter().chain(&config.discovery.enrichments);
        if !queries.into_iter().any(|query| query.adapter == *name) {
            report.warn(&path, "unused_adapter", format!("no query asks `{name}`"));
        }
    }
}

/// Reports a name that no TAP address belongs to.
pub(super) fn adapter_without_endpoint(
    path: &str,
    name: &str,
    endpoints: &std::collections::BTreeMap<String, String>,
    report: &mut Report,
) {
    let hint = nearest(name, endpoints.keys().map(String::as_str))
        .unwrap_or_else(|| format!("give its TAP address under `adapters.endpoints.{name}`"));
    let message = format!("`{name}` has no TAP address");
    report.error_hint(path, "adapter_without_endpoint", message, Some(hint));
}

/// Reports an address that is not http or https.
pub(super) fn check_url(path: &str, text: &str, report: &mut Report) {
    let good = url::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
    });
    if !good {
        // A password may be in it: what is before an `@` is not repeated.
        let shown = text.rsplit_once('@').map_or(text.to_owned(), |(_, host)| format!("…@{host}"));
        report.error_hint(
            path,
            "bad_url",
            format!("`{shown}` is not an address to ask"),
            Some("http:// or https://, a host, and no password in it".to_owned()),
        );
    }
}
