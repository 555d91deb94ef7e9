"""Swarms alone, in a small world: one uplink for each node, first come first served, and the machine as it is.

The world knows nothing of the core: it performs asks, carries what fetchers say with some latency, and kills.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import pytest

from protocol.pieces import PIECE_CHUNKS_MAX, PIECES, Layout, Shares, Spread
from protocol.swarm import ALONE_SHARE, NEIGHBOURS_MAX, STALL_MS, Swarm
from protocol.values import Stripe

MIB = 1 << 20
UPLINK = 25_000  # bytes a millisecond: 200 Mbit/s
LATENCY_MS = 20
NOTICED_MS = 300  # between a death and everybody's knowing of it
SOURCE = "source"


@dataclass
class World:
    """`size` bytes go from the source to nodes; `domains` of them, `uplinks` that differ, `deaths` in milliseconds."""

    nodes: int
    size: int = 256 * MIB
    domains: int = 1
    source_domain: str = "d0"
    uplinks: Mapping[str, int] = field(default_factory=dict)
    deaths: Mapping[str, int] = field(default_factory=dict)
    deaf: tuple[str, ...] = ()  # cannot be dialled: they pass nothing on
    seed: int = 1
    now: int = 0
    wasted: int = 0

    def __post_init__(self) -> None:
        self.names = [f"n{number:03d}" for number in range(self.nodes)]
        self.domain = {name: f"d{number % self.domains}" for number, name in enumerate(self.names)}
        self.domain[SOURCE] = self.source_domain
        self.sent = dict.fromkeys([SOURCE, *self.names], 0)
        self.busy_until = dict.fromkeys(self.sent, 0.0)
        self.entered = dict.fromkeys(self.domain.values(), 0)  # bytes that came from another domain
        self.done: dict[str, int] = {}
        self.dead: set[str] = set()
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = count()
        self.swarms = {name: self._swarm(name) for name in self.names}

    def _swarm(self, name: str) -> Swarm:
        chance = Random(f"{self.seed}/{name}")
        swarm = Swarm(name, self.domain[name], name not in self.deaf, self.size, (), chance, count(1), 0)
        swarm.seed(SOURCE, self.source_domain, True)
        for other in self.names:
            swarm.fetcher(other, self.domain[other], other not in self.deaf)
        return swarm

    def run(self) -> World:
        for number, name in enumerate(self.names):
            for act in (self.pump, self.speak, self.tick):
                self.after(number * 7, act, name)
        for name, at_ms in self.deaths.items():
            self.after(at_ms, self.die, name)
        while self._heap and not self.over:
            self.now, _, act, arguments = heapq.heappop(self._heap)
            act(*arguments)
        return self

    def after(self, delay_ms: int, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._heap, (self.now + delay_ms, next(self._sequence), act, arguments))

    @property
    def over(self) -> bool:
        return all(name in self.done or name in self.dead for name in self.names)

    @property
    def makespan(self) -> float:
        """In units of the physical bound: max(F/u of the source, N·F/Σu)."""
        assert self.over, "somebody never got it"
        rates = [self.uplinks.get(name, UPLINK) for name in self.sent]
        bound = max(self.size / self.uplinks.get(SOURCE, UPLINK), self.nodes * self.size / sum(rates))
        return max(self.done.values()) / bound

    @property
    def sent_in_all(self) -> float:
        return sum(self.sent.values()) / self.size / self.nodes

    # What happens

    def fetches(self, name: str) -> bool:
        return name not in self.done and name not in self.dead

    def pump(self, name: str) -> None:
        if not self.fetches(name):
            return
        swarm = self.swarms[name]
        for ask in swarm.next(self.now):
            run = swarm.layout.run(ask.piece)
            size = min(self.size, (run.first + run.count) * MIB) - run.first * MIB
            if ask.source in self.dead:
                self.after(LATENCY_MS, self.fail, name, ask.number)
                continue
            begins = max(self.now + LATENCY_MS / 2, self.busy_until[ask.source])
            self.busy_until[ask.source] = begins + size / self.uplinks.get(ask.source, UPLINK)
            self.sent[ask.source] += size
            arrives = int(self.busy_until[ask.source] + LATENCY_MS / 2)
            self.after(arrives - self.now, self.come, name, ask.number, ask.source, size)

    def come(self, name: str, number: int, source: str, size: int) -> None:
        swarm = self.swarms[name]
        if not self.fetches(name):
            return
        if source in self.dead:
            self.fail(name, number)
            return
        if number not in swarm.asks:
            self.wasted += size
            return
        if self.domain[source] != self.domain[name]:
            self.entered[self.domain[name]] += size
        swarm.listed = True
        for other in swarm.got(number, self.now):
            swarm.cut(other)
        if swarm.complete:
            self.done[name] = self.now
            self.tell(name)
        self.pump(name)

    def fail(self, name: str, number: int) -> None:
        if self.fetches(name):
            self.swarms[name].failed(number, "the connection was reset", self.now)
            self.pump(name)

    def speak(self, name: str) -> None:
        if self.fetches(name):
            self.tell(name)
            self.after(self.swarms[name].speak_ms(self.now), self.speak, name)

    def tell(self, name: str) -> None:
        swarm = self.swarms[name]
        for other in swarm.neighbours():
            self.after(LATENCY_MS // 2, self.hear, other, name, swarm.have, swarm.asked)

    def hear(self, name: str, other: str, have: int, asked: int) -> None:
        if self.fetches(name) and self.swarms[name].heard(other, have, asked, self.now):
            self.pump(name)

    def tick(self, name: str) -> None:
        if self.fetches(name):
            self.pump(name)
            self.after(200, self.tick, name)

    def die(self, name: str) -> None:
        self.dead.add(name)
        self.after(NOTICED_MS, self.notice, name)

    def notice(self, name: str) -> None:
        for swarm in self.swarms.values():
            swarm.gone(name)


# --- a push is a swarm of two ---


@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("source_domain", ["d0", "elsewhere"])
def test_two_receivers_have_it_in_the_time_that_one_would_need(domains: int, source_domain: str) -> None:
    world = World(2, domains=domains, source_domain=source_domain).run()
    assert world.makespan <= 1.05
    assert world.sent[SOURCE] <= 1.05 * world.size
    assert world.sent_in_all <= 1.01


@pytest.mark.parametrize("slow", ["n000", "n001"])
@pytest.mark.parametrize("uplink", [UPLINK // 10, UPLINK // 100])
@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("source_domain", ["d0", "elsewhere"])
def test_a_receiver_with_a_small_uplink_holds_the_other_up_by_a_third_at_most(
    slow: str, uplink: int, domains: int, source_domain: str
) -> None:
    world = World(2, domains=domains, source_domain=source_domain, uplinks={slow: uplink}).run()
    assert world.makespan <= 1.35
    assert world.sent_in_all <= 1.05


@pytest.mark.parametrize("at_ms", [100, 5_000, 10_000])
@pytest.mark.parametrize("domains", [1, 2])
def test_a_receiver_that_dies_costs_the_other_a_sixteenth_at_most(at_ms: int, domains: int) -> None:
    world = World(2, domains=domains, deaths={"n001": at_ms}).run()
    assert max(world.done.values()) <= (1 + 1 / ALONE_SHARE) * world.size / UPLINK + 1_000


def test_when_the_source_dies_what_both_have_together_is_had_by_both() -> None:
    world = World(2, deaths={SOURCE: 5_000})
    for _ in range(100_000):
        if not world._heap and world.now:
            break
        if world.now > 20_000:
            break
        if not world.now and not world._heap:
            for name in world.names:
                for act in (world.pump, world.speak, world.tick):
                    world.after(0, act, name)
            world.after(5_000, world.die, SOURCE)
        world.now, _, act, arguments = heapq.heappop(world._heap)
        act(*arguments)
    first, second = world.swarms.values()
    assert first.have == second.have
    assert first.have.bit_count() >= 0.4 * first.layout.pieces
    assert first.hopeless(world.now)


@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("source_domain", ["d0", "elsewhere"])
@pytest.mark.parametrize("deaf", [("n000",), ("n001",)])
def test_a_receiver_that_nobody_can_dial_holds_nobody_up(
    deaf: tuple[str, ...], domains: int, source_domain: str
) -> None:
    world = World(2, domains=domains, source_domain=source_domain, deaf=deaf).run()
    beside_the_source = domains == 2 and source_domain == world.domain[deaf[0]]  # what it has cannot leave the domain
    assert max(world.done.values()) <= (2.1 if beside_the_source else 1.25) * world.size / UPLINK
    assert world.sent_in_all <= 1.01


def test_receivers_that_nobody_can_dial_get_all_from_the_source() -> None:
    world = World(2, deaf=("n000", "n001")).run()
    assert max(world.done.values()) <= 2.1 * world.size / UPLINK


# --- one to many ---


@pytest.mark.parametrize(("nodes", "domains"), [(8, 1), (8, 2), (16, 1)])
def test_one_to_many_takes_little_longer_than_the_physical_bound(nodes: int, domains: int) -> None:
    world = World(nodes, domains=domains).run()
    assert world.makespan <= 1.2
    assert world.sent_in_all <= 1.02


def test_the_source_sends_each_piece_about_once() -> None:
    assert World(8).run().sent[SOURCE] <= 1.15 * 256 * MIB


@pytest.mark.parametrize(("domains", "source_domain"), [(2, "d0"), (2, "elsewhere"), (4, "d0")])
def test_each_domain_is_entered_about_once(domains: int, source_domain: str) -> None:
    world = World(8, domains=domains, source_domain=source_domain).run()
    entered = {domain: size for domain, size in world.entered.items() if domain != source_domain}
    assert world.makespan <= 1.5  # where all of it must leave the source's domain through two uplinks
    assert all(size <= 1.15 * world.size for size in entered.values())
    assert world.entered[source_domain] == 0  # its first copy is there already


@pytest.mark.parametrize("victims", [("n003",), ("n000", "n005", "n007")])
def test_deaths_in_the_middle_hold_the_others_up_little(victims: tuple[str, ...]) -> None:
    world = World(8, deaths={name: 3_000 + 2_000 * number for number, name in enumerate(victims)}).run()
    assert world.makespan <= 1.4


def test_uplinks_that_differ_are_each_used_for_what_they_carry() -> None:
    world = World(8, uplinks={"n001": UPLINK // 10, "n002": UPLINK // 5}).run()
    assert world.makespan <= 1.45
    assert world.sent_in_all <= 1.03


def test_many_fetchers_hear_a_few_neighbours_each_and_all_get_it() -> None:
    world = World(24, size=128 * MIB, domains=2).run()
    assert all(len(swarm.neighbours()) < len(world.names) - 1 for swarm in world.swarms.values())
    assert world.makespan <= 2.0  # a small artifact: the last hops count


# --- single decisions ---


def swarm(size: int = 64 * MIB, missing: tuple[Stripe, ...] = ()) -> Swarm:
    return Swarm("me", "here", True, size, missing, Random(1), count(1), 0)


def test_one_piece_is_asked_for_until_the_chunk_list_has_come() -> None:
    alone = swarm()
    alone.seed("a", "here", True)
    alone.seed("b", "here", True)
    (ask,) = alone.next(0)
    assert alone.next(0) == []
    alone.listed = True
    alone.got(ask.number, 10)
    assert len(alone.next(10)) == 4  # two from each


def test_what_staging_has_is_not_asked_for() -> None:
    resumed = swarm(missing=(Stripe(3, 2),))
    resumed.seed("a", "here", True)
    resumed.listed = True
    assert sorted(ask.piece for ask in resumed.next(0)) == [3, 4]
    assert swarm(missing=(Stripe(0, 0),)).complete


def test_a_source_that_lied_is_never_asked_again() -> None:
    alone = swarm()
    alone.seed("a", "here", True)
    (ask,) = alone.next(0)
    alone.failed(ask.number, "it sent wrong bytes", 10, for_ever=True)
    assert alone.next(10**9) == []
    assert alone.hopeless(10**9)


def test_a_liar_stays_one_whatever_else_it_brings() -> None:
    """Two pieces were under way: one of them is wrong, and the other right."""
    alone = swarm()
    alone.seed("a", "here", True)
    alone.listed = True
    wrong, right = alone.next(0)
    alone.failed(wrong.number, "it sent wrong bytes", 10, for_ever=True)
    alone.got(right.number, 20)
    assert alone.next(10**9) == []
    assert alone.hopeless(10**9)


def test_a_source_that_failed_is_asked_again_after_a_rest() -> None:
    alone = swarm()
    alone.seed("a", "here", True)
    (ask,) = alone.next(0)
    alone.failed(ask.number, "the connection was reset", 10)
    assert alone.next(20) == []
    assert not alone.hopeless(20)
    assert len(alone.next(2_000)) == 1


def test_who_cannot_be_dialled_is_asked_for_nothing_and_owns_nothing() -> None:
    ours = swarm()
    ours.seed("a", "here", True)
    ours.fetcher("deaf", "here", False)
    ours.heard("deaf", 0b1111, 0, 0)
    ours.listed = True
    assert {ask.source for ask in ours.next(0)} == {"a"}


def test_the_last_piece_is_asked_of_another_source_when_the_first_is_slow() -> None:
    ours = swarm(missing=(Stripe(0, 1),))
    ours.listed = True
    ours.seed("a", "here", True)
    (slow,) = ours.next(0)
    ours.seed("b", "here", True)
    assert ours.next(100) == []
    (again,) = ours.next(5_000)
    assert (again.piece, again.source) == (slow.piece, "b")
    assert ours.got(again.number, 5_100) == [slow.number]


def test_when_nothing_may_be_asked_for_a_while_anything_may() -> None:
    """The owner of the last pieces never speaks."""
    ours = swarm(size=8 * MIB)
    ours.listed = True
    ours.seed("far", "there", True)
    ours.fetcher("mate", "here", True)
    asked = {ask.piece for ask in ours.next(0)}
    for ask in list(ours.asks.values()):
        ours.got(ask.number, 10)
    for now in range(20, 60_000, STALL_MS):
        for ask in ours.next(now):
            asked.add(ask.piece)
            ours.got(ask.number, now)
    assert asked == set(range(8))


def test_a_node_that_leaves_the_swarm_is_asked_no_more() -> None:
    ours = swarm()
    ours.fetcher("mate", "here", True)
    ours.heard("mate", 0b11, 0, 0)
    assert ours.next(0)
    ours.gone("mate")
    assert ours.fetchers == {}
    assert ours.sources == {}


def test_neighbours_are_symmetric() -> None:
    names = [f"n{number:02d}" for number in range(NEIGHBOURS_MAX * 3)]
    near = {}
    for name in names:
        one = Swarm(name, "here", True, MIB * 2, (), Random(1), count(1), 0)
        for other in names:
            one.fetcher(other, "here", True)
        near[name] = set(one.neighbours())
        assert 4 <= len(near[name]) <= NEIGHBOURS_MAX
    assert all(name in near[other] for name in names for other in near[name])


# --- pieces ---


def test_a_large_artifact_is_cut_into_so_many_pieces_or_pieces_of_so_many_chunks() -> None:
    for chunks in (2, PIECES, PIECES + 1, 100_000):
        layout = Layout(chunks * MIB)
        assert layout.pieces <= PIECES or layout.piece_chunks == PIECE_CHUNKS_MAX
        runs = [layout.run(piece) for piece in range(layout.pieces)]
        assert sum(run.count for run in runs) == chunks
        assert [run.first for run in runs] == [at * layout.piece_chunks for at in range(layout.pieces)]


def test_a_piece_counts_when_no_chunk_of_it_is_missing() -> None:
    layout = Layout(1_024 * MIB)  # pieces of two chunks
    assert layout.without(()) == layout.full
    assert layout.without((Stripe(0, 1_024),)) == 0
    assert layout.without((Stripe(3, 2),)) == layout.full & ~0b110


def test_shares_cover_every_piece_once_in_each_domain() -> None:
    domains = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"}
    shares = Shares.of(domains, ["z"], 100)
    for domain in ("x", "y"):
        owned = [shares.owned[node] for node in domains if domains[node] == domain]
        assert sum(mask.bit_count() for mask in owned) == 100
    assert sum(mask.bit_count() for mask in shares.first.values()) == 100
    beside_a_seed = Shares.of(domains, ["x"], 100)
    assert sum(beside_a_seed.first[node].bit_count() for node in "ab") == 100


def test_holders_are_counted_for_all_pieces_at_once() -> None:
    spread = Spread()
    for have in (0b0111, 0b0011, 0b0001, 0b0001):
        spread.count(have)
    assert spread.rarest(0b0111) == 0b0100
    assert spread.rarest(0b0011) == 0b0010
    assert spread.once() == 0b0100
