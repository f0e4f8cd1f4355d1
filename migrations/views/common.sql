-- In every read model: how far it has followed the log, and which version of its projection wrote the rows.
CREATE TABLE IF NOT EXISTS checkpoint (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER NOT NULL,
    hash     BLOB NOT NULL,
    version  INTEGER NOT NULL
) STRICT;

-- Numbers that are kept up with every event, so that nobody ever counts rows.
CREATE TABLE IF NOT EXISTS counts (
    family TEXT NOT NULL,
    a      TEXT NOT NULL,
    b      TEXT NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (family, a, b)
) STRICT, WITHOUT ROWID;
