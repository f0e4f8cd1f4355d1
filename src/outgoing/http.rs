use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use url::Url;

use super::{Answer, Guard, SendError, plain, root};

/// Answers every question for a name with the addresses that were judged.
struct Judged(Vec<SocketAddr>);

impl Resolve for Judged {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

impl Guard {
    /// Posts `body` to `url`.
    pub async fn post(&self, url: &Url, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, SendError> {
        let refused = |what: &str| SendError::Refused(format!("the address cannot be used: {what}"));
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it is neither http nor https"));
        }
        let port = url.port_or_known_default().ok_or_else(|| refused("it has no port"))?;
        let host = url.host().ok_or_else(|| refused("it has no host"))?;
        let addresses = self.resolve(host, port, &self.0.ports, "outgoing.ports").await?;
        let client = self.client(addresses)?;
        let sent = client.post(url.clone()).headers(headers).body(body).send().await;
        let response = sent.map_err(|error| self.why(&error))?;
        let code = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).map(|value| value.chars().take(60).collect());
        let away = text(LOCATION).filter(|_| (300..400).contains(&code)).map(|to| redirected(url, to));
        let (body, cut) = match away {
            Some(away) => (away, None),
            None => self.beginning(response).await,
        };
        Ok(Answer { code, body, cut, retry_after })
    }

    /// A client that can reach these addresses and no other, whatever name it is given.
    fn client(&self, addresses: Vec<SocketAddr>) -> Result<reqwest::Client, SendError> {
        let builder = reqwest::Client::builder()
            .connect_timeout(self.connect_timeout())
            .timeout(Duration::from_secs(self.0.timeout_seconds.max(1)))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(Judged(addresses)));
        builder.build().map_err(|error| SendError::NoAnswer(format!("no client can be made: {error}")))
    }

    /// What a failed request is called. The address may be a secret, and is not in it.
    fn why(&self, error: &reqwest::Error) -> SendError {
        let what = match error {
            _ if error.is_connect() => "cannot connect".to_owned(),
            _ if error.is_timeout() => format!("no answer within {} s", self.0.timeout_seconds),
            _ => "the request broke off".to_owned(),
        };
        SendError::NoAnswer(match root(error).filter(|_| !error.is_timeout()) {
            Some(cause) => format!("{what}: {cause}"),
            None => what,
        })
    }

    /// The beginning of an answer, and why there is no more of it. What breaks off, or comes too late, was an answer all the
    /// same: its status says all.
    async fn beginning(&self, mut response: reqwest::Response) -> (String, Option<String>) {
        let (mut read, most): (Vec<u8>, _) = (vec![], self.0.answer_bytes);
        let cut = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => read.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) if error.is_timeout() => {
                    break Some(format!("not ended within {} s", self.0.timeout_seconds.max(1)));
                }
                Err(_) => break Some("it broke off".to_owned()),
            }
            if read.len() > most {
                break Some(format!("longer than {most} bytes"));
            }
        };
        read.truncate(most);
        (plain(&String::from_utf8_lossy(&read)), cut)
    }
}

/// What is said of a redirect: where it leads, without what may be secret.
fn redirected(from: &Url, to: &str) -> String {
    let place = from.join(to).map(|to| to.origin().ascii_serialization()).unwrap_or_default();
    format!("a redirect to {place}, which is not followed")
}
