//! The TAP client against a real service: DaCHS with the sample rows.

use std::time::Duration;

use beampipe::archives::tap::adql::{Template, Variables};
use beampipe::archives::tap::{Limits, TapClient, TapError};
use serde_json::{Value, json};

use super::fake_tap::http;

/// The address of the real service, which must be there.
pub fn service() -> url::Url {
    #[expect(clippy::disallowed_methods, reason = "tests take their servers and tools from the environment")]
    let url = std::env::var("BEAMPIPE_TEST_TAP_URL");
    let url = url.expect(
        "BEAMPIPE_TEST_TAP_URL is not set: `make test` or `tests/realparts/up.sh` brings the service",
    );
    url.parse().expect("BEAMPIPE_TEST_TAP_URL is not an address")
}

fn client() -> TapClient {
    TapClient::new(http(), service(), Limits::default())
}

const NEWEST: &str = "SELECT o.filename, o.t_max FROM ivoa.obscore o INNER JOIN (SELECT MAX(t_max) AS mx FROM ivoa.obscore
    WHERE filename LIKE 'HIPASSJ1318-21%') AS latest ON o.t_max = latest.mx WHERE o.filename LIKE 'HIPASSJ1318-21%'
    ORDER BY o.filename";

#[tokio::test]
async fn the_newest_visibilities_of_a_source_come_synchronously_and_as_a_job() {
    let expected = json!([
        ["HIPASSJ1318-21_A_beam16_10arc_split.ms.tar", 59612.5],
        ["HIPASSJ1318-21_C_beam10_10arc_split.ms.tar", 59612.5],
        ["HIPASSJ1318-21_D_beam11_10arc_split.ms.tar", 59612.5],
    ]);
    assert_eq!(json!(client().query_sync(NEWEST).await.unwrap().rows), expected);
    assert_eq!(json!(client().query_async(NEWEST).await.unwrap().rows), expected);
}

#[tokio::test]
async fn a_name_with_an_apostrophe_and_a_letter_beyond_ascii_is_found() {
    let template = Template::parse("SELECT obs_id FROM ivoa.obscore WHERE target_name = '{name}'").unwrap();
    let variables = Variables::from([("name".to_owned(), "O'Neil's field é".to_owned())]);
    let table = client().query_sync(&template.render(&variables).unwrap()).await.unwrap();
    assert_eq!(json!(table.rows), json!([["ASKAP-34275"]]));
}

#[tokio::test]
async fn no_rows_are_an_empty_table_and_null_is_null() {
    let table = client().query_sync("SELECT obs_id FROM ivoa.obscore WHERE obs_id = 'none'").await.unwrap();
    assert_eq!((table.columns.len(), table.rows.len()), (1, 0));
    let table = client()
        .query_sync("SELECT RVmom, HIPASS FROM \"VIII/73/hicat\" WHERE HIPASS = 'J1321-19'")
        .await
        .unwrap();
    assert_eq!(table.value(0, "rvmom"), Some(&Value::Null));
    let table = client()
        .query_sync("SELECT obs_release_date FROM ivoa.obscore WHERE filename LIKE 'HIPASSJ1250-20%'")
        .await
        .unwrap();
    assert_eq!(json!(table.rows), json!([[null]]));
}

#[tokio::test]
async fn a_mistake_in_a_query_is_an_error_also_where_the_service_says_200() {
    for (query, why) in [
        ("SELEC obs_id FROM ivoa.obscore", "Could not parse your query"),
        ("SELECT nosuch FROM ivoa.obscore", "No such field known"),
        ("SELECT a FROM nosuch.t", "Could not locate table"),
        ("SELECT sbid FROM casda.observation_evaluation_file WHERE sbid = 34275", ""),
    ] {
        for error in
            [client().query_sync(query).await.unwrap_err(), client().query_async(query).await.unwrap_err()]
        {
            assert!(
                matches!(&error, TapError::Query { message } if message.contains(why)),
                "{query}: {error}"
            );
            assert_eq!((error.failure_class(), error.may_be_retried()), ("validation", false));
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_cut_is_never_taken_for_the_whole() {
    let client = TapClient::new(http(), service(), Limits { maxrec: 2, ..Limits::default() });
    for error in [client.query_sync(NEWEST).await.unwrap_err(), client.query_async(NEWEST).await.unwrap_err()]
    {
        assert!(matches!(error, TapError::Overflow { rows: 2 }), "{error}");
    }
    let all = TapClient::new(http(), service(), Limits { maxrec: 3, ..Limits::default() });
    assert_eq!(all.query_sync(NEWEST).await.unwrap().rows.len(), 3);
}

#[tokio::test]
async fn the_probe_measures_a_service_that_is_there() {
    let latency = client().probe().await.unwrap();
    assert!(latency.total() > Duration::ZERO && latency.total() < Duration::from_secs(30));
    let mut elsewhere = service();
    elsewhere.set_path("/nothing");
    let error = TapClient::new(http(), elsewhere, Limits::default()).probe().await.unwrap_err();
    assert!(!matches!(error, TapError::Timeout { .. }), "{error}");
}
