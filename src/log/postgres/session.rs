//! One connection to the server, set up as the log needs it, and the proof that the log behind it is the one we know.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Connection, Error, NoTls, Row, SimpleQueryMessage, Statement};

use crate::Head;
use crate::event::Hash;
use crate::leaf::Interner;

use super::target::{CONNECT, Target};

/// How long any one question may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How often the two connections of the test for a pooler take turns.
const TURNS: usize = 6;

/// What every connection is told. No transaction is left to the server's defaults, and plans go by indexes alone: those made
/// while a log is small stay good when it is large.
const SETTINGS: &str = "
SET default_transaction_isolation = 'read committed';
SET statement_timeout = '30s';
SET lock_timeout = '4s';
SET idle_in_transaction_session_timeout = '10s';
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off;
SELECT set_config(name, value, false)
FROM (VALUES ('tcp_user_timeout', '10000'), ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'),
             ('tcp_keepalives_count', '3'), ('client_connection_check_interval', '2000')) AS ours (name, value)
JOIN pg_settings USING (name);
SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'";

const LOOK: &str = "
SELECT pg_backend_pid(), pg_is_in_recovery(), last.position, last.hash,
       (SELECT e.hash FROM events e WHERE e.position = $1),
       (SELECT bool_and(has_function_privilege(p.oid, 'EXECUTE')) FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace AND p.proname = 'append')
FROM (SELECT 1) AS one
LEFT JOIN LATERAL (SELECT e.position, e.hash FROM events e ORDER BY e.position DESC LIMIT 1) AS last ON true";

/// Why something asked of the server has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server said no: what was asked did not happen.
    Refused { code: SqlState, message: String },
    /// The connection broke, or could not be made: what was asked may have happened.
    Lost(String),
    /// Nothing was heard for too long: what was asked may have happened, or happen yet.
    Silent(String),
}

impl Trouble {
    pub fn said(&self) -> &str {
        match self {
            Self::Refused { message, .. } | Self::Lost(message) | Self::Silent(message) => message,
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error.as_db_error() {
            // An ERROR ends the transaction and nothing else. FATAL ends the connection, and may come after a commit.
            Some(said)
                if said.parsed_severity() == Some(Severity::Error)
                    && *said.code() != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN =>
            {
                Self::Refused { code: said.code().clone(), message: said.message().to_owned() }
            }
            Some(said) => Self::Lost(said.message().to_owned()),
            None => Self::Lost(told(&error)),
        }
    }
}

/// An error with its cause, which the client's own text leaves out.
pub(super) fn told(error: &Error) -> String {
    if let Some(said) = error.as_db_error() {
        return said.message().to_owned();
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What the server says of the log.
#[derive(Debug)]
pub(super) struct Look {
    pub standby: bool,
    pub head: Head,
    /// Whether the event that was asked for is there with the hash that we know of it.
    pub known: bool,
    /// Whether this role may append.
    pub may_append: bool,
}

/// Who is woken by a notification, and of whom nothing is heard.
#[derive(Debug, Default)]
pub(super) struct Bell {
    pub rung: Notify,
    /// Our own writer's connections: what they write is shown by the writer itself.
    pub own: Mutex<Vec<i32>>,
}

pub(super) struct Session {
    pub client: Client,
    pub pid: i32,
    pub texts: Mutex<Interner>,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl Session {
    /// Connects for `what`. With a bell, notifications ring it.
    pub async fn connect(target: &Target, what: &str, bell: Option<Arc<Bell>>) -> Result<Self, Trouble> {
        let lost = |message: String| Trouble::Lost(message);
        let connecting = async {
            let (config, tls) = target.settings(what).map_err(lost)?;
            let client = match tls {
                None => {
                    let (client, connection) =
                        config.connect(NoTls).await.map_err(|error| lost(told(&error)))?;
                    tokio::spawn(drive(connection, bell));
                    client
                }
                Some(tls) => {
                    let (client, connection) =
                        config.connect(tls).await.map_err(|error| lost(told(&error)))?;
                    tokio::spawn(drive(connection, bell));
                    client
                }
            };
            let path = format!("SET search_path = {}, pg_temp;", target.schema);
            client.batch_execute(&format!("{path}{SETTINGS}")).await?;
            let pid = backend(&client).await?;
            let (texts, statements) = (Mutex::default(), Mutex::default());
            Ok(Self { client, pid, texts, statements })
        };
        match tokio::time::timeout(CONNECT * 2, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(lost(format!("no connection within {} s", (CONNECT * 2).as_secs()))),
        }
    }

    async fn statement(&self, sql: &'static str) -> Result<Statement, Error> {
        let known = self.statements.lock().get(sql).cloned();
        match known {
            Some(statement) => Ok(statement),
            None => {
                let statement = self.client.prepare(sql).await?;
                self.statements.lock().insert(sql, statement.clone());
                Ok(statement)
            }
        }
    }

    /// Asks, and waits no longer than `patience`.
    pub async fn ask(
        &self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
        patience: Duration,
    ) -> Result<Vec<Row>, Trouble> {
        let asking = async {
            let statement = self.statement(sql).await?;
            self.client.query(&statement, parameters).await
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Trouble::Silent(format!("no answer within {} s", patience.as_secs_f32()))),
        }
    }

    /// Where the log ends, and whether `known` is in it.
    pub async fn look(&self, known: Head, patience: Duration) -> Result<Look, Trouble> {
        let rows = self.ask(LOOK, &[&(known.position as i64)], patience).await?;
        let bad = |error: Error| Trouble::Lost(told(&error));
        let row = rows.first().ok_or_else(|| Trouble::Lost("an empty answer".into()))?;
        if row.try_get::<_, i32>(0).map_err(bad)? != self.pid {
            return Err(Trouble::Lost(POOLED.into()));
        }
        let hash = |column: usize| -> Result<Option<Hash>, Trouble> {
            let bytes: Option<&[u8]> = row.try_get(column).map_err(bad)?;
            Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(Hash))
        };
        let position: Option<i64> = row.try_get(2).map_err(bad)?;
        let head = Head { position: position.unwrap_or(0) as u64, hash: hash(3)?.unwrap_or_default() };
        let known = known.position == 0 || hash(4)? == Some(known.hash);
        let may_append: Option<bool> = row.try_get(5).map_err(bad)?;
        Ok(Look {
            standby: row.try_get(1).map_err(bad)?,
            head,
            known,
            may_append: may_append.unwrap_or(false),
        })
    }
}

/// What is said when a connection turns out not to be ours alone.
pub(super) const POOLED: &str = "statements of one connection come to different backends: a pooler in transaction or statement \
     mode is in between, and the log needs connections of its own";

async fn backend(client: &Client) -> Result<i32, Error> {
    let answers = client.simple_query("SELECT pg_backend_pid()").await?;
    let pid = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(pid.unwrap_or(0))
}

/// Whether two connections are two sessions. Behind a pooler that lends a backend for a transaction only, statements that
/// take turns are served by the same one, or one connection's by several.
pub(super) async fn is_pooled(target: &Target) -> Result<bool, Trouble> {
    let (one, other) =
        tokio::try_join!(Session::connect(target, "check", None), Session::connect(target, "check", None))?;
    for _ in 0..TURNS {
        let (first, second) = (backend(&one.client).await?, backend(&other.client).await?);
        if first != one.pid || second != other.pid || first == second {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn drive<S, T>(mut connection: Connection<S, T>, bell: Option<Arc<Bell>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(note))) => {
                if let Some(bell) = &bell
                    && !bell.own.lock().contains(&note.process_id())
                {
                    bell.rung.notify_one();
                }
            }
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::debug!(notice = notice.message(), "the server remarks");
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = told(&error), "a connection to the server ended");
                break;
            }
            None => break,
        }
    }
    // Whoever waits for notifications has to learn that none will come.
    if let Some(bell) = bell {
        bell.rung.notify_one();
    }
}
