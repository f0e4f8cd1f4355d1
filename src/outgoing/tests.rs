use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Instant;

use reqwest::header::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

use super::*;

fn judge(guard: &Guard, address: SocketAddr) -> Result<(), SendError> {
    guard.judge(address, &[443], "outgoing.ports")
}

fn loopback_allowed() -> Guard {
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    Guard::new(Outgoing { allow_networks, timeout_seconds: 1, ..Outgoing::default() })
}

#[test]
fn every_class_of_address_that_is_not_public_is_refused() {
    let guard = Guard::default();
    for (address, class) in [
        ("0.0.0.0", "this network"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "carrier-grade"),
        ("100.127.255.255", "carrier-grade"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "metadata"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.170", "protocols"),
        ("192.0.2.1", "documentation"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "benchmarks"),
        ("203.0.113.7", "documentation"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:8.8.8.8", "mapped"),
        ("::ffff:127.0.0.1", "mapped"),
        ("::7f00:1", "compatible"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b:1::a00:1", "NAT64"),
        ("fd00:ec2::254", "unique local"),
        ("fe80::1", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "documentation"),
        ("2001::1", "protocols"),
        ("2002:7f00:1::", "6to4"),
        ("::ffff:0:7f00:1", "not handed out"),
        ("5f00::1", "not handed out"),
        ("2001:0:7f00:1::", "protocols"),
        ("3fff::1", "documentation"),
        ("198.51.100.7", "documentation"),
        ("192.88.99.1", "6to4"),
        ("4000::1", "not handed out"),
        ("100::1", "not handed out"),
    ] {
        let ip: IpAddr = address.parse().unwrap();
        let error = judge(&guard, (ip, 443).into()).unwrap_err().to_string();
        assert!(error.contains(class), "{address}: {error}");
    }
    for address in ["8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "169.253.1.1", "2606:4700::1111"] {
        let ip: IpAddr = address.parse().unwrap();
        judge(&guard, (ip, 443).into()).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert!(judge(&guard, (ip, 22).into()).unwrap_err().to_string().contains("port 22"));
    }
}

#[test]
fn an_allowed_network_may_be_reached_at_any_port_and_its_neighbours_not() {
    let allow_networks = vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let guard = Guard::new(Outgoing { allow_networks, ..Outgoing::default() });
    for address in ["10.1.255.1:9", "[fd12::1]:5000"] {
        judge(&guard, address.parse().unwrap()).unwrap();
    }
    for address in ["10.2.0.1:443", "[fc00::1]:443", "[::ffff:10.1.0.1]:443", "127.0.0.1:443"] {
        judge(&guard, address.parse().unwrap()).unwrap_err();
    }
    let refuse_networks = vec!["2606:4700:64::/96".parse().unwrap()];
    let guard = Guard::new(Outgoing { refuse_networks, ..Outgoing::default() });
    let error = judge(&guard, "[2606:4700:64::7f00:1]:443".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("outgoing.refuse_networks"), "{error}");
    judge(&guard, "[2606:4700:65::7f00:1]:443".parse().unwrap()).unwrap();
    for wrong in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", ""] {
        wrong.parse::<Network>().unwrap_err();
    }
    let everything: Network = "0.0.0.0/0".parse().unwrap();
    assert!(everything.has("1.2.3.4".parse().unwrap()));
}

#[tokio::test]
async fn an_address_in_any_spelling_and_a_name_that_leads_inside_are_refused() {
    let guard = Guard::default();
    for url in [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://localhost/",
        "https://169.254.169.254/latest/meta-data",
        "ftp://8.8.8.8/",
    ] {
        let error = guard.post(&url.parse().unwrap(), HeaderMap::new(), vec![]).await.unwrap_err();
        assert!(matches!(error, SendError::Refused(_)), "{url}: {error}");
    }
}

/// A receiver that says `answer` to everybody, then `more` again and again; counts the bytes that it got rid of.
async fn receiver(answer: String, more: Option<Vec<u8>>) -> (Url, Arc<AtomicU64>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            while let Some(more) = &more {
                if stream.write_all(more).await.is_err() {
                    break;
                }
                counted.fetch_add(more.len() as u64, Ordering::Relaxed);
            }
        }
    });
    (url, sent)
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let away =
        "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/secret?x=1\r\ncontent-length: 0\r\n\r\n";
    let (url, _) = receiver(away.into(), None).await;
    let answer = loopback_allowed().post(&url, HeaderMap::new(), b"{}".to_vec()).await.unwrap();
    assert_eq!(answer.code, 302);
    assert_eq!(answer.body, "a redirect to http://169.254.169.254, which is not followed");
    assert_eq!(answer.cut, None);
}

#[tokio::test]
async fn of_an_answer_of_ten_gigabytes_the_beginning_is_read() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\nhello\u{7}";
    let (url, sent) = receiver(head.into(), Some(vec![b'x'; 64 * 1024])).await;
    let answer = loopback_allowed().post(&url, HeaderMap::new(), vec![]).await.unwrap();
    assert_eq!((answer.code, answer.body.len()), (200, 2048));
    assert!(answer.body.starts_with("hello xxx"), "control characters are left out");
    assert_eq!(answer.cut.as_deref(), Some("longer than 2048 bytes"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(sent.load(Ordering::Relaxed) < 64 * 1024 * 1024, "the connection was closed");
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_or_breaks_off_says_so_and_a_whole_one_does_not() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let post = async |url: &Url| loopback_allowed().post(url, HeaderMap::new(), vec![]).await.unwrap();
    let head =
        |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(2048));
    let (whole, _) = receiver(head(2048), None).await;
    let answer = post(&whole).await;
    assert_eq!((answer.body.len(), answer.cut), (2048, None), "no longer than the bound");
    let (broken, _) = receiver(head(2050), None).await;
    assert_eq!(post(&broken).await.cut.as_deref(), Some("it broke off"));
    // One that holds the connection, and says no more.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let slow: Url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
    let held = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhe").await.unwrap();
        std::future::pending::<()>().await;
    });
    let answer = post(&slow).await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "he"));
    assert_eq!(answer.cut.as_deref(), Some("not ended within 1 s"));
    held.abort();
}

#[tokio::test]
async fn a_receiver_that_hangs_is_given_up_in_time_and_the_error_has_no_address() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url: Url = format!("http://{}/canary", listener.local_addr().unwrap()).parse().unwrap();
    let began = Instant::now();
    let error = loopback_allowed().post(&url, HeaderMap::new(), vec![]).await.unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(error, "no answer within 1 s");
    drop(listener);
    let error = loopback_allowed().post(&url, HeaderMap::new(), vec![]).await.unwrap_err().to_string();
    assert!(error.contains("cannot connect") && !error.contains("canary"), "{error}");
}

#[test]
fn a_receiver_says_in_seconds_or_as_a_date_when_to_come_again() {
    let now = chrono::DateTime::parse_from_rfc2822("Fri, 20 Nov 2026 10:00:00 GMT").unwrap().to_utc();
    assert_eq!(retry_after_seconds("120", now), Some(120));
    assert_eq!(retry_after_seconds("Fri, 20 Nov 2026 10:01:00 GMT", now), Some(60));
    assert_eq!(retry_after_seconds("Fri, 20 Nov 2026 09:00:00 GMT", now), Some(0));
    for wrong in ["soon", "", "-1", "1.5"] {
        assert_eq!(retry_after_seconds(wrong, now), None, "{wrong:?}");
    }
    for endless in ["99999999999999999999", &"9".repeat(60)] {
        assert_eq!(retry_after_seconds(endless, now), Some(LONGEST_PAUSE), "{endless}");
    }
}
