"""Broadcasts: a version that every eligible node is to hold, whatever its kind's strategy; and how fast that can be.

A broadcast is a replicated record without bytes under our own kind, `spore/broadcast/<name>`, whose meta names the
version: `hlc` and `origin`. The newest counts. So it survives every restart and reaches every node, and who has got the
bytes stands in the holdings: nothing else is tracked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.context import Context
from protocol.fleet import RESERVED_KIND, Kind
from protocol.values import NodeId, Record, State

BROADCASTS_MAX = 10_000  # remembered; beyond, each is looked up
_PREFIX = f"{RESERVED_KIND}/broadcast/"


def broadcast_name(name: str) -> str:
    """The name of the record that says which version of a name every node is to hold."""
    return f"{_PREFIX}{name}"


def version_meta(record: Record) -> tuple[tuple[str, str | int], ...]:
    """What such a record says of its version."""
    return (("hlc", record.hlc), ("origin", record.origin))


class Broadcasts:
    """Which versions are broadcast. Remembers them once a sweep has seen every record, and looks them up before."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._known: dict[str, dict[str, str | int]] = {}
        self._complete = False

    def heard(self, record: Record) -> str:
        """A record was committed or read: the name that is broadcast by it, "" for any other record."""
        if not record.name.startswith(_PREFIX):
            return ""
        name = record.name.removeprefix(_PREFIX)
        self._known.pop(name, None)
        declared = self._look_up(name)
        if declared:
            self._known[name] = declared
        return name

    def seen_all(self) -> None:
        """A sweep has read every record: from now on what is not remembered is not broadcast."""
        self._complete = len(self._known) < BROADCASTS_MAX

    def reaches(self, record: Record, kind: Kind, role: str) -> bool:
        """Whether this version is broadcast to nodes of this role."""
        if kind.roles and role not in kind.roles:
            return False
        declared = self._known.get(record.name) if self._complete else self._look_up(record.name)
        return bool(declared) and declared == dict(version_meta(record))

    def _look_up(self, name: str) -> dict[str, str | int]:
        current = self.ctx.current(broadcast_name(name))
        return dict(current.meta) if current is not None and current.state is State.LIVE else {}


@dataclass(frozen=True, slots=True)
class Bound:
    """The least time that one to many can take, and what makes it so, in words."""

    seconds: float
    why: str


def bound(size: int, uplinks: Mapping[NodeId, int | None], source: NodeId, receivers: int) -> Bound:
    """max{F/u of the source, N·F/Σu}; `uplinks` of the source and of the receivers that can be dialled, in bytes per
    second, None for no limit.

    The third term of the theory, F/d of the slowest downlink, is left out: nobody states a downlink.
    """
    stated = uplinks.get(source)
    alone = Bound(size / stated, f"the uplink of {source}, {stated / 1e6:g} MB/s") if stated else Bound(0.0, "")
    rates = list(uplinks.values())
    if None in rates or not receivers:
        return alone
    total = sum(rate for rate in rates if rate)
    slowest = min(uplinks, key=lambda node: (uplinks[node] or 0, node))
    why = f"all uplinks together, {total / 1e6:g} MB/s, of which {slowest} has the least"
    return max(alone, Bound(receivers * size / total, why), key=lambda known: known.seconds)
