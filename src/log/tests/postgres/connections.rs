//! Connections that **break**: while they are used, while they are not, and all at once.

use std::sync::Arc;
use std::time::Duration;

use beampipe_log::contract::{append_at_end, follow_through, positions, sample};
use beampipe_log::{
    AppendError, Direction, Expected, Filter, Log, NewEvent, PostgresLog, PostgresOptions, ReadError,
    StreamHead,
};
use futures::future::join_all;

use super::SOON;
use super::postgres_server::{Network, Scratch, end_connections, within};

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
