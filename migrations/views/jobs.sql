-- One row for each job; the key is the position of its `job.enqueued`.
CREATE TABLE IF NOT EXISTS jobs (
    created_position    INTEGER PRIMARY KEY,
    id                  BLOB NOT NULL UNIQUE,
    kind                TEXT NOT NULL,
    payload             TEXT NOT NULL,
    status              TEXT NOT NULL,
    project_module      TEXT,
    execution_id        BLOB,
    required_capability TEXT,
    idempotency_key     TEXT,
    attempts            INTEGER NOT NULL,
    max_attempts        INTEGER NOT NULL,
    next_run_at         INTEGER NOT NULL,
    worker_id           TEXT,
    pool                TEXT,
    claim_id            BLOB,
    claimed_at          INTEGER,
    last_error          TEXT,
    result              TEXT,
    duration_ms         INTEGER,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    finished_at         INTEGER,
    correlation_id      BLOB NOT NULL,
    revision            INTEGER NOT NULL,
    last_event_id       BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_queued ON jobs (kind, next_run_at) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS jobs_claimed ON jobs (claimed_at) WHERE status = 'running';
CREATE INDEX IF NOT EXISTS jobs_dead ON jobs (created_position) WHERE status = 'dead_lettered';
CREATE INDEX IF NOT EXISTS jobs_execution ON jobs (execution_id, created_position) WHERE execution_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_idempotency ON jobs (idempotency_key)
    WHERE idempotency_key IS NOT NULL AND status IN ('queued', 'running');

-- Which pool each worker works for.
CREATE TABLE IF NOT EXISTS pools (
    worker TEXT PRIMARY KEY,
    pool   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
