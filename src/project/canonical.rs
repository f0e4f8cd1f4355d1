//! Canonical JSON and its SHA-256: the same value, the same bytes, whoever wrote it in whatever order.
//!
//! Keys sorted by code point, no white space, UTF-8, numbers as `serde_json` writes them. It is what configuration,
//! manifest and discovery signatures are computed over, so a change here changes every digest.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The canonical text of a value.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// The SHA-256 of the canonical text, 64 lower-case hex digits.
pub fn sha256(value: &Value) -> String {
    sha256_of(text(value).as_bytes())
}

/// The SHA-256 of bytes, 64 lower-case hex digits.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            // Sorted here, not by the map: its order depends on a feature of serde_json that any crate may turn on.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write(item, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let a: Value =
            serde_json::from_str(r#"{"b": [1, 2.5, null], "a": {"y": "é\n", "x": true}}"#).unwrap();
        let b: Value =
            serde_json::from_str(r#"{"a": {"x": true, "y": "é\n"}, "b": [1, 2.5, null]}"#).unwrap();
        assert_eq!(text(&a), r#"{"a":{"x":true,"y":"é\n"},"b":[1,2.5,null]}"#);
        assert_eq!(sha256(&a), sha256(&b));
        assert_eq!(sha256_of(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
