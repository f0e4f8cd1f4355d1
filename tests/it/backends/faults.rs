//! What a peer may do instead of answering. The peers here are stand-ins: sockets that hang, break off, or answer as
//! a proxy does, which a real DALiuGE cannot be made to do on demand.

use super::daliuge::http;
use beampipe::backends::dim::Dim;
use beampipe::backends::{Backend, LookError, SubmitError};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Reads one request; `None` when the connection has ended.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => text.extend_from_slice(&buffer[..read]),
        }
        let so_far = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = so_far.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return Some(so_far);
            }
        }
    }
}

/// A stand-in that answers the requests it gets, over all connections, one by one with `answers`; to `None`, and when
/// they are used up, it closes the connection. Also says how many requests came.
async fn stand_in(answers: Vec<Option<String>>) -> (Dim, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dim = Dim::new(http(), &format!("http://{}/", listener.local_addr().unwrap()))
        .with_timeouts(Duration::from_secs(2), Duration::from_secs(2));
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            while request(&mut stream).await.is_some() {
                let place = seen.fetch_add(1, Ordering::SeqCst);
                match answers.get(place).cloned().flatten() {
                    Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                    None => break,
                }
            }
        }
    });
    (dim, count)
}

fn answer(status: u16, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

#[tokio::test]
async fn a_peer_that_hangs_leaves_a_step_unknown() {
    // A stand-in: it accepts and never answers.
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dim = Dim::new(http(), &format!("http://{}", hung.local_addr().unwrap()))
        .with_timeouts(Duration::from_millis(300), Duration::from_millis(300));
    for step in [
        dim.create("s").await.map(|_| ()),
        dim.append("s", Bytes::from_static(b"[]")).await,
        dim.deploy("s", &["a".into()]).await,
        dim.cancel("s").await,
    ] {
        let error = step.unwrap_err();
        assert!(matches!(error, SubmitError::Unknown { .. }) && !error.surely_not_done(), "{error}");
    }
    let look = dim.look("s").await.unwrap_err();
    assert!(matches!(look, LookError::Timeout { .. }), "{look}");
}

#[tokio::test]
async fn a_request_that_may_have_arrived_is_never_sent_twice() {
    let (dim, requests) = stand_in(vec![]).await;
    let error = dim.deploy("s", &["a".into()]).await.unwrap_err();
    assert!(matches!(error, SubmitError::Unknown { .. }), "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_kept_connection_that_breaks_off_is_no_reason_to_send_again() {
    let (dim, requests) = stand_in(vec![answer(200, r#"{"sessionId":"s"}"#), None]).await;
    dim.create("s").await.unwrap();
    let error = dim.deploy("s", &["a".into()]).await.unwrap_err();
    assert!(matches!(error, SubmitError::Unknown { .. }), "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_a_step() {
    let moved = "HTTP/1.1 307 x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n".to_owned();
    let (dim, requests) = stand_in(vec![Some(moved), answer(200, "{}")]).await;
    let error = dim.deploy("s", &["a".into()]).await.unwrap_err();
    assert!(matches!(error, SubmitError::Unknown { .. }), "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_stands_between_proves_nothing_and_a_plain_no_does() {
    for (status, proves) in
        [(502, false), (503, false), (504, false), (500, false), (408, false), (403, true), (415, true)]
    {
        let (dim, _) =
            stand_in(vec![answer(status, "<html>no</html>"), answer(status, "<html>no</html>")]).await;
        let error = dim.append("s", Bytes::from_static(b"[]")).await.unwrap_err();
        assert_eq!(error.surely_not_done(), proves, "{status}: {error}");
        // Whatever the number, nobody has said that the session is gone.
        let look = dim.look("s").await.unwrap_err();
        assert!(matches!(look, LookError::Unavailable { .. }), "{status}: {look}");
    }
}

#[tokio::test]
async fn an_answer_cut_short_leaves_the_step_unknown() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Sta".to_owned();
    let (dim, _) = stand_in(vec![Some(cut)]).await;
    let error = dim.append("s", Bytes::from_static(b"[]")).await.unwrap_err();
    assert!(matches!(error, SubmitError::Unknown { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_no_status_is_not_read_as_one() {
    for body in ["", "null", "[]", "<html>welcome</html>", "\"Success\""] {
        let (dim, _) = stand_in(vec![answer(200, body)]).await;
        let look = dim.look("s").await.unwrap_err();
        assert!(matches!(look, LookError::Malformed { .. }), "{body}: {look}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_was_surely_not_asked() {
    let dim = Dim::new(http(), "http://no-such-host.invalid:8001");
    let error = dim.create("s").await.unwrap_err();
    assert!(matches!(error, SubmitError::NotSent { .. }), "{error}");
}
