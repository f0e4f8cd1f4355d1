//! The HTTP API: requests in, commands to the deciders, answers from the read models. One file a resource.
//!
//! `docs/api.md` describes it for those who use it. Every route is declared with who may use it ([`route::Route`]), every
//! error is a [`problem::Problem`]. Whether a thing exists is asked of the log; what it looks like, of the read models,
//! which are waited for after a write. Events are read from the log itself. Deliberately absent: rules. They live in the
//! deciders of `domain`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use beampipe_log::Position;
use beampipe_projections::{Models, ReadModelError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::alerts::deliver::Sender;
use crate::artifacts::Artifacts;
use crate::auth::Passwords;
use crate::clock::Clock;
use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::ssh::Credentials;

// Login, accounts and API keys.
pub mod accounts;
// Alerts.
pub mod alerts;
// Who asks.
pub mod authenticate;
// Notification channels.
pub mod channels;
// Deliveries of alerts.
pub mod deliveries;
// Event pages and streams.
pub mod events;
// Executions.
pub mod executions;
// Reading requests.
pub mod extract;
// Reading drafts.
mod fields;
// Health, readiness, metrics.
pub mod health;
// The same request again.
pub mod idempotency;
// The queue.
pub mod jobs;
// What the log knows, and of when an answer is.
mod known;
// What every request goes through.
pub mod layers;
// The rest of a body that nobody read.
mod linger;
// Versions that a client saw.
mod matching;
// Names of actors.
pub mod names;
// Problems.
pub mod problem;
// Deployment profiles.
pub mod profiles;
// Read models and their rebuilding.
pub mod projections;
// Projects and their configurations.
pub mod projects;
// What `/ready` says.
pub mod readiness;
// Routes and who may use them.
pub mod route;
// Alert rules.
pub mod rules;
mod runbooks;
mod silence_link;
pub use runbooks::page as runbook;
// Rows to JSON.
pub mod shape;
// Silences.
pub mod silences;
// Credential slots.
pub mod slurm;
// Sources.
pub mod sources;
// Throttling of logins.
pub mod throttle;
// Workers.
pub mod workers;

pub use readiness::Readiness;
use route::{Access, BASE, Route};

/// What the API is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub version: String,
    /// Whether `/metrics` of the API needs no key.
    pub metrics_public: bool,
    pub access_token_lifetime: chrono::Duration,
    pub refresh_token_lifetime: chrono::Duration,
    /// Login attempts for one user name, a minute.
    pub logins_per_user: u32,
    /// Login attempts from one address, a minute.
    pub logins_per_address: u32,
    /// The Translator Manager of profiles that name none.
    pub default_tm_url: Option<String>,
    /// How often a quiet event stream says that it is alive.
    pub heartbeat: Duration,
    /// How many event streams may be open at once.
    pub max_streams: usize,
    pub max_body_bytes: usize,
    /// For bulk registration and project configurations.
    pub max_bulk_bytes: usize,
    /// A queue whose oldest job has been due for longer is `degraded`.
    pub queue_age_limit: Duration,
    /// A worker whose heartbeat stood still for longer is stale.
    pub worker_stale_after: Duration,
    /// A scheduler that was silent for so long is replaced.
    pub scheduler_lease: Duration,
    /// How often a job is tried before it is a dead letter.
    pub job_max_attempts: u32,
    /// Where the relative graph paths of configurations start, to warn of a graph that is not there.
    pub graph_dir: std::path::PathBuf,
    /// The credential slots of this process.
    pub credentials: Credentials,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metrics_public: false,
            access_token_lifetime: chrono::Duration::minutes(30),
            refresh_token_lifetime: chrono::Duration::days(7),
            logins_per_user: 10,
            logins_per_address: 60,
            default_tm_url: None,
            heartbeat: Duration::from_secs(15),
            max_streams: 10_000,
            max_body_bytes: 1024 * 1024,
            max_bulk_bytes: 16 * 1024 * 1024,
            queue_age_limit: Duration::from_secs(300),
            worker_stale_after: Duration::from_secs(30),
            scheduler_lease: Duration::from_secs(10),
            job_max_attempts: 5,
            graph_dir: ".".into(),
            credentials: Credentials::new(std::path::Path::new("credentials")),
        }
    }
}

/// What the API is made of.
pub struct Parts {
    pub handle: Handle,
    pub models: Arc<Models>,
    pub metrics: Arc<Metrics>,
    pub artifacts: Arc<Artifacts>,
    pub sender: Sender,
    pub settings: Settings,
    pub readiness: Arc<Readiness>,
    /// Cancelled when the service stops: event streams end.
    pub stopping: CancellationToken,
}

/// The state of every handler. Cloning is cheap.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

/// What all handlers share.
pub struct Shared {
    pub handle: Handle,
    pub models: Arc<Models>,
    pub metrics: Arc<Metrics>,
    pub artifacts: Arc<Artifacts>,
    pub sender: Sender,
    pub settings: Settings,
    pub readiness: Arc<Readiness>,
    pub stopping: CancellationToken,
    pub names: names::Names,
    pub access: authenticate::Recognised,
    pub answers: idempotency::Answers,
    pub configs: projects::Configs,
    pub passwords: Passwords,
    pub throttle: throttle::Throttle,
    pub streams: Arc<Semaphore>,
}

impl std::ops::Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Api {
    pub fn new(parts: Parts) -> Self {
        let Parts { handle, models, metrics, artifacts, sender, settings, readiness, stopping } = parts;
        Self(Arc::new(Shared {
            passwords: Passwords::new(handle.clock()),
            throttle: throttle::Throttle::new(settings.logins_per_user, settings.logins_per_address),
            streams: Arc::new(Semaphore::new(settings.max_streams)),
            names: names::Names::default(),
            access: authenticate::Recognised::default(),
            answers: idempotency::Answers::default(),
            configs: projects::Configs::default(),
            handle,
            models,
            metrics,
            artifacts,
            sender,
            settings,
            readiness,
            stopping,
        }))
    }

    pub fn clock(&self) -> &Clock {
        self.handle.clock()
    }

    /// Starts what runs beside the requests, until `stopping` is cancelled: the watch over access, and the readiness.
    pub fn start(&self) -> Vec<tokio::task::JoinHandle<()>> {
        vec![tokio::spawn(self.clone().watch_access()), tokio::spawn(self.clone().keep_ready())]
    }

    /// Reads the read models, off the async threads.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Models) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, problem::Problem> {
        let models = Arc::clone(&self.models);
        match tokio::task::spawn_blocking(move || read(&models)).await {
            Ok(answer) => Ok(answer?),
            Err(error) => Err(problem::Problem::internal(error)),
        }
    }

    /// Waits until this process's read models contain what was written at `position`, at most a second.
    pub async fn settle(&self, position: Position) -> bool {
        self.models.wait_for(position, Duration::from_secs(1)).await
    }
}

impl From<ReadModelError> for problem::Problem {
    fn from(error: ReadModelError) -> Self {
        tracing::error!(%error, cause = ?std::error::Error::source(&error), "a read model could not be read");
        Self::new("read-model-unavailable", error.to_string()).retry_after(2)
    }
}

/// Every route of the API.
pub fn routes() -> Vec<Route> {
    [
        health::routes(),
        accounts::routes(),
        projects::routes(),
        profiles::routes(),
        sources::routes(),
        executions::routes(),
        jobs::routes(),
        workers::routes(),
        slurm::routes(),
        channels::routes(),
        rules::routes(),
        alerts::routes(),
        silence_link::routes(),
        deliveries::routes(),
        silences::routes(),
        projections::routes(),
        events::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The whole API, below [`BASE`], and the pages of its problems.
pub fn router(api: Api) -> Router {
    let mut router = Router::new();
    let mut statuses: BTreeMap<&str, u16> = BTreeMap::from([("POST", 201), ("DELETE", 204)]);
    statuses.insert("GET", 200);
    for Route { method, path, access, handler } in routes() {
        let status = statuses.get(method.as_str()).copied().unwrap_or(200);
        api.metrics.know_route(method.as_str(), &route::label(path), status);
        let guard = layers::Guard { api: api.clone(), access };
        let guarded = handler.layer(from_fn_with_state(guard, layers::guard));
        router = router.route(&format!("{BASE}{path}"), guarded);
    }
    api.metrics.know_unmatched();
    router
        .route("/docs/problems/{slug}", get(problem_page))
        .route("/docs/runbooks/{name}", get(runbooks::shown))
        .method_not_allowed_fallback(layers::method_not_allowed)
        .fallback(layers::unknown_route)
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn(linger::rest))
        .layer(from_fn_with_state(api.clone(), layers::count))
        .layer(from_fn_with_state(api.clone(), layers::identify))
        .with_state(api)
}

/// `/metrics` without a key, for a listener that only Prometheus reaches.
pub fn metrics_router(api: Api) -> Router {
    Router::new()
        .route("/metrics", get(health::metrics))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .fallback(layers::unknown_route)
        .with_state(api)
}

async fn problem_page(extract::Name(slug): extract::Name) -> Result<impl IntoResponse, problem::Problem> {
    let slug = slug.strip_suffix(".md").unwrap_or(&slug).to_owned();
    let kind = problem::KINDS.iter().find(|kind| kind.slug == slug);
    let page = kind.map(|kind| kind.page);
    page.map(|page| ([(axum::http::header::CONTENT_TYPE, "text/markdown; charset=utf-8")], page))
        .ok_or_else(|| problem::Problem::new("unknown-route", "no problem has this name"))
}

/// Who may use each route, for the test that every route has one that checks it.
pub fn access_table() -> Vec<(String, String, Access)> {
    routes()
        .into_iter()
        .map(|route| (route.method.to_string(), route.path.to_owned(), route.access))
        .collect()
}
