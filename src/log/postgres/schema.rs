//! The schema: made and moved on under a lock when a process opens the log, so that any number may start at once.

use std::time::Duration;

use tokio_postgres::Client;

use super::session::{POOLED, Session, Trouble, is_pooled, told};
use super::target::Target;

/// In order; the table `migrations` says which a schema has had.
const MIGRATIONS: &[&str] = &[include_str!("../../../migrations/log-postgres/0001_events.sql")];
/// How long another process may take to make the schema.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the address of the log: {what}")]
    Address { what: String },
    #[error("cannot reach {server}: {what}")]
    Unreachable { server: String, what: String },
    #[error("{server}: {POOLED}; connect to the server itself, or to a pool in session mode")]
    Pooled { server: String },
    #[error("{server} is a standby: it can be read, not written")]
    Standby { server: String },
    #[error("schema {schema} of {server} has no event log in it")]
    NotALog { server: String, schema: String },
    #[error("schema {schema} was made by a later release (version {found}, this one knows {known})")]
    TooNew { schema: String, found: i32, known: i32 },
    #[error("{server} is no place for a log: {what}")]
    Unfit { server: String, what: String },
    #[error("schema {schema} cannot be made: {what}")]
    Migrate { schema: String, what: String },
}

/// Connects, looks whether this is a server that a log can be kept on, and brings the schema up to date.
pub(super) async fn prepare(target: &Target, read_only: bool) -> Result<(), OpenError> {
    let server = || target.shown.clone();
    let unreachable =
        |trouble: Trouble| OpenError::Unreachable { server: server(), what: trouble.said().to_owned() };
    if is_pooled(target).await.map_err(unreachable)? {
        return Err(OpenError::Pooled { server: server() });
    }
    let session = Session::connect(target, "open", None).await.map_err(unreachable)?;
    let failed =
        |error: tokio_postgres::Error| OpenError::Unreachable { server: server(), what: told(&error) };
    let row = session
        .client
        .query_one(
            "SELECT current_setting('server_encoding'), current_setting('server_version_num')::int,
                    pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes')",
            &[],
        )
        .await
        .map_err(failed)?;
    let (encoding, version, standby): (String, i32, bool) = (row.get(0), row.get(1), row.get(2));
    let unfit = |what: String| Err(OpenError::Unfit { server: server(), what });
    if encoding != "UTF8" {
        return unfit(format!("the database is encoded in {encoding}, not in UTF8"));
    }
    if version < 140_000 {
        return unfit(format!("it is PostgreSQL {}, 14 or later is needed", version / 10_000));
    }
    for (setting, value) in [("fsync", row.get::<_, String>(3)), ("full_page_writes", row.get(4))] {
        if value == "off" {
            tracing::warn!(
                setting,
                "it is off on the server: a crash there may lose or damage what was acknowledged"
            );
        }
    }
    let found = version_of(&session.client, &target.schema).await.map_err(failed)?;
    let known = MIGRATIONS.len() as i32;
    match found {
        Some(found) if found > known => {
            Err(OpenError::TooNew { schema: target.schema.clone(), found, known })
        }
        Some(found) if found == known || read_only => Ok(()),
        None if read_only => Err(OpenError::NotALog { server: server(), schema: target.schema.clone() }),
        _ if standby => Err(OpenError::Standby { server: server() }),
        _ => tokio::time::timeout(PATIENCE, migrate(&session.client, &target.schema))
            .await
            .map_err(|_| "another process holds the lock".to_owned())
            .and_then(|done| done.map_err(|error| told(&error)))
            .map_err(|what| OpenError::Migrate { schema: target.schema.clone(), what }),
    }
}

async fn version_of(client: &Client, schema: &str) -> Result<Option<i32>, tokio_postgres::Error> {
    let table: Option<String> =
        client.query_one("SELECT to_regclass($1)::text", &[&format!("{schema}.migrations")]).await?.get(0);
    match table {
        None => Ok(None),
        Some(_) => client
            .query_one(&format!("SELECT max(version) FROM {schema}.migrations"), &[])
            .await
            .map(|row| row.get(0)),
    }
}

async fn migrate(client: &Client, schema: &str) -> Result<(), tokio_postgres::Error> {
    // Released by the end of the transaction, whatever happens to us.
    client
        .batch_execute(&format!(
            "BEGIN; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '60s';
             SELECT pg_advisory_xact_lock(hashtextextended('beampipe schema {schema}', 0));
             DO $$ BEGIN
                 IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF;
             END $$;
             CREATE TABLE IF NOT EXISTS {schema}.migrations (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
        ))
        .await?;
    let done: Option<i32> =
        client.query_one(&format!("SELECT max(version) FROM {schema}.migrations"), &[]).await?.get(0);
    let done = usize::try_from(done.unwrap_or(0)).unwrap_or(0);
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        client.batch_execute(&migration.replace("@schema@", schema)).await?;
        let note = format!("INSERT INTO {schema}.migrations (version) VALUES ({})", index + 1);
        client.batch_execute(&note).await?;
    }
    client.batch_execute("COMMIT").await
}
