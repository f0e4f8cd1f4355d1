-- One row for each execution; the key is the position of its `execution.created`, so that newest first costs nothing.
CREATE TABLE IF NOT EXISTS executions (
    created_position         INTEGER PRIMARY KEY,
    id                       BLOB NOT NULL UNIQUE,
    project_module           TEXT NOT NULL,
    archive_name             TEXT NOT NULL,
    sources                  TEXT NOT NULL,
    status                   TEXT NOT NULL,
    execution_phase          TEXT,
    control_phase            TEXT NOT NULL,
    submission_state         TEXT NOT NULL,
    submission_deadline_at   INTEGER,
    submission_abandoned_at  INTEGER,
    scheduler_name           TEXT NOT NULL,
    scheduler_job_id         TEXT,
    scheduler_state          TEXT NOT NULL,
    scheduler_raw_state      TEXT,
    scheduler_reason         TEXT,
    daliuge_session_id       BLOB,
    daliuge_state            TEXT NOT NULL,
    output_state             TEXT NOT NULL,
    terminal_outcome         TEXT,
    failure_class            TEXT,
    last_error               TEXT,
    attempt                  INTEGER NOT NULL,
    cancel_requested         INTEGER NOT NULL,
    discovery_signature      TEXT,
    manifest_sha256          TEXT,
    dataset_count            INTEGER,
    source_graph_sha256      TEXT,
    patched_graph_sha256     TEXT,
    physical_graph_sha256    TEXT,
    last_reconciled_at       INTEGER,
    created_at               INTEGER NOT NULL,
    started_at               INTEGER,
    completed_at             INTEGER,
    automatic                INTEGER NOT NULL,
    created_by_id            BLOB,
    profile_id               BLOB NOT NULL,
    profile_revision         INTEGER NOT NULL,
    profile_sha256           TEXT NOT NULL,
    project_config_id        BLOB NOT NULL,
    project_config_version   INTEGER NOT NULL,
    project_spec_sha256      TEXT NOT NULL,
    dim_session_status_url   TEXT,
    dim_graph_status_url     TEXT,
    slurm_session_dir        TEXT,
    slurm_login_node         TEXT,
    slurm_remote_user        TEXT,
    job_id                   BLOB,
    do_stage                 INTEGER,
    do_submit                INTEGER,
    -- The position of the present attempt's `execution.execute_started`: its place in the line for its profile.
    executing_position       INTEGER,
    -- When each control phase was entered, in the present attempt.
    admission_pending_at     INTEGER,
    admitted_at              INTEGER,
    manifest_generated_at    INTEGER,
    graph_patched_at         INTEGER,
    translated_at            INTEGER,
    submission_pending_at    INTEGER,
    submitted_at             INTEGER,
    monitoring_at            INTEGER,
    output_verification_at   INTEGER,
    terminal_at              INTEGER,
    correlation_id           BLOB NOT NULL,
    last_position            INTEGER NOT NULL,
    last_revision            INTEGER NOT NULL,
    last_event_id            BLOB NOT NULL,
    last_event_type          TEXT NOT NULL,
    last_event_at            INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS executions_status ON executions (status, created_position);
CREATE INDEX IF NOT EXISTS executions_project ON executions (project_module, created_position);
CREATE INDEX IF NOT EXISTS executions_live ON executions (submission_state, created_position) WHERE completed_at IS NULL;
CREATE INDEX IF NOT EXISTS executions_line ON executions (profile_id, executing_position)
    WHERE completed_at IS NULL AND do_submit;

-- Which executions a source was part of.
CREATE TABLE IF NOT EXISTS execution_sources (
    source           BLOB NOT NULL,
    created_position INTEGER NOT NULL,
    PRIMARY KEY (source, created_position)
) STRICT, WITHOUT ROWID;

-- Profiles as they were pinned; many executions share one.
CREATE TABLE IF NOT EXISTS pinned_profiles (
    profile_id       BLOB NOT NULL,
    profile_revision INTEGER NOT NULL,
    profile_sha256   TEXT NOT NULL,
    profile_spec     TEXT NOT NULL,
    PRIMARY KEY (profile_id, profile_revision, profile_sha256)
) STRICT, WITHOUT ROWID;

-- One row for each attempt that was announced to a backend. `terminal` is written once. Like the artifacts, keyed by the
-- position of the execution: rows that are written together lie together, which they would not by a random id.
CREATE TABLE IF NOT EXISTS sessions (
    created_position       INTEGER NOT NULL,
    attempt                INTEGER NOT NULL,
    session_id             BLOB NOT NULL,
    backend                TEXT NOT NULL,
    started_at             INTEGER NOT NULL,
    deadline_at            INTEGER,
    dim_rest_base          TEXT,
    dim_session_status_url TEXT,
    dim_graph_status_url   TEXT,
    recorded_at            INTEGER,
    receipt                TEXT,
    settled_by             TEXT,
    uncertain_at           INTEGER,
    uncertain_step         TEXT,
    uncertain_reason       TEXT,
    refused_error          TEXT,
    refused_evidence       TEXT,
    abandoned_at           INTEGER,
    abandoned_reason       TEXT,
    last_observation       TEXT,
    terminal               TEXT,
    PRIMARY KEY (created_position, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS artifacts (
    created_position INTEGER NOT NULL,
    kind             TEXT NOT NULL,
    sha256           TEXT NOT NULL,
    size_bytes       INTEGER NOT NULL,
    media_type       TEXT NOT NULL,
    producer_phase   TEXT NOT NULL,
    attempt          INTEGER NOT NULL,
    position         INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    PRIMARY KEY (created_position, kind, sha256)
) STRICT, WITHOUT ROWID;
