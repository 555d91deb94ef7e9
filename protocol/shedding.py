"""Giving up copies held for others: when others fill the disk, at once; when there are more than policy wants, late.

1. This node, in a sweep: a copy may go that it made for others, that is not pinned or owed here, and that no mate of
   its store states as well.
2. It asks one node of every other store that holds with `Confirm`.
3. Each looks at its file, promises to keep it for a while, and answers `Confirmed`.
4. If those that confirmed make it durable without us, the withdrawal is committed, then told, then the files go.

Of two that want to give up the same content the first in name order may; the other confirms, and so keeps it. While the
nodes go by different hosts files nothing is given up, for the other file may want it. So the last copies never go: what
goes is durable by copies that were looked at a moment before, and that stay for longer than this takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import CheckHeld, Unlink
from protocol.events import HeldChecked
from protocol.membership import Membership
from protocol.messages import Confirm, Confirmed
from protocol.names import PEERS_FOLDER
from protocol.placement import Pool, Seat, counting_seats, durable, seat_of, spread
from protocol.receiving import Receiving
from protocol.values import Batch, Digest, Holding, NodeId, Place, Record, Rows, StoreId

BATCH_MAX = 64  # contents asked about at once: one message to each holder
CANDIDATES_MAX = 10_000  # remembered of a sweep; the next one finds the rest
ASK_MS = 15_000  # a question not answered by then is given up: the copy stays
PROMISE_MS = 120_000  # how long a confirmed copy is kept: eight times as long as the question lives
PROMISES_MAX = 50_000  # beyond, nothing more is confirmed
RETRY_MS = 600_000  # what could not go is asked about again after this
TRIM_SWEEPS = 30  # a copy too many goes when nobody came or went for so many intervals


@dataclass(slots=True)
class Candidate:
    """A copy that may go. `wanted`: policy wants it here, so that only a full disk makes it go."""

    record: Record
    wanted: bool
    copies: int

    @property
    def order(self) -> tuple[bool, int, int, str]:
        return (self.wanted, -self.copies, -self.record.size, self.record.name)


@dataclass(slots=True)
class Asking:
    """A copy that is about to go, while its other holders are asked."""

    record: Record
    until_ms: int
    asked: dict[NodeId, None]
    confirmed: dict[StoreId, Seat] = field(default_factory=dict)


class Shedding:
    """Decides which copies go, and confirms those of others."""

    def __init__(
        self, ctx: Context, members: Membership, debts: Debts, receiving: Receiving, tell: Callable[[Rows], None]
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.receiving = receiving
        self.tell = tell
        self.excess_bytes = 0  # what others have written too much of; 0 while the disk is no emergency
        self._freed_bytes = 0  # since the disk was looked at last
        self._candidates: dict[Digest, Candidate] = {}
        self._asking: dict[Digest, Asking] = {}
        self._promised: dict[Digest, int] = {}  # until when we keep what we confirmed
        self._retry: dict[Digest, int] = {}
        self._quiet_from_ms = 0  # nobody has come or gone since

    # --- facts ---

    def boot(self) -> None:
        self._quiet_from_ms = self.ctx.now_ms

    def stirred(self) -> None:
        """Somebody came or went, or another hosts file is in force: what is too many today may be needed tomorrow."""
        self._quiet_from_ms = self.ctx.now_ms

    def room(self, excess_bytes: int) -> bool:
        """The disk was looked at; whether an emergency has just begun."""
        begins = excess_bytes > 0 and not self.excess_bytes
        self.excess_bytes, self._freed_bytes = excess_bytes, 0
        if begins:
            self.ctx.report(
                "warning",
                "disk_emergency",
                f"{excess_bytes} bytes must go from this disk; copies that enough others confirm go",
            )
        return begins

    # --- candidates ---

    def begin(self) -> None:
        """A sweep begins: what it does not find again is no candidate any more."""
        self._candidates.clear()
        for digest in [digest for digest, until in self._retry.items() if until <= self.ctx.now_ms]:
            del self._retry[digest]

    def consider(self, record: Record, holdings: Iterable[Holding]) -> None:
        """A live record, read by the sweep, with its present holdings."""
        if not self._is_time() or len(self._candidates) >= CANDIDATES_MAX:
            return
        held = list(holdings)
        if not any(holding.node == self.ctx.node and holding.store == self.ctx.store for holding in held):
            return
        wanted = self.receiving.policy.wants(record)
        if (wanted and not self.excess_bytes) or record.digest in self._retry or not self._may_go(record.digest):
            return
        if not self.excess_bytes and self.receiving.policy.is_target(record):
            return
        copies = len({holding.store for holding in held if self.members.is_alive(holding.node)})
        if copies > self.ctx.min_copies(record):
            self._candidates[record.digest] = Candidate(record, wanted, copies)

    def _is_time(self) -> bool:
        if not self.members.policies_agree():
            return False
        interval_ms = self.ctx.fleet.routing.auto_sync_interval_seconds * 1000
        return bool(self.excess_bytes) or self.ctx.now_ms - self._quiet_from_ms >= TRIM_SWEEPS * interval_ms

    def _may_go(self, digest: Digest) -> bool:
        """Whether our copy of these bytes is one that we made for others, and that nobody here needs."""
        if digest in self._asking or digest in self._promised or self.debts.of(digest):
            return False
        if self.ctx.coming(digest) or self.ctx.logging(digest) or self.receiving.publishing.is_moving(digest):
            return False
        sharers = self.ctx.catalogue.sharers(digest)
        if not sharers or any(self._ours(record) for record in sharers):
            return False
        ours = [h.node for h in self.ctx.catalogue.holdings(digest) if h.store == self.ctx.store]
        return ours == [self.ctx.node] and all(map(_made_for_others, self.ctx.places(digest)))

    def _ours(self, record: Record) -> bool:
        kind, policy = self.ctx.kind(record.name), self.receiving.policy
        kept = policy.pins.pinned_here(record.name)
        kept = kept or (kind is not None and policy.broadcasts.reaches(record, kind, self.ctx.host.role))
        return record.origin == self.ctx.node or kept or self.ctx.is_naming(record)

    # --- asking ---

    def tick(self) -> None:
        now = self.ctx.now_ms
        for digest in [digest for digest, until in self._promised.items() if until <= now]:
            del self._promised[digest]
        for digest in [digest for digest, asking in self._asking.items() if asking.until_ms <= now]:
            self._give_up(digest)
        if self._is_time() and not self._asking and self._candidates:
            self._ask(self._next())

    def _next(self) -> list[Candidate]:
        """In an emergency as many as are needed, else as many as one message takes."""
        chosen: list[Candidate] = []
        size = self._freed_bytes
        for candidate in nsmallest(BATCH_MAX, self._candidates.values(), key=lambda each: each.order):
            if self.excess_bytes and size >= self.excess_bytes:
                break
            del self._candidates[candidate.record.digest]
            if self._may_go(candidate.record.digest) and self._needed(candidate):
                chosen.append(candidate)
                size += candidate.record.size
        return chosen

    def _needed(self, candidate: Candidate) -> bool:
        """Whether it still has to go: the emergency may be over since the sweep."""
        return bool(self.excess_bytes) or not candidate.wanted

    def _ask(self, chosen: Sequence[Candidate]) -> None:
        questions: dict[NodeId, list[Digest]] = {}
        for candidate in chosen:
            digest = candidate.record.digest
            holders = self._other_holders(digest)
            for node in holders:
                if self.members.connect(node):
                    questions.setdefault(node, []).append(digest)
            asked = {node: None for node in holders if node in self.members.sessions}
            self._asking[digest] = Asking(candidate.record, self.ctx.now_ms + ASK_MS, asked)
        for node in sorted(questions):
            self.ctx.send(node, Confirm(tuple(questions[node])))

    def _other_holders(self, digest: Digest) -> list[NodeId]:
        """One live node for each other store that states these bytes."""
        nodes: dict[StoreId, NodeId] = {}
        for holding in self.ctx.catalogue.holdings(digest):
            if holding.store != self.ctx.store and holding.node in self.members.alive:
                nodes.setdefault(holding.store, holding.node)
        return sorted(nodes.values())

    def confirmed(self, peer: NodeId, message: Confirmed) -> None:
        """A holder has looked, and keeps what it names; what it was asked and does not name, it does not promise."""
        named = dict.fromkeys(message.held)
        for digest in message.asked:
            asking = self._asking.get(digest)
            if asking is None or peer not in asking.asked:
                continue
            del asking.asked[peer]
            if digest in named and peer in self.members.alive:
                seat = seat_of(self.members.alive[peer])
                asking.confirmed[seat.store] = seat
            if self._is_safe(asking):
                self._drop(asking.record)
            elif not asking.asked:
                self._give_up(digest)

    def _is_safe(self, asking: Asking) -> bool:
        """K over d by confirmed copies alone, the origin's and ours left out, for every name of these bytes."""
        for record in self.ctx.catalogue.sharers(asking.record.digest):
            copies, seats = self.ctx.min_copies(record), self.debts.seats_of(record)
            origin = self.members.row(record.origin)
            receipts = {s: seat for s, seat in asking.confirmed.items() if origin is None or s != origin.store}
            around = Pool((), copies, spread(counting_seats(seats, copies), copies))
            if not durable(receipts, around, seats):
                return False
        return True

    def _give_up(self, digest: Digest) -> None:
        self._asking.pop(digest, None)
        self._retry[digest] = self.ctx.now_ms + RETRY_MS

    # --- dropping ---

    def _drop(self, record: Record) -> None:
        digest = record.digest
        del self._asking[digest]
        if not (self.members.policies_agree() and self._may_go(digest)):
            return
        places = tuple(self.ctx.places(digest))
        rows = Rows(holdings=(self.ctx.holding(digest, False),))
        self._freed_bytes += record.size
        # A named file stays known until it is gone, or a scan would take it for a user's new one.
        forget = tuple(place.path for place in places if place.private)

        def done() -> None:
            self.tell(rows)
            self.ctx.emit(Unlink(self._still_unneeded(places)))
            self.ctx.report("info", "copy_given_up", f"{record.name}: enough other nodes hold it, and confirmed it")

        self.ctx.commit(Batch(rows, forget_places=forget), done)

    def _still_unneeded(self, places: tuple[Place, ...]) -> tuple[Place, ...]:
        """A put of the same bytes, or a fetch, may have come to need them while the withdrawal was written."""
        return tuple(p for p in places if not (self.ctx.coming(p.digest) or self.ctx.holds(p.digest)))

    # --- confirming ---

    def asked(self, peer: NodeId, message: Confirm) -> None:
        """Somebody wants to give up copies: look at ours, and keep them for a while."""
        stays = [digest for digest in message.digests if self._stays(peer, digest)]
        self.ctx.emit(CheckHeld(peer, message.digests, tuple(stays)))

    def _stays(self, peer: NodeId, digest: Digest) -> bool:
        if self.receiving.stopping or len(self._promised) >= PROMISES_MAX:
            return False
        if not any(h.node == self.ctx.node for h in self.ctx.catalogue.holdings(digest)):
            return False
        if digest in self._asking:
            if self.ctx.node < peer:
                return False  # ours goes, if others confirm it
            self._give_up(digest)
        self._promised[digest] = self.ctx.now_ms + PROMISE_MS
        return True

    def checked(self, event: HeldChecked) -> None:
        """Our files were looked at: what is as it was is confirmed, if it is stated still."""
        held = tuple(
            digest
            for digest in event.held
            if digest in self._promised and any(h.node == self.ctx.node for h in self.ctx.catalogue.holdings(digest))
        )
        if event.peer in self.members.sessions:
            self.ctx.send(event.peer, Confirmed(event.asked, held))


def _made_for_others(place: Place) -> bool:
    """Whether we made this file: a private version, or one published for the cluster; never a user's own."""
    return place.private or place.published or place.path.startswith(f"{PEERS_FOLDER}/")
