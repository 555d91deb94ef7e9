"""The core's read-only view of the manifest: bounded look-ups by key, of committed rows only.

`storage.manifest` implements it over SQLite, `simulations.memory` over dictionaries; one contract suite tests both. The
core asks through `recent`, which remembers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from protocol.sketch import Sketch
from protocol.values import Digest, Holding, HoldingKey, Member, NodeId, Place, Record, RecordKey

VERSIONS_MAX = 256  # versions of one name looked at at once; retention keeps far fewer
SHARERS_MAX = 256  # records looked at that share one digest
MANY_ROWS_MAX = 20_000  # rows of one look-up for many keys: 100 ms of work; a message names 2,000 keys at most
HOLDERS_MAX = 4096  # holdings looked at for one digest: more than any fleet has stores


class Catalogue(Protocol):
    def record(self, key: RecordKey) -> Record | None: ...

    def versions(self, name: str) -> tuple[Record, ...]:
        """Versions of a name, tombstones included, newest first, at most `VERSIONS_MAX`."""
        ...

    def sharers(self, digest: Digest) -> tuple[Record, ...]:
        """Live records with this digest, in key order, at most `SHARERS_MAX`."""
        ...

    def holding(self, key: HoldingKey) -> Holding | None: ...

    def holdings(self, digest: Digest) -> tuple[Holding, ...]:
        """Present holdings of a digest, ordered by (node, store), at most `HOLDERS_MAX`."""
        ...

    def statements(self, digest: Digest) -> tuple[Holding, ...]:
        """What was last said of a digest, withdrawals too, ordered by (node, store), at most `HOLDERS_MAX`."""
        ...

    def versions_of(self, names: Collection[str]) -> dict[str, tuple[Record, ...]] | None:
        """`versions` of many names at once; None where that is more than `MANY_ROWS_MAX` rows."""
        ...

    def statements_of(self, digests: Collection[Digest]) -> dict[Digest, tuple[Holding, ...]] | None:
        """`statements` of many digests at once; None where that is more than `MANY_ROWS_MAX` rows."""
        ...

    def places_at(self, paths: Collection[str]) -> dict[str, Place]:
        """`place` of many paths at once, without those where there is none."""
        ...

    def member(self, node: NodeId) -> Member | None: ...

    def members(self) -> tuple[Member, ...]:
        """Every known member, ordered by node."""
        ...

    def places(self, digest: Digest) -> tuple[Place, ...]:
        """Where our own store has a digest, ordered by path."""
        ...

    def place(self, path: str) -> Place | None: ...

    def sketch(self) -> Sketch:
        """Of all committed rows: records, present holdings, members (see fingerprints.py). Only to be read."""
        ...
