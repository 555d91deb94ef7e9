"""One node's view of the others: a base that all views of a process may share, and what differs from it.

In a simulation of a settled fleet ten thousand views share one base and hold a few differences each. An agent's base
is its hosts file: every listed host is dead at incarnation 0, which means: not heard of yet, to be dialled for ever.

The *fold* of a view is the exclusive-or of keyed marks of (node, incarnation) over all nodes believed alive, kept by
bucket. Dead and unknown are the same to it: reaping changes no fold. A suspicion is no difference either: it lasts
seconds, and is told only to those whom it concerns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from protocol.claims import BUCKETS, Claim, Standing
from protocol.values import NodeId

NODES_MAX = 20_000  # twice the largest fleet simulated; claims about more are ignored and counted

Order = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is believed of one node. `since_ms`: when its standing last changed, on this node's clock."""

    standing: Standing
    incarnation: int
    instance: int = 0
    since_ms: int = 0

    @property
    def order(self) -> Order:
        return (self.incarnation, self.standing, self.instance)

    @property
    def lives(self) -> bool:
        return self.standing <= Standing.SUSPECT


UNHEARD = Entry(Standing.DEAD, 0)  # of a listed host that never spoke: any claim of life outranks it


@dataclass(frozen=True, slots=True)
class Base:
    """What a view starts from. Never changes, so that any number of views can share it."""

    entries: Mapping[NodeId, Entry]
    buckets: tuple[tuple[NodeId, ...], ...]
    folds: tuple[int, ...]
    alive: int
    absent: tuple[NodeId, ...]

    @classmethod
    def build(cls, entries: Mapping[NodeId, Entry]) -> Base:
        buckets: list[list[NodeId]] = [[] for _ in range(BUCKETS)]
        folds = [0] * BUCKETS
        for node in sorted(entries):
            buckets[bucket_of(node)].append(node)
            if entries[node].lives:
                folds[bucket_of(node)] ^= _mark(node, entries[node].incarnation)
        absent = tuple(node for node in sorted(entries) if not entries[node].lives)
        return cls(entries, tuple(map(tuple, buckets)), tuple(folds), len(entries) - len(absent), absent)


NOTHING = Base.build({})


class View:
    """Who is believed alive, and by which claim. Changed by `merge`, `list_host` and `forget` alone."""

    __slots__ = ("_absent", "_base", "_entries", "_folds", "_forgotten", "alive", "ignored", "version")

    def __init__(self, base: Base = NOTHING, viewer: NodeId = "") -> None:
        self._base = base
        self._entries: dict[NodeId, Entry] = {}  # what differs from the base
        self._forgotten: dict[NodeId, None] = {}  # of the base, reaped
        self._absent: dict[NodeId, None] = dict.fromkeys(base.absent)
        self._folds = list(base.folds)
        self.alive = base.alive
        self.ignored = 0  # claims about nodes beyond the bound
        self.version = 0  # changes with who is alive
        self._leave_out(viewer)

    def _leave_out(self, viewer: NodeId) -> None:
        """The viewer is no part of its own view, though the base that all share knows it."""
        entry = self._base.entries.get(viewer)
        if entry is not None:
            self.alive -= entry.lives
            if entry.lives:
                self._folds[bucket_of(viewer)] ^= _mark(viewer, entry.incarnation)
            self.forget(viewer)

    # --- questions ---

    def get(self, node: NodeId) -> Entry | None:
        entry = self._entries.get(node)
        if entry is None and node not in self._forgotten:
            entry = self._base.entries.get(node)
        return entry

    def lives(self, node: NodeId) -> bool:
        entry = self._entries.get(node)  # as `get`, written out: the walks along the rings ask this most of all
        if entry is None and node not in self._forgotten:
            entry = self._base.entries.get(node)
        return entry is not None and entry.standing <= Standing.SUSPECT

    def says(self, claim: Claim) -> bool:
        """Whether a claim is just what is believed: most that are heard are. (A suspicion also says who accuses.)"""
        entry = self.get(claim.node)
        return (
            entry is not None
            and claim.standing is not Standing.SUSPECT
            and entry.incarnation == claim.incarnation
            and entry.standing is claim.standing
            and entry.instance == claim.instance
        )

    def absent(self) -> dict[NodeId, None]:
        """Nodes known and not alive, in the order in which that came to be; not to be changed."""
        return self._absent

    def differences(self) -> int:
        """Entries this view holds of its own: what it costs beside the shared base."""
        return len(self._entries)

    def nodes(self) -> Iterator[NodeId]:
        """Every node known."""
        yield from (node for node in self._base.entries if node not in self._forgotten)
        yield from (node for node in self._entries if node not in self._base.entries)

    def claim(self, node: NodeId) -> Claim | None:
        """What is told to others of a node. A suspicion stays among those whom it concerns."""
        entry = self.get(node)
        if entry is None or entry.incarnation == 0:
            return None
        standing = Standing.ALIVE if entry.standing is Standing.SUSPECT else entry.standing
        return Claim(node, standing, entry.incarnation, entry.instance)

    # --- changes ---

    def merge(self, claim: Claim, now_ms: int) -> tuple[Entry | None, Entry] | None:
        """Believe a claim when it outranks what is believed: (before, after), else None.

        Of an unknown node only a claim of life counts: the dead who were reaped must not come back as dead.
        """
        old = self.get(claim.node)
        if old is not None and old.order >= (claim.incarnation, claim.standing, claim.instance):
            return None
        if old is None and (claim.standing is not Standing.ALIVE or not self._has_room()):
            return None
        since_ms = old.since_ms if old is not None and old.standing is claim.standing else now_ms
        new = Entry(claim.standing, claim.incarnation, claim.instance, since_ms)
        self._set(claim.node, old, new)
        return old, new

    def list_host(self, node: NodeId) -> None:
        """A host of the hosts file that may never have spoken: to be dialled."""
        if self.get(node) is None and self._has_room():
            self._set(node, None, UNHEARD)

    def forget(self, node: NodeId) -> None:
        """Reap a node that is not alive."""
        self._entries.pop(node, None)
        self._absent.pop(node, None)
        if node in self._base.entries:
            self._forgotten[node] = None

    def _has_room(self) -> bool:
        if len(self._base.entries) + len(self._entries) < NODES_MAX:
            return True
        self.ignored += 1
        return False

    def _set(self, node: NodeId, old: Entry | None, new: Entry) -> None:
        self._entries[node] = new
        self._forgotten.pop(node, None)
        lived = old is not None and old.lives
        if old is not None and lived:
            self._folds[bucket_of(node)] ^= _mark(node, old.incarnation)
        if new.lives:
            self._folds[bucket_of(node)] ^= _mark(node, new.incarnation)
        if lived == new.lives and old is not None:
            return
        self.version += 1
        self.alive += new.lives - lived
        if new.lives:
            self._absent.pop(node, None)
        else:
            self._absent[node] = None

    # --- comparing views ---

    def folds(self, own: Claim) -> tuple[int, ...]:
        """By bucket, with the viewer itself, which its view does not hold."""
        folds = list(self._folds)
        if own.standing is Standing.ALIVE:
            folds[bucket_of(own.node)] ^= _mark(own.node, own.incarnation)
        return tuple(folds)

    def bucket(self, bucket: int) -> list[Claim]:
        """Everything known of the nodes of one bucket, the dead included."""
        nodes = [node for node in self._base.buckets[bucket] if node not in self._forgotten]
        nodes += [n for n in self._entries if n not in self._base.entries and bucket_of(n) == bucket]
        claims = (self.claim(node) for node in nodes)
        return [claim for claim in claims if claim is not None]


def folded(folds: tuple[int, ...]) -> int:
    """One number for all buckets."""
    total = 0
    for fold in folds:
        total ^= fold
    return total


@lru_cache(maxsize=1 << 16)  # the fleet of a simulation several times over: every view there asks the same
def bucket_of(node: NodeId) -> int:
    return blake2b(node.encode(), digest_size=8, person=b"spore.bucket").digest()[0] % BUCKETS


@lru_cache(maxsize=1 << 16)
def _mark(node: NodeId, incarnation: int) -> int:
    content = f"{node}\0{incarnation}".encode()
    return int.from_bytes(blake2b(content, digest_size=8, person=b"spore.alive").digest(), "big")
