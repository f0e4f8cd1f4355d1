//! Where the server is and how to get to it: an address without a password, and what is set on every connection.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::OpenError;

/// Gives the password anew for every connection, so that a changed one is found without a restart; or says why not.
pub type Password = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(3);
/// How long the network may keep what was sent before the connection counts as broken.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

pub(super) struct Target {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    password: Option<Password>,
    pub schema: String,
    /// The address for people: it has no password in it.
    pub shown: String,
}

impl Target {
    /// Reads `postgres://user@host[:port][,host…]/database?sslmode=…&sslrootcert=…&schema=…`.
    pub fn parse(url: &str, password: Option<Password>, read_only: bool) -> Result<Self, OpenError> {
        let invalid = |what: String| OpenError::Address { what };
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut ours, mut theirs) = (Parameters::default(), Vec::new());
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("schema", value)) => ours.schema = Some(value.to_owned()),
                Some(("sslmode", value)) => ours.mode = Some(value.to_owned()),
                Some(("sslrootcert", value)) => {
                    let path = percent_encoding::percent_decode_str(value).decode_utf8();
                    let path = path.map_err(|_| invalid("sslrootcert is no UTF-8 when decoded".into()))?;
                    ours.roots = Some(path.into_owned());
                }
                _ => theirs.push(parameter),
            }
        }
        let rest = if theirs.is_empty() { base.to_owned() } else { format!("{base}?{}", theirs.join("&")) };
        // The address itself is not repeated: somebody may have put a password into it after all.
        let mut config: Config =
            rest.parse().map_err(|error| invalid(format!("it cannot be read: {error}")))?;
        if config.get_password().is_some() {
            return Err(invalid("it has a password in it; a password is given by reference".into()));
        }
        let schema = ours.schema.unwrap_or_else(|| super::DEFAULT_SCHEMA.to_owned());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if schema.is_empty()
            || schema.len() > 40
            || !schema.chars().all(plain)
            || schema.starts_with(|c: char| !c.is_ascii_lowercase())
        {
            return Err(invalid(format!(
                "schema {schema:?} is not a lower-case letter and up to 39 letters, digits or _"
            )));
        }
        let near = config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        });
        let encrypt = match ours.mode.as_deref() {
            None => ours.roots.is_some() || !near,
            Some("disable") => false,
            Some("require" | "verify-full") => true,
            Some(other) => {
                return Err(invalid(format!(
                    "sslmode {other:?} is neither disable, require nor verify-full"
                )));
            }
        };
        let tls = encrypt.then(|| connector(ours.roots.as_deref().map(Path::new))).transpose()?;
        config
            .ssl_mode(if encrypt { SslMode::Require } else { SslMode::Disable })
            .connect_timeout(CONNECT)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if !read_only && config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let shown = base.to_owned();
        Ok(Self { config, tls, password, schema, shown })
    }

    /// The settings of one connection that is used for `what`, and how it is encrypted.
    pub fn settings(&self, what: &str) -> Result<(Config, Option<MakeRustlsConnect>), String> {
        let mut config = self.config.clone();
        config.application_name(format!("beampipe {} {what}", self.schema));
        if let Some(password) = &self.password {
            config.password(password()?);
        }
        Ok((config, self.tls.clone()))
    }
}

#[derive(Default)]
struct Parameters {
    schema: Option<String>,
    mode: Option<String>,
    roots: Option<String>,
}

/// A TLS client that believes `roots`, or what this machine believes.
fn connector(roots: Option<&Path>) -> Result<MakeRustlsConnect, OpenError> {
    let invalid = |what: String| OpenError::Address { what };
    let mut store = rustls::RootCertStore::empty();
    match roots {
        Some(path) => {
            let unreadable = |error| invalid(format!("sslrootcert {}: {error}", path.display()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                let certificate = certificate.map_err(unreadable)?;
                store
                    .add(certificate)
                    .map_err(|error| invalid(format!("sslrootcert {}: {error}", path.display())))?;
            }
        }
        None => {
            let _unusable = store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    // Named, so that it does not matter whether the process has chosen one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(format!("TLS cannot be used: {error}")))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        Target::parse(url, None, false).err().expect("it is refused").to_string()
    }

    #[test]
    fn an_address_has_no_password_and_a_plain_schema() {
        assert!(refusal("postgres://u:canary@h/d").contains("by reference"));
        assert!(!refusal("postgres://u:canary@h/d").contains("canary"));
        assert!(refusal("postgres://u@h/d?schema=a;drop").contains("schema"));
        assert!(refusal("postgres://u@h/d?sslmode=prefer").contains("prefer"));
        let target = Target::parse("postgres://u@127.0.0.1/d?schema=survey_1", None, false).unwrap();
        assert_eq!((&*target.schema, &*target.shown), ("survey_1", "postgres://u@127.0.0.1/d"));
    }

    #[test]
    fn the_file_of_authorities_is_found_where_its_percent_encoded_name_says() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("root ca+100%.pem"), "").unwrap();
        let url = |name: &str| {
            format!("postgres://u@db.example/d?sslrootcert={}/{name}", directory.path().display())
        };
        assert!(Target::parse(&url("root%20ca+100%25.pem"), None, false).unwrap().tls.is_some());
        // A plus is a plus, as libpq reads it.
        let refused = refusal(&url("root+ca+100%25.pem"));
        assert!(refused.contains("/root+ca+100%.pem:"), "{refused}");
        assert!(refusal(&url("%FF.pem")).contains("sslrootcert is no UTF-8"));
    }

    #[test]
    fn what_is_far_is_encrypted_unless_it_is_said_otherwise() {
        let encrypted = |url: &str| Target::parse(url, None, false).unwrap().tls.is_some();
        assert!(!encrypted("postgres://u@localhost/d") && !encrypted("postgres://u@[::1]/d"));
        assert!(
            encrypted("postgres://u@db.example/d") && encrypted("postgres://u@127.0.0.1/d?sslmode=require")
        );
        assert!(!encrypted("postgres://u@db.example/d?sslmode=disable"));
    }
}
