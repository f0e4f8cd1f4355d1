//! `kill -9` again and again while two hundred ends of executions are told to five channels: each message arrives, the log says so
//! once of each, and no rule fires twice for one cause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use beampipe::alerts::evaluate::SETTLE;
use beampipe::clock::Clock;
use beampipe::handle::{Context, Handle};
use beampipe_domain::alerting;
use beampipe_domain::execution::{Command, Created, Execution};
use beampipe_log::sqlite::{SqliteLog, SqliteOptions};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

use super::service::Service;

const EXECUTIONS: usize = 200;
const CHANNELS: usize = 5;
const MESSAGES: usize = EXECUTIONS * CHANNELS;
/// How long the receiver takes to answer, with few kills and with many: a message that has left and is not recorded is what a
/// kill is about, and the storm has to last until the last of them.
const THINKS: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(300)];

/// How often each message came, by its id; and on which channels.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<BTreeMap<String, Vec<String>>>>, Duration);

async fn receive(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap) -> StatusCode {
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    receiver.0.lock().entry(id).or_default().push(uri.path().to_owned());
    tokio::time::sleep(receiver.1).await;
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

    /// How many different messages came.
    fn came(&self) -> usize {
        self.0.lock().len()
    }
}

/// Executions that were cancelled, by their decider, while nobody else has the log; answers when they were.
async fn cancelled(service: &Service) -> DateTime<Utc> {
    let clock = Clock::system();
    let now = {
        let clock = clock.clone();
        Arc::new(move || clock.now())
    };
    let log = SqliteLog::open(service.state_dir().join("events.sqlite"), SqliteOptions::new(now)).unwrap();
    let handle = Handle::new(Arc::new(log), clock.clone());
    let executions = (0..EXECUTIONS).map(|_| {
        let (handle, clock, id) = (&handle, &clock, clock.id().to_string());
        async move {
            let context = Context::system(clock, "test");
            let created = Created { project_module: "p".into(), ..Created::default() };
            handle.handle::<Execution>(&id, &context, Command::Create(Box::new(created))).await.unwrap();
            handle.handle::<Execution>(&id, &context, Command::RequestCancel { reason: None }).await.unwrap();
        }
    });
    futures::stream::iter(executions).buffer_unordered(64).collect::<Vec<_>>().await;
    clock.now()
}

/// The events of a type, with what of each is wanted.
async fn events(service: &Service, kind: &str, field: impl Fn(&Value) -> String) -> Vec<String> {
    let all = service.get(&format!("/events?type={kind}&order=asc&limit=5000")).await;
    all.as_array().unwrap().iter().map(field).collect()
}

fn stream(event: &Value) -> String {
    event["stream"].as_str().unwrap().split_once('-').unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_in_a_storm_it_fires_once_for_each_cause_and_delivers_every_message() {
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`, and a seed to repeat a run")]
    let (soak, seed) = (std::env::var("BEAMPIPE_TEST_SOAK").is_ok(), std::env::var("SEED").ok());
    let seed: u64 = seed.map_or_else(|| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    let kills = if soak { 50 } else { 8 };
    println!("SEED={seed}, {kills} kills");
    let mut random = StdRng::seed_from_u64(seed);
    let receiver = Receiver(Arc::default(), THINKS[usize::from(soak)]);
    let url = receiver.listen().await;
    let mut service = Service::start(&[("BEAMPIPE_OUTGOING__ALLOW_NETWORKS", "[\"127.0.0.0/8\"]")]).await;
    let mut channels: Vec<Uuid> = vec![];
    for n in 0..CHANNELS {
        let channel =
            json!({"name": format!("c{n}"), "kind": "webhook", "config": {"url": format!("{url}/{n}")}});
        let channel = service.post("/notification-channels", channel).await;
        channels.push(channel["uuid"].as_str().unwrap().parse().unwrap());
    }
    let rule = json!({
        "name": "ends", "trigger_kind": "execution_terminal", "channel_ids": channels,
        "trigger_config": {"statuses": ["cancelled"]},
    });
    service.post("/alert-rules", rule).await;
    service.stop().await;
    // The point at which they are judged is over when the first process begins.
    let judged = alerting::next(alerting::point(cancelled(&service).await)) + SETTLE;
    let clock = Clock::system();
    while clock.now() < judged {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let began = Instant::now();
    let a_turn = MESSAGES / (kills + 4);
    for kill in 0..kills {
        service.spawn(&[]);
        if kill % 3 == 0 {
            // Killed while it reads up, judges or enqueues, or whatever it has come to.
            tokio::time::sleep(Duration::from_millis(random.random_range(150..=450))).await;
            service.kill();
            continue;
        }
        // Killed while some are on their way: at a moment that the number of those that came decides.
        let until = receiver.came() + random.random_range(1..=a_turn);
        let started = Instant::now();
        while receiver.came() < until {
            assert!(service.is_running(), "kill {kill}, SEED={seed}:\n{}", service.said());
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "kill {kill}, SEED={seed}:\n{}",
                service.said()
            );
            tokio::time::sleep(Duration::from_millis(random.random_range(1..=20))).await;
        }
        service.kill();
    }
    let left = MESSAGES - receiver.came();
    assert!(left > 0, "the storm was over before the last kill; SEED={seed}");
    let (killed_for, calm) = (began.elapsed(), Instant::now());
    service.start_again(&[]).await;
    while receiver.came() < MESSAGES
        || !service.get("/alert-deliveries?status=pending&limit=1").await.as_array().unwrap().is_empty()
        || !service.get("/alert-deliveries?status=retrying&limit=1").await.as_array().unwrap().is_empty()
    {
        assert!(calm.elapsed() < Duration::from_secs(60), "SEED={seed}: {} came", receiver.came());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let calm = calm.elapsed();

    let causes = events(&service, "alert.fired", |event| event["payload"]["causes"][0].to_string()).await;
    let once: BTreeSet<&String> = causes.iter().collect();
    assert_eq!((causes.len(), once.len()), (EXECUTIONS, EXECUTIONS), "no rule fired twice; SEED={seed}");
    let enqueued = events(&service, "delivery.enqueued", stream).await;
    let ids: BTreeSet<String> = enqueued.iter().cloned().collect();
    assert_eq!((enqueued.len(), ids.len()), (MESSAGES, MESSAGES), "SEED={seed}");
    let came = receiver.0.lock().clone();
    assert_eq!(came.keys().cloned().collect::<BTreeSet<_>>(), ids, "none is missing; SEED={seed}");
    assert!(
        came.values().all(|on| on.iter().collect::<BTreeSet<_>>().len() == 1),
        "each came to its channel"
    );
    let copies: usize = came.values().map(|on| on.len() - 1).sum();
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    for id in events(&service, "delivery.sent", stream).await {
        *sent.entry(id).or_default() += 1;
    }
    assert_eq!(sent, ids.iter().map(|id| (id.clone(), 1)).collect(), "the log says of each that it was sent");
    let failed = service.get("/events?type=alert.delivery_failed").await;
    assert_eq!(failed, json!([]), "nothing was given up");
    println!(
        "{kills} kills in {killed_for:.1?}, the last {left} of {MESSAGES} in {calm:.1?}, {copies} copies, SEED={seed}"
    );
    // Twenty at once are 330 a second, or 66 where the receiver takes longer; a tenth of it is little enough.
    let bound = Duration::from_secs_f64(5.0 + left as f64 * 0.5 * receiver.1.as_secs_f64());
    assert!(calm < bound, "{left} messages took {calm:?}");
    service.stop().await;
    service.verify_log();
}
