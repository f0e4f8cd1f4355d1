//! A TAP service that answers as it is told: for faults a real one cannot be made to have.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use beampipe::archives::tap::{Limits, TapClient};

/// One answer of the script.
#[derive(Clone)]
pub enum Say {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Says nothing for so long.
    Hang(Duration),
    /// Begins a body that never ends.
    Endless,
}

pub fn say(status: u16, content_type: &'static str, body: impl Into<String>) -> Say {
    Say::Answer { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
}

/// What is left to say, and what was asked.
#[derive(Default)]
struct Script {
    answers: VecDeque<Say>,
    asked: Vec<String>,
}

/// The running service. Requests beyond the script are answered 410.
pub struct FakeTap {
    script: Arc<Mutex<Script>>,
    pub url: url::Url,
    server: tokio::task::JoinHandle<()>,
}

impl FakeTap {
    pub async fn start(answers: impl IntoIterator<Item = Say>) -> Self {
        let script =
            Arc::new(Mutex::new(Script { answers: answers.into_iter().collect(), asked: Vec::new() }));
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/tap", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { script, url, server }
    }

    /// `METHOD path body` of each request so far.
    pub fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    pub fn client(&self, limits: Limits) -> TapClient {
        TapClient::new(http(), self.url.clone(), limits)
    }
}

impl Drop for FakeTap {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let next = {
        let mut script = script.lock().unwrap();
        let asked = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
        script.asked.push(asked.trim().to_owned());
        script.answers.pop_front()
    };
    match next.unwrap_or_else(|| say(410, "text/plain", "the script is over")) {
        Say::Answer { status, headers, body } => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
            }
            response
        }
        Say::Hang(time) => {
            tokio::time::sleep(time).await;
            Response::new(Body::empty())
        }
        Say::Endless => {
            // Slow enough that a client without a limit does not fill the memory before its time is up.
            let chunks = futures::stream::unfold((), async |()| {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Ok::<_, std::io::Error>(vec![b'x'; 64 * 1024]), ()))
            });
            let mut response = Response::new(Body::from_stream(chunks));
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/xml"));
            response
        }
    }
}

/// An HTTP client as the service makes it: one TLS provider, time limits of its own.
pub fn http() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another test of this process may have been first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().unwrap()
}

/// Limits for tests: no pause between requests, and time enough on a busy machine.
pub fn limits() -> Limits {
    Limits { timeout: Duration::from_secs(10), retries: 0, pacing: Duration::ZERO, ..Limits::default() }
}
