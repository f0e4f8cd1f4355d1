//! A real PostgreSQL, and a schema of it for each test.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use beampipe_log::contract::random;
use beampipe_log::{PostgresLog, PostgresOptions};
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
