//! Everything that can be wrong with a configuration: each has a code, a place and words, and one never hides another.

use std::collections::BTreeSet;

use beampipe::project::validate::{Diagnostic, Severity, validate, validate_spec};
use serde_json::{Value, json};

use super::example::PATH;

fn example() -> Value {
    validate(&std::fs::read_to_string(PATH).unwrap()).spec.unwrap()
}

/// The example with one thing changed; a `null` removes what is there.
fn broken(pointer: &str, value: Value) -> Value {
    let mut spec = example();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap_or_else(|| panic!("{parent}")) {
        Value::Array(items) => {
            let index: usize = key.parse().unwrap();
            if index == items.len() {
                items.push(value);
            } else {
                items[index] = value;
            }
        }
        Value::Object(map) if value.is_null() => {
            map.remove(key);
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        other => panic!("{other}"),
    }
    spec
}

#[test]
fn every_mistake_is_found_where_it_is() {
    let patch = |set: Value| json!({"match": {"kind": "node_name", "equals": "Scatter/Beam"}, "set": set});
    let query = |template: &str| json!({"name": "extra", "adapter": "casda", "template": template});
    let transform = |spec: Value| ("/definitions/transforms/broken", spec);
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        ("/apiVersion", json!("beampipe.dev/v1"), "unknown_api_version", "apiVersion"),
        ("/apiVersion", Value::Null, "missing_field", "apiVersion"),
        ("/kind", json!("Project"), "unknown_kind", "kind"),
        ("/metadata/id", json!("my project"), "bad_project_id", "metadata.id"),
        ("/metadata/id", json!(7), "wrong_type", "metadata.id"),
        ("/metadata/name", json!("x"), "unknown_field", "metadata.name"),
        ("/metadata/description", json!("x".repeat(10_001)), "too_long", "metadata.description"),
        ("/source_identity/canonical", json!("name"), "unsupported_canonical", "source_identity.canonical"),
        (
            "/source_identity/template_vars/a b",
            json!({}),
            "bad_variable_name",
            "source_identity.template_vars.a b",
        ),
        (
            "/source_identity/template_vars/x",
            json!({"from": "sbid"}),
            "unknown_from",
            "source_identity.template_vars.x.from",
        ),
        (
            "/source_identity/template_vars/x",
            json!({"transform": ["trim", "withot_hipass"]}),
            "unknown_transform",
            "source_identity.template_vars.x.transform[1]",
        ),
        (
            transform(json!({"kind": "upercase"})).0,
            json!({"kind": "upercase"}),
            "unknown_transform_kind",
            "definitions.transforms.broken.kind",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "replace"}),
            "missing_parameter",
            "definitions.transforms.broken",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "trim", "prefix": "x"}),
            "unneeded_parameter",
            "definitions.transforms.broken",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "regex_extract", "pattern": "("}),
            "bad_pattern",
            "definitions.transforms.broken.pattern",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "regex_extract", "pattern": "a", "group": 3}),
            "no_such_group",
            "definitions.transforms.broken.group",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "chain", "steps": ["broken"]}),
            "transform_cycle",
            "definitions.transforms.broken",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "split_last", "separators": []}),
            "empty_parameter",
            "definitions.transforms.broken",
        ),
        (
            "/definitions/transforms/broken",
            json!({"kind": "chain", "steps": ["digitz"]}),
            "unknown_transform",
            "definitions.transforms.broken.steps",
        ),
        (
            "/definitions/transforms/a b",
            json!({"kind": "trim"}),
            "bad_transform_name",
            "definitions.transforms.a b",
        ),
        ("/adapters/casda_tap_url", json!("ftp://archive/tap"), "bad_url", "adapters.casda_tap_url"),
        (
            "/adapters/casda_tap_url",
            json!("http://me:secret@archive/tap"),
            "bad_url",
            "adapters.casda_tap_url",
        ),
        ("/adapters/casda_tap_url", Value::Null, "adapter_without_endpoint", "discovery.queries[0].adapter"),
        ("/adapters/required/2", json!("gaia"), "adapter_without_endpoint", "adapters.required[2]"),
        ("/adapters/required/2", json!("casda"), "duplicate_name", "adapters.required[2]"),
        ("/adapters/tap/retries", json!(11), "out_of_range", "adapters.tap.retries"),
        ("/adapters/tap/timeout_seconds", json!(0), "out_of_range", "adapters.tap.timeout_seconds"),
        ("/adapters/tap/timeout_seconds", json!("30"), "wrong_type", "adapters.tap.timeout_seconds"),
        ("/discovery/queries", json!([]), "no_queries", "discovery.queries"),
        ("/discovery/queries/1/name", json!("visibilities"), "duplicate_name", "discovery.queries[1].name"),
        ("/discovery/queries/1/name", json!("a.b"), "bad_query_name", "discovery.queries[1].name"),
        (
            "/discovery/queries/2",
            query("SELECT '{source_nmae}'"),
            "unknown_variable",
            "discovery.queries[2].template",
        ),
        (
            "/discovery/queries/2",
            query("SELECT '{sbid}'"),
            "unknown_variable",
            "discovery.queries[2].template",
        ),
        ("/discovery/queries/2", query("SELECT '{sbid"), "template_syntax", "discovery.queries[2].template"),
        (
            "/discovery/queries/2",
            query("SELECT \"{source_name}\""),
            "template_unsafe_place",
            "discovery.queries[2].template",
        ),
        (
            "/discovery/queries/2",
            query("DROP TABLE t"),
            "template_not_a_query",
            "discovery.queries[2].template",
        ),
        (
            "/discovery/prepare_metadata/field_map/x",
            json!({"from": "enrichments.sbid_to_evalfile"}),
            "unknown_query",
            "discovery.prepare_metadata.field_map.x.from",
        ),
        (
            "/discovery/prepare_metadata/field_map/x",
            json!({"from": "enrichments.visibilities.filename"}),
            "from_first_query",
            "discovery.prepare_metadata.field_map.x.from",
        ),
        (
            "/discovery/prepare_metadata/field_map/x",
            json!({"from": "flags.vsys"}),
            "bad_from",
            "discovery.prepare_metadata.field_map.x.from",
        ),
        (
            "/discovery/prepare_metadata/field_map/sbid",
            json!({"from": "enrichments.sbid_to_eval_file.sbid"}),
            "sbid_from_enrichment",
            "discovery.prepare_metadata.field_map.sbid.from",
        ),
        (
            "/discovery/prepare_metadata/discovery_flags",
            json!({"beam": {"from": "enrichments.ra_dec_vsys.rvmom"}}),
            "duplicate_name",
            "discovery.prepare_metadata.discovery_flags.beam",
        ),
        (
            "/discovery/prepare_metadata/discovery_flags",
            json!({"beams": {"from": "filename"}}),
            "flag_from_column",
            "discovery.prepare_metadata.discovery_flags.beams.from",
        ),
        (
            "/discovery/prepare_metadata/discovery_flags",
            json!({"a.b": {"from": "canonical"}}),
            "bad_flag_name",
            "discovery.prepare_metadata.discovery_flags.a.b",
        ),
        ("/discovery/require/0", json!({"field": "x"}), "requirement_tests", "discovery.require[0]"),
        (
            "/discovery/require/0",
            json!({"field": "x", "present": true, "equals": 1}),
            "requirement_tests",
            "discovery.require[0]",
        ),
        ("/manifest/group_by", json!(["sbid"]), "unsupported_grouping", "manifest.group_by"),
        ("/manifest/source_template/sbids", json!("x"), "reserved_field", "manifest.source_template.sbids"),
        ("/manifest/source_template/x", json!("{flags.vsyss}"), "unknown_flag", "manifest.source_template.x"),
        (
            "/manifest/source_template/x",
            json!("{flags.evaluation_file}"),
            "block_flag_in_source",
            "manifest.source_template.x",
        ),
        (
            "/manifest/dataset_template/x",
            json!(["{"]),
            "manifest_template_syntax",
            "manifest.dataset_template.x",
        ),
        ("/graph/url", json!("http://h/g"), "graph_source_ambiguous", "graph"),
        ("/graph/path", Value::Null, "graph_source_missing", "graph"),
        ("/graph/path", json!(" "), "bad_path", "graph.path"),
        ("/graph/sha256", json!("abc"), "bad_sha256", "graph.sha256"),
        ("/graph/sha256", Value::Null, "missing_field", "graph.sha256"),
        ("/graph", Value::Null, "missing_field", "graph"),
        (
            "/graph_patches/0/match/kind",
            json!("node_id"),
            "unknown_match_kind",
            "graph_patches[0].match.kind",
        ),
        ("/graph_patches/0/set", json!({}), "empty_patch", "graph_patches[0].set"),
        (
            "/graph_patches/1",
            patch(json!({"num_of_copies": 1})),
            "duplicate_patch",
            "graph_patches[1].set.num_of_copies",
        ),
        ("/graph_patches/1", patch(json!({"a": "$mean(x)"})), "patch_syntax", "graph_patches[1].set.a"),
        ("/graph_patches/1", patch(json!({"a": "$count(x[0])"})), "patch_path", "graph_patches[1].set.a"),
        (
            "/graph_patches/1",
            patch(json!({"a": "$count(sources[].sbids[])"})),
            "patch_path_unknown",
            "graph_patches[1].set.a",
        ),
        (
            "/graph_patches/1",
            json!({"match": {"kind": "node_name", "equals": "beampipe-ingest"}, "set": {"manifest_path": "x"}}),
            "patch_overwrites_manifest",
            "graph_patches[1].set.manifest_path",
        ),
        (
            "/output_verification",
            json!({"required": true}),
            "output_verification_unsupported",
            "output_verification.required",
        ),
        (
            "/extension",
            json!({"wasm_sha256": "ab", "hooks": ["manifest"]}),
            "extension_unsupported",
            "extension",
        ),
        (
            "/automation/execution/min_sources_to_trigger",
            json!(500),
            "limits_contradict",
            "automation.execution.min_sources_to_trigger",
        ),
        ("/automation/discovery/batch_size", json!(1.5), "wrong_type", "automation.discovery.batch_size"),
        ("/automation/discovery/batch_size", json!(-1), "out_of_range", "automation.discovery.batch_size"),
        (
            "/automation/execution/execution_rest_remote_poll_interval_seconds",
            json!(0),
            "out_of_range",
            "automation.execution.execution_rest_remote_poll_interval_seconds",
        ),
    ];
    let mut codes = BTreeSet::new();
    for (pointer, value, code, path) in cases {
        let validation = validate_spec(broken(pointer, value.clone()));
        assert!(
            !validation.report.valid && validation.config.is_none(),
            "{pointer} = {value} is taken for good"
        );
        let errors = &validation.report.errors;
        assert!(
            errors.iter().any(|error| error.code == code && error.path == path),
            "{pointer} = {value}: no {code} at {path} in {errors:#?}"
        );
        for error in errors {
            assert_eq!(error.severity, Severity::Error);
            assert!(!error.message.is_empty());
        }
        codes.insert(code);
    }
    assert!(codes.len() >= 45, "{} codes", codes.len());
}

#[test]
fn what_is_only_doubtful_is_a_warning() {
    for (pointer, value, code) in [
        ("/definitions/transforms/spare", json!({"kind": "add_prefix", "prefix": "x"}), "unused_transform"),
        ("/definitions/transforms/trim", json!({"kind": "identity"}), "shadowed_kind"),
        ("/adapters/required", json!(["casda"]), "adapter_not_required"),
        ("/discovery/prepare_metadata/field_map/sbid", Value::Null, "no_sbid_field"),
        ("/discovery/prepare_metadata/field_map/visibility_filename", Value::Null, "no_dataset_field"),
        (
            "/discovery/prepare_metadata/discovery_flags",
            json!({"vsys": {"from": "enrichments.ra_dec_vsys.rvmom"}}),
            "preset_flag",
        ),
        ("/manifest/path", json!("manifest.json"), "no_effect"),
    ] {
        let report = validate_spec(broken(pointer, value)).report;
        assert!(report.valid, "{pointer}: {:?}", report.errors);
        assert!(report.warnings.iter().any(|warning| warning.code == code), "{code}: {:?}", report.warnings);
    }
}

#[test]
fn everything_wrong_is_said_at_once() {
    let mut spec = broken("/metadata/id", json!("my project"));
    spec["graph"]["sha256"] = json!("abc");
    spec["graph_patches"][0]["set"]["num_of_copies"] = json!("$count(");
    spec["automation"]["discovery"]["batch_sise"] = json!(3);
    spec["discovery"]["queries"][0]["template"] = json!("SELECT '{nothing}'");
    spec["discovery"]["queries"][1].as_object_mut().unwrap().remove("adapter");
    spec["adapters"]["tap"] = json!([]);
    let codes: Vec<String> = validate_spec(spec).report.errors.into_iter().map(|error| error.code).collect();
    for code in [
        "bad_project_id",
        "bad_sha256",
        "patch_syntax",
        "unknown_field",
        "unknown_variable",
        "missing_field",
        "wrong_type",
    ] {
        assert!(codes.iter().any(|other| other == code), "{code} in {codes:?}");
    }
    assert_eq!(codes.len(), 7, "nothing is said twice: {codes:?}");
}

fn hint(pointer: &str, value: Value) -> Option<String> {
    let errors = validate_spec(broken(pointer, value)).report.errors;
    errors.into_iter().find_map(|error: Diagnostic| error.hint)
}

#[test]
fn a_misspelled_word_is_answered_with_the_one_that_was_meant() {
    assert_eq!(hint("/graph_patchs", json!([])).unwrap(), "did you mean `graph_patches`?");
    assert_eq!(
        hint("/discovery/queries/1/template", json!("SELECT '{source_nmae}'")).unwrap(),
        "did you mean `source_name`?"
    );
    assert_eq!(
        hint("/source_identity/template_vars/source_name/transform", json!("without_hipas")).unwrap(),
        "did you mean `without_hipass`?"
    );
    assert_eq!(hint("/metadata/id", json!(7)).unwrap(), "put it in quotes: \"7\"");
    assert_eq!(hint("/qqqqqqqqq", json!(1)), None);
}

#[test]
fn a_null_is_a_field_that_is_not_there() {
    let mut spec = example();
    spec["metadata"]["description"] = Value::Null;
    spec["extension"] = Value::Null;
    spec["automation"]["execution"]["deployment_profile_name"] = Value::Null;
    spec["automation"]["discovery"] = Value::Null;
    let validation = validate_spec(spec);
    assert_eq!(validation.report.errors, []);
    assert_eq!(validation.config.unwrap().automation.discovery.batch_size, 10);
}

#[test]
fn text_that_is_no_yaml_is_refused_with_the_place() {
    for (text, code) in [
        ("a: [1", "yaml_syntax"),
        ("a: 1\na: 2", "yaml_duplicate_key"),
        ("- a\n- b", "yaml_not_a_mapping"),
        ("", "yaml_not_a_mapping"),
        ("a: 1\n---\nb: 2", "yaml_limits"),
    ] {
        let report = validate(text).report;
        assert_eq!(report.errors.len(), 1, "{text}");
        assert_eq!(report.errors[0].code, code, "{text}: {:?}", report.errors);
    }
    assert_eq!(validate("a: 1\na: 2").report.errors[0].message, "line 2, column 1: `a` is given twice");
    assert!(
        validate("a: 1\nb: [").report.errors[0].message.starts_with("line 2"),
        "{:?}",
        validate("a: 1\nb: [").report.errors
    );
}

#[test]
fn a_text_made_to_grow_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let below = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", ")));
    }
    assert_eq!(validate(&bomb).report.errors[0].code, "yaml_limits");
    let deep = format!("a: {}{}", "[".repeat(500), "]".repeat(500));
    assert_eq!(validate(&deep).report.errors[0].code, "yaml_syntax");
    assert_eq!(validate(&"a".repeat(300_000)).report.errors[0].code, "yaml_too_large");
}
