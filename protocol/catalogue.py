"""The core's read-only view of the manifest: bounded look-ups by key, of committed rows only.

`storage.manifest` implements it over SQLite, `simulations.memory` over dictionaries; one contract suite tests both.
"""

from __future__ import annotations

from typing import Protocol

from protocol.sketch import Sketch
from protocol.values import Digest, Holding, HoldingKey, Member, NodeId, Place, Record, RecordKey

VERSIONS_MAX = 256  # versions of one name looked at at once; retention keeps far fewer
SHARERS_MAX = 256  # records looked at that share one digest
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
