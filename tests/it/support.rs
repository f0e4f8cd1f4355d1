//! A whole service in this process: a real SQLite log, real read models, a real listener. No scheduler and no worker, so
//! that tests say themselves what happens.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use beampipe::alerts::deliver::Sender;
use beampipe::api::{self, Api, Parts, Readiness, Settings};
use beampipe::artifacts::Artifacts;
use beampipe::auth;
use beampipe::clock::Clock;
use beampipe::codec;
use beampipe::handle::{Context, Handle};
use beampipe::metrics::Metrics;
use beampipe::metrics::measured::Measured;
use beampipe::outgoing::{Guard, Outgoing};
use beampipe::sealing::Sealing;
use beampipe_domain::source::{self, Check, Outcome, Source};
use beampipe_domain::{id, source::Command};
use beampipe_log::Log;
use beampipe_log::sqlite::{SqliteLog, SqliteOptions};
use beampipe_projections::Models;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub struct Service {
    pub base_url: String,
    pub metrics_url: String,
    pub admin_key: String,
    pub admin_password: String,
    pub api: Api,
    pub handle: Handle,
    pub clock: Clock,
    pub http: reqwest::Client,
    stopping: CancellationToken,
    /// Of the log, the read models and the artifacts; removed at the end.
    pub directory: tempfile::TempDir,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Installs the one provider of TLS; the client asks for it even for plain HTTP.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

/// A service on an empty log.
pub async fn service() -> Service {
    service_with(Settings::default()).await
}

pub async fn service_with(settings: Settings) -> Service {
    service_at(settings, Clock::system()).await
}

/// A service whose time is that of `clock`.
pub async fn service_at(settings: Settings, clock: Clock) -> Service {
    let directory = tempfile::tempdir().unwrap();
    let now = {
        let clock = clock.clone();
        Arc::new(move || clock.now())
    };
    let log =
        SqliteLog::open(directory.path().join("events.sqlite"), SqliteOptions::new(now.clone())).unwrap();
    let metrics = Metrics::new("0.0.0-test", "sqlite");
    let log: Arc<dyn Log> = Measured::new(Arc::new(log), metrics.clone());
    let decode =
        Arc::new(|recorded: &beampipe_log::Recorded| codec::decode(recorded).map_err(|e| e.to_string()));
    let models = Models::open(directory.path().join("views"), log.clone(), decode, now).await.unwrap();
    let models = Arc::new(models);
    let handle = Handle::new(log, clock.clone());
    let first = auth::bootstrap_admin(&handle).await.unwrap().unwrap();
    let stopping = CancellationToken::new();
    let artifacts = Artifacts::local(&directory.path().join("artifacts")).unwrap();
    // The receivers of tests are on loopback.
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let sender = Sender {
        handle: handle.clone(),
        artifacts: artifacts.clone(),
        sealing: Arc::new(Sealing::of(&[7; 32])),
        guard: Guard::new(Outgoing { allow_networks, timeout_seconds: 2, ..Outgoing::default() }),
        disable_after: chrono::TimeDelta::hours(24),
    };
    let api = Api::new(Parts {
        handle: handle.clone(),
        models,
        metrics,
        artifacts: Arc::new(artifacts),
        sender,
        settings,
        readiness: Readiness::new(),
        stopping: stopping.clone(),
    });
    api.start();
    let base_url = serve(api::router(api.clone()), &stopping).await;
    let metrics_url = serve(api::metrics_router(api.clone()), &stopping).await;
    api.settle(handle.log().head().position).await;
    Service {
        base_url,
        metrics_url,
        admin_key: first.api_key,
        admin_password: first.one_time_password,
        api,
        handle,
        clock,
        http: client(),
        stopping,
        directory,
    }
}

async fn serve(router: axum::Router, stopping: &CancellationToken) -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopped = stopping.clone().cancelled_owned();
    let make = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, make).with_graceful_shutdown(stopped).await });
    format!("http://{address}")
}

/// What a test looks at in an answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub async fn answered(response: Response) -> Answer {
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.text().await.unwrap() }
}

/// A configuration of a survey that needs nothing of the outside until it is used.
pub fn survey(module: &str) -> String {
    json!({
        "apiVersion": "beampipe.dev/v2",
        "kind": "ProjectConfig",
        "metadata": {"id": module},
        "adapters": {"endpoints": {"a": "http://127.0.0.1:9/tap"}, "required": ["a"]},
        "discovery": {
            "queries": [{
                "name": "first",
                "adapter": "a",
                "template": "SELECT sbid, dataset_id FROM t WHERE n = '{source_identifier}'",
            }],
            "prepare_metadata": {"field_map": {"sbid": {"from": "sbid"}, "dataset_id": {"from": "dataset_id"}}},
        },
        "graph": {"path": "g.graph", "sha256": "0".repeat(64)},
        "automation": {"discovery": {"stale_after_hours": 12.0}},
    })
    .to_string()
}

impl Service {
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/v2{path}", self.base_url)
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&self.admin_key)
    }

    pub async fn get(&self, path: &str) -> Answer {
        answered(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        answered(self.request(Method::POST, path).json(&body).send().await.unwrap()).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        answered(self.request(Method::PATCH, path).json(&body).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        answered(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// With another token than the administrator's.
    pub async fn get_as(&self, token: &str, path: &str) -> Answer {
        answered(self.http.get(self.url(path)).bearer_auth(token).send().await.unwrap()).await
    }

    /// A key of an account of its own with this role.
    pub async fn key_of(&self, username: &str, role: &str) -> String {
        let account =
            json!({"username": username, "role": role, "password": format!("a password of {username}")});
        self.post("/accounts", account).await.is(201);
        let login = json!({"username": username, "password": format!("a password of {username}")});
        let tokens = self.post("/login", login).await.is(200);
        let token = tokens["access_token"].as_str().unwrap();
        let issued = self
            .http
            .post(self.url("/api-keys"))
            .bearer_auth(token)
            .json(&json!({"name": format!("key of {username}")}))
            .send()
            .await
            .unwrap();
        answered(issued).await.is(201)["api_key"].as_str().unwrap().to_owned()
    }

    /// Uploads a configuration for `module`.
    pub async fn project(&self, module: &str) {
        let upload = self.request(Method::POST, "/project-configs");
        let upload = upload.header("content-type", "application/x-yaml").body(survey(module));
        answered(upload.send().await.unwrap()).await.is(201);
    }

    /// A profile that simulates, the default of `module`.
    pub async fn profile(&self, module: &str) -> Value {
        let profile = json!({
            "name": format!("sim-{module}"),
            "project_module": module,
            "is_default": true,
            "deployment": {"kind": "simulated"},
        });
        self.post("/deployment-profiles", profile).await.is(201)
    }

    /// Registers a source.
    pub async fn source(&self, module: &str, identifier: &str) -> Uuid {
        let order = json!({"project_module": module, "source_identifier": identifier});
        let source = self.post("/sources", order).await.is(201);
        source["uuid"].as_str().unwrap().parse().unwrap()
    }

    pub fn context(&self) -> Context {
        Context::system(&self.clock, "test")
    }

    /// Records that a source was discovered with two datasets in two blocks.
    pub async fn discovered(&self, module: &str, identifier: &str) -> Uuid {
        let prepared = json!({
            "source_identifier": identifier,
            "records": [
                {"sbid": "100", "dataset_id": "a"},
                {"sbid": "200", "dataset_id": "b"},
            ],
            "flags": {}, "signature": "5".repeat(64), "sbids": ["100", "200"],
            "datasets": 2, "held": [], "warnings": [],
        });
        let stored = self.api.artifacts.put(prepared.to_string().into()).await.unwrap();
        let outcome = Outcome::Found {
            signature: "5".repeat(64),
            dataset_count: 2,
            sbids: vec!["100".into(), "200".into()],
            metadata_sha256: stored.sha256,
        };
        let source = id::source(module, identifier);
        let command = Command::RecordDiscovery { outcome, check: Check::default() };
        let done = self.handle.handle::<Source>(&source.to_string(), &self.context(), command).await.unwrap();
        assert!(self.api.settle(done.position).await);
        source
    }

    /// A project with a default profile and one discovered source, and an execution of it.
    pub async fn execution(&self, module: &str) -> Uuid {
        self.project(module).await;
        self.profile(module).await;
        self.source(module, "A").await;
        self.discovered(module, "A").await;
        let order = json!({
            "project_module": module, "archive_name": "casda", "sources": [{"source_identifier": "A"}],
        });
        let created = self.post("/executions", order).await.is(201);
        created["uuid"].as_str().unwrap().parse().unwrap()
    }

    /// Appends an event to a source, through its decider.
    pub async fn touch(&self, source: Uuid) {
        let command = source::Command::RequestDiscovery;
        self.handle.handle::<Source>(&source.to_string(), &self.context(), command).await.unwrap();
    }
}
