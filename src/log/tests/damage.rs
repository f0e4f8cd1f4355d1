//! Damaged files: whatever byte is wrong, the log says so and where, serves what it can, and takes no more appends.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use beampipe_log::contract::{append_at_end, random, read_matching, sample, ticking_clock};
use beampipe_log::sqlite::OpenError;
use beampipe_log::{
    AppendError, Direction, Expected, Filter, Log, NewEvent, ReadError, Recorded, SqliteLog, SqliteOptions,
    ndjson,
};
use bytes::Bytes;

fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(path, SqliteOptions::new(ticking_clock())).unwrap()
}

/// What a crash would leave behind: the files of an open log, copied.
struct Crashed {
    _directory: tempfile::TempDir,
    log: PathBuf,
}

impl Crashed {
    fn copy(log: &SqliteLog) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("log.sqlite");
        for suffix in ["", "-wal", ".acked", ".index", ".index-wal"] {
            std::fs::copy(beside(log.path(), suffix), beside(&to, suffix)).unwrap();
        }
        Self { _directory: directory, log: to }
    }

    fn edit(&self, suffix: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = beside(&self.log, suffix);
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    /// It opens, refuses appends and says this about why; what can be read is read.
    async fn is_damaged(&self, places: &[&str]) -> SqliteLog {
        let log = open(&self.log);
        let health = log.health();
        let damage = health.damage.expect("the damage is found");
        for place in places {
            assert!(damage.contains(place), "{damage} should say {place}");
        }
        assert_eq!(health.append_refused.as_ref(), Some(&damage));
        let refused = log.append("new", Expected::NoStream, vec![sample("a")]).await;
        assert!(matches!(refused, Err(AppendError::Unavailable(why)) if why == damage));
        log
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}

async fn append_some(log: &SqliteLog, stream: &str, events: usize) {
    for n in 0..events {
        append_at_end(log, stream, vec![sample(&n.to_string())]).await;
    }
}

const HEADER: usize = 32;
const FRAME: usize = 24 + 8192;

/// The frames of a WAL that end a transaction, from 0, as long as they are of its current round.
fn commits(wal: &[u8]) -> Vec<usize> {
    let salt = &wal[16..24];
    let frames = wal[HEADER..].chunks_exact(FRAME).enumerate();
    let ours = frames.take_while(|(_, frame)| &frame[8..16] == salt);
    ours.filter(|(_, frame)| frame[4..8] != [0; 4]).map(|(index, _)| index).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_torn_before_its_acknowledgement_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory.path().join("log.sqlite"));
    append_some(&log, "s-1", 10).await;
    let before = Crashed::copy(&log);
    let acked = std::fs::read(beside(&before.log, ".acked")).unwrap();
    let large = vec![NewEvent { data: Bytes::from(vec![b'x'; 100_000]), ..sample("") }; 3];
    append_at_end(&log, "torn", large).await;
    for frames_kept in [0, 1, 7, 20] {
        let crashed = Crashed::copy(&log);
        std::fs::write(beside(&crashed.log, ".acked"), &acked).unwrap();
        crashed.edit("-wal", |wal| {
            let commits = commits(wal);
            let whole = commits[commits.len() - 2] + 1;
            wal.truncate(HEADER + (whole + frames_kept) * FRAME + 4711 % FRAME);
        });
        let log = open(&crashed.log);
        assert!(log.health().damage.is_none(), "{:?}", log.health());
        assert_eq!(read_matching(&log, &Filter::All, 100).await.len(), 10);
        append_some(&log, "s-1", 3).await;
        assert_eq!(log.verify(&mut |_| {}).unwrap().events, 13);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_lost_its_acknowledged_end_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory.path().join("log.sqlite"));
    append_some(&log, "s-1", 10).await;
    let crashed = Crashed::copy(&log);
    crashed.edit("-wal", |wal| {
        let last = commits(wal).pop().unwrap();
        wal.truncate(HEADER + last * FRAME + 100);
    });
    let log = crashed.is_damaged(&["ends before position 10", "restore from a copy"]).await;
    assert_eq!(read_matching(&log, &Filter::All, 100).await.len(), 9);

    let gone = Crashed::copy(&self::open(&directory_with(5).await.1));
    std::fs::remove_file(beside(&gone.log, "-wal")).unwrap();
    std::fs::write(beside(&gone.log, ".acked"), std::fs::read(beside(&crashed.log, ".acked")).unwrap())
        .unwrap();
    gone.is_damaged(&["position 10, which was acknowledged"]).await;
}

/// A log of so many events, closed.
async fn directory_with(events: usize) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let log = open(&path);
    append_some(&log, "s-1", events).await;
    log.close().await;
    (directory, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_write_ahead_log_is_damage_and_its_frame_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(&directory.path().join("log.sqlite"));
    append_some(&log, "s-1", 30).await;
    let crashed = Crashed::copy(&log);
    let wal = std::fs::read(beside(&crashed.log, "-wal")).unwrap();
    let commits = commits(&wal);
    let last = commits[commits.len() - 1];
    for (frame, at) in [
        (commits[3], 24 + 5000),
        (commits[5], 24 + 8191),
        (commits[7], 4),
        (commits[9], 9),
        (commits[11], 17),
        (last, 24 + 8000),
        (last, 20),
    ] {
        let crashed = Crashed::copy(&log);
        let offset = HEADER + frame * FRAME + at;
        crashed.edit("-wal", |wal| wal[offset] ^= 0x10);
        let place = format!("-wal, frame {} (byte {})", frame + 1, HEADER + frame * FRAME);
        let damaged = crashed.is_damaged(&[&place]).await;
        let left = read_matching(&damaged, &Filter::All, 100).await;
        assert!(left.len() < 30, "SQLite itself would say nothing");
        let stream = damaged.read_stream("s-1", 0, Direction::Forward, 100).await.unwrap();
        assert_eq!(stream.len(), left.len(), "what is left is read");
        drop(damaged);
        let after = std::fs::read(beside(&crashed.log, "-wal")).unwrap();
        assert!(after.len() == wal.len() && after[offset] == wal[offset] ^ 0x10, "the evidence is kept");
        if frame != last {
            // Found without the mark, too: a later transaction proves that this one was whole.
            std::fs::remove_file(beside(&crashed.log, ".acked")).unwrap();
            crashed.is_damaged(&[&place]).await;
        }
    }
    for at in [0, 9, 17, 25] {
        let crashed = Crashed::copy(&log);
        crashed.edit("-wal", |wal| wal[at] ^= 0x10);
        crashed.is_damaged(&["-wal", "position 30, which was acknowledged"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_an_event_is_damage_with_its_position() {
    let (_directory, path) = directory_with(50).await;
    let needle = b"{\"text\":\"33\"}";
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at + 9] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let log = open(&path);
    let place = format!("{}, position 34", path.display());
    // Before and behind it everything is served.
    let page = log.read_all(1, Direction::Forward, 100, &Filter::All).await.unwrap();
    assert_eq!((page.events.len(), page.next), (33, Some(34)));
    assert_eq!(log.read_all(35, Direction::Forward, 100, &Filter::All).await.unwrap().events.len(), 16);
    assert!(log.health().damage.is_none(), "nobody has met it yet");
    match log.read_all(34, Direction::Forward, 100, &Filter::All).await {
        Err(ReadError::Damaged { place: said, what }) => {
            assert_eq!((said, &*what), (place.clone(), "its data is not what its commitment is to"));
        }
        other => panic!("{other:?}"),
    }
    assert!(log.health().damage.unwrap().contains(&place));
    let refused = log.append("new", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(why)) if why.contains(&place)));
    let report = log.verify(&mut |_| {}).unwrap();
    let places: Vec<&str> = report.faults.iter().map(|fault| &*fault.place).collect();
    assert!(places.contains(&&*place), "{:?}", report.faults);
    assert_eq!(report.events, 50, "it looks behind the fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_byte_of_the_database_passes_for_an_event() {
    let (_directory, path) = directory_with(300).await;
    let original = std::fs::read(&path).unwrap();
    let lines = |events: &[Arc<Recorded>]| events.iter().map(|event| ndjson::line(event)).collect::<Vec<_>>();
    let wanted = lines(&read_matching(&open(&path), &Filter::All, 1000).await);
    let mut seen = [0; 4];
    for _ in 0..150 {
        let offset = u32::from_le_bytes(random()) as usize % original.len();
        let bit = 1 << (random::<1>()[0] % 8);
        let mut bytes = original.clone();
        bytes[offset] ^= bit;
        std::fs::write(&path, bytes).unwrap();
        let log = match SqliteLog::open(&path, SqliteOptions::new(ticking_clock())) {
            Ok(log) => log,
            Err(OpenError::Damaged { .. } | OpenError::NotALog { .. } | OpenError::TooNew { .. }) => {
                seen[0] += 1;
                continue;
            }
            Err(OpenError::Sqlite { .. }) => {
                seen[0] += 1;
                continue;
            }
            Err(error) => panic!("byte {offset}, bit {bit}: {error}"),
        };
        let mut forward = log.read_all(1, Direction::Forward, 1000, &Filter::All).await;
        if let Ok(page) = &forward
            && let Some(next) = page.next
        {
            forward = log.read_all(next, Direction::Forward, 1000, &Filter::All).await;
        }
        match forward {
            Err(ReadError::Damaged { .. }) => {
                seen[1] += 1;
                assert!(log.health().damage.is_some());
            }
            Err(error) => panic!("byte {offset}, bit {bit}: {error}"),
            Ok(page) if lines(&page.events) == wanted => seen[2] += 1,
            Ok(page) => {
                // Fewer events than were acknowledged: found when it was opened, by the mark.
                seen[3] += 1;
                assert!(
                    log.health().damage.is_some(),
                    "byte {offset}, bit {bit}: {} events",
                    page.events.len()
                );
            }
        }
        drop(log);
        // What an open log may have changed by itself does not carry over.
        std::fs::write(&path, &original).unwrap();
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(&path, suffix));
        }
    }
    println!("not opened, said by a read, harmless, said at opening: {seen:?}");
    assert!(seen[1] > 20, "most of the file is events: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_is_not_begun_anew() {
    let (_directory, path) = directory_with(5).await;
    std::fs::remove_file(&path).unwrap();
    let refused = SqliteLog::open(&path, SqliteOptions::new(ticking_clock())).unwrap_err();
    assert!(refused.to_string().contains("position 5, which was acknowledged"), "{refused}");
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_said_and_can_be_deleted() {
    let (_directory, path) = directory_with(300).await;
    let index = beside(&path, ".index");
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().for_each(|byte| *byte = !*byte);
    std::fs::write(&index, &bytes).unwrap();
    {
        let log = open(&path);
        let read = log.read_all(0, Direction::Forward, 1000, &Filter::stream("s-1")).await;
        let tagged = log.read_all(0, Direction::Forward, 1000, &Filter::tag("project:wallaby")).await;
        let Some(Err(error)) = [read, tagged].into_iter().find(|read| read.is_err()) else {
            panic!("half of the index is wrong")
        };
        assert!(error.to_string().contains(".index"), "{error}");
        assert_eq!(log.read_all(1, Direction::Forward, 1000, &Filter::All).await.unwrap().events.len(), 300);
        assert!(log.health().append_refused.is_some());
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(&index, suffix));
    }
    let log = open(&path);
    assert_eq!(read_matching(&log, &Filter::tag("project:wallaby"), 1000).await.len(), 300);
    append_some(&log, "s-1", 1).await;
    assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);
}
