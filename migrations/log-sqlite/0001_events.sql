-- The log. One table of events and one of redactions; everything else (which stream, which tag is where) is derived
-- and lives in the index file beside it. `leaf` holds the very bytes that were hashed: see docs/log-format.md.
CREATE TABLE events (
    position    INTEGER PRIMARY KEY,
    recorded_at INTEGER NOT NULL,               -- microseconds since 1970, UTC
    leaf        BLOB NOT NULL,
    hash        BLOB NOT NULL,                  -- SHA-256 of leaf
    salt        BLOB,                           -- NULL, as is data, after a redaction
    data        BLOB,
    seal        INTEGER NOT NULL                -- over position, recorded_at and hash, which the leaf does not cover
) STRICT;

CREATE TABLE redactions (
    event    INTEGER PRIMARY KEY REFERENCES events (position),
    event_id BLOB NOT NULL,
    record   INTEGER NOT NULL REFERENCES events (position)
) STRICT;

-- Also keeps INSERT OR REPLACE, which would not fire the trigger on DELETE, from rewriting an event.
CREATE TRIGGER events_follow_each_other BEFORE INSERT ON events
WHEN NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM events)
BEGIN
    SELECT raise(ABORT, 'events are only appended: the position is not the next one');
END;

CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
BEGIN
    SELECT raise(ABORT, 'events are never deleted');
END;

CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
WHEN NOT (
    NEW.position IS OLD.position AND NEW.recorded_at IS OLD.recorded_at AND NEW.leaf IS OLD.leaf
    AND NEW.hash IS OLD.hash AND NEW.seal IS OLD.seal AND NEW.salt IS NULL AND NEW.data IS NULL
    AND EXISTS (SELECT 1 FROM redactions WHERE event = OLD.position)
)
BEGIN
    SELECT raise(ABORT, 'events are never changed, but for a redaction that is recorded in the log');
END;

CREATE TRIGGER redactions_are_recorded BEFORE INSERT ON redactions
WHEN EXISTS (SELECT 1 FROM redactions WHERE event = NEW.event)
  OR NOT EXISTS (
    SELECT 1 FROM events AS redacted, events AS record
    WHERE redacted.position = NEW.event AND record.position = NEW.record
      AND length(NEW.event_id) = 16 AND instr(redacted.leaf, NEW.event_id) > 0
      AND instr(record.leaf, CAST('log.redacted' AS BLOB)) > 0
      AND instr(
          replace(lower(CAST(record.data AS TEXT)), '-', ''), lower(hex(NEW.event_id))
      ) > 0
  )
BEGIN
    SELECT raise(ABORT, 'a redaction needs a log.redacted event that names the event');
END;

CREATE TRIGGER redactions_are_never_deleted BEFORE DELETE ON redactions
BEGIN
    SELECT raise(ABORT, 'redactions are never deleted');
END;

CREATE TRIGGER redactions_are_never_changed BEFORE UPDATE ON redactions
BEGIN
    SELECT raise(ABORT, 'redactions are never changed');
END;
