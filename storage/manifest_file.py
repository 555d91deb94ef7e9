"""The manifest as a file: made, migrated and checked before it is used, and moved aside when it is damaged.

Everything here is synchronous and runs before the agent serves (or while none runs). A damaged manifest is never
deleted: it is renamed, and the new one knows that it must be filled again (its `scanned` fact is missing).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from storage.files import FileLayer
from storage.lookups import BUSY_SECONDS, connect_reader
from storage.migrations import SchemaTooNew, migrate, steps_taken
from storage.mounts import network_file_system

SIDECARS = ("-shm", "-wal")  # in the order in which they are moved: a new file must never meet an old log
REBUILD = "stop the agent and run `spore verify --rebuild`"
REBUILT = "rebuilt"  # this manifest does not know every private file that lies in the store: none is an orphan
STAMP_MAX = (1 << 63) - 1  # SQLite's largest integer; a salvaged number beyond it is damage, not a fact
SALVAGED_FACTS = ("boot", "last_hlc")  # what peers remember of us, so that a rebuilt manifest should not say less

_SET_FACT = "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"


class ManifestRefused(Exception):
    """This file cannot be the manifest of this node; one sentence says why and what to do."""


class ManifestDamaged(ManifestRefused):
    """SQLite finds the file damaged; the sentence names the rebuild."""


def prepare(path: Path, cluster: str, node: str) -> int:
    """Make or migrate the manifest and count this opening; returns the boot number, 1 for a new file.

    Raises `ManifestRefused` (network file system, newer schema, another node's file, no way to write there) and
    `ManifestDamaged`.
    """
    kind = network_file_system(path.parent)
    if kind is not None:
        raise ManifestRefused(
            f"the manifest {path} would lie on a network file system ({kind}), where SQLite loses data: "
            "give the agent a folder on a local disk"
        )
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)) as connection:
            return _prepare(connection, path, cluster, node)
    except SchemaTooNew as problem:
        raise ManifestRefused(str(problem)) from problem
    except sqlite3.OperationalError as problem:
        raise ManifestRefused(
            f"the manifest {path} cannot be opened ({problem}): check the disk's room and the folder's permissions"
        ) from problem
    except sqlite3.DatabaseError as problem:
        raise ManifestDamaged(f"the manifest {path} is damaged ({problem}): {REBUILD}") from problem


def _prepare(connection: sqlite3.Connection, path: Path, cluster: str, node: str) -> int:
    known = steps_taken(connection) > 0  # first of all: a file of a newer release is not touched
    if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise ManifestRefused(f"the manifest {path} cannot use a write-ahead log: give the agent a local disk")
    connection.execute("PRAGMA synchronous=FULL")
    if known and _fact(connection, "clean") != "1":
        _check(connection, path)
    migrate(connection)
    _claim(connection, path, cluster, node)
    FileLayer().fsync_dir(path.parent)
    return _count_boot(connection)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Read every page. Only after an unclean end: a clean one leaves no doubt, and large files take seconds."""
    finding = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if finding != "ok":
        raise ManifestDamaged(f"the manifest {path} is damaged ({' '.join(finding.split())}): {REBUILD}")


def _claim(connection: sqlite3.Connection, path: Path, cluster: str, node: str) -> None:
    """Fingerprints and sequences in the file are of one node in one cluster: nobody else can use it."""
    for key, ours in (("cluster", cluster), ("node", node)):
        theirs = _fact(connection, key)
        if theirs is None:
            connection.execute(_SET_FACT, (key, ours))
        elif theirs != ours:
            raise ManifestRefused(
                f"the manifest {path} belongs to {key} {theirs!r}, not {ours!r}: use that name, or another folder"
            )


def _count_boot(connection: sqlite3.Connection) -> int:
    """One transaction says both: this is boot N, and until the manifest is closed the file is not clean."""
    boot = int(_fact(connection, "boot") or 0) + 1
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_SET_FACT, [("boot", str(boot)), ("clean", "0")])
    connection.execute("COMMIT")
    return boot


def _fact(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def rebuild(path: Path, files: FileLayer | None = None) -> Path | None:
    """Move the manifest aside and make an empty one, which the next start fills from WAL, files and peers.

    No agent may run. Returns where the old file lies now, None when there was none. `OSError` passes through.
    """
    layer = files or FileLayer()
    salvaged = _salvage(path) if path.exists() else {}
    aside = _move_aside(path, layer)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        migrate(connection)
        connection.executemany(_SET_FACT, sorted({**salvaged, REBUILT: "1"}.items()))
    layer.fsync_dir(path.parent)
    return aside


def _salvage(path: Path) -> dict[str, str]:
    """The facts that peers remember us by, as far as the damaged file still tells them; best effort."""
    try:
        # Read-only: a writing connection would fold the log into the damaged file when it closes.
        with closing(connect_reader(path)) as connection:
            facts = {key: _fact(connection, key) for key in SALVAGED_FACTS}
    except (sqlite3.Error, UnicodeDecodeError):
        return {}
    return {key: text for key, text in facts.items() if text and text.isascii() and _plausible(text)}


def _plausible(text: str) -> bool:
    return text.isdigit() and len(text) <= 19 and int(text) <= STAMP_MAX


def _move_aside(path: Path, files: FileLayer) -> Path | None:
    """The log goes first: a crash in between leaves the old file without it, never a new file beside an old log."""
    present = [part for part in (*(Path(f"{path}{end}") for end in SIDECARS), path) if part.exists()]
    number = 1
    while any(Path(f"{path}.damaged-{number}{end}").exists() for end in ("", *SIDECARS)):
        number += 1
    aside = Path(f"{path}.damaged-{number}")
    for part in present:
        files.rename(part, Path(f"{aside}{part.name.removeprefix(path.name)}"))
        files.fsync_dir(path.parent)
    return aside if aside.exists() else None
