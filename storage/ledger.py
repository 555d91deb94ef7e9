"""What the manifest counts while rows change: fingerprints that come and go, totals per kind, our own highest stamp.

Temporary triggers on the one writing connection note every row that really changes in a temporary table, inside the
statement that changes it. Whatever the replacement rules let through is counted, nothing else is, and a rollback,
also of a savepoint, takes the notes with it. Before the commit they are read, as one value, and added up.

Rejected: reading the old rows before each batch. That is a second statement of the same rules, and it has
to know what earlier rows of the same batch did. Calling Python from the triggers: beside busy threads every call waits
for the interpreter, several times a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.fingerprints import cluster_key, fingerprint_of_holding, fingerprint_of_member, fingerprint_of_record
from protocol.values import Batch, Digest, NodeId, State

# what: 1 a record, 2 a holding, 3 a member, 4 a digest whose chunk list may be unneeded
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
    {_NOTE} (3, 1, '', new.seq, new.node, x'', x'', 0, 0); END""",
    f"""CREATE TEMP TRIGGER member_changed AFTER UPDATE ON main.members BEGIN
    {_NOTE} (3, -1, '', old.seq, old.node, x'', x'', 0, 0);
    {_NOTE} (3, 1, '', new.seq, new.node, x'', x'', 0, 0); END""",
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

    last_hlc: int
    added: list[int] = field(default_factory=list)  # fingerprints
    removed: list[int] = field(default_factory=list)
    note: int = 0  # the number under which the sketchbook noted these two
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # change of (live records, bytes)
    loose: dict[Digest, None] = field(default_factory=dict)  # digests whose chunk list may now be unneeded


class Ledger:
    """Adds up the notes of one transaction at a time, for the writer."""

    def __init__(self, cluster: str, node: NodeId) -> None:
        self._key = cluster_key(cluster)
        self._node = node
        self.counts = Counts(0)

    def begin(self, last_hlc: int) -> None:
        """A transaction starts; this is the committed stamp."""
        self.counts = Counts(last_hlc)

    def stamp(self, batches: Sequence[Batch]) -> None:
        """Remember our own highest stamp among these rows, also of one that a later batch of the group drops."""
        for batch in batches:
            rows = batch.rows
            own = [record.hlc for record in rows.records if record.origin == self._node]
            own += [holding.seq for holding in rows.holdings if holding.node == self._node]
            own += [member.seq for member in rows.members if member.node == self._node]
            self.counts.last_hlc = max(self.counts.last_hlc, *own) if own else self.counts.last_hlc

    def add(self, notes: str) -> None:
        """Count what the transaction has changed; `notes` is the one value of `READ_NOTES`."""
        for what, sign, name, stamp, node, digest, store, state, size in json.loads(notes):
            if what == 1:
                self._record(sign, name, stamp, node, bytes.fromhex(digest), state, size)
            elif what == 2:
                if sign:
                    self._print(
                        sign, fingerprint_of_holding(self._key, node, bytes.fromhex(store), bytes.fromhex(digest))
                    )
            elif what == 3:
                self._print(sign, fingerprint_of_member(self._key, node, stamp))
            else:
                self.counts.loose[bytes.fromhex(digest)] = None

    def _record(self, sign: int, name: str, hlc: int, origin: str, digest: bytes, state: int, size: int) -> None:
        counts = self.counts
        self._print(sign, fingerprint_of_record(self._key, name, hlc, origin, state, digest))
        if state == _LIVE:
            kind = name.partition("/")[0]
            artifacts, size_bytes = counts.kinds.get(kind, (0, 0))
            counts.kinds[kind] = (artifacts + sign, size_bytes + sign * size)
        if sign < 0:
            counts.loose[digest] = None

    def _print(self, sign: int, fingerprint: int) -> None:
        (self.counts.added if sign > 0 else self.counts.removed).append(fingerprint)
