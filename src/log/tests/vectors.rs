//! The leaf format: its written vectors, and that no two events share a leaf.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::process::Command;
use std::sync::Arc;

use beampipe_log::leaf::{self, Beside, Fields, Interner};
use beampipe_log::{Hash, ndjson};
use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/log-vectors.json");

fn vectors() -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(VECTORS).unwrap();
    let mut all: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all["vectors"].take()).unwrap()
}

#[test]
fn every_written_vector_holds() {
    let vectors = vectors();
    assert!(vectors.len() >= 20);
    for vector in vectors {
        let event = ndjson::parse(vector["event"].to_string().as_bytes(), &mut Interner::default()).unwrap();
        let encoded = leaf::encode(&(&event).into());
        assert_eq!(hex::encode(&encoded), vector["leaf"], "{}", vector["name"]);
        assert_eq!(leaf::check(&event), Ok(()), "{}", vector["name"]);
        let again: serde_json::Value = serde_json::from_slice(&ndjson::line(&event)).unwrap();
        assert_eq!(again, vector["event"], "{}", vector["name"]);
    }
}

#[test]
fn an_independent_script_agrees_with_the_vectors() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/log_vectors.py");
    let done = Command::new("python3").args([script, "vectors", VECTORS]).output();
    let done = done.expect("python3 runs; bring it with: apt-get install python3");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    texts: [String; 3],
    revision: u64,
    ids: (u128, u128, Option<u128>),
    schema_version: u16,
    micros: i64,
    tags: Vec<String>,
    commitment: [u8; 32],
    prev_hash: Option<[u8; 32]>,
}

fn encode(said: &Said) -> Vec<u8> {
    let tags: Vec<Arc<str>> = said.tags.iter().map(|tag| tag.as_str().into()).collect();
    leaf::encode(&Fields {
        stream: &said.texts[0],
        revision: said.revision,
        id: Uuid::from_u128(said.ids.0),
        event_type: &said.texts[1],
        schema_version: said.schema_version,
        occurred_at: DateTime::from_timestamp_micros(said.micros).unwrap(),
        actor: &said.texts[2],
        correlation_id: Uuid::from_u128(said.ids.1),
        causation_id: said.ids.2.map(Uuid::from_u128),
        tags: &tags,
        commitment: Hash(said.commitment),
        prev_hash: said.prev_hash.map(Hash),
    })
}

/// Few letters and short texts, so that neighbours differ only in where one ends.
fn said() -> impl Strategy<Value = Said> {
    let text = || proptest::string::string_regex("[ab\u{0}\u{1}ä]{0,4}").unwrap();
    (
        [text(), text(), text()],
        0..3_u64,
        (0..3_u128, 0..3_u128, proptest::option::of(0..3_u128)),
        0..3_u16,
        -2..2_i64,
        proptest::collection::vec(text(), 0..4),
        proptest::array::uniform32(0..2_u8),
        proptest::option::of(proptest::array::uniform32(0..2_u8)),
    )
        .prop_map(|(texts, revision, ids, schema_version, micros, tags, commitment, prev_hash)| Said {
            texts,
            revision,
            ids,
            schema_version,
            micros,
            tags,
            commitment,
            prev_hash,
        })
}

proptest! {
    #[test]
    fn different_events_have_different_leaves(one in said(), other in said()) {
        prop_assert_eq!(one == other, encode(&one) == encode(&other));
    }

    #[test]
    fn what_differs_only_in_where_texts_end_has_different_leaves(
        text in "[ab]{2,12}", cut in 0..12_usize, other_cut in 0..12_usize, at in 0..2_usize, mut said in said()
    ) {
        let split = |cut: usize, said: &mut Said| {
            let (left, right) = text.split_at(cut.min(text.len()));
            said.texts[at] = left.into();
            said.texts[at + 1] = right.into();
            said.tags = vec![left.into(), right.into()];
            encode(said)
        };
        let same = cut.min(text.len()) == other_cut.min(text.len());
        prop_assert_eq!(split(cut, &mut said) == split(other_cut, &mut said), same);
    }

    #[test]
    fn a_leaf_is_decoded_to_what_it_says_and_to_nothing_when_cut_or_lengthened(said in said(), cut in any::<prop::sample::Index>()) {
        let encoded = encode(&said);
        let beside = || Beside {
            position: 1,
            recorded_at: DateTime::UNIX_EPOCH,
            salt: None,
            data: None,
            hash: leaf::hash(&encoded),
        };
        let event = leaf::decode(&encoded, beside(), &mut Interner::default()).unwrap();
        prop_assert_eq!(&leaf::encode(&(&event).into()), &encoded);
        prop_assert_eq!(leaf::check(&event), Ok(()));
        let short = &encoded[..cut.index(encoded.len())];
        prop_assert!(leaf::decode(short, beside(), &mut Interner::default()).is_err());
        let long = [&encoded[..], &[0]].concat();
        prop_assert_eq!(
            leaf::decode(&long, beside(), &mut Interner::default()).unwrap_err(),
            leaf::Malformed::Long
        );
    }
}
