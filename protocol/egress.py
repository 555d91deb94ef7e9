"""The egress scheduler: which piece of which transfer may leave next, and when. Pure; time (seconds, steady) is an
argument.

Budgets are token buckets, one inside the other: the node's, that of the provider a piece goes to, that of the peer. A
piece leaves when no bucket it draws from is in debt; it may put each into debt by its own size, and pieces are small
beside a second of the rate (`piece_bytes`), so that no window of five seconds holds more than 1.05 times a budget.

Who goes first is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) in two levels: the priorities share by
`WEIGHTS`, and within a priority each transfer gets the same. So a priority has its share however many transfers
the others have; what one does not use, the others get; and the lowest never starves. A critical transfer that begins
goes before everything at the next piece.

A sender asks for its next piece only once the last one has left, and may be late by a thread switch. So a priority that
was served just now is waited for, a little, before its turn goes to another (`HOLD_SECONDS`): that costs nothing, for
the tokens of that time are kept, and it ends when the bucket is half full, so that a slow receiver holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from protocol.fleet import Bandwidth, Fleet, Priority, matches_any
from protocol.values import NodeId

WEIGHTS: dict[Priority, int] = {"low": 1, "normal": 2, "high": 4, "critical": 36}  # critical: 36 / 43 beside all others
BURST_SECONDS = 0.2  # the design's: enough to keep a link busy between wake-ups, too short to be noticed as a burst
RATE_BYTES_PER_SECOND_MIN = 64 << 10  # a slower stream would look stalled to its receiver (64 KiB in 30 s) when shared
PIECE_BYTES_MAX = 1 << 20  # a chunk; our own bulk streams leave in pieces of 64 KiB anyway
PIECE_BYTES_MIN = 2 << 10
PIECES_PER_SECOND = 64  # of a slow budget: a debt of one piece is 0.3% of a window of five seconds
HOLD_SECONDS = 0.02  # a thread that sends a piece is back within a few switches of the interpreter
CREDIT_PIECES = 4  # what a priority or a transfer that was late may catch up with
UNLIMITED = float("inf")
LANES_MAX = 4_096  # transfers remembered in one priority; beyond, those that ask for nothing are forgotten


@dataclass(frozen=True, slots=True)
class Flow:
    """What a piece belongs to: one transfer to one peer. Made by whoever sends, read here."""

    peer: NodeId = ""
    provider: str = ""
    priority: Priority = "normal"
    transfer: int = 0


@dataclass(frozen=True, slots=True)
class Budgets:
    """Payload bytes per second: of the node (None: unlimited), towards providers, towards peers by pattern (the first
    that matches). From the hosts file and `spore limit`."""

    node: float | None = None
    providers: tuple[tuple[str, float], ...] = ()
    peers: tuple[tuple[str, float], ...] = ()

    def of(self, flow: Flow) -> tuple[tuple[str, float], ...]:
        """The buckets that a piece of this flow draws from: their names and rates."""
        found = [] if self.node is None else [("node", self.node)]
        found += [(f"provider {name}", rate) for name, rate in self.providers if name == flow.provider]
        found += [(f"peer {flow.peer}", rate) for pattern, rate in self.peers if matches_any((pattern,), flow.peer)][:1]
        return tuple((name, max(rate, RATE_BYTES_PER_SECOND_MIN)) for name, rate in found if rate != UNLIMITED)


def budgets_of(
    fleet: Fleet, node: NodeId, env: Mapping[str, str] | None = None, stated: Mapping[str, Bandwidth] | None = None
) -> Budgets:
    """The budgets of a node's egress. `stated` is what `spore limit` says, by node, and outranks everything."""
    routing, said = fleet.routing_for(node), stated or {}
    limits = [*((peer, limit) for peer, limit in sorted(said.items()) if peer != node), *routing.peer_limits]
    own = said[node].bytes_per_second if node in said else fleet.egress_bytes_per_second(node, env)
    return Budgets(
        own,
        tuple((name, limit.bytes_per_second or UNLIMITED) for name, limit in routing.provider_limits),
        tuple((pattern, limit.bytes_per_second or UNLIMITED) for pattern, limit in limits),
    )


@dataclass(slots=True)
class Bucket:
    """Tokens in bytes; below zero it is in debt."""

    rate: float
    tokens: float
    filled_at: float

    def fill(self, now: float, rate: float) -> None:
        """Earn what the time since was worth, then go on at `rate`."""
        self.tokens = min(self.tokens + (now - self.filled_at) * self.rate, rate * BURST_SECONDS)
        self.rate, self.filled_at = rate, now

    def ready_at(self, now: float, tokens: float = 0.0) -> float:
        """When it holds more than so many tokens, if nobody draws from it."""
        return now if self.tokens > tokens else now + (tokens - self.tokens) / self.rate + 1e-6


@dataclass(frozen=True, slots=True)
class Ask:
    """One piece that waits for its turn."""

    ticket: int
    flow: Flow
    size_bytes: int


@dataclass(slots=True)
class Lane:
    """One transfer within its priority."""

    asks: deque[Ask] = field(default_factory=deque)
    finish: float = 0.0  # virtual: bytes served so far, as fair queueing counts them


@dataclass(slots=True)
class Rank:
    """One priority: its transfers, and its own place among the priorities."""

    weight: int
    order: int  # of equals, the higher priority first
    finish: float = 0.0  # virtual: bytes by weight
    virtual: float = 0.0  # of its lanes
    served_at: float = -1e9
    waiting: int = 0
    lanes: dict[Flow, Lane] = field(default_factory=dict)


class Egress:
    """The machine. `ask`, then `grant` at once and at `wake_at`; tickets come back in the order they may leave."""

    def __init__(self, budgets: Budgets | None = None) -> None:
        self.budgets = budgets or Budgets()
        self._buckets: dict[str, Bucket] = {}
        self._ranks = {name: Rank(weight, -weight) for name, weight in WEIGHTS.items()}
        self._tickets = count(1)
        self._virtual = 0.0
        self._loans: list[tuple[float, float]] = []  # (until, bytes per second) that others send in our name

    # --- asking ---

    def piece_bytes(self, flow: Flow) -> int:
        """How much of a flow may leave at once."""
        slowest = min((rate for _, rate in self.budgets.of(flow)), default=UNLIMITED)
        return int(max(PIECE_BYTES_MIN, min(PIECE_BYTES_MAX, slowest / PIECES_PER_SECOND)))

    def ask(self, flow: Flow, size_bytes: int) -> int:
        """Queue a piece; its ticket."""
        rank = self._ranks[flow.priority]
        lane = rank.lanes.setdefault(flow, Lane(finish=rank.virtual))
        credit = CREDIT_PIECES * size_bytes
        if not rank.waiting:
            rank.finish = max(rank.finish, self._virtual - credit / rank.weight)
        if not lane.asks:
            lane.finish = max(lane.finish, rank.virtual - credit)
        ask = Ask(next(self._tickets), flow, size_bytes)
        lane.asks.append(ask)
        rank.waiting += 1
        return ask.ticket

    def withdraw(self, flow: Flow, ticket: int) -> None:
        """Whoever asked does not wait any more."""
        rank = self._ranks[flow.priority]
        lane = rank.lanes.get(flow)
        kept = [ask for ask in lane.asks if ask.ticket != ticket] if lane else []
        if lane and len(kept) < len(lane.asks):
            lane.asks = deque(kept)
            rank.waiting -= 1

    # --- granting ---

    def grant(self, now: float) -> list[int]:
        """The tickets whose pieces may leave now."""
        granted = []
        while (ask := self._next(now)) is not None:
            granted.append(self._serve(ask, now))
        return granted

    def wake_at(self, now: float) -> float | None:
        """When `grant` is worth another call, if nothing happens before; None when nobody waits."""
        times = [self._ready_at(lane.asks[0].flow, now) for _, lane in self._waiting()]
        node = self._buckets.get("node")
        if times and node is not None:  # somebody who is not here may be waited for: see `_held`
            times += [node.ready_at(now, self._half(node)), *self._holds()]
        return min((time for time in times if time > now), default=now if times else None)

    def _waiting(self) -> list[tuple[Rank, Lane]]:
        return [(rank, lane) for rank in self._ranks.values() for lane in rank.lanes.values() if lane.asks]

    def _next(self, now: float) -> Ask | None:
        """Of the transfers that no budget holds back, the one that fair queueing puts first."""
        ready = [(rank, lane) for rank, lane in self._waiting() if self._affords(lane.asks[0].flow, now)]
        if not ready:
            return None
        rank = min((rank for rank, _ in ready), key=lambda r: (r.finish, r.order))
        if self._held(rank, now):
            return None
        lanes = [lane for own, lane in ready if own is rank]
        return min(lanes, key=lambda lane: (lane.finish, lane.asks[0].ticket)).asks[0]

    def _affords(self, flow: Flow, now: float) -> bool:
        return all(bucket.tokens > 0 for bucket in self._of(flow, now))

    def _held(self, rank: Rank, now: float) -> bool:
        """Whether a priority that comes before this one, and was served just now, is waited for."""
        node = self._buckets.get("node")
        if node is None or node.tokens > self._half(node):
            return False
        return any(
            other.finish < rank.finish and not other.waiting and now - other.served_at < HOLD_SECONDS
            for other in self._ranks.values()
        )

    def _half(self, bucket: Bucket) -> float:
        return bucket.rate * BURST_SECONDS / 2

    def _ready_at(self, flow: Flow, now: float) -> float:
        return max((bucket.ready_at(now) for bucket in self._of(flow, now)), default=now)

    def _holds(self) -> list[float]:
        return [rank.served_at + HOLD_SECONDS for rank in self._ranks.values() if not rank.waiting]

    def _serve(self, ask: Ask, now: float) -> int:
        rank = self._ranks[ask.flow.priority]
        lane = rank.lanes[ask.flow]
        lane.asks.popleft()
        for bucket in self._of(ask.flow, now):
            bucket.tokens -= ask.size_bytes
        counted_bytes = min(ask.size_bytes, self.piece_bytes(ask.flow))  # more was asked for under a higher budget
        self._virtual = max(self._virtual, rank.finish)
        rank.finish += counted_bytes / rank.weight
        rank.virtual = max(rank.virtual, lane.finish)
        lane.finish += counted_bytes
        rank.served_at = now
        rank.waiting -= 1
        if len(rank.lanes) > LANES_MAX or (not rank.waiting and len(rank.lanes) > 1):
            rank.lanes = {flow: kept for flow, kept in rank.lanes.items() if kept.asks or kept.finish > rank.virtual}
        return ask.ticket

    # --- budgets ---

    def change(self, budgets: Budgets) -> None:
        """From now on these; who waits, waits by them. Tokens and debts stay; turns are counted anew, since pieces may
        be of another size now."""
        self.budgets = budgets
        for rank in self._ranks.values():
            rank.finish = self._virtual
            for lane in rank.lanes.values():
                lane.finish = rank.virtual

    def lend(self, share: float, size_bytes: int, now: float) -> float | None:
        """Set a share of what the node has left aside for bytes that another program sends for us, for as long as they
        take; the rate it must keep to, None for unlimited."""
        self._loans = [(until, rate) for until, rate in self._loans if until > now]
        if self.budgets.node is None:
            return None
        rate = max(self._node_rate(now) * share, RATE_BYTES_PER_SECOND_MIN)
        self._loans.append((now + size_bytes / rate, rate))
        return rate

    def _node_rate(self, now: float) -> float:
        assert self.budgets.node is not None
        lent = sum(rate for until, rate in self._loans if until > now)
        return max(self.budgets.node - lent, RATE_BYTES_PER_SECOND_MIN)

    def _of(self, flow: Flow, now: float) -> list[Bucket]:
        """The buckets of a flow, filled up to now."""
        found = []
        for name, stated in self.budgets.of(flow):
            rate = self._node_rate(now) if name == "node" else stated
            bucket = self._buckets.get(name)
            if bucket is None:
                bucket = self._buckets[name] = Bucket(rate, rate * BURST_SECONDS, now)
            bucket.fill(now, rate)
            found.append(bucket)
        return found
