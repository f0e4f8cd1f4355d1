//! The connection is cut at every point of a submission, over and over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::crash::Random;
use super::super::service::Service;
use super::super::slurm::{GOOD, execute};
use super::{ENDS_AT_ONCE, add, all_ended, is_terminal, now, one_job_each, ready, storm, told_of};
use crate::backends::slurm_site::Site;
use crate::ssh::login::{Slots, known_at, port, scratch};
use crate::ssh::relay::Relay;

/// Where a submission is when its connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    BeforeUpload,
    DuringUpload,
    AfterUpload,
    /// Nothing passes any more until the service has given up; then what it had sent arrives late, beside what it does anew.
    Frozen,
    /// sbatch has answered on the login node, and the service never hears it.
    BeforeAnswer,
    AfterAnswer,
}

const POINTS: [Point; 6] = [
    Point::BeforeUpload,
    Point::DuringUpload,
    Point::AfterUpload,
    Point::Frozen,
    Point::BeforeAnswer,
    Point::AfterAnswer,
];

/// Longer than the service waits for a connection that is silent.
const FROZEN: Duration = Duration::from_secs(10);
const SILENT: [(&str, &str); 2] =
    [("BEAMPIPE_SSH__KEEP_ALIVE_SECONDS", "2"), ("BEAMPIPE_SSH__CONNECT_TIMEOUT_SECONDS", "4")];

/// A profile behind a relay of its own, whose submissions come one at a time.
struct Lane {
    relay: Relay,
    profile: String,
    /// Where its sessions' directories are.
    sessions: PathBuf,
}

impl Lane {
    /// The directory of a session that is not among `before`.
    fn new_session(&self, before: &[PathBuf]) -> Option<PathBuf> {
        self.sessions().into_iter().find(|session| !before.contains(session))
    }

    fn sessions(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.sessions).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// One submission, cut at `point`; answers the execution's id.
    async fn run(&self, service: &Service, point: Point, random: &mut Random) -> String {
        let (before, cuts) = (self.sessions(), self.relay.cuts());
        if point == Point::BeforeUpload {
            self.relay.cut_after(1 + random.below(3000));
        }
        let id = execute(service, GOOD, &self.profile).await;
        let session = soon(service, &id, || self.new_session(&before)).await;
        let has = async |name: &str| soon(service, &id, || session.join(name).exists().then_some(())).await;
        match point {
            Point::BeforeUpload => {}
            Point::DuringUpload => self.relay.cut_after(1 + random.below(50_000)),
            Point::AfterUpload => {
                has("manifest.json").await;
                self.relay.cut();
            }
            Point::Frozen => {
                has("manifest.json").await;
                self.relay.freeze(true);
                tokio::time::sleep(FROZEN).await;
                self.relay.freeze(false);
            }
            Point::BeforeAnswer => {
                has("submit").await;
                self.relay.deafen(true);
                has("submit/answer").await;
                self.relay.cut();
            }
            Point::AfterAnswer => {
                has("submit/answer").await;
                tokio::time::sleep(Duration::from_millis(random.below(30))).await;
                self.relay.cut();
            }
        }
        let begun = Instant::now();
        while !is_terminal(&now(service, &id).await) {
            assert!(begun.elapsed() < Duration::from_secs(120), "{id}, cut {point:?}, does not end");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if !self.relay.has_cut() && self.relay.cuts() == cuts {
            self.relay.cut();
        }
        assert!(self.relay.cuts() > cuts, "{id}: nothing was cut {point:?}");
        id
    }
}

/// Waits, looking every millisecond, for what the login node's disk shows.
async fn soon<T>(service: &Service, id: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            panic!("the submission does not come so far: {:#?}", now(service, id).await);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Every point as often as the others, in an order of chance.
fn points(rounds: u64, random: &mut Random) -> Vec<Point> {
    let mut points: Vec<Point> = (0..rounds).flat_map(|_| POINTS).collect();
    for n in (1..points.len()).rev() {
        points.swap(n, usize::try_from(random.below(n as u64 + 1)).unwrap());
    }
    points
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_cut_connections_submits_every_execution_once() {
    let (soak, mut random) = storm();
    let (slots, root, rounds) = (Slots::new(), scratch(), if soak { 5 } else { 1 });
    let mut lanes = vec![];
    for n in 0..4 {
        let sessions = Path::new(&root).join(format!("lane-{n}/workspace"));
        lanes.push(Lane { relay: Relay::to(port()).await, profile: format!("lane-{n}"), sessions });
    }
    let ports: Vec<u16> = lanes.iter().map(|lane| lane.relay.port).collect();
    slots.write("default", "known_hosts", &known_at(&ports), 0o644);
    // What is looked for in vain is settled within the test.
    let settle = [("BEAMPIPE_WORK__SLURM_SETTLE_SECONDS", "30")];
    let service = ready(&slots, &[&SILENT[..], &settle].concat()).await;
    for lane in &lanes {
        let (root, port) = (format!("{root}/{}", lane.profile), lane.relay.port);
        add(&service, &root, &lane.profile, ENDS_AT_ONCE, |d| d["ssh_port"] = port.into()).await;
    }

    let plans: Vec<(u64, Vec<Point>)> =
        lanes.iter().map(|_| (random.below(u64::MAX) | 1, points(rounds, &mut random))).collect();
    let runs = lanes.iter().zip(plans).map(|(lane, (seed, points))| {
        let service = &service;
        async move {
            let (mut random, mut done) = (Random(seed), vec![]);
            for point in points {
                done.push((lane.run(service, point, &mut random).await, point));
            }
            done
        }
    });
    let cut: Vec<(String, Point)> = futures::future::join_all(runs).await.into_iter().flatten().collect();

    let all = all_ended(&service, cut.len(), Duration::from_secs(60)).await;
    for execution in &all {
        assert_eq!(execution["failure_class"], "application_exit", "{execution:#?}");
    }
    let mut uncertain = std::collections::BTreeMap::<Point, u32>::new();
    for (id, point) in &cut {
        let lost = told_of(&service, id).await.iter().any(|event| event == "execution.submission_uncertain");
        *uncertain.entry(*point).or_default() += u32::from(lost);
    }
    assert!(uncertain[&Point::BeforeAnswer] > 0, "no answer was lost: {uncertain:?}");
    assert_eq!(uncertain[&Point::BeforeUpload], 0, "nothing can have come of what was not uploaded");
    one_job_each(&service, &Site::shared().cluster(), &all).await;
    service.verify_log();
    let cuts: u32 = lanes.iter().map(|lane| lane.relay.cuts()).sum();
    eprintln!("{} submissions, {cuts} cuts, without an answer: {uncertain:?}; one job each", cut.len());
}
