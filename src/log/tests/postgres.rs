//! What only a log that several processes share, on a server that may go away, has to show. On a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod postgres_server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use beampipe_log::contract::{
    append_at_end, follow_through, positions, read_matching, redaction_of, sample, tagged, ticking_clock,
};
use beampipe_log::ndjson::{export, import};
use beampipe_log::postgres::OpenError;
use beampipe_log::prepare::Prepared;
use beampipe_log::{
    AppendError, Direction, Expected, Filter, Log, NewEvent, PostgresLog, PostgresOptions, ReadError,
    SqliteLog, SqliteOptions, StreamHead,
};
use futures::future::join_all;
use postgres_server::{Network, Scratch, append_by_hand, end_connections, within};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn beats_that_cannot_be_had_are_an_error_and_stand_in_nobodys_way() {
    let scratch = Scratch::new();
    let log = Arc::new(scratch.open().await);
    append_at_end(&*log, "s-1", vec![sample("a")]).await;
    log.beat("worker-1", serde_json::json!({})).await;
    assert_eq!(log.beats().await.unwrap().len(), 1);
    let by_hand = scratch.connect().await;
    by_hand.batch_execute("BEGIN; LOCK TABLE beats IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // More of them than there are readers.
    let waiting: Vec<_> = (0..8)
        .map(|n| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.beat(&format!("worker-{n}"), serde_json::json!({})).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let read = tokio::time::timeout(Duration::from_secs(1), read_matching(&*log, &Filter::All, 10)).await;
    assert_eq!(read.expect("reading does not wait for beats").len(), 1);
    let append = tokio::time::timeout(Duration::from_secs(1), append_at_end(&*log, "s-1", vec![sample("b")]));
    append.await.expect("nor does appending");
    assert!(matches!(log.beats().await, Err(ReadError::Unavailable(_))));
    for beat in waiting {
        beat.await.unwrap();
    }
    by_hand.batch_execute("ROLLBACK").await.unwrap();
    within(SOON, "beats are read again", async || log.beats().await.is_ok_and(|beats| !beats.is_empty()))
        .await;
}

#[tokio::test]
async fn a_role_that_may_read_and_not_append_is_said_for_as_long_as_it_is_so() {
    let scratch = Scratch::new();
    scratch.open().await.close().await;
    let administrator = scratch.connect().await;
    let schema = scratch.url().rsplit_once("schema=").unwrap().1.to_owned();
    let role = format!("reader_{schema}");
    administrator
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
             REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC"
        ))
        .await
        .unwrap();
    let url = scratch.url().replace("//beampipe@", &format!("//{role}@"));
    let log = PostgresLog::open(&url, PostgresOptions::default()).await.unwrap();
    let refused = || log.health().append_refused.is_some_and(|why| why.contains("EXECUTE"));
    within(SOON, "it is said", async || refused()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(refused());
    administrator
        .batch_execute(&format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}"))
        .await
        .unwrap();
    // What was said last is good for a while.
    within(Duration::from_secs(20), "it is taken back", async || !refused()).await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    log.close().await;
    administrator.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_subscription_across_200_forced_disconnects_delivers_every_event_once_and_in_order() {
    const DISCONNECTS: usize = 200;
    let scratch = Scratch::new();
    let (reading, writing) = (scratch.open().await, Arc::new(scratch.open().await));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (log, stop) = (Arc::clone(&writing), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut head = None;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let events = vec![sample("a"), sample("b")];
                head = Some(persist(&log, "s-1", head, events).await);
            }
        })
    };
    let end = std::sync::Mutex::new(None);
    let follow = async {
        let mut follower = reading.subscribe(Filter::All, 0);
        let mut seen = Vec::new();
        loop {
            match tokio::time::timeout(Duration::from_secs(30), follower.next_batch(17)).await.unwrap() {
                Ok(batch) => seen.extend(positions(&batch.events)),
                Err(ReadError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
            if let Some(end) = *end.lock().unwrap()
                && seen.last() >= Some(&end)
            {
                return seen;
            }
        }
    };
    let disconnect = async {
        let administrator = scratch.connect().await;
        for _ in 0..DISCONNECTS {
            let known = writing.head().position;
            end_connections(&administrator, &scratch).await;
            // Some of them at rest, some of them in the middle of the next append.
            within(SOON, "appends go on", async || writing.head().position > known).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.await.unwrap();
        // Whoever waits is woken once more.
        persist(&writing, "s-2", None, vec![sample("last")]).await;
        *end.lock().unwrap() = Some(writing.head().position);
        persist(&writing, "s-3", None, vec![sample("one too many")]).await;
    };
    let (seen, ()) = tokio::join!(follow, disconnect);
    assert!(seen.iter().copied().eq(1..=seen.len() as u64), "each once and in order");
    println!("{} events across {DISCONNECTS} disconnects", seen.len());
    assert!(seen.len() > DISCONNECTS);
}

/// Appends the same bytes until the log says yes, as the service does.
async fn persist(
    log: &PostgresLog,
    stream: &str,
    head: Option<StreamHead>,
    events: Vec<NewEvent>,
) -> StreamHead {
    loop {
        match log.append(stream, head.into(), events.clone()).await {
            Ok(appended) => return appended.head,
            Err(AppendError::Unavailable(_) | AppendError::Unknown(_) | AppendError::Busy) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_break_under_load_lose_nothing_and_double_nothing() {
    const WRITERS: usize = 24;
    let scratch = Scratch::new();
    let logs = [Arc::new(scratch.open().await), Arc::new(scratch.open().await)];
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (log, stop) = (Arc::clone(&logs[writer % 2]), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut head, mut acknowledged, mut refused, mut unknown) = (None, Vec::new(), 0, 0);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let event = sample("x");
                    let stream = format!("s-{writer}");
                    match log.append(&stream, Expected::from(head), vec![event.clone()]).await {
                        Ok(appended) => {
                            acknowledged.push(event.id);
                            head = Some(appended.head);
                        }
                        Err(AppendError::Unavailable(_)) => {
                            // It says that nothing was written, so another event may take the place.
                            refused += 1;
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                        Err(AppendError::Unknown(_)) => {
                            unknown += 1;
                            head = Some(persist(&log, &stream, head, vec![event.clone()]).await);
                            acknowledged.push(event.id);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                (acknowledged, refused, unknown)
            })
        })
        .collect();
    let administrator = scratch.connect().await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        end_connections(&administrator, &scratch).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (mut total, mut said) = (0, [0, 0]);
    for (writer, outcome) in join_all(writers).await.into_iter().enumerate() {
        let (acknowledged, refused, unknown) = outcome.unwrap();
        let mut read = Vec::new();
        within(SOON, "the log can be read", async || {
            match logs[0].read_stream(&format!("s-{writer}"), 0, Direction::Forward, 100_000).await {
                Ok(events) => {
                    read = events;
                    true
                }
                Err(_) => false,
            }
        })
        .await;
        let ids: Vec<_> = read.iter().map(|event| event.id).collect();
        assert_eq!(ids, acknowledged, "what was acknowledged, and nothing else");
        total += ids.len();
        said = [said[0] + refused, said[1] + unknown];
    }
    println!("{total} events, {} refusals, {} unknown to the caller", said[0], said[1]);
    // Connections that were ended while nobody used them are noticed now, one after the other.
    let report = loop {
        match logs[1].verify(&mut |_| {}).await {
            Ok(report) => break report,
            Err(ReadError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!((report.events, &report.faults[..]), (total as u64, &[][..]));
    assert!(total > 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_writes_every_other_sees() {
    let scratch = Scratch::new();
    let (one, other) = (scratch.open().await, scratch.open().await);
    let mut follower = other.subscribe(Filter::tag("t:1"), 0);
    assert!(follower.next_batch(10).await.unwrap().caught_up);
    let secret = tagged("a secret", &["t:1"]);
    let appended = append_at_end(&one, "s-1", vec![secret.clone()]).await;
    let seen = follow_through(&mut follower, appended.position, 10).await;
    assert_eq!(seen[0].data, Some(secret.data.clone()));
    assert_eq!(other.head(), one.head());
    // The one who lost the race learns who won.
    let lost = other.append("s-1", Expected::NoStream, vec![sample("late")]).await;
    assert!(matches!(lost, Err(AppendError::Conflict { actual, .. }) if actual == Some(appended.head)));
    let again = other.append("s-1", Expected::NoStream, vec![secret.clone()]).await.unwrap();
    assert!(again.repeated && again.position == appended.position);

    // A redaction reaches what the other one has in memory.
    let redacted = one.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    within(SOON, "the redaction is seen", async || other.head().position >= redacted.position).await;
    let read = read_matching(&other, &Filter::All, 10).await;
    assert!(read[0].is_redacted());
    assert!(other.redact(secret.id, redaction_of(secret.id)).await.unwrap().repeated);

    one.beat("worker-1", serde_json::json!({"jobs": 1})).await;
    one.beat("worker-1", serde_json::json!({"jobs": 2})).await;
    let beats = other.beats().await.unwrap();
    assert_eq!((beats.len(), beats[0].counter, &beats[0].facts["jobs"]), (1, 2, &2.into()));
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

#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_or_deletes_what_is_in_the_log() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    let secret = sample("a secret");
    append_at_end(&log, "s-1", vec![sample("a"), secret.clone(), sample("c")]).await;
    log.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    // Even for a superuser who does not say that triggers are not to fire.
    let administrator = scratch.connect().await;
    for refused in [
        "DELETE FROM events WHERE position = 3",
        "TRUNCATE events CASCADE",
        "UPDATE events SET data = 'x' WHERE position = 1",
        "UPDATE events SET salt = NULL, data = NULL WHERE position = 1",
        "UPDATE events SET position = 9 WHERE position = 4",
        "UPDATE events SET recorded_at = 0",
        "UPDATE events SET stream = 's-2' WHERE position = 2",
        "UPDATE tags SET position = 3",
        "DELETE FROM tags",
        "TRUNCATE tags",
        "UPDATE words SET word = 'x' WHERE id = 1",
        "DELETE FROM words",
        "DELETE FROM redactions",
        "UPDATE redactions SET record = 1",
        "TRUNCATE redactions",
        "INSERT INTO redactions SELECT 1, id, 4 FROM events WHERE position = 1",
        "INSERT INTO redactions SELECT 1, id, 3 FROM events WHERE position = 1",
        "INSERT INTO events SELECT 9, recorded_at, 9, category, id, correlation, stream, hash, seal, leaf, salt, data
         FROM events WHERE position = 1",
        "INSERT INTO events SELECT 0, recorded_at, 9, category, id, correlation, stream, hash, seal, leaf, salt, data
         FROM events WHERE position = 1",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT take_turn(); COMMIT",
    ] {
        let error = administrator.batch_execute(refused).await.expect_err(refused);
        let said = error.as_db_error().expect(refused);
        assert!(["23001", "25001"].contains(&said.code().code()), "{refused}: {said}");
        let _no_transaction = administrator.batch_execute("ROLLBACK").await;
    }
    let report = log.verify(&mut |_| {}).await.unwrap();
    assert_eq!((report.events, report.redacted, &report.faults[..]), (4, 1, &[][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_write_the_tables_runs_the_log() {
    let scratch = Scratch::new();
    drop(scratch.open().await);
    let (administrator, schema) = (scratch.connect().await, &scratch.schema);
    let role = format!("service_{schema}");
    administrator
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN;
             GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};"
        ))
        .await
        .unwrap();
    let url = scratch.url().replace("//beampipe@", &format!("//{role}@"));
    let log = PostgresLog::open(&url, PostgresOptions::default()).await.unwrap();
    let secret = sample("a secret");
    append_at_end(&log, "s-1", vec![secret.clone(), sample("b")]).await;
    log.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    log.beat("me", serde_json::json!({})).await;
    assert_eq!((log.head().position, log.beats().await.unwrap().len()), (3, 1));
    let (client, connection) = tokio_postgres::connect(
        &scratch.server.replace("//beampipe@", &format!("//{role}@")),
        tokio_postgres::NoTls,
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    for table in ["events", "tags", "words", "redactions", "beats", "migrations"] {
        for denied in [format!("DELETE FROM {schema}.{table}"), format!("TRUNCATE {schema}.{table}")] {
            let said = client.batch_execute(&denied).await.expect_err(&denied).code().cloned();
            assert_eq!(said, Some(tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE), "{denied}");
        }
    }
    log.close().await;
    administrator.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "tests say where their servers are")]
async fn a_pooler_that_lends_connections_by_transaction_is_refused_and_one_by_session_is_not() {
    let pooler = std::env::var("BEAMPIPE_TEST_POOLER_URL").expect(
        "BEAMPIPE_TEST_POOLER_URL says where pgbouncer is: tests/realparts/up.sh DIR postgres && . DIR/env",
    );
    let scratch = Scratch::new();
    let url = |mode: &str| format!("{pooler}/{mode}?schema={}", scratch.schema);
    for _ in 0..5 {
        match PostgresLog::open(&url("transaction"), PostgresOptions::default()).await {
            Err(error @ OpenError::Pooled { .. }) => assert!(error.to_string().contains("pooler"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    let log = PostgresLog::open(&url("session"), PostgresOptions::default()).await.unwrap();
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    log.close().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cut_network_is_said_within_5_seconds_and_mends_by_itself() {
    let scratch = Scratch::new();
    let network = Network::to(&scratch.server).await;
    let url = format!("postgres://beampipe@{}/postgres?schema={}", network.address, scratch.schema);
    let log = Arc::new(PostgresLog::open(&url, PostgresOptions::default()).await.unwrap());
    append_at_end(&*log, "s-1", vec![sample("a")]).await;
    let mut follower = log.subscribe(Filter::All, 0);
    follow_through(&mut follower, 1, 10).await;
    assert!(log.health().append_refused.is_none());

    network.cut();
    let caught = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.append("s-caught", Expected::NoStream, vec![sample("caught")]).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let queued = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.append("s-queued", Expected::NoStream, vec![sample("queued")]).await })
    };
    let said =
        within(Duration::from_secs(5), "health says so", async || log.health().append_refused.is_some())
            .await;
    println!("said after {said:?}: {}", log.health().append_refused.unwrap());
    let start = std::time::Instant::now();
    // What was not sent is refused, and says that it was not written; so are reads.
    assert!(matches!(queued.await.unwrap(), Err(AppendError::Unavailable(_))));
    let refused = log.append("s-2", Expected::NoStream, vec![sample("b")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    assert!(matches!(log.read_stream("s-1", 0, Direction::Forward, 1).await, Err(ReadError::Unavailable(_))));
    let all = log.read_all(0, Direction::Forward, 1, &Filter::All).await;
    assert!(matches!(all, Err(ReadError::Unavailable(_))));
    assert!(start.elapsed() < Duration::from_secs(1));
    // What was on its way cannot be known.
    let caught = caught.await.unwrap();
    assert!(matches!(caught, Err(AppendError::Unknown(_))), "{caught:?}");

    network.mend();
    let back =
        within(Duration::from_secs(8), "it mends", async || log.health().append_refused.is_none()).await;
    println!("back after {back:?}");
    let head = persist(&log, "s-2", None, vec![sample("b")]).await;
    assert_eq!(head.revision, 0);
    let end = log.head().position;
    let seen = follow_through(&mut follower, end, 10).await;
    assert_eq!(positions(&seen), (2..=end).collect::<Vec<_>>());
    log.close().await;
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
async fn a_log_is_read_while_others_write_and_not_written() {
    let scratch = Scratch::new();
    let missing = PostgresLog::open_read_only(&scratch.url(), PostgresOptions::default()).await;
    assert!(matches!(missing, Err(OpenError::NotALog { .. })), "{missing:?}");
    let log = scratch.open().await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    let reading = PostgresLog::open_read_only(&scratch.url(), PostgresOptions::default()).await.unwrap();
    let mut follower = reading.subscribe(Filter::All, 0);
    let appended = append_at_end(&log, "s-1", vec![sample("b")]).await;
    assert_eq!(follow_through(&mut follower, appended.position, 10).await.len(), 2);
    let refused = reading.append("s-2", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(why)) if why.contains("reading only")));
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
