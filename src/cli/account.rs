//! `account`: who may come in. Passwords are typed or piped in, never arguments: those are seen by every process.

use beampipe_domain::account::{Account, Command};
use clap::Subcommand;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::io::IsTerminal;
use uuid::Uuid;

use super::client::path;
use super::files::LogFile;
use super::out::{Column, remark};
use super::{Context, Outcome};
use crate::auth;
use crate::clock::Clock;
use crate::handle::{self, Handle};

const ACCOUNTS: &[Column] = &[
    ("USERNAME", "username"),
    ("NAME", "name"),
    ("ROLE", "role"),
    ("EMAIL", "email"),
    ("DISABLED", "disabled"),
    ("CREATED", "created_at"),
    ("UUID", "uuid"),
];
const KEYS: &[Column] = &[
    ("UUID", "uuid"),
    ("NAME", "name"),
    ("SCOPE", "scope"),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
    ("CREATED", "created_at"),
];

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Role {
    Viewer,
    Operator,
    Admin,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
#[expect(private_interfaces, reason = "roles are words of the command line only")]
pub enum Verb {
    /// Create an account; the password is asked for (API)
    Create {
        username: String,
        #[arg(long, value_enum, default_value = "viewer")]
        role: Role,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        email: Option<String>,
        /// Let the service draw a password and print it, once.
        #[arg(long)]
        generate: bool,
    },
    /// The accounts (API)
    List,
    /// Disable an account, its sessions and its keys (API)
    Disable {
        username: String,
        #[arg(long, default_value = "disabled from the command line")]
        reason: String,
    },
    /// Set a password; it is asked for (API)
    Password {
        username: String,
        /// Let the service draw a password and print it, once.
        #[arg(long)]
        generate: bool,
    },
    /// Draw a new password while the service is stopped, for whoever has lost the last one (files)
    Recover {
        username: String,
        #[command(flatten)]
        log: LogFile,
    },
    /// API keys of the account that asks (API)
    #[command(subcommand)]
    Key(Key),
}

#[derive(Debug, Subcommand)]
#[expect(private_interfaces, reason = "roles are words of the command line only")]
pub enum Key {
    /// Issue a key; it is shown this once (API)
    Issue {
        /// What the key is for.
        name: String,
        /// What it may do at most.
        #[arg(long, value_enum, default_value = "viewer")]
        scope: Role,
        /// RFC 3339, such as 2027-01-01T00:00:00Z; it does not expire if left out.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<chrono::DateTime<chrono::Utc>>,
    },
    /// The keys, without their secrets (API)
    List,
    /// Revoke a key; an administrator may revoke anybody's (API)
    Revoke {
        #[arg(value_name = "KEY")]
        key_id: Uuid,
    },
}

impl Verb {
    pub async fn run(self, context: &Context) -> anyhow::Result<Outcome> {
        if let Self::Recover { username, log } = &self {
            shown_once(context, &recover(username, log).await?)?;
            return Ok(Outcome::Done);
        }
        let client = context.client()?;
        match self {
            Self::Recover { .. } => {}
            Self::Create { username, role, name, email, generate } => {
                let mut body =
                    json!({"username": username, "role": role.word(), "name": name, "email": email});
                add_password(&mut body, generate)?;
                shown_once(context, &client.post("/accounts", &body).await?)?;
            }
            Self::List => context.out.list(&client.get("/accounts", &[]).await?, ACCOUNTS)?,
            Self::Disable { username, reason } => {
                let path = path(["accounts", &username, "disable"]);
                context.out.thing(&client.post(&path, &json!({"reason": reason})).await?)?;
            }
            Self::Password { username, generate } => {
                let mut body = json!({});
                add_password(&mut body, generate)?;
                shown_once(context, &client.post(&path(["accounts", &username, "password"]), &body).await?)?;
            }
            Self::Key(key) => key.run(context).await?,
        }
        Ok(Outcome::Done)
    }
}

/// Whoever may write the log's file is trusted with it: there is nobody else to ask.
async fn recover(username: &str, file: &LogFile) -> anyhow::Result<Value> {
    let clock = Clock::system();
    let log = file.writable().await?.into_log();
    let handle = Handle::new(log.clone(), clock.clone());
    let password = auth::draw_password(&clock);
    let password_hash = auth::Passwords::new(&clock).hash(&clock, password.clone()).await?;
    let context = handle::Context::system(&clock, "cli/recover");
    let account = beampipe_domain::id::account(username).to_string();
    let changed =
        handle.handle::<Account>(&account, &context, Command::ChangePassword { password_hash }).await;
    log.close().await;
    changed?;
    Ok(json!({"username": username, "password": password}))
}

impl Key {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = context.client()?;
        match self {
            Self::Issue { name, scope, expires_at } => {
                let body = json!({"name": name, "scope": scope.word(), "expires_at": expires_at});
                shown_once(context, &client.post("/api-keys", &body).await?)?;
            }
            Self::List => context.out.list(&client.get("/api-keys", &[]).await?, KEYS)?,
            Self::Revoke { key_id } => {
                client.delete(&path(["api-keys", &key_id.to_string()])).await?;
            }
        }
        Ok(())
    }
}

/// Writes an answer; says so if it has a secret that is never shown again.
fn shown_once(context: &Context, answer: &Value) -> std::io::Result<()> {
    context.out.thing(answer)?;
    if ["api_key", "one_time_password"].iter().any(|field| answer[field].is_string()) {
        remark("keep the secret now: it is not shown again");
    }
    Ok(())
}

/// Without a password in the request the service draws one.
fn add_password(body: &mut Value, generate: bool) -> anyhow::Result<()> {
    if !generate {
        body["password"] = password()?.expose_secret().into();
    }
    Ok(())
}

/// A password, typed twice without echo, or the first line of standard input.
fn password() -> anyhow::Result<SecretString> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        let password = SecretString::from(line.trim_end_matches(['\r', '\n']).to_owned());
        anyhow::ensure!(
            !password.expose_secret().is_empty(),
            "standard input has no password in its first line"
        );
        return Ok(password);
    }
    let terminal = console::Term::stderr();
    let ask = |prompt: &str| -> std::io::Result<SecretString> {
        terminal.write_str(prompt)?;
        Ok(SecretString::from(terminal.read_secure_line()?))
    };
    let (first, second) = (ask("password: ")?, ask("again: ")?);
    anyhow::ensure!(first.expose_secret() == second.expose_secret(), "the two were not the same");
    anyhow::ensure!(!first.expose_secret().is_empty(), "a password cannot be empty");
    Ok(first)
}
