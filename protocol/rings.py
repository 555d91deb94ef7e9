"""Two rings over the nodes: who tells whom, who probes whom, and between whom sessions are kept.

Ring A is the order of a keyed hash of the ids; ring B that of an independent one, with failure domains interleaved, so
that what goes wrong in one domain does not cut a stretch out of both. A new item that each node forwards once to its
next live node on A and on B reaches all of them in about log2 n hops, in two copies for each node: every node is told
twice, so that no part is left out by chance, as with two random picks (which reach about 80%).

`Rings` is a function of the member list alone, immutable, and shared by everybody who sees the same members. Who is
alive is asked for at each walk: a death costs no rebuild, the walk goes on past the dead.

With `k` = log2(n) / 2 the sessions kept are those with the k next and the k previous live nodes on each ring: about
2 log2 n. Both ends of a pair come to the same answer from the same view. The smaller id dials (`dials`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from protocol.values import NodeId

PROBERS = 3  # ring predecessors that probe a node: two can be dead or stalled at once, and the third still does
REACH_MIN = PROBERS  # a prober and whom it probes keep a session, however small the fleet
PERSON_A, PERSON_B = b"spore.ring.a", b"spore.ring.b"

Place = tuple[NodeId, str]  # a node and its failure domain
IsAlive = Callable[[NodeId], bool]


@dataclass(frozen=True, slots=True)
class Ring:
    """A closed order of nodes. `at` is the inverse of `order`."""

    order: tuple[NodeId, ...]
    at: dict[NodeId, int]

    def walk(self, node: NodeId, count: int, is_alive: IsAlive, step: int = 1) -> list[NodeId]:
        """The next `count` live nodes after `node` (before it with step -1), nearest first; none if it has no place."""
        start, length = self.at.get(node), len(self.order)
        found: list[NodeId] = []
        if start is None:
            return found
        for distance in range(1, length):
            if len(found) == count:
                break
            other = self.order[(start + step * distance) % length]
            if is_alive(other):
                found.append(other)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Both rings of one member list, and how far along them a node keeps sessions."""

    a: Ring
    b: Ring
    reach: int

    @classmethod
    def build(cls, members: Sequence[Place]) -> Rings:
        """The rings of these members, whatever their order; the same object for the same members."""
        return _build(tuple(sorted(dict(members).items())))

    def __len__(self) -> int:
        return len(self.a.order)

    def __contains__(self, node: object) -> bool:
        return node in self.a.at

    def neighbours(self, node: NodeId, is_alive: IsAlive) -> tuple[NodeId, ...]:
        """Whom `node` tells what is new: the next live node on A and on B; if they are one node, also the next on B.

        Fewer than two only where fewer are alive.
        """
        first = self.a.walk(node, 1, is_alive)
        second = [other for other in self.b.walk(node, 2, is_alive) if other not in first]
        return (*first, *second[:1])

    def beyond(self, node: NodeId, is_alive: IsAlive) -> tuple[NodeId, ...]:
        """Who is left out when a neighbour of `node` has just died and nobody knows: the next but one on each ring."""
        following = (*self.a.walk(node, 2, is_alive)[1:], *self.b.walk(node, 2, is_alive)[1:])
        return tuple(dict.fromkeys(following))

    def probed_by(self, node: NodeId, is_alive: IsAlive) -> tuple[NodeId, ...]:
        """Whom `node` probes: its next live nodes on ring A."""
        return tuple(self.a.walk(node, PROBERS, is_alive))

    def probers(self, node: NodeId, is_alive: IsAlive) -> tuple[NodeId, ...]:
        """Who probes `node`: its previous live nodes on ring A."""
        return tuple(self.a.walk(node, PROBERS, is_alive, step=-1))

    def session_peers(self, node: NodeId, is_alive: IsAlive) -> tuple[NodeId, ...]:
        """With whom `node` keeps sessions, in name order. Symmetric among nodes that see the same members alive."""
        peers: dict[NodeId, None] = {}
        for ring in (self.a, self.b):
            for step in (1, -1):
                peers.update(dict.fromkeys(ring.walk(node, self.reach, is_alive, step)))
        return tuple(sorted(peers))


def dials(own: NodeId, peer: NodeId) -> bool:
    """Whether it is this node's part to dial; the peer does when it can be dialled itself and nothing came."""
    return own < peer


def reach_of(members: int) -> int:
    """Neighbours in each direction of each ring, so that all four together are about 2 log2 n."""
    return max(REACH_MIN, members.bit_length() // 2)


@lru_cache(maxsize=64)  # views in one process: one in an agent; in a simulation, as many as differ at a time
def _build(members: tuple[Place, ...]) -> Rings:
    domains = dict(members)
    order_a = sorted(domains, key=lambda node: _position(node, PERSON_A))
    order_b = _interleave(sorted(domains, key=lambda node: _position(node, PERSON_B)), domains)
    return Rings(_ring(order_a), _ring(order_b), reach_of(len(domains)))


def _ring(order: Sequence[NodeId]) -> Ring:
    return Ring(tuple(order), {node: at for at, node in enumerate(order)})


def _position(node: NodeId, person: bytes) -> bytes:
    return blake2b(node.encode(), digest_size=16, person=person).digest()


# --- interleaving ---


def _interleave(order: Sequence[NodeId], domains: dict[NodeId, str]) -> list[NodeId]:
    """The order, changed where it must be so that neighbours on the closed ring lie in different domains.

    A node whose domain was just used waits until another domain has had its turn. All that wait are of one domain,
    since the first to fit goes. What still waits at the end goes into gaps between two others further back. Only a
    domain with more than half of all nodes is left beside itself, and then no order is better. The last to wait goes
    first: so one node more or less moves few others.
    """
    laid: list[NodeId] = []
    waiting: list[NodeId] = []
    for node in order:
        if laid and domains[laid[-1]] == domains[node]:
            waiting.append(node)
            continue
        laid.append(node)
        if waiting and domains[waiting[-1]] != domains[node]:
            laid.append(waiting.pop())
    if len(laid) > 2 and domains[laid[0]] == domains[laid[-1]]:
        last = laid.pop()  # of its own domain, or of the one that waits: after it nothing else could be laid
        laid = _into_gaps(laid, [last], domains)
    return _into_gaps(laid, waiting, domains)


def _into_gaps(laid: list[NodeId], waiting: list[NodeId], domains: dict[NodeId, str]) -> list[NodeId]:
    """Lay what waits, all of one domain, between nodes of others, then in equal parts beside its own."""
    if not waiting:
        return laid
    domain, left = domains[waiting[0]], deque(reversed(waiting))
    spread: list[NodeId] = []
    for at, node in enumerate(laid):
        spread.append(node)
        following = laid[(at + 1) % len(laid)]
        if left and domains[node] != domain and domains[following] != domain:
            spread.append(left.popleft())
    if not left:
        return spread
    beside = sum(domains[node] == domain for node in spread)
    share, extra = divmod(len(left), max(1, beside))
    result: list[NodeId] = []
    for node in spread:
        result.append(node)
        if domains[node] == domain:
            result.extend(left.popleft() for _ in range(share + (extra > 0)))
            extra -= 1
    return [*result, *left]
