//! The follower of an event stream against a server that breaks off at every place: nothing is missed, nothing repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use beampipe::cli::client::Client;
use beampipe::cli::tail::{Next, Tail};

const EVENTS: u64 = 25;

fn frame(position: u64) -> String {
    let stream = "execution-0195e3a0-0000-7000-8000-0000000000ab";
    let event_type = if position == EVENTS { "execution.completed" } else { "execution.observed" };
    let hash = format!("{position:08x}ffffffff");
    format!(
        "id: {position}-{position:08x}\ndata: {{\"position\":{position},\"stream\":\"{stream}\",\"event_type\":\"{event_type}\",\
         \"occurred_at\":\"2026-03-01T12:00:00Z\",\"payload\":{{}},\"hash\":\"{hash}\"}}\n\n"
    )
}

/// Serves the events after `Last-Event-ID`, and cuts every answer `cut` bytes longer than the one before.
async fn serve(cut: usize) -> (String, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let answer = move |headers: HeaderMap| async move {
        let n = counted.fetch_add(1, Ordering::Relaxed);
        if n % 4 == 2 {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let after = headers.get("last-event-id").map_or(0, |id| {
            let (position, leaf) = id.to_str().unwrap().split_once('-').unwrap();
            assert_eq!(u64::from_str_radix(leaf, 16).unwrap(), position.parse::<u64>().unwrap());
            position.parse().unwrap()
        });
        let mut body = ": beat\n\n".to_owned();
        // A server that says the last event again: it must not be told twice.
        for position in after.max(1)..=EVENTS {
            body.push_str(&frame(position));
        }
        let whole = body.len();
        body.truncate((cut * (n + 1)).min(whole));
        ([("content-type", "text/event-stream")], body).into_response()
    };
    let app = Router::new().route("/api/v2/executions/x/events", get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, connections)
}

#[tokio::test]
async fn a_stream_that_breaks_off_anywhere_is_told_whole_and_once() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for cut in [137, 611, 1500] {
        let (url, connections) = serve(cut).await;
        let client = Client::new(&url, None).unwrap();
        let query = vec![("until_terminal".to_owned(), "true".to_owned())];
        let mut tail = Tail::new(client, "/executions/x/events".into(), query, None);
        let mut positions = vec![];
        loop {
            match tail.next().await.unwrap() {
                Next::Event(event) => positions.push(event.position),
                Next::Broken(_) | Next::CaughtUp => {}
                Next::Ended => break,
            }
        }
        assert_eq!(positions, (1..=EVENTS).collect::<Vec<_>>(), "cut {cut}");
        assert!(connections.load(Ordering::Relaxed) > 2, "it did break off");
    }
}

#[tokio::test]
async fn a_history_that_is_not_the_one_seen_before_ends_the_follower() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let gone = || async { (StatusCode::GONE, r#"{"title":"the log behind the event id has changed"}"#) };
    let app = Router::new().route("/api/v2/events", get(gone));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut tail =
        Tail::new(Client::new(&url, None).unwrap(), "/events".into(), vec![], Some("7-00000007".into()));
    let error = tail.next().await.unwrap_err();
    assert!(error.to_string().contains("has changed"), "{error}");
}
