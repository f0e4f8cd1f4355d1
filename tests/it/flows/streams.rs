//! Event streams as their readers see them: broken off anywhere and resumed they are the page; nobody misses or repeats an
//! event; an open stream ends with the access of its reader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use beampipe::clock::Clock;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::service::{PROJECT, SOURCES, Service};

const SSE: &str = "text/event-stream";
const NDJSON: &str = "application/x-ndjson";

/// Whoever reads events: a service, and a token.
#[derive(Clone)]
pub struct Reader {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Reader {
    pub fn of(service: &Service, token: &str) -> Self {
        Self { http: crate::backends::daliuge::http(), base: service.url(""), token: token.to_owned() }
    }

    async fn ask(&self, path: &str, accept: &str, after: Option<&str>) -> reqwest::Response {
        let mut request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        request = request.header("accept", accept);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        request.send().await.unwrap()
    }

    async fn open(&self, path: &str, accept: &'static str, after: Option<&str>) -> Stream {
        let response = self.ask(path, accept, after).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], accept);
        Stream { response, text: String::new(), at: 0, accept }
    }

    /// The bytes of a stream until it has caught up.
    pub async fn until_caught_up(&self, path: &str) -> String {
        let mut response = self.ask(path, SSE, None).await;
        let mut text = String::new();
        while !text.contains("\nevent: caught-up") {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        }
        text
    }

    /// The events of a stream that ends.
    pub async fn whole(&self, path: &str) -> Vec<Value> {
        values(&self.read(path, SSE, None, usize::MAX).await)
    }

    /// The first `most` events after `after`, or all until the stream ends.
    async fn read(&self, path: &str, accept: &'static str, after: Option<&str>, most: usize) -> Vec<Sent> {
        let mut stream = self.open(path, accept, after).await;
        let mut seen = vec![];
        while seen.len() < most
            && let Some(sent) = stream.event().await
        {
            seen.push(sent);
        }
        seen
    }
}

/// What came over a stream: an event, or a word of the stream itself.
#[derive(Clone, Debug)]
struct Sent {
    /// What to resume with.
    id: String,
    word: Option<String>,
    data: String,
}

struct Stream {
    response: reqwest::Response,
    text: String,
    /// Where the text that was not looked at begins.
    at: usize,
    accept: &'static str,
}

impl Stream {
    /// The next event; `None` at the end.
    async fn event(&mut self) -> Option<Sent> {
        loop {
            let sent = self.next().await?;
            if sent.word.is_none() {
                return Some(sent);
            }
        }
    }

    /// What comes next, heartbeats left out.
    async fn next(&mut self) -> Option<Sent> {
        let end = if self.accept == SSE { "\n\n" } else { "\n" };
        loop {
            if let Some(length) = self.text[self.at..].find(end) {
                let frame = &self.text[self.at..self.at + length];
                let sent = if self.accept == SSE { frame_of(frame) } else { line_of(frame) };
                self.at += length + end.len();
                if sent.is_some() {
                    return sent;
                }
                continue;
            }
            self.text.drain(..self.at);
            self.at = 0;
            self.text.push_str(std::str::from_utf8(&self.response.chunk().await.unwrap()?).unwrap());
        }
    }
}

fn frame_of(frame: &str) -> Option<Sent> {
    let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let data = field("data: ")?;
    Some(Sent { id: field("id: ").unwrap_or_default(), word: field("event: "), data })
}

fn line_of(line: &str) -> Option<Sent> {
    if line.is_empty() {
        return None;
    }
    let event: Value = serde_json::from_str(line).unwrap();
    let id = format!("{}-{}", event["position"], &event["hash"].as_str().unwrap()[..8]);
    Some(Sent { id, word: None, data: line.to_owned() })
}

fn values(sent: &[Sent]) -> Vec<Value> {
    sent.iter().map(|sent| serde_json::from_str(&sent.data).unwrap()).collect()
}

/// xorshift: a seed repeats the run, nothing more is asked of it.
struct Random(u64);

impl Random {
    /// From the variable `SEED`, or a new one; printed.
    fn seeded() -> Self {
        #[expect(clippy::disallowed_methods, reason = "a seed to repeat a run")]
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(u64::from(std::process::id()) | 1);
        eprintln!("SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn within(&mut self, bounds: std::ops::RangeInclusive<usize>) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        bounds.start() + usize::try_from(self.0 >> 33).unwrap() % (bounds.end() - bounds.start() + 1)
    }
}

/// Executions begin when they are told to.
pub fn by_hand(yaml: String) -> String {
    let (before, after) = yaml.split_once("  execution:\n    enabled: true").unwrap();
    format!("{before}  execution:\n    enabled: false{after}")
}

/// A service whose survey has one source that was discovered; executions of it are simulated and last `run_ms`.
pub async fn discovered(run_ms: u64) -> Service {
    let service = Service::start(&[]).await;
    service.configure(by_hand).await;
    service.simulate(run_ms).await;
    service.register(&SOURCES[..1]).await;
    let begun = Instant::now();
    loop {
        let sources = service.get(&format!("/sources?project_module={PROJECT}")).await;
        if sources[0]["discovery_signature"].is_string() {
            return service;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{sources:#}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An execution of the first source that nothing has happened to.
pub async fn created(service: &Service) -> String {
    let order = json!({
        "project_module": PROJECT, "archive_name": "casda", "deployment_profile_name": "demo",
        "sources": [{"source_identifier": SOURCES[0]}],
    });
    service.post("/executions", order).await["uuid"].as_str().unwrap().to_owned()
}

pub async fn execute(service: &Service, execution: &str) {
    let flags = json!({"do_stage": true, "do_submit": true});
    service.post(&format!("/executions/{execution}/execute"), flags).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_off_anywhere_and_resumed_a_stream_is_the_page_live_and_afterwards() {
    let mut random = Random::seeded();
    let service = discovered(1500).await;
    let execution = created(&service).await;
    let path = format!("/executions/{execution}/events?until_terminal=true");
    let reader = Reader::of(&service, &service.key);

    let two_parts = |k: usize, accept: &'static str| {
        let (reader, mut path) = (reader.clone(), path.clone());
        if accept == NDJSON {
            path += "&follow=true";
        }
        tokio::spawn(async move {
            let mut seen = reader.read(&path, accept, None, k).await;
            assert_eq!(seen.len(), k, "it ended early");
            let last = seen.last().unwrap().id.clone();
            seen.extend(reader.read(&path, accept, Some(&last), usize::MAX).await);
            (k, seen)
        })
    };
    let mut live = vec![];
    for n in 0..50 {
        live.push(two_parts(random.within(1..=10), if n % 5 == 4 { NDJSON } else { SSE }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    execute(&service, &execution).await;
    let mut parts = vec![];
    for reading in live {
        let bound = Duration::from_secs(15);
        parts.push(tokio::time::timeout(bound, reading).await.expect("a stream does not end").unwrap());
    }
    // What its job says afterwards is of the page and not of the stream.
    let whole = service.events(&format!("/executions/{execution}/events")).await;
    let end = whole.iter().position(|event| event["event_type"] == "execution.completed");
    let page = whole[..=end.unwrap_or_else(|| panic!("{whole:#?}"))].to_vec();
    for (k, seen) in parts {
        assert_eq!(values(&seen), page, "live, broken off after {k}");
    }

    // All of it is one of the choices: a reader that comes back after the end is told of the end at once.
    let mut afterwards = vec![two_parts(page.len(), SSE)];
    for _ in 0..49 {
        afterwards.push(two_parts(random.within(1..=page.len()), SSE));
    }
    for reading in afterwards {
        let bound = Duration::from_secs(10);
        let (k, seen) = tokio::time::timeout(bound, reading).await.expect("a stream does not end").unwrap();
        assert_eq!(values(&seen), page, "afterwards, broken off after {k}");
    }
    let lines = reader.read(&format!("/executions/{execution}/events"), NDJSON, None, usize::MAX).await;
    assert_eq!(values(&lines), service.events(&format!("/executions/{execution}/events")).await);
}

/// Follows `path` until it has seen `total` events, and breaks off now and then.
async fn follow(
    reader: Reader,
    path: String,
    accept: &'static str,
    total: usize,
    breaks: Vec<usize>,
) -> Vec<Sent> {
    let mut seen: Vec<Sent> = vec![];
    for most in breaks.into_iter().chain([usize::MAX]) {
        let (after, left) = (seen.last().map(|sent| sent.id.clone()), total - seen.len());
        seen.extend(reader.read(&path, accept, after.as_deref(), most.min(left)).await);
        if seen.len() == total {
            break;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_on_a_source_and_its_project_nobody_misses_or_repeats_an_event() {
    const EVENTS: usize = 1000;
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`")]
    let readers = if std::env::var("BEAMPIPE_TEST_SOAK").is_ok() { 400 } else { 200 };
    let mut random = Random::seeded();
    let service = Arc::new(Service::start(&[]).await);
    service.configure(by_hand).await;
    // Off, so that no discovery comes between and the number of events is known.
    let off = json!({"project_module": PROJECT, "source_identifier": SOURCES[0], "enabled": false});
    let source = service.post("/sources", off).await["uuid"].as_str().unwrap().to_owned();
    let paths = [format!("/sources/{source}/events"), format!("/projects/{PROJECT}/events")];
    let mut before = vec![];
    for path in &paths {
        before.push(service.events(path).await.len());
    }

    let mut followers = vec![];
    for n in 0..readers {
        let which = n % 2;
        let accept = if n % 10 < 8 { SSE } else { NDJSON };
        let path = if accept == SSE { paths[which].clone() } else { format!("{}?follow=true", paths[which]) };
        let breaks = (0..n % 4).map(|_| random.within(1..=EVENTS / 3)).collect();
        let reader = Reader::of(&service, &service.key);
        followers.push((which, tokio::spawn(follow(reader, path, accept, before[which] + EVENTS, breaks))));
    }
    let begun = Instant::now();
    for n in 0..EVENTS {
        let change = json!({"stale_after_hours": n + 1});
        let answer = service.request(Method::PATCH, &format!("/sources/{source}")).json(&change);
        let answer = answer.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
    eprintln!("{EVENTS} events in {:?}", begun.elapsed());
    let mut pages = vec![];
    for path in &paths {
        let reader = Reader::of(&service, &service.key);
        let lines = reader.read(path, NDJSON, None, usize::MAX).await;
        let page = service.get(&format!("{path}?limit=5000&order=asc")).await;
        assert_eq!(&values(&lines), page.as_array().unwrap());
        pages.push(lines);
    }
    for (n, (which, follower)) in followers.into_iter().enumerate() {
        let bound = Duration::from_secs(20);
        let seen = tokio::time::timeout(bound, follower).await.expect("somebody misses an event").unwrap();
        assert_eq!(seen.len(), pages[which].len());
        let same = seen.iter().zip(&pages[which]).all(|(a, b)| a.data == b.data);
        assert!(same, "follower {n} of {} saw something else", paths[which]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_resumed_or_does_not_exist_is_said_and_not_streamed() {
    let service = Service::start(&[]).await;
    service.configure(by_hand).await;
    service.simulate(0).await;
    let off = json!({"project_module": PROJECT, "source_identifier": "A", "enabled": false});
    let source = service.post("/sources", off).await["uuid"].as_str().unwrap().to_owned();
    let path = format!("/sources/{source}/events");
    let reader = Reader::of(&service, &service.key);
    let page = service.events(&path).await;
    let (position, hash) = (page[0]["position"].as_u64().unwrap(), page[0]["hash"].as_str().unwrap());
    let other = if hash.starts_with('0') { "1" } else { "0" };
    for (after, status) in [
        (format!("{position}-{}", &hash[..8]), 200),
        (format!("{position}-{}", hash[..8].to_uppercase()), 200),
        (format!("{position}-{other}{}", &hash[1..8]), 410),
        (format!("{}-{}", position + 1000, &hash[..8]), 410),
        (format!("{position}-{}", &hash[..7]), 400),
        ("yesterday".to_owned(), 400),
    ] {
        for accept in [SSE, NDJSON] {
            let answer = reader.ask(&path, accept, Some(&after)).await;
            assert_eq!(answer.status(), status, "{after} {accept}");
            if status != 200 {
                assert_eq!(answer.headers()["content-type"], "application/problem+json");
            }
        }
        // The query says the same as the header.
        let answer = reader.ask(&format!("{path}?after={after}"), SSE, None).await;
        assert_eq!(answer.status(), status, "?after={after}");
    }

    let nobody = "018f0000-0000-7000-8000-000000000000";
    for unknown in [
        format!("/executions/{nobody}/events"),
        format!("/sources/{nobody}/events"),
        "/projects/none/events".into(),
    ] {
        for accept in [SSE, NDJSON, "application/json"] {
            assert_eq!(reader.ask(&unknown, accept, None).await.status(), 404, "{unknown} {accept}");
        }
    }

    for (accept, answered) in [
        ("", Ok("application/json")),
        ("*/*", Ok("application/json")),
        ("application/json", Ok("application/json")),
        ("text/event-stream", Ok(SSE)),
        ("application/x-ndjson", Ok(NDJSON)),
        ("application/json;q=0.4, application/x-ndjson;q=0.9", Ok(NDJSON)),
        ("text/html, text/event-stream;q=0.1", Ok(SSE)),
        ("application/x-ndjson;q=0, application/json", Ok("application/json")),
        ("text/html", Err(StatusCode::NOT_ACCEPTABLE)),
        ("application/json;q=0", Err(StatusCode::NOT_ACCEPTABLE)),
    ] {
        let answer = reader.ask(&path, accept, None).await;
        match answered {
            Ok(media) => assert_eq!(answer.headers()["content-type"], media, "{accept}"),
            Err(status) => assert_eq!(answer.status(), status, "{accept}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ndjson_ends_at_the_end_and_stays_when_it_is_asked_to() {
    let service = Service::start(&[]).await;
    service.configure(by_hand).await;
    let path = format!("/projects/{PROJECT}/events");
    let reader = Reader::of(&service, &service.key);
    let before = reader.read(&path, NDJSON, None, usize::MAX).await;
    assert_eq!(values(&before), service.events(&path).await);
    let mut staying = reader.open(&format!("{path}?follow=true"), NDJSON, None).await;
    for _ in &before {
        staying.event().await.unwrap();
    }
    let quiet = tokio::time::timeout(Duration::from_millis(500), staying.event()).await;
    assert!(quiet.is_err(), "nothing has happened: {quiet:?}");
    service.register(&["A"]).await;
    let next = tokio::time::timeout(Duration::from_secs(5), staying.event()).await.unwrap().unwrap();
    assert!(next.data.contains("source.registered"), "{}", next.data);
}

/// Reads until the stream ends, for at most ten seconds; how long it took and the last word.
async fn end_of(mut stream: Stream) -> (Instant, Option<String>) {
    let reading = async {
        let mut last = None;
        while let Some(sent) = stream.next().await {
            last = sent.word.or(last);
        }
        (Instant::now(), last)
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("the stream goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_ends_with_the_access_of_its_reader_however_much_happens() {
    let service = Arc::new(Service::start(&[]).await);
    service.configure(by_hand).await;
    let off = json!({"project_module": PROJECT, "source_identifier": "A", "enabled": false});
    let source = service.post("/sources", off).await["uuid"].as_str().unwrap().to_owned();
    let path = format!("/sources/{source}/events");
    // Events never cease to arrive.
    let done = Arc::new(AtomicBool::new(false));
    let (busy, until, changed) = (service.clone(), done.clone(), format!("/sources/{source}"));
    let writer = tokio::spawn(async move {
        for n in 1.. {
            if until.load(Ordering::Relaxed) {
                break;
            }
            let change = json!({"stale_after_hours": n});
            busy.request(Method::PATCH, &changed).json(&change).send().await.unwrap();
        }
    });

    let password = "a password of vera's";
    let vera = json!({"username": "vera", "role": "viewer", "password": password});
    service.post("/accounts", vera).await;
    let login = json!({"username": "vera", "password": password});
    let session = service.post("/login", login.clone()).await;
    let closed = service.post("/login", login).await;
    let key = |name: &str, expires_at: Value| {
        service.post("/api-keys", json!({"name": name, "scope": "viewer", "expires_at": expires_at}))
    };
    let revoked = key("revoked", Value::Null).await;
    let expires_at = Clock::system().now() + chrono::Duration::seconds(3);
    let expiry = Instant::now() + Duration::from_secs(3);
    let expires = key("expires", json!(expires_at)).await;
    let stays = Reader::of(&service, &service.key).open(&path, SSE, None).await;

    let token = |of: &Value, field: &str| of[field].as_str().unwrap().to_owned();
    let (of_session, of_closed) = (token(&session, "access_token"), token(&closed, "access_token"));
    let (of_revoked, of_expires) = (token(&revoked, "api_key"), token(&expires, "api_key"));
    let open = async |token: &str, accept: &'static str| {
        let path = if accept == NDJSON { format!("{path}?follow=true") } else { path.clone() };
        Reader::of(&service, token).open(&path, accept, None).await
    };
    let mut streams = vec![];
    for token in [&of_revoked, &of_closed, &of_session, &of_expires] {
        let (frames, lines) = (open(token, SSE).await, open(token, NDJSON).await);
        streams.push([tokio::spawn(end_of(frames)), tokio::spawn(end_of(lines))]);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut streams = streams.into_iter();
    let mut ended = async |since: Instant, what: &str| {
        for (stream, word) in streams.next().unwrap().into_iter().zip([Some("access-ended"), None]) {
            let (at, last) = stream.await.unwrap();
            let last = last.filter(|word| word != "caught-up");
            assert_eq!(last.as_deref(), word, "{what}");
            assert!(at >= since, "{what}: it ended before");
            assert!(at - since < Duration::from_secs(1), "{what}: it ended {:?} later", at - since);
        }
    };

    let now = Instant::now();
    let id = revoked["uuid"].as_str().unwrap();
    let answer = service.request(Method::DELETE, &format!("/api-keys/{id}")).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    ended(now, "a revoked key").await;

    let now = Instant::now();
    service.post("/logout", json!({"access_token": of_closed})).await;
    ended(now, "a closed session").await;

    let now = Instant::now();
    service.post("/accounts/vera/disable", json!({"reason": "left"})).await;
    ended(now, "a disabled account").await;

    ended(expiry - Duration::from_millis(50), "an expired key").await;
    for token in [&of_revoked, &of_closed, &of_session, &of_expires] {
        assert_eq!(Reader::of(&service, token).ask(&path, SSE, None).await.status(), 401);
    }

    done.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let total = service.get(&format!("{path}?limit=5000")).await.as_array().unwrap().len();
    let mut stays = stays;
    for _ in 0..total {
        tokio::time::timeout(Duration::from_secs(5), stays.event()).await.unwrap().expect("it was ended too");
    }
}
