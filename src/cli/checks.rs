//! Checks of something outside: one line each, with what puts it right.

use serde_json::{Value, json};

use super::out::Column;
use super::{Context, Outcome};
use crate::backends::slurm::cluster::Cluster;
use crate::ssh::Credentials;

const COLUMNS: &[Column] = &[("CHECK", "check"), ("RESULT", "result"), ("DETAIL", "detail")];

/// What was checked so far.
#[derive(Default)]
pub(super) struct Checks {
    rows: Vec<Value>,
    pub(super) failed: bool,
}

impl Checks {
    pub(super) fn ok(&mut self, check: &str, detail: impl Into<String>) {
        self.rows.push(json!({"check": check, "result": "ok", "detail": detail.into()}));
    }

    pub(super) fn no(&mut self, check: &str, detail: impl Into<String>) {
        self.failed = true;
        self.rows.push(json!({"check": check, "result": "no", "detail": detail.into()}));
    }

    /// Nothing that stands in the way, and worth knowing.
    pub(super) fn warn(&mut self, check: &str, detail: impl Into<String>) {
        self.rows.push(json!({"check": check, "result": "warning", "detail": detail.into()}));
    }

    /// A command on the login node: what it printed, or how it ended.
    pub(super) async fn run(&mut self, cluster: &Cluster, check: &str, line: &str) -> bool {
        match cluster.run(line).await {
            Ok(said) if said.success() => {
                self.ok(check, said.stdout_text().trim().to_owned());
                true
            }
            Ok(said) => {
                let code = said.code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
                self.no(check, format!("ended with {code}: {}", said.stderr_text().trim()));
                false
            }
            Err(error) => {
                self.no(check, error.to_string());
                false
            }
        }
    }

    pub(super) fn show(self, context: &Context) -> anyhow::Result<Outcome> {
        context.out.list(&self.rows.into(), COLUMNS)?;
        Ok(if self.failed { Outcome::No } else { Outcome::Done })
    }

    pub(super) fn done<T, E: std::error::Error>(
        &mut self,
        check: &str,
        done: Result<T, E>,
        detail: impl FnOnce(T) -> String,
    ) -> bool {
        let good = done.is_ok();
        match done {
            Ok(value) => self.ok(check, detail(value)),
            Err(error) => self.no(check, error.to_string()),
        }
        good
    }

    pub(super) fn slot(&mut self, credentials: &Credentials, slot: &str) {
        for (check, found) in credentials.check(slot) {
            self.done(&format!("{slot}: {check}"), found, |detail| detail);
        }
    }

    /// What a submission and a poll will call.
    pub(super) async fn slurm(&mut self, cluster: &Cluster) {
        for (check, line) in [
            ("sbatch", "sbatch --version"),
            ("squeue", "squeue -h -o %i -u \"$(id -un)\" >/dev/null && echo answers"),
            ("sacct", "sacct -X -n -o jobid -S now >/dev/null && echo answers"),
            ("scancel", "scancel --version"),
        ] {
            self.run(cluster, check, line).await;
        }
    }
}
