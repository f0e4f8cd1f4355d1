//! The real DALiuGE that tests talk to: the one `tests/realparts/up.sh` started, shared by all, or parts of one's own
//! to stop and start.

use beampipe::backends::dim::Dim;
use beampipe::backends::graph::PhysicalGraph;
use beampipe::backends::translator::{Algorithm, Translator};
use beampipe::backends::{self, Backend, Look, State};
use bytes::Bytes;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/realparts");

#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are by up.sh")]
pub fn told(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set; bring the servers: tests/realparts/up.sh DIR tap daliuge postgres s3 slurm sshd receivers prometheus python tools && . DIR/env"
        )
    })
}

pub fn http() -> reqwest::Client {
    // Fails when another test of this process was first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    backends::client(true).unwrap()
}

pub fn dim_port() -> u16 {
    told("BEAMPIPE_TEST_DIM_PORT").parse().unwrap()
}

pub fn dim() -> Dim {
    Dim::new(http(), &format!("http://{}:{}", told("BEAMPIPE_TEST_DIM_HOST"), dim_port()))
}

pub fn translator() -> Translator {
    Translator::new(http(), &told("BEAMPIPE_TEST_TM_URL"))
}

/// A name no other test and no earlier run has used.
pub fn fresh(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    #[expect(clippy::disallowed_methods, reason = "only has to differ between runs")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros();
    format!("{what}-{now}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn logical_graph(name: &str) -> Vec<u8> {
    std::fs::read(format!("{SCRIPTS}/graphs/{name}.graph")).unwrap()
}

/// A logical graph, translated and mapped onto the manager at `port`.
pub async fn mapped(name: &str, port: u16) -> (Bytes, PhysicalGraph) {
    let translator = translator();
    let template = translator
        .unroll_and_partition(&logical_graph(name), Algorithm::Metis, 1, 1, &fresh("exec"))
        .await
        .unwrap();
    let bytes = translator.map(&template, "127.0.0.1", port, 1).await.unwrap();
    let graph = PhysicalGraph::parse(&bytes).unwrap();
    (bytes, graph)
}

/// Creates, appends and deploys, as a worker does.
pub async fn submit(dim: &Dim, session: &str, bytes: Bytes, graph: &PhysicalGraph) {
    dim.create(session).await.unwrap();
    dim.append(session, bytes).await.unwrap();
    assert_eq!(dim.size(session).await.unwrap(), graph.len());
    dim.deploy(session, &graph.roots()).await.unwrap();
}

pub async fn state(dim: &Dim, session: &str) -> State {
    match dim.look(session).await.unwrap() {
        Look::Present { state, .. } => state,
        Look::Absent => panic!("session {session} is absent"),
    }
}

/// Waits until the session has ended, and says how.
pub async fn end(dim: &Dim, session: &str) -> State {
    let begun = Instant::now();
    loop {
        let state = state(dim, session).await;
        if state.is_terminal() {
            return state;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "session {session} is still {state}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Managers of a test's own, on ports of their own, to be stopped and started. Stopped at the end of the test.
pub struct Own {
    dir: tempfile::TempDir,
    ports: [u16; 4],
}

impl Own {
    /// Starts a data island manager on the *shared* node manager.
    pub fn dim() -> Own {
        let own = Own::prepare();
        own.call("start-dim");
        own
    }

    /// Starts a node manager and a data island manager on it.
    pub fn island() -> Own {
        let mut own = Own::prepare();
        own.ports[1] = own.reserve();
        own.ports[2] = own.reserve();
        own.ports[3] = own.reserve();
        own.call("start-nm");
        own.call("start-dim");
        own
    }

    fn prepare() -> Own {
        let dir = tempfile::tempdir().unwrap();
        let shared = |name: &str| told(name).parse().unwrap();
        let ports = [0, shared("DLG_NM_PORT"), shared("DLG_EVENTS_PORT"), shared("DLG_RPC_PORT")];
        let mut own = Own { dir, ports };
        own.ports[0] = own.reserve();
        own
    }

    fn reserve(&self) -> u16 {
        let script = format!(". {SCRIPTS}/lib.sh; reserve_port {}", self.dir.path().display());
        let out = Command::new("bash").args(["-c", &script]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
    }

    /// Calls `daliuge.sh` with this verb: `stop-dim`, `start-nm`, …
    pub fn call(&self, verb: &str) {
        let names = ["DLG_DIM_PORT", "DLG_NM_PORT", "DLG_EVENTS_PORT", "DLG_RPC_PORT"];
        let done = Command::new(format!("{SCRIPTS}/daliuge.sh"))
            .arg(verb)
            .env("REALPARTS_DIR", self.dir.path())
            .envs(names.into_iter().zip(self.ports.map(|port| port.to_string())))
            .output()
            .unwrap();
        assert!(done.status.success(), "daliuge.sh {verb}: {}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    pub fn client(&self) -> Dim {
        Dim::new(http(), &format!("http://127.0.0.1:{}", self.port()))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let release = format!(". {SCRIPTS}/lib.sh; release_ports {}", self.dir.path().display());
        for (program, args) in
            [(format!("{SCRIPTS}/daliuge.sh"), ["stop", ""]), ("bash".into(), ["-c", &release])]
        {
            let args = args.into_iter().filter(|arg| !arg.is_empty());
            let _ = Command::new(program).args(args).env("REALPARTS_DIR", self.dir.path()).output();
        }
    }
}
