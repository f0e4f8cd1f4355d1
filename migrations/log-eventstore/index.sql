-- What the index of an EventStoreDB log has beside the tables of `log-sqlite/index.sql`. Derived, like those.

-- Which events are redacted, and where that is recorded. Salt and data of such an event are withheld.
CREATE TABLE redactions (
    event    BLOB PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Events that a server's clock put before the event ahead of them, and the time they are given instead: the latest until then.
CREATE TABLE late (
    position    INTEGER PRIMARY KEY,
    recorded_at INTEGER NOT NULL
) STRICT;

-- The latest recorded_at so far.
CREATE TABLE latest (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    recorded_at INTEGER NOT NULL
) STRICT;
INSERT INTO latest VALUES (1, -9223372036854775808);
