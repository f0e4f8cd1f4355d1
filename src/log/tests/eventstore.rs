//! The EventStoreDB engine, through the official client, against a stand-in for the server: the contract, and what a
//! network does.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_eventstore_standin::{EventStore, Fault};
use beampipe_log::contract::{
    append_at_end, follow_through, positions, random, random_id, read_matching, redaction_of, sample, tagged,
    ticking_clock,
};
use beampipe_log::copy;
use beampipe_log::eventstore::{Deadlines, OpenError};
use beampipe_log::ndjson::{self, Restore};
use beampipe_log::{
    AppendError, Direction, EventStoreLog, EventStoreOptions, Expected, Filter, Log, MemoryLog, NewEvent,
    ReadError, leaf,
};
use bytes::Bytes;
use tempfile::TempDir;

/// Short, so that a test does not wait for what cannot come.
const SHORT: Deadlines = Deadlines {
    read: Duration::from_millis(600),
    append: Duration::from_millis(800),
    settle: Duration::from_secs(8),
};

fn options(server: &EventStore, directory: &TempDir) -> EventStoreOptions {
    let index = Some(directory.path().join("index.sqlite"));
    EventStoreOptions { index, ..EventStoreOptions::new(server.url(), ticking_clock()) }
}

async fn open(server: &EventStore, directory: &TempDir) -> EventStoreLog {
    let options = EventStoreOptions { deadlines: SHORT, ..options(server, directory) };
    EventStoreLog::open(options).await.unwrap()
}

async fn fresh() -> (EventStore, TempDir, EventStoreLog) {
    let (server, directory) = (EventStore::start().await.unwrap(), tempfile::tempdir().unwrap());
    let log = open(&server, &directory).await;
    (server, directory, log)
}

mod contract {
    use super::*;

    async fn make() -> (Arc<dyn Log>, (EventStore, TempDir)) {
        let (server, directory) = (EventStore::start().await.unwrap(), tempfile::tempdir().unwrap());
        let log = EventStoreLog::open(options(&server, &directory)).await.unwrap();
        (Arc::new(log), (server, directory))
    }

    beampipe_log::log_contract!(make);
}

async fn patiently(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_connection_is_cut_before_it_is_written_is_written_once() {
    let (server, _directory, log) = fresh().await;
    let first = append_at_end(&log, "s-1", vec![sample("a")]).await;
    for n in 0..5 {
        server.faults().next_append(Fault::CutBefore);
        let appended = append_at_end(&log, "s-1", vec![sample(&n.to_string())]).await;
        assert!(!appended.repeated && appended.position > first.position);
    }
    assert_eq!(log.read_stream("s-1", 0, Direction::Forward, 100).await.unwrap().len(), 6);
    assert_eq!(server.written(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_is_lost_is_settled_by_looking() {
    let (server, _directory, log) = fresh().await;
    for n in 0..5 {
        server.faults().next_append(Fault::CutAfter);
        let appended = append_at_end(&log, "s-1", vec![sample(&n.to_string()), sample("more")]).await;
        assert_eq!((appended.repeated, appended.head.revision), (false, 2 * n + 1));
    }
    assert_eq!(server.written(), 10);
    assert_eq!(log.head().position, positions(&read_matching(&log, &Filter::All, 100).await)[9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_past_the_deadline_is_settled_by_looking() {
    let (server, _directory, log) = fresh().await;
    let since = Instant::now();
    server.faults().next_append(Fault::AnswerLate(Duration::from_secs(60)));
    let appended = append_at_end(&log, "s-1", vec![sample("a")]).await;
    assert!(!appended.repeated);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(server.written(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_is_written_long_after_it_was_given_up_is_there_once() {
    let (server, _directory, log) = fresh().await;
    let first = append_at_end(&log, "s-1", vec![sample("a")]).await;
    // The second attempt is first; the late one finds its own ids there, and writes nothing.
    server.faults().next_append(Fault::WriteLate(Duration::from_secs(2)));
    let event = sample("b");
    let appended = log.append("s-1", Some(first.head).into(), vec![event.clone()]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let other = append_at_end(&log, "s-1", vec![sample("c")]).await;
    let read = log.read_stream("s-1", 0, Direction::Forward, 100).await.unwrap();
    let hashes: Vec<_> = read.iter().map(|event| event.hash).collect();
    assert_eq!(hashes, [first.head.hash, appended.head.hash, other.head.hash]);
    assert_eq!(server.written(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_cannot_be_settled_in_time_is_unknown_and_says_so() {
    let (server, directory) = (EventStore::start().await.unwrap(), tempfile::tempdir().unwrap());
    let deadlines = Deadlines { settle: Duration::from_millis(1_500), ..SHORT };
    let options = EventStoreOptions { deadlines, ..options(&server, &directory) };
    let log = EventStoreLog::open(options).await.unwrap();
    let event = sample("a");
    server.go_silent(true);
    let outcome = log.append("s-1", Expected::NoStream, vec![event.clone()]).await;
    assert!(matches!(outcome, Err(AppendError::Unknown(_) | AppendError::Unavailable(_))), "{outcome:?}");
    server.go_silent(false);
    patiently("it comes back", || log.health().append_refused.is_none()).await;
    // Whatever became of it, the same append again ends with it written once.
    log.append("s-1", Expected::NoStream, vec![event]).await.unwrap();
    assert_eq!(log.read_stream("s-1", 0, Direction::Forward, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_takes_ids_for_the_append_and_we_do_not() {
    // Two processes that know nothing of each other, with the same event ids and other bytes.
    let (server, _directory, one) = fresh().await;
    let other_directory = tempfile::tempdir().unwrap();
    let two = open(&server, &other_directory).await;
    let event = sample("a");
    let twin = NewEvent { data: Bytes::from_static(b"{}"), salt: random(), ..event.clone() };
    let first = one.append("s-1", Expected::NoStream, vec![event.clone()]).await.unwrap();
    match two.append("s-1", Expected::NoStream, vec![twin]).await {
        Err(AppendError::Conflict { actual, .. }) => assert_eq!(actual, Some(first.head)),
        outcome => panic!("{outcome:?}"),
    }
    let again = two.append("s-1", Expected::NoStream, vec![event]).await.unwrap();
    assert_eq!((again.position, again.head), (first.position, first.head));
    assert_eq!(server.written(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_across_200_forced_disconnects_delivers_every_event_once_and_in_order() {
    const CUTS: usize = 200;
    let (server, _directory, log) = fresh().await;
    let other_directory = tempfile::tempdir().unwrap();
    let follower = Arc::new(open(&server, &other_directory).await);
    let mut subscription = follower.subscribe(Filter::All, 0);
    let mut tagged_subscription = follower.subscribe(Filter::tag("t:1"), 0);
    let server = Arc::new(server);
    let cutter = {
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            for n in 0..CUTS {
                server.cut();
                tokio::time::sleep(Duration::from_millis(5 + (n as u64 % 4) * 5)).await;
            }
        })
    };
    let mut written = Vec::new();
    while !cutter.is_finished() || written.len() < 300 {
        let n = written.len();
        let event = tagged(&n.to_string(), &[&format!("t:{}", n % 3)]);
        let stream = format!("s-{}", n % 5);
        let head = loop {
            match log.stream_head(&stream).await {
                Ok(head) => break head,
                Err(ReadError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        };
        loop {
            match log.append(&stream, head.into(), vec![event.clone()]).await {
                Ok(appended) => break written.push(appended.position),
                // The same bytes at the same place: once, however often they are sent.
                Err(AppendError::Unavailable(_) | AppendError::Unknown(_) | AppendError::Busy) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    let last = *written.last().unwrap();
    let seen = follow_through(&mut subscription, last, 7).await;
    assert_eq!(positions(&seen), written);
    let thirds = follow_through(&mut tagged_subscription, last, 7).await;
    assert_eq!(positions(&thirds), written.iter().skip(1).step_by(3).copied().collect::<Vec<_>>());
    assert_eq!(server.written(), written.len());
    println!("{CUTS} cuts, {} events", written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_kept_goes_on_and_one_that_is_lost_is_built_again() {
    let (server, directory, log) = fresh().await;
    for n in 0..50 {
        append_at_end(
            &log,
            &format!("s-{}", n % 4),
            vec![tagged(&n.to_string(), &[&format!("t:{}", n % 3)])],
        )
        .await;
    }
    let event = sample("a secret");
    append_at_end(&log, "s-9", vec![event.clone()]).await;
    log.redact(event.id, redaction_of(event.id)).await.unwrap();
    let wanted = positions(&read_matching(&log, &Filter::tag("t:1"), 100).await);
    let head = log.head();
    log.close().await;
    drop(log);
    for lost in [false, true] {
        if lost {
            std::fs::remove_file(directory.path().join("index.sqlite")).unwrap();
        }
        let log = open(&server, &directory).await;
        assert_eq!(log.head(), head);
        assert_eq!(positions(&read_matching(&log, &Filter::tag("t:1"), 7).await), wanted);
        assert_eq!(read_matching(&log, &Filter::All, 100).await.len(), 52);
        assert!(log.event(event.id).await.unwrap().unwrap().is_redacted());
        append_at_end(&log, "s-1", vec![sample("on")]).await;
        log.close().await;
        server.lose_end(1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_log_is_not_believed() {
    let (_server, directory, log) = fresh().await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    log.close().await;
    let other = EventStore::start().await.unwrap();
    let log = open(&other, &directory).await;
    assert_eq!(log.head().position, 0);
    assert!(read_matching(&log, &Filter::category("s"), 10).await.is_empty());
    append_at_end(&log, "s-2", vec![sample("b")]).await;
    assert_eq!(read_matching(&log, &Filter::category("s"), 10).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_is_said_so_and_comes_back_by_itself() {
    let (server, _directory, log) = fresh().await;
    let first = append_at_end(&log, "s-1", vec![sample("a")]).await;
    type Change = fn(&EventStore, bool);
    let changes: [(&str, Change); 2] = [("refused", EventStore::go_away), ("silent", EventStore::go_silent)];
    for (how, change) in changes {
        change(&server, true);
        let since = Instant::now();
        patiently("it is noticed", || log.health().append_refused.is_some()).await;
        assert!(since.elapsed() < Duration::from_secs(5), "{how} {:?}", since.elapsed());
        let refused = log.append("s-2", Expected::NoStream, vec![sample("b")]).await;
        assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{how} {refused:?}");
        // What is in memory is still answered.
        let page = log.read_all(first.position, Direction::Forward, 10, &Filter::All).await.unwrap();
        assert!(!page.events.is_empty());
        change(&server, false);
        patiently("it comes back", || log.health().append_refused.is_none()).await;
        append_at_end(&log, &format!("s-{how}"), vec![sample("c")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_the_next_leader_is_found() {
    let server = EventStore::start().await.unwrap();
    let (second, third) = (server.join().await.unwrap(), server.join().await.unwrap());
    let nodes = [server.address(), second.address(), third.address()];
    for node in [&server, &second, &third] {
        node.say_members(&nodes);
    }
    let directory = tempfile::tempdir().unwrap();
    let url = format!("esdb://{},{},{}?tls=false&discoveryInterval=50", nodes[0], nodes[1], nodes[2]);
    let options = EventStoreOptions { url, deadlines: SHORT, ..options(&server, &directory) };
    let log = EventStoreLog::open(options).await.unwrap();
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    // The leader dies; the others say who leads now.
    server.go_away(true);
    for node in [&second, &third] {
        node.say_members(&nodes[1..]);
    }
    let since = Instant::now();
    loop {
        match log.append("s-2", Expected::NoStream, vec![sample("b")]).await {
            Ok(_) => break,
            Err(error) => assert!(since.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("appends again after {:?}", since.elapsed());
    assert_eq!(read_matching(&log, &Filter::All, 10).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_tells_who_has_seen_it_and_is_read_anew() {
    let (server, _directory, log) = fresh().await;
    let mut all = Vec::new();
    for n in 0..10 {
        let stream = format!("s-{}", n % 3);
        all.push(append_at_end(&log, &stream, vec![tagged(&n.to_string(), &["t:1"])]).await.position);
    }
    let mut early = log.subscribe(Filter::All, all[4]);
    let mut late = log.subscribe(Filter::All, 0);
    assert_eq!(follow_through(&mut late, all[9], 100).await.len(), 10);
    server.cut();
    let lost = 4;
    server.lose_end(lost);
    let outcome = tokio::time::timeout(Duration::from_secs(20), late.next_batch(10)).await.unwrap();
    assert!(matches!(outcome, Err(ReadError::Rewound { .. })), "{outcome:?}");
    patiently("it is read anew", || log.health().append_refused.is_none()).await;
    let left = positions(&read_matching(&log, &Filter::tag("t:1"), 3).await);
    assert!(left.len() < 10 && left == all[..left.len()], "{left:?} of {all:?}");
    assert_eq!(log.head().position, *left.last().unwrap());
    let appended = append_at_end(&log, "s-1", vec![sample("on")]).await;
    let seen = follow_through(&mut early, appended.position, 10).await;
    assert_eq!(positions(&seen), [&left[5..], &[appended.position]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_back_does_not_take_recorded_at_back() {
    let (server, directory, log) = fresh().await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    server.move_clock(-3600);
    for n in 0..5 {
        append_at_end(&log, &format!("s-{n}"), vec![sample("b")]).await;
    }
    server.move_clock(3700);
    append_at_end(&log, "s-1", vec![sample("c")]).await;
    let times = async |log: &EventStoreLog| -> Vec<_> {
        read_matching(log, &Filter::All, 3).await.iter().map(|event| event.recorded_at).collect()
    };
    let seen = times(&log).await;
    assert!(seen.is_sorted() && seen[0] == seen[5] && seen[6] > seen[5], "{seen:?}");
    // Through a stream, through an old index and through a new one it is the same.
    let read = log.read_stream("s-3", 0, Direction::Forward, 1).await.unwrap();
    assert_eq!(read[0].recorded_at, seen[4]);
    log.close().await;
    assert_eq!(times(&open(&server, &directory).await).await, seen);
    assert_eq!(times(&open(&server, &tempfile::tempdir().unwrap()).await).await, seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_see_each_other_s_events_beats_and_redactions() {
    let (server, _directory, one) = fresh().await;
    let other_directory = tempfile::tempdir().unwrap();
    let two = open(&server, &other_directory).await;
    let event = sample("a secret");
    let appended = append_at_end(&one, "s-1", vec![event.clone()]).await;
    one.beat("worker-1", serde_json::json!({"jobs": 1})).await;
    one.beat("worker-1", serde_json::json!({"jobs": 2})).await;
    patiently("the event is seen", || two.head().position == appended.position).await;
    let since = Instant::now();
    while two.beats().await.unwrap().first().is_none_or(|beat| beat.counter < 2) {
        assert!(since.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let beats = two.beats().await.unwrap();
    assert_eq!((beats.len(), &*beats[0].who, beats[0].counter), (1, "worker-1", 2));
    assert_eq!(beats[0].facts, serde_json::json!({"jobs": 2}));
    assert_eq!(one.beats().await.unwrap()[0].counter, 2);

    assert!(!two.event(event.id).await.unwrap().unwrap().is_redacted());
    let redacted = one.redact(event.id, redaction_of(event.id)).await.unwrap();
    patiently("the redaction is seen", || two.head().position == redacted.position).await;
    let there = two.event(event.id).await.unwrap().unwrap();
    assert!(there.is_redacted() && leaf::check(&there).is_ok());
    assert!(two.read_stream("s-1", 0, Direction::Forward, 1).await.unwrap()[0].is_redacted());
    let again = two.redact(event.id, redaction_of(event.id)).await.unwrap();
    assert!(again.repeated && again.position == redacted.position);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_somebody_else_are_left_out_and_never_taken_for_ours() {
    let (server, _directory, log) = fresh().await;
    server.write_foreign("shop-1", b"{}");
    let appended = append_at_end(&log, "s-1", vec![sample("a")]).await;
    server.write_foreign("shop-1", b"{}");
    assert_eq!(positions(&read_matching(&log, &Filter::All, 10).await), [appended.position]);
    // Into one of our streams: it is said, and not built upon.
    server.write_foreign("s-1", b"{}");
    let outcome = log.append("s-1", Some(appended.head).into(), vec![sample("b")]).await;
    assert!(outcome.is_err(), "{outcome:?}");
    let read = log.read_stream("s-1", 0, Direction::Forward, 10).await;
    assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    assert!(log.health().damage.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beside_the_log_cannot_be_appended_to() {
    let (_server, _directory, log) = fresh().await;
    for stream in ["$settings", "beampipe_presence-worker-1"] {
        let refused = log.append(stream, Expected::NoStream, vec![sample("a")]).await;
        assert!(matches!(refused, Err(AppendError::Unacceptable { .. })), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_counts_the_metadata() {
    let (_server, _directory, log) = fresh().await;
    // Below the limit of the leaves, above it with what the server keeps beside them.
    let many: Vec<NewEvent> =
        (0..1_800).map(|_| NewEvent { data: Bytes::from(vec![b'x'; 200]), ..sample("") }).collect();
    match log.append("s-1", Expected::NoStream, many).await {
        Err(AppendError::Unacceptable { reason, .. }) => {
            assert!(reason.contains("with their metadata"), "{reason}")
        }
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_shown_and_never_printed() {
    let server = EventStore::start_for("operator", "hunter2 with: odd/signs").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let without = EventStoreOptions { deadlines: SHORT, ..options(&server, &directory) };
    let refused = EventStoreLog::open(without.clone()).await;
    assert!(matches!(refused, Err(OpenError::Read { .. })), "{refused:?}");
    let password = Some("hunter2 with: odd/signs".to_owned());
    let url = server.url().replace("//", "//operator@");
    let named = EventStoreOptions { url, password: password.clone(), ..without.clone() };
    EventStoreLog::open(named).await.unwrap().close().await;
    let username = Some("operator".into());
    let log = EventStoreLog::open(EventStoreOptions { username, password, ..without }).await.unwrap();
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    assert!(!format!("{log:?}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_said_so() {
    let server = EventStore::start().await.unwrap();
    server.go_away(true);
    let directory = tempfile::tempdir().unwrap();
    let refused =
        EventStoreLog::open(EventStoreOptions { deadlines: SHORT, ..options(&server, &directory) }).await;
    assert!(matches!(refused, Err(OpenError::Read { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_another_log_keep_their_hashes_times_and_redactions() {
    let (server, _directory, log) = fresh().await;
    let source = MemoryLog::new(ticking_clock());
    for n in 0..60 {
        let event = tagged(&n.to_string(), &[&format!("t:{}", n % 3)]);
        append_at_end(&source, &format!("s-{}", n / 4 % 5), vec![event; 1]).await;
    }
    let secret = sample("a secret");
    append_at_end(&source, "s-1", vec![secret.clone()]).await;
    let record = source.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    append_at_end(&source, "s-2", vec![sample("after")]).await;

    let mut text = Vec::new();
    ndjson::export(&source, 0, &mut text, &mut |_| {}).await.unwrap();
    let parse = || -> Vec<_> {
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| ndjson::parse(line, &mut leaf::Interner::default()).unwrap()).collect()
    };
    // Broken off and begun again.
    log.restore(parse().drain(..40).collect()).await.unwrap();
    log.restore(parse()).await.unwrap();
    log.restore(parse()).await.unwrap();
    assert_eq!(server.written(), 63);
    let (ours, theirs) = (read_matching(&log, &Filter::All, 50).await, parse());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(
            (ours.hash, ours.recorded_at, ours.revision),
            (theirs.hash, theirs.recorded_at, theirs.revision)
        );
        assert_eq!((&ours.data, ours.salt), (&theirs.data, theirs.salt));
    }
    let again = log.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    assert!(again.repeated && again.head == record.head);
    append_at_end(&log, "s-1", vec![sample("on")]).await;
    let report = log.verify(&mut |_| {}).await.unwrap();
    assert_eq!((report.faults, report.events, report.redacted), (vec![], 64, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_one_index_and_a_reader_needs_none() {
    let (server, directory, log) = fresh().await;
    let appended = append_at_end(&log, "s-1", vec![sample("a")]).await;
    let refused = EventStoreLog::open(options(&server, &directory)).await;
    assert!(matches!(refused, Err(OpenError::Index { .. })), "{refused:?}");
    let reader = EventStoreOptions { index: None, read_only: true, ..options(&server, &directory) };
    let reader = EventStoreLog::open(reader).await.unwrap();
    assert_eq!(reader.head().position, appended.position);
    let refused = reader.append("s-2", Expected::NoStream, vec![sample("b")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_over_many_streams_is_read_in_order_both_ways() {
    let (_server, _directory, log) = fresh().await;
    let request = random_id();
    for n in 0..200_u32 {
        // Some far from each other, some close.
        let data = Bytes::from(vec![b'x'; if n % 10 == 0 { 40_000 } else { 10 }]);
        let mut event = NewEvent { data, ..tagged("", &[&format!("t:{}", n % 7)]) };
        if n % 11 == 0 {
            event.correlation_id = request;
        }
        append_at_end(&log, &format!("s-{}", n % 13), vec![event]).await;
    }
    let all = read_matching(&log, &Filter::All, 1000).await;
    for filter in
        [Filter::tag("t:3"), Filter::Correlation(request), Filter::stream("s-5"), Filter::category("s")]
    {
        let wanted: Vec<_> = all.iter().filter(|event| filter.matches(event)).map(|e| e.position).collect();
        let backward = log.read_all(u64::MAX, Direction::Backward, 1000, &filter).await.unwrap();
        let mut found = positions(&backward.events);
        found.reverse();
        assert_eq!(found, wanted, "{filter:?}");
    }
}

/// A log of some streams with big events, a redaction before the end among them.
async fn big(count: usize) -> MemoryLog {
    let source = MemoryLog::new(ticking_clock());
    let secret = sample("a secret");
    append_at_end(&source, "s-1", vec![secret.clone()]).await;
    for n in 0..count {
        let data = Bytes::from(format!("{n}").repeat(20_000));
        append_at_end(&source, &format!("s-{}", n % 7), vec![NewEvent { data, ..sample("") }]).await;
        if n == count / 2 {
            source.redact(secret.id, redaction_of(secret.id)).await.unwrap();
        }
    }
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_copied_there_and_back_and_a_copy_that_was_broken_off_goes_on() {
    let (server, _directory, log) = fresh().await;
    let source = big(150).await;
    let half = MemoryLog::new(ticking_clock());
    let mut text = Vec::new();
    ndjson::export(&source, 0, &mut text, &mut |_| {}).await.unwrap();
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    ndjson::import(&half, &mut &lines[..60].concat()[..], &mut |_| {}).await.unwrap();
    assert_eq!(copy::copy(&half, &log, &mut |_| {}).await.unwrap().events, 60);
    server.faults().next_append(Fault::CutAfter);
    assert_eq!(copy::copy(&source, &log, &mut |_| {}).await.unwrap().events, 92);
    let there = copy::compare(&source, &log, &mut |_| {}).await.unwrap();
    let back = MemoryLog::new(ticking_clock());
    copy::copy(&log, &back, &mut |_| {}).await.unwrap();
    assert_eq!(copy::compare(&source, &back, &mut |_| {}).await.unwrap(), there);
    assert_eq!((there.events, server.written()), (152, 152));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_many_chunks_goes_on_where_it_was_and_is_verified_by_a_script() {
    let (_server, _directory, log) = fresh().await;
    let source = big(300).await;
    let mut text = Vec::new();
    ndjson::export(&source, 0, &mut text, &mut |_| {}).await.unwrap();
    assert!(text.len() > 12 << 20, "more than two chunks: {}", text.len());
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let half = lines[..200].concat();
    assert_eq!(ndjson::import(&log, &mut &half[..], &mut |_| {}).await.unwrap().written, 200);
    let done = ndjson::import(&log, &mut &text[..], &mut |_| {}).await.unwrap();
    assert_eq!((done.skipped, done.written), (200, 102));
    copy::compare(&source, &log, &mut |_| {}).await.unwrap();
    let other = ndjson::import(&log, &mut &lines[1..].concat()[..], &mut |_| {}).await;
    assert!(other.is_ok_and(|done| done.written == 0), "a part of what is there is there");

    let mut export = tempfile::NamedTempFile::new().unwrap();
    let mut text = Vec::new();
    ndjson::export(&log, 0, &mut text, &mut |_| {}).await.unwrap();
    std::io::Write::write_all(&mut export, &text).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/log_vectors.py");
    let run = |mode| {
        let arguments = [script.as_ref(), mode, export.path().as_os_str()];
        std::process::Command::new("python3").args(arguments).output().unwrap()
    };
    let verified = run("sparse".as_ref());
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    assert!(!run("export".as_ref()).status.success(), "its positions are not dense");
}
