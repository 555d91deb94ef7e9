"""A node that must go, its uplink and its neighbours, in virtual time: for tests of the plan by which it leaves.

Uploads to prompt neighbours share the uplink evenly. A neighbour is `prompt`, `dead` (its session stands and it never
answers), `stalled` (it takes offers, and no byte more) or `slow` (it takes a fiftieth of the uplink).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.fleet import Bandwidth, Host, Kind, Routing
from protocol.values import Holding, Record
from tests.replicas import Bench, digest, fleet, only, store_of

STEP_MS = 20
SLOW_SHARE = 0.02
RATE = 1_000_000  # bytes per second


@dataclass(slots=True)
class Stream:
    transfer: int
    peer: str
    records: list[Record]
    left_bytes: float


@dataclass(slots=True)
class World:
    """`alpha` and its neighbours. `left` runs until alpha has gone."""

    neighbours: dict[str, str]
    rate: int = RATE
    limit: int | None = RATE
    kinds: tuple[Kind, ...] = ()
    streams: list[Stream] = field(default_factory=list)
    has: dict[str, dict[bytes, None]] = field(default_factory=dict)
    staged: dict[tuple[str, bytes], float] = field(default_factory=dict)
    sent_bytes: float = 0.0
    alpha: Bench = field(init=False)
    exit: f.Exit | None = None
    gone_at_ms: int = 0

    def __post_init__(self) -> None:
        own = Host("alpha", address="alpha:7946", ephemeral=True, bandwidth_limit=Bandwidth(self.limit))
        more = {"kinds": self.kinds} if self.kinds else {}
        self.alpha = Bench(of=fleet(own, routing=Routing(), **more)).boot()
        self.has = {name: {} for name in self.neighbours}

    def connect(self, **facts: object) -> World:
        for index, name in enumerate(self.neighbours):
            self.following(lambda n=name, i=index: self.alpha.connect(n, domain=f"domain-{i % 2}", **facts))  # type: ignore[misc]
        return self

    def following(self, act: Callable[[], object]) -> None:
        """Whatever the act makes alpha ask for happens."""
        before = len(self.alpha.effects)
        act()
        self.react(self.alpha.effects[before:])

    def noticed(self, seconds: int) -> World:
        notice = e.Notice(self.alpha.now_ms + seconds * 1_000, "the provider says so")
        self.following(lambda: self.alpha.done(notice))
        return self

    def owes(self, *sizes: int, kind: str = "npz") -> list[Record]:
        """Artifacts of these sizes are accepted."""
        made = []
        for size in sizes:
            number = len(self.alpha.replica.debts.open) + 10
            put = e.Put(0, f"{kind}/training/{number}", digest(number), digest(number + 10**6), size, 0o644,
                        f.Inline(b""), None)  # fmt: skip
            before = len(self.alpha.effects)
            self.following(lambda put=put: self.alpha.done(put))  # type: ignore[misc]
            made += [effect.entry.record for effect in only(self.alpha.effects[before:], f.Log)]
        return made

    def leave(self, budget_ms: int) -> World:
        """SIGTERM, and all that follows until the node has gone."""
        began = self.alpha.now_ms
        self.react(self.alpha.done(e.Flush(0, began + budget_ms, leave=True)))
        while self.exit is None and self.alpha.now_ms < began + budget_ms + 5_000:
            self.step()
        self.gone_at_ms = self.alpha.now_ms - began
        return self

    def step(self) -> None:
        self.alpha.now_ms += STEP_MS
        whole = self.rate * STEP_MS / 1000
        slow = [stream for stream in self.streams if self.neighbours[stream.peer] == "slow"]
        brisk = sum(self.neighbours[stream.peer] == "prompt" for stream in self.streams)
        share = (whole - len(slow) * whole * SLOW_SHARE) / max(1, brisk)
        for stream in list(self.streams):
            moved = {"slow": whole * SLOW_SHARE, "stalled": 0.0}.get(self.neighbours[stream.peer], share)
            stream.left_bytes -= moved
            self.sent_bytes += moved
            if stream.left_bytes <= 0 and stream in self.streams:
                self.streams.remove(stream)
                self.finish(stream)
        self.react(self.alpha.done(e.Timer("flush")))

    def finish(self, stream: Stream) -> None:
        self.has[stream.peer] |= dict.fromkeys(record.digest for record in stream.records)
        stamp = self.alpha.now_ms << 16
        holdings = tuple(Holding(stream.peer, store_of(stream.peer), r.digest, stamp) for r in stream.records)
        self.react(self.alpha.done(e.Uploaded(stream.transfer, "")))
        self.react(self.alpha.done(e.Received(stream.peer, m.Receipt(stream.transfer, holdings))))

    def react(self, effects: list[f.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, f.Exit):
                self.exit = effect
            elif isinstance(effect, f.Abandon):
                self.abandoned(effect.transfer)
            elif isinstance(effect, f.Upload):
                records = [parcel.record for parcel in effect.parcels]
                there = self.staged.pop((effect.peer, records[0].digest), 0.0) if len(records) == 1 else 0.0
                size = sum(r.size for r in records) - there
                self.streams.append(Stream(effect.transfer, effect.peer, records, size))
            elif isinstance(effect, f.Send) and isinstance(effect.message, m.Offer):
                self.answer(effect.peer, effect.message)

    def abandoned(self, transfer: int) -> None:
        """What came of a large one stays in staging."""
        for stream in [stream for stream in self.streams if stream.transfer == transfer]:
            self.streams.remove(stream)
            if len(stream.records) == 1:
                self.staged[stream.peer, stream.records[0].digest] = stream.records[0].size - stream.left_bytes

    def answer(self, peer: str, offer: m.Offer) -> None:
        if self.neighbours[peer] == "dead":
            return
        refused = tuple(m.HAVE if p.record.digest in self.has[peer] else "" for p in offer.parcels)
        self.react(self.alpha.done(e.Received(peer, m.Take(offer.transfer, refused, ((),) * len(refused)))))

    def lost(self, records: list[Record]) -> list[Record]:
        """What nobody else has, seen from outside."""
        return [r for r in records if not any(r.digest in has for has in self.has.values())]

    def farewells(self) -> list[tuple[str, m.Farewell]]:
        return [(s.peer, s.message) for s in only(self.alpha.effects, f.Send) if isinstance(s.message, m.Farewell)]
