//! An **account** with its API keys. Stream `account-{id}`, the id made from the user name.
//!
//! Absent ─Create→ Active ─Disable→ Disabled ;  Active ─IssueKey→ Active ─RevokeKey→ Active
//!
//! Invariants: a user name is one account (its stream); a disabled account gets no keys
//! (`a_disabled_account_gets_no_keys`); a key never grants more than its account
//! (`a_key_grants_no_more_than_its_account`). Hashes are private fields: the codec shows them to nobody.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Aggregate, INSTALLATION, Rejection};

words! {
    /// What somebody may do; each includes the ones before.
    #[derive(Default)]
    pub enum Role { #[default] Viewer = "viewer", Operator = "operator", Admin = "admin" }
}

payload! {
    /// `account.created`
    pub struct Created {
        pub username: String,
        pub name: String,
        pub email: String,
        pub role: Role,
        /// Argon2id in PHC form; private.
        pub password_hash: String,
    }

    /// `account.password_changed`
    pub struct PasswordChanged {
        /// Private.
        pub password_hash: String,
    }

    /// `account.disabled`
    pub struct Disabled {
        pub reason: String,
    }

    /// `api_key.issued`
    pub struct KeyIssued {
        pub key_id: Uuid,
        pub name: String,
        /// What the key may do at most.
        pub scope: Role,
        pub expires_at: Option<DateTime<Utc>>,
        /// SHA-256 of the secret part, hexadecimal; private. (The secret is 256 random bits, so a fast hash is enough.)
        pub secret_sha256: String,
    }

    /// `api_key.revoked`
    pub struct KeyRevoked {
        pub key_id: Uuid,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Created(Created),
    PasswordChanged(PasswordChanged),
    Disabled(Disabled),
    KeyIssued(KeyIssued),
    KeyRevoked(KeyRevoked),
}

#[derive(Clone, Debug)]
pub enum Command {
    Create(Created),
    ChangePassword { password_hash: String },
    Disable { reason: String },
    IssueKey(KeyIssued),
    RevokeKey { key_id: Uuid },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub role: Role,
    /// Whether each key that was ever issued is still good.
    pub keys: BTreeMap<Uuid, bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Account {
    #[default]
    Absent,
    Active(Facts),
    Disabled(Facts),
}

impl Aggregate for Account {
    type Event = Event;
    type Command = Command;
    const CATEGORY: &'static str = "account";

    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        match (self, command) {
            (Self::Absent, Command::Create(created)) => Ok(vec![Event::Created(created)]),
            (Self::Absent, _) => Err(Rejection::new("account-unknown", "no such account")),
            (_, Command::Create(created)) => Err(Rejection::new(
                "account-exists",
                format!("the user name {:?} is taken", created.username),
            )),
            (Self::Active(facts), Command::IssueKey(key)) => {
                if key.scope > facts.role {
                    return Err(Rejection::new(
                        "scope-too-wide",
                        format!(
                            "an account with role {} cannot issue a key with scope {}",
                            facts.role, key.scope
                        ),
                    ));
                }
                if facts.keys.contains_key(&key.key_id) {
                    return Ok(vec![]);
                }
                Ok(vec![Event::KeyIssued(key)])
            }
            (Self::Active(_), Command::ChangePassword { password_hash }) => {
                Ok(vec![Event::PasswordChanged(PasswordChanged { password_hash })])
            }
            (Self::Active(_), Command::Disable { reason }) => Ok(vec![Event::Disabled(Disabled { reason })]),
            (Self::Disabled(_), Command::Disable { .. }) => Ok(vec![]),
            (Self::Disabled(_), Command::IssueKey(_) | Command::ChangePassword { .. }) => {
                Err(Rejection::new("account-disabled", "the account is disabled"))
            }
            (Self::Active(facts) | Self::Disabled(facts), Command::RevokeKey { key_id }) => {
                match facts.keys.get(&key_id) {
                    None => Err(Rejection::new("key-unknown", "the account has no such key")),
                    Some(false) => Ok(vec![]),
                    Some(true) => Ok(vec![Event::KeyRevoked(KeyRevoked { key_id })]),
                }
            }
        }
    }

    fn evolve(self, event: &Event) -> Self {
        let mut facts = match &self {
            Self::Absent => Facts::default(),
            Self::Active(facts) | Self::Disabled(facts) => facts.clone(),
        };
        let disabled = matches!(self, Self::Disabled(_));
        match event {
            Event::Created(e) => return Self::Active(Facts { role: e.role, keys: BTreeMap::new() }),
            Event::PasswordChanged(_) => return self,
            Event::Disabled(_) => return Self::Disabled(facts),
            Event::KeyIssued(e) => facts.keys.insert(e.key_id, true),
            Event::KeyRevoked(e) => facts.keys.insert(e.key_id, false),
        };
        if disabled { Self::Disabled(facts) } else { Self::Active(facts) }
    }

    fn tags(&self, _id: &str, _event: &Event) -> Vec<String> {
        vec![INSTALLATION.to_owned()]
    }

    fn pick(event: &crate::Event) -> Option<&Event> {
        match event {
            crate::Event::Account(event) => Some(event),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;

    fn create(role: Role) -> Command {
        Command::Create(Created { username: "ada".into(), role, ..Created::default() })
    }

    fn issue(scope: Role) -> Command {
        Command::IssueKey(KeyIssued { key_id: Uuid::from_u128(1), scope, ..KeyIssued::default() })
    }

    #[test]
    fn a_key_grants_no_more_than_its_account() {
        let account = given::<Account>([create(Role::Operator)]);
        assert_eq!(account.decide(issue(Role::Admin)).unwrap_err().code, "scope-too-wide");
        assert!(account.decide(issue(Role::Operator)).is_ok());
    }

    #[test]
    fn a_disabled_account_gets_no_keys() {
        let account = given::<Account>([create(Role::Admin), Command::Disable { reason: "left".into() }]);
        assert_eq!(account.decide(issue(Role::Viewer)).unwrap_err().code, "account-disabled");
    }

    #[test]
    fn a_revoked_key_stays_revoked() {
        let revoke = || Command::RevokeKey { key_id: Uuid::from_u128(1) };
        let account = given::<Account>([create(Role::Admin), issue(Role::Viewer), revoke()]);
        assert_eq!(account.decide(revoke()), Ok(vec![]));
        assert_eq!(account.decide(issue(Role::Viewer)), Ok(vec![]), "the same key is not issued again");
        assert!(matches!(account, Account::Active(facts) if facts.keys.values().all(|good| !good)));
    }

    #[test]
    fn a_user_name_is_one_account() {
        let account = given::<Account>([create(Role::Viewer)]);
        assert_eq!(account.decide(create(Role::Admin)).unwrap_err().code, "account-exists");
    }
}
