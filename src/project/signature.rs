//! The discovery signature: a digest of what a source's data is, so that "nothing new" is one comparison.
//!
//! Invariant: the order of rows and of columns does not change it, nor do the fields a survey excludes. It is SHA-256 over
//! canonical JSON of `{version, datasets, flags?}` with the datasets sorted by their own canonical text; flags, also those
//! of one SBID that stand in its records, count only when the survey includes them.

use serde_json::{Map, Value, json};

use super::canonical;
use super::config::SignatureSettings;

/// Raised when the digest comes to be over something else; every source is then new once.
const VERSION: u32 = 1;

/// The signature of prepared records, 64 hex digits. `record_flags` names the fields of records that are flags.
pub fn signature(
    records: &[Map<String, Value>],
    flags: &Map<String, Value>,
    record_flags: &[&str],
    settings: &SignatureSettings,
) -> String {
    let excluded = |name: &str| settings.exclude_fields.iter().any(|field| field.eq_ignore_ascii_case(name));
    let mut datasets: Vec<(String, Value)> = records
        .iter()
        .map(|record| {
            let kept = record.iter().filter(|(name, _)| {
                !excluded(name)
                    && (settings.include_discovery_flags || !record_flags.contains(&name.as_str()))
            });
            let kept = Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
            (canonical::text(&kept), kept)
        })
        .collect();
    datasets.sort_by(|a, b| a.0.cmp(&b.0));
    let datasets: Vec<Value> = datasets.into_iter().map(|(_, value)| value).collect();
    let mut signed = json!({"version": VERSION, "datasets": datasets});
    if settings.include_discovery_flags {
        let kept = flags.iter().filter(|(name, _)| !excluded(name));
        signed["flags"] = Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
    }
    canonical::sha256(&signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<Map<String, Value>> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn neither_row_order_nor_column_order_nor_excluded_fields_change_it() {
        let settings =
            SignatureSettings { exclude_fields: vec!["access_url".into()], include_discovery_flags: false };
        let sign =
            |text: &str, settings: &SignatureSettings| signature(&records(text), &Map::new(), &[], settings);
        let one = sign(r#"[{"sbid":"1","a":1,"access_url":"x"},{"sbid":"2","a":null}]"#, &settings);
        let two = sign(r#"[{"a":null,"sbid":"2"},{"access_url":"y","a":1,"sbid":"1"}]"#, &settings);
        assert_eq!(one, two);
        assert_eq!(one.len(), 64);
        assert_ne!(one, sign(r#"[{"sbid":"1","a":2},{"sbid":"2","a":null}]"#, &settings));
        assert_ne!(one, sign(r#"[{"sbid":"1","a":1}]"#, &settings));
    }

    #[test]
    fn flags_count_only_when_included() {
        let rows = records(r#"[{"sbid":"1","evaluation_file":"a"}]"#);
        let other = records(r#"[{"sbid":"1","evaluation_file":"b"}]"#);
        let flags = Map::from_iter([("vsys".to_owned(), Value::from(1.5))]);
        let mut settings = SignatureSettings::default();
        let sign = |rows: &[_], flags: &Map<_, _>, settings: &SignatureSettings| {
            signature(rows, flags, &["evaluation_file"], settings)
        };
        assert_eq!(sign(&rows, &flags, &settings), sign(&other, &Map::new(), &settings));
        settings.include_discovery_flags = true;
        assert_ne!(sign(&rows, &flags, &settings), sign(&other, &flags, &settings));
        assert_ne!(sign(&rows, &flags, &settings), sign(&rows, &Map::new(), &settings));
    }
}
