//! Time lines in the manner of Alertmanager's acceptance tests: what happens at which second, and who is told what when. The
//! clock is moved by hand, point by point.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::simulate::Simulation;
use super::{GRID_SECONDS, Told};
use crate::execution::{self as x, Event as X};
use crate::rule::{Escalation, Flapping, NoData, QuietHours, Severity, Spec, Trigger};
use crate::source::{self as s, Event as S};
use crate::{Event, alert, dependency, follower, job, project, rule, silence, worker};

mod rules;
mod triggers;

/// A midnight.
const BEGIN: i64 = 1_700_006_400;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(BEGIN + second, 0).unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

const CHANNEL: u128 = 0xc1;
const OTHER: u128 = 0xc2;

/// A story: what was told so far, and the run that judges it.
#[derive(Default)]
struct Line {
    run: Simulation,
    second: i64,
    told: u128,
    /// Everything in the order in which it was told, to be told again to another run.
    log: Vec<Told>,
    /// When what went out.
    sent: Vec<String>,
}

impl Line {
    fn begin() -> Self {
        let mut line = Self { second: -GRID_SECONDS, ..Self::default() };
        line.tell("p", project::Event::ConfigActivated(project::ConfigActivated::default()));
        line
    }

    /// With this rule, of id 1.
    fn with(spec: Spec) -> Self {
        let mut line = Self::begin();
        line.rule(1, spec);
        line
    }

    fn tell(&mut self, stream: &str, event: impl Into<Event>) -> Uuid {
        self.told += 1;
        let event_id = id(0xe000 + self.told);
        let told = Told {
            id: event_id,
            stream: stream.to_owned(),
            occurred_at: at(self.second),
            recorded_at: at(self.second),
            project: Some("p".into()),
            event: event.into(),
        };
        self.log.push(told.clone());
        self.run.take(told);
        event_id
    }

    fn rule(&mut self, n: u128, spec: Spec) {
        let spec = Spec { enabled: true, channel_ids: channels(&spec), ..spec };
        self.tell(&id(n).to_string(), rule::Event::Created(rule::Created { version: 1, spec }));
    }

    /// Judges the points up to a second, and notes what goes out.
    fn until(&mut self, second: i64) -> &mut Self {
        while self.second + GRID_SECONDS <= second {
            self.second += GRID_SECONDS;
            let turn = self.run.point(at(self.second));
            for batch in turn.sent {
                let said: Vec<String> = batch
                    .alerts()
                    .iter()
                    .map(|(owed, ended)| {
                        let name = &owed.subject.rule_name;
                        let more = owed.subject.labels.get("n").map(|n| format!(" {n}")).unwrap_or_default();
                        format!("{name}{more}{}", if ended.is_some() { " ended" } else { "" })
                    })
                    .collect();
                let to = if batch.channel == id(CHANNEL) { "" } else { " to the other" };
                self.sent.push(format!("{} {}{to}: {}", self.second, batch.message, said.join(", ")));
            }
        }
        self
    }

    /// A second after the last point.
    fn after(&mut self, what: impl FnOnce(&mut Self)) {
        self.second += 1;
        what(self);
        self.second -= 1;
    }

    fn dependency(&mut self, name: &str, up: bool) {
        let (dependency, reason) = (name.to_owned(), "refused".to_owned());
        let event = match up {
            true => dependency::Event::Up(dependency::Up { dependency, latency_ms: 1 }),
            false => dependency::Event::Down(dependency::Down { dependency, reason }),
        };
        self.tell(name, event);
    }

    fn execution(&mut self, n: u128) {
        let created = x::Created { project_module: "p".into(), ..x::Created::default() };
        self.tell(&id(n).to_string(), X::Created(Box::new(created)));
    }

    fn fails(&mut self, n: u128, class: &str) {
        let failed = x::Failed {
            failure_class: class.into(),
            error: "no such file\nat line 3".into(),
            ..x::Failed::default()
        };
        self.tell(&id(n).to_string(), X::Failed(failed));
    }

    fn completes(&mut self, n: u128) {
        self.tell(&id(n).to_string(), X::Completed(x::Completed::default()));
    }

    fn source(&mut self, n: u128) {
        let registered = s::Registered {
            project_module: "p".into(),
            source_identifier: format!("S{n}"),
            enabled: true,
            ..s::Registered::default()
        };
        self.tell(&id(n).to_string(), S::Registered(registered));
    }

    fn discovered(&mut self, n: u128) {
        let changed = s::DiscoveryChanged {
            source_identifier: format!("S{n}"),
            workflow_run_pending: true,
            ..s::DiscoveryChanged::default()
        };
        self.tell(&id(n).to_string(), S::DiscoveryChanged(changed));
    }

    fn admitted(&mut self, n: u128) {
        self.tell(&id(n).to_string(), S::Admitted(s::Admitted::default()));
    }

    fn silence(&mut self, name: &str, value: &str, from: i64, until: i64) {
        let matcher =
            silence::Matcher { name: name.into(), value: value.into(), ..silence::Matcher::default() };
        let set = silence::Created {
            matchers: vec![matcher],
            starts_at: at(from),
            ends_at: at(until),
            ..silence::Created::default()
        };
        self.tell(&format!("s{from}"), silence::Event::Created(set));
    }

    /// The summary of the one alert that there is.
    fn summary(&mut self, until: i64) -> String {
        let mut summaries = vec![];
        while self.second + GRID_SECONDS <= until {
            self.second += GRID_SECONDS;
            for (_, event) in self.run.point(at(self.second)).events {
                match event {
                    alert::Event::Fired(e) => summaries.push(format!("{} {}", self.second, e.summary)),
                    alert::Event::Resolved(_) => summaries.push(format!("{} ended", self.second)),
                    _ => {}
                }
            }
        }
        summaries.join("; ")
    }
}

fn channels(spec: &Spec) -> Vec<Uuid> {
    if spec.channel_ids.is_empty() { vec![id(CHANNEL)] } else { spec.channel_ids.clone() }
}

fn named(name: &str, trigger: Trigger) -> Spec {
    Spec { name: name.into(), trigger, ..Spec::default() }
}

fn away() -> Spec {
    named("away", Trigger::DependencyDown { dependency: "dim".into() })
}

fn failed() -> Spec {
    named("failed", Trigger::ExecutionTerminal { statuses: vec![rule::Ending::Failed] })
}

#[test]
fn the_points_of_the_grid_are_the_same_for_everybody() {
    let at = |seconds| DateTime::from_timestamp(seconds, 999_000_000).unwrap();
    assert_eq!(super::point(at(1_700_000_010)).timestamp(), 1_700_000_010);
    assert_eq!(super::point(at(1_700_000_024)), super::point(at(1_700_000_010)));
    assert_eq!(super::point(at(1_700_000_025)), super::next(super::point(at(1_700_000_010))));
}
