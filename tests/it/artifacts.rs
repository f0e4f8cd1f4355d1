//! The artifact store, on a directory and on a real S3-speaking server: one contract.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe::artifacts::{ArtifactError, Artifacts, Place, digest, keep_probing};
use beampipe::config;
use beampipe::secrets::SecretRef;
use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStoreExt, path};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::backends::daliuge::{SCRIPTS, fresh};

#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are by up.sh")]
fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; bring the server: tests/realparts/up.sh /tmp/bp s3 && . /tmp/bp/env")
    })
}

fn secret(name: &str) -> Option<SecretRef> {
    told(name);
    Some(SecretRef::Env(name.to_owned()))
}

fn settings(endpoint: String, url: String) -> config::Artifacts {
    config::Artifacts {
        url,
        endpoint: Some(endpoint),
        allow_http: true,
        access_key_id: secret("BEAMPIPE_TEST_S3_KEY"),
        secret_access_key: secret("BEAMPIPE_TEST_S3_SECRET"),
        ..config::Artifacts::default()
    }
}

/// A place in the shared server that no other test uses.
fn shared() -> config::Artifacts {
    let url = format!("{}/{}", told("BEAMPIPE_TEST_S3_URL"), fresh("artifacts"));
    settings(told("BEAMPIPE_TEST_S3_ENDPOINT"), url)
}

fn open(settings: &config::Artifacts) -> Artifacts {
    Artifacts::open(&settings.url.parse().unwrap(), settings).unwrap()
}

/// A server of a test's own, to be stopped and started. Stopped at the end of the test.
pub struct Own {
    dir: tempfile::TempDir,
    ports: [u16; 4],
}

impl Own {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script =
            format!(". {SCRIPTS}/lib.sh; for n in 1 2 3 4; do reserve_port {}; done", dir.path().display());
        let out = Command::new("bash").args(["-c", &script]).output().unwrap();
        let ports = String::from_utf8(out.stdout).unwrap();
        let ports: Vec<u16> = ports.split_whitespace().map(|port| port.parse().unwrap()).collect();
        let own = Self { dir, ports: ports.try_into().unwrap() };
        own.call("start");
        own
    }

    /// Calls `s3.sh` with this verb.
    pub fn call(&self, verb: &str) {
        let names = ["S3_PORT", "S3_ACCOUNT_PORT", "S3_CONTAINER_PORT", "S3_OBJECT_PORT"];
        let done = Command::new(format!("{SCRIPTS}/s3.sh"))
            .arg(verb)
            .env("REALPARTS_DIR", self.dir.path())
            .envs(names.into_iter().zip(self.ports.map(|port| port.to_string())))
            .output()
            .unwrap();
        assert!(done.status.success(), "s3.sh {verb}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub fn settings(&self) -> config::Artifacts {
        settings(self.endpoint(), told("BEAMPIPE_TEST_S3_URL"))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let release = format!(". {SCRIPTS}/lib.sh; release_ports {}", self.dir.path().display());
        let stop = Command::new(format!("{SCRIPTS}/s3.sh"))
            .arg("stop")
            .env("REALPARTS_DIR", self.dir.path())
            .output();
        let released = Command::new("bash").args(["-c", &release]).output();
        let _ = (stop, released);
    }
}

/// Puts other bytes behind the store's back, under a path below its place.
trait Tamper {
    async fn write(&self, path: &str, bytes: &'static [u8]);
}

struct Directory(tempfile::TempDir);

impl Tamper for Directory {
    async fn write(&self, path: &str, bytes: &'static [u8]) {
        std::fs::write(self.0.path().join(path), bytes).unwrap();
    }
}

struct Bucket {
    s3: AmazonS3,
    prefix: String,
}

impl Bucket {
    fn of(settings: &config::Artifacts) -> Self {
        let Place::S3 { bucket, prefix } = settings.url.parse().unwrap() else { panic!("{settings:?}") };
        let s3 = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_endpoint(settings.endpoint.clone().unwrap())
            .with_allow_http(true)
            .with_access_key_id(told("BEAMPIPE_TEST_S3_KEY"))
            .with_secret_access_key(told("BEAMPIPE_TEST_S3_SECRET"));
        Self { s3: s3.build().unwrap(), prefix }
    }
}

impl Tamper for Bucket {
    async fn write(&self, path: &str, bytes: &'static [u8]) {
        let path = path::Path::from(format!("{}/{path}", self.prefix));
        self.s3.put(&path, Bytes::from_static(bytes).into()).await.unwrap();
    }
}

/// What every store does.
async fn contract(artifacts: &Artifacts, tamper: &impl Tamper) {
    let stored = artifacts.put(Bytes::from_static(b"manifest")).await.unwrap();
    assert_eq!((stored.sha256.clone(), stored.size_bytes), (digest(b"manifest"), 8));
    assert_eq!(
        artifacts.put(Bytes::from_static(b"manifest")).await.unwrap(),
        stored,
        "the same is one object"
    );
    assert_eq!(artifacts.get(&stored.sha256).await.unwrap(), "manifest");
    let nothing = artifacts.put(Bytes::new()).await.unwrap();
    assert_eq!(artifacts.get(&nothing.sha256).await.unwrap(), "");

    for name in ["", "../../etc/passwd", "probe", &"0".repeat(64), &"A".repeat(64)] {
        let got = artifacts.get(name).await;
        assert!(matches!(got, Err(ArtifactError::Absent(_))), "{name}: {got:?}");
    }

    let place = format!("sha256/{}/{}", &stored.sha256[..2], stored.sha256);
    for damage in [&b"manifesT"[..], b"manif", b"manifest and more", b""] {
        tamper.write(&place, damage).await;
        let got = artifacts.get(&stored.sha256).await;
        assert!(matches!(got, Err(ArtifactError::Damaged(_))), "{damage:?}: {got:?}");
        artifacts.put(Bytes::from_static(b"manifest")).await.unwrap();
        assert_eq!(artifacts.get(&stored.sha256).await.unwrap(), "manifest", "a put makes it whole");
    }

    let bytes = Bytes::from(vec![7; 300_000]);
    let puts = (0..16).map(|_| {
        let (artifacts, bytes) = (artifacts.clone(), bytes.clone());
        tokio::spawn(async move { artifacts.put(bytes).await.unwrap() })
    });
    for put in puts.collect::<Vec<_>>() {
        assert_eq!(put.await.unwrap().sha256, digest(&bytes));
    }
    assert_eq!(artifacts.get(&digest(&bytes)).await.unwrap(), bytes);

    let large: Vec<u8> = (0..16u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let large = Bytes::from(large);
    let begun = Instant::now();
    let stored = artifacts.put(large.clone()).await.unwrap();
    let put = begun.elapsed();
    assert_eq!(artifacts.get(&stored.sha256).await.unwrap(), large);
    println!("16 MiB: put {put:?}, got {:?}", begun.elapsed() - put);
    artifacts.probe().await.unwrap();
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::local(directory.path()).unwrap();
    contract(&artifacts, &Directory(directory)).await;
}

#[tokio::test]
async fn an_s3_server_keeps_the_contract() {
    let settings = shared();
    contract(&open(&settings), &Bucket::of(&settings)).await;
}

#[tokio::test]
async fn two_machines_read_what_the_other_wrote_and_two_prefixes_do_not() {
    let (settings, other) = (shared(), shared());
    let stored = open(&settings).put(Bytes::from_static(b"of one machine")).await.unwrap();
    assert_eq!(open(&settings).get(&stored.sha256).await.unwrap(), "of one machine");
    let got = open(&other).get(&stored.sha256).await;
    assert!(matches!(got, Err(ArtifactError::Absent(_))), "{got:?}");
}

#[tokio::test]
async fn a_wrong_key_and_a_wrong_bucket_are_said() {
    let wrong = config::Artifacts { secret_access_key: secret("BEAMPIPE_TEST_S3_KEY"), ..shared() };
    let put = open(&wrong).put(Bytes::from_static(b"x")).await;
    assert!(matches!(put, Err(ArtifactError::Unavailable(_))), "{put:?}");
    let said = open(&wrong).probe().await.unwrap_err();
    assert!(said.contains("403"), "{said}");
    let nowhere = config::Artifacts { url: "s3://never-made".into(), ..shared() };
    let said = open(&nowhere).probe().await.unwrap_err();
    assert!(said.contains("404") || said.contains("NoSuchBucket") || said.contains("not found"), "{said}");
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_and_a_fault_until_it_is_back() {
    let own = Own::start();
    let artifacts = open(&own.settings());
    let faults = Arc::new(Mutex::new(vec![]));
    let (telling, stopping) = (faults.clone(), CancellationToken::new());
    let tell = move |fault: Option<String>| {
        let mut faults = telling.lock();
        if faults.last() != Some(&fault) {
            faults.push(fault);
        }
    };
    // Nobody would look for an hour, if it were not for whoever could not use it.
    let hour = Duration::from_secs(3600);
    tokio::spawn(keep_probing(artifacts.clone(), hour, tell, stopping.clone()));
    let until = async |so: bool| {
        let begun = Instant::now();
        while faults.lock().last().is_some_and(|fault| fault.is_none()) != so {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", faults.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until(true).await;
    let stored = artifacts.put(Bytes::from_static(b"before")).await.unwrap();

    own.call("stop");
    let begun = Instant::now();
    let put = artifacts.put(Bytes::from_static(b"meanwhile")).await;
    assert!(matches!(put, Err(ArtifactError::Unavailable(_))), "{put:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "a put is not tried for ever: {:?}", begun.elapsed());
    let got = artifacts.get(&stored.sha256).await;
    assert!(matches!(got, Err(ArtifactError::Unavailable(_))), "away is not absent: {got:?}");
    until(false).await;

    own.call("start");
    until(true).await;
    assert_eq!(artifacts.get(&stored.sha256).await.unwrap(), "before", "it was durable");
    artifacts.put(Bytes::from_static(b"meanwhile")).await.unwrap();
    stopping.cancel();
    println!("{:#?}", faults.lock());
}
