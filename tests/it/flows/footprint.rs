//! Requests to places that do not exist leave nothing behind: no series, no memory.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::Method;

use super::service::Service;
use crate::backends::daliuge::http;

/// The names and labels of the text, without values.
async fn series(service: &Service) -> BTreeSet<String> {
    let url = format!("http://127.0.0.1:{}/metrics", service.metrics_port);
    let text = http().get(url).send().await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// The memory that the process holds, in KiB.
fn resident(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// xorshift: nothing more is asked of it than that paths differ.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn path(&mut self) -> String {
        let base =
            ["", "/api", "/api/v2", "/api/v2/executionss", "/metrics", "/docs"][self.next() as usize % 6];
        let depth = 1 + self.next() % 4;
        let segments: String = (0..depth).map(|_| format!("/{:x}", self.next())).collect();
        format!("{base}{segments}?{:x}={:x}", self.next(), self.next())
    }

    fn method(&mut self) -> Method {
        let known = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
        match self.next() as usize % 8 {
            n if n < known.len() => known[n].clone(),
            6 => Method::HEAD,
            _ => Method::from_bytes(format!("M{:X}", self.next()).as_bytes()).unwrap(),
        }
    }
}

/// Sends requests to random places, on both listeners, until `until`; answers how many.
async fn storm(service: &Service, seed: u64, until: Instant) -> u64 {
    let (http, mut random, mut sent) = (http(), Random(seed), 0);
    while Instant::now() < until {
        let port = if sent % 8 == 0 { service.metrics_port } else { service.port };
        let url = format!("http://127.0.0.1:{port}{}", random.path());
        let request = http.request(random.method(), url).bearer_auth(&service.key);
        let answer = request.body(vec![b'x'; 64]).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{}", answer.status());
        answer.bytes().await.unwrap();
        sent += 1;
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_random_places_leave_series_and_memory_as_they_were() {
    let service = Service::start(&[]).await;
    // What a process needs once it has been asked anything at all: buffers, connections, pages of the allocator.
    let warm = Instant::now() + Duration::from_secs(1);
    tokio::join!(storm(&service, 1, warm), storm(&service, 2, warm), storm(&service, 3, warm));
    let (series_before, resident_before) = (series(&service).await, resident(&service));
    let until = Instant::now() + Duration::from_secs(4);
    let (a, b, c) =
        tokio::join!(storm(&service, 11, until), storm(&service, 12, until), storm(&service, 13, until));
    let (series_after, resident_after) = (series(&service).await, resident(&service));
    let sent = a + b + c;
    println!("{sent} requests, {resident_before} KiB before, {resident_after} KiB after");
    assert!(sent > 400, "only {sent} requests: nothing is shown by that");
    let new: Vec<_> = series_after.difference(&series_before).collect();
    assert!(new.is_empty() && series_after.len() == series_before.len(), "new series: {new:#?}");
    assert!(
        resident_after < resident_before + 4096,
        "{resident_before} KiB before, {resident_after} KiB after {sent} requests"
    );
}

#[tokio::test]
async fn not_even_the_first_request_to_nowhere_makes_a_series() {
    let service = Service::start(&[]).await;
    // Without a key the first request to a route is a first of its kind; to no route it is not.
    let mut before = series(&service).await;
    while !before.iter().any(|line| line.starts_with("beampipe_worker_heartbeat_age_seconds")) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        before = series(&service).await;
    }
    let mut random = Random(7);
    for _ in 0..40 {
        let url = format!("http://127.0.0.1:{}/nowhere{}", service.port, random.path());
        http().request(random.method(), url).send().await.unwrap();
        let url = service.url("/health");
        let answer = http().request(Method::from_bytes(b"BREW").unwrap(), url).send().await.unwrap();
        assert_eq!(answer.status(), 405);
    }
    let after = series(&service).await;
    let new: Vec<_> = after.difference(&before).filter(|line| !line.contains("route=\"/ready\"")).collect();
    assert!(new.is_empty(), "new series: {new:#?}");
}
