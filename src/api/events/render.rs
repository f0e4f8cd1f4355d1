//! Spells an event for readers: the Event object of the API, inside the frame of a server-sent event.
//!
//! One buffer an event serves all three media types: the frame is `id: <position>-<8 hex of the leaf>\ndata: {…}\n\n`, the
//! object between prefix and end is the element of a page, and with the first newline it is a line of NDJSON. It is a pure
//! function of the recorded event and the name of its actor, so it is kept beside the event and made once for all
//! subscribers.

use std::borrow::Cow;

use axum::body::Bytes;
use beampipe_log::{Position, Recorded};
use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use serde::Deserialize;
use uuid::Uuid;

use crate::codec;

/// What an event is about, as its data say.
#[derive(Default, Deserialize)]
struct Subject<'a> {
    #[serde(borrow, default)]
    source_identifier: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    source_identifiers: Option<Vec<Cow<'a, str>>>,
}

/// The frame of an event whose actor is called `actor`.
pub fn frame(recorded: &Recorded, actor: &str) -> Bytes {
    let size = 800 + recorded.data.as_ref().map_or(0, |data| data.len());
    let mut out = Vec::with_capacity(size);
    write_frame(&mut out, recorded, actor);
    out.into()
}

/// The object inside a frame.
pub fn object(frame: &Bytes, position: Position) -> Bytes {
    frame.slice(prefix_len(position)..frame.len() - 2)
}

/// The object inside a frame and a newline.
pub fn line(frame: &Bytes, position: Position) -> Bytes {
    frame.slice(prefix_len(position)..frame.len() - 1)
}

fn prefix_len(position: Position) -> usize {
    let digits = position.checked_ilog10().unwrap_or(0) as usize + 1;
    "id: ".len() + digits + "-01234567\ndata: ".len()
}

/// Writes a frame to the end of `out`.
pub fn write_frame(out: &mut Vec<u8>, recorded: &Recorded, actor: &str) {
    out.extend_from_slice(b"id: ");
    write_number(out, recorded.position);
    out.push(b'-');
    write_hex(out, &recorded.hash.0[..4]);
    out.extend_from_slice(b"\ndata: ");
    write_object(out, recorded, actor);
    out.extend_from_slice(b"\n\n");
}

/// Writes the Event object to the end of `out`, without newlines.
pub fn write_object(out: &mut Vec<u8>, recorded: &Recorded, actor: &str) {
    let data = codec::public_data(recorded);
    let readable = data.as_deref().and_then(subject);
    let (payload, subject) = match (&data, readable) {
        (Some(data), Some(subject)) => (Some(data), subject),
        // Data that are no JSON would make the whole answer unreadable.
        _ => (None, Subject::default()),
    };
    let identifiers = match (&subject.source_identifiers, &subject.source_identifier) {
        (Some(many), _) => many.as_slice(),
        (None, Some(one)) => std::slice::from_ref(one),
        (None, None) => &[],
    };
    let identifier = subject.source_identifier.as_deref().or(match identifiers {
        [one] => Some(one),
        _ => None,
    });

    out.extend_from_slice(b"{\"id\":\"");
    write_uuid(out, recorded.id);
    out.extend_from_slice(b"\",\"occurred_at\":\"");
    write_time(out, recorded.occurred_at);
    out.extend_from_slice(b"\",\"event_type\":");
    write_text(out, &recorded.event_type);
    out.extend_from_slice(b",\"project_module\":");
    write_optional(out, recorded.tag("project:"));
    out.extend_from_slice(b",\"source_identifier\":");
    write_optional(out, identifier);
    out.extend_from_slice(b",\"execution_id\":");
    write_optional(out, recorded.tag("execution:"));
    out.extend_from_slice(b",\"actor\":");
    write_text(out, actor);
    out.extend_from_slice(b",\"correlation_id\":\"");
    write_uuid(out, recorded.correlation_id);
    out.extend_from_slice(b"\",\"payload\":");
    match payload {
        None => out.extend_from_slice(b"null"),
        // A raw newline in JSON is white space; in a line or a frame it would be an end.
        Some(data) if has_newline(data) => {
            out.extend(data.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
        }
        Some(data) => out.extend_from_slice(data),
    }
    if recorded.is_redacted() {
        out.extend_from_slice(b",\"redacted\":true");
    }
    out.extend_from_slice(b",\"position\":");
    write_number(out, recorded.position);
    out.extend_from_slice(b",\"stream\":");
    write_text(out, &recorded.stream);
    out.extend_from_slice(b",\"revision\":");
    write_number(out, recorded.revision);
    out.extend_from_slice(b",\"recorded_at\":\"");
    write_time(out, recorded.recorded_at);
    out.extend_from_slice(b"\",\"causation_id\":");
    match recorded.causation_id {
        None => out.extend_from_slice(b"null"),
        Some(id) => {
            out.push(b'"');
            write_uuid(out, id);
            out.push(b'"');
        }
    }
    out.extend_from_slice(b",\"schema_version\":");
    write_number(out, u64::from(recorded.schema_version));
    out.extend_from_slice(b",\"source_identifiers\":[");
    for (i, identifier) in identifiers.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(out, identifier);
    }
    out.extend_from_slice(b"],\"hash\":\"");
    write_hex(out, &recorded.hash.0);
    out.extend_from_slice(b"\"}");
}

/// Reads what data are about; `None` when they are no JSON.
fn subject(data: &[u8]) -> Option<Subject<'_>> {
    match serde_json::from_slice(data) {
        Ok(subject) => Some(subject),
        Err(error) if error.is_data() => {
            serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok().then(Subject::default)
        }
        Err(_) => None,
    }
}

fn write_number(out: &mut Vec<u8>, n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for some in bytes.chunks(32) {
        let mut hex = [0; 64];
        for (pair, byte) in hex.as_chunks_mut::<2>().0.iter_mut().zip(some) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        out.extend_from_slice(&hex[..2 * some.len()]);
    }
}

fn write_uuid(out: &mut Vec<u8>, id: Uuid) {
    let mut buffer = Uuid::encode_buffer();
    out.extend_from_slice(id.as_hyphenated().encode_lower(&mut buffer).as_bytes());
}

fn write_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => out.extend_from_slice(b"null"),
        Some(text) => write_text(out, text),
    }
}

// Of these two, every byte is looked at whatever the first ones are: that way the compiler looks at many at once.

fn has_newline(data: &[u8]) -> bool {
    let found = |some: &[u8]| some.iter().fold(false, |found, b| found | (*b == b'\n') | (*b == b'\r'));
    data.chunks(256).any(found)
}

fn is_plain(text: &str) -> bool {
    !text.bytes().fold(false, |odd, b| odd | (b < 0x20) | (b == b'"') | (b == b'\\'))
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(out, text);
    }
}

/// RFC 3339 in UTC with microseconds.
fn write_time(out: &mut Vec<u8>, time: DateTime<Utc>) {
    let (Ok(year), micros) = (u32::try_from(time.year()), time.nanosecond() / 1000) else {
        out.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::Micros, true).as_bytes());
        return;
    };
    if year > 9999 || micros > 999_999 {
        out.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::Micros, true).as_bytes());
        return;
    }
    let digits = |n: u32, place: u32| b'0' + (n / place % 10) as u8;
    let two = |n: u32| [digits(n, 10), digits(n, 1)];
    let [mo, d] = [two(time.month()), two(time.day())];
    let [h, m, s] = [two(time.hour()), two(time.minute()), two(time.second())];
    out.extend_from_slice(&[
        digits(year, 1000),
        digits(year, 100),
        digits(year, 10),
        digits(year, 1),
        b'-',
        mo[0],
        mo[1],
        b'-',
        d[0],
        d[1],
        b'T',
        h[0],
        h[1],
        b':',
        m[0],
        m[1],
        b':',
        s[0],
        s[1],
        b'.',
        digits(micros, 100_000),
        digits(micros, 10_000),
        digits(micros, 1000),
        digits(micros, 100),
        digits(micros, 10),
        digits(micros, 1),
        b'Z',
    ]);
}

#[cfg(test)]
mod tests {
    use beampipe_log::Hash;
    use serde_json::{Value, json};

    use super::*;

    fn recorded(event_type: &str, data: Option<&'static str>) -> Recorded {
        Recorded {
            position: 120,
            stream: "source-1".into(),
            revision: 7,
            id: Uuid::from_u128(1),
            event_type: event_type.into(),
            schema_version: 1,
            occurred_at: DateTime::from_timestamp_micros(1_767_323_045_000_678).unwrap(),
            recorded_at: DateTime::from_timestamp_micros(1_767_323_045_120_000).unwrap(),
            actor: "user:x".into(),
            correlation_id: Uuid::from_u128(2),
            causation_id: Some(Uuid::from_u128(3)),
            tags: vec!["execution:e".into(), "project:wallaby".into()],
            data: data.map(|data| Bytes::from_static(data.as_bytes())),
            salt: None,
            commitment: Hash::default(),
            prev_hash: None,
            hash: Hash([0xab; 32]),
            rendered: Default::default(),
        }
    }

    fn shown(event: &Recorded) -> Value {
        let frame = frame(event, "user:ada");
        serde_json::from_slice(&object(&frame, event.position)).unwrap()
    }

    #[test]
    fn an_event_has_every_field_of_the_contract() {
        let event = recorded("discovery.changed", Some(r#"{"source_identifier":"A \"quoted\" one","n":1}"#));
        assert_eq!(
            shown(&event),
            json!({
                "id": "00000000-0000-0000-0000-000000000001",
                "occurred_at": "2026-01-02T03:04:05.000678Z",
                "event_type": "discovery.changed",
                "project_module": "wallaby",
                "source_identifier": "A \"quoted\" one",
                "execution_id": "e",
                "actor": "user:ada",
                "correlation_id": "00000000-0000-0000-0000-000000000002",
                "payload": {"source_identifier": "A \"quoted\" one", "n": 1},
                "position": 120,
                "stream": "source-1",
                "revision": 7,
                "recorded_at": "2026-01-02T03:04:05.120000Z",
                "causation_id": "00000000-0000-0000-0000-000000000003",
                "schema_version": 1,
                "source_identifiers": ["A \"quoted\" one"],
                "hash": "ab".repeat(32),
            })
        );
    }

    #[test]
    fn an_execution_of_several_sources_names_them_all_and_no_single_one() {
        let event = recorded("execution.created", Some(r#"{"source_identifiers":["A","B"]}"#));
        assert_eq!(shown(&event)["source_identifiers"], json!(["A", "B"]));
        assert_eq!(shown(&event)["source_identifier"], Value::Null);
        let event = recorded("execution.created", Some(r#"{"source_identifiers":["A"]}"#));
        assert_eq!(shown(&event)["source_identifier"], "A");
    }

    #[test]
    fn a_frame_is_one_event_whatever_its_data() {
        for data in [
            Some("{\"a\":\n1,\r\n\"b\":\"x\\ny\"}"),
            Some("no json"),
            Some("{\"source_identifier\":5}"),
            Some("{\"source_identifier\":5} trailing"),
            None,
        ] {
            let event = recorded("source.updated", data);
            let frame = frame(&event, "user:ada");
            let text = std::str::from_utf8(&frame).unwrap();
            assert!(text.starts_with("id: 120-abababab\ndata: {"), "{text}");
            assert_eq!(text.lines().count(), 3, "id, data and an empty line: {text}");
            assert!(line(&frame, 120).ends_with(b"}\n"));
            assert_eq!(shown(&event)["position"], 120, "{text}");
        }
    }

    #[test]
    fn a_redacted_event_says_so_and_shows_nothing() {
        let shown = shown(&recorded("source.updated", None));
        assert_eq!((&shown["payload"], &shown["redacted"]), (&Value::Null, &json!(true)));
    }

    #[test]
    fn private_fields_are_left_out() {
        let event = recorded("account.password_changed", Some(r#"{"password_hash":"$argon2id$canary"}"#));
        assert!(!String::from_utf8(frame(&event, "x").to_vec()).unwrap().contains("canary"));
    }

    #[test]
    fn times_and_numbers_are_written_as_others_write_them() {
        for micros in [0, 1, 1_767_323_045_999_999, 253_402_300_799_000_000, -62_135_596_800_000_000] {
            let time = DateTime::from_timestamp_micros(micros).unwrap();
            let mut out = vec![];
            write_time(&mut out, time);
            let expected = time.to_rfc3339_opts(SecondsFormat::Micros, true);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        for n in [0, 9, 10, 99, 100, u64::MAX] {
            let mut out = vec![];
            write_number(&mut out, n);
            assert_eq!(String::from_utf8(out).unwrap(), n.to_string());
        }
    }
}
