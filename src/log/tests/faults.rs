//! A full disk and a writer that is killed, on real files: nothing that was acknowledged is lost.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_log::contract::{append_at_end, random, read_matching, sample, ticking_clock};
use beampipe_log::{
    AppendError, Direction, Expected, Filter, Log, NewEvent, SqliteLog, SqliteOptions, StreamHead,
};
use bytes::Bytes;

fn open(path: &Path) -> SqliteLog {
    SqliteLog::open(path, SqliteOptions::new(ticking_clock())).unwrap()
}

/// A file system of a few megabytes, gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .output()
            .expect("mount runs");
        assert!(
            mounted.status.success(),
            "this test fills a small file system and may not mount one ({}); run it where this works: \
             sudo mount -t tmpfs -o size={size} tmpfs {}",
            String::from_utf8_lossy(&mounted.stderr).trim(),
            directory.path().display()
        );
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !matches!(unmounted, Ok(status) if status.success()) {
            eprintln!("cannot unmount {}", self.path().display());
        }
    }
}

/// Appends until the log refuses. Gives the refusal.
async fn append_until_refused(log: &SqliteLog, acked: &mut Vec<(String, StreamHead)>) -> String {
    for n in 0..100_000 {
        let stream = format!("s-{}", acked.len());
        let event = NewEvent { data: Bytes::from(vec![b'x'; 3000]), ..sample("") };
        match log.append(&stream, Expected::NoStream, vec![event]).await {
            Ok(appended) => acked.push((stream, appended.head)),
            Err(AppendError::Unavailable(reason)) => return reason,
            Err(error) => panic!("{error} after {n}"),
        }
    }
    panic!("the disk is never full");
}

async fn assert_all_there(log: &dyn Log, acked: &[(String, StreamHead)]) {
    for (stream, head) in acked {
        assert_eq!(log.stream_head(stream).await.unwrap(), Some(*head), "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_reads_go_on_and_appends_come_back_with_space() {
    let disk = SmallDisk::mount("40m");
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0; 20 << 20]).unwrap();
    let path = disk.path().join("log.sqlite");
    let log = Arc::new(open(&path));
    let mut acked = Vec::new();
    for round in 0..3 {
        let reason = append_until_refused(&log, &mut acked).await;
        assert!(reason.contains("no space is left"), "{reason}");
        assert!(reason.contains(&path.display().to_string()), "{reason}");
        assert_eq!(log.health().append_refused, Some(reason));
        assert!(log.health().damage.is_none());

        // It stays readable, however long it lasts.
        assert_all_there(&*log, &acked).await;
        assert_eq!(read_matching(&*log, &Filter::All, 500).await.len(), acked.len());
        assert_eq!(read_matching(&*log, &Filter::tag("project:wallaby"), 500).await.len(), acked.len());
        let mut follower = log.subscribe(Filter::All, 0);
        assert!(!follower.next_batch(10).await.unwrap().events.is_empty());

        // Space returns: nobody has to do anything.
        let room = (2 - round) * (7 << 20);
        std::fs::OpenOptions::new().write(true).open(&ballast).unwrap().set_len(room).unwrap();
        let since = Instant::now();
        loop {
            let stream = format!("s-{}", acked.len());
            match log.append(&stream, Expected::NoStream, vec![sample("again")]).await {
                Ok(appended) => break acked.push((stream, appended.head)),
                Err(AppendError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
            if since.elapsed() > Duration::from_secs(10) {
                let listing = Command::new("sh")
                    .arg("-c")
                    .arg(format!("df -k {0}; ls -ls {0}", disk.path().display()))
                    .output();
                panic!(
                    "round {round}: {:?} {}",
                    log.health(),
                    String::from_utf8_lossy(&listing.unwrap().stdout)
                );
            }
        }
        assert!(log.health().append_refused.is_none());
    }
    log.close().await;
    drop(log);
    let log = open(&path);
    assert!(log.health().append_refused.is_none(), "{:?}", log.health());
    assert_all_there(&log, &acked).await;
    assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_under_many_writers_loses_nothing_that_was_answered() {
    let disk = SmallDisk::mount("16m");
    let path = disk.path().join("log.sqlite");
    let log = Arc::new(open(&path));
    let writers: Vec<_> = (0..32)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut head: Option<StreamHead> = None;
                loop {
                    let event = NewEvent { data: Bytes::from(vec![b'x'; 2000]), ..sample("") };
                    match log.append(&format!("s-{writer}"), head.into(), vec![event]).await {
                        Ok(appended) => head = Some(appended.head),
                        Err(AppendError::Unavailable(_)) => return head,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    let mut acked = Vec::new();
    for (writer, head) in writers.into_iter().enumerate() {
        acked.extend(head.await.unwrap().map(|head| (format!("s-{writer}"), head)));
    }
    assert_all_there(&*log, &acked).await;
    drop(log);
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(disk.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let log = open(&copy.path().join("log.sqlite"));
    assert!(log.health().append_refused.is_none(), "{:?}", log.health());
    assert_all_there(&log, &acked).await;
    assert_eq!(log.verify(&mut |_| {}).unwrap().faults, []);
}

/// Set for the process that is going to be killed: the log it writes to.
const CHILD: &str = "BEAMPIPE_LOG_TEST_CHILD";

/// What the child does until it is killed: appends, and says what was acknowledged.
async fn append_and_say(path: PathBuf) {
    let log = Arc::new(open(&path));
    let writers = (0..16).map(|writer| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            let stream = format!("s-{writer}");
            loop {
                let appended = append_at_end(&*log, &stream, vec![sample("a"), sample("b")]).await;
                // One write, so that lines do not mix and none is half said.
                let line = format!("acked {stream} {} {}\n", appended.head.revision, appended.head.hash);
                std::io::stdout().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    const NAME: &str = "what_was_acknowledged_before_a_kill_is_there_after_it";
    #[expect(clippy::disallowed_methods, reason = "how a test tells its child what it is")]
    if let Ok(path) = std::env::var(CHILD) {
        return append_and_say(path.into()).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log.sqlite");
    let mut acked: HashMap<String, (u64, String)> = HashMap::new();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pause = Duration::from_millis(60 + u64::from(random::<1>()[0]));
        println!("round {round}: killed {pause:?} after its first acknowledgement");
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut first = None;
        let mut count = 0;
        let mut killed = false;
        for line in said.by_ref() {
            let line = line.unwrap();
            let Some(line) = line.strip_prefix("acked ") else { continue };
            let [stream, revision, hash] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            acked.insert(stream.into(), (revision.parse().unwrap(), hash.into()));
            count += 1;
            if !killed && first.get_or_insert_with(Instant::now).elapsed() > pause {
                child.kill().unwrap();
                killed = true;
            }
        }
        assert!(killed, "the child was killed while it wrote");
        child.wait().unwrap();
        assert!(count > 16, "the child wrote something: {count}");

        let log = open(&path);
        assert!(log.health().damage.is_none(), "{:?}", log.health());
        for (stream, (revision, hash)) in &acked {
            let read = log.read_stream(stream, *revision, Direction::Forward, 1).await.unwrap();
            assert_eq!(read[0].hash.to_hex(), *hash, "{stream} at {revision}");
        }
        let report = log.verify(&mut |_| {}).unwrap();
        assert_eq!(report.faults, []);
        // Whole appends only.
        assert_eq!(report.events % 2, 0);
    }
}
