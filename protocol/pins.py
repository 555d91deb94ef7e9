"""Pins: a user's word that a node keeps a copy of a name, whatever its role and strategy, and never evicts it.

A pin is a replicated record without bytes under our own kind, `spore/pin/<node>/<name>`, whose meta says `pinned` 1 or
0; the newest counts. A node remembers its own pins once a sweep has seen every record, and looks them up before.
"""

from __future__ import annotations

from protocol.context import Context
from protocol.fleet import RESERVED_KIND
from protocol.values import NodeId, Record, State

PINS_MAX = 100_000  # of one node, remembered; beyond, each is looked up
_PREFIX = f"{RESERVED_KIND}/pin/"


def pin_name(node: NodeId, name: str) -> str:
    """The name of the record that pins an artifact's name to a node."""
    return f"{_PREFIX}{node}/{name}"


def is_pinning(record: Record) -> bool:
    """Whether this version of a pin's record pins; a later one may take it back."""
    return record.state is State.LIVE and dict(record.meta).get("pinned") == 1


class Pins:
    """Which names are pinned, here and elsewhere."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._own: dict[str, None] = {}
        self._complete = False  # every record was seen since the start

    def heard(self, record: Record) -> str:
        """A record was committed or read: the name that is pinned or unpinned here by it, "" for any other record."""
        prefix = f"{_PREFIX}{self.ctx.node}/"
        if not record.name.startswith(prefix):
            return ""
        name = record.name.removeprefix(prefix)
        self._own.pop(name, None)
        if self.is_pinned(self.ctx.node, name):
            self._own[name] = None
        return name

    def seen_all(self) -> None:
        """A sweep has read every record: from now on what is not remembered is not pinned."""
        self._complete = len(self._own) < PINS_MAX

    def pinned_here(self, name: str) -> bool:
        return name in self._own if self._complete else self.is_pinned(self.ctx.node, name)

    def is_pinned(self, node: NodeId, name: str) -> bool:
        """By a look-up, for any node."""
        current = self.ctx.current(pin_name(node, name))
        return current is not None and is_pinning(current)
