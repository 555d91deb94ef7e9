"""Pins: a user's word that a node keeps a copy of a name, whatever its role and strategy, and never evicts it.

A pin is a replicated record without bytes under our own kind, `spore/pin/<node>/<name>`, whose meta says `pinned` 1 or
0; the newest counts. Pins are remembered once a sweep has seen every record, and looked up before.
"""

from __future__ import annotations

from protocol.context import Context
from protocol.fleet import RESERVED_KIND
from protocol.values import NodeId, Record, State

PINS_MAX = 100_000  # remembered; beyond, each is looked up
_PREFIX = f"{RESERVED_KIND}/pin/"


def pin_name(node: NodeId, name: str) -> str:
    """The name of the record that pins an artifact's name to a node."""
    return f"{_PREFIX}{node}/{name}"


def is_pinning(record: Record) -> bool:
    """Whether this version of a pin's record pins; a later one may take it back."""
    return record.state is State.LIVE and dict(record.meta).get("pinned") == 1


class Pins:
    """Which names are pinned, and where."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._nodes: dict[str, dict[NodeId, None]] = {}  # by the name that is pinned
        self._count = 0
        self._complete = False  # every record was seen since the start

    def heard(self, record: Record) -> str:
        """A record was committed or read: the name that is pinned or unpinned here by it, "" for any other record."""
        if not record.name.startswith(_PREFIX):
            return ""
        node, _, name = record.name.removeprefix(_PREFIX).partition("/")
        nodes = self._nodes.setdefault(name, {})
        self._count -= node in nodes
        nodes.pop(node, None)
        if self._looked_up(node, name):
            nodes[node] = None
            self._count += 1
        if not nodes:
            del self._nodes[name]
        return name if node == self.ctx.node else ""

    def seen_all(self) -> None:
        """A sweep has read every record: from now on what is not remembered is not pinned."""
        self._complete = self._count < PINS_MAX

    def pinned_here(self, name: str) -> bool:
        return self.is_pinned(self.ctx.node, name)

    def is_pinned(self, node: NodeId, name: str) -> bool:
        return node in self._nodes.get(name, {}) if self._complete else self._looked_up(node, name)

    def _looked_up(self, node: NodeId, name: str) -> bool:
        current = self.ctx.current(pin_name(node, name))
        return current is not None and is_pinning(current)
