use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use beampipe_domain::channel::Tls;
use lettre::Address;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, AsyncTokioStream, Certificate, CertificateStore, TlsParameters,
};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::Response;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Host;

use super::{Answer, Guard, SendError, plain};

/// No more is read of what a mail server says in a whole conversation, in bytes.
const MOST_SAID: usize = 256 * 1024;
/// A server that took the message may take so long to say good-bye.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// Where mail is handed over.
#[derive(Clone, Debug)]
pub struct MailServer {
    /// A name, or an address as in a URL. Its certificate has to be for it.
    pub host: String,
    pub port: u16,
    pub tls: Tls,
    /// The certificates of those who vouch for it; absent: the system's.
    pub ca_file: Option<PathBuf>,
    pub login: Option<(String, SecretString)>,
}

/// A message in its envelope.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: Address,
    pub to: Vec<Address>,
    pub message: Vec<u8>,
}

/// What a server says, in bounds. Of plain text it is read byte by byte, so that nothing that came before a change to TLS is
/// taken for what came after it.
#[derive(Debug)]
struct Bounded<S> {
    inner: S,
    left: usize,
    one_by_one: bool,
    peer: SocketAddr,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::Error::other("it says too much")));
        }
        let most = if self.one_by_one { 1 } else { 4096 };
        let mut bytes = [0; 4096];
        let mut some = ReadBuf::new(&mut bytes[..most.min(into.remaining()).min(self.left)]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut some))?;
        self.left -= some.filled().len();
        into.put_slice(some.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug> AsyncTokioStream for Bounded<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl Guard {
    /// Hands a letter to a mail server. A reply that is a no is an answer like any other: its code says all.
    pub async fn mail(&self, server: &MailServer, letter: &Letter) -> Result<Answer, SendError> {
        let host = Host::parse(&server.host)
            .map_err(|_| SendError::Refused("smtp_host: it is no name of a host".into()))?;
        let host = match &host {
            Host::Domain(name) => Host::Domain(name.as_str()),
            Host::Ipv4(ip) => Host::Ipv4(*ip),
            Host::Ipv6(ip) => Host::Ipv6(*ip),
        };
        let addresses = self.resolve(host, server.port, &self.0.smtp_ports, "outgoing.smtp_ports").await?;
        if server.tls == Tls::None
            && let Some(open) = addresses.iter().find(|address| !self.allows(address.ip()))
        {
            let refused = format!(
                "{} is refused without TLS: outgoing.allow_networks does not name its network",
                open.ip()
            );
            return Err(SendError::Refused(refused));
        }
        let bound = Duration::from_secs(self.0.smtp_timeout_seconds.max(1));
        match tokio::time::timeout(bound, self.converse(server, &addresses, letter)).await {
            Ok(answer) => answer,
            Err(_) => Err(SendError::NoAnswer(format!("no answer within {} s", self.0.smtp_timeout_seconds))),
        }
    }

    async fn converse(
        &self,
        server: &MailServer,
        addresses: &[SocketAddr],
        letter: &Letter,
    ) -> Result<Answer, SendError> {
        let connecting = tokio::time::timeout(self.connect_timeout(), TcpStream::connect(addresses));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(SendError::NoAnswer(format!("cannot connect: {error}"))),
            Err(_) => return Err(SendError::NoAnswer("cannot connect in time".into())),
        };
        let peer = stream.peer_addr().map_err(|error| SendError::NoAnswer(error.to_string()))?;
        let plain = Bounded { inner: stream, left: MOST_SAID, one_by_one: server.tls == Tls::Starttls, peer };
        let hello = ClientId::default();
        let mut connection = match server.tls {
            Tls::Implicit => {
                let inner = implicit(server, plain).await?;
                let whole = Bounded { inner, left: MOST_SAID, one_by_one: false, peer };
                said(AsyncSmtpConnection::connect_with_transport(Box::new(whole), &hello).await)
            }
            Tls::Starttls | Tls::None => {
                said(AsyncSmtpConnection::connect_with_transport(Box::new(plain), &hello).await)
            }
        };
        let connection = match &mut connection {
            Ok(connection) => connection,
            Err(no) => return no.clone().into(),
        };
        if server.tls == Tls::Starttls {
            if !connection.can_starttls() {
                return Err(SendError::NoAnswer("the mail server offers no STARTTLS".into()));
            }
            if let Err(no) = said(connection.starttls(parameters(server).await?, &hello).await) {
                return no.into();
            }
        }
        let answer = hand_over(connection, server, letter).await;
        let _ = tokio::time::timeout(GOOD_BYE, connection.quit()).await;
        answer
    }
}

/// A no of a server, or that there is nothing to be understood.
#[derive(Clone, Debug)]
enum No {
    Reply(Answer),
    Nothing(String),
}

impl From<No> for Result<Answer, SendError> {
    fn from(no: No) -> Self {
        match no {
            No::Reply(answer) => Ok(answer),
            No::Nothing(error) => Err(SendError::NoAnswer(error)),
        }
    }
}

fn said<T>(answer: Result<T, Error>) -> Result<T, No> {
    answer.map_err(|error| match error.status() {
        Some(code) => {
            let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            No::Reply(Answer { code: code.into(), body: plain(&text), cut: None, retry_after: None })
        }
        None => No::Nothing(plain(&format!("the conversation with the mail server broke off: {error}"))),
    })
}

/// Who is trusted to vouch for a server.
async fn trusted(server: &MailServer) -> Result<Option<Vec<u8>>, SendError> {
    let Some(file) = &server.ca_file else { return Ok(None) };
    let read = tokio::fs::read(file).await;
    read.map(Some).map_err(|error| SendError::NoAnswer(format!("ca_file: it cannot be read: {error}")))
}

/// TLS from the first byte.
async fn implicit<S: AsyncRead + AsyncWrite + Unpin>(
    server: &MailServer,
    stream: S,
) -> Result<tokio_rustls::client::TlsStream<S>, SendError> {
    let broken = |what: String| SendError::NoAnswer(what);
    let mut roots = RootCertStore::empty();
    match trusted(server).await? {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|_| broken("ca_file: it is no PEM file".into()))?;
                roots.add(certificate).map_err(|error| broken(format!("ca_file: {error}")))?;
            }
        }
        None => {
            let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let found = found.map_err(|error| broken(error.to_string()))?;
            roots.add_parsable_certificates(found.certs);
        }
    }
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = ServerName::try_from(name_of(server))
        .map_err(|_| SendError::Refused("smtp_host: it is no name of a host".into()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| broken(format!("TLS with the mail server failed: {error}")))
}

/// What the certificate has to be for.
fn name_of(server: &MailServer) -> String {
    server.host.trim_matches(['[', ']']).to_owned()
}

/// TLS from STARTTLS on.
async fn parameters(server: &MailServer) -> Result<TlsParameters, SendError> {
    let mut builder = TlsParameters::builder(name_of(server));
    if let Some(pem) = trusted(server).await? {
        let certificate = Certificate::from_pem(&pem)
            .map_err(|_| SendError::NoAnswer("ca_file: it is no PEM file".into()))?;
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(certificate);
    }
    // The system's certificates are read from files.
    let built = tokio::task::spawn_blocking(move || builder.build()).await;
    let built = built.map_err(|error| SendError::NoAnswer(error.to_string()))?;
    built.map_err(|error| SendError::NoAnswer(format!("TLS cannot be used: {error}")))
}

/// Logs in and hands the letter over. It goes to all who are accepted; that some are not is said. If one of them may be accepted
/// later, it is not done: the letter goes to all again, under the same id.
async fn hand_over(
    connection: &mut AsyncSmtpConnection,
    server: &MailServer,
    letter: &Letter,
) -> Result<Answer, SendError> {
    if let Some((user, password)) = &server.login {
        let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
        let mechanisms = [Mechanism::Plain, Mechanism::Login];
        if let Err(no) = said(connection.auth(&mechanisms, &credentials).await) {
            return no.into();
        }
    }
    let mut options = vec![];
    if connection.server_info().supports_feature(Extension::EightBitMime) {
        options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    if let Err(no) = said(connection.command(Mail::new(Some(letter.from.clone()), options)).await) {
        return no.into();
    }
    let (mut accepted, mut later, mut never) = (0, None, None);
    let mut noted = vec![];
    for to in &letter.to {
        match said(connection.command(Rcpt::new(to.clone(), vec![])).await) {
            Ok(_) => accepted += 1,
            Err(No::Reply(answer)) => {
                noted.push(format!("{to} is not accepted: {} {}", answer.code, answer.body));
                let place = if answer.code < 500 { &mut later } else { &mut never };
                place.get_or_insert(answer.code);
            }
            Err(nothing) => return nothing.into(),
        }
    }
    if accepted == 0 {
        let code = later.or(never).unwrap_or(554);
        return Ok(Answer { code, body: noted.join("; "), cut: None, retry_after: None });
    }
    if let Err(no) = said(connection.command(Data).await) {
        return no.into();
    }
    match said(connection.message(&letter.message).await) {
        Err(no) => no.into(),
        Ok(reply) => {
            noted.insert(0, words(&reply));
            Ok(Answer {
                code: later.unwrap_or(reply.code().into()),
                body: noted.join("; "),
                cut: None,
                retry_after: None,
            })
        }
    }
}

fn words(reply: &Response) -> String {
    plain(&reply.message().collect::<Vec<_>>().join(" "))
}
