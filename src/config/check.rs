//! Whether the values of the configuration **fit together**. What is refused is said by the field, and with what would be
//! right.

use super::{Artifacts, Config, ConfigError, Role};
use crate::artifacts;
use crate::engine::Place;

impl Config {
    /// Whether the values fit together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, detail: &str| Err(ConfigError::Invalid { field, detail: detail.to_owned() });
        if self.roles.is_empty() {
            return invalid("roles", "names at least one of api, scheduler, worker");
        }
        if self.alone_on_the_log() && !self.roles.contains(&Role::Api) {
            return invalid(
                "roles",
                "on the embedded log one process does everything, because no other process can open it: add api, or set \
                 log.url to a log that several processes share",
            );
        }
        if self.work.concurrency == 0 {
            return invalid("work.concurrency", "has to be at least 1");
        }
        if self.work.heartbeat_seconds == 0 || self.work.heartbeat_seconds * 2 > self.work.lease_seconds {
            return invalid(
                "work.heartbeat_seconds",
                "has to be at least 1 and at most half of work.lease_seconds",
            );
        }
        if self.work.scheduler_lease_seconds < 3 {
            return invalid(
                "work.scheduler_lease_seconds",
                "has to be at least 3: its holder beats every second",
            );
        }
        if self.work.tick_seconds == 0 || self.dependencies.probe_seconds == 0 || self.work.dim_poll_ms == 0 {
            return invalid(
                "work.tick_seconds, dependencies.probe_seconds, work.dim_poll_ms",
                "have to be above 0",
            );
        }
        if self.work.max_attempts == 0 {
            return invalid("work.max_attempts", "has to be at least 1");
        }
        if let Err(detail) = Place::parse(&self.log.url) {
            return invalid("log.url", &detail);
        }
        if !self.alone_on_the_log() && has_password(&self.log.url) {
            return invalid("log.url", "has a password in it; say with log.password where one is");
        }
        if self.work.tm_url.as_deref().is_some_and(has_user) {
            return invalid(
                "work.tm_url",
                "has a user or a password in it, which a translator does not know",
            );
        }
        let known = |word: &&String| {
            ["tap", "dim", "slurm"].contains(&word.as_str())
                || word.strip_prefix("slurm:").is_some_and(|profile| !profile.trim().is_empty())
        };
        if let Some(odd) = self.work.capabilities.iter().find(|word| !known(word)) {
            let detail = format!("has {odd:?}; there are tap, dim, slurm, and slurm:<profile>");
            return invalid("work.capabilities", &detail);
        }
        if self.roles.contains(&Role::Worker) && self.work.capabilities.is_empty() {
            return invalid("work.capabilities", "is empty: such a worker would do nothing");
        }
        self.check_artifacts()?;
        self.ssh.check()?;
        self.alerts.check()?;
        if let Place::EventStore { address, .. } = self.log_place() {
            let named = self.log.username.is_some() || address.contains('@');
            if named != self.log.password.is_some() {
                return invalid("log.username, log.password", "go together");
            }
        }
        if !matches!(self.telemetry.format.as_str(), "text" | "json") {
            return invalid("telemetry.format", "is text or json");
        }
        Ok(())
    }

    fn check_artifacts(&self) -> Result<(), ConfigError> {
        let invalid = |field, detail: &str| Err(ConfigError::Invalid { field, detail: detail.to_owned() });
        let Artifacts { endpoint, access_key_id, secret_access_key, .. } = &self.artifacts;
        let place = match self.artifacts_place() {
            Ok(place) => place,
            Err(detail) => return invalid("artifacts.url", &detail),
        };
        if access_key_id.is_some() != secret_access_key.is_some() {
            return invalid(
                "artifacts.access_key_id, artifacts.secret_access_key",
                "are given both or not at all",
            );
        }
        if matches!(place, artifacts::Place::Directory(_)) && (endpoint.is_some() || access_key_id.is_some())
        {
            return invalid("artifacts.endpoint, artifacts.access_key_id", "belong to an s3:// url");
        }
        if endpoint.as_deref().is_some_and(has_user) {
            let detail = "has a user or a password in it: keys are artifacts.access_key_id and artifacts.secret_access_key";
            return invalid("artifacts.endpoint", detail);
        }
        match endpoint.as_deref().map(|endpoint| url::Url::parse(endpoint).map(|url| url.scheme().to_owned()))
        {
            None => {}
            Some(Ok(scheme)) if scheme == "https" => {}
            Some(Ok(scheme)) if scheme == "http" && self.artifacts.allow_http => {}
            Some(Ok(scheme)) if scheme == "http" => {
                return invalid("artifacts.endpoint", "is http: that takes artifacts.allow_http = true");
            }
            Some(_) => return invalid("artifacts.endpoint", "is an https:// address"),
        }
        if self.artifacts.probe_seconds == 0 {
            return invalid("artifacts.probe_seconds", "has to be above 0");
        }
        Ok(())
    }
}

/// Whether a web address has a user or a password before its host.
fn has_user(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}

/// Whether an address has a password before its host, or among its parameters.
pub(super) fn has_password(url: &str) -> bool {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = base.split_once("://").map_or(base, |(_, rest)| rest);
    let user = authority.split('/').next().and_then(|authority| authority.rsplit_once('@'));
    user.is_some_and(|(user, _)| user.contains(':'))
        || query.split('&').any(|parameter| parameter.starts_with("password="))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::super::{Log, explain};
    use super::*;
    use crate::secrets::SecretRef;

    #[test]
    fn the_defaults_are_valid_and_loopback() {
        let config = Config::default();
        config.check().unwrap();
        assert!(config.http.listen.ip().is_loopback() && config.metrics.listen.ip().is_loopback());
    }

    #[test]
    fn a_password_is_a_reference_and_not_in_the_address() {
        let at = |url: &str| Config { log: Log { url: url.into(), ..Log::default() }, ..Config::default() };
        for url in ["postgres://u:canary@h/d", "postgres://u@h/d?password=canary"] {
            let refused = at(url).check().unwrap_err().to_string();
            assert!(refused.contains("log.password") && !refused.contains("canary"), "{refused}");
        }
        at("postgres://u@[::1]:5432/d?schema=s").check().unwrap();
        assert!(at("mysql://h/d").check().is_err());

        let directory = tempfile::tempdir().unwrap();
        let (file, secret) = (directory.path().join("beampipe.toml"), directory.path().join("secret"));
        std::fs::write(&secret, "canary\n").unwrap();
        let said = format!("[log]\nurl = \"postgres://u@h/d\"\npassword = {{ file = {secret:?} }}\n");
        std::fs::write(&file, said).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!(config.log_place(), Place::Postgres("postgres://u@h/d".into()));
        assert_eq!(config.log.password.unwrap().read().unwrap().expose_secret(), "canary");
        let explained = explain(Some(&file)).unwrap();
        assert!(explained.iter().all(|(_, value, _)| !value.contains("canary")), "{explained:?}");
    }

    #[test]
    fn a_place_for_artifacts_that_cannot_be_meant_is_refused_by_its_field() {
        let secret = || Some(SecretRef::Env("A".into()));
        let s3 = || Artifacts { url: "s3://bucket/pre/fix".into(), ..Artifacts::default() };
        let http = Some("http://127.0.0.1:9".to_owned());
        let cases = [
            (Artifacts { url: "gs://bucket".into(), ..s3() }, "artifacts.url"),
            (Artifacts { url: "s3:///prefix".into(), ..s3() }, "artifacts.url"),
            (Artifacts { url: "file:".into(), ..s3() }, "artifacts.url"),
            (Artifacts { access_key_id: secret(), ..s3() }, "both"),
            (Artifacts { endpoint: http.clone(), ..s3() }, "allow_http"),
            (Artifacts { endpoint: Some("s3.example.org".into()), ..s3() }, "artifacts.endpoint"),
            (Artifacts { endpoint: http, ..Artifacts::default() }, "belong to an s3"),
            (Artifacts { probe_seconds: 0, ..s3() }, "artifacts.probe_seconds"),
        ];
        for (artifacts, word) in cases {
            let error = Config { artifacts, ..Config::default() }.check().unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        Config { artifacts: s3(), ..Config::default() }.check().unwrap();
    }
}
