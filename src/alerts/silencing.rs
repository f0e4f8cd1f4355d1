//! **A link that silences**: who is woken opens it, sees what it would do, and says for how long. It needs no key: the link is one,
//! for one alert and some days. It is made when a message leaves, so that neither the log nor any answer has it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use crate::sealing::Sealing;

/// For how long a link works.
const WORKS_DAYS: i64 = 7;
/// What is signed says what it is for.
const PURPOSE: &str = "silence an alert";

/// A link's last part: the alert and the time until which it works, signed.
pub fn token(sealing: &Sealing, alert: &str, now: DateTime<Utc>) -> String {
    let until = (now + TimeDelta::days(WORKS_DAYS)).timestamp();
    let said = format!("{until}.{alert}");
    let signed = [&sealing.sign(PURPOSE, &said)[..], said.as_bytes()].concat();
    URL_SAFE_NO_PAD.encode(signed)
}

/// The alert of a link; `None` where it is no link of ours, or works no longer.
pub fn alert(sealing: &Sealing, token: &str, now: DateTime<Utc>) -> Option<String> {
    let signed = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (signature, said) = signed.split_at_checked(32)?;
    let said = std::str::from_utf8(said).ok()?;
    if !sealing.is_signed(PURPOSE, said, signature) {
        return None;
    }
    let (until, alert) = said.split_once('.')?;
    (now.timestamp() < until.parse().ok()?).then(|| alert.to_owned())
}

/// Where a message leads to: the silencing of an alert by path becomes a link that needs no key. Answers what makes these links
/// secret.
pub fn sign(sealing: &Sealing, payload: &mut Value, now: DateTime<Utc>) -> Vec<String> {
    let mut tokens = vec![];
    sign_into(sealing, payload, now, &mut tokens);
    tokens
}

fn sign_into(sealing: &Sealing, payload: &mut Value, now: DateTime<Utc>, tokens: &mut Vec<String>) {
    match payload {
        Value::Object(fields) => {
            if let Some(Value::String(link)) = fields.get_mut("silence")
                && let Some((base, rest)) = link.split_once("/alerts/")
                && let Some(alert) = rest.strip_suffix("/silence")
            {
                let token = token(sealing, alert, now);
                *link = format!("{base}/silence/{token}");
                tokens.push(token);
            }
            fields.values_mut().for_each(|value| sign_into(sealing, value, now, tokens));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| sign_into(sealing, item, now, tokens)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_is_for_one_alert_and_for_some_days_and_cannot_be_made_by_others() {
        let (ours, theirs) = (Sealing::of(&[7; 32]), Sealing::of(&[8; 32]));
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let link = token(&ours, "rule-1", now);
        assert_eq!(alert(&ours, &link, now + TimeDelta::days(6)).as_deref(), Some("rule-1"));
        assert_eq!(alert(&ours, &link, now + TimeDelta::days(7)), None, "it works no longer");
        assert_eq!(alert(&theirs, &link, now), None);
        let mut bytes = URL_SAFE_NO_PAD.decode(&link).unwrap();
        for place in 0..bytes.len() {
            bytes[place] ^= 1;
            assert_eq!(alert(&ours, &URL_SAFE_NO_PAD.encode(&bytes), now), None, "byte {place}");
            bytes[place] ^= 1;
        }
        for odd in ["", "x", "é", "AAAA"] {
            assert_eq!(alert(&ours, odd, now), None);
        }
    }

    #[test]
    fn every_silencing_in_a_message_becomes_a_link_and_nothing_else_changes() {
        let sealing = Sealing::of(&[7; 32]);
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let links =
            json!({"silence": "https://b/api/v2/alerts/r-f/silence", "alert": "https://b/api/v2/alerts/r-f"});
        let mut payload =
            json!({"links": links, "alerts": [{"links": links}], "summary": "silence", "silence": 3});
        let tokens = sign(&sealing, &mut payload, now);
        assert!(tokens.len() == 2 && payload["links"]["silence"].as_str().unwrap().ends_with(&tokens[0]));
        for place in [&payload["links"], &payload["alerts"][0]["links"]] {
            let link = place["silence"].as_str().unwrap().strip_prefix("https://b/api/v2/silence/").unwrap();
            assert_eq!(alert(&sealing, link, now).as_deref(), Some("r-f"));
            assert_eq!(place["alert"], links["alert"]);
        }
        assert_eq!((&payload["summary"], &payload["silence"]), (&json!("silence"), &json!(3)));
    }
}
