//! A small HTTP/1.1 client: on two cores, every microsecond that the client takes is taken from the service.
//!
//! It keeps one connection, understands lengths and chunks, and hands a stream's body on as it arrives. No redirects, no
//! compression, no TLS: it talks to the service on loopback and to nothing else.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A service and the key to it.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub key: String,
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| self.text().into_owned())
    }
}

enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    key: String,
    /// Received and not yet looked at: `buffer[read..]`.
    buffer: Vec<u8>,
    read: usize,
    request: Vec<u8>,
}

impl Client {
    pub async fn connect(target: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let buffer = Vec::with_capacity(16 << 10);
        Ok(Self { stream, key: target.key.clone(), buffer, read: 0, request: vec![] })
    }

    async fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> anyhow::Result<()> {
        use std::io::Write;
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\n{headers}content-length: {}\r\n\r\n",
            self.key,
            body.len()
        )?;
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await?;
        Ok(())
    }

    /// Receives more; false at the end.
    async fn fill(&mut self) -> anyhow::Result<bool> {
        if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve(256 << 10);
        }
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.buffer[self.read..].iter().position(|&byte| byte == b'\n') {
                let line = &self.buffer[self.read..self.read + end];
                let line = String::from_utf8_lossy(line).trim_end().to_owned();
                self.read += end + 1;
                return Ok(line);
            }
            ensure!(self.fill().await?, "the connection was closed");
        }
    }

    async fn head(&mut self) -> anyhow::Result<(u16, Body)> {
        let first = self.line().await?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
        let mut body = if status == 204 { Body::Length(0) } else { Body::UntilClose };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok((status, body));
            }
            let (name, value) = line.split_once(':').context("a header has a colon")?;
            if name.eq_ignore_ascii_case("content-length") {
                body = Body::Length(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                body = Body::Chunked;
            }
        }
    }

    async fn take(&mut self, length: usize, into: &mut Vec<u8>) -> anyhow::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.read == self.buffer.len() {
                ensure!(self.fill().await?, "the connection was closed");
            }
            let here = left.min(self.buffer.len() - self.read);
            into.extend_from_slice(&self.buffer[self.read..self.read + here]);
            self.read += here;
            left -= here;
        }
        Ok(())
    }

    async fn answer(&mut self) -> anyhow::Result<Answer> {
        let (status, kind) = self.head().await?;
        let mut body = Vec::new();
        match kind {
            Body::Length(length) => self.take(length, &mut body).await?,
            Body::Chunked => while self.chunk(&mut body).await? {},
            Body::UntilClose => bail!("an answer without a length"),
        }
        Ok(Answer { status, body })
    }

    /// Appends the next chunk to `into`; false at the last one.
    async fn chunk(&mut self, into: &mut Vec<u8>) -> anyhow::Result<bool> {
        let size = self.line().await?;
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or(""), 16).context("no chunk size")?;
        self.take(size, into).await?;
        self.line().await?;
        Ok(size > 0)
    }

    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send("GET", path, "accept: application/json\r\n", b"").await?;
        self.answer().await
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.post_as(path, "application/json", &serde_json::to_vec(body)?).await
    }

    pub async fn post_as(&mut self, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<Answer> {
        self.send("POST", path, &format!("accept: application/json\r\ncontent-type: {kind}\r\n"), body)
            .await?;
        self.answer().await
    }

    /// Opens a stream of lines.
    pub async fn follow(mut self, path: &str, accept: &str) -> anyhow::Result<Lines> {
        self.send("GET", path, &format!("accept: {accept}\r\n"), b"").await?;
        let (status, kind) = self.head().await?;
        ensure!(status == 200, "{path} answered {status}");
        ensure!(matches!(kind, Body::Chunked), "{path} is no stream");
        Ok(Lines { client: self, body: vec![], read: 0, ended: false })
    }
}

/// A body that arrives in chunks, line by line.
pub struct Lines {
    client: Client,
    body: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Lines {
    /// The next line, without its end; `None` at the end of the stream.
    pub async fn next(&mut self) -> anyhow::Result<Option<&[u8]>> {
        let mut looked = self.read;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.body[looked..]) {
                let line = self.read..looked + end;
                self.read = line.end + 1;
                return Ok(Some(&self.body[line]));
            }
            if self.ended {
                return Ok(None);
            }
            self.body.drain(..self.read);
            self.read = 0;
            looked = self.body.len();
            self.ended = !self.client.chunk(&mut self.body).await?;
        }
    }
}
