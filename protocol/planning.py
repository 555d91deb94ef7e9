"""The plan of one artifact, in words: who should hold it, in order, and of every other node the reason why not.

The same decision as `placement` makes for the core, told for people: `spore plan NAME` about the fleet as it is now,
`spore plan --hosts FILE` about one that may not exist yet. Pure, so that every node with the same facts says the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from protocol.fleet import Fleet, Kind, Priority
from protocol.placement import Pool, Seat, eligible, pool, targets, wanted_by_role
from protocol.values import STORE_BYTES, Digest, Member, NodeId, StoreId

PRIORITIES: tuple[Priority, ...] = ("critical", "high", "normal", "low")  # who is served first


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node as the plan sees it: what it says of itself, and what others know of it."""

    member: Member
    alive: bool = True
    left: bool = False
    receives: bool = True  # this kind, by the hosts file
    priority: Priority = "normal"
    pinned: bool = False
    holds: bool = False  # its store has the bytes now

    @property
    def eligible(self) -> bool:
        return self.alive and self.receives and self.member.accepting and not self.member.excluded


@dataclass(frozen=True, slots=True)
class Holder:
    """One store that should hold, by the node that receives for it. `counts`: its copy is one of the K receipts."""

    node: NodeId
    store: StoreId
    domain: str
    role: str
    counts: bool
    holds: bool
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """One node that should not hold, and why not."""

    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Who should hold, in the order in which they are served, who not, and whether K over d domains can be had."""

    holders: tuple[Holder, ...]
    others: tuple[Refused, ...]
    copies: int
    domains: int
    enough: bool


def plan(
    digest: Digest, kind: Kind, copies: int, candidates: Collection[Candidate], origin: NodeId, origin_store: StoreId
) -> Plan:
    """The plan of one artifact. `origin_store` is that of the node that wrote it; its copy never counts."""
    known = {candidate.member.node: candidate for candidate in candidates}
    can = [candidate.member for candidate in candidates if candidate.eligible and candidate.member.node != origin]
    seats = eligible(can, origin_store)
    around = pool(digest, seats, copies, 0, kind)
    first = targets(around.seats, copies, around.domains)
    chosen = [*(_own(known, origin, origin_store)), *_targets(known, first, kind), *_further(known, seats, first, kind)]
    holding = {holder.node for holder in chosen}
    others = [Refused(node, _why_not(known, node, around, first, chosen, kind)) for node in sorted(known)]
    return Plan(
        tuple(chosen),
        tuple(other for other in others if other.node not in holding),
        copies,
        around.domains,
        around.enough,
    )


def candidates_of(fleet: Fleet, members: Collection[Member], kind: str) -> list[Candidate]:
    """Members as candidates for a kind, all of them alive."""
    return [
        Candidate(m, receives=fleet.receives(m.node, kind), priority=fleet.host(m.node).sync_priority) for m in members
    ]


def hypothetical(fleet: Fleet) -> list[Member]:
    """Every listed host as a member that is there, with room: the fleet of a hosts file that may not exist yet."""
    return [_imagined(fleet, node) for node in sorted(fleet.hosts)]


def _imagined(fleet: Fleet, node: NodeId) -> Member:
    host = fleet.host(node)
    store = blake2b((host.nfs_group or node).encode(), digest_size=STORE_BYTES).digest()
    return Member(
        node,
        1,
        role=host.role,
        provider=host.provider or "",
        domain=fleet.domain(node),
        store=store,
        ephemeral=host.ephemeral,
        excluded=host.excluded,
        accepting=True,
    )


def _own(known: dict[NodeId, Candidate], origin: NodeId, store: StoreId) -> list[Holder]:
    """The node that wrote it keeps it, unless it is excluded."""
    own = known.get(origin)
    if own is None or own.member.excluded or not own.receives:
        return []
    return [_holder(own, store, False, "it wrote it; receipts are counted elsewhere")]


def _targets(known: dict[NodeId, Candidate], first: Sequence[Seat], kind: Kind) -> list[Holder]:
    found = []
    for seat in first:
        role = f", and the kind wants every {seat.role} node" if wanted_by_role(kind, seat.role) else ""
        lasting = "it can vanish, and there are too few that last" if seat.ephemeral else "it lasts"
        why = f"one of the copies that make it durable: {lasting}{role}"
        found.append(_holder(known[seat.node], seat.store, True, why))
    return sorted(found, key=lambda holder: PRIORITIES.index(known[holder.node].priority))


def _further(known: dict[NodeId, Candidate], seats: Sequence[Seat], first: Sequence[Seat], kind: Kind) -> list[Holder]:
    """Beyond the K: whom the strategy or a pin gives a copy."""
    taken = {seat.store for seat in first}
    found = []
    for seat in seats:
        candidate = known[seat.node]
        if seat.store in taken:
            continue
        if wanted_by_role(kind, seat.role):
            found.append(_holder(candidate, seat.store, False, _by_strategy(kind, seat.role)))
        elif candidate.pinned:
            found.append(_holder(candidate, seat.store, False, "it is pinned there"))
    return sorted(found, key=lambda holder: (PRIORITIES.index(known[holder.node].priority), holder.node))


def _by_strategy(kind: Kind, role: str) -> str:
    return f"the kind wants every {role} node" if kind.roles else "the kind is broadcast to every node"


def _holder(candidate: Candidate, store: StoreId, counts: bool, why: str) -> Holder:
    member = candidate.member
    return Holder(member.node, store, member.domain, member.role, counts, candidate.holds, why)


def _why_not(
    known: dict[NodeId, Candidate],
    node: NodeId,
    around: Pool,
    first: Sequence[Seat],
    chosen: Sequence[Holder],
    kind: Kind,
) -> str:
    candidate = known[node]
    absolute = _cannot(candidate, kind)
    if absolute:
        return absolute
    mates = [holder.node for holder in chosen if holder.store == candidate.member.store]
    if mates:
        return f"it shares the store of {mates[0]}, which holds for both"
    stores = [seat.store for seat in around.seats]
    if candidate.member.store not in stores:
        return f"it can vanish, and {around.copies} or more stores that last can hold it"
    return _outranked(candidate.member, stores.index(candidate.member.store), around, first, kind)


def _cannot(candidate: Candidate, kind: Kind) -> str:
    """Why a node may not hold at all, "" where it may."""
    if candidate.member.excluded:
        return "it is excluded from sync"
    if not candidate.receives:
        return f"it does not receive the kind {kind.name}"
    if candidate.left:
        return "it said goodbye"
    if not candidate.alive:
        return "it is down"
    return "" if candidate.member.accepting else "its disk is at its cap, or failed"


def _outranked(member: Member, before: int, around: Pool, first: Sequence[Seat], kind: Kind) -> str:
    """It could hold, and others come first."""
    if kind.strategy == "pull":
        return "beyond the copies that make it durable the kind is held on request only: `spore get`, or `spore pin`"
    roles = f"its role {member.role} is not among {', '.join(kind.roles)}; " if kind.roles else ""
    if before < len(first) and member.domain in {seat.domain for seat in first}:
        return f"{roles}its domain {member.domain} has a copy already, and copies lie in {around.domains} domains"
    return f"{roles}{before} stores come before it, and {around.copies} make it durable"
