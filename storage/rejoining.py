"""What a node forgets when it joins anew: whatever it knew of the cluster. What lies on its own disk it keeps.

A tombstone lives for 120 days, a certificate for at most 90: whoever was away for longer has to join. Its manifest may
have rows of artifacts that were deleted meanwhile and whose tombstones are gone; told to the others they would rise
from their graves. So records, holdings and members go, and are learnt anew from the others.

What stays: the WAL, whose entries are still to be delivered; the places, so that a file which was published here is not
taken for a user's new one; chunk lists; the boot number and the last stamp, above which everything new is said.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from storage.lookups import BUSY_SECONDS
from storage.manifest_file import REBUILT
from storage.migrations import migrate

_FORGET = ("records", "holdings", "members", "totals", "sketch", "unsketched", "quarantine")
_FORGET_SCAN = "DELETE FROM facts WHERE key = 'scanned'"  # a file without a place is no news: old never beats new
_MARK = "INSERT INTO facts (key, value) VALUES (?, '1') ON CONFLICT DO UPDATE SET value = excluded.value"


def forget_cluster(path: Path) -> int:
    """Drop the rows of a manifest that no agent uses; returns how many records it had, 0 when there is no file.

    All or nothing. Raises `SchemaTooNew`, and `sqlite3.Error` as SQLite reports it.
    """
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        migrate(connection)
        connection.execute("BEGIN IMMEDIATE")
        known = int(connection.execute("SELECT COUNT(*) FROM records").fetchone()[0])
        for table in _FORGET:
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        connection.execute(_FORGET_SCAN)
        connection.execute(_MARK, (REBUILT,))  # private files whose rows are gone are nobody's orphans
        connection.execute("COMMIT")
    return known
