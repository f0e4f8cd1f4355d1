//! Picks the calibration archive of a scheduling block among CASDA's evaluation files.
//!
//! Only `calibration-metadata-processing-logs-SB<sbid>….tar` of a known, positive size counts: the largest, and of equal
//! sizes the one whose name sorts last (its time is in it). The format column does not decide; other files carry it too.

use std::cmp::Ordering;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{degrees, text_of};

static NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^calibration-metadata-processing-logs-SB0*(\d+)(?:[_.-][A-Za-z0-9_.-]*)?\.tar$")
        .expect("the pattern is constant and tested")
});

/// The row of the file to use among `rows`, or `null` when none counts. Without `sbid` the file of any block does.
pub fn select(rows: &Value, sbid: Option<&str>) -> Value {
    let Value::Array(rows) = rows else { return Value::Null };
    let candidates = rows.iter().filter_map(|row| {
        let name = row.get("filename").and_then(Value::as_str)?;
        let block = NAME.captures(name)?.get(1)?.as_str();
        if sbid.is_some_and(|sbid| sbid.trim_start_matches('0') != block) {
            return None;
        }
        let own_block = row.get("sbid").and_then(text_of);
        if own_block.is_some_and(|own| own.trim_start_matches('0') != block) {
            return None;
        }
        let size = degrees(row.get("filesize")?).filter(|size| *size > 0.0)?;
        Some((size, name, row))
    });
    candidates
        .max_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal).then(a.1.cmp(b.1)))
        .map_or(Value::Null, |(_, _, row)| row.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CALIBRATION: &str = "calibration-metadata-processing-logs-SB";

    fn pick(files: &[(String, Value)], sbid: Option<&str>) -> Value {
        let rows: Vec<Value> =
            files.iter().map(|(name, size)| json!({"filename": name, "filesize": size})).collect();
        select(&Value::Array(rows), sbid).get("filename").cloned().unwrap_or(Value::Null)
    }

    #[test]
    fn the_largest_calibration_archive_wins_also_over_a_later_one() {
        let files = [
            (format!("{CALIBRATION}34275_2022-04-06-101512.tar"), json!(51200)),
            (format!("{CALIBRATION}34275_2022-04-09-081500.tar"), json!(4096)),
            ("diagnostics.SB34275.tar".to_owned(), json!(409_600)),
        ];
        assert_eq!(pick(&files, Some("34275")), json!(files[0].0));
    }

    #[test]
    fn of_equal_sizes_the_last_name_wins_whatever_the_order() {
        let mut files = [
            (format!("{CALIBRATION}51535_2022-04-06-101512.tar"), json!(51200)),
            (format!("{CALIBRATION}51535_2023-08-02-220101.tar"), json!("51200")),
        ];
        assert_eq!(pick(&files, Some("51535")), json!(files[1].0));
        files.reverse();
        assert_eq!(pick(&files, Some("51535")), json!(files[0].0));
    }

    #[test]
    fn nothing_else_counts() {
        for (name, size) in [
            ("validation.SB60001.tar".to_owned(), json!(2048)),
            (format!("{CALIBRATION}60002_2022.tar"), json!(2048)),
            (format!("{CALIBRATION}600010_2022.tar"), json!(2048)),
            (format!("{CALIBRATION}60001_2022.tar.gz"), json!(2048)),
            (format!("old-{CALIBRATION}60001_2022.tar"), json!(2048)),
            (format!("{CALIBRATION}60001_2022.tar"), json!(0)),
            (format!("{CALIBRATION}60001_2022.tar"), Value::Null),
            (format!("{CALIBRATION}60001_2022.tar"), json!("NaN")),
        ] {
            assert_eq!(pick(&[(name.clone(), size)], Some("60001")), Value::Null, "{name}");
        }
        assert_eq!(pick(&[], Some("60001")), Value::Null);
        assert_eq!(select(&json!("text"), None), Value::Null);
    }
}
