//! Our VOTable reader against astropy's: every datatype in every encoding, written and read by astropy.

use std::path::PathBuf;
use std::process::Command;

use beampipe::archives::tap::votable;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Case {
    file: String,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

/// A Python that has astropy.
fn python() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests take their servers and tools from the environment")]
    let given = std::env::var("BEAMPIPE_TEST_PYTHON").map(PathBuf::from);
    let python =
        given.unwrap_or_else(|_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/.venv/bin/python"));
    assert!(python.exists(), "no Python with astropy at {}: run `make test-deps`", python.display());
    python
}

#[test]
fn every_datatype_in_every_encoding_reads_as_astropy_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/archives/votable_against_astropy.py");
    let made = Command::new(python()).arg(script).arg(directory.path()).output().unwrap();
    assert!(
        made.status.success(),
        "astropy did not write its tables (`make test-deps` installs it):\n{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(directory.path().join("cases.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 3);
    let mut compared = 0;
    for case in cases {
        let bytes = std::fs::read(directory.path().join(&case.file)).unwrap();
        let table = votable::read(&bytes, 100)
            .unwrap_or_else(|error| panic!("{}: {error}", case.file))
            .table
            .unwrap();
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, case.columns);
        assert_eq!(table.rows.len(), case.rows.len(), "{}", case.file);
        for (row, (ours, theirs)) in table.rows.iter().zip(&case.rows).enumerate() {
            for ((name, ours), theirs) in names.iter().zip(ours).zip(theirs) {
                assert_eq!(&json!(ours), theirs, "{}: {name} in row {row}", case.file);
                compared += 1;
            }
        }
    }
    assert!(compared > 300, "only {compared} cells were compared");
}
