//! Streams of events: server-sent events and NDJSON, each a subscription to the log of its own.
//!
//! Catch-up is written in large chunks; a live event is one buffer that all subscribers share. A stream looks again whether
//! its reader may read when an account, key or session changes, and at the end of what was shown; it ends when the service
//! stops. A slow reader costs nothing: nothing is read for it while its socket is full.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use beampipe_domain::execution::Execution;
use beampipe_log::{Batch, Direction, Follow, Position, ReadError, Recorded, Subscription};
use chrono::{DateTime, Utc};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::render;
use super::select::{Media, Scope, Selection};
use crate::api::Api;
use crate::api::authenticate::Caller;
use crate::api::problem::Problem;

/// How many events are taken from the log at once.
const BATCH: usize = 2048;
/// How large a chunk becomes before it is sent on.
const CHUNK_BYTES: usize = 128 * 1024;

/// What is followed, for whom, and what was already said.
struct Stream {
    api: Api,
    caller: Caller,
    selection: Selection,
    media: Media,
    subscription: Subscription,
    /// Whether the reader was told that it has caught up.
    caught_up: bool,
    /// An NDJSON answer without `follow` ends here.
    last: Option<Position>,
    left: u64,
    ended: bool,
    begun: bool,
    heartbeat: Interval,
    /// Listens, once for all batches, for the service to stop.
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    access: watch::Receiver<Position>,
    /// When the reader's key or session expires, and a timer for it.
    lasts_until: Option<DateTime<Utc>>,
    expires: Pin<Box<Sleep>>,
    _counted: Counted,
    _permit: OwnedSemaphorePermit,
}

/// Counts a stream for as long as it lives.
struct Counted {
    api: Api,
    kind: &'static str,
}

impl Counted {
    fn new(api: &Api, kind: &'static str) -> Self {
        api.metrics.subscriptions_active.with_label_values(&[kind]).inc();
        Self { api: api.clone(), kind }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.api.metrics.subscriptions_active.with_label_values(&[self.kind]).dec();
    }
}

/// Reads ahead: while one batch is written to the socket the next ones are read from the log. Only for history that
/// somebody takes as fast as it comes; a live stream would gain nothing but a task.
struct Ahead {
    batches: mpsc::Receiver<Result<Batch, ReadError>>,
    reading: tokio::task::JoinHandle<()>,
}

impl Ahead {
    fn of(mut subscription: Subscription) -> Self {
        let (outbox, batches) = mpsc::channel(2);
        let reading = tokio::spawn(async move {
            loop {
                let batch = subscription.next_batch(BATCH).await;
                let last = batch.as_ref().is_ok_and(|batch| batch.caught_up) || batch.is_err();
                if outbox.send(batch).await.is_err() || last {
                    return;
                }
            }
        });
        Self { batches, reading }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

#[async_trait::async_trait]
impl Follow for Ahead {
    async fn next_batch(&mut self, _max: usize) -> Result<Batch, ReadError> {
        let ended = || Err(ReadError::Unavailable("reading ahead has ended".to_owned()));
        self.batches.recv().await.unwrap_or_else(ended)
    }
}

/// Answers with a stream.
pub async fn answer(
    api: &Api,
    caller: Caller,
    selection: Selection,
    media: Media,
) -> Result<Response, Problem> {
    let permit = Arc::clone(&api.streams).try_acquire_owned().map_err(|_| {
        Problem::new("overloaded", "as many event streams are open as this process serves").retry_after(5)
    })?;
    let stays = media == Media::Sse || selection.follow;
    let mut heartbeat = tokio::time::interval(api.settings.heartbeat);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat.reset();
    let head = api.handle.log().head().position;
    let last = selection.before.map_or(head, |before| head.min(before.saturating_sub(1)));
    let (kind, content_type) = match media {
        Media::Sse => ("sse", "text/event-stream"),
        Media::Ndjson | Media::Page => ("ndjson", "application/x-ndjson"),
    };
    let lasts_until = api.may_go_on(&caller).map_err(|why| Problem::new("invalid-token", why))?;
    let subscription = api.handle.log().subscribe(selection.filter.clone(), selection.after());
    let stream = Stream {
        subscription: if stays { subscription } else { Box::new(Ahead::of(subscription)) },
        caught_up: false,
        last: (!stays).then_some(last),
        left: selection.limit.unwrap_or(u64::MAX),
        // What lies before the start has nothing to give; who has seen the end has nothing to wait for.
        ended: (!stays && selection.after() >= last)
            || ended_at(api, &selection).await.is_some_and(|end| selection.after() >= end),
        begun: false,
        heartbeat,
        access: api.access.changes(),
        lasts_until,
        stopped: Box::pin(api.stopping.clone().cancelled_owned()),
        expires: Box::pin(expires(api, lasts_until)),
        _counted: Counted::new(api, kind),
        _permit: permit,
        api: api.clone(),
        caller,
        selection,
        media,
    };
    let body = futures::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    });
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        // Tells proxies to pass every event on at once.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

impl Stream {
    /// The next bytes, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            if self.media == Media::Sse {
                return Some(Bytes::from_static(b"retry: 1000\n\n"));
            }
        }
        loop {
            if self.ended {
                return None;
            }
            // Asked, and not waited for, before every batch: however many there are, the end is seen between them.
            if self.api.stopping.is_cancelled() {
                return self.end("closing", "the service stops");
            }
            let Ok(changed) = self.access.has_changed() else {
                return self.end("closing", "the service stops");
            };
            let expiry = until(self.lasts_until, self.api.clock().now());
            if changed || expiry.is_zero() {
                self.access.mark_unchanged();
                match self.api.may_go_on(&self.caller) {
                    Ok(until) => self.lasts_until = until,
                    Err(why) => return self.end("access-ended", &why),
                }
                self.expires.set(expires(&self.api, self.lasts_until));
            }
            tokio::select! {
                // Events come first: a stream that has some listens for nothing else, which costs a thousand of them dearly.
                biased;
                batch = self.subscription.next_batch(BATCH) => match batch {
                    Ok(batch) => {
                        let chunk = self.write(batch).await;
                        if !chunk.is_empty() {
                            return Some(chunk);
                        }
                    }
                    // Whoever resumes with the last id is answered 410.
                    Err(error @ ReadError::Rewound { .. }) => {
                        tracing::error!(%error, "an event stream ends because it had what the log has lost");
                        return self.end("log-changed", &error.to_string());
                    }
                    Err(error) => {
                        tracing::error!(%error, "an event stream ends because the log cannot be read");
                        return self.end("log-unavailable", &error.to_string());
                    }
                },
                _ = self.heartbeat.tick() => match self.media {
                    Media::Sse => return Some(Bytes::from_static(b": heartbeat\n\n")),
                    // An empty line is none to readers of NDJSON that skip blank ones; the specification allows it.
                    Media::Ndjson | Media::Page if self.selection.follow => {
                        return Some(Bytes::from_static(b"\n"));
                    }
                    Media::Ndjson | Media::Page => {}
                },
                // What these mean is asked above.
                () = &mut self.stopped => {}
                _ = self.access.changed() => self.access.mark_changed(),
                () = &mut self.expires => self.expires.set(expires(&self.api, self.lasts_until)),
            }
        }
    }

    /// Says why the stream ends, where the media type has a way to.
    fn end(&mut self, event: &str, why: &str) -> Option<Bytes> {
        self.ended = true;
        if self.media != Media::Sse {
            return None;
        }
        let data = serde_json::json!({ "reason": why });
        Some(Bytes::from(format!("event: {event}\ndata: {data}\n\n")))
    }

    /// Writes what is wanted of a batch, and of those that follow at once while there is room in the chunk.
    async fn write(&mut self, mut batch: Batch) -> Bytes {
        // One live event is passed on as the buffer that all subscribers share.
        if self.caught_up && batch.events.len() == 1 {
            let only = self.shared(&batch.events[0]).await;
            self.arrived(&batch);
            return only.unwrap_or_default();
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + 16 * 1024);
        loop {
            self.api.names.learn(&self.api.models, &batch.events).await;
            for event in &batch.events {
                if self.ended || !self.within(event) {
                    break;
                }
                if !self.selection.wants(event, &self.api.names) {
                    continue;
                }
                self.left -= 1;
                // What is live has many readers: it is spelled once for all of them. History has this one.
                if self.caught_up {
                    event.rendered.get_or_init(|| render::frame(event, &self.api.names.of(&event.actor)));
                }
                match (event.rendered.get(), self.media) {
                    (Some(frame), Media::Sse) => chunk.extend_from_slice(frame),
                    (Some(frame), _) => chunk.extend_from_slice(&render::line(frame, event.position)),
                    (None, Media::Sse) => {
                        render::write_frame(&mut chunk, event, &self.api.names.of(&event.actor));
                    }
                    (None, _) => {
                        render::write_object(&mut chunk, event, &self.api.names.of(&event.actor));
                        chunk.push(b'\n');
                    }
                }
                self.ended = self.left == 0 || is_the_end(&self.api, &self.selection, event).await;
            }
            self.arrived(&batch);
            if batch.caught_up && !self.caught_up && !self.ended {
                self.caught_up = true;
                if self.media == Media::Sse {
                    let said = format!("event: caught-up\ndata: {{\"position\":{}}}\n\n", batch.through);
                    chunk.extend_from_slice(said.as_bytes());
                }
            }
            if self.ended || batch.caught_up || chunk.len() >= CHUNK_BYTES || batch.events.is_empty() {
                return chunk.into();
            }
            batch = match self.subscription.next_batch(BATCH).await {
                Ok(batch) => batch,
                // The next call hears of it again.
                Err(_) => return chunk.into(),
            };
        }
    }

    /// The bytes of one live event, made once for everybody.
    async fn shared(&mut self, event: &Arc<Recorded>) -> Option<Bytes> {
        if !self.within(event) {
            return None;
        }
        self.api.names.learn(&self.api.models, std::slice::from_ref(event)).await;
        if !self.selection.wants(event, &self.api.names) {
            return None;
        }
        self.left -= 1;
        let frame = event.rendered.get_or_init(|| render::frame(event, &self.api.names.of(&event.actor)));
        let bytes = match self.media {
            Media::Sse => frame.clone(),
            Media::Ndjson | Media::Page => render::line(frame, event.position),
        };
        self.ended = self.left == 0 || is_the_end(&self.api, &self.selection, event).await;
        Some(bytes)
    }

    fn within(&self, event: &Recorded) -> bool {
        self.last.is_none_or(|last| event.position <= last)
    }

    /// Ends an answer that does not stay.
    fn arrived(&mut self, batch: &Batch) {
        if self.last.is_some_and(|last| batch.through >= last || batch.caught_up) {
            self.ended = true;
        }
    }
}

/// Whether this event ends the execution whose end is waited for: it is terminal, and no attempt came after it.
async fn is_the_end(api: &Api, selection: &Selection, event: &Recorded) -> bool {
    is_terminal(&event.event_type) && ended_at(api, selection).await.is_some_and(|end| event.position >= end)
}

/// Where the execution whose end is waited for has ended; `None` while it has not. Asked of the types of its events, as
/// their data may have been redacted.
async fn ended_at(api: &Api, selection: &Selection) -> Option<Position> {
    let Scope::Execution(id) = &selection.scope else { return None };
    if !selection.until_terminal {
        return None;
    }
    let loaded = match api.handle.load::<Execution>(&id.to_string()).await {
        Ok(loaded) => loaded,
        // It cannot be said, so it is not waited for.
        Err(_) => return Some(0),
    };
    if !matches!(loaded.state, Execution::Ended { .. }) {
        return None;
    }
    let stream = format!("execution-{id}");
    let last = loaded.head.map_or(0, |head| head.revision);
    let events = api.handle.log().read_stream(&stream, last, Direction::Backward, 100).await.ok()?;
    events.iter().find(|event| is_terminal(&event.event_type)).map(|event| event.position)
}

fn is_terminal(event_type: &str) -> bool {
    matches!(
        event_type,
        "execution.completed" | "execution.failed" | "execution.cancelled" | "execution.not_submitted"
    )
}

/// Waits for `expiry` by the service's clock.
fn expires(api: &Api, expiry: Option<DateTime<Utc>>) -> Sleep {
    tokio::time::sleep(until(expiry, api.clock().now()))
}

/// How long until `expiry`, zero when that is over; far away when there is none.
fn until(expiry: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    const FAR: Duration = Duration::from_secs(24 * 3600);
    expiry.map_or(FAR, |expiry| (expiry - now).to_std().unwrap_or_default().min(FAR))
}

/// Whether the log still has what a cursor names.
pub async fn check(api: &Api, selection: &Selection) -> Result<(), Problem> {
    let Some(cursor) = &selection.after else { return Ok(()) };
    let Some(leaf) = &cursor.leaf else { return Ok(()) };
    let changed =
        |what: String| Err(Problem::new("log-changed", format!("event {}-{leaf} {what}", cursor.position)));
    let log = api.handle.log();
    if cursor.position > log.head().position {
        return changed(format!("is after the end of the log, which is {}", log.head().position));
    }
    let page = log.read_all(cursor.position, Direction::Forward, 1, &beampipe_log::Filter::All).await?;
    match page.events.first() {
        Some(event)
            if event.position == cursor.position && event.hash.to_hex().starts_with(leaf.as_str()) =>
        {
            Ok(())
        }
        Some(event) if event.position == cursor.position => {
            changed(format!("is another event now, with leaf {}", &event.hash.to_hex()[..8]))
        }
        _ => changed("is not in the log".to_owned()),
    }
}
