-- What is where in the log: derived from it, deleted and built again at will. Texts are interned as integers.
CREATE TABLE state (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    through INTEGER NOT NULL,   -- every event up to here is indexed, none after
    hash    BLOB NOT NULL       -- its leaf hash: an index of another log is noticed
) STRICT;
INSERT INTO state VALUES (1, 0, zeroblob(32));

CREATE TABLE streams (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- Positions are kept in runs: `first`, and in `others` the steps to those after it (LEB128). A run is written once.

-- A run of consecutive revisions of a stream; `revision` is that of `first`.
CREATE TABLE revisions (
    stream   INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    first    INTEGER NOT NULL,
    others   BLOB NOT NULL,
    PRIMARY KEY (stream, revision)
) STRICT, WITHOUT ROWID;

-- Tags as `t:<tag>`, categories as `c:<category>`.
CREATE TABLE words (
    id   INTEGER PRIMARY KEY,
    word TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE word_positions (
    word   INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    others BLOB NOT NULL,
    PRIMARY KEY (word, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE correlation_positions (
    correlation BLOB NOT NULL,
    first       INTEGER NOT NULL,
    others      BLOB NOT NULL,
    PRIMARY KEY (correlation, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE id_positions (
    id       BLOB NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (id, position)
) STRICT, WITHOUT ROWID;
