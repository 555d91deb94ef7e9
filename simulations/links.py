"""The wires between simulated nodes: how long a message takes, and what is wrong with them now.

Latency is drawn once for each pair of domains; every message adds its own jitter. A session is an ordered stream (TCP):
a lost, doubled or reordered packet never reaches it as such. It shows as a delay of all that follows (`packet_loss`),
and, when retransmission does not help, as a broken session (`loss`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from protocol.values import NodeId
from simulations.chance import between

NEAR_MS = (1, 3)  # within a domain
FAR_MS = (10, 90)  # between domains: one continent to half the globe
RETRANSMIT_MS = (200, 1_600)  # TCP's first time-out, and after three doublings
BYTES_PER_MS = 12_500  # 100 Mbit/s for control messages


@dataclass(frozen=True, slots=True)
class Cut:
    """No packet goes from these nodes to those; with `both`, none comes back either."""

    here: dict[NodeId, None]
    there: dict[NodeId, None]
    both: bool = True

    def stops(self, a: NodeId, b: NodeId) -> bool:
        """Whether a packet from `a` to `b` is lost."""
        return (a in self.here and b in self.there) or (self.both and a in self.there and b in self.here)


@dataclass(slots=True)
class Weather:
    """How bad the network is now. Zero and empty everywhere: it is healed."""

    loss: float = 0.0  # of messages, each breaking its session
    packet_loss: float = 0.0  # of messages, each held up until a packet of it is sent again
    sides: dict[NodeId, int] = field(default_factory=dict)  # a partition: nodes on different sides do not meet
    cuts: list[Cut] = field(default_factory=list)
    clogged: dict[tuple[NodeId, NodeId], int] = field(default_factory=dict)  # nothing gets through before this time
    deaf: dict[NodeId, None] = field(default_factory=dict)  # cannot be dialled (behind NAT); they dial out

    def passes(self, a: NodeId, b: NodeId) -> bool:
        """Whether packets from `a` arrive at `b`."""
        if self.sides and self.sides.get(a, 0) != self.sides.get(b, 0):
            return False
        return not any(cut.stops(a, b) for cut in self.cuts)

    def heal(self) -> None:
        self.loss = self.packet_loss = 0.0
        self.sides = {}
        self.cuts.clear()
        self.clogged.clear()


class Links:
    """Latency and bandwidth by domain, the same for a seed whichever nodes talk first."""

    def __init__(self, seed: int | str, random: Random, equal_ms: int = 0, bytes_per_ms: int = BYTES_PER_MS) -> None:
        self.seed = seed
        self.random = random
        self.equal_ms = equal_ms  # every message takes exactly so long: for figures in hops; 0: as drawn
        self.bytes_per_ms = bytes_per_ms
        self.domains: dict[NodeId, str] = {}
        self._base_ms: dict[tuple[str, str], int] = {}

    def latency_ms(self, a: NodeId, b: NodeId) -> int:
        """For one message, jitter included."""
        if self.equal_ms:
            return self.equal_ms
        base_ms = self.base_ms(self.domains[a], self.domains[b])
        return base_ms + between(self.random, 0, base_ms // 4 or 1)

    def base_ms(self, a: str, b: str) -> int:
        base_ms = self._base_ms.get((a, b))
        if base_ms is None:
            low, high = min(a, b), max(a, b)
            drawn = Random(f"{self.seed}/{low}/{high}")  # of its own, so that the order of first use does not matter
            base_ms = between(drawn, *(NEAR_MS if a == b else FAR_MS))
            self._base_ms[a, b] = self._base_ms[b, a] = base_ms
        return base_ms

    def mean_ms(self) -> float:
        """What a message takes on average between two nodes picked at random."""
        counts: dict[str, int] = {}
        for domain in self.domains.values():
            counts[domain] = counts.get(domain, 0) + 1
        pairs = [(a, b, counts[a] * counts[b]) for a in counts for b in counts]
        total = sum(count for _, _, count in pairs)
        return self.equal_ms or sum(self.base_ms(a, b) * 1.125 * count for a, b, count in pairs) / max(1, total)
