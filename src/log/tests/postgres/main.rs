//! What only a log that several processes share, on a server that may go away, has to show. On a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod connections;
#[path = "../postgres_server/mod.rs"]
mod postgres_server;
mod presence;
mod roles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use beampipe_log::contract::{
    append_at_end, follow_through, positions, read_matching, redaction_of, sample, tagged, ticking_clock,
};
use beampipe_log::ndjson::{export, import};
use beampipe_log::prepare::Prepared;
use beampipe_log::{AppendError, Direction, Expected, Filter, Log, ReadError, SqliteLog, SqliteOptions};
use futures::future::join_all;
use postgres_server::{Scratch, append_by_hand, end_connections, within};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transaction_held_open_never_lets_a_reader_skip_an_event() {
    let scratch = Scratch::new();
    let (log, other) = (Arc::new(scratch.open().await), scratch.open().await);
    append_at_end(&*log, "s-1", vec![sample("before")]).await;
    let mut follower = other.subscribe(Filter::All, 0);
    assert_eq!(follow_through(&mut follower, 1, 10).await.len(), 1);

    let by_hand = scratch.connect().await;
    by_hand.batch_execute("BEGIN").await.unwrap();
    append_by_hand(&by_hand, &Prepared::new("s-2", Expected::NoStream, vec![sample("open")]).unwrap()).await;
    let waiting: Vec<_> = (0..8)
        .map(|n| {
            let log = Arc::clone(&log);
            let stream = format!("s-after-{n}");
            tokio::spawn(async move { log.append(&stream, Expected::NoStream, vec![sample("after")]).await })
        })
        .collect();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Neither is the open one seen, nor one behind it.
        assert_eq!(positions(&read_matching(&other, &Filter::All, 10).await), [1]);
        assert_eq!((log.head().position, other.head().position), (1, 1));
    }
    assert!(waiting.iter().all(|append| !append.is_finished()));
    by_hand.batch_execute("COMMIT").await.unwrap();
    for append in waiting {
        assert!(append.await.unwrap().unwrap().position > 2);
    }
    let seen = follow_through(&mut follower, 10, 3).await;
    assert_eq!(positions(&seen), (2..=10).collect::<Vec<_>>());
    assert_eq!(&*seen[0].stream, "s-2");
    assert_eq!(positions(&read_matching(&*log, &Filter::All, 4).await), (1..=10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_notification_only_costs_a_second() {
    let scratch = Scratch::new();
    let (one, other) = (scratch.open().await, scratch.open().await);
    let administrator = scratch.connect().await;
    let function: String =
        administrator.query_one("SELECT pg_get_functiondef('append'::regproc)", &[]).await.unwrap().get(0);
    assert!(function.contains("pg_notify("));
    administrator.batch_execute(&function.replace("pg_notify(", "concat(")).await.unwrap();
    let mut follower = other.subscribe(Filter::stream("s-1"), 0);
    assert!(follower.next_batch(10).await.unwrap().caught_up);
    let start = std::time::Instant::now();
    let appended = append_at_end(&one, "s-1", vec![sample("unheard")]).await;
    assert_eq!(follow_through(&mut follower, appended.position, 10).await.len(), 1);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_number_of_processes_may_start_at_once() {
    let scratch = Scratch::new();
    let logs = join_all((0..8).map(|_| scratch.open())).await;
    let appends = logs.iter().enumerate().map(|(n, log)| {
        let stream = format!("s-{n}");
        async move { append_at_end(log, &stream, vec![sample("a")]).await.position }
    });
    let mut positions = join_all(appends).await;
    positions.sort_unstable();
    assert_eq!(positions, (1..=8).collect::<Vec<_>>());
}

/// Takes the end of the log away, as a standby does that takes over before it has heard of it.
async fn lose_end(scratch: &Scratch, after: u64) {
    let administrator = scratch.connect().await;
    administrator
        .batch_execute(&format!(
            "BEGIN; SET LOCAL session_replication_role = replica;
             DELETE FROM tags WHERE position > {after}; DELETE FROM events WHERE position > {after}; COMMIT"
        ))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_end_says_so_and_ends_who_had_seen_it() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    for n in 0..10 {
        append_at_end(&log, &format!("s-{n}"), vec![sample("a")]).await;
    }
    let (mut far, mut near) = (log.subscribe(Filter::All, 0), log.subscribe(Filter::All, 0));
    let mut one = log.subscribe(Filter::stream("s-2"), 0);
    follow_through(&mut far, 10, 20).await;
    assert_eq!(near.next_batch(5).await.unwrap().through, 5);
    one.next_batch(5).await.unwrap();

    lose_end(&scratch, 7).await;
    end_connections(&scratch.connect().await, &scratch).await;
    within(SOON, "the head goes back", async || log.head().position == 7).await;
    let said = far.next_batch(10).await.unwrap_err();
    assert!(matches!(said, ReadError::Rewound { kept: 7, seen: 10 }), "{said}");
    assert!(matches!(one.next_batch(10).await, Err(ReadError::Rewound { kept: 7, .. })));

    // Whoever had not seen it goes on, into what is the log now.
    let appended = append_at_end(&log, "s-9", vec![sample("another history")]).await;
    assert_eq!(appended.position, 8);
    let seen = follow_through(&mut near, 8, 20).await;
    assert_eq!(positions(&seen), [6, 7, 8]);
    assert_eq!(seen[2].hash, appended.head.hash);
    assert!(far.next_batch(10).await.is_err(), "an end is an end");
    assert_eq!(log.verify(&mut |_| {}).await.unwrap().faults, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_history_is_noticed_though_it_is_as_long() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    for n in 0..5 {
        append_at_end(&log, &format!("s-{n}"), vec![sample("a")]).await;
    }
    let mut follower = log.subscribe(Filter::All, 0);
    follow_through(&mut follower, 5, 20).await;
    let administrator = scratch.connect().await;
    let mut other = Prepared::new("s-new", Expected::NoStream, vec![sample("other")]).unwrap();
    administrator.batch_execute("BEGIN; SET LOCAL session_replication_role = replica").await.unwrap();
    administrator
        .batch_execute("DELETE FROM tags WHERE position > 3; DELETE FROM events WHERE position > 3")
        .await
        .unwrap();
    for _ in 0..3 {
        append_by_hand(&administrator, &other).await;
        let head = other.head();
        other = Prepared::new("s-new", Some(head).into(), vec![sample("more")]).unwrap();
    }
    administrator.batch_execute("COMMIT").await.unwrap();
    end_connections(&administrator, &scratch).await;
    within(SOON, "the head is the real one", async || log.head().position == 6).await;
    assert!(matches!(follower.next_batch(10).await, Err(ReadError::Rewound { kept: 3, seen: 5 })));
    assert_eq!(read_matching(&log, &Filter::All, 4).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_where_it_is_and_stops_appends() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    for n in 0..20 {
        append_at_end(&log, &format!("s-{}", n % 3), vec![tagged("a", &["t:1"])]).await;
    }
    let administrator = scratch.connect().await;
    let whole = "SELECT 1";
    let of = |set: &str, position: u64| format!("UPDATE events SET {set} WHERE position = {position}");
    for (damage, found) in [
        (whole.to_owned(), 0),
        (of("data = '{}'", 3), 1),
        (of("recorded_at = recorded_at - 1000000", 5), 2),
        (of("leaf = leaf || '\\x00'", 7), 1),
        (of("stream = 's-9'", 9), 1),
        (of("category = category + 1000", 11), 1),
        (of("correlation = id", 12), 1),
        ("DELETE FROM tags WHERE position = 14".to_owned(), 1),
        ("DELETE FROM events WHERE position = 17".to_owned(), 2),
        (of("data = NULL, salt = NULL", 19), 1),
    ] {
        let copy = Scratch::new();
        let copied = copy.open().await;
        let mut lines = Vec::new();
        export(&log, 0, &mut lines, &mut |_| {}).await.unwrap();
        import(&copied, &mut &lines[..], &mut |_| {}).await.unwrap();
        let sql = format!(
            "SET search_path = {}; BEGIN; SET LOCAL session_replication_role = replica; {damage}; COMMIT",
            copy.schema
        );
        administrator.batch_execute(&sql).await.unwrap();
        let opened = copy.open().await;
        let report = opened.verify(&mut |_| {}).await.unwrap();
        assert!(
            if found == 0 { report.faults.is_empty() } else { !report.faults.is_empty() },
            "{damage}: {:?}",
            report.faults
        );
        assert_eq!(opened.health().append_refused.is_some(), found > 0, "{damage}");
        copied.close().await;
        opened.close().await;
    }
    administrator
        .batch_execute(&format!(
            "SET search_path = {}; BEGIN; SET LOCAL session_replication_role = replica; {}; COMMIT",
            scratch.schema,
            of("data = '{}'", 3)
        ))
        .await
        .unwrap();
    let opened = scratch.open().await;
    let place = match opened.read_stream("s-2", 0, Direction::Forward, 10).await {
        Err(ReadError::Damaged { place, .. }) => place,
        other => panic!("{other:?}"),
    };
    assert!(place.ends_with("events, position 3"), "{place}");
    let refused = opened.append("s-new", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_moves_from_sqlite_and_back_with_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        SqliteLog::open(directory.path().join(name), SqliteOptions::new(ticking_clock())).unwrap()
    };
    let (first, scratch) = (open("first"), Scratch::new());
    let mut secrets = Vec::new();
    for n in 0..400 {
        let event = tagged(&n.to_string(), &["project:a", &format!("n:{}", n % 7)]);
        if n % 60 == 0 {
            secrets.push(event.id);
        }
        append_at_end(&first, &format!("s-{}", n % 20), vec![event]).await;
        if n == 200 {
            first.redact(secrets[1], redaction_of(secrets[1])).await.unwrap();
        }
    }
    first.redact(secrets[5], redaction_of(secrets[5])).await.unwrap();
    let exported = async |log: &dyn Log| {
        let mut out = Vec::new();
        export(log, 0, &mut out, &mut |_| {}).await.unwrap();
        out
    };
    let original = exported(&first).await;
    let second = scratch.open().await;
    // In two halves: what is there already is compared.
    let cut = original.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(249).unwrap().0 + 1;
    import(&second, &mut &original[..cut], &mut |_| {}).await.unwrap();
    let done = import(&second, &mut &original[..], &mut |_| {}).await.unwrap();
    assert_eq!((done.skipped, done.written), (250, 152));
    assert_eq!(exported(&second).await, original);
    assert_eq!(second.head(), first.head());
    let report = second.verify(&mut |_| {}).await.unwrap();
    assert_eq!((report.redacted, &report.faults[..]), (2, &[][..]));
    assert!(second.redact(secrets[1], redaction_of(secrets[1])).await.unwrap().repeated);
    let third = open("third");
    import(&third, &mut &exported(&second).await[..], &mut |_| {}).await.unwrap();
    assert_eq!(exported(&third).await, original);
    assert_eq!(third.verify(&mut |_| {}).unwrap().faults, []);

    let other = Scratch::new().open().await;
    append_at_end(&other, "s-0", vec![sample("another history")]).await;
    assert!(import(&other, &mut &original[..], &mut |_| {}).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_stay_good_while_a_log_grows_before_anybody_analyses_it() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    let administrator = scratch.connect().await;
    administrator.batch_execute("ALTER TABLE events SET (autovacuum_enabled = off)").await.unwrap();
    // Plans are made while there is next to nothing.
    append_at_end(&log, "s-0", vec![tagged("a", &["t:0"])]).await;
    let mut times = BTreeMap::new();
    for round in 0..6 {
        let start = std::time::Instant::now();
        join_all((0..400).map(|n| {
            let (log, tag) = (&log, format!("t:{n}"));
            async move { append_at_end(log, &format!("s-{round}-{n}"), vec![tagged("a", &[&tag]); 3]).await }
        }))
        .await;
        times.insert(round, start.elapsed());
    }
    println!("{times:?}");
    assert!(times[&5] < times[&1] * 5 + Duration::from_millis(200), "{times:?}");
    let start = std::time::Instant::now();
    for n in 0..50 {
        let page =
            log.read_all(u64::MAX, Direction::Backward, 5, &Filter::tag(format!("t:{n}"))).await.unwrap();
        assert_eq!(page.events.len(), 5);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
