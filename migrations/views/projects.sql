-- One row for each project, and one named `*` once all projects were paused.
CREATE TABLE IF NOT EXISTS projects (
    project_module       TEXT PRIMARY KEY,
    active_version       INTEGER,
    default_profile_id   BLOB,
    default_profile_name TEXT,
    paused_reason        TEXT,
    paused_at            INTEGER,
    created_at           INTEGER NOT NULL,
    revision             INTEGER NOT NULL,
    last_event_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS configs (
    project_module TEXT NOT NULL,
    version        INTEGER NOT NULL,
    id             BLOB NOT NULL,
    spec_sha256    TEXT NOT NULL,
    spec           TEXT NOT NULL,
    uploaded_at    INTEGER NOT NULL,
    uploaded_by    TEXT NOT NULL,
    PRIMARY KEY (project_module, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS configs_id ON configs (id);

CREATE TABLE IF NOT EXISTS profiles (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    project_module   TEXT,
    spec             TEXT NOT NULL,
    spec_sha256      TEXT NOT NULL,
    profile_revision INTEGER NOT NULL,
    paused_reason    TEXT,
    paused_at        INTEGER,
    removed          INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER,
    revision         INTEGER NOT NULL
) STRICT;
