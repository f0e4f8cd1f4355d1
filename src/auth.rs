//! **Who asks**: passwords, tokens, and what they prove.
//!
//! Passwords are Argon2id, worked on off the async threads and a few at a time; an unknown user costs the same time as a
//! known one. Tokens are opaque: `bpa_<session>_<secret>` (access), `bpr_<session>_<secret>` (refresh) and
//! `bpk_<key>_<secret>` (API key), where the secret is 256 random bits, of which the log keeps the SHA-256 as a private
//! field. A fast hash is enough for those: nobody guesses 256 bits. Comparison takes constant time.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use beampipe_domain::account::{self, Account, Role};
use beampipe_log::{Direction, Filter};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::clock::Clock;
use crate::handle::{Context, Handle, HandleError};

/// How many passwords are worked on at once: each takes 19 MiB and a core for some milliseconds.
const AT_ONCE: usize = 2;
/// How many may wait for that before more are refused.
const WAITING: usize = 64;

/// The shortest password that is accepted, in characters.
pub const MIN_PASSWORD: usize = 12;
/// The longest, in bytes.
pub const MAX_PASSWORD: usize = 1024;

/// What is wrong with a password that somebody wants to set.
pub fn unfit_password(password: &str) -> Option<String> {
    if password.chars().count() < MIN_PASSWORD {
        return Some(format!("a password has at least {MIN_PASSWORD} characters"));
    }
    if password.len() > MAX_PASSWORD {
        return Some(format!("a password has at most {MAX_PASSWORD} bytes"));
    }
    None
}

/// Too many passwords wait to be worked on.
#[derive(Debug, thiserror::Error)]
#[error("too many passwords wait to be checked")]
pub struct Overloaded;

/// Hashes and checks passwords, a few at a time.
#[derive(Clone, Debug)]
pub struct Passwords {
    at_once: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// What an unknown user's password is checked against.
    decoy: Arc<str>,
}

fn argon2id() -> Argon2<'static> {
    // 19 MiB, two passes, one lane: the OWASP minimum for Argon2id.
    let params = Params::new(19 * 1024, 2, 1, None).expect("the parameters are within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(password: &str, salt: [u8; 16]) -> String {
    let salt = SaltString::encode_b64(&salt).expect("16 bytes are a salt");
    let hash = argon2id().hash_password(password.as_bytes(), &salt).expect("the parameters are valid");
    hash.to_string()
}

impl Passwords {
    pub fn new(clock: &Clock) -> Self {
        // Not a hash of anything: a salt and output of the right shape cost the same to check and never fit.
        let salt = SaltString::encode_b64(&clock.random::<16>()).expect("16 bytes are a salt");
        let output = base64::engine::general_purpose::STANDARD_NO_PAD.encode(clock.random::<32>());
        let decoy = format!("$argon2id$v=19$m=19456,t=2,p=1${salt}${output}");
        Self {
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            decoy: decoy.into(),
        }
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Overloaded)?;
        let _working = self.at_once.acquire().await.map_err(|_| Overloaded)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Overloaded)
    }

    /// The PHC string of a password.
    pub async fn hash(&self, clock: &Clock, password: String) -> Result<String, Overloaded> {
        let salt = clock.random();
        self.work(move || hash(&password, salt)).await
    }

    /// Whether `password` fits `known`; with no known hash the answer is no, after the same time.
    pub async fn fits(&self, known: Option<&str>, password: String) -> Result<bool, Overloaded> {
        let known_hash: Arc<str> = known.map_or_else(|| self.decoy.clone(), Arc::from);
        let fits = self
            .work(move || match PasswordHash::new(&known_hash) {
                Ok(hash) => argon2id().verify_password(password.as_bytes(), &hash).is_ok(),
                Err(_) => false,
            })
            .await?;
        Ok(fits && known.is_some())
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Access,
    Refresh,
    Key,
}

impl Purpose {
    fn prefix(self) -> &'static str {
        match self {
            Self::Access => "bpa",
            Self::Refresh => "bpr",
            Self::Key => "bpk",
        }
    }
}

/// A token as it is shown by a client: what it is for, of which session or key, and the digest of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    pub purpose: Purpose,
    pub id: Uuid,
    pub sha256: String,
}

/// A new token's text and the digest of its secret. The text is shown once and kept nowhere.
pub fn draw(clock: &Clock, purpose: Purpose, id: Uuid) -> (String, String) {
    let secret = URL_SAFE_NO_PAD.encode(clock.random::<32>());
    let token = format!("{}_{}_{secret}", purpose.prefix(), id.simple());
    (token, sha256_hex(secret.as_bytes()))
}

impl Shown {
    /// Takes a token apart; `None` when it has not the shape of one.
    pub fn read(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '_');
        let purpose = match parts.next()? {
            "bpa" => Purpose::Access,
            "bpr" => Purpose::Refresh,
            "bpk" => Purpose::Key,
            _ => return None,
        };
        let id = parts.next().filter(|id| id.len() == 32).and_then(|id| Uuid::try_parse(id).ok())?;
        let secret = parts.next().filter(|secret| secret.len() == 43)?;
        Some(Self { purpose, id, sha256: sha256_hex(secret.as_bytes()) })
    }

    /// Whether this is the token whose secret has the digest `known`; takes the same time whatever differs.
    pub fn is(&self, known: &str) -> bool {
        bool::from(self.sha256.as_bytes().ct_eq(known.as_bytes()))
    }
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Somebody whose token was good.
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    pub account_id: Uuid,
    pub username: String,
    /// The API key, if one was shown.
    pub key_id: Option<Uuid>,
    /// The session, if an access token was shown.
    pub session_id: Option<Uuid>,
    /// What the caller may do: the account's role, or the key's scope if that is less.
    pub role: Role,
    pub expires_at: Option<DateTime<Utc>>,
}

impl Principal {
    /// The actor in the log.
    pub fn actor(&self) -> String {
        match self.key_id {
            Some(key) => format!("key:{key}"),
            None => format!("user:{}", self.account_id),
        }
    }
}

/// A password that nobody can guess, for somebody who will choose one.
pub fn draw_password(clock: &Clock) -> String {
    URL_SAFE_NO_PAD.encode(clock.random::<18>())
}

/// What the first start prints, once.
pub struct FirstAdmin {
    pub username: String,
    pub one_time_password: String,
    pub api_key: String,
}

/// The first administrator could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error(transparent)]
    Handle(#[from] HandleError),
    #[error(transparent)]
    Read(#[from] beampipe_log::ReadError),
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

/// Makes the account `admin` with a password and an API key, if the log has no account at all. Of several processes that
/// start at once, one makes it: the others find the stream taken and answer `None`.
pub async fn bootstrap_admin(handle: &Handle) -> Result<Option<FirstAdmin>, BootstrapError> {
    let accounts = Filter::category("account");
    if !handle.log().read_all(0, Direction::Forward, 1, &accounts).await?.events.is_empty() {
        return Ok(None);
    }
    let clock = handle.clock();
    let username = "admin".to_owned();
    let account_id = beampipe_domain::id::account(&username);
    let one_time_password = draw_password(clock);
    let password_hash = Passwords::new(clock).hash(clock, one_time_password.clone()).await?;
    let context = Context::system(clock, "bootstrap");
    let create = account::Command::Create(account::Created {
        username: username.clone(),
        name: "Administrator".to_owned(),
        email: String::new(),
        role: Role::Admin,
        password_hash,
    });
    match handle.handle::<Account>(&account_id.to_string(), &context, create).await {
        Ok(_) => {}
        Err(error) if error.rejection() == Some("account-exists") => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let key_id = clock.id();
    let (api_key, secret_sha256) = draw(clock, Purpose::Key, key_id);
    let issue = account::Command::IssueKey(account::KeyIssued {
        key_id,
        name: "first".to_owned(),
        scope: Role::Admin,
        expires_at: None,
        secret_sha256,
    });
    handle.handle::<Account>(&account_id.to_string(), &context, issue).await?;
    Ok(Some(FirstAdmin { username, one_time_password, api_key }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_drawn() {
        let clock = Clock::system();
        for purpose in [Purpose::Access, Purpose::Refresh, Purpose::Key] {
            let id = clock.id();
            let (token, sha256) = draw(&clock, purpose, id);
            let shown = Shown::read(&token).unwrap();
            assert_eq!(shown, Shown { purpose, id, sha256: sha256.clone() });
            assert!(shown.is(&sha256));
            assert!(!shown.is(&sha256_hex(b"other")));
        }
    }

    #[test]
    fn what_has_not_the_shape_of_a_token_is_none() {
        for text in ["", "bpa", "bpa_1_2", "bpx_00000000000000000000000000000000_x", "Bearer bpa__"] {
            assert_eq!(Shown::read(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn an_unknown_user_is_refused_after_real_work() {
        let passwords = Passwords::new(&Clock::system());
        assert!(!passwords.fits(None, "anything at all".into()).await.unwrap());
        let known = passwords.hash(&Clock::system(), "correct horse battery".into()).await.unwrap();
        assert!(passwords.fits(Some(&known), "correct horse battery".into()).await.unwrap());
        assert!(!passwords.fits(Some(&known), "correct horse batterz".into()).await.unwrap());
        assert!(known.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{known}");
        assert!(PasswordHash::new(&passwords.decoy).is_ok(), "the decoy costs what a real one costs");
    }
}
