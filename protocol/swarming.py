"""Fetching large artifacts piece by piece, together with whoever fetches them too: the swarms of one node.

`swarm` decides for each artifact what to ask of whom. Here is what is said: to every fetcher near us in the swarm, and
to nodes that have it whole, what we have by now (`Pieces`); and, where we have it whole ourselves, to those who fetch
it from us, who else does (`Fetchers`). Nobody leads, and nothing of it is durable: verified chunks are, in staging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from random import Random

from protocol.context import Context
from protocol.effects import CutPull, Pull, SetTimer
from protocol.events import Pulled
from protocol.membership import Membership
from protocol.messages import Fetchers, Pieces
from protocol.pieces import Layout
from protocol.swarm import Swarm
from protocol.values import Digest, Holding, NodeId, Record, Stripe
from protocol.wire import FETCHERS_MAX

TIMER = "swarm"
HOLDERS_TOLD_MS = 1_000  # who has it whole is told how far we are so often at most: for its patience, and for people
UNCHANGED_MS = 1_500  # what has not changed is said again after so long, or others count us as gone
HOPELESS_MS = 10_000  # nobody has what we lack, for so long: the fetch ends, and is tried again later
HOLDERS_TOLD_MAX = 3  # of many holders
AUDIENCES_MAX = 256  # artifacts whose fetchers are known
SILENT_MS = (
    40_000  # a fetcher that said nothing for so long fetches no more; they speak each ten seconds, or more often
)


@dataclass(slots=True)
class UnderWay:
    """One artifact being fetched here."""

    transfer: int
    record: Record
    swarm: Swarm
    holders: dict[NodeId, int] = field(default_factory=dict)  # whom to tell beside the fetchers, and when that was done
    spoken_ms: int = 0
    spoken: int = -1  # the pieces that were spoken of
    hopeless_since_ms: int = 0


@dataclass(slots=True)
class Seen:
    """What is known of a node that fetches what we hold or fetch: made by its Pieces, read by displays too."""

    have: int
    since_ms: int
    heard_ms: int


class Swarming:
    """All swarms of one node."""

    def __init__(
        self, ctx: Context, members: Membership, random: Random, ended: Callable[[int, Record, str], None]
    ) -> None:
        """`ended(transfer, record, error)` is called once for each `begin` that is not stopped."""
        self.ctx = ctx
        self.members = members
        self.random = random
        self.ended = ended
        self.under_way: dict[Digest, UnderWay] = {}
        self.audiences: dict[Digest, dict[NodeId, Seen]] = {}
        self.on_pieces: Callable[[NodeId, Pieces], None] = lambda peer, message: None  # who waits for its receipt
        self._numbers = count(1)
        self._pulls: dict[int, Digest] = {}
        self._timed = False

    # --- life of a swarm ---

    def begin(self, transfer: int, record: Record, missing: tuple[Stripe, ...], seeds: Iterable[NodeId]) -> None:
        """Fetch what is missing; room for it is reserved under `transfer`."""
        own, now = self.members.own, self.ctx.now_ms
        swarm = Swarm(
            self.ctx.node, own.domain, bool(own.address), record.size, missing, self.random, self._numbers, now
        )
        under_way = self.under_way[record.digest] = UnderWay(transfer, record, swarm)
        for node in seeds:
            self._add_seed(under_way, node)
        for node in self.audiences.get(record.digest, {}):
            self._add_fetcher(under_way, node)
        if swarm.complete:
            self._end(under_way, "")
            return
        self._speak(under_way)
        self._pump(under_way)
        if self.under_way and not self._timed:
            self._set_timer()

    def stop(self, record: Record, transfer: int) -> None:
        """Whoever began it wants it no more, or has what it wanted."""
        under_way = self.under_way.get(record.digest)
        if under_way is not None and under_way.transfer == transfer:
            self._forget(under_way)

    def _end(self, under_way: UnderWay, error: str) -> None:
        if not error:
            self._speak(under_way)  # from now on we are one of those who have it whole
        self._forget(under_way)
        self.ended(under_way.transfer, under_way.record, error)

    def _forget(self, under_way: UnderWay) -> None:
        del self.under_way[under_way.record.digest]
        for number in list(under_way.swarm.asks):
            self._cut(number)

    # --- pulling ---

    def pulled(self, event: Pulled) -> None:
        digest = self._pulls.pop(event.number, None)
        under_way = self.under_way.get(digest) if digest is not None else None
        if under_way is None or event.number not in under_way.swarm.asks:
            return
        swarm = under_way.swarm
        if event.missing is not None:
            swarm.holds(event.missing)
            swarm.listed = True
        if event.error:
            swarm.failed(event.number, event.error, self.ctx.now_ms, event.lied, event.unreached)
        else:
            swarm.listed = True
            for number in swarm.got(event.number, self.ctx.now_ms):
                self._cut(number)
                swarm.cut(number)
        if swarm.complete:
            self._end(under_way, "")
        else:
            self._pump(under_way)

    def _pump(self, under_way: UnderWay) -> None:
        swarm = under_way.swarm
        for ask in swarm.next(self.ctx.now_ms):
            self._pulls[ask.number] = under_way.record.digest
            run = swarm.layout.run(ask.piece)
            self.ctx.emit(Pull(ask.number, under_way.transfer, under_way.record, ask.source, run))

    def _cut(self, number: int) -> None:
        if self._pulls.pop(number, None) is not None:
            self.ctx.emit(CutPull(number))

    # --- who is there ---

    def seeded(self, digest: Digest, node: NodeId) -> None:
        """A node says that it has these bytes whole."""
        if digest in self.under_way:
            self._add_seed(self.under_way[digest], node)

    def stated(self, holding: Holding) -> None:
        """A holding was committed here."""
        audience = self.audiences.get(holding.digest, {})
        audience.pop(holding.node, None)
        under_way = self.under_way.get(holding.digest)
        if under_way is None or holding.node == self.ctx.node:
            return
        if holding.present:
            self._add_seed(under_way, holding.node)
            self._pump(under_way)
        else:
            under_way.swarm.gone(holding.node)

    def gone(self, node: NodeId) -> None:
        """It died, or cannot be heard any more: what it had is asked of others at once."""
        for under_way in list(self.under_way.values()):
            source = under_way.swarm.sources.get(node)
            if source is None or not source.seed or not self.members.is_alive(node):
                under_way.swarm.gone(node)
                self._pump(under_way)
        for audience in self.audiences.values():
            audience.pop(node, None)

    def _add_seed(self, under_way: UnderWay, node: NodeId) -> None:
        row = self.members.row(node)
        if node == self.ctx.node or row is None or not self.members.is_alive(node):
            return
        under_way.swarm.seed(node, row.domain, bool(row.address))
        under_way.holders.setdefault(node, 0)

    def _add_fetcher(self, under_way: UnderWay, node: NodeId) -> bool:
        row = self.members.row(node)
        if row is None or not self.members.is_alive(node):
            return False
        return under_way.swarm.fetcher(node, row.domain, bool(row.address))

    # --- what is said ---

    def _speak(self, under_way: UnderWay) -> None:
        swarm, now = under_way.swarm, self.ctx.now_ms
        message = Pieces(under_way.record.digest, swarm.have, swarm.asked)
        under_way.spoken_ms, under_way.spoken = now, swarm.have
        for node in swarm.neighbours():
            if self.members.connect(node):
                self.ctx.send(node, message)
        due_ms = now - max(HOLDERS_TOLD_MS, swarm.speak_ms(now))
        for node, told_ms in list(under_way.holders.items())[:HOLDERS_TOLD_MAX]:
            if (told_ms <= due_ms or swarm.complete) and self.members.connect(node):
                under_way.holders[node] = now
                self.ctx.send(node, message)

    def pieces(self, peer: NodeId, message: Pieces) -> None:
        """Another fetcher says what it has."""
        self.on_pieces(peer, message)
        under_way = self.under_way.get(message.digest)
        if under_way is not None:
            self._add_fetcher(under_way, peer)
            if under_way.swarm.heard(peer, message.have, message.asked, self.ctx.now_ms):
                self._pump(under_way)
        if under_way is not None or self.ctx.holds(message.digest):
            self._note(peer, message, introduce=under_way is None)

    def _note(self, peer: NodeId, message: Pieces, introduce: bool) -> None:
        if message.digest not in self.audiences and len(self.audiences) >= AUDIENCES_MAX:
            del self.audiences[next(iter(self.audiences))]
        audience = self.audiences.setdefault(message.digest, {})
        seen = audience.get(peer)
        if seen is not None:
            seen.have, seen.heard_ms = message.have, self.ctx.now_ms
        elif len(audience) < FETCHERS_MAX:
            audience[peer] = Seen(message.have, self.ctx.now_ms, self.ctx.now_ms)
            if introduce:
                self._introduce(peer, message.digest)

    def _introduce(self, newcomer: NodeId, digest: Digest) -> None:
        """It hears of the others, and they of it."""
        others = tuple(sorted(node for node in self.audiences[digest] if node != newcomer))
        if others:
            self.ctx.send(newcomer, Fetchers(digest, others))
        for node in others:
            self.ctx.send(node, Fetchers(digest, (newcomer,)))

    def fetchers(self, peer: NodeId, message: Fetchers) -> None:
        """A holder says who else fetches what we fetch from it."""
        under_way = self.under_way.get(message.digest)
        if under_way is not None and sum(self._add_fetcher(under_way, node) for node in message.nodes):
            self._speak(under_way)
            self._pump(under_way)

    # --- time ---

    def wake(self) -> None:
        """Say what is due to be said; ask again where somebody is slow."""
        self._timed = False
        for under_way in list(self.under_way.values()):
            swarm, silent_ms = under_way.swarm, self.ctx.now_ms - under_way.spoken_ms
            changed = swarm.have != under_way.spoken
            if silent_ms >= swarm.speak_ms(self.ctx.now_ms) + (0 if changed else UNCHANGED_MS):
                self._speak(under_way)
            self._pump(under_way)
        if self.under_way:
            self._set_timer()

    def tick(self) -> None:
        now = self.ctx.now_ms
        for under_way in list(self.under_way.values()):
            self._pump(under_way)
            if not under_way.swarm.hopeless(now):
                under_way.hopeless_since_ms = now
            elif now - under_way.hopeless_since_ms >= HOPELESS_MS:
                self._end(under_way, under_way.swarm.why or "nobody that can be reached has all of it")
        for digest, audience in list(self.audiences.items()):
            for node in [node for node, seen in audience.items() if now - seen.heard_ms >= SILENT_MS]:
                del audience[node]
            if not audience:
                del self.audiences[digest]

    def _set_timer(self) -> None:
        self._timed = True
        now = self.ctx.now_ms
        self.ctx.emit(SetTimer(TIMER, now + min(x.swarm.speak_ms(now) for x in self.under_way.values())))

    def bytes_of(self, digest: Digest, node: NodeId, size: int) -> int:
        """How much of an artifact a fetcher has by what it said; 0 when it says nothing."""
        seen = self.audiences.get(digest, {}).get(node)
        layout = Layout(size)
        return size * min(seen.have.bit_count(), layout.pieces) // layout.pieces if seen else 0
