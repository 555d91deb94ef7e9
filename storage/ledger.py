"""What the manifest counts while rows change: the fold, the totals per kind, our own highest stamp.

Temporary triggers on the one writing connection call the ledger for every row that really changes, inside the
statement that changes it. Whatever the replacement rules let through is counted, nothing else is, and a rollback
takes the counts with it, because each transaction starts from the counts that are committed.

Rejected: reading the old rows before each batch. That is a second statement of the same rules, and it has
to know what earlier rows of the same batch did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.fingerprints import cluster_key, fingerprint_of_holding, fingerprint_of_record
from protocol.values import Digest, NodeId, State

TRIGGERS = (
    """CREATE TEMP TRIGGER record_added AFTER INSERT ON main.records BEGIN
    SELECT ledger_record(1, new.name, new.hlc, new.origin, new.digest, new.state, new.size); END""",
    """CREATE TEMP TRIGGER record_changed AFTER UPDATE ON main.records BEGIN
    SELECT ledger_record(-1, old.name, old.hlc, old.origin, old.digest, old.state, old.size);
    SELECT ledger_record(1, new.name, new.hlc, new.origin, new.digest, new.state, new.size); END""",
    """CREATE TEMP TRIGGER record_dropped AFTER DELETE ON main.records BEGIN
    SELECT ledger_record(-1, old.name, old.hlc, old.origin, old.digest, old.state, old.size); END""",
    """CREATE TEMP TRIGGER holding_added AFTER INSERT ON main.holdings BEGIN
    SELECT ledger_holding(new.present, new.digest, new.node, new.store, new.seq); END""",
    """CREATE TEMP TRIGGER holding_changed AFTER UPDATE ON main.holdings BEGIN
    SELECT ledger_holding(new.present - old.present, new.digest, new.node, new.store, new.seq); END""",
    """CREATE TEMP TRIGGER member_added AFTER INSERT ON main.members BEGIN
    SELECT ledger_stamp(new.node, new.seq); END""",
    """CREATE TEMP TRIGGER member_changed AFTER UPDATE ON main.members BEGIN
    SELECT ledger_stamp(new.node, new.seq); END""",
    """CREATE TEMP TRIGGER place_changed AFTER UPDATE ON main.places WHEN old.digest <> new.digest BEGIN
    SELECT ledger_loose(old.digest); END""",
    """CREATE TEMP TRIGGER place_dropped AFTER DELETE ON main.places BEGIN
    SELECT ledger_loose(old.digest); END""",
)


_LIVE = int(State.LIVE)  # compared a million times in a rebuild


@dataclass(slots=True)
class Counts:
    """What one transaction has counted so far; copied at a savepoint, put back when it is rolled back."""

    rows: int
    combined: int  # exclusive-or of fingerprints
    last_hlc: int
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # change of (live records, bytes)
    loose: dict[Digest, None] = field(default_factory=dict)  # digests whose chunk list may now be unneeded

    def copy(self) -> Counts:
        return Counts(self.rows, self.combined, self.last_hlc, dict(self.kinds), dict(self.loose))


class Ledger:
    """Called by SQLite, in the writer's thread, while a statement runs; read by the manifest between statements."""

    def __init__(self, cluster: str, node: NodeId) -> None:
        self._key = cluster_key(cluster)
        self._node = node
        self.counts = Counts(0, 0, 0)

    def functions(self) -> tuple[tuple[str, int, Callable[..., None]], ...]:
        """(name, count of arguments, function) of what the triggers call."""
        return (
            ("ledger_record", 7, self._record),
            ("ledger_holding", 5, self._holding),
            ("ledger_stamp", 2, self._stamp),
            ("ledger_loose", 1, self._loose),
        )

    def begin(self, fold: tuple[int, int], last_hlc: int) -> None:
        """A transaction starts; these are the committed counts."""
        self.counts = Counts(fold[0], fold[1], last_hlc)

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

    def _loose(self, digest: bytes) -> None:
        self.counts.loose[digest] = None
