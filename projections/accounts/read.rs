//! Reading accounts, API keys and sessions. The hashes are for comparing with, never for showing: none of these rows can be
//! serialised with them.

use beampipe_domain::account::Role;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::reader::{ReadModelError, handle};
use crate::sql::blob;

row! {
    /// An account.
    pub struct Account {
        pub id: Uuid,
        pub username: String,
        pub name: String,
        pub email: String,
        pub role: Role,
        #[serde(skip)]
        pub password_hash: String,
        pub disabled: bool,
        pub disabled_reason: Option<String>,
        pub created_at: DateTime<Utc>,
        pub updated_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// An API key.
    pub struct ApiKey {
        pub id: Uuid,
        pub account_id: Uuid,
        pub name: String,
        /// What it may do at most.
        pub scope: Role,
        #[serde(skip)]
        pub secret_sha256: String,
        pub expires_at: Option<DateTime<Utc>>,
        pub issued_at: DateTime<Utc>,
        pub revoked_at: Option<DateTime<Utc>>,
    }
}

row! {
    /// A login with its present pair of tokens.
    pub struct Session {
        pub id: Uuid,
        pub account_id: Uuid,
        #[serde(skip)]
        pub access_sha256: String,
        #[serde(skip)]
        pub refresh_sha256: String,
        pub access_expires_at: DateTime<Utc>,
        pub refresh_expires_at: DateTime<Utc>,
        pub opened_at: DateTime<Utc>,
        pub closed_at: Option<DateTime<Utc>>,
        pub closed_reason: Option<String>,
    }
}

handle! {
    /// Reads accounts, keys and sessions.
    Accounts
}

impl Accounts {
    pub fn get(&self, id: Uuid) -> Result<Option<Account>, ReadModelError> {
        let sql = format!("SELECT {} FROM accounts WHERE id = ?1", Account::columns());
        self.0.one(&sql, [blob(&id)], Account::from_row)
    }

    /// By user name, whatever its case.
    pub fn by_username(&self, username: &str) -> Result<Option<Account>, ReadModelError> {
        self.get(beampipe_domain::id::account(username))
    }

    /// Every account, oldest first.
    pub fn list(&self) -> Result<Vec<Account>, ReadModelError> {
        let sql = format!("SELECT {} FROM accounts ORDER BY created_position", Account::columns());
        self.0.all(&sql, [], Account::from_row)
    }

    pub fn api_key(&self, id: Uuid) -> Result<Option<ApiKey>, ReadModelError> {
        let sql = format!("SELECT {} FROM api_keys WHERE id = ?1", ApiKey::columns());
        self.0.one(&sql, [blob(&id)], ApiKey::from_row)
    }

    /// Every key of an account, oldest first, the revoked ones too.
    pub fn api_keys(&self, account: Uuid) -> Result<Vec<ApiKey>, ReadModelError> {
        let columns = ApiKey::columns();
        let sql = format!("SELECT {columns} FROM api_keys WHERE account_id = ?1 ORDER BY issued_position");
        self.0.all(&sql, [blob(&account)], ApiKey::from_row)
    }

    pub fn session(&self, id: Uuid) -> Result<Option<Session>, ReadModelError> {
        let sql = format!("SELECT {} FROM sessions WHERE id = ?1", Session::columns());
        self.0.one(&sql, [blob(&id)], Session::from_row)
    }

    /// The sessions of an account that are not closed, oldest first.
    pub fn open_sessions(&self, account: Uuid) -> Result<Vec<Session>, ReadModelError> {
        let columns = Session::columns();
        let sql = format!(
            "SELECT {columns} FROM sessions WHERE account_id = ?1 AND closed_at IS NULL ORDER BY opened_position"
        );
        self.0.all(&sql, [blob(&account)], Session::from_row)
    }

    /// How many accounts there ever were: whether this is the first start.
    pub fn count(&self) -> Result<u64, ReadModelError> {
        self.0.count("accounts", None, None)
    }
}
