use std::sync::Arc;
use std::time::{Duration, Instant};

use beampipe_domain::channel::Tls;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn server(host: &str, port: u16, tls: Tls) -> MailServer {
    let login = Some(("ops".to_owned(), "canary-password".to_owned().into()));
    MailServer { host: host.into(), port, tls, ca_file: None, login }
}

fn letter() -> Letter {
    let address = |text: &str| text.parse().unwrap();
    Letter {
        from: address("b@example.org"),
        to: vec![address("a@example.org")],
        message: b"Subject: x\r\n\r\nx".to_vec(),
    }
}

fn loopback_allowed() -> Guard {
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    Guard::new(Outgoing { allow_networks, smtp_timeout_seconds: 2, ..Outgoing::default() })
}

/// A server that greets and answers each packet with the next of these, then closes; its port, and what it was told.
async fn says(answers: &'static [&'static [u8]]) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (port, told) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<u8>>>::default());
    let heard = told.clone();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for answer in answers {
            let _ = stream.write_all(answer).await;
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            heard.lock().extend(&bytes[..read]);
        }
    });
    (port, told)
}

fn has(told: &Mutex<Vec<u8>>, word: &str) -> bool {
    String::from_utf8_lossy(&told.lock()).contains(word)
}

#[tokio::test]
async fn mail_goes_to_no_address_inside_to_no_odd_port_and_not_in_the_open() {
    let guard = Guard::default();
    for (host, port, tls, word) in [
        ("127.0.0.1", 587, Tls::Starttls, "loopback"),
        ("localhost", 587, Tls::Starttls, "loopback"),
        ("[::ffff:10.0.0.1]", 587, Tls::Implicit, "mapped"),
        ("169.254.169.254", 25, Tls::None, "metadata"),
        ("8.8.8.8", 443, Tls::Starttls, "port 443 is refused: outgoing.smtp_ports"),
        ("8.8.8.8", 587, Tls::None, "8.8.8.8 is refused without TLS"),
        ("a b", 587, Tls::Starttls, "no name of a host"),
    ] {
        let error = guard.mail(&server(host, port, tls), &letter()).await.unwrap_err();
        assert!(matches!(&error, SendError::Refused(said) if said.contains(word)), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_server_without_starttls_is_told_no_password() {
    let (port, told) = says(&[b"220 hello\r\n", b"250-hello\r\n250 AUTH PLAIN\r\n"]).await;
    let error =
        loopback_allowed().mail(&server("127.0.0.1", port, Tls::Starttls), &letter()).await.unwrap_err();
    assert_eq!(error.to_string(), "the mail server offers no STARTTLS");
    assert!(has(&told, "EHLO") && !has(&told, "AUTH"));
}

#[tokio::test]
async fn what_came_before_tls_is_not_taken_for_what_comes_after_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Whoever stands between adds replies in the open to the one that begins TLS.
    const INJECTED: &[u8] = b"220 begin\r\n250-hello\r\n250 AUTH PLAIN\r\n235 welcome\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 taken\r\n";
    let (port, told) = says(&[b"220 hello\r\n", b"250-hello\r\n250 STARTTLS\r\n", INJECTED, b""]).await;
    let error =
        loopback_allowed().mail(&server("127.0.0.1", port, Tls::Starttls), &letter()).await.unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
    assert!(has(&told, "STARTTLS") && !has(&told, "AUTH"));
}

#[tokio::test]
async fn of_a_line_without_an_end_no_more_than_a_bound_is_read() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::<Mutex<usize>>::default();
    let counted = sent.clone();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"220 ").await;
        while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {
            *counted.lock() += 64 * 1024;
        }
    });
    let error = loopback_allowed().mail(&server("127.0.0.1", port, Tls::None), &letter()).await.unwrap_err();
    assert!(error.to_string().contains("says too much"), "{error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(*sent.lock() < 64 << 20, "{} bytes", sent.lock());
}

#[tokio::test]
async fn a_mail_server_that_hangs_is_given_up_in_time() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for tls in [Tls::Starttls, Tls::Implicit, Tls::None] {
        let began = Instant::now();
        let error = loopback_allowed().mail(&server("127.0.0.1", port, tls), &letter()).await.unwrap_err();
        assert_eq!(error.to_string(), "no answer within 2 s", "{tls}");
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test]
async fn a_server_that_greets_with_a_no_is_an_answer() {
    let (port, _) = says(&[b"421 4.3.2 come again later\r\n"]).await;
    let answer = loopback_allowed().mail(&server("127.0.0.1", port, Tls::None), &letter()).await.unwrap();
    assert_eq!((answer.code, answer.body.as_str()), (421, "4.3.2 come again later"));
}
