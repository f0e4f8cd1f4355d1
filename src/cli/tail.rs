//! Follows an event stream over HTTP and takes it up again where it broke off.
//!
//! Owns the id of the last event it delivered and asks for what comes after it, so nothing is missed; an event at or before
//! that position is passed over, so nothing is repeated. A broken connection is taken up again for ever, a *no* of the
//! service is not: a history that is not the one seen before (410) must not be glued to it.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;

use super::client::{Client, ClientError};
use super::event::{Event, NoEvent};
use super::sse::{Message, Parser};

const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Event(#[from] NoEvent),
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    Event(Box<Event>),
    /// What is recorded was told; from here on it is live.
    CaughtUp,
    /// The connection broke; it is tried again after a moment.
    Broken(String),
    /// The service ended the stream as asked.
    Ended,
}

#[derive(Debug)]
pub struct Tail {
    client: Client,
    path: String,
    query: Vec<(String, String)>,
    /// Where to go on.
    last_id: Option<String>,
    position: u64,
    until_terminal: bool,
    terminal_seen: bool,
    connection: Option<(Response, Parser)>,
    messages: VecDeque<Message>,
    /// Whether it was ever connected: a service that was never there is an error at once.
    known: bool,
    wait: Duration,
}

impl Tail {
    /// Follows `path` with `query`, after `last_id` if there is one.
    pub fn new(client: Client, path: String, query: Vec<(String, String)>, last_id: Option<String>) -> Self {
        let until_terminal = query.iter().any(|(name, value)| name == "until_terminal" && value == "true");
        let position = last_id.as_deref().and_then(|id| id.split('-').next()?.parse().ok()).unwrap_or(0);
        Self {
            client,
            path,
            query,
            last_id,
            position,
            until_terminal,
            terminal_seen: false,
            connection: None,
            messages: VecDeque::new(),
            known: false,
            wait: FIRST_WAIT,
        }
    }

    pub async fn next(&mut self) -> Result<Next, TailError> {
        loop {
            while let Some(message) = self.messages.pop_front() {
                if let Some(next) = self.deliver(message)? {
                    return Ok(next);
                }
            }
            let Some((response, parser)) = &mut self.connection else {
                if let Some(next) = self.connect().await? {
                    return Ok(next);
                }
                continue;
            };
            match response.chunk().await {
                Ok(Some(bytes)) => parser.feed(&bytes, |message| self.messages.push_back(message)),
                Ok(None) if self.until_terminal && self.terminal_seen => {
                    return Ok(Next::Ended);
                }
                Ok(None) => return Ok(self.broken("the service ended the stream".to_owned())),
                Err(error) => {
                    let cause = self.client.unreachable(&error).to_string();
                    return Ok(self.broken(cause));
                }
            }
        }
    }

    fn broken(&mut self, cause: String) -> Next {
        self.connection = None;
        Next::Broken(cause)
    }

    fn deliver(&mut self, message: Message) -> Result<Option<Next>, TailError> {
        if message.event == "caught-up" {
            if message.id.is_some() {
                self.last_id = message.id;
            }
            return Ok(Some(Next::CaughtUp));
        }
        let event = Event::parse(&message.data)?;
        if event.position <= self.position {
            return Ok(None);
        }
        self.position = event.position;
        self.last_id = message.id.or_else(|| Some(event.resume_id()));
        self.terminal_seen = event.ends_execution();
        Ok(Some(Next::Event(Box::new(event))))
    }

    /// Connects, or says why not and has waited.
    async fn connect(&mut self) -> Result<Option<Next>, TailError> {
        if self.known {
            tokio::time::sleep(self.wait).await;
        }
        // Where to begin was answered by the first connection; later ones go on after the last event.
        let query: Vec<(String, String)> = match &self.last_id {
            Some(_) => self.query.iter().filter(|(name, _)| name != "after").cloned().collect(),
            None => self.query.clone(),
        };
        match self.client.stream(&self.path, &query, self.last_id.as_deref()).await {
            Ok(response) => {
                self.connection = Some((response, Parser::default()));
                self.known = true;
                self.wait = FIRST_WAIT;
                Ok(None)
            }
            Err(error) if self.known && may_pass(&error) => {
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
                Ok(Some(Next::Broken(error.to_string())))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether asking again can help.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => matches!(problem.status, 429 | 502 | 503 | 504),
        _ => false,
    }
}
