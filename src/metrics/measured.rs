//! A log that says how long its appends took. The log crate knows nothing of metrics, so they are measured around it.

use std::sync::Arc;
use std::time::Instant;

use beampipe_log::{
    AppendError, Appended, Beat, Direction, Expected, Filter, Head, Health, Log, NewEvent, Page, Position,
    ReadError, Recorded, RedactError, Revision, StreamHead, Subscription,
};

use super::Metrics;

/// Measures the appends of `inner`; everything else passes through.
#[derive(Debug)]
pub struct Measured {
    inner: Arc<dyn Log>,
    metrics: Arc<Metrics>,
    engine: &'static str,
}

impl Measured {
    pub fn new(inner: Arc<dyn Log>, metrics: Arc<Metrics>) -> Arc<Self> {
        let engine = inner.health().engine;
        Arc::new(Self { inner, metrics, engine })
    }
}

#[async_trait::async_trait]
impl Log for Measured {
    async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        let start = Instant::now();
        let appended = self.inner.append(stream, expected, events).await;
        if appended.is_ok() {
            let family = self.metrics.log_append_duration_seconds.with_label_values(&[self.engine]);
            family.observe(start.elapsed().as_secs_f64());
        }
        appended
    }

    async fn read_stream(
        &self,
        stream: &str,
        from: Revision,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        self.inner.read_stream(stream, from, direction, limit).await
    }

    async fn read_all(
        &self,
        from: Position,
        direction: Direction,
        limit: usize,
        filter: &Filter,
    ) -> Result<Page, ReadError> {
        self.inner.read_all(from, direction, limit, filter).await
    }

    fn subscribe(&self, filter: Filter, after: Position) -> Subscription {
        self.inner.subscribe(filter, after)
    }

    fn head(&self) -> Head {
        self.inner.head()
    }

    fn rewinds(&self) -> u64 {
        self.inner.rewinds()
    }

    async fn stream_head(&self, stream: &str) -> Result<Option<StreamHead>, ReadError> {
        self.inner.stream_head(stream).await
    }

    async fn event(&self, id: uuid::Uuid) -> Result<Option<Arc<Recorded>>, ReadError> {
        self.inner.event(id).await
    }

    async fn redact(&self, event: uuid::Uuid, record: NewEvent) -> Result<Appended, RedactError> {
        self.inner.redact(event, record).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn beat(&self, who: &str, facts: serde_json::Value) {
        self.inner.beat(who, facts).await;
    }

    async fn beats(&self) -> Result<Vec<Beat>, ReadError> {
        self.inner.beats().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
