//! Says everything that is wrong with a deployment profile, field by field.

use beampipe_domain::profile::{Deployment, RestRemote, Simulated, SlurmRemote, Spec};
use serde_json::{Map, Value};

use crate::api::problem::FieldError;
use crate::backends::slurm::{self, check::Wrong};

pub const TRANSLATION: &[&str] = &["algo", "num_par", "num_islands", "tm_url"];
const REST: &[&str] =
    &["kind", "dim_host_for_tm", "dim_port_for_tm", "deploy_host", "deploy_port", "use_https", "verify_ssl"];
const SIMULATED: &[&str] = &["kind", "latency_ms", "failure_probability", "loss_probability", "seed"];
const SLURM: &[&str] = &[
    "kind",
    "login_node",
    "ssh_port",
    "remote_user",
    "ssh_credential",
    "account",
    "home_dir",
    "log_dir",
    "dlg_root",
    "modules",
    "venv",
    "environment_setup",
    "exec_prefix",
    "facility",
    "job_duration_minutes",
    "num_nodes",
    "num_islands",
    "verbose_level",
    "max_threads",
    "all_nics",
    "zerorun",
    "sleepncopy",
    "check_with_session",
    "verify_ssl",
    "slurm_template",
    "container_runtime",
    "resources",
    "manager_topology",
    "poll_floor_seconds",
    "jump",
];

/// Without the nulls that stand for absent fields.
pub fn without_nulls(given: &Map<String, Value>) -> Map<String, Value> {
    given.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Names the fields that nobody reads.
pub fn unread(given: &Map<String, Value>, at: &str, errors: &mut Vec<FieldError>, known: &[&str]) {
    for field in given.keys().filter(|field| !known.contains(&field.as_str())) {
        let hint = format!("the fields here are {}", known.join(", "));
        errors.push(FieldError::new(format!("{at}.{field}"), "is not a field here").hint(hint));
    }
}

/// Reads the deployment.
pub fn deployment(given: Option<Value>, errors: &mut Vec<FieldError>) -> Option<Deployment> {
    const KINDS: &str = "rest_remote, slurm_remote or simulated";
    let wrong = |field: &str, message: &str, hint: &str| Err(FieldError::new(field, message).hint(hint));
    let read = match given {
        None | Some(Value::Null) => wrong("deployment", "is missing", "an object with its kind"),
        Some(Value::Object(given)) => {
            let kind = given.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let (known, required): (&[&str], &[&str]) = match kind.as_str() {
                "rest_remote" => (REST, &["deploy_host", "deploy_port"]),
                "slurm_remote" => {
                    (SLURM, &["login_node", "account", "home_dir", "log_dir", "dlg_root", "facility"])
                }
                "simulated" => (SIMULATED, &[]),
                _ => {
                    errors
                        .push(FieldError::new("deployment.kind", "is not a kind of deployment").hint(KINDS));
                    return None;
                }
            };
            unread(&given, "deployment", errors, known);
            let mut given = without_nulls(&given);
            given.retain(|field, _| known.contains(&field.as_str()));
            let mut complete = true;
            for field in required {
                if !given.contains_key(*field) {
                    errors.push(
                        FieldError::new(format!("deployment.{field}"), "is missing")
                            .hint(format!("{kind} needs it")),
                    );
                    complete = false;
                }
            }
            if !complete {
                return None;
            }
            given.remove("kind");
            typed(&kind, Value::Object(given))
        }
        Some(_) => wrong("deployment", "is no object", "an object with its kind"),
    };
    read.map_err(|error| errors.push(error)).ok()
}

fn typed(kind: &str, given: Value) -> Result<Deployment, FieldError> {
    let unfit = |error: serde_path_to_error::Error<serde_json::Error>| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let hint = message.split_once("expected ").map(|(_, expected)| format!("expected {expected}"));
        FieldError::new(format!("deployment.{path}"), message).hint(hint.unwrap_or("see docs/api.md".into()))
    };
    Ok(match kind {
        "rest_remote" => {
            Deployment::RestRemote(serde_path_to_error::deserialize::<_, RestRemote>(given).map_err(unfit)?)
        }
        "slurm_remote" => Deployment::SlurmRemote(Box::new(
            serde_path_to_error::deserialize::<_, SlurmRemote>(given).map_err(unfit)?,
        )),
        _ => Deployment::Simulated(serde_path_to_error::deserialize::<_, Simulated>(given).map_err(unfit)?),
    })
}

/// A name, an IPv4 address, or an IPv6 address in brackets: what stands before `:port` in an address.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.len() <= 253
        && host.bytes().any(|b| b.is_ascii_alphanumeric())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Checks what types cannot say.
pub fn spec(spec: &Spec, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, message: &str, hint: &str| {
        errors.push(FieldError::new(field, message).hint(hint));
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if spec.name.is_empty() || spec.name.len() > 100 || !spec.name.bytes().all(plain) {
        wrong("name", "cannot be used", "1 to 100 letters, digits and . _ - (ASCII)");
    }
    if spec.description.as_ref().is_some_and(|text| text.len() > 4000) {
        wrong("description", "is too long", "at most 4000 bytes");
    }
    if spec.max_concurrent_executions == Some(0) {
        wrong(
            "max_concurrent_executions",
            "is 0",
            "at least 1, or null for no limit; pause a profile to stop it",
        );
    }
    let translation = &spec.translation;
    if !(1..=100_000).contains(&translation.num_par) {
        wrong("translation.num_par", "is out of range", "1 to 100000 partitions");
    }
    if translation.num_islands > 10_000 {
        wrong("translation.num_islands", "is out of range", "1 to 10000 islands (0 counts as 1)");
    }
    if let Some(url) = &translation.tm_url {
        let fits = url::Url::parse(url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if !fits {
            wrong("translation.tm_url", "is no address", "http(s)://host:port without a password, or null");
        }
    }
    match &spec.deployment {
        Deployment::RestRemote(remote) => {
            if !is_host(&remote.deploy_host) {
                wrong(
                    "deployment.deploy_host",
                    "is no host",
                    "a host name or address without scheme or port; IPv6 in brackets",
                );
            }
            if remote.deploy_port == 0 {
                wrong("deployment.deploy_port", "is 0", "1 to 65535");
            }
            if remote.dim_host_for_tm.as_ref().is_some_and(|host| !is_host(host)) {
                wrong("deployment.dim_host_for_tm", "is no host", "a host name or address, or null");
            }
            if remote.dim_port_for_tm == Some(0) {
                wrong("deployment.dim_port_for_tm", "is 0", "1 to 65535, or null");
            }
        }
        Deployment::SlurmRemote(remote) => {
            for Wrong { field, message, hint } in slurm::check::check(remote) {
                wrong(&format!("deployment.{field}"), &message, &hint);
            }
        }
        Deployment::Simulated(simulated) => {
            for (field, p) in [
                ("failure_probability", simulated.failure_probability),
                ("loss_probability", simulated.loss_probability),
            ] {
                if !(0.0..=1.0).contains(&p) {
                    wrong(&format!("deployment.{field}"), "is no probability", "from 0 to 1");
                }
            }
            if simulated.latency_ms > 86_400_000 {
                wrong("deployment.latency_ms", "is more than a day", "0 to 86400000");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_stands_before_a_port() {
        for host in ["dim.example.org", "127.0.0.1", "[::1]", "head_node-2"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "..", "a:80", "::1", "[::1", "[a]", "a/b", "user@h", "a b", "ünï"] {
            assert!(!is_host(host), "{host}");
        }
    }
}
