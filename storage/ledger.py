"""What the manifest counts while rows change: the fold, the totals per kind, our own highest stamp.

Temporary triggers on the one writing connection note every row that really changes in a temporary table, inside the
statement that changes it. Whatever the replacement rules let through is counted, nothing else is, and a rollback,
also of a savepoint, takes the notes with it. Before the commit they are read, as one value, and added up.

Rejected: reading the old rows before each batch. That is a second statement of the same rules, and it has
to know what earlier rows of the same batch did. Calling Python from the triggers: beside busy threads every call waits
for the interpreter, several times a row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from protocol.fingerprints import cluster_key, fingerprint_of_holding, fingerprint_of_record
from protocol.values import Digest, NodeId, State

# what: 1 a record, 2 a holding, 3 a stamp, 4 a digest whose chunk list may be unneeded
_NOTE = "INSERT INTO noted VALUES"
SCHEMA = (
    "CREATE TEMP TABLE noted (what INTEGER, sign INTEGER, name TEXT, stamp INTEGER, node TEXT, digest BLOB, "
    "store BLOB, state INTEGER, size INTEGER)",
    f"""CREATE TEMP TRIGGER record_added AFTER INSERT ON main.records BEGIN
    {_NOTE} (1, 1, new.name, new.hlc, new.origin, new.digest, x'', new.state, new.size); END""",
    f"""CREATE TEMP TRIGGER record_changed AFTER UPDATE ON main.records BEGIN
    {_NOTE} (1, -1, old.name, old.hlc, old.origin, old.digest, x'', old.state, old.size);
    {_NOTE} (1, 1, new.name, new.hlc, new.origin, new.digest, x'', new.state, new.size); END""",
    f"""CREATE TEMP TRIGGER record_dropped AFTER DELETE ON main.records BEGIN
    {_NOTE} (1, -1, old.name, old.hlc, old.origin, old.digest, x'', old.state, old.size); END""",
    f"""CREATE TEMP TRIGGER holding_added AFTER INSERT ON main.holdings BEGIN
    {_NOTE} (2, new.present, '', new.seq, new.node, new.digest, new.store, 0, 0); END""",
    f"""CREATE TEMP TRIGGER holding_changed AFTER UPDATE ON main.holdings BEGIN
    {_NOTE} (2, new.present - old.present, '', new.seq, new.node, new.digest, new.store, 0, 0); END""",
    f"""CREATE TEMP TRIGGER member_added AFTER INSERT ON main.members BEGIN
    {_NOTE} (3, 0, '', new.seq, new.node, x'', x'', 0, 0); END""",
    f"""CREATE TEMP TRIGGER member_changed AFTER UPDATE ON main.members BEGIN
    {_NOTE} (3, 0, '', new.seq, new.node, x'', x'', 0, 0); END""",
    f"""CREATE TEMP TRIGGER place_changed AFTER UPDATE ON main.places WHEN old.digest <> new.digest BEGIN
    {_NOTE} (4, 0, '', 0, '', old.digest, x'', 0, 0); END""",
    f"""CREATE TEMP TRIGGER place_dropped AFTER DELETE ON main.places BEGIN
    {_NOTE} (4, 0, '', 0, '', old.digest, x'', 0, 0); END""",
)
READ_NOTES = (  # one row, however many notes: SQLite gives up the interpreter once
    "SELECT json_group_array(json_array(what, sign, name, stamp, node, hex(digest), hex(store), state, size)) "
    "FROM noted"
)
CLEAR_NOTES = "DELETE FROM noted"


_LIVE = int(State.LIVE)  # compared a million times in a rebuild


@dataclass(slots=True)
class Counts:
    """What one transaction has counted."""

    rows: int
    combined: int  # exclusive-or of fingerprints
    last_hlc: int
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # change of (live records, bytes)
    loose: dict[Digest, None] = field(default_factory=dict)  # digests whose chunk list may now be unneeded


class Ledger:
    """Adds up the notes of one transaction at a time, for the writer."""

    def __init__(self, cluster: str, node: NodeId) -> None:
        self._key = cluster_key(cluster)
        self._node = node
        self.counts = Counts(0, 0, 0)

    def begin(self, fold: tuple[int, int], last_hlc: int) -> None:
        """A transaction starts; these are the committed counts."""
        self.counts = Counts(fold[0], fold[1], last_hlc)

    def add(self, notes: str) -> None:
        """Count what the transaction has changed; `notes` is the one value of `READ_NOTES`."""
        for what, sign, name, stamp, node, digest, store, state, size in json.loads(notes):
            if what == 1:
                self._record(sign, name, stamp, node, bytes.fromhex(digest), state, size)
            elif what == 2:
                self._holding(sign, bytes.fromhex(digest), node, bytes.fromhex(store), stamp)
            elif what == 3:
                self._stamp(node, stamp)
            else:
                self.counts.loose[bytes.fromhex(digest)] = None

    def _record(self, sign: int, name: str, hlc: int, origin: str, digest: bytes, state: int, size: int) -> None:
        counts = self.counts
        counts.rows += sign
        counts.combined ^= fingerprint_of_record(self._key, name, hlc, origin, state, digest)
        if state == _LIVE:
            kind = name.partition("/")[0]
            artifacts, size_bytes = counts.kinds.get(kind, (0, 0))
            counts.kinds[kind] = (artifacts + sign, size_bytes + sign * size)
        if sign > 0:
            self._stamp(origin, hlc)
        else:
            counts.loose[digest] = None

    def _holding(self, change: int, digest: bytes, node: str, store: bytes, seq: int) -> None:
        if change:
            self.counts.rows += change
            self.counts.combined ^= fingerprint_of_holding(self._key, node, store, digest)
        self._stamp(node, seq)

    def _stamp(self, node: str, hlc: int) -> None:
        if node == self._node:
            self.counts.last_hlc = max(self.counts.last_hlc, hlc)
