"""What a seed decides before time begins: the workload, and which faults there are and how bad. Fleets: `fleets`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from simulations.fleets import USUAL, Shape
from simulations.script import Action

GIB = 1 << 30
LARGE_FLEET = 100  # above, what goes to every node makes a run long and says nothing new


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Rates are per second of virtual time over the whole fleet; chances are per message, step or try."""

    nodes: int
    busy_ms: int = 30_000  # the safety phase: users work and faults strike
    heal_ms_max: int = 400_000  # the liveness phase: everything must have settled by then
    operations: int = 40  # of users, spread over the safety phase
    broadcasts: bool = True  # users write kinds that go to every node, too
    large_share: float = 0.15  # of new artifacts are large; one in five of these is accepted by reference
    capacity_bytes: int = 40 * GIB
    faults_per_second: float = 0.0
    loss: float = 0.0
    packet_loss: float = 0.0
    stream_breaks: float = 0.0
    stream_lies: float = 0.0
    stream_stalls: float = 0.0
    disk_trouble: float = 0.0
    weights: tuple[tuple[str, int], ...] = ()  # of the faults that strike one node
    clock_ms_max: int = 0  # of a jump
    skew_ms_max: int = 0  # of each clock, from the start
    shape: Shape = USUAL  # of the fleet that is invented when none is given
    script: tuple[Action, ...] = ()  # what happens at a stated moment, beside what the seed draws
    storm: bool = False  # every ephemeral machine is taken away, within seconds
    upgrade: bool = False  # one node after the other is restarted with a later version
    deletes: int = 4  # how often users delete names, where all they do together is some 95
    rehearsal: bool = False  # the users only add; what is lost is reported, not judged
    settled: bool = False  # the nodes have known each other for long when time begins
    budgets: bool = False  # uplinks are shared by budgets and priorities, as in the agent
    broadcast_bytes: int = 0  # of the one artifact that goes to all; 0: users are at work instead
    deaths: int = 0  # of its receivers, on the way
    equal_latency_ms: int = 0  # every message takes so long; 0: as the domains have it


EVERY_FAULT = (
    ("fuse", 10),
    ("power", 3),
    ("kill", 2),
    ("partition", 2),
    ("fill", 3),
    ("io", 2),
    ("clock", 2),
    ("leave", 1),
    ("vanish", 1),
)


def first_light(random: Random, nodes: int | None) -> Options:
    """Everything at once, as bad as the seed says."""
    return Options(
        nodes=nodes or random.randint(5, 12),
        operations=random.randint(25, 50),
        faults_per_second=random.choice((0.1, 0.3, 0.6)),
        loss=random.choice((0.0, 0.0005, 0.003)),
        stream_breaks=random.choice((0.0, 0.05)),
        stream_lies=random.choice((0.0, 0.03)),
        stream_stalls=random.choice((0.0, 0.01)),
        disk_trouble=random.choice((0.0, 0.02)),
        weights=EVERY_FAULT,
        clock_ms_max=10 * 60_000,
    )


def convergence(random: Random, nodes: int | None) -> Options:
    """No fault: how fast, and at what cost, does everybody know and hold what they should.

    In a large fleet nobody writes models: each is a holding of every node, told to every node. And it has settled
    before: that all meet for the first time is another figure.
    """
    large = (nodes or 0) > LARGE_FLEET
    return Options(
        nodes=nodes or 12,
        operations=20 if large else 60,
        broadcasts=not large,
        settled=large,
        large_share=0.1,
        busy_ms=20_000,
    )


def crash(random: Random, nodes: int | None) -> Options:
    """Few nodes that die all the time, between any two effects and inside commits and publications."""
    return Options(
        nodes=nodes or random.randint(4, 6),
        operations=60,
        faults_per_second=1.2,
        weights=(("fuse", 12), ("power", 4), ("kill", 2), ("clock", 2)),
        clock_ms_max=10 * 60_000,
    )


def disk_full(random: Random, nodes: int | None) -> Options:
    """Small disks that fill up, and writes that fail."""
    return Options(
        nodes=nodes or random.randint(5, 8),
        operations=60,
        large_share=0.4,
        capacity_bytes=2 * GIB,
        faults_per_second=0.6,
        disk_trouble=0.1,
        weights=(("fill", 6), ("io", 4), ("fuse", 2)),
    )


def partition(random: Random, nodes: int | None) -> Options:
    """Two halves that do not meet for longer than any heartbeat, and users at work in both."""
    start_ms = random.randint(3_000, 8_000)
    end_ms = start_ms + random.randint(15_000, 40_000)
    return Options(
        nodes=nodes or random.randint(6, 10),
        busy_ms=end_ms + 5_000,
        operations=60,
        script=(Action("halve", start_ms, end_ms),),
        faults_per_second=0.1,
        weights=(("kill", 2), ("fuse", 2), ("one_way", 1)),
    )


def spot_storm(random: Random, nodes: int | None) -> Options:
    """A third of the fleet is ephemeral and goes at once: half with a notice, half with none."""
    return Options(
        nodes=nodes or random.randint(6, 12),
        operations=60,
        shape=Shape(ephemeral_share=1 / 3),
        storm=True,
        faults_per_second=0.1,
        weights=(("fuse", 3), ("kill", 1)),
    )


def nfs_fleet(random: Random, nodes: int | None) -> Options:
    """Groups of machines that share one root: one copy, many writers, and claims that outlive their claimers."""
    return Options(
        nodes=nodes or random.randint(6, 12),
        operations=70,
        shape=Shape(nfs_size=random.randint(2, 4)),
        faults_per_second=0.4,
        weights=(("fuse", 6), ("kill", 3), ("power", 2), ("stall", 2), ("fill", 1), ("leave", 1)),
    )


def deletes(random: Random, nodes: int | None) -> Options:
    """Names that are deleted and written again, while halves of the fleet part, and nodes die and come back."""
    first_ms = random.randint(2_000, 5_000)
    end_ms = first_ms + random.randint(6_000, 15_000)
    return Options(
        nodes=nodes or random.randint(3, 5),
        busy_ms=end_ms + 3_000,
        operations=30,
        large_share=0.0,
        deletes=45,
        script=(Action("halve", first_ms, end_ms),),
        faults_per_second=0.2,
        weights=(("kill", 3), ("fuse", 2), ("set_back", 1), ("one_way", 1), ("leave", 1)),
    )


def rolling_restart(random: Random, nodes: int | None) -> Options:
    """An upgrade: one node after the other stops, with notice, and comes back saying more than the others know."""
    return Options(nodes=nodes or random.randint(5, 9), busy_ms=60_000, operations=70, upgrade=True)


def flaky_wan(random: Random, nodes: int | None) -> Options:
    """Links that lose, delay, clog, work one way only, and part the fleet now and then."""
    return Options(
        nodes=nodes or random.randint(5, 10),
        busy_ms=40_000,
        faults_per_second=random.choice((0.3, 0.6)),
        loss=random.choice((0.001, 0.005)),
        packet_loss=random.choice((0.02, 0.1)),
        stream_breaks=0.1,
        stream_stalls=0.01,
        weights=(("partition", 2), ("one_way", 3), ("clog", 4), ("stall", 2)),
        shape=Shape(domains=4, priorities=True),
        budgets=True,
    )


SWARM_WEIGHTS = (
    *EVERY_FAULT,
    ("one_way", 2),
    ("clog", 2),
    ("stall", 3),
    ("freeze", 1),
    ("set_back", 1),
)


def swarm(random: Random, nodes: int | None) -> Options:
    """Anything: the fleet, the faults that exist at all in this run, and how often they strike, all from the seed."""
    weights = tuple((kind, weight) for kind, weight in SWARM_WEIGHTS if random.random() < 0.5)
    return Options(
        nodes=nodes or random.randint(3, 9),
        busy_ms=random.choice((15_000, 25_000, 40_000)),
        operations=random.randint(20, 60),
        large_share=random.choice((0.0, 0.15, 0.5)),
        capacity_bytes=random.choice((2, 40)) * GIB,
        faults_per_second=random.choice((0.0, 0.2, 0.6, 1.2)) if weights else 0.0,
        loss=random.choice((0.0, 0.0, 0.001, 0.005)),
        packet_loss=random.choice((0.0, 0.0, 0.05)),
        stream_breaks=random.choice((0.0, 0.05)),
        stream_lies=random.choice((0.0, 0.03)),
        stream_stalls=random.choice((0.0, 0.01)),
        disk_trouble=random.choice((0.0, 0.02, 0.1)),
        weights=weights,
        clock_ms_max=random.choice((0, 10 * 60_000)),
        skew_ms_max=random.choice((0, 60_000)),
        shape=Shape(
            ephemeral_share=random.choice((0.0, 0.0, 0.3)),
            nfs_size=random.choice((0, 0, 2, 3)),
            domains=random.randint(1, 4),
        ),
        storm=random.random() < 0.1,
        upgrade=random.random() < 0.1,
    )


def broadcast(random: Random, nodes: int | None) -> Options:
    """100 GB from one node to all, over uplinks that differ, while one in twenty dies."""
    count = nodes or random.randint(8, 30)
    return Options(
        nodes=count,
        busy_ms=60_000,
        heal_ms_max=4 * 3_600_000,
        capacity_bytes=400 * GIB,
        settled=True,
        shape=Shape(domains=3, uplinks=(25, 50, 100, 125)),
        broadcast_bytes=100_000_000_000,
        deaths=count // 20,
    )


def rehearsal(random: Random, nodes: int | None) -> Options:
    """No fault but those that the user names."""
    return Options(nodes=nodes or 9, rehearsal=True)


def only(options: Options, faults: tuple[str, ...]) -> Options:
    """The same run with no other faults than these: names of `FAULT_NAMES`, or none."""
    rates: dict[str, Any] = {field: getattr(options, field) if name in faults else 0 for name, field in RATES.items()}
    weights = tuple((kind, weight) for kind, weight in options.weights if kind in faults)
    return replace(options, weights=weights, **rates)


RATES = {  # faults that are a chance of every message, step or try
    "loss": "loss",
    "packets": "packet_loss",
    "breaks": "stream_breaks",
    "lies": "stream_lies",
    "stalls": "stream_stalls",
    "disk": "disk_trouble",
    "skew": "skew_ms_max",
}
FAULT_NAMES = (*(kind for kind, _ in SWARM_WEIGHTS), *RATES)
