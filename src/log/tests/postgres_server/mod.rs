//! A real PostgreSQL, and a schema of it for each test.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_log::contract::random;
use beampipe_log::prepare::Prepared;
use beampipe_log::{Expected, PostgresLog, PostgresOptions};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

/// A schema that no other test uses.
pub struct Scratch {
    pub server: String,
    pub schema: String,
}

impl Scratch {
    #[expect(clippy::disallowed_methods, reason = "tests say where their servers are")]
    pub fn new() -> Self {
        let server = std::env::var("BEAMPIPE_TEST_POSTGRES_URL").expect(
            "BEAMPIPE_TEST_POSTGRES_URL says where PostgreSQL is; bring one with: \
             tests/realparts/up.sh DIR postgres && . DIR/env",
        );
        Self { server, schema: format!("log_{:016x}", u64::from_be_bytes(random())) }
    }

    /// The address of the log.
    pub fn url(&self) -> String {
        format!("{}?schema={}", self.server, self.schema)
    }

    /// One process's view of the log.
    pub async fn open(&self) -> PostgresLog {
        PostgresLog::open(&self.url(), PostgresOptions::default()).await.unwrap()
    }

    /// A connection of the test's own, whose path is the schema.
    pub async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.server, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("SET search_path = {}", self.schema)).await.unwrap();
        client
    }
}

/// Ends every connection of the log in `scratch`, as an administrator or a restart does.
pub async fn end_connections(client: &Client, scratch: &Scratch) {
    let ours = format!("beampipe {} %", scratch.schema);
    client
        .query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1",
            &[&ours],
        )
        .await
        .unwrap();
}

/// Calls the function that writes groups with one append of one event without tags.
pub async fn append_by_hand(client: &Client, append: &Prepared) {
    let event = &append.events[0];
    let (revision, hash) = match &append.expected {
        Expected::NoStream => (None, None),
        Expected::At { revision, hash } => (Some(*revision as i64), Some(&hash.0[..])),
    };
    let head = append.head();
    let category = format!("c:{}", beampipe_log::category(&append.stream));
    client
        .query_one(
            "SELECT outcomes FROM append(ARRAY[$1], ARRAY[0], ARRAY[$2::bigint], ARRAY[$3::bytea], ARRAY[$4::bigint],
                 ARRAY[$5::bytea], ARRAY[1], ARRAY[$4::bigint], ARRAY[1], ARRAY[$6::uuid], ARRAY[$7::uuid],
                 ARRAY[$5::bytea], ARRAY[$8::bytea], ARRAY[$9::bytea], ARRAY[$10::bytea], ARRAY[$11], '{}', '{}', NULL)",
            &[
                &&*append.stream,
                &revision,
                &hash,
                &(head.revision as i64),
                &&head.hash.0[..],
                &event.event.id,
                &event.event.correlation_id,
                &event.leaf,
                &event.event.salt.as_ref().map(|salt| &salt[..]),
                &event.event.data.as_deref(),
                &category,
            ],
        )
        .await
        .unwrap();
}

/// Waits for what must come soon, and says how long it took.
pub async fn within(patience: Duration, what: &str, mut is: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is().await {
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

/// A network between the log and its server that can be cut without a word: nothing goes through and nothing is closed.
pub struct Network {
    pub address: std::net::SocketAddr,
    whole: Arc<watch::Sender<bool>>,
}

impl Network {
    pub async fn to(server: &str) -> Self {
        let server: tokio_postgres::Config = server.parse().unwrap();
        let port = server.get_ports()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let whole = Arc::new(watch::Sender::new(true));
        let gate = Arc::clone(&whole);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    drop(gate.subscribe().wait_for(|whole| *whole).await);
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (near, far) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = carry(near.0, far.1, gate.subscribe()) => {}
                        () = carry(far.0, near.1, gate.subscribe()) => {}
                    }
                });
            }
        });
        Self { address, whole }
    }

    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut gate: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok(count) = from.read(&mut buffer).await else { return };
        drop(gate.wait_for(|whole| *whole).await);
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
