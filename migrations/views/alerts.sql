CREATE TABLE IF NOT EXISTS channels (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    kind             TEXT NOT NULL,
    spec             TEXT NOT NULL,
    enabled          INTEGER NOT NULL,
    disabled_reason  TEXT,
    channel_revision INTEGER NOT NULL,
    removed          INTEGER NOT NULL,
    last_test_at     INTEGER,
    last_test_status TEXT,
    last_test_code   INTEGER,
    failing_since    INTEGER,
    failing_attempts INTEGER NOT NULL DEFAULT 0,
    failing_deliveries INTEGER NOT NULL DEFAULT 0,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER,
    revision         INTEGER NOT NULL
) STRICT;

-- What channels are to be told of another that was disabled by the service, until it is enqueued.
CREATE TABLE IF NOT EXISTS notices (
    delivery_id BLOB PRIMARY KEY,
    cause       BLOB NOT NULL,
    channel_id  BLOB NOT NULL,
    disabled_id BLOB NOT NULL,
    name        TEXT NOT NULL,
    kind        TEXT NOT NULL,
    reason      TEXT NOT NULL,
    disabled_at INTEGER NOT NULL,
    position    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS rules (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    project_module   TEXT,
    trigger_kind     TEXT NOT NULL,
    spec             TEXT NOT NULL,
    rule_version     INTEGER NOT NULL,
    enabled          INTEGER NOT NULL,
    removed          INTEGER NOT NULL,
    last_fired_at    INTEGER,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER,
    revision         INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS silences (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    matchers         TEXT NOT NULL,
    comment          TEXT NOT NULL,
    created_by       TEXT NOT NULL,
    starts_at        INTEGER NOT NULL,
    ends_at          INTEGER NOT NULL,
    expired_at       INTEGER,
    created_at       INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS silences_end ON silences (ends_at) WHERE expired_at IS NULL;

CREATE TABLE IF NOT EXISTS alerts (
    created_position INTEGER PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    rule_id          BLOB NOT NULL,
    rule_version     INTEGER NOT NULL,
    rule_name        TEXT NOT NULL,
    project_module   TEXT,
    severity         TEXT NOT NULL,
    labels           TEXT NOT NULL,
    about            TEXT NOT NULL,
    state            TEXT NOT NULL,
    since            INTEGER NOT NULL,
    fired_at         INTEGER,
    number           INTEGER NOT NULL,
    said             INTEGER NOT NULL,
    said_at          INTEGER,
    summary          TEXT NOT NULL,
    value            REAL,
    causes           TEXT NOT NULL,
    held_by          TEXT,
    held_id          TEXT,
    cleared_at       INTEGER,
    escalated_at     INTEGER,
    acknowledged_by  TEXT,
    acknowledged_at  INTEGER,
    acknowledgement  TEXT,
    resolved_at      INTEGER,
    resolved_reason  TEXT,
    last_event_id    BLOB NOT NULL,
    last_event_at    INTEGER NOT NULL,
    revision         INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS alerts_rule ON alerts (rule_id);
CREATE INDEX IF NOT EXISTS alerts_open ON alerts (state) WHERE state IN ('pending', 'firing');

CREATE TABLE IF NOT EXISTS deliveries (
    created_position INTEGER PRIMARY KEY,
    id               BLOB NOT NULL UNIQUE,
    message          TEXT NOT NULL,
    channel_id       BLOB NOT NULL,
    channel_kind     TEXT NOT NULL,
    rule_id          BLOB,
    alert            TEXT,
    group_key        TEXT,
    project_module   TEXT,
    payload          TEXT NOT NULL,
    status           TEXT NOT NULL,
    attempts         INTEGER NOT NULL,
    next_attempt_at  INTEGER,
    code             INTEGER,
    error            TEXT,
    created_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    revision         INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (next_attempt_at) WHERE status IN ('pending', 'retrying');
CREATE INDEX IF NOT EXISTS deliveries_channel ON deliveries (channel_id);
CREATE INDEX IF NOT EXISTS deliveries_alert ON deliveries (alert);
CREATE INDEX IF NOT EXISTS deliveries_group ON deliveries (group_key, channel_id);
CREATE INDEX IF NOT EXISTS deliveries_rule ON deliveries (rule_id);
CREATE INDEX IF NOT EXISTS deliveries_status ON deliveries (status);

-- Which events of alerts a delivery tells of.
CREATE TABLE IF NOT EXISTS delivery_causes (
    cause       BLOB NOT NULL,
    delivery_id BLOB NOT NULL,
    PRIMARY KEY (cause, delivery_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS attempts (
    delivery_id BLOB NOT NULL,
    attempt     INTEGER NOT NULL,
    attempt_id  BLOB NOT NULL,
    started_at  INTEGER NOT NULL,
    latency_ms  INTEGER NOT NULL,
    code        INTEGER,
    error       TEXT,
    answer      TEXT,
    retry_at    INTEGER,
    PRIMARY KEY (delivery_id, attempt)
) STRICT, WITHOUT ROWID;
