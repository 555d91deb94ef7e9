"""The users of a rehearsal: every node of the fleet adds artifacts, and nobody changes or removes any.

So whatever is missing in the end was lost to what was rehearsed. What is added depends on the seed and the hosts alone:
the same fleet with another setting is asked to keep the very same artifacts.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random

from protocol.effects import Inline, Kept, Source
from protocol.events import Put
from protocol.fleet import MIB, Kind
from protocol.values import NodeId
from simulations.chance import between
from simulations.driver import SimNode
from simulations.options import Options
from simulations.oracle import Request
from simulations.surroundings import Surroundings
from simulations.watching import INLINE_BYTES_MAX

FIRST_MS = 2_000  # the agents have found each other
BETWEEN_MS = (3_000, 7_000)  # of one node: a game, an epoch, a checkpoint
SIZES = (  # share of what is added, and its bytes: games and models, sets of samples, checkpoints
    (0.6, 1 << 10, MIB),
    (0.3, MIB, 32 * MIB),
    (0.1, 64 * MIB, 512 * MIB),
)


class Workers:
    """Draws what each node adds and when, before time begins."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode], options: Options, seed: int) -> None:
        self.around = around
        self.nodes = nodes
        self.options = options
        self.seed = seed
        self.last_ms = 0
        self.refused = 0  # nobody accepted it: its maker knows, so it is not lost

    def schedule(self) -> None:
        for name in sorted(self.nodes):
            random = Random(f"{self.seed}/work/{name}")
            at_ms = FIRST_MS + between(random, 0, BETWEEN_MS[1])
            count = 0
            while at_ms < self.options.busy_ms and count < self.options.operations:
                kind = random.choice(self.around.fleet.kinds)
                self.around.schedule.after(at_ms, self._add, self.nodes[name], kind, count, _size(random))
                at_ms += between(random, *BETWEEN_MS)
                count += 1

    def _add(self, node: SimNode, kind: Kind, count: int, size: int) -> None:
        if not node.up:
            return
        now_ms = self.last_ms = self.around.schedule.now_ms
        owned = (
            f"{node.name}/rehearsal/{count:03d}" if kind.namespace == "node" else f"rehearsal/{node.name}-{count:03d}"
        )
        name = f"{kind.name}/{owned}"
        digest = blake2b(f"{self.seed}/{name}".encode(), digest_size=32).digest()
        if size > INLINE_BYTES_MAX and node.store.free_bytes() < size:
            self.refused += 1
            return
        request = self.around.oracle.ask(Request(node.name, "put", name, digest, 0, now_ms + 30_000))
        source: Source = Inline(digest)
        if size > INLINE_BYTES_MAX:
            source = Kept(node.depot.keep(digest, size, now_ms))
        node.handle(Put(request, name, digest, digest, size, 0o644, source))


def _size(random: Random) -> int:
    roll = random.random()
    for share, low, high in SIZES:
        if roll < share:
            return between(random, low, high)
        roll -= share
    return SIZES[-1][2]
