//! What the REST adapters share: one HTTP client that never repeats a request, bounded answers, and the sorting of
//! failures into *surely not sent*, *may have arrived* and *answered*.

use super::{Cause, LookError, Step, SubmitError};
use reqwest::{Client, RequestBuilder};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An error page is read this far.
pub(super) const EXCERPT: usize = 2_000;

/// Builds the client for translators and managers.
///
/// It repeats nothing, keeps no connection (the translator closes one after an error, and a request that meets the
/// closing would be lost in a way that proves nothing), follows no redirect (a redirected submit would be a second one) and reads no proxy from the
/// environment. A process-wide rustls provider must have been installed before.
pub fn client(verify_tls: bool) -> Result<Client, reqwest::Error> {
    Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .tls_danger_accept_invalid_certs(!verify_tls)
        .pool_max_idle_per_host(0)
        .build()
}

/// An answer that came whole.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The beginning of the body as plain text, for people.
    pub fn excerpt(&self) -> String {
        let text = super::evidence::plain_text(&String::from_utf8_lossy(&self.body));
        super::evidence::shorten(text.trim(), EXCERPT)
    }
}

/// Why no whole answer came.
pub(super) enum Fault {
    /// No connection was made: the request cannot have arrived.
    NotSent(reqwest::Error),
    Timeout(Duration),
    /// The connection broke after the request may have left.
    Lost(reqwest::Error),
    TooLarge(usize),
}

impl Fault {
    pub fn detail(&self) -> String {
        match self {
            Fault::NotSent(error) | Fault::Lost(error) => chain(error),
            Fault::Timeout(after) => format!("no answer within {} s", after.as_secs_f32()),
            Fault::TooLarge(limit) => format!("the answer is larger than {limit} bytes"),
        }
    }

    fn cause(self) -> Option<Cause> {
        match self {
            Fault::NotSent(error) | Fault::Lost(error) => Some(Box::new(error)),
            Fault::Timeout(_) | Fault::TooLarge(_) => None,
        }
    }

    pub fn of_submit(self, step: Step) -> SubmitError {
        let detail = self.detail();
        match self {
            Fault::NotSent(_) => SubmitError::NotSent { step, detail, cause: self.cause() },
            _ => SubmitError::Unknown { step, detail, cause: self.cause() },
        }
    }

    pub fn of_look(self, peer: &str) -> LookError {
        let (peer, detail) = (peer.to_owned(), self.detail());
        match self {
            Fault::Timeout(after) => LookError::Timeout { peer, seconds: after.as_secs() },
            Fault::TooLarge(_) => LookError::Malformed { peer, detail },
            Fault::NotSent(_) | Fault::Lost(_) => {
                LookError::Unreachable { peer, detail, cause: self.cause() }
            }
        }
    }
}

/// Sends once and reads the whole answer, up to `limit` bytes, within `timeout`.
pub(super) async fn exchange(
    request: RequestBuilder,
    timeout: Duration,
    limit: usize,
) -> Result<Answer, Fault> {
    let sort = |error: reqwest::Error| match () {
        // A connect timeout is both; nothing has left before a connection stands.
        _ if error.is_connect() || error.is_builder() => Fault::NotSent(error),
        _ if error.is_timeout() => Fault::Timeout(timeout),
        _ => Fault::Lost(error),
    };
    let mut response = request.timeout(timeout).send().await.map_err(sort)?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(sort)? {
        if body.len() + chunk.len() > limit {
            return Err(Fault::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body })
}

/// An error and its causes on one line; reqwest's own text leaves out the cause.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
