"""One replica under test: events in, effects out, on a catalogue in memory and a clock that stands until it is moved.

Nothing becomes durable by itself: what `Log` and `Commit` started stays under way until `settle` (or `fail`) is called,
so that a test says exactly what was told before and what after. Peers are names: a test speaks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar, get_args

from protocol import claims
from protocol import effects as f
from protocol import events as e
from protocol import messages as m
from protocol.clock import COUNTER_BITS
from protocol.fleet import Fleet, Host
from protocol.membership import WAKE
from protocol.replica import Replica
from protocol.values import Batch, Digest, Holding, Member, Parcel, Place, Record, Rows, StoreId
from simulations.memory import MemoryCatalogue

NOW = 1_760_000_000_000  # October 2025
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")

Kind = TypeVar("Kind", bound=f.Effect)


def digest(number: int) -> Digest:
    return number.to_bytes(4, "big") * 8


def store_of(node: str) -> StoreId:
    return node.encode().ljust(16, b".")


def place(path: str, number: int, private: bool = False, inode: int = 0, mtime_s: int = 1_750_000_000) -> Place:
    return Place(path, digest(number), 1, inode or number, 1_000 + number, mtime_s * 1_000_000_000, private)


def private(number: int) -> Place:
    return place(f".spore/versions/{digest(number).hex()}", number, private=True)


def record(name: str, number: int, origin: str = "beta", at_ms: int = NOW, **facts: Any) -> Record:
    return Record(
        name, at_ms << COUNTER_BITS, origin, digest(number), digest(number + 1_000_000), 1_000 + number, **facts
    )


def holding(
    node: str, number: int, seq: int = NOW << COUNTER_BITS, present: bool = True, store: StoreId = b""
) -> Holding:
    return Holding(node, store or store_of(node), digest(number), seq, present)


def member(node: str, **facts: Any) -> Member:
    stated = {"address": f"{node}:7946", "store": store_of(node), "accepting": True, "domain": "unspecified", **facts}
    return Member(node, NOW << COUNTER_BITS, **stated)


def fleet(*hosts: Host, **settings: Any) -> Fleet:
    """Six plain hosts, of which those given replace their namesakes."""
    known = {name: Host(name, address=f"{name}:7946") for name in NAMES}
    known |= {host.name: host for host in hosts}
    return Fleet("test", hosts=known, **settings)


def hello(node: str, fold: tuple[int, int], boot: int = 1, **facts: Any) -> m.Hello:
    return m.Hello("test", member(node, **facts), boot, fold, claims.first_incarnation(boot), boot)


class Bench:
    """One node's core, its catalogue and what it has under way."""

    def __init__(self, node: str = "alpha", of: Fleet | None = None, store: StoreId = b"", boot: int = 1) -> None:
        self.node = node
        self.store = store or store_of(node)
        self.fleet = of or fleet()
        self.catalogue = MemoryCatalogue("test", node)
        self.now_ms = NOW
        self.effects: list[f.Effect] = []  # everything that ever was asked for
        self._under_way: list[f.Log | f.Commit] = []
        self._boots: dict[str, int] = {}
        self.gone: dict[str, None] = {}  # peers that answer no probe any more
        self.heard: list[m.Message] = []  # what was said about who is alive, which tests of other things leave out
        self.replica = Replica(node, self.store, self.fleet, self.catalogue, Random(0), boot)

    # --- events ---

    def handle(self, event: e.Event) -> list[f.Effect]:
        """The effects of an event, without what is said about who is alive: peers answer probes by themselves."""
        out = []
        for effect in self.replica.handle(event, self.now_ms):
            if isinstance(effect, f.Send) and isinstance(effect.message, get_args(claims.Message)):
                out += self._answer(effect.peer, effect.message)
            elif not (isinstance(effect, f.SetTimer) and effect.token == WAKE):
                out.append(effect)
        self.effects += out
        self._under_way += [effect for effect in out if isinstance(effect, f.Log | f.Commit)]
        return out

    def _answer(self, peer: str, message: m.Message) -> list[f.Effect]:
        self.heard.append(message)
        if peer in self.gone:
            return []
        if isinstance(message, claims.Ping):
            return self.handle(e.Received(peer, claims.Ack(message.number)))
        if isinstance(message, claims.PingRequest):
            answer = claims.Nack if message.target in self.gone else claims.Ack
            return self.handle(e.Received(peer, answer(message.number)))
        return []

    def settle(self) -> list[f.Effect]:
        """Everything under way reaches the disk, and what follows from it, until nothing is left; all that followed."""
        out: list[f.Effect] = []
        while self._under_way:
            group, self._under_way = self._under_way, []
            self.catalogue.apply([effect.batch for effect in group if isinstance(effect, f.Commit)])
            out += self.handle(e.Durable(group[-1].seq))
        return out

    def fail(self, error: str = "no space left on device") -> list[f.Effect]:
        """Nothing under way reaches the disk."""
        group, self._under_way = self._under_way, []
        return self.handle(e.DurableFailed(group[0].seq, group[-1].seq, error))

    def done(self, event: e.Event) -> list[f.Effect]:
        """The effects of an event and of its becoming durable."""
        return self.handle(event) + self.settle()

    def tick(self, after_ms: int = 1_000) -> list[f.Effect]:
        self.now_ms += after_ms
        return self.done(e.Timer("tick"))

    # --- the world around ---

    def boot(self, pending: Sequence[f.Entry] = (), last_hlc: int = 0, accepting: bool = True) -> Bench:
        """Start, with room on the disk, and say of itself what there is to say."""
        self.done(e.Boot(tuple(pending), last_hlc))
        self.done(e.DiskChanged(accepting, True, 1 << 40, 1 << 30))
        self.done(e.RootKnown())
        return self

    def connect(self, *nodes: str, **facts: Any) -> Bench:
        """Sessions with these nodes, which have the same rows and room for more."""
        for node in nodes:
            if node in self.gone:  # it begins a new life
                del self.gone[node]
                self._boots[node] = self._boots.get(node, 1) + 1
            fold = self.catalogue.sketch().fold()
            self.done(e.SessionUp(node, hello(node, fold, self._boots.get(node, 1), **facts)))
        return self

    def loses(self, node: str) -> list[f.Effect]:
        """A peer dies: its session ends, nobody reaches it, and in the end it counts as dead; all that followed."""
        self.gone[node] = None
        out = self.done(e.SessionDown(node, "it was killed"))
        for _ in range(120):
            if not self.replica.members.is_alive(node):
                return out
            out += self.tick()
        raise AssertionError(f"{node} still counts as alive after two minutes")

    def has(self, *rows: Record | Holding | Member, places: Sequence[Place] = ()) -> Bench:
        """Rows and places that were committed before the test begins."""
        self.catalogue.apply([Batch(rows_of(*rows), tuple(places))])
        return self

    def hears(self, peer: str, message: m.Message) -> list[f.Effect]:
        return self.handle(e.Received(peer, message))

    def told(self, peer: str, *rows: Record | Holding | Member) -> list[f.Effect]:
        """A peer tells rows, and they are committed."""
        return self.done(e.Received(peer, m.RowsMessage(rows_of(*rows))))

    # --- stories that many tests begin with ---

    def put(
        self, name: str, number: int, request: int = 0, watched: bool = True, mtime_s: int = 1_750_000_000, **facts: Any
    ) -> e.Put:
        """The event of a new artifact: a watched file with a private copy, or bytes from the command line."""
        path = name.partition("/")[2]
        return e.Put(
            request,
            name,
            digest(number),
            digest(number + 1_000_000),
            1_000 + number,
            0o644,
            facts.pop("source", f.Kept(private(number))),
            place(path, number, mtime_s=mtime_s) if watched else None,
            **facts,
        )

    def accepted(self, name: str, number: int, **facts: Any) -> Record:
        """Put something and let it become durable here; its record."""
        out = self.done(self.put(name, number, **facts))
        return next(effect.entry.record for effect in out if isinstance(effect, f.Log))

    def receipt(self, peer: str, *records: Record, transfer: int = 0) -> list[f.Effect]:
        """A peer takes what it was offered, gets it, and says that it holds it."""
        holdings = tuple(Holding(peer, store_of(peer), r.digest, self.now_ms << COUNTER_BITS) for r in records)
        return self.done(e.Received(peer, m.Receipt(transfer, holdings)))

    def offer(self, peer: str, *records: Record, transfer: int = 7) -> list[f.Effect]:
        """A peer offers these; what the replica does with the offer."""
        return self.hears(peer, m.Offer(transfer, tuple(Parcel(r) for r in records)))

    def arrives(self, peer: str, *records: Record, transfer: int = 7) -> list[f.Effect]:
        """From the offer to the bytes in staging, the records written: what the replica asks for then."""
        self.offer(peer, *records, transfer=transfer)
        self.handle(e.Reserved(peer, transfer, ((),) * len(records), ("",) * len(records)))
        return self.done(e.Arrived(peer, transfer, records))

    def holds_from(self, peer: str, *records: Record, transfer: int = 7) -> list[f.Effect]:
        """A whole transfer from a peer, up to the committed holding."""
        (publish,) = only(self.arrives(peer, *records, transfer=transfer), f.Publish)
        done = tuple((item.record, self.published_at(item)) for item in publish.items)
        return self.done(e.Published(publish.op, done))

    def published_at(self, item: f.Publication) -> Place:
        path = item.path or f".spore/versions/{item.record.digest.hex()}"
        return Place(path, item.record.digest, 1, 99, item.record.size, 1, private=item.path is None)


def rows_of(*rows: Record | Holding | Member) -> Rows:
    return Rows(
        tuple(row for row in rows if isinstance(row, Record)),
        tuple(row for row in rows if isinstance(row, Holding)),
        tuple(row for row in rows if isinstance(row, Member)),
    )


def only(effects: Sequence[f.Effect], *kinds: type[Kind]) -> list[Kind]:
    """The effects of these kinds, in their order."""
    return [effect for effect in effects if isinstance(effect, kinds)]


def without(effects: Sequence[f.Effect], *kinds: type[f.Effect]) -> list[f.Effect]:
    return [effect for effect in effects if not isinstance(effect, kinds)]


def sent(effects: Sequence[f.Effect], kind: type[m.Message]) -> list[tuple[str, Any]]:
    """To whom which messages of a kind go."""
    return [(effect.peer, effect.message) for effect in only(effects, f.Send) if isinstance(effect.message, kind)]
