//! Who may do **what**: roles that only read, roles that only call, a pooler in between, and that nobody changes what is
//! written.

use std::time::Duration;

use beampipe_log::contract::{append_at_end, follow_through, redaction_of, sample};
use beampipe_log::postgres::OpenError;
use beampipe_log::{AppendError, Expected, Filter, Log, PostgresLog, PostgresOptions};

use super::SOON;
use super::postgres_server::{Scratch, within};

#[tokio::test]
async fn a_role_that_may_read_and_not_append_is_said_for_as_long_as_it_is_so() {
    let scratch = Scratch::new();
    scratch.open().await.close().await;
    let administrator = scratch.connect().await;
    let schema = scratch.url().rsplit_once("schema=").unwrap().1.to_owned();
    let role = format!("reader_{schema}");
    administrator
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
             REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC"
        ))
        .await
        .unwrap();
    let url = scratch.url().replace("//beampipe@", &format!("//{role}@"));
    let log = PostgresLog::open(&url, PostgresOptions::default()).await.unwrap();
    let refused = || log.health().append_refused.is_some_and(|why| why.contains("EXECUTE"));
    within(SOON, "it is said", async || refused()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(refused());
    administrator
        .batch_execute(&format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}"))
        .await
        .unwrap();
    // What was said last is good for a while.
    within(Duration::from_secs(20), "it is taken back", async || !refused()).await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    log.close().await;
    administrator.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_or_deletes_what_is_in_the_log() {
    let scratch = Scratch::new();
    let log = scratch.open().await;
    let secret = sample("a secret");
    append_at_end(&log, "s-1", vec![sample("a"), secret.clone(), sample("c")]).await;
    log.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    // Even for a superuser who does not say that triggers are not to fire.
    let administrator = scratch.connect().await;
    for refused in [
        "DELETE FROM events WHERE position = 3",
        "TRUNCATE events CASCADE",
        "UPDATE events SET data = 'x' WHERE position = 1",
        "UPDATE events SET salt = NULL, data = NULL WHERE position = 1",
        "UPDATE events SET position = 9 WHERE position = 4",
        "UPDATE events SET recorded_at = 0",
        "UPDATE events SET stream = 's-2' WHERE position = 2",
        "UPDATE tags SET position = 3",
        "DELETE FROM tags",
        "TRUNCATE tags",
        "UPDATE words SET word = 'x' WHERE id = 1",
        "DELETE FROM words",
        "DELETE FROM redactions",
        "UPDATE redactions SET record = 1",
        "TRUNCATE redactions",
        "INSERT INTO redactions SELECT 1, id, 4 FROM events WHERE position = 1",
        "INSERT INTO redactions SELECT 1, id, 3 FROM events WHERE position = 1",
        "INSERT INTO events SELECT 9, recorded_at, 9, category, id, correlation, stream, hash, seal, leaf, salt, data
         FROM events WHERE position = 1",
        "INSERT INTO events SELECT 0, recorded_at, 9, category, id, correlation, stream, hash, seal, leaf, salt, data
         FROM events WHERE position = 1",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT take_turn(); COMMIT",
    ] {
        let error = administrator.batch_execute(refused).await.expect_err(refused);
        let said = error.as_db_error().expect(refused);
        assert!(["23001", "25001"].contains(&said.code().code()), "{refused}: {said}");
        let _no_transaction = administrator.batch_execute("ROLLBACK").await;
    }
    let report = log.verify(&mut |_| {}).await.unwrap();
    assert_eq!((report.events, report.redacted, &report.faults[..]), (4, 1, &[][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_write_the_tables_runs_the_log() {
    let scratch = Scratch::new();
    drop(scratch.open().await);
    let (administrator, schema) = (scratch.connect().await, &scratch.schema);
    let role = format!("service_{schema}");
    administrator
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN;
             GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};"
        ))
        .await
        .unwrap();
    let url = scratch.url().replace("//beampipe@", &format!("//{role}@"));
    let log = PostgresLog::open(&url, PostgresOptions::default()).await.unwrap();
    let secret = sample("a secret");
    append_at_end(&log, "s-1", vec![secret.clone(), sample("b")]).await;
    log.redact(secret.id, redaction_of(secret.id)).await.unwrap();
    log.beat("me", serde_json::json!({})).await;
    assert_eq!((log.head().position, log.beats().await.unwrap().len()), (3, 1));
    let (client, connection) = tokio_postgres::connect(
        &scratch.server.replace("//beampipe@", &format!("//{role}@")),
        tokio_postgres::NoTls,
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    for table in ["events", "tags", "words", "redactions", "beats", "migrations"] {
        for denied in [format!("DELETE FROM {schema}.{table}"), format!("TRUNCATE {schema}.{table}")] {
            let said = client.batch_execute(&denied).await.expect_err(&denied).code().cloned();
            assert_eq!(said, Some(tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE), "{denied}");
        }
    }
    log.close().await;
    administrator.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "tests say where their servers are")]
async fn a_pooler_that_lends_connections_by_transaction_is_refused_and_one_by_session_is_not() {
    let pooler = std::env::var("BEAMPIPE_TEST_POOLER_URL").expect(
        "BEAMPIPE_TEST_POOLER_URL says where pgbouncer is: tests/realparts/up.sh DIR postgres && . DIR/env",
    );
    let scratch = Scratch::new();
    let url = |mode: &str| format!("{pooler}/{mode}?schema={}", scratch.schema);
    for _ in 0..5 {
        match PostgresLog::open(&url("transaction"), PostgresOptions::default()).await {
            Err(error @ OpenError::Pooled { .. }) => assert!(error.to_string().contains("pooler"), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    let log = PostgresLog::open(&url("session"), PostgresOptions::default()).await.unwrap();
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_while_others_write_and_not_written() {
    let scratch = Scratch::new();
    let missing = PostgresLog::open_read_only(&scratch.url(), PostgresOptions::default()).await;
    assert!(matches!(missing, Err(OpenError::NotALog { .. })), "{missing:?}");
    let log = scratch.open().await;
    append_at_end(&log, "s-1", vec![sample("a")]).await;
    let reading = PostgresLog::open_read_only(&scratch.url(), PostgresOptions::default()).await.unwrap();
    let mut follower = reading.subscribe(Filter::All, 0);
    let appended = append_at_end(&log, "s-1", vec![sample("b")]).await;
    assert_eq!(follow_through(&mut follower, appended.position, 10).await.len(), 2);
    let refused = reading.append("s-2", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(why)) if why.contains("reading only")));
}
