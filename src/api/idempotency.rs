//! Idempotency keys: the same request again gets the first answer.
//!
//! A key belongs to its caller and path. The answers of this process are remembered, the latest some thousands of them;
//! what outlives that is in the log, because ids of what a key creates are made from the key. A refusal is not remembered:
//! the same key may be used again once the request is right.

use std::num::NonZeroUsize;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use beampipe_domain::id;
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::extract::receive;
use super::problem::Problem;

const REMEMBERED: usize = 4096;
/// Larger answers are not remembered; no route with a POST gives one.
const LARGEST: usize = 256 * 1024;

pub const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is a remembered one.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A key as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Key(pub String);

impl Key {
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let text = value.to_str().ok().filter(|text| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| (0x21..=0x7e).contains(&b))
        });
        text.map(|text| Some(Self(text.to_owned()))).ok_or_else(|| {
            Problem::field(
                "bad-header",
                "Idempotency-Key",
                "cannot be used",
                "1 to 128 visible ASCII characters",
            )
        })
    }
}

struct Answer {
    request: [u8; 32],
    status: StatusCode,
    content_type: Option<HeaderValue>,
    body: Bytes,
}

type Seat = Arc<tokio::sync::Mutex<Option<Answer>>>;

/// The answers that were given under a key.
pub struct Answers(Mutex<LruCache<Uuid, Seat>>);

impl Default for Answers {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(REMEMBERED).expect("it is not zero"))))
    }
}

impl Answers {
    /// Forgets every answer, as a restart does.
    pub fn forget(&self) {
        self.0.lock().clear();
    }

    /// Lets a request through, or answers it with what the same request was answered before.
    pub async fn pass(
        &self,
        key: &Key,
        actor: &str,
        limit: usize,
        request: Request,
        next: Next,
    ) -> Result<Response, Problem> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let (parts, body) = request.into_parts();
        let mut bare = Request::new(body);
        *bare.headers_mut() = parts.headers.clone();
        let body = receive(bare, limit).await?;
        let digest: [u8; 32] = Sha256::digest(&body).into();
        let seat = {
            let mut seats = self.0.lock();
            seats.get_or_insert(id::requested(&path, actor, &key.0), Seat::default).clone()
        };
        // Two at once: the second waits for the first one's answer.
        let mut seat = seat.lock().await;
        if let Some(answer) = seat.as_ref() {
            return answer.again(digest);
        }
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        if !response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, LARGEST)
            .await
            .map_err(|error| Problem::internal(format!("an answer could not be kept: {error}")))?;
        *seat = Some(Answer {
            request: digest,
            status: parts.status,
            content_type: parts.headers.get(header::CONTENT_TYPE).cloned(),
            body: body.clone(),
        });
        Ok(Response::from_parts(parts, Body::from(body)))
    }
}

/// The problem of a key that was used for something else.
pub fn conflict() -> Problem {
    Problem::new(
        "idempotency-conflict",
        "this Idempotency-Key was used with another body; use a new key for a new request",
    )
}

impl Answer {
    fn again(&self, request: [u8; 32]) -> Result<Response, Problem> {
        if self.request != request {
            return Err(conflict());
        }
        let status = if self.status == StatusCode::CREATED { StatusCode::OK } else { self.status };
        let mut response = (status, self.body.clone()).into_response();
        if let Some(content_type) = &self.content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
        }
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        Ok(response)
    }
}
