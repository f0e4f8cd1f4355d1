//! What a receiver says may repeat what it was sent: here every secret of the request is taken out of it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use super::channels::Opened;
use crate::sealing::REDACTED;

/// Finds one however it is escaped.
mod escaped;

use escaped::Escaped;

/// Shorter parts are words that anybody may say.
const SHORTEST: usize = 4;
/// A part of an address that is at least so long may be what makes it secret.
const SHORTEST_PART: usize = 8;

/// The secrets of a request, in every form in which they left.
pub struct Secrets(Vec<SecretString>);

impl Secrets {
    pub fn of(opened: &Opened, user: Option<&str>) -> Self {
        let mut forms = BTreeMap::new();
        let mut add = |form: String| {
            if form.len() >= SHORTEST {
                forms.insert(form, ());
            }
        };
        for (field, secret) in &opened.0 {
            let secret = secret.expose_secret();
            add(secret.to_owned());
            if let Some((_, credentials)) = secret.split_once(' ') {
                add(credentials.trim().to_owned());
            }
            if field == "url" {
                parts_of(secret).into_iter().for_each(&mut add);
            }
            if field == "password_ref" {
                // As AUTH LOGIN and AUTH PLAIN have it.
                add(STANDARD.encode(secret));
                add(STANDARD.encode(format!("\0{}\0{secret}", user.unwrap_or_default())));
            }
        }
        Self::sorted(forms.into_keys().collect())
    }

    /// These too.
    pub fn and(self, more: Vec<String>) -> Self {
        let forms = self.0.iter().map(|form| form.expose_secret().to_owned()).chain(more);
        Self::sorted(forms.collect())
    }

    fn sorted(mut forms: Vec<String>) -> Self {
        // The longest first: what is a part of another leaves nothing of it over.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        Self(forms.into_iter().map(Into::into).collect())
    }

    /// A text without any of them, nor the beginning of one where the text was cut off.
    /// In whatever way the receiver escapes them.
    pub fn out_of(&self, text: &str) -> String {
        let secrets: Vec<Escaped> = self.0.iter().map(|secret| Escaped::of(secret.expose_secret())).collect();
        // Where an answer was cut off within a character, its bytes are no text.
        let mut text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
        for secret in &secrets {
            text = secret.out_of(&text);
        }
        for secret in &secrets {
            if let Some(begun) = secret.begun_at_the_end_of(&text) {
                text.truncate(begun);
                text.push_str(REDACTED);
            }
        }
        text
    }
}

/// The parts of an address that a receiver may repeat by themselves.
fn parts_of(address: &str) -> Vec<String> {
    let Ok(url) = address.parse::<url::Url>() else { return vec![] };
    let mut parts = vec![url.to_string()];
    parts.extend(url.query().map(str::to_owned));
    parts.extend(url.query_pairs().map(|(_, value)| value.into_owned()).filter(|v| v.len() >= SHORTEST_PART));
    if url.path().len() > 1 {
        parts.push(url.path().to_owned());
        parts.push(percent_decode_str(url.path()).decode_utf8_lossy().into_owned());
    }
    let segments = url.path_segments().into_iter().flatten().filter(|segment| segment.len() >= SHORTEST_PART);
    parts.extend(segments.map(str::to_owned));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(fields: &[(&str, &str)]) -> Secrets {
        let fields = fields.iter().map(|(field, secret)| ((*field).to_owned(), SecretString::from(*secret)));
        Secrets::of(&Opened(fields.collect()), Some("ops"))
    }

    #[test]
    fn what_a_receiver_repeats_of_a_secret_is_taken_out() {
        let secrets = secrets(&[
            ("url", "https://h.example/T0/canary%2Dkey?k=longcanary"),
            ("headers.authorization", "Bearer x1y2"),
            ("headers.x", "ab"),
            ("password_ref", "hunter22"),
        ]);
        for (said, kept) in [
            (
                "no hook https://h.example/T0/canary%2Dkey?k=longcanary for Bearer x1y2, see above",
                "no hook [REDACTED] for [REDACTED], see above",
            ),
            ("POST /T0/canary%2Dkey", "POST [REDACTED]"),
            ("POST /T0/canary-key", "POST [REDACTED]"),
            (
                r#"{"path":"https:\/\/h.example\/T0\/canary%2Dkey","k":"longcanary"}"#,
                r#"{"path":"https:\/\/h.example[REDACTED]","k":"[REDACTED]"}"#,
            ),
            ("token x1y2 is unknown", "token [REDACTED] is unknown"),
            ("535 AG9wcwBodW50ZXIyMg== aHVudGVyMjI=", "535 [REDACTED] [REDACTED]"),
            ("two letters ab are no secret", "two letters ab are no secret"),
        ] {
            assert_eq!(secrets.out_of(said), kept);
        }
    }

    #[test]
    fn the_beginning_of_a_secret_where_a_text_is_cut_off_is_taken_out() {
        let secrets = secrets(&[("token", "canary-token-77é"), ("topic", "ops")]);
        assert_eq!(secrets.out_of("you sent canary-tok"), "you sent [REDACTED]");
        assert_eq!(secrets.out_of("you sent can"), "you sent can");
        assert_eq!(secrets.out_of("canary-token-77é canary-token-77"), "[REDACTED] [REDACTED]");
        assert_eq!(secrets.out_of("you sent canary-token-77\u{fffd}"), "you sent [REDACTED]");
    }

    #[test]
    fn a_secret_is_taken_out_however_a_receiver_escapes_it_whole_and_cut_off() {
        let secret = r#"Bearer CANARYq"&<x>/y+z=w"#;
        let secrets = secrets(&[("headers.authorization", secret)]);
        let json = serde_json::to_string(secret).unwrap();
        let json = json.trim_matches('"');
        let percent =
            percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        for escaped in [
            secret.to_owned(),
            json.to_owned(),
            json.replace('/', "\\/"),
            json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003E"),
            percent.to_lowercase().replace("bearer", "Bearer").replace("canary", "CANARY"),
            percent,
            form,
            r#"Bearer CANARYq&quot;&amp;&lt;x&gt;/y+z=w"#.to_owned(),
            r#"Bearer CANARYq&#34;&#38;&#60;x&#62;&#47;y&#43;z&#61;w"#.to_owned(),
            r#"Bearer CANARYq&#034;&#038;&#060;x&#062;/y+z=w"#.to_owned(),
            r#"Bearer&#x20;CANARYq&#x22;&#x26;&#x3c;x&#x3E;&#x2F;y&#x2B;z&#x3D;w"#.to_owned(),
        ] {
            assert_eq!(secrets.out_of(&format!("no {escaped} here")), "no [REDACTED] here", "{escaped}");
            let alone = &escaped[escaped.find("CANARY").unwrap()..];
            assert_eq!(secrets.out_of(&format!("no {alone} here")), "no [REDACTED] here", "{escaped}");
            for end in 7..alone.len() {
                let cut = &alone[..end];
                assert_eq!(secrets.out_of(&format!("no {cut}")), "no [REDACTED]", "{cut}");
            }
        }
        assert_eq!(secrets.out_of("Bearer canaryq is another"), "Bearer canaryq is another");
    }
}
