"""Pieces of a large artifact, as sets of bits: how it is cut, who brings which piece first, who has how much.

A piece is a run of chunks. What several nodes fetch at once is spoken of in pieces, so that what one says of itself is
a few hundred bytes for any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.chunks import chunk_count
from protocol.values import NodeId, Stripe

PIECES = 512  # an artifact of up to 32 GiB has at most so many: a set of them is 64 bytes
PIECE_CHUNKS_MAX = 64  # above, pieces stay at 64 MiB, which a slow uplink passes on within seconds


@dataclass(frozen=True, slots=True)
class Layout:
    """How an artifact of so many bytes is cut into pieces: runs of chunks, all of one length but the last."""

    size: int

    @property
    def chunks(self) -> int:
        return chunk_count(self.size)

    @property
    def piece_chunks(self) -> int:
        return min(PIECE_CHUNKS_MAX, max(1, -(-self.chunks // PIECES)))

    @property
    def pieces(self) -> int:
        return -(-self.chunks // self.piece_chunks)

    @property
    def full(self) -> int:
        """All pieces."""
        return (1 << self.pieces) - 1

    def run(self, piece: int) -> Stripe:
        first = piece * self.piece_chunks
        return Stripe(first, min(self.piece_chunks, self.chunks - first))

    def without(self, missing: Iterable[Stripe]) -> int:
        """The pieces of which no chunk is missing."""
        gone = 0
        for stripe in missing:
            if stripe.count:
                first, last = (at // self.piece_chunks for at in (stripe.first, stripe.first + stripe.count - 1))
                gone |= (1 << last + 1) - (1 << first)
        return self.full & ~gone


@dataclass(frozen=True, slots=True)
class Shares:
    """Which fetcher brings a new piece first: into its own domain (`owned`), and from a seed to all (`first`).

    Only fetchers that others can dial are owners. Where a seed's own domain has such, every piece comes there first:
    the rest of the world then asks them, and the source's uplink is left alone.
    """

    owned: dict[NodeId, int]
    first: dict[NodeId, int]

    @classmethod
    def of(cls, domains: dict[NodeId, str], seeded: Iterable[str], pieces: int) -> Shares:
        """`domains` has every owner with its domain; `seeded` are the domains of seeds."""
        mates: dict[str, list[NodeId]] = {}
        for node in sorted(domains):
            mates.setdefault(domains[node], []).append(node)
        first_in = sorted({*seeded} & mates.keys()) or sorted(mates)
        owned, first = dict.fromkeys(domains, 0), dict.fromkeys(domains, 0)
        for domain, nodes in mates.items():
            period = len(first_in) * len(nodes)
            for at in range(period):
                pieces_of_one = _every(period, at, pieces)
                owned[nodes[at // len(first_in)]] |= pieces_of_one
                if first_in[at % len(first_in)] == domain:
                    first[nodes[at // len(first_in)]] |= pieces_of_one
        return cls(owned, first)


@dataclass(slots=True)
class Spread:
    """Who has how much, counted anew for each round of choices."""

    near: int = 0  # pieces that a fetcher of our domain has
    near_once: int = 0  # those that one of them has
    near_asked: int = 0
    far: int = 0
    far_asked: int = 0
    near_got: int = 0  # as `near`, those who cannot be asked for them included: they were passed on all the same
    far_got: int = 0
    near_seed: bool = False
    full: bool | None = None  # whether we may bring nothing new; None: not counted yet
    planes: list[int] = field(default_factory=list)  # bit k of each piece's count of holders, fetchers but us

    def count(self, have: int) -> None:
        """Add one holder of these pieces: a binary counter for each piece, all of them at once."""
        for at, plane in enumerate(self.planes):
            self.planes[at], have = plane ^ have, plane & have
        if have:
            self.planes.append(have)

    def once(self) -> int:
        """Pieces that exactly one other fetcher has."""
        several = 0
        for plane in self.planes[1:]:
            several |= plane
        return self.planes[0] & ~several if self.planes else 0

    def rarest(self, pieces: int) -> int:
        """Of these, those that the fewest fetchers have."""
        for plane in reversed(self.planes):
            pieces = pieces & ~plane or pieces
        return pieces


def _every(period: int, at: int, pieces: int) -> int:
    """The pieces whose number is `at` modulo `period`."""
    times = max(0, -(-(pieces - at) // period))
    return (((1 << period * times) - 1) // ((1 << period) - 1)) << at if times else 0


def circle_of(own: NodeId, others: list[NodeId]) -> list[NodeId]:
    """Those at distances 1, 2, 4, … from us, both ways, on a circle in the order of names."""
    circle = sorted({own, *others})
    at = circle.index(own)
    steps = (1 << power for power in range((len(circle) // 2).bit_length()))
    return [circle[(at + way * step) % len(circle)] for step in steps for way in (1, -1) if len(circle) > 1]
