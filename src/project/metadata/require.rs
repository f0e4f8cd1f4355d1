//! Conditions a dataset must meet (`discovery.require`), and the datasets held because they do not.
//!
//! A dataset that is held is left out, with the reason; the others of its source go on. What makes a row no dataset at all
//! is an error and decided in [`super`].

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::project::canonical;
use crate::project::config::Requirement;
use crate::project::transforms::{is_empty, text_of};

use super::{Record, sbid_of};

/// A dataset that waits, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub sbid: String,
    pub dataset: String,
    pub reason: String,
}

/// Parts records into those that meet every condition and those that are held, each with the first one it fails.
pub(super) fn sift(
    conditions: &[Requirement],
    records: Vec<Record>,
    now: DateTime<Utc>,
) -> (Vec<Record>, Vec<Held>) {
    let mut kept = Vec::with_capacity(records.len());
    let mut held = Vec::new();
    for record in records {
        match conditions.iter().find_map(|condition| unmet(condition, &record, now)) {
            None => kept.push(record),
            Some(reason) => {
                let name = ["dataset_id", "visibility_filename"]
                    .iter()
                    .find_map(|field| text_of(record.get(*field)?));
                held.push(Held { sbid: sbid_of(&record), dataset: name.unwrap_or_default(), reason });
            }
        }
    }
    (kept, held)
}

/// The reason, when the condition is not met.
fn unmet(condition: &Requirement, record: &Record, now: DateTime<Utc>) -> Option<String> {
    let field = &condition.field;
    let value = record.get(&field.to_lowercase()).or_else(|| record.get(field)).unwrap_or(&Value::Null);
    let shown = text_of(value).unwrap_or_else(|| "empty".to_owned());
    let among = |values: &[Value]| values.iter().any(|one| same(one, value));
    let list = |values: &[Value]| values.iter().map(canonical::text).collect::<Vec<_>>().join(", ");
    let (met, made) = if let Some(present) = condition.present {
        (is_empty(value) != present, format!("{field} is {}", if present { "empty" } else { "not empty" }))
    } else if let Some(wanted) = &condition.equals {
        (same(wanted, value), format!("{field} is {shown}, not {}", canonical::text(wanted)))
    } else if let Some(wanted) = &condition.one_of {
        (among(wanted), format!("{field} is {shown}, not one of {}", list(wanted)))
    } else if let Some(unwanted) = &condition.not_in {
        (!among(unwanted), format!("{field} is {shown}"))
    } else {
        match text_of(value).as_deref().map(instant) {
            None => (false, format!("{field} is empty")),
            Some(None) => (false, format!("{field} is {shown}, which is no date")),
            Some(Some(at)) => (at <= now, format!("{field} is {shown}, which is to come")),
        }
    };
    (!met).then(|| condition.reason.clone().unwrap_or(made))
}

/// Values are the same when their texts are: CSV has no numbers.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (text_of(a).is_some() && text_of(a) == text_of(b))
}

/// An instant as archives write it (ISO 8601, UTC where no zone is given; a date is its beginning).
fn instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.with_timezone(&Utc));
    }
    let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ"];
    let time = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let date = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    Some(time.or_else(date)?.and_utc())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_condition_holds_what_does_not_meet_it_and_says_why() {
        let now = instant("2024-01-01").unwrap();
        for (condition, value, reason) in [
            (json!({"present": true}), json!("x"), None),
            (json!({"present": true}), Value::Null, Some("f is empty")),
            (json!({"present": false}), json!("x"), Some("f is not empty")),
            (json!({"equals": 1}), json!("1"), None),
            (json!({"equals": "GOOD"}), json!("BAD"), Some("f is BAD, not \"GOOD\"")),
            (json!({"one_of": ["GOOD", "UNCERTAIN"]}), json!("UNCERTAIN"), None),
            (json!({"one_of": ["GOOD"]}), Value::Null, Some("f is empty, not one of \"GOOD\"")),
            (json!({"not_in": ["REJECTED"]}), json!("REJECTED"), Some("f is REJECTED")),
            (json!({"not_in": ["REJECTED"], "reason": "thrown out"}), json!("REJECTED"), Some("thrown out")),
            (json!({"not_in": ["REJECTED"]}), Value::Null, None),
            (json!({"reached": true}), json!("2023-03-01T00:00:00"), None),
            (json!({"reached": true}), json!("2024-01-01"), None),
            (
                json!({"reached": true}),
                json!("2024-01-01T00:00:00.5Z"),
                Some("f is 2024-01-01T00:00:00.5Z, which is to come"),
            ),
            (json!({"reached": true}), json!("soon"), Some("f is soon, which is no date")),
            (json!({"reached": true}), Value::Null, Some("f is empty")),
        ] {
            let mut condition: Requirement = serde_json::from_value(condition).unwrap();
            condition.field = "f".into();
            let record = Record::from_iter([("f".to_owned(), value)]);
            assert_eq!(unmet(&condition, &record, now).as_deref(), reason, "{condition:?} on {record:?}");
        }
    }
}
