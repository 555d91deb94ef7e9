"""Placement: which stores an artifact's bytes go to, as a pure function of facts that every node has.

Eligible is a store whose node is alive, accepting, not excluded, and receives the artifact's kind. Persistent stores
come before ephemeral ones, which count only when fewer than K persistent ones are eligible; then the stores that the
kind's roles want anyhow, so that their copy is one of the K; then rendezvous hashing (Thaler and Ravishankar, 1996: one
store joining or leaving moves only its own share). The first K are spread over as many domains as there are. Need and
priority order transfers and change nothing here. `planning` says the same with reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from protocol.fleet import Kind
from protocol.values import Digest, Member, NodeId, StoreId


@dataclass(frozen=True, slots=True)
class Seat:
    """A store as placement sees it, with the node that receives for it."""

    node: NodeId
    store: StoreId
    domain: str
    ephemeral: bool
    role: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """The stores that may count for one artifact, best first, and over how many domains K of them must lie."""

    seats: tuple[Seat, ...]
    copies: int
    domains: int

    @property
    def enough(self) -> bool:
        return len(self.seats) >= self.copies


def seat_of(member: Member) -> Seat:
    return Seat(member.node, member.store, member.domain, member.ephemeral, member.role)


def eligible(
    members: Iterable[Member], own_store: StoreId, receives: Callable[[NodeId], bool] = lambda node: True
) -> list[Seat]:
    """One seat for each eligible store but ours. Of an NFS group, the member first in name order receives."""
    seats: dict[StoreId, Seat] = {}
    for member in sorted(members, key=lambda m: m.node):
        if member.accepting and not member.excluded and member.store != own_store and receives(member.node):
            seats.setdefault(member.store, seat_of(member))
    return list(seats.values())


def wanted_by_role(kind: Kind, role: str) -> bool:
    """Whether the kind's strategy gives every store of this role a copy, beyond the K that make it durable."""
    if kind.strategy == "broadcast":
        return not kind.roles or role in kind.roles
    return kind.strategy == "hybrid" and role in kind.roles


def pool(digest: Digest, seats: Collection[Seat], copies: int, domains: int = 0, kind: Kind | None = None) -> Pool:
    """Rank the eligible seats for one artifact. `domains` 0 asks for min(copies, domains there are)."""
    counted = counting_seats(seats, copies)
    first = {seat.role: not wanted_by_role(kind, seat.role) for seat in counted} if kind else {}
    ranked = sorted(counted, key=lambda seat: (seat.ephemeral, first.get(seat.role, False), weight(digest, seat.store)))
    return Pool(tuple(ranked), copies, domains or spread(counted, copies))


def counting_seats(seats: Collection[Seat], copies: int) -> list[Seat]:
    """Those that may count for K copies: ephemeral ones only where persistent ones are too few."""
    persistent = [seat for seat in seats if not seat.ephemeral]
    return persistent if len(persistent) >= copies else list(seats)


def spread(counted: Iterable[Seat], copies: int) -> int:
    """Over how many domains K copies are to lie: as many as there are, at most K."""
    return min(copies, len({seat.domain for seat in counted}))


def targets(ranked: Sequence[Seat], copies: int, domains: int, have: Sequence[Seat] = ()) -> list[Seat]:
    """The seats still needed so that, with those in `have`, `copies` stores over `domains` domains hold.

    Goes down the ranking, and passes over a seat in a domain already used while the domains still missing would
    otherwise not find room among the copies left. Adds a copy when what is held lies in too few domains.
    """
    held = {seat.store for seat in have}
    used = {seat.domain for seat in have}
    missing = max(copies - len(held), domains - len(used), 0)
    chosen: list[Seat] = []
    for seat in ranked:
        if len(chosen) == missing:
            break
        must_spread = domains - len(used) >= missing - len(chosen)
        if seat.store not in held and not (must_spread and seat.domain in used):
            chosen.append(seat)
            used.add(seat.domain)
    for seat in ranked:  # fewer domains than asked for: copies come first
        if len(held) + len(chosen) >= copies:
            break
        if seat.store not in held and seat not in chosen:
            chosen.append(seat)
    return chosen


def durable(receipts: Mapping[StoreId, Seat], around: Pool, seats: Collection[Seat], explicit_domains: int = 0) -> bool:
    """Whether these receipts (the origin's store left out) make K over d; `around` is the pool of eligible seats."""
    counting = counted(receipts, around, seats)
    needed = explicit_domains or around.domains
    return len(counting) >= around.copies and len({seat.domain for seat in counting}) >= needed


def counted(receipts: Mapping[StoreId, Seat], around: Pool, seats: Collection[Seat]) -> list[Seat]:
    """The receipts that count: ephemeral ones only while persistent stores, eligible or holding, are fewer than K."""
    persistent = {s.store for s in seats if not s.ephemeral} | {r.store for r in receipts.values() if not r.ephemeral}
    all_count = len(persistent) < around.copies
    return [seat for seat in receipts.values() if all_count or not seat.ephemeral]


def weight(digest: Digest, store: StoreId | NodeId) -> bytes:
    """What ranks stores, or nodes, for one content: the same everywhere, and another order for each content."""
    return blake2b(digest + (store.encode() if isinstance(store, str) else store), digest_size=8).digest()
