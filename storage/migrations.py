"""The manifest's schema, as numbered steps: `user_version` counts how many of them a file has taken.

A released step is never edited: a change of the schema is a new step at the end. Types are checked by the
tables themselves, so that a row which reached us damaged is refused by name and not stored half.
"""

from __future__ import annotations

import sqlite3

_FIRST = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE records (
    name   TEXT    NOT NULL CHECK (typeof(name) = 'text'),
    hlc    INTEGER NOT NULL CHECK (typeof(hlc) = 'integer'),
    origin TEXT    NOT NULL CHECK (typeof(origin) = 'text'),
    digest BLOB    NOT NULL CHECK (typeof(digest) = 'blob' AND length(digest) = 32),
    blake3 BLOB    NOT NULL CHECK (typeof(blake3) = 'blob' AND length(blake3) = 32),
    size   INTEGER NOT NULL CHECK (typeof(size) = 'integer' AND size >= 0),
    mode   INTEGER NOT NULL CHECK (typeof(mode) = 'integer'),
    state  INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
    scope  TEXT    NOT NULL CHECK (typeof(scope) = 'text'),
    meta   BLOB    NOT NULL CHECK (typeof(meta) = 'blob'),
    PRIMARY KEY (name, hlc, origin)
) WITHOUT ROWID;
CREATE INDEX records_live_by_digest ON records (digest) WHERE state = 0;

CREATE TABLE holdings (
    digest  BLOB    NOT NULL CHECK (typeof(digest) = 'blob' AND length(digest) = 32),
    node    TEXT    NOT NULL CHECK (typeof(node) = 'text'),
    store   BLOB    NOT NULL CHECK (typeof(store) = 'blob' AND length(store) = 16),
    seq     INTEGER NOT NULL CHECK (typeof(seq) = 'integer'),
    present INTEGER NOT NULL CHECK (present IN (0, 1)),
    PRIMARY KEY (digest, node, store)
) WITHOUT ROWID;

CREATE TABLE members (
    node           TEXT    PRIMARY KEY CHECK (typeof(node) = 'text'),
    seq            INTEGER NOT NULL CHECK (typeof(seq) = 'integer'),
    address        TEXT    NOT NULL,
    role           TEXT    NOT NULL,
    provider       TEXT    NOT NULL,
    domain         TEXT    NOT NULL,
    store          BLOB    NOT NULL CHECK (typeof(store) = 'blob' AND length(store) = 16),
    ephemeral      INTEGER NOT NULL CHECK (ephemeral IN (0, 1)),
    excluded       INTEGER NOT NULL CHECK (excluded IN (0, 1)),
    accepting      INTEGER NOT NULL CHECK (accepting IN (0, 1)),
    presence       INTEGER NOT NULL CHECK (presence IN (0, 1)),
    capacity_bytes INTEGER NOT NULL,
    used_bytes     INTEGER NOT NULL,
    at_risk_count  INTEGER NOT NULL,
    at_risk_bytes  INTEGER NOT NULL,
    policy_hash    TEXT    NOT NULL
) WITHOUT ROWID;

CREATE TABLE places (
    path     TEXT    PRIMARY KEY CHECK (typeof(path) = 'text'),
    digest   BLOB    NOT NULL CHECK (typeof(digest) = 'blob' AND length(digest) = 32),
    device   INTEGER NOT NULL,
    inode    INTEGER NOT NULL,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    private  INTEGER NOT NULL CHECK (private IN (0, 1))
) WITHOUT ROWID;
CREATE INDEX places_by_digest ON places (digest);

CREATE TABLE chunks (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    leaves BLOB NOT NULL CHECK (typeof(leaves) = 'blob' AND length(leaves) % 32 = 0)
);

CREATE TABLE totals (kind TEXT PRIMARY KEY, artifacts INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE quarantine (id INTEGER PRIMARY KEY, row TEXT NOT NULL UNIQUE, reason TEXT NOT NULL);
"""

_SKETCH = """
CREATE TABLE sketch (id INTEGER PRIMARY KEY CHECK (id = 1), frame BLOB NOT NULL);
CREATE TABLE unsketched (id INTEGER PRIMARY KEY, added BLOB NOT NULL, removed BLOB NOT NULL);
CREATE INDEX records_gone ON records (state) WHERE state <> 0;
DELETE FROM facts WHERE key = 'fold';
"""

# What we published for others may go again, a user's own file may not: of older rows nobody can tell, so they stay.
# The index answers `age`: the newest version below each kind and first folder (or origin), without reading the others.
_POLICY = """
ALTER TABLE places ADD COLUMN published INTEGER NOT NULL DEFAULT 0 CHECK (published IN (0, 1));
CREATE INDEX records_by_age ON records (
    substr(name, 1, instr(name, '/') + max(instr(substr(name, instr(name, '/') + 1), '/') - 1, -1)), hlc
) WHERE state = 0;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _SKETCH, _POLICY)


class SchemaTooNew(Exception):
    """The file was written by a later release; one sentence says what to do."""


def steps_taken(connection: sqlite3.Connection) -> int:
    """How many steps the file has taken, 0 for a new one. Raises `SchemaTooNew`; changes nothing."""
    taken = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if taken > len(MIGRATIONS):
        raise SchemaTooNew(
            f"the manifest was written by a newer spore (schema {taken}, this one knows {len(MIGRATIONS)}): "
            "upgrade spore on this node"
        )
    return taken


def migrate(connection: sqlite3.Connection) -> None:
    """Take every step that the file has not taken yet, each in a transaction of its own.

    Raises `SchemaTooNew`, and `sqlite3.Error` as SQLite reports it (that step then is not taken).
    """
    for number in range(steps_taken(connection), len(MIGRATIONS)):
        try:
            # executescript runs many statements as they stand, so the transaction is part of the script.
            connection.executescript(f"BEGIN IMMEDIATE;{MIGRATIONS[number]};PRAGMA user_version={number + 1};COMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
