//! Two processes judge and deliver alerts from one PostgreSQL log, and are killed around the points at which rules are judged: every
//! cause is told once on each channel, whoever is alive; what came to pass while nobody was is told late, and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe::alerts::evaluate::SETTLE;
use beampipe::clock::Clock;
use beampipe::handle::{Context, Handle};
use beampipe_domain::alerting::{GRID_SECONDS, next, point};
use beampipe_domain::execution::{Command, Created, Execution};
use beampipe_log::postgres::{PostgresLog, PostgresOptions};
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::service::Service;
use crate::support;

const CHANNELS: usize = 2;
/// How long the receiver takes to answer: a message that has left and is not recorded is sent again by whoever takes over.
const THINKS: Duration = Duration::from_millis(400);
/// What is judged later than so after its point is said to be late.
const LATE: TimeDelta = TimeDelta::seconds(2 * GRID_SECONDS);

/// What came: the message's id, the channel's path, and the message.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(String, String, Value)>>>);

async fn receive(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: String) -> StatusCode {
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    receiver.0.lock().push((id, uri.path().to_owned(), serde_json::from_str(&body).unwrap()));
    tokio::time::sleep(THINKS).await;
    StatusCode::NO_CONTENT
}

impl Receiver {
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    /// Waits for a message that has not come by now.
    async fn more(&self, now: DateTime<Utc>) {
        let (before, began) = (self.0.lock().len(), Instant::now());
        while self.0.lock().len() == before {
            assert!(began.elapsed() < Duration::from_secs(20), "nothing comes after {now}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What has come, by cause and channel: the ids of the messages that told of it, and whether these were late.
    fn told(&self) -> BTreeMap<(String, String), BTreeSet<(String, bool)>> {
        let mut told: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (id, channel, message) in self.0.lock().iter() {
            // A message tells of what ended, or of the archive.
            let cause = message["execution_id"].as_str().unwrap_or("archive").to_owned();
            let late = message["late"].as_bool().unwrap();
            told.entry((cause, channel.clone())).or_default().insert((id.clone(), late));
        }
        told
    }
}

/// Somebody else who writes to the log: executions that are cancelled, whoever of the cluster is alive.
struct Outside {
    clock: Clock,
    handle: Handle,
}

impl Outside {
    async fn on(log: &str) -> Self {
        let log = PostgresLog::open(log, PostgresOptions::default()).await.unwrap();
        let clock = Clock::system();
        Self { handle: Handle::new(Arc::new(log), clock.clone()), clock }
    }

    /// Cancels a new execution.
    async fn cancels(&self) -> String {
        let (context, id) = (Context::system(&self.clock, "test"), self.clock.id().to_string());
        let created = Created { project_module: "p".into(), ..Created::default() };
        for command in [Command::Create(Box::new(created)), Command::RequestCancel { reason: None }] {
            self.handle.handle::<Execution>(&id, &context, command).await.unwrap();
        }
        id
    }

    async fn until(&self, at: DateTime<Utc>) {
        tokio::time::sleep((at - self.clock.now()).to_std().unwrap_or_default()).await;
    }
}

/// Waits until a process acts that is not `before`; answers which member it is, and under which name.
async fn acting(cluster: &Cluster, asked: usize, before: &str) -> (usize, String) {
    let began = Instant::now();
    loop {
        let ready = cluster.members[asked].get("/ready").await;
        let holder = ready["scheduler"]["acting"].as_str().unwrap_or_default().to_owned();
        let is = |member: &Service| holder.contains(&format!("-{}-", member.pid()));
        if holder != before
            && let Some(member) = cluster.members.iter().position(is)
        {
            return (member, holder);
        }
        let said = cluster.members[asked].said();
        assert!(began.elapsed() < Duration::from_secs(20), "{before} is not replaced: {ready}\n{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn configure(service: &Service, url: &str) {
    let upload = service.request(reqwest::Method::POST, "/project-configs").body(support::survey("p"));
    let upload = upload.header("content-type", "application/x-yaml").send().await.unwrap();
    assert_eq!(upload.status(), 201);
    let mut channels = vec![];
    for n in 0..CHANNELS {
        let channel =
            json!({"name": format!("c{n}"), "kind": "webhook", "config": {"url": format!("{url}/{n}")}});
        channels.push(service.post("/notification-channels", channel).await["uuid"].clone());
    }
    for (name, kind, config) in [
        ("ends", "execution_terminal", json!({"statuses": ["cancelled"]})),
        ("archive", "dependency_down", json!({"dependency": "tap_a"})),
    ] {
        let rule =
            json!({"name": name, "trigger_kind": kind, "trigger_config": config, "channel_ids": channels});
        service.post("/alert-rules", rule).await;
    }
}

/// Waits until each of `causes` was told on each channel, and the log says so of every message.
async fn told(receiver: &Receiver, service: &Service, causes: &[String]) {
    let began = Instant::now();
    loop {
        let came = receiver.told();
        let open = async |status: &str| {
            let path = format!("/alert-deliveries?status={status}&limit=1");
            !service.get(&path).await.as_array().unwrap().is_empty()
        };
        let all =
            causes.iter().all(|cause| came.keys().filter(|(told, _)| told == cause).count() == CHANNELS);
        if all && !open("pending").await && !open("retrying").await {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{causes:?}: {came:#?}\n{}", service.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_are_killed_around_the_points_tell_every_cause_once() {
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`, and a seed to repeat a run")]
    let (soak, seed) = (std::env::var("BEAMPIPE_TEST_SOAK").is_ok(), std::env::var("SEED").ok());
    let seed: u64 = seed.map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    let rounds = if soak { 20 } else { 2 };
    println!("SEED={seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let settings = [
        ("BEAMPIPE_OUTGOING__ALLOW_NETWORKS", "[\"127.0.0.0/8\"]"),
        ("BEAMPIPE_DEPENDENCIES__PROBE_SECONDS", "1"),
    ];
    let roles = "api,scheduler,worker";
    let mut cluster = Cluster::start_with(&[roles, roles], &settings).await;
    let outside = Outside::on(cluster.log()).await;
    configure(cluster.api(), &url).await;
    let mut causes = vec!["archive".to_owned()];
    let (mut victim, mut holder) = acting(&cluster, 0, "").await;
    let mut at = next(point(outside.clock.now() + TimeDelta::seconds(4)));
    for round in 0..rounds {
        outside.until(at - TimeDelta::seconds(2)).await;
        causes.push(outside.cancels().await);
        if round % 2 == 0 {
            // Before the point, between it and its judgement, while that is written or told, or after.
            outside.until(at + TimeDelta::milliseconds(random.random_range(-1000..=4000))).await;
        } else {
            // While what the point gave is on its way.
            outside.until(at).await;
            receiver.more(outside.clock.now()).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..=400))).await;
        }
        cluster.members[victim].kill();
        let moment = outside.clock.now() - at;
        causes.push(outside.cancels().await);
        // The first comes back at once; whichever of the two takes the lease goes on.
        cluster.members[victim].spawn(&[]);
        let acts;
        (acts, holder) = acting(&cluster, 1 - victim, &holder).await;
        let took = outside.clock.now() - (at + moment);
        println!("round {round}: killed {moment} from the point, replaced after {took}, SEED={seed}");
        cluster.members[victim].wait_until_ready(&[]).await;
        (victim, at) = (acts, next(at));
    }

    // Nobody is alive from some moment on: one is killed that stands by, and one that acts.
    outside.until(at - TimeDelta::milliseconds(random.random_range(3000..=6000))).await;
    for member in &mut cluster.members {
        member.kill();
    }
    outside.until(at - TimeDelta::seconds(1)).await;
    let missed = outside.cancels().await;
    let came = receiver.0.lock().len();
    outside.until(at + TimeDelta::seconds(GRID_SECONDS)).await;
    let later = outside.cancels().await;
    // Whoever comes waits for the dead one's lease to run out, so that the point is judged late.
    outside.until(at + LATE - SETTLE).await;
    assert_eq!(receiver.0.lock().len(), came, "who is dead tells nothing");
    for member in &mut cluster.members {
        member.spawn(&[]);
    }
    for member in &mut cluster.members {
        member.wait_until_ready(&[]).await;
    }
    causes.extend([missed.clone(), later.clone()]);
    told(&receiver, cluster.api(), &causes).await;

    let came = receiver.told();
    assert!(came.values().all(|ids| ids.len() == 1), "told under two ids; SEED={seed}: {came:#?}");
    let told_of: BTreeSet<&String> = came.keys().map(|(cause, _)| cause).collect();
    assert_eq!(told_of, causes.iter().collect(), "nothing else was told; SEED={seed}");
    let ids: BTreeSet<&String> = came.values().flatten().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), causes.len() * CHANNELS, "a message for each cause and channel; SEED={seed}");
    let late = |cause: &str| {
        came.iter().filter(|((told, _), _)| told == cause).flat_map(|(_, ids)| ids).all(|(_, late)| *late)
    };
    assert!(late(&missed) && !late(&causes[1]), "what was missed is said to be late; SEED={seed}: {came:#?}");

    let fired = cluster.api().events_of("alert.fired").await;
    let of: Vec<&str> =
        fired.iter().map(|e| e["payload"]["subject"]["execution_id"].as_str().unwrap_or("archive")).collect();
    assert_eq!(of.len(), causes.len(), "no cause fired twice; SEED={seed}: {of:#?}");
    let place = |cause: &str| of.iter().position(|one| *one == cause).unwrap();
    assert!(place(&missed) < place(&later), "the missed points are judged in order; SEED={seed}: {of:#?}");
    let points: Vec<&str> = fired.iter().map(|event| event["payload"]["at"].as_str().unwrap()).collect();
    assert!(points.is_sorted(), "SEED={seed}: {points:#?}");
    assert_eq!(fired[place(&missed)]["payload"]["late"], true);
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    for event in cluster.api().events_of("delivery.sent").await {
        let id = event["stream"].as_str().unwrap().split_once('-').unwrap().1.to_owned();
        *sent.entry(id).or_default() += 1;
    }
    assert_eq!(sent, ids.iter().map(|id| ((*id).clone(), 1)).collect(), "SEED={seed}");
    assert!(cluster.api().events_of("alert.resolved").await.is_empty(), "the archive is still away");
    let copies = receiver.0.lock().len() - ids.len();
    println!("{} causes on {CHANNELS} channels, {copies} copies, SEED={seed}", causes.len());
    cluster.api().verify_log();
}
