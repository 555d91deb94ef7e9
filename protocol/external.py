"""Copies outside the fleet: which node makes those that are due, as a pure function of what all have heard.

Every node ranks the eligible nodes by a hash of the storage and the moment that was scheduled; the first of them that
has not failed at it runs. Each says how its own attempt stands in a replicated record of its own,
`spore/external/<key>/<node>`. Who says nothing for a while, or is no longer there, is passed over: its successor takes
over by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from protocol.fleet import RESERVED_KIND, ExternalStorage
from protocol.placement import weight
from protocol.values import NodeId, Record, State

START_SECONDS = 180  # who does not begin within this is passed over, the next one within twice this, and so on
SILENT_SECONDS = 600  # a running attempt says so each minute; silent for this long it counts as failed
WHY_CHARACTERS_MAX = 300
RUNNING, DONE, FAILED = "running", "done", "failed"
_PREFIX = f"{RESERVED_KIND}/external/"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one node's work for one scheduled moment stands. Times are seconds since 1970."""

    node: NodeId
    occurrence: int
    state: str
    at: int
    files: int = 0  # that were sent and verified
    size_bytes: int = 0
    left: int = 0  # that could not be sent: no node has them now, or they changed
    why: str = ""

    @property
    def meta(self) -> tuple[tuple[str, str | int], ...]:
        return (
            ("at", self.at),
            ("bytes", self.size_bytes),
            ("files", self.files),
            ("left", self.left),
            ("occurrence", self.occurrence),
            ("state", self.state),
            ("why", self.why[:WHY_CHARACTERS_MAX]),
        )


def key_of(storage: ExternalStorage) -> str:
    """What stands for a storage in names of records: its host and path, whatever its schedule."""
    return blake2b(f"{storage.host}\0{storage.path}".encode(), digest_size=8).hexdigest()


def record_name(key: str, node: NodeId) -> str:
    return f"{_PREFIX}{key}/{node}"


def attempt_of(record: Record) -> Attempt | None:
    """What a record says of an attempt; None for one that says nothing understandable."""
    meta = dict(record.meta)
    node = record.name.rpartition("/")[2]
    numbers = [meta.get(name) for name in ("occurrence", "at", "files", "bytes", "left")]
    if record.state is not State.LIVE or record.origin != node or not all(type(n) is int for n in numbers):
        return None
    occurrence, at, files, size_bytes, left = (int(number or 0) for number in numbers)
    return Attempt(node, occurrence, str(meta.get("state")), at, files, size_bytes, left, str(meta.get("why", "")))


def runner(
    key: str, occurrence: int, now: int, eligible: Sequence[NodeId], attempts: Iterable[Attempt]
) -> NodeId | None:
    """The node that is to run now; None when it is done, or everybody has failed at it."""
    tried = {attempt.node: attempt for attempt in attempts if attempt.occurrence == occurrence}
    if any(attempt.state == DONE for attempt in tried.values()):
        return None
    running = [n for n in eligible if n in tried and tried[n].state == RUNNING and now - tried[n].at < SILENT_SECONDS]
    if running:
        return _first(key, occurrence, running)
    left = [node for node in _ranked(key, occurrence, eligible) if node not in tried]
    if not left:
        return None
    waited = max([occurrence, *(attempt.at for attempt in tried.values())])
    return left[min(max(0, now - waited) // START_SECONDS, len(left) - 1)]


def _ranked(key: str, occurrence: int, nodes: Iterable[NodeId]) -> list[NodeId]:
    about = blake2b(f"{key}\0{occurrence}".encode(), digest_size=32).digest()
    return sorted(nodes, key=lambda node: (weight(about, node), node))


def _first(key: str, occurrence: int, nodes: Iterable[NodeId]) -> NodeId:
    """Two that run at once, each before it heard of the other: the first goes on."""
    return _ranked(key, occurrence, nodes)[0]
