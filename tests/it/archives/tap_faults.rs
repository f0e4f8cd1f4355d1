//! What the TAP client makes of a service that fails, hangs, lies or takes its time.

use std::time::{Duration, Instant};

use beampipe::archives::tap::{Limits, TapClient, TapError};
use serde_json::json;

use super::fake_tap::{FakeTap, Say, http, limits, say};

const TABLE: &str = "<VOTABLE><RESOURCE type='results'><INFO name='QUERY_STATUS' value='OK'/><TABLE>
    <FIELD name='a' datatype='int'/><DATA><TABLEDATA><TR><TD>7</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>";
const ERROR: &str =
    "<VOTABLE><RESOURCE type='results'><INFO name='QUERY_STATUS' value='ERROR'>no such table</INFO>
    </RESOURCE></VOTABLE>";

fn table() -> Say {
    say(200, "application/x-votable+xml", TABLE)
}

fn to(status: u16, location: &str) -> Say {
    Say::Answer { status, headers: vec![("location", location.to_owned())], body: String::new() }
}

#[tokio::test]
async fn a_failing_service_is_asked_again_and_a_bad_query_is_not() {
    let service =
        FakeTap::start([say(503, "text/plain", "busy"), say(500, "text/html", "<p>"), table()]).await;
    let client = service.client(Limits { retries: 2, ..limits() });
    assert_eq!(client.query_sync("SELECT a FROM t").await.unwrap().rows, [[json!(7)]]);
    assert_eq!(service.asked().len(), 3);

    let service = FakeTap::start([say(503, "text/plain", "busy"), say(503, "text/plain", "busy")]).await;
    let client = service.client(Limits { retries: 1, ..limits() });
    let error = client.query_sync("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(error, TapError::Refused { status: 503, .. }), "{error}");
    assert_eq!(service.asked().len(), 2);

    let service = FakeTap::start([say(400, "text/xml", ERROR), table()]).await;
    let client = service.client(Limits { retries: 2, ..limits() });
    let error = client.query_sync("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(&error, TapError::Query { message } if message == "no such table"), "{error}");
    assert_eq!(service.asked().len(), 1);
}

#[tokio::test]
async fn a_hanging_service_times_out_whatever_it_has_begun() {
    for answer in [Say::Hang(Duration::from_secs(60)), Say::Endless] {
        let service = FakeTap::start([answer]).await;
        let client = service.client(Limits {
            timeout: Duration::from_millis(500),
            max_bytes: usize::MAX / 2,
            ..limits()
        });
        let started = Instant::now();
        let error = client.query_sync("SELECT a FROM t").await.unwrap_err();
        assert!(matches!(error, TapError::Timeout { .. }), "{error}");
        assert_eq!((error.failure_class(), error.may_be_retried()), ("timeout", true));
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let service = FakeTap::start([Say::Endless]).await;
    let client = service.client(Limits { max_bytes: 1 << 20, timeout: Duration::from_secs(10), ..limits() });
    let error = client.query_sync("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(error, TapError::TooLarge { limit: 1_048_576 }), "{error}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/tap", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let client = TapClient::new(http(), url, Limits { retries: 1, ..limits() });
    let error = client.query_sync("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(error, TapError::Unreachable { .. }), "{error}");
    assert_eq!(error.failure_class(), "connectivity");
    assert!(client.probe().await.is_err());
}

#[tokio::test]
async fn the_query_is_sent_as_a_form_with_its_limits() {
    let service = FakeTap::start([table()]).await;
    service.client(Limits { maxrec: 12, ..limits() }).query_sync("SELECT 'é&'").await.unwrap();
    let asked = service.asked().remove(0);
    assert!(asked.starts_with("POST /tap/sync "), "{asked}");
    for part in [
        "LANG=ADQL",
        "REQUEST=doQuery",
        "RESPONSEFORMAT=votable",
        "MAXREC=13",
        "QUERY=SELECT+%27%C3%A9%26%27",
    ] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
}

#[tokio::test]
async fn requests_keep_their_distance_over_all_clones() {
    let service = FakeTap::start([table(), table(), table()]).await;
    let client = service.client(Limits { pacing: Duration::from_millis(150), ..limits() });
    let started = Instant::now();
    let other = client.clone();
    let answers = tokio::join!(
        client.query_sync("SELECT 1"),
        other.query_sync("SELECT 1"),
        other.query_sync("SELECT 1")
    );
    assert!(answers.0.is_ok() && answers.1.is_ok() && answers.2.is_ok());
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_job_is_followed_through_every_phase_and_removed() {
    let phase = |word: &str| say(200, "text/plain", word);
    let service = FakeTap::start([
        to(303, "/tap/async/j1"),
        say(200, "text/xml", "<job/>"),
        say(200, "text/plain", ""),
        phase("PENDING"),
        say(200, "text/plain", ""),
        phase("QUEUED"),
        phase("SUSPENDED"),
        phase("UNKNOWN"),
        phase("MIGRATING"),
        phase("EXECUTING"),
        phase("COMPLETED"),
        say(
            200,
            "text/xml",
            "<u:job xmlns:u='u' xmlns:x='x'><u:phase>COMPLETED</u:phase><u:results>
             <u:result id='result' x:href='results/result'/></u:results></u:job>",
        ),
        table(),
        say(200, "text/plain", ""),
    ])
    .await;
    let client = service.client(Limits { timeout: Duration::from_secs(5), ..limits() });
    assert_eq!(client.query_async("SELECT a FROM t").await.unwrap().rows, [[json!(7)]]);
    let asked = service.asked();
    let lines: Vec<&str> = asked.iter().map(|line| line.split(" LANG").next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "POST /tap/async",
            "GET /tap/async/j1",
            "POST /tap/async/j1/phase PHASE=RUN",
            "GET /tap/async/j1/phase",
            "POST /tap/async/j1/phase PHASE=RUN",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1/phase",
            "GET /tap/async/j1",
            "GET /tap/async/j1/results/result",
            "DELETE /tap/async/j1",
        ]
    );
}

#[tokio::test]
async fn a_job_that_ends_badly_says_how_and_is_removed() {
    let begin = || [to(303, "/tap/async/j1"), say(200, "text/xml", "<job/>"), say(200, "text/plain", "")];
    let document =
        "<job><phase>ERROR</phase><errorSummary><message>no such table</message></errorSummary></job>";
    for (after, expected) in [
        (vec![say(200, "text/plain", "ABORTED")], "the job ended as ABORTED"),
        (vec![say(200, "text/plain", "ARCHIVED")], "the job ended as ARCHIVED"),
        (
            vec![say(200, "text/plain", "ERROR"), say(200, "text/xml", document)],
            "the query was refused: no such table",
        ),
        (
            vec![
                say(200, "text/plain", "ERROR"),
                say(200, "text/xml", "<job/>"),
                say(200, "text/xml", ERROR),
            ],
            "the query was refused: no such table",
        ),
    ] {
        let script = begin().into_iter().chain(after).chain([say(200, "text/plain", "")]);
        let service = FakeTap::start(script).await;
        let error = service.client(limits()).query_async("SELECT a FROM t").await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(service.asked().last().unwrap(), "DELETE /tap/async/j1");
    }
}

#[tokio::test]
async fn a_job_that_never_ends_meets_the_deadline_and_is_removed() {
    let begin = [to(303, "/tap/async/j1"), say(200, "text/xml", "<job/>"), say(200, "text/plain", "")];
    let wait = std::iter::repeat_n(say(200, "text/plain", "EXECUTING"), 50);
    let service = FakeTap::start(begin.into_iter().chain(wait)).await;
    let client = service.client(Limits { job_deadline: Duration::from_secs(3), ..limits() });
    let error = client.query_async("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(error, TapError::Timeout { .. }), "{error}");
    for _ in 0..250 {
        if service.asked().last().is_some_and(|last| last.starts_with("DELETE /tap/async/j1")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the job was left behind: {:?}", service.asked());
}

#[tokio::test]
async fn a_job_at_another_host_is_not_followed() {
    let service = FakeTap::start([to(303, "http://localhost:1/j1")]).await;
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    super::fake_tap::http();
    let client = TapClient::new(http.build().unwrap(), service.url.clone(), limits());
    let error = client.query_async("SELECT a FROM t").await.unwrap_err();
    assert!(matches!(error, TapError::Malformed { .. }), "{error}");
    assert_eq!(service.asked().len(), 1);
}

#[tokio::test]
async fn a_query_refused_before_there_is_a_job_is_refused() {
    let service = FakeTap::start([say(200, "text/xml", ERROR)]).await;
    let error = service.client(limits()).query_async("SELEC").await.unwrap_err();
    assert!(matches!(error, TapError::Query { .. }), "{error}");
}

#[tokio::test]
async fn a_probe_believes_neither_a_page_nor_a_half_answer() {
    let available = || say(200, "text/xml", "<a><available>true</available></a>");
    let capable = || say(200, "text/xml", "<c><capability standardID='ivo://ivoa.net/std/TAP'/></c>");
    let probe = async |answers: Vec<Say>| {
        let service = FakeTap::start(answers).await;
        service.client(Limits { timeout: Duration::from_secs(2), ..limits() }).probe().await
    };
    assert!(probe(vec![available(), capable()]).await.is_ok());
    assert!(probe(vec![say(404, "text/html", ""), capable()]).await.is_ok());
    for (answers, class) in [
        (
            vec![say(200, "text/xml", "<a><available>false</available><note>down</note></a>")],
            "dependency_unavailable",
        ),
        (vec![say(200, "text/html", "<html>welcome</html>"), capable()], "unsupported"),
        (vec![available(), say(200, "text/html", "<html>welcome</html>")], "unsupported"),
        (vec![available(), say(500, "text/html", "")], "dependency_unavailable"),
        (vec![say(500, "text/html", "")], "dependency_unavailable"),
        (vec![Say::Hang(Duration::from_secs(60))], "timeout"),
    ] {
        assert_eq!(probe(answers).await.unwrap_err().failure_class(), class);
    }
}
