//! Wires everything: the only file that knows all parts. Starts them in the order in which they need each other and stops
//! them in the opposite one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use beampipe_log::Log;
use beampipe_projections::Models;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::alerts::{self, deliver::Sender};
use crate::api::{self, Api, Parts, Readiness, Settings};
use crate::artifacts::{self, Artifacts};
use crate::auth;
use crate::clock::Clock;
use crate::codec;
use crate::config::{Config, Role};
use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::metrics::measured::Measured;
use crate::outgoing::Guard;
use crate::sealing::Sealing;
use crate::ssh;
use crate::work::{self, Shop};

/// Serves until it is told to stop (SIGTERM, SIGINT).
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let clock = Clock::system();
    private_directory(&config.state_dir)?;
    let place = config.log_place();
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), place.engine());
    let log: Arc<dyn Log> = place.open(&config.log, &clock).await?;
    let log: Arc<dyn Log> = Measured::new(log, metrics.clone());
    let models = open_models(&config, log.clone(), &clock).await?;
    let handle = Handle::new(log.clone(), clock.clone());
    let artifacts = open_artifacts(&config)?;
    let sender = Sender {
        handle: handle.clone(),
        artifacts: artifacts.clone(),
        sealing: Arc::new(Sealing::open(&config.sealing_key(), &clock)?),
        guard: Guard::new(config.outgoing.clone()),
        disable_after: config.alerts.disable_channel_after(),
    };

    let answers = config.roles.contains(&Role::Api);
    let listener = if answers { Some(listen(config.http.listen, "http.listen").await?) } else { None };
    let metrics_listener = listen(config.metrics.listen, "metrics.listen").await?;
    if answers && let Some(first) = auth::bootstrap_admin(&handle).await? {
        println!("The log is empty: this is the first start. The following is shown once.");
        println!("  user:     {}", first.username);
        println!("  password: {}", first.one_time_password);
        println!("  API key:  {}", first.api_key);
    }

    let (stopping, readiness) = (CancellationToken::new(), Readiness::new());
    let api = Api::new(Parts {
        handle: handle.clone(),
        models: models.clone(),
        metrics: metrics.clone(),
        artifacts: Arc::new(artifacts.clone()),
        sender: sender.clone(),
        settings: api_settings(&config),
        readiness: readiness.clone(),
        stopping: stopping.clone(),
    });
    let mut beside = api.start();
    beside.push(probe_artifacts(&config, &artifacts, &readiness, &stopping));

    let host = work::worker::host_name();
    let instance_name =
        Some(config.work.instance_name.clone()).filter(|name| !name.is_empty()).unwrap_or(host.clone());
    let process = format!("{host}-{}-{}", std::process::id(), &clock.id().simple().to_string()[20..]);
    let simulated_dir =
        config.work.simulated_dir.clone().or_else(|| Some(config.state_dir.join("simulated")));
    let settings = crate::config::Work { instance_name, simulated_dir, ..config.work.clone() };
    metrics
        .slurm_ssh_configured
        .set(i64::from(config.credentials().slots().is_ok_and(|slots| !slots.is_empty())));
    let shop = Shop::new(
        handle,
        models.clone(),
        artifacts,
        clock,
        settings,
        config.dependencies.clone(),
        metrics,
        process,
        ssh::Pool::new(config.credentials(), config.ssh.settings()),
    )?;
    let seen = shop.seen.clone();
    readiness.looks_from(move || {
        let look = |look: work::probes::Look| api::readiness::Look {
            up: look.up,
            checked_at: look.checked_at,
            latency_ms: look.latency_ms,
            error: look.error,
        };
        seen.all().into_iter().map(|(name, seen)| (name, look(seen))).collect()
    });
    let work = Work::start(Arc::new(shop), sender, &config);

    let mut servers = vec![];
    if let Some(listener) = listener {
        tracing::info!(address = %listener.local_addr()?, "answering requests");
        servers.push(tokio::spawn(serve_on(listener, api::router(api.clone()), stopping.clone())));
    }
    let metrics_address = metrics_listener.local_addr()?;
    servers.push(tokio::spawn(serve_on(metrics_listener, api::metrics_router(api), stopping.clone())));
    tracing::info!(roles = ?config.roles, metrics = %metrics_address, "serving");

    told_to_stop().await?;
    tracing::info!("stopping");
    work.stop().await;
    stopping.cancel();
    let patience = Duration::from_secs(config.http.drain_seconds);
    for server in servers {
        if tokio::time::timeout(patience, server).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
    }
    for task in beside {
        task.abort();
    }
    tokio::task::spawn_blocking(move || models.stop()).await?;
    log.close().await;
    Ok(())
}

async fn open_models(config: &Config, log: Arc<dyn Log>, clock: &Clock) -> anyhow::Result<Arc<Models>> {
    let directory = config.read_models_dir();
    let now = clock.clone();
    let decode =
        Arc::new(|recorded: &beampipe_log::Recorded| codec::decode(recorded).map_err(|e| e.to_string()));
    let models = Models::open(&directory, log, decode, Arc::new(move || now.now()))
        .await
        .with_context(|| format!("the read models in {} cannot be opened", directory.display()))?;
    Ok(Arc::new(models))
}

fn open_artifacts(config: &Config) -> anyhow::Result<Artifacts> {
    let place = config.artifacts_place().map_err(anyhow::Error::msg)?;
    Artifacts::open(&place, &config.artifacts).context("the artifact store cannot be opened")
}

fn probe_artifacts(
    config: &Config,
    artifacts: &Artifacts,
    readiness: &Arc<Readiness>,
    stopping: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let every = Duration::from_secs(config.artifacts.probe_seconds);
    let readiness = readiness.clone();
    let tell = move |why| readiness.fault("artifacts", why);
    tokio::spawn(artifacts::keep_probing(artifacts.clone(), every, tell, stopping.clone()))
}

fn api_settings(config: &Config) -> Settings {
    Settings {
        metrics_public: config.metrics.public,
        access_token_lifetime: chrono::Duration::minutes(config.auth.access_token_minutes),
        refresh_token_lifetime: chrono::Duration::hours(config.auth.refresh_token_hours),
        logins_per_user: config.auth.login_attempts_per_minute,
        default_tm_url: config.work.tm_url.clone(),
        max_body_bytes: config.http.max_body_bytes,
        queue_age_limit: Duration::from_secs(config.work.queue_age_limit_seconds),
        worker_stale_after: Duration::from_secs(config.work.lease_seconds),
        scheduler_lease: Duration::from_secs(config.work.scheduler_lease_seconds),
        job_max_attempts: config.work.max_attempts,
        graph_dir: config.work.graph_dir.clone(),
        credentials: config.credentials(),
        ..Settings::default()
    }
}

/// The tasks that work, in the order in which they are stopped.
struct Work {
    planning: CancellationToken,
    keeping: CancellationToken,
    working: CancellationToken,
    planners: Vec<tokio::task::JoinHandle<()>>,
    keeper: Option<tokio::task::JoinHandle<()>>,
    worker: Option<tokio::task::JoinHandle<()>>,
}

impl Work {
    fn start(shop: Arc<Shop>, sender: Sender, config: &Config) -> Self {
        let [planning, keeping, working] = [(); 3].map(|()| CancellationToken::new());
        let alone = config.alone_on_the_log();
        let (mut planners, mut keeper) = (vec![], None);
        if config.roles.contains(&Role::Scheduler) {
            let (tell, acting) = watch::channel(None);
            keeper = Some(tokio::spawn(work::lease::keep(shop.clone(), tell, keeping.clone(), alone)));
            planners.push(tokio::spawn(work::scheduler::run(shop.clone(), acting.clone(), planning.clone())));
            let post = alerts::post::run(sender, shop.models.clone(), acting.clone(), planning.clone());
            planners.push(tokio::spawn(post));
            let setting = alerts::evaluate::Setting {
                handle: shop.handle.clone(),
                links: alerts::payload::Links { base: config.http.public_url.clone() },
                noted: config.state_dir.join("alerts-judged-through"),
                process: shop.process.clone(),
                metrics: shop.metrics.clone(),
            };
            let judge = alerts::evaluate::run(setting, acting.clone(), planning.clone());
            planners.push(tokio::spawn(judge));
            planners.push(tokio::spawn(work::probes::run(shop.clone(), acting, planning.clone())));
        } else {
            planners.push(tokio::spawn(work::probes::listen(shop.clone(), planning.clone())));
        }
        planners.push(tokio::spawn(alerts::lag::run(
            shop.handle.clone(),
            shop.models.clone(),
            shop.worker_id().to_string(),
            planning.clone(),
        )));
        let works = config.roles.contains(&Role::Worker);
        let worker = works.then(|| tokio::spawn(work::worker::run(shop, working.clone(), alone)));
        Self { planning, keeping, working, planners, keeper, worker }
    }

    /// The lease goes when nobody here acts on it any more; what runs ends last.
    async fn stop(self) {
        self.planning.cancel();
        for planner in self.planners {
            let _ = planner.await;
        }
        self.keeping.cancel();
        if let Some(keeper) = self.keeper {
            let _ = keeper.await;
        }
        self.working.cancel();
        if let Some(worker) = self.worker {
            let _ = worker.await;
        }
    }
}

async fn serve_on(listener: TcpListener, router: axum::Router, stopping: CancellationToken) {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let served =
        axum::serve(listener, service).with_graceful_shutdown(async move { stopping.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "a listener has ended");
    }
}

async fn listen(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({setting})"))
}

async fn told_to_stop() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A directory that nobody else looks into: the log has hashes of passwords.
pub(crate) fn private_directory(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the state directory {} cannot be made", path.display()))
}
