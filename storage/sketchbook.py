"""The sketch of the committed rows: kept with every commit, saved now and then, complete again after any crash.

Each transaction writes which fingerprints came and went beside the rows themselves (`unsketched`), 8 bytes each. Now
and then, and when the agent stops, one writes the sketch instead and empties that list. So a start reads the saved
sketch and folds the tail; only a file without a usable sketch has every row read.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from protocol.cells import CELLS_MAX
from protocol.fingerprints import cluster_key, fingerprint_of_holding, fingerprint_of_member, fingerprint_of_record
from protocol.sketch import Sketch, SketchDamaged
from storage.ledger import Counts
from storage.lookups import connect_reader

TAIL_MAX = 100_000  # changes beside the saved sketch: half a second of a start, 800 kB of the file
READ_ROWS = 10_000  # folded at once when every row is read

READ_SAVED = "SELECT frame FROM sketch"
READ_TAIL = "SELECT id, added, removed FROM unsketched ORDER BY id"
LAST_NOTE = "SELECT MAX(id) FROM unsketched"
SAVE = "INSERT INTO sketch (id, frame) VALUES (1, ?) ON CONFLICT DO UPDATE SET frame = excluded.frame"
CLEAR_TAIL = "DELETE FROM unsketched"
NOTE = "INSERT INTO unsketched (id, added, removed) VALUES (?, ?, ?)"


class Sketchbook:
    """The sketch in memory, and what of it is in the file. The writer tells it of each transaction."""

    def __init__(self, sketch: Sketch, tail: int, noted: int) -> None:
        self.sketch = sketch
        self._tail = tail  # changes in `unsketched`
        self._noted = noted  # the number of its last row; never used twice in one life

    @classmethod
    def load(cls, path: Path, cluster: str, cells: int = CELLS_MAX) -> Sketchbook:
        """The sketch of what is committed in a manifest. `sqlite3.Error` passes through."""
        key = cluster_key(cluster)
        with closing(connect_reader(path)) as reader:
            saved = reader.execute(READ_SAVED).fetchone()
            try:
                sketch = Sketch.from_bytes(key, bytes(saved[0]) if saved else b"", cells)
            except SketchDamaged:
                sketch = Sketch(key, cells)
                for fingerprints in _every_row(reader, key):
                    sketch.apply(fingerprints)
                last = reader.execute(LAST_NOTE).fetchone()[0]
                return cls(sketch, TAIL_MAX, last or 0)  # to be saved by the first transaction
            tail = noted = 0
            for noted, added, removed in reader.execute(READ_TAIL):  # noqa: B007 - the last one is needed
                sketch.apply(_unpacked(added), _unpacked(removed))
                tail += (len(added) + len(removed)) // 8
        return cls(sketch, tail, noted)

    def due(self, leaving: bool = False) -> bool:
        """Whether the next transaction should save the sketch."""
        return self._tail > 0 if leaving else self._tail >= TAIL_MAX

    def note(self, counts: Counts) -> tuple[int, bytes, bytes]:
        """The row of `unsketched` that this transaction writes; its number tells afterwards whether it is committed."""
        self._noted += 1
        counts.note = self._noted
        return counts.note, _packed(counts.added), _packed(counts.removed)

    def saved(self) -> None:
        """A transaction that wrote the sketch, and cleared the list, is committed."""
        self._tail = 0

    def committed(self, counts: Counts) -> None:
        """A transaction that changed these rows, and noted them, is committed."""
        self.sketch.apply(counts.added, counts.removed)
        self._tail += len(counts.added) + len(counts.removed)


def _packed(fingerprints: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(fingerprints)}Q", *fingerprints)


def _unpacked(blob: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(blob) // 8}Q", blob)


def _every_row(reader: sqlite3.Connection, key: bytes) -> Iterator[list[int]]:
    tables = (
        ("SELECT name, hlc, origin, state, digest FROM records", fingerprint_of_record),
        ("SELECT node, store, digest FROM holdings WHERE present = 1", fingerprint_of_holding),
        ("SELECT node, seq FROM members", fingerprint_of_member),
    )
    for statement, fingerprint in tables:
        cursor = reader.execute(statement)
        while rows := cursor.fetchmany(READ_ROWS):
            yield [fingerprint(key, *row) for row in rows]
