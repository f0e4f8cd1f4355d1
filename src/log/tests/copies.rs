//! Export and import: the same bytes come out, redactions and times included, and a broken-off import goes on.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::process::{Command, Stdio};
use std::sync::Arc;

use beampipe_log::contract::{append_at_end, read_matching, redaction_of, sample, tagged, ticking_clock};
use beampipe_log::ndjson::{ImportError, Progress, export, import};
use beampipe_log::{Filter, Log, MemoryLog, NewEvent, SqliteLog, SqliteOptions};
use bytes::Bytes;

fn sqlite(directory: &tempfile::TempDir, name: &str) -> SqliteLog {
    SqliteLog::open(directory.path().join(name), SqliteOptions::new(ticking_clock())).unwrap()
}

/// A log with several streams, odd data, and two redactions, one before and one after events that follow it.
async fn fill(log: &dyn Log) {
    let mut secrets = Vec::new();
    for n in 0..500 {
        let mut event = tagged(&n.to_string(), &["project:a", &format!("n:{}", n % 7)]);
        if n % 50 == 0 {
            secrets.push(event.id);
        }
        if n % 11 == 0 {
            event = NewEvent { data: Bytes::from_static(b"\xff\0"), causation_id: Some(event.id), ..event };
        }
        append_at_end(log, &format!("s-{}", n % 20), vec![event]).await;
        if n == 200 {
            log.redact(secrets[1], redaction_of(secrets[1])).await.unwrap();
        }
    }
    log.redact(secrets[7], redaction_of(secrets[7])).await.unwrap();
    append_at_end(log, "last", vec![sample("ä")]).await;
}

async fn exported(log: &dyn Log, after: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let done = export(log, after, &mut out, &mut |_| {}).await.unwrap();
    assert_eq!(done.position, log.head().position);
    out
}

async fn imported(log: &SqliteLog, bytes: &[u8]) -> Result<Progress, ImportError> {
    let mut bytes = bytes;
    import(log, &mut bytes, &mut |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_an_import_is_the_same_bytes_on_every_engine() {
    let directory = tempfile::tempdir().unwrap();
    let first = sqlite(&directory, "first");
    fill(&first).await;
    let original = exported(&first, 0).await;

    let second = sqlite(&directory, "second");
    let done = imported(&second, &original).await.unwrap();
    assert_eq!((done.written, done.skipped), (first.head().position, 0));
    assert_eq!(exported(&second, 0).await, original);
    assert_eq!(second.head(), first.head());
    let report = second.verify(&mut |_| {}).unwrap();
    assert_eq!((report.redacted, &report.faults[..]), (2, &[][..]));

    let memory = MemoryLog::new(ticking_clock());
    import(&memory, &mut &original[..], &mut |_| {}).await.unwrap();
    assert_eq!(exported(&memory, 0).await, original);

    // What was imported is a log like any other.
    for filter in [Filter::tag("n:3"), Filter::stream("s-3"), Filter::category("s")] {
        let (ours, theirs) =
            (read_matching(&second, &filter, 50).await, read_matching(&first, &filter, 50).await);
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.hash == b.hash && a.recorded_at == b.recorded_at));
    }
    let next = append_at_end(&second, "s-3", vec![sample("more")]).await;
    assert_eq!(next.position, first.head().position + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_broken_off_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let first = sqlite(&directory, "first");
    fill(&first).await;
    let original = exported(&first, 0).await;
    let lines: Vec<&[u8]> = original.split_inclusive(|&byte| byte == b'\n').collect();

    let second = sqlite(&directory, "second");
    for part in [100, 101, 350] {
        imported(&second, &lines[..part].concat()).await.unwrap();
        assert_eq!(second.head().position, part as u64);
    }
    second.close().await;
    drop(second);
    let second = sqlite(&directory, "second");
    let done = imported(&second, &original).await.unwrap();
    assert_eq!((done.skipped, done.written), (350, lines.len() as u64 - 350));
    assert_eq!(exported(&second, 0).await, original);
    assert_eq!(second.verify(&mut |_| {}).unwrap().faults, []);
    // A part alone goes on, too.
    assert_eq!(exported(&second, 350).await, lines[350..].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_not_what_was_written_is_refused_where_it_differs() {
    let directory = tempfile::tempdir().unwrap();
    let first = sqlite(&directory, "first");
    fill(&first).await;
    let original = String::from_utf8(exported(&first, 0).await).unwrap();
    let lines: Vec<&str> = original.split_inclusive('\n').collect();
    let with = |index: usize, line: String| {
        let mut lines: Vec<String> = lines.iter().map(|&line| line.into()).collect();
        lines[index] = line;
        lines.concat().into_bytes()
    };
    for (name, bytes, said) in [
        ("actor", with(7, lines[7].replace("system:test/1", "system:test/2")), "leaf hash"),
        ("data", with(8, lines[8].replace("eyJ", "eyI")), "commitment"),
        ("left-out", with(9, String::new()), "position 10 is next, the import has 11"),
        ("json", with(9, "{\n".into()), "line 10"),
    ] {
        let log = sqlite(&directory, name);
        let refused = imported(&log, &bytes).await.unwrap_err().to_string();
        assert!(refused.contains(said), "{name}: {refused}");
    }
    let other = sqlite(&directory, "other");
    append_at_end(&other, "s-0", vec![sample("another history")]).await;
    let refused = imported(&other, original.as_bytes()).await.unwrap_err();
    assert!(matches!(refused, ImportError::Different { position: 1 }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_script_verifies_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let log = sqlite(&directory, "log");
    fill(&log).await;
    let bytes = exported(&log, 0).await;
    let check = |bytes: Vec<u8>| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/log_vectors.py");
        let mut child = Command::new("python3")
            .args([script, "export", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 runs; bring it with: apt-get install python3");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &bytes).unwrap();
        child.wait_with_output().unwrap()
    };
    let good = check(bytes.clone());
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(String::from_utf8_lossy(&good.stdout).contains("2 redacted"));
    let bad =
        check(String::from_utf8(bytes).unwrap().replacen("system:test/1", "system:test/2", 1).into_bytes());
    assert_eq!(bad.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_exported_while_another_opening_writes() {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(sqlite(&directory, "log"));
    fill(&*log).await;
    let writer = {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for n in 0..200 {
                append_at_end(&*log, "meanwhile", vec![sample(&n.to_string())]).await;
            }
        })
    };
    let reader =
        SqliteLog::open_read_only(directory.path().join("log"), SqliteOptions::new(ticking_clock())).unwrap();
    let mut out = Vec::new();
    let done = export(&reader, 0, &mut out, &mut |_| {}).await.unwrap();
    assert!(done.written >= 503);
    assert_eq!(reader.verify(&mut |_| {}).unwrap().faults, []);
    writer.await.unwrap();
    assert!(exported(&*log, 0).await.starts_with(&out));
}
