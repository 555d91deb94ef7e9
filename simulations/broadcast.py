"""One large artifact from one node to all: what the scenario `broadcast` does, and what it demands.

Nodes have uplinks that differ by five, lie in three domains, and some die on the way. Whoever may hold it and lives has
it in the end, in little more than the least time that the uplinks allow, for little more than the bytes that it takes.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random

from protocol.broadcasts import Bound, bound
from protocol.effects import Kept
from protocol.events import Put
from protocol.values import NodeId, StoreId
from simulations.driver import SimNode
from simulations.options import Options
from simulations.oracle import Request
from simulations.surroundings import Surroundings

FIRST_MS = 5_000  # the agents have found each other
NAME = "model/everywhere"
TIMES_MAX = 1.6  # of the bound: figures for equal uplinks are in docs/performance.md
TIMES_MAX_DEATHS = 2.0
WIRE_MAX = 1.05  # bytes that left uplinks, for each byte that arrived; what went to the dead counts for nothing


class Broadcast:
    """The one user of such a run; afterwards its judge."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode], options: Options, seed: int) -> None:
        self.around = around
        self.nodes = nodes
        self.size = options.broadcast_bytes
        self.digest = blake2b(f"{seed}/broadcast".encode(), digest_size=32).digest()
        self.random = Random(f"{seed}/broadcast")
        self.deaths = options.deaths
        self.last_ms = 0
        self.refused = 0
        self.source = self.random.choice([name for name in sorted(nodes) if self._may_be_source(name)])

    def _may_be_source(self, name: NodeId) -> bool:
        host = self.around.fleet.host(name)
        return bool(host.dial_address) and not (host.excluded or host.ephemeral or host.nfs_group)

    def schedule(self) -> None:
        self.around.schedule.after(FIRST_MS, self._put)
        span_ms = int(self.bound().seconds * 1000)
        mortal = [name for name in sorted(self.nodes) if name != self.source and self._may_be_source(name)]
        for name in self.random.sample(mortal, min(self.deaths, len(mortal) // 2)):
            self.around.schedule.after(FIRST_MS + self.random.randrange(span_ms), self.nodes[name].vanish)

    def _put(self) -> None:
        node = self.nodes[self.source]
        now_ms = self.last_ms = self.around.schedule.now_ms
        request = self.around.oracle.ask(Request(node.name, "put", NAME, self.digest, 0, now_ms + 30_000))
        kept = node.depot.keep(self.digest, self.size, now_ms)
        node.handle(Put(request, NAME, self.digest, self.digest, self.size, 0o644, Kept(kept)))

    # --- afterwards ---

    def receivers(self) -> list[NodeId]:
        """One living node for each store that may hold it, the source's left out."""
        stores: dict[StoreId, NodeId] = {}
        for name in sorted(self.nodes):
            node = self.nodes[name]
            if not node.gone and not self.around.fleet.host(name).excluded:
                stores.setdefault(node.store.store, name)
        return [name for store, name in stores.items() if store != self.nodes[self.source].store.store]

    def bound(self) -> Bound:
        """The least time, given that bytes cross into a domain once: within it its own uplinks do the rest."""
        receivers = self.receivers()
        least = bound(self.size, self._uplinks([self.source, *receivers]), self.source, len(receivers))
        return max([least, *self._bounds_within(receivers)], key=lambda known: known.seconds)

    def _bounds_within(self, receivers: list[NodeId]) -> list[Bound]:
        found = []
        fleet = self.around.fleet
        for domain in sorted({fleet.domain(name) for name in receivers}):
            inside = [name for name in receivers if fleet.domain(name) == domain]
            first = 0 if fleet.domain(self.source) == domain else 1  # the first copy comes from elsewhere
            uplinks = self._uplinks(inside if first else [self.source, *inside])
            total = sum(rate or 0 for rate in uplinks.values())
            if total:
                found.append(Bound((len(inside) - first) * self.size / total, f"the uplinks within {domain}"))
        return found

    def _uplinks(self, names: list[NodeId]) -> dict[NodeId, int | None]:
        """Of those that others can dial: the rest get bytes and pass none on."""
        fleet = self.around.fleet
        return {name: fleet.egress_bytes_per_second(name) for name in names if fleet.host(name).dial_address}

    def figures(self) -> dict[str, float]:
        """Seconds until the last living node had it, the least they could be, and the bytes it took."""
        arrived = [self.nodes[name].store.held_since.get(self.digest) for name in self.receivers()]
        known = [at for at in arrived if at is not None]
        seconds = (max(known) - self.last_ms) / 1000 if len(known) == len(arrived) and known else 0.0
        useful = self.size * len(known) + self._left_with_the_dead()
        sent = sum(self.around.streams.sent_bytes.values())
        return {
            "makespan_seconds": round(seconds, 1),
            "bound_seconds": round(self.bound().seconds, 1),
            "times_bound": round(seconds / self.bound().seconds, 2),
            "wire": round(sent / useful, 3) if useful else 0.0,
            "source_sent": round(self.around.streams.sent_bytes.get(self.source, 0) / self.size, 2),
        }

    def _left_with_the_dead(self) -> int:
        dead = [node for node in self.nodes.values() if node.gone]
        staged = [node.depot.staged.get(self.digest) for node in dead]
        part = sum(s.written.bit_count() * self.size // s.chunks for s in staged if s is not None)
        return part + self.size * sum(self.digest in node.store.held_since for node in dead)

    def judge(self) -> None:
        oracle, figures = self.around.oracle, self.figures()
        for name in self.receivers():
            if self.digest not in self.nodes[name].store.held_since:
                oracle.violation(f"{name} never got {NAME}")
        times_max = TIMES_MAX_DEATHS if any(node.gone for node in self.nodes.values()) else TIMES_MAX
        if figures["times_bound"] > times_max:
            oracle.violation(f"it took {figures['times_bound']} times the least possible")
        if figures["wire"] > WIRE_MAX:
            oracle.violation(f"{figures['wire']} bytes left uplinks for each byte that arrived")
