use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use beampipe_domain::job::{Enqueued, Event as J};
use beampipe_domain::source::{DiscoveryNoDatasets, Event as S, Registered};
use rusqlite::Connection;

use super::*;
use crate::testing::{History, Story, Tables, id, rows};
use crate::{names, verify};

mod snapshots;

const SOON: Duration = Duration::from_secs(10);

fn register(n: u128) -> (String, S) {
    let registered = Registered {
        project_module: "p".into(),
        source_identifier: format!("S{n}"),
        enabled: true,
        stale_after_hours: None,
    };
    (format!("source-{}", id(n)), S::Registered(registered))
}

async fn registered(story: &Story, numbers: std::ops::RangeInclusive<u128>) {
    for n in numbers {
        let (stream, event) = register(n);
        story.append(&stream, event).await;
    }
}

async fn open(dir: &Path, story: &Story) -> Models {
    Models::open(dir, story.log(), story.decode(), story.now()).await.unwrap()
}

async fn caught_up(dir: &Path, story: &Story) -> Models {
    let models = open(dir, story).await;
    assert!(models.wait_for(story.log.head().position, SOON).await, "{:?}", models.status());
    models
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "it takes too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn status(models: &Models, name: &str) -> ProjectionStatus {
    models.status().into_iter().find(|status| status.name == name).unwrap()
}

/// Every row of every read model.
fn everything(dir: &Path) -> BTreeMap<&'static str, Tables> {
    names().map(|name| (name, rows(&dir.join(format!("{name}.sqlite"))))).collect()
}

#[tokio::test]
async fn what_is_appended_is_seen_and_counted() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let models = open(dir.path(), &story).await;
    until("it is live", || models.caught_up()).await;
    registered(&story, 1..=3).await;
    assert!(models.wait_for(3, SOON).await);
    assert_eq!(models.sources().get(id(2)).unwrap().unwrap().source_identifier, "S2");
    assert_eq!(models.gauges().sources.registered, 3, "numbers are shown before the position is");
    let status = status(&models, "sources");
    assert_eq!((status.position, status.lag_events, status.state), (3, 0, State::Live));
    assert!(!models.wait_for(4, Duration::from_millis(20)).await, "there is no such position yet");
    models.close().await;
}

#[tokio::test]
async fn an_append_is_visible_within_moments() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let models = caught_up(dir.path(), &story).await;
    let mut took = vec![];
    for n in 1..=200 {
        let (stream, event) = register(n);
        let position = story.append(&stream, event).await.position;
        let start = Instant::now();
        assert!(models.wait_for(position, SOON).await);
        took.push(start.elapsed());
    }
    took.sort_unstable();
    assert!(took[100] < Duration::from_millis(20), "half of them take {:?}", took[100]);
}

#[tokio::test]
async fn a_directory_that_was_deleted_comes_back_with_identical_rows() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=50).await;
    caught_up(dir.path(), &story).await.close().await;
    let before = everything(dir.path());
    std::fs::remove_dir_all(dir.path()).unwrap();
    caught_up(dir.path(), &story).await.close().await;
    assert_eq!(before, everything(dir.path()));
}

#[tokio::test]
async fn a_process_that_was_killed_goes_on_where_its_rows_are() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let models = caught_up(dir.path(), &story).await;
    let killed = tempfile::tempdir().unwrap();
    registered(&story, 1..=20).await;
    assert!(models.wait_for(7, SOON).await);
    // A crash leaves the files as they are now, whatever is in memory.
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), killed.path().join(entry.file_name())).unwrap();
    }
    registered(&story, 21..=40).await;
    let again = caught_up(killed.path(), &story).await;
    assert_eq!(again.gauges().sources.registered, 40);
    assert!(again.status().iter().all(|status| status.alarm.is_none()), "{:?}", again.status());
    again.close().await;
    assert!(models.wait_for(40, SOON).await);
    models.close().await;
    assert_eq!(everything(dir.path()), everything(killed.path()));
}

#[tokio::test]
async fn two_processes_cannot_use_one_directory() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let models = open(dir.path(), &story).await;
    let second = Models::open(dir.path(), story.log(), story.decode(), story.now()).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    models.close().await;
    open(dir.path(), &story).await.close().await;
}

#[tokio::test]
async fn an_unknown_event_stops_every_read_model_before_it() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let models = open(dir.path(), &story).await;
    registered(&story, 1..=2).await;
    story.append_as("source-x", "unknown.happened", register(9).1).await;
    registered(&story, 3..=3).await;
    until("it stops", || models.status().iter().all(|s| matches!(s.state, State::Stopped { .. }))).await;
    let stopped = status(&models, "sources");
    assert_eq!((stopped.position, stopped.lag_events), (2, 2), "it is behind and says so");
    let State::Stopped { why } = stopped.state else { panic!() };
    assert!(why.contains("position 3") && why.contains("unknown.happened"), "{why}");
    assert_eq!(
        models.sources().get(id(2)).unwrap().unwrap().source_identifier,
        "S2",
        "what it has is served"
    );
    assert_eq!(models.sources().get(id(3)).unwrap(), None, "nothing is skipped");
    models.close().await;
}

#[tokio::test]
async fn a_checkpoint_of_another_log_is_an_alarm_and_a_new_fold() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=5).await;
    caught_up(dir.path(), &story).await.close().await;
    // A log that lost its end and went on with other events.
    let restored = Story::new();
    registered(&restored, 1..=3).await;
    registered(&restored, 11..=14).await;
    let models = caught_up(dir.path(), &restored).await;
    let alarm = status(&models, "sources").alarm.unwrap();
    assert!(alarm.contains("position 5 is not in the log"), "{alarm}");
    assert_eq!(models.sources().get(id(4)).unwrap(), None);
    assert_eq!(models.gauges().sources.registered, 7);
    models.close().await;
    let clean = tempfile::tempdir().unwrap();
    caught_up(clean.path(), &restored).await.close().await;
    assert_eq!(everything(dir.path()), everything(clean.path()));
}

#[tokio::test]
async fn a_damaged_file_is_an_alarm_and_a_new_fold() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=5).await;
    caught_up(dir.path(), &story).await.close().await;
    std::fs::write(dir.path().join("sources.sqlite"), b"this is no database, and long enough to say so")
        .unwrap();
    let models = caught_up(dir.path(), &story).await;
    assert!(status(&models, "sources").alarm.unwrap().contains("cannot be used"));
    assert_eq!(status(&models, "jobs").alarm, None);
    assert_eq!(models.gauges().sources.registered, 5);
    models.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_beside_does_not_stop_reads_or_appends() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=2000).await;
    let models = Arc::new(caught_up(dir.path(), &story).await);
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let (models, done) = (models.clone(), done.clone());
        std::thread::spawn(move || {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(models.sources().get(id(1000)).unwrap().is_some(), "a read fell into a hole");
                reads += 1;
            }
            reads
        })
    };
    for round in 0u128..3 {
        models.rebuild("sources").unwrap();
        registered(&story, 3000 + round * 100..=3099 + round * 100).await;
        until("it is rebuilt", || status(&models, "sources").rebuild.is_none()).await;
    }
    done.store(true, Ordering::Relaxed);
    assert!(reading.join().unwrap() > 0);
    assert!(models.wait_for(2300, SOON).await);
    assert_eq!(models.gauges().sources.registered, 2300);
    assert!(!dir.path().join("sources.rebuild.sqlite").exists());
    assert!(matches!(models.rebuild("nothing"), Err(RebuildError::Unknown(_))));
    let report = verify(dir.path(), story.log(), story.decode(), &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    Arc::into_inner(models).unwrap().close().await;
}

#[tokio::test]
async fn rows_of_another_version_are_served_until_they_are_rebuilt() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=50).await;
    caught_up(dir.path(), &story).await.close().await;
    let old = Connection::open(dir.path().join("sources.sqlite")).unwrap();
    old.execute_batch(
        "UPDATE checkpoint SET version = 0; UPDATE sources SET source_identifier = 'of the old version'; \
         ALTER TABLE sources DROP COLUMN last_duration_ms;",
    )
    .unwrap();
    drop(old);
    let models = open(dir.path(), &story).await;
    until("it is rebuilt", || {
        let status = status(&models, "sources");
        let known = models.sources().get(id(7)).unwrap().expect("it is served all the time");
        assert!(["of the old version", "S7"].contains(&&*known.source_identifier));
        status.rebuild.is_none() && !status.outdated
    })
    .await;
    assert_eq!(models.sources().get(id(7)).unwrap().unwrap().source_identifier, "S7");
    assert!(status(&models, "sources").alarm.is_none());
    models.close().await;
    let report = verify(dir.path(), story.log(), story.decode(), &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test]
async fn rows_of_a_shape_that_cannot_be_read_are_set_aside() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=5).await;
    caught_up(dir.path(), &story).await.close().await;
    let old = Connection::open(dir.path().join("sources.sqlite")).unwrap();
    old.execute_batch(
        "UPDATE checkpoint SET version = 0; DROP TABLE sources; CREATE TABLE sources (id TEXT)",
    )
    .unwrap();
    drop(old);
    let models = caught_up(dir.path(), &story).await;
    assert!(status(&models, "sources").alarm.is_some());
    assert_eq!(models.gauges().sources.registered, 5);
    models.close().await;
}

#[tokio::test]
async fn verify_finds_the_row_that_was_altered_by_hand() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=9).await;
    let job = Enqueued { project_module: Some("p".into()), ..Enqueued::default() };
    story.append(&format!("job-{}", id(50)), J::Enqueued(job)).await;
    caught_up(dir.path(), &story).await.close().await;
    let mut seen = 0;
    let mut check = |progress: crate::Progress| seen = progress.position;
    let report = verify(dir.path(), story.log(), story.decode(), &mut check).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((seen, report.models.len()), (10, 8));
    let altered = Connection::open(dir.path().join("sources.sqlite")).unwrap();
    altered.execute("UPDATE sources SET enabled = 0 WHERE created_position = 4", []).unwrap();
    altered.execute("DELETE FROM sources WHERE created_position = 6", []).unwrap();
    let other = Connection::open(dir.path().join("jobs.sqlite")).unwrap();
    other.execute("INSERT INTO pools VALUES ('w', 'x')", []).unwrap();
    let report = verify(dir.path(), story.log(), story.decode(), &mut |_| {}).await.unwrap();
    let model = |name| report.models.iter().find(|model| model.name == name).unwrap();
    let found: Vec<_> = model("sources")
        .differences
        .iter()
        .map(|d| (d.key.as_str(), d.column.as_deref(), d.was.as_deref(), d.should_be.as_deref()))
        .collect();
    let at_4 = "created_position=4";
    let expected = [
        (at_4, Some("enabled"), Some("0"), Some("1")),
        (at_4, Some("phase"), Some("disabled"), Some("registered")),
        ("created_position=6", None, None, Some("a row")),
    ];
    assert_eq!(found, expected);
    assert_eq!(model("jobs").differences[0].key, "worker=w");
    assert_eq!(model("jobs").differences[0].was.as_deref(), Some("a row"));
    assert!(model("executions").differences.is_empty());
}

#[tokio::test]
async fn an_offline_rebuild_gives_the_same_rows_and_refuses_a_directory_in_use() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=9).await;
    let models = caught_up(dir.path(), &story).await;
    let rebuild = async |names: &[&str]| {
        crate::rebuild(dir.path(), names, story.log(), story.decode(), &mut |_| {}).await
    };
    assert!(matches!(rebuild(&[]).await, Err(crate::OfflineError::Open(OpenError::InUse { .. }))));
    models.close().await;
    let before = everything(dir.path());
    let altered = Connection::open(dir.path().join("sources.sqlite")).unwrap();
    altered.execute("DELETE FROM sources", []).unwrap();
    drop(altered);
    assert!(matches!(rebuild(&["nothing"]).await, Err(crate::OfflineError::Unknown(_))));
    rebuild(&["sources"]).await.unwrap();
    assert_eq!(before, everything(dir.path()));
    rebuild(&[]).await.unwrap();
    assert_eq!(before, everything(dir.path()));
}

#[tokio::test]
async fn what_is_redacted_is_forgotten_by_the_read_models() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=3).await;
    let models = caught_up(dir.path(), &story).await;
    assert_eq!(models.sources().get(id(2)).unwrap().unwrap().source_identifier, "S2");
    let head = story.redact(2, &format!("source-{}", id(2))).await;
    assert!(models.wait_for(head.position, SOON).await);
    let identifier = || models.sources().get(id(2)).unwrap().unwrap().source_identifier;
    until("it is forgotten", || identifier().is_empty()).await;
    until("the rebuild is over", || status(&models, "sources").rebuild.is_none()).await;
    story.append(&format!("source-{}", id(3)), S::DiscoveryNoDatasets(DiscoveryNoDatasets::default())).await;
    assert!(models.wait_for(5, SOON).await);
    assert_eq!(status(&models, "jobs").rebuild, None);
    models.close().await;
    let report = verify(dir.path(), story.log(), story.decode(), &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    // Who starts from the beginning reads it redacted, and has nothing to forget.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let models = caught_up(dir.path(), &story).await;
    assert_eq!(status(&models, "sources").rebuild, None);
}

#[tokio::test]
async fn what_is_redacted_is_forgotten_though_the_process_ended_before_it_was() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=3).await;
    let models = caught_up(dir.path(), &story).await;
    // Where the rows would be built anew is something else.
    let obstacle = dir.path().join("sources.rebuild.sqlite");
    std::fs::create_dir(&obstacle).unwrap();
    let head = story.redact(2, &format!("source-{}", id(2))).await;
    assert!(models.wait_for(head.position, SOON).await);
    until("it cannot", || status(&models, "sources").rebuild.is_some_and(|r| r.failed.is_some())).await;
    models.close().await;
    std::fs::remove_dir(&obstacle).unwrap();
    let models = caught_up(dir.path(), &story).await;
    let identifier = || models.sources().get(id(2)).unwrap().unwrap().source_identifier;
    until("it is forgotten", || identifier().is_empty()).await;
    until("the rebuild is over", || status(&models, "sources").rebuild.is_none()).await;
    models.close().await;
    let models = caught_up(dir.path(), &story).await;
    assert!(!status(&models, "sources").outdated, "it is not built a third time");
}

#[tokio::test]
async fn a_read_model_that_cannot_be_written_waits_and_goes_on() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    registered(&story, 1..=3).await;
    let models = caught_up(dir.path(), &story).await;
    let other = Connection::open(dir.path().join("sources.sqlite")).unwrap();
    // Somebody else holds the file for longer than the writer waits for it.
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    registered(&story, 4..=4).await;
    until("it says so", || matches!(status(&models, "sources").state, State::Stalled { .. })).await;
    assert_eq!(models.sources().get(id(3)).unwrap().unwrap().source_identifier, "S3", "reads go on");
    other.execute_batch("ROLLBACK").unwrap();
    assert!(models.wait_for(4, SOON).await);
    assert_eq!(models.gauges().sources.registered, 4);
    models.close().await;
}

#[tokio::test]
async fn numbers_after_a_restart_are_those_before() {
    let (story, dir) = (Story::new(), tempfile::tempdir().unwrap());
    let mut history = History::default();
    for n in 1..=20 {
        let (stream, event) = register(n);
        history.tell(&stream, event);
        if n % 3 == 0 {
            history.tell(&stream, S::DiscoveryNoDatasets(DiscoveryNoDatasets::default()));
        }
    }
    story.append_all(&history).await;
    let models = caught_up(dir.path(), &story).await;
    until("it is live", || models.caught_up()).await;
    let before = models.gauges();
    models.close().await;
    let again = open(dir.path(), &story).await;
    assert_eq!(again.gauges().sources, before.sources, "they are there at once");
    assert_eq!(again.gauges().jobs, before.jobs);
}
