-- One row for each source that was ever registered; the key is the position of its first event.
CREATE TABLE IF NOT EXISTS sources (
    created_position           INTEGER PRIMARY KEY,
    id                         BLOB NOT NULL UNIQUE,
    project_module             TEXT NOT NULL,
    source_identifier          TEXT NOT NULL,
    enabled                    INTEGER NOT NULL,
    removed                    INTEGER NOT NULL DEFAULT 0,
    created_at                 INTEGER NOT NULL,
    stale_after_hours          REAL,
    -- The last time the archives answered; the last time they were asked.
    last_checked_at            INTEGER,
    last_attempted_at          INTEGER,
    last_outcome               TEXT,
    last_error                 TEXT,
    last_duration_ms           INTEGER,
    discovery_requested_at     INTEGER,
    signature                  TEXT,
    dataset_count              INTEGER,
    sbids                      TEXT,
    metadata_sha256            TEXT,
    discovered_at              INTEGER,
    pending                    INTEGER NOT NULL DEFAULT 0,
    pending_at                 INTEGER,
    admitted_execution_id      BLOB,
    admitted_signature         TEXT,
    admitted_at                INTEGER,
    admitted_execution_status  TEXT,
    executed_signature         TEXT,
    project_config_id          BLOB,
    project_config_version     INTEGER,
    revision                   INTEGER NOT NULL,
    last_position              INTEGER NOT NULL,
    last_event_id              BLOB NOT NULL,
    last_event_type            TEXT NOT NULL,
    last_event_at              INTEGER NOT NULL,
    phase TEXT NOT NULL GENERATED ALWAYS AS (CASE
        WHEN removed THEN 'removed'
        WHEN NOT enabled THEN 'disabled'
        WHEN admitted_execution_id IS NOT NULL AND ifnull(admitted_execution_status, 'pending')
             NOT IN ('completed', 'failed', 'cancelled', 'not_submitted') THEN 'executing'
        WHEN pending THEN 'pending'
        WHEN last_outcome = 'no_datasets' THEN 'no_datasets'
        WHEN last_outcome IN ('error', 'timeout') THEN 'error'
        WHEN signature IS NULL THEN 'registered'
        WHEN signature = executed_signature THEN 'executed'
        WHEN signature = admitted_signature THEN 'failed'
        ELSE 'discovered' END) VIRTUAL
) STRICT;
CREATE INDEX IF NOT EXISTS sources_project ON sources (project_module, created_position);
CREATE INDEX IF NOT EXISTS sources_pending ON sources (project_module, pending_at)
    WHERE pending = 1 AND enabled = 1 AND removed = 0;
CREATE INDEX IF NOT EXISTS sources_requested ON sources (project_module, discovery_requested_at)
    WHERE discovery_requested_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS sources_staleness ON sources (project_module, last_outcome, last_attempted_at)
    WHERE enabled = 1 AND removed = 0 AND stale_after_hours IS NULL;
CREATE INDEX IF NOT EXISTS sources_own_staleness ON sources (project_module, last_attempted_at)
    WHERE enabled = 1 AND removed = 0 AND stale_after_hours IS NOT NULL;
CREATE INDEX IF NOT EXISTS sources_halves ON sources (admitted_execution_id)
    WHERE admitted_execution_id IS NOT NULL AND admitted_execution_status IS NULL;

-- Which source an execution runs, with which data.
CREATE TABLE IF NOT EXISTS runs (
    execution BLOB NOT NULL,
    source    BLOB NOT NULL,
    signature TEXT,
    status    TEXT NOT NULL,
    PRIMARY KEY (execution, source)
) STRICT, WITHOUT ROWID;
