CREATE TABLE IF NOT EXISTS dependencies (
    name          TEXT PRIMARY KEY,
    up            INTEGER NOT NULL,
    since         INTEGER NOT NULL,
    latency_ms    INTEGER,
    reason        TEXT,
    changes       INTEGER NOT NULL,
    last_event_id BLOB NOT NULL,
    last_position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
