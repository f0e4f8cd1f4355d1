//! Several processes on one PostgreSQL: they share the log and an artifact store, and any of them may die.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::service::{PROJECT, Service, is_terminal, sessions_on, survey_yaml};
use crate::backends::daliuge::{Own, SCRIPTS, told};

/// Sources that finish.
pub(super) const GOOD: [&str; 4] = ["HIPASSJ1318-21", "HIPASSJ0039-14", "HIPASSJ1305-20", "HIPASSJ1321-19"];
/// After so many seconds of silence a job is taken over.
const LEASE: u64 = 4;

/// Processes on one log; the first one answers requests.
pub struct Cluster {
    pub members: Vec<Service>,
    /// What they share beside the log.
    shared: tempfile::TempDir,
    log: String,
    /// What else each process is told.
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// Starts a process for each of `roles`, such as `["api"]`, on an empty log.
    pub async fn start(roles: &[&str]) -> Self {
        Self::start_with(roles, &[]).await
    }

    /// The same, with more settings for each process.
    pub async fn start_with(roles: &[&str], settings: &[(&str, &str)]) -> Self {
        // A schema of its own in the one server, called as its directory is.
        let shared = tempfile::Builder::new().rand_bytes(12).tempdir().unwrap();
        let name = shared.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let schema: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let log = format!("{}?schema=cluster_{schema}", told("BEAMPIPE_TEST_POSTGRES_URL"));
        let mut cluster = Self {
            members: vec![],
            shared,
            log,
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        };
        std::fs::create_dir(cluster.shared.path().join("artifacts")).unwrap();
        let key = beampipe::clock::Clock::system().random::<32>();
        std::fs::write(cluster.shared.path().join("sealing.key"), hex::encode(key)).unwrap();
        for roles in roles {
            cluster.join(roles).await;
        }
        cluster
    }

    /// Starts one more process.
    pub async fn join(&mut self, roles: &str) -> &mut Service {
        let words: Vec<String> = roles.split(',').map(|role| format!("\"{role}\"")).collect();
        let simulated = self.shared.path().join("simulated");
        let (roles, lease) = (format!("[{}]", words.join(",")), LEASE.to_string());
        let mut settings: Vec<(&str, &str)> = vec![
            ("BEAMPIPE_ROLES", &roles),
            ("BEAMPIPE_LOG__URL", &self.log),
            ("BEAMPIPE_WORK__SIMULATED_DIR", simulated.to_str().unwrap()),
            ("BEAMPIPE_WORK__LEASE_SECONDS", &lease),
            ("BEAMPIPE_WORK__HEARTBEAT_SECONDS", "1"),
            ("BEAMPIPE_WORK__SCHEDULER_LEASE_SECONDS", "3"),
            ("BEAMPIPE_WORK__DIM_POLL_MS", "500"),
        ];
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut member = Service::new(&settings);
        std::fs::create_dir_all(member.state_dir()).unwrap();
        std::os::unix::fs::symlink(
            self.shared.path().join("artifacts"),
            member.state_dir().join("artifacts"),
        )
        .unwrap();
        // What one seals the others open.
        std::fs::copy(self.shared.path().join("sealing.key"), member.state_dir().join("sealing.key"))
            .unwrap();
        member.key = self.members.first().map(|first| first.key.clone()).unwrap_or_default();
        member.start_again(&[]).await;
        self.members.push(member);
        self.members.last_mut().unwrap()
    }

    pub fn api(&self) -> &Service {
        &self.members[0]
    }

    /// Where the log is.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Sessions that the simulated backend has seen.
    pub fn simulated_sessions(&self) -> BTreeSet<String> {
        let found = std::fs::read_dir(self.shared.path().join("simulated"));
        found.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Uploads the demo's survey as `module`, run on `profile`.
pub(super) async fn survey(service: &Service, module: &str, profile: &str) {
    let yaml = survey_yaml()
        .replace(&format!("id: {PROJECT}"), &format!("id: {module}"))
        .replace("deployment_profile_name: demo", &format!("deployment_profile_name: {profile}"));
    let request = service.request(reqwest::Method::POST, "/project-configs");
    let answer = request.header("content-type", "application/x-yaml").body(yaml).send().await.unwrap();
    assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
}

pub(super) async fn simulated_profile(service: &Service, run_ms: u64) {
    let deployment = json!({"kind": "simulated", "latency_ms": run_ms});
    service.post("/deployment-profiles", json!({"name": "sim", "deployment": deployment})).await;
}

async fn real_profile(service: &Service, dim_port: u16) {
    let profile = std::fs::read_to_string(format!("{SCRIPTS}/demo/profile.json")).unwrap();
    let profile = profile
        .replace("@TM_URL@", &told("BEAMPIPE_TEST_TM_URL"))
        .replace("@DIM_PORT@", &dim_port.to_string());
    let mut profile: Value = serde_json::from_str(&profile).unwrap();
    profile["name"] = "real".into();
    profile["project_module"] = Value::Null;
    profile["is_default"] = false.into();
    service.post("/deployment-profiles", profile).await;
}

async fn executions(service: &Service) -> Vec<Value> {
    let page = service.get("/executions?items_per_page=500").await;
    page["items"].as_array().unwrap().clone()
}

pub(super) async fn until(
    service: &Service,
    what: &str,
    bound: Duration,
    is: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let all = executions(service).await;
        if is(&all) {
            return all;
        }
        if begun.elapsed() > bound {
            let live: Vec<String> = all
                .iter()
                .filter(|e| !is_terminal(e))
                .take(10)
                .map(|e| format!("{} {} {}", e["uuid"], e["status"], e["why"]["text"]))
                .collect();
            panic!(
                "not {what} after {bound:?}: {} executions, live {live:#?}\n{}",
                all.len(),
                service.said()
            );
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The sessions that were announced for executions, by execution; each attempt is announced once.
async fn announced(service: &Service, executions: &[Value]) -> BTreeMap<String, Vec<String>> {
    let mut announced = BTreeMap::new();
    for execution in executions {
        let id = execution["uuid"].as_str().unwrap().to_owned();
        let events = service.events(&format!("/executions/{id}/events")).await;
        let sessions: Vec<String> = events
            .iter()
            .filter(|event| event["event_type"] == "execution.submission_started")
            .map(|event| event["payload"]["session_id"].as_str().unwrap().to_owned())
            .collect();
        let distinct: BTreeSet<&String> = sessions.iter().collect();
        assert_eq!(sessions.len(), distinct.len(), "an attempt of {id} was announced twice");
        announced.insert(id, sessions);
    }
    announced
}

#[tokio::test]
async fn roles_are_split_over_processes_and_every_replica_shows_the_same() {
    let cluster = Cluster::start(&["api", "api", "scheduler", "scheduler", "worker", "worker"]).await;
    let [one, other] = [&cluster.members[0], &cluster.members[1]];
    simulated_profile(one, 300).await;
    survey(one, "split", "sim").await;
    for source in GOOD {
        one.post("/sources", json!({"project_module": "split", "source_identifier": source})).await;
    }
    let all = until(other, "completed", Duration::from_secs(60), |all| {
        all.len() == 4 && all.iter().all(|e| e["status"] == "completed")
    })
    .await;
    assert_eq!(announced(other, &all).await.values().map(Vec::len).sum::<usize>(), 4);
    assert_eq!(cluster.simulated_sessions().len(), 4);

    let acting = |body: &Value| body["scheduler"]["acting"].as_str().unwrap_or_default().to_owned();
    let [seen, seen_by_other] = [one.get("/ready").await, other.get("/ready").await];
    assert!(acting(&seen).starts_with("scheduler/"), "{seen:#}");
    assert_eq!(acting(&seen), acting(&seen_by_other));
    assert_eq!(seen["workers"]["alive"], 2, "{seen:#}");
    // What the probes of the acting scheduler saw is seen from here, too, once its heartbeat has told.
    let begun = Instant::now();
    loop {
        let seen = one.get("/ready").await;
        let archive = seen["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .find(|d| d["name"] == "tap_casda")
            .unwrap()
            .clone();
        if archive["up"] == true && archive["last_checked_at"].is_string() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{archive}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let workers = other.get("/workers").await;
    assert!(workers.as_array().unwrap().iter().all(|worker| worker["health"] == "healthy"), "{workers:#}");

    // One of the two acts, and every process says which it is.
    let mut acts = 0;
    for member in &cluster.members {
        let url = format!("http://127.0.0.1:{}/metrics", member.metrics_port);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        acts += usize::from(text.contains("\nbeampipe_scheduler_acting 1\n"));
        assert!(text.contains("beampipe_workers{pool=\"default\",status=\"active\"} 2"), "{text}");
    }
    assert_eq!(acts, 1);
    one.verify_log();
}

#[tokio::test]
async fn a_scheduler_that_dies_is_replaced_within_fifteen_seconds_and_one_that_stops_at_once() {
    let mut cluster = Cluster::start(&["api", "scheduler", "scheduler"]).await;
    let acting = async |cluster: &Cluster| {
        let ready = cluster.api().get("/ready").await;
        ready["scheduler"]["acting"].as_str().map(str::to_owned)
    };
    let member_of = |cluster: &Cluster, holder: &str| {
        let pid = |member: &Service| format!("-{}-", member.pid());
        cluster.members.iter().position(|member| holder.contains(&pid(member))).unwrap()
    };
    let changed = async |cluster: &Cluster, before: &str, bound: u64| {
        let begun = Instant::now();
        loop {
            match acting(cluster).await {
                Some(now) if now != before => return (now, begun.elapsed()),
                _ => assert!(begun.elapsed() < Duration::from_secs(bound), "{before} is not replaced"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (first, _) = changed(&cluster, "", 15).await;
    let victim = member_of(&cluster, &first);
    cluster.members[victim].kill();
    let (second, took) = changed(&cluster, &first, 15).await;
    eprintln!("a scheduler that was killed was replaced after {took:.1?}");

    cluster.members[victim].start_again(&[]).await;
    let holder = member_of(&cluster, &second);
    cluster.members[holder].stop().await;
    let (third, took) = changed(&cluster, &second, 15).await;
    eprintln!("a scheduler that stopped in order was replaced after {took:.1?}");
    assert_ne!(third, second);
    let events = cluster.api().get("/events?type=lease.taken&order=asc").await;
    let silent: Vec<&Value> =
        events.as_array().unwrap().iter().map(|event| &event["payload"]["silent_seconds"]).collect();
    assert!(
        silent.len() == 3 && silent[0].is_null() && silent[1].is_u64() && silent[2].is_null(),
        "{events:#?}"
    );
}

#[tokio::test]
async fn a_worker_that_slept_right_after_its_announcement_submits_nothing_when_it_wakes() {
    let mut cluster = Cluster::start(&["api", "scheduler"]).await;
    simulated_profile(cluster.api(), 300).await;
    survey(cluster.api(), "sleeper", "sim").await;
    let sleeper = cluster.join("worker").await;
    sleeper.stop().await;
    sleeper.start_again(&[("BEAMPIPE_TEST_STOP_AT", "session_asked_for")]).await;
    let pid = sleeper.pid();
    cluster.api().post("/sources", json!({"project_module": "sleeper", "source_identifier": GOOD[0]})).await;
    let begun = Instant::now();
    let stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    while !stopped() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not come to its announcement");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.simulated_sessions().len(), 0);
    cluster.join("worker").await;
    let all = until(cluster.api(), "completed by the other worker", Duration::from_secs(60), |all| {
        all.len() == 1 && all[0]["status"] == "completed"
    })
    .await;
    let sessions = cluster.simulated_sessions();
    assert_eq!(sessions.len(), 1);
    let before =
        cluster.api().events(&format!("/executions/{}/events", all[0]["uuid"].as_str().unwrap())).await;

    cluster.members[2].signal("-CONT");
    // It finds itself lost and starts again as another worker.
    let begun = Instant::now();
    loop {
        let workers = cluster.api().get("/workers?include_stopped=true").await;
        let of_it = |worker: &&Value| worker["process_id"] == pid;
        let of_it: Vec<&Value> = workers.as_array().unwrap().iter().filter(of_it).collect();
        let lost = of_it.iter().filter(|worker| worker["lost"] == true).count();
        let healthy = of_it.iter().filter(|worker| worker["health"] == "healthy").count();
        if (lost, healthy) == (1, 1) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{of_it:#?}\n{}", cluster.members[2].said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after =
        cluster.api().events(&format!("/executions/{}/events", all[0]["uuid"].as_str().unwrap())).await;
    assert_eq!(before, after, "what it still did was written down");
    assert_eq!(cluster.simulated_sessions(), sessions);
    assert_eq!(announced(cluster.api(), &all).await.values().map(Vec::len).sum::<usize>(), 1);
    cluster.api().verify_log();
}

/// `kill -9`, SIGSTOP and SIGTERM at random moments to random processes while executions run: five minutes of them in a soak,
/// half a minute otherwise.
#[tokio::test]
async fn a_storm_over_a_cluster_loses_nothing_and_submits_nothing_twice() {
    #[expect(clippy::disallowed_methods, reason = "the switch of `make soak`, and a seed to repeat a run")]
    let (soak, seed) = (std::env::var("BEAMPIPE_TEST_SOAK").is_ok(), std::env::var("SEED").ok());
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()) | 1);
    let mut random = Random(seed);
    eprintln!("SEED={seed}");
    let island = Own::island();
    let roles = ["api", "api", "scheduler", "scheduler", "worker", "worker", "worker"];
    let mut cluster = Cluster::start(&roles).await;
    simulated_profile(cluster.api(), 1500).await;
    real_profile(cluster.api(), island.port()).await;

    // Four sources of the sample archive in each project: 200 simulated and 20 real executions, or 40 and 4.
    let (simulated, real, lasting) = if soak { (50, 5, 300) } else { (10, 1, 30) };
    let projects: Vec<(String, &str)> = (0..simulated)
        .map(|n| (format!("sim{n}"), "sim"))
        .chain((0..real).map(|n| (format!("real{n}"), "real")))
        .collect();
    let wanted = projects.len() * GOOD.len();
    let mut to_register: Vec<(String, String)> = vec![];
    for (module, profile) in &projects {
        survey(cluster.api(), module, profile).await;
        to_register.extend(GOOD.iter().map(|source| (module.clone(), (*source).to_owned())));
    }
    // Real executions run one at a time: the first to come in.
    to_register.sort_by_key(|(module, _)| !module.starts_with("real"));
    to_register.reverse();

    let (begun, mut blows) = (Instant::now(), BTreeMap::<&str, u32>::new());
    let mut acknowledged = BTreeSet::new();
    let mut sleeping: Vec<(usize, Instant)> = vec![];
    // One is stopped exactly after it announced a submission, and wakes long after it was taken for lost.
    let slept = cluster.members.len() - 1;
    cluster.members[slept].stop().await;
    cluster.members[slept].start_again(&[("BEAMPIPE_TEST_STOP_AT", "submission_started")]).await;
    while begun.elapsed() < Duration::from_secs(lasting) {
        let pause = Instant::now() + Duration::from_millis(300 + random.below(1500));
        while Instant::now() < pause {
            register_some(&cluster, &mut random, &mut to_register, &mut acknowledged, soak).await;
        }
        let awake = |sleeping: &[(usize, Instant)], n| !sleeping.iter().any(|(one, _)| *one == n);
        sleeping.retain(|(one, until)| {
            let over = Instant::now() >= *until;
            if over {
                cluster.members[*one].signal("-CONT");
            }
            !over
        });
        let victim = usize::try_from(random.below(slept as u64)).unwrap();
        if !awake(&sleeping, victim) {
            continue;
        }
        match random.below(5) {
            0 | 1 => {
                *blows.entry("killed").or_default() += 1;
                cluster.members[victim].kill();
                cluster.members[victim].spawn(&[]);
            }
            // Longer than a lease, most of the time.
            2 | 3 => {
                *blows.entry("stopped and continued").or_default() += 1;
                cluster.members[victim].signal("-STOP");
                let asleep = Duration::from_millis(1000 + random.below(LEASE * 2000));
                sleeping.push((victim, Instant::now() + asleep));
            }
            _ => {
                *blows.entry("restarted in order").or_default() += 1;
                cluster.members[victim].stop().await;
                cluster.members[victim].spawn(&[]);
            }
        }
    }
    for (one, _) in sleeping {
        cluster.members[one].signal("-CONT");
    }
    let said = cluster.members[slept].said();
    assert!(
        said.contains("stopping the process here"),
        "the last worker was to sleep after an announcement:\n{said}"
    );
    cluster.members[slept].signal("-CONT");
    for member in &mut cluster.members {
        member.wait_until_ready(&[]).await;
    }
    while !to_register.is_empty() {
        register_some(&cluster, &mut random, &mut to_register, &mut acknowledged, true).await;
    }

    let bound = Duration::from_secs(if soak { 600 } else { 150 });
    let all = until(cluster.api(), "all at their end", bound, |all| {
        all.len() >= wanted && all.iter().all(is_terminal)
    })
    .await;
    let ended = all.iter().filter(|e| e["status"] == "completed").count();
    assert_eq!((all.len(), ended), (wanted, wanted), "every source was run once, and completed");
    // Counted at the backends: one session for each attempt that was announced, and none besides.
    let announced: BTreeSet<String> = announced(cluster.api(), &all).await.into_values().flatten().collect();
    let on_the_manager: Vec<String> = sessions_on(island.port()).await;
    let seen: BTreeSet<String> =
        cluster.simulated_sessions().into_iter().chain(on_the_manager.iter().cloned()).collect();
    let twice = on_the_manager.len() - on_the_manager.iter().collect::<BTreeSet<_>>().len();
    assert_eq!((announced.len(), twice), (wanted, 0), "an execution was announced more than once");
    assert_eq!(announced, seen);

    let mut registered = BTreeSet::new();
    for (module, _) in &projects {
        let page = cluster.api().get(&format!("/sources?project_module={module}&limit=500")).await;
        let names =
            page.as_array().unwrap().iter().map(|s| s["source_identifier"].as_str().unwrap().to_owned());
        registered.extend(names.map(|name| (module.clone(), name)));
    }
    let lost: Vec<_> = acknowledged.difference(&registered).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    same_answers(&cluster, &projects, &all).await;
    cluster.api().verify_log();
    eprintln!(
        "{wanted} executions completed, {} of them on the manager, {} acknowledged sources; {blows:?}",
        on_the_manager.len(),
        acknowledged.len()
    );
}

/// Registers the next source, and one that only has to be remembered; what is not acknowledged is tried again.
async fn register_some(
    cluster: &Cluster,
    random: &mut Random,
    to_register: &mut Vec<(String, String)>,
    acknowledged: &mut BTreeSet<(String, String)>,
    quickly: bool,
) {
    if let Some((module, source)) = to_register.pop() {
        // Either replica will do; one that is stopped does not answer.
        let replica = &cluster.members[usize::try_from(random.below(2)).unwrap()];
        let body = json!({"project_module": module, "source_identifier": source});
        let request = replica.request(reqwest::Method::POST, "/sources").json(&body);
        let answer = request.timeout(Duration::from_secs(2)).send().await;
        let known = |status: u16| status == 201 || status == 200 || status == 409;
        if answer.is_ok_and(|answer| known(answer.status().as_u16())) {
            acknowledged.insert((module, source));
        } else {
            to_register.push((module, source));
        }
    }
    tokio::time::sleep(Duration::from_millis(if quickly { 50 } else { 200 })).await;
}

/// Both replicas answer alike once they have read the same.
async fn same_answers(cluster: &Cluster, projects: &[(String, &str)], executions: &[Value]) {
    let head = cluster.api().get("/ready").await["log"]["head"].as_u64().unwrap();
    let mut paths: Vec<String> =
        ["/executions?items_per_page=500", "/deployment-profiles", "/projects"].map(str::to_owned).to_vec();
    paths.extend(projects.iter().map(|(module, _)| format!("/sources?project_module={module}&limit=500")));
    let ids = executions.iter().step_by(7).map(|e| e["uuid"].as_str().unwrap().to_owned());
    paths.extend(
        ids.flat_map(|id| [format!("/executions/{id}"), format!("/executions/{id}/events?limit=1000")]),
    );
    for path in paths {
        let joint = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{joint}min_position={head}");
        let [one, other] = [cluster.members[0].get(&path).await, cluster.members[1].get(&path).await];
        assert_eq!(one, other, "{path}");
    }
}

/// xorshift: a seed repeats the run, nothing more is asked of it.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
