"""What a run looks like over time: read off the world at even intervals, without touching it.

Sampling draws nothing and changes nothing: a run has the same trace with and without it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from protocol.values import Record, State
from simulations.oracle import Promise
from simulations.world import World

SAMPLES_MAX = 400  # more than a plot has pixels for; long runs are sampled less often
COMMIT_MS = 7  # the group commit that each node makes before it tells: sync, transaction, answer, on average


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. Copies are stores that hold an artifact now, over all accepted artifacts that are wanted."""

    seconds: float
    up: int
    copies_mean: float
    copies_min: int
    control_bytes: int
    payload_bytes: int


@dataclass(slots=True)
class Samples:
    """A run's samples, and how long records took to other nodes."""

    world: World
    every_ms: int = 0
    rows: list[Sample] = field(default_factory=list)

    def start(self) -> None:
        """Sample from now on, more densely while users work; the healed phase may last many times as long."""
        self.every_ms = max(100, self.world.options.busy_ms // (SAMPLES_MAX // 2))
        self._take()

    def _take(self) -> None:
        if len(self.rows) < 4 * SAMPLES_MAX:
            self.rows.append(self._sample())
            self.world.schedule.after(self.every_ms, self._take)

    def _sample(self) -> Sample:
        copies = [self._copies(record) for record in wanted(self.world)]
        return Sample(
            self.world.schedule.now_ms / 1000,
            sum(node.up for node in self.world.nodes.values()),
            sum(copies) / len(copies) if copies else 0.0,
            min(copies, default=0),
            self.world.around.network.bytes,
            self.world.around.streams.payload_bytes,
        )

    def _copies(self, record: Record) -> int:
        """Stores that hold it; small bytes that stand in the log of their origin, and nowhere else there, count too."""
        oracle, origin = self.world.oracle, record.origin
        held = sum(store.holds(record.digest) for store in oracle.distinct_stores())
        logged = origin not in oracle.gone and oracle.has_inline(oracle.disks[origin], record.digest)
        return held + (logged and not oracle.stores[origin].holds(record.digest))

    @property
    def delays_ms(self) -> Counter[int]:
        return self.world.oracle.delays_ms


def wanted(world: World) -> list[Record]:
    """Every accepted artifact that no newer version replaces."""
    promises: list[Promise] = list(world.oracle.promises.values())
    records = [world.oracle.newest_with(promise) for promise in promises]
    return [r for r in records if r.state is State.LIVE and not world.oracle.superseded(r)]


def theory(nodes: int, hop_ms: float) -> list[tuple[float, float]]:
    """(milliseconds, share of nodes that know): who knows doubles each hop, so that log2 n hops reach all."""
    points = []
    known, hop = 1, 0
    while True:
        points.append((hop * hop_ms, min(1.0, known / nodes)))
        if known >= nodes:
            return points
        known, hop = known * 2, hop + 1


def hop_ms(world: World) -> float:
    return world.around.network.links.mean_ms() + COMMIT_MS
