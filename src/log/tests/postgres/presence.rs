//! What processes on one server **see of each other**: what the others append, and their beats.

use std::sync::Arc;
use std::time::Duration;

use beampipe_log::contract::{append_at_end, follow_through, read_matching, redaction_of, sample, tagged};
use beampipe_log::{AppendError, Expected, Filter, Log, ReadError};

use super::SOON;
use super::postgres_server::{Scratch, within};

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
