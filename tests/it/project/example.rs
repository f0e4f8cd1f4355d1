//! The example configuration that the documentation and the demonstration use.

use beampipe::project::{ProjectConfig, Validation, explain, validate};

pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/wallaby.yml");

/// The example, as it is or with its archive elsewhere.
pub fn example(tap: Option<&str>) -> Validation {
    let text = std::fs::read_to_string(PATH).unwrap();
    validate(&tap.map_or(text.clone(), |url| text.replace("http://127.0.0.1:8082/tap", url)))
}

pub fn config() -> ProjectConfig {
    example(None).config.unwrap()
}

#[test]
fn the_example_is_valid_without_a_warning() {
    let validation = example(None);
    assert_eq!(validation.report.errors, []);
    assert_eq!(validation.report.warnings, []);
    assert!(validation.report.valid);
    assert_eq!(validation.report.project_id, "wallaby");
    assert_eq!(validation.report.spec_sha256.len(), 64);
}

#[test]
fn a_configuration_comes_back_from_what_the_log_keeps_of_it() {
    let validation = example(None);
    assert_eq!(ProjectConfig::from_spec(&validation.spec.unwrap()).unwrap(), validation.config.unwrap());
}

#[test]
fn the_digest_does_not_depend_on_how_the_text_is_written() {
    let text = std::fs::read_to_string(PATH).unwrap();
    let spec = validate(&text).spec.unwrap();
    let as_json = serde_json::to_string_pretty(&spec).unwrap();
    assert_eq!(validate(&as_json).report.spec_sha256, validate(&text).report.spec_sha256);
    let other = text.replace("max_wait_minutes: 0", "max_wait_minutes: 1");
    assert_ne!(validate(&other).report.spec_sha256, validate(&text).report.spec_sha256);
}

#[test]
fn explain_shows_the_queries_as_they_would_be_sent() {
    let text = explain::text(&config(), "HIPASSJ1318-21").unwrap();
    for part in [
        "source_name = J1318-21",
        "ra_dec_vsys, sent to vizier (http://127.0.0.1:8082/tap)",
        "FROM \"VIII/73/hicat\" WHERE HIPASS = 'J1318-21'",
        "WHERE o.filename LIKE 'HIPASSJ1318-21%'",
        "WHERE sbid = '{sbid}'",
        "access_url: present true",
        "timeout_seconds = 30",
        "Scatter/Beam.num_of_copies = $count(sbids[].datasets[])",
        "max_sources_per_execution = 1",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let evil = explain::explain(&config(), "x' OR '1'='1").unwrap();
    assert!(evil["queries"][0]["adql"].as_str().unwrap().contains("LIKE 'x'' OR ''1''=''1%'"));
}
