//! Reads what is left of a request's body before its answer goes out.
//!
//! An answer that does not need the body (too large, not allowed, not found) is ready while the client still sends. If the
//! connection closed then, with bytes unread, the kernel would reset it and most clients would report a broken pipe
//! instead of the answer (RFC 9112 §9.6). So the rest is read and thrown away, within bounds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures::stream::{Stream, StreamExt, poll_fn};
use parking_lot::Mutex;

/// What is thrown away at most, in bytes; a client that sends more hears of a reset.
const MOST: usize = 64 * 1024 * 1024;
/// How long a client is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A body that a handler and [`rest`] share.
struct Shared {
    stream: BodyDataStream,
    /// Whether anybody asked for any of it.
    begun: bool,
    ended: bool,
}

impl Shared {
    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.begun = true;
        let polled = Pin::new(&mut self.stream).poll_next(context);
        self.ended = matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}

/// Lets the request through, and reads what nobody read of it.
pub async fn rest(request: Request, next: Next) -> Response {
    let headers = request.headers();
    if !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING) {
        return next.run(request).await;
    }
    // Reading would tell such a client to send what nobody wants.
    let waits_for_go_ahead = headers.contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let shared = Arc::new(Mutex::new(Shared { stream: body.into_data_stream(), begun: false, ended: false }));
    let lent = Arc::clone(&shared);
    let body = Body::from_stream(poll_fn(move |context| lent.lock().poll(context)));
    let response = next.run(Request::from_parts(parts, body)).await;
    let (begun, ended) = {
        let shared = shared.lock();
        (shared.begun, shared.ended)
    };
    if ended || (waits_for_go_ahead && !begun) {
        return response;
    }
    let mut left = MOST;
    let mut stream = poll_fn(|context| shared.lock().poll(context));
    let drained = async {
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, drained).await.is_err() {
        tracing::debug!("a client was answered before it had sent all of its body");
    }
    response
}
