CREATE TABLE IF NOT EXISTS workers (
    started_position  INTEGER PRIMARY KEY,
    id                TEXT NOT NULL UNIQUE,
    instance_name     TEXT NOT NULL,
    host              TEXT NOT NULL,
    pool              TEXT NOT NULL,
    capabilities      TEXT NOT NULL,
    concurrency_limit INTEGER NOT NULL,
    process_id        INTEGER NOT NULL,
    version           TEXT NOT NULL,
    status            TEXT NOT NULL,
    reason            TEXT,
    started_at        INTEGER NOT NULL,
    draining_at       INTEGER,
    stopped_at        INTEGER,
    lost              INTEGER NOT NULL DEFAULT 0,
    revision          INTEGER NOT NULL,
    last_event_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS workers_alive ON workers (pool, started_position) WHERE stopped_at IS NULL;

-- Roles that one process plays at a time; no row while nobody does.
CREATE TABLE IF NOT EXISTS leases (
    role     TEXT PRIMARY KEY,
    holder   TEXT NOT NULL,
    claim_id BLOB NOT NULL,
    taken_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
