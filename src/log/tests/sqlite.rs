//! What is SQLite's alone: who may write, what the file itself refuses, the index, the queue.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::path::Path;
use std::sync::Arc;

use beampipe_log::contract::{
    append_at_end, positions, random, random_id, read_matching, redaction_of, sample, tagged, ticking_clock,
};
use beampipe_log::sqlite::OpenError;
use beampipe_log::{
    AppendError, Direction, Expected, Filter, Log, NewEvent, Recorded, SqliteLog, SqliteOptions,
};
use futures::future::join_all;

fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(path, SqliteOptions::new(ticking_clock())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused_with_the_pid_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let first = open(&path);
    append_at_end(&first, "s-1", vec![sample("a")]).await;
    match SqliteLog::open(&path, SqliteOptions::new(ticking_clock())) {
        Err(OpenError::Locked { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    let reader = SqliteLog::open_read_only(&path, SqliteOptions::new(ticking_clock())).unwrap();
    assert_eq!(read_matching(&reader, &Filter::All, 10).await.len(), 1);
    let refused = reader.append("s-2", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(why)) if why.contains("reading only")));

    // What is written later is read and followed, too.
    let mut follower = reader.subscribe(Filter::All, 1);
    assert!(follower.next_batch(10).await.unwrap().caught_up);
    append_at_end(&first, "s-1", vec![sample("b")]).await;
    assert_eq!(read_matching(&reader, &Filter::stream("s-1"), 10).await.len(), 2);
    let heard = beampipe_log::contract::follow_through(&mut follower, 2, 10).await;
    assert_eq!(heard.len(), 1);

    first.close().await;
    let second = open(&path);
    append_at_end(&second, "s-1", vec![sample("c")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_itself_refuses_every_change_but_a_recorded_redaction() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let log = open(&path);
    let event = sample("secret words");
    append_at_end(&log, "s-1", vec![sample("a"), event.clone()]).await;
    append_at_end(&log, "log", vec![redaction_of(sample("x").id)]).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    for change in [
        "UPDATE events SET data = x'00'",
        "UPDATE events SET data = NULL, salt = NULL WHERE position = 2",
        "UPDATE events SET recorded_at = 0",
        "UPDATE OR REPLACE events SET position = 9 WHERE position = 1",
        "DELETE FROM events",
        "DELETE FROM events WHERE position = 3",
        "INSERT OR REPLACE INTO events VALUES (2, 0, x'00', zeroblob(32), NULL, NULL, 0)",
        "INSERT INTO events VALUES (9, 0, x'00', zeroblob(32), NULL, NULL, 0)",
        "INSERT INTO redactions SELECT 2, substr(leaf, 15, 16), 1 FROM events WHERE position = 2",
        "INSERT INTO redactions SELECT 2, substr(leaf, 15, 16), 3 FROM events WHERE position = 2",
        "INSERT INTO redactions VALUES (2, x'', 3)",
    ] {
        let refused = other.execute(change, []).unwrap_err().to_string();
        assert!(refused.contains("event"), "{change}: {refused}");
    }
    assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);

    log.redact(event.id, redaction_of(event.id)).await.unwrap();
    for change in [
        "UPDATE events SET data = x'00', salt = zeroblob(32) WHERE position = 2",
        "UPDATE events SET data = NULL, salt = NULL, recorded_at = 0 WHERE position = 2",
        "UPDATE redactions SET event = 1",
        "DELETE FROM redactions",
    ] {
        assert!(other.execute(change, []).is_err(), "{change}");
    }
    drop(other);
    // Not in the database, not in its WAL, not in the index.
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(entry.as_ref().unwrap().path()).unwrap();
        let found = bytes.windows(12).any(|window| window == b"secret words");
        assert!(!found, "{:?}", entry.unwrap().path());
    }
    log.close().await;
    drop(log);
    let log = open(&path);
    let report = log.verify(&mut |_| {}).unwrap();
    assert_eq!((report.redacted, report.faults), (1, vec![]));
    let again = log.redact(event.id, redaction_of(event.id)).await.unwrap();
    assert!(again.repeated && again.position == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_missing_or_of_another_log_is_built_anew() {
    let directory = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| directory.path().join(name));
    for path in &paths {
        let log = open(path);
        for n in 0..40 {
            append_at_end(&log, &format!("s-{}", n % 7), vec![tagged("", &[&format!("n:{}", n % 3)])]).await;
        }
        log.close().await;
    }
    let index = |path: &Path| -> std::path::PathBuf { format!("{}.index", path.display()).into() };
    std::fs::copy(index(&paths[1]), index(&paths[0])).unwrap();
    std::fs::remove_file(index(&paths[1])).unwrap();
    for path in &paths {
        // Without its index a log is still read, if only slowly.
        let reader = SqliteLog::open_read_only(path, SqliteOptions::new(ticking_clock())).unwrap();
        assert!(
            !reader.read_stream("s-3", 0, Direction::Forward, 100).await.is_ok_and(|read| read.is_empty())
        );
        let log = open(path);
        assert_eq!(read_matching(&log, &Filter::tag("n:1"), 100).await.len(), 13);
        assert_eq!(log.read_stream("s-3", 0, Direction::Forward, 100).await.unwrap().len(), 6);
        assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_nothing_of_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let options = SqliteOptions { queue_appends: 2, ..SqliteOptions::new(ticking_clock()) };
    let log = Arc::new(SqliteLog::open(&path, options).unwrap());
    let answers = join_all((0..400).map(|n| {
        let log = Arc::clone(&log);
        tokio::spawn(
            async move { log.append(&format!("s-{n}"), Expected::NoStream, vec![sample("a")]).await },
        )
    }))
    .await;
    let mut taken = 0;
    let mut busy = 0;
    for answer in answers {
        match answer.unwrap() {
            Ok(_) => taken += 1,
            Err(AppendError::Busy) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(taken > 0 && busy > 0, "{taken} taken, {busy} busy");
    assert_eq!(read_matching(&*log, &Filter::All, 1000).await.len(), taken);
    assert_eq!(log.health().queued_appends, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_found_again_as_it_was_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let mut heads = Vec::new();
    for round in 0..5 {
        let log = open(&path);
        if let Some(head) = heads.last() {
            assert_eq!(log.head(), *head);
        }
        for n in 0..30 {
            append_at_end(&log, &format!("s-{}", n % 4), vec![sample(&format!("{round} {n}"))]).await;
        }
        heads.push(log.head());
        // Sometimes in order, sometimes by being let go.
        if round % 2 == 0 {
            log.close().await;
        }
    }
    let log = open(&path);
    let report = log.verify(&mut |_| {}).unwrap();
    assert_eq!((report.events, report.streams, report.head), (150, 4, log.head()));
    assert_eq!(report.faults, []);
}

/// Compares what the log answers with what a scan of everything would say.
async fn assert_answers_as_a_scan_would(
    log: &SqliteLog,
    filter: &Filter,
    all: &[Arc<Recorded>],
    from: u64,
    page: usize,
) {
    let matching = || all.iter().filter(|event| filter.matches(event));
    let forward = log.read_all(from, Direction::Forward, page, filter).await.unwrap();
    let mut wanted = matching().filter(|event| event.position >= from).map(|event| event.position);
    let first: Vec<u64> = wanted.by_ref().take(page).collect();
    assert_eq!(positions(&forward.events), first, "{filter:?} from {from}");
    assert_eq!(forward.next.is_some(), wanted.next().is_some(), "{filter:?} from {from}, {page} at once");
    let backward = log.read_all(from, Direction::Backward, page, filter).await.unwrap();
    let mut wanted = matching().rev().filter(|event| event.position <= from).map(|event| event.position);
    let first: Vec<u64> = wanted.by_ref().take(page).collect();
    assert_eq!(positions(&backward.events), first, "{filter:?} back from {from}");
    assert_eq!(
        backward.next.is_some(),
        wanted.next().is_some(),
        "{filter:?} back from {from}, {page} at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_answers_as_a_scan_would() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let requests: Vec<_> = (0..4).map(|_| random_id()).collect();
    for round in 0..4 {
        // A log that was just opened has nothing in memory: index and file answer.
        let log = open(&path);
        for _ in 0..12 {
            let [stream, tag, events, request] = random::<4>();
            let stream = match stream % 8 {
                0 => "lease".into(),
                n => format!("s-{}", n % 5),
            };
            let event = || NewEvent {
                correlation_id: requests[usize::from(request) % 4],
                ..tagged("", &[&format!("t:{}", tag % 3), "every"])
            };
            append_at_end(&log, &stream, (0..=events).map(|_| event()).collect()).await;
        }
        if round % 2 == 0 {
            // The index keeps some of it as it comes.
            tokio::time::sleep(std::time::Duration::from_millis(120)).await;
        }
        log.close().await;
        drop(log);
        let log = open(&path);
        if round % 2 == 1 {
            // Some of it is in the index and some not yet: neither hides anything nor shows it twice.
            append_at_end(&log, "s-2", (0..40).map(|_| tagged("", &["every", "t:1"])).collect()).await;
        }
        let all = read_matching(&log, &Filter::All, 700).await;
        assert_eq!(all.len() as u64, log.head().position);
        for filter in [
            Filter::All,
            Filter::tag("every"),
            Filter::tag("t:1"),
            Filter::tag("t:9"),
            Filter::category("s"),
            Filter::category("lease"),
            Filter::stream("s-2"),
            Filter::stream("lease"),
            Filter::stream("none"),
            Filter::Correlation(requests[1]),
        ] {
            for _ in 0..6 {
                let from = u64::from(u16::from_le_bytes(random())) % (all.len() as u64 + 3);
                let page = [1, 7, 300, 5000][usize::from(random::<1>()[0]) % 4];
                assert_answers_as_a_scan_would(&log, &filter, &all, from, page).await;
            }
        }
        for stream in ["s-1", "s-2", "lease", "none"] {
            let of: Vec<u64> =
                all.iter().filter(|event| *event.stream == *stream).map(|e| e.position).collect();
            for _ in 0..6 {
                let from = usize::from(u16::from_le_bytes(random())) % (of.len() + 2);
                let limit = [1, 7, 5000][usize::from(random::<1>()[0]) % 3];
                let read = log.read_stream(stream, from as u64, Direction::Forward, limit).await.unwrap();
                let wanted: Vec<u64> = of.iter().skip(from).take(limit).copied().collect();
                assert_eq!(positions(&read), wanted, "{stream} from {from}");
                let read = log.read_stream(stream, from as u64, Direction::Backward, limit).await.unwrap();
                let wanted: Vec<u64> =
                    of[..of.len().min(from + 1)].iter().rev().take(limit).copied().collect();
                assert_eq!(positions(&read), wanted, "{stream} back from {from}");
            }
        }
        for event in all.iter().step_by(97) {
            assert_eq!(log.event(event.id).await.unwrap().unwrap().position, event.position);
        }
        assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);
    }
}
