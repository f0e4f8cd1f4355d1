-- Has hashes of passwords, keys and tokens: shown to nobody, needed to let people in.
CREATE TABLE IF NOT EXISTS accounts (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    username         TEXT NOT NULL,
    name             TEXT NOT NULL,
    email            TEXT NOT NULL,
    role             TEXT NOT NULL,
    password_hash    TEXT NOT NULL,
    disabled         INTEGER NOT NULL,
    disabled_reason  TEXT,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER,
    revision         INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS api_keys (
    issued_position INTEGER PRIMARY KEY,
    id              BLOB NOT NULL UNIQUE,
    account_id      BLOB NOT NULL,
    name            TEXT NOT NULL,
    scope           TEXT NOT NULL,
    secret_sha256   TEXT NOT NULL,
    expires_at      INTEGER,
    issued_at       INTEGER NOT NULL,
    revoked_at      INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS api_keys_account ON api_keys (account_id, issued_position);

CREATE TABLE IF NOT EXISTS sessions (
    opened_position    INTEGER PRIMARY KEY,
    id                 BLOB NOT NULL UNIQUE,
    account_id         BLOB NOT NULL,
    access_sha256      TEXT NOT NULL,
    refresh_sha256     TEXT NOT NULL,
    access_expires_at  INTEGER NOT NULL,
    refresh_expires_at INTEGER NOT NULL,
    opened_at          INTEGER NOT NULL,
    closed_at          INTEGER,
    closed_reason      TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS sessions_open ON sessions (account_id, opened_position) WHERE closed_at IS NULL;
