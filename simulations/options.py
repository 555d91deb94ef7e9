"""What a seed decides before time begins: the fleet, the workload, and which faults there are and how bad."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from protocol.fleet import MIB, Fleet, Host, Routing

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Rates are per second of virtual time over the whole fleet; chances are per message, step or try."""

    nodes: int
    busy_ms: int = 30_000  # the safety phase: users work and faults strike
    heal_ms_max: int = 400_000  # the liveness phase: everything must have settled by then
    operations: int = 40  # of users, spread over the safety phase
    large_share: float = 0.15  # of new artifacts are large; one in five of these is accepted by reference
    capacity_bytes: int = 40 * GIB
    faults_per_second: float = 0.0
    loss: float = 0.0
    stream_breaks: float = 0.0
    stream_lies: float = 0.0
    stream_stalls: float = 0.0
    disk_trouble: float = 0.0
    weights: tuple[tuple[str, int], ...] = ()  # of the faults that strike one node
    clock_ms_max: int = 0


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
    """No fault: how fast, and at what cost, does everybody know and hold what they should."""
    return Options(nodes=nodes or 12, operations=60, large_share=0.1, busy_ms=20_000)


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


ROUTING = Routing(
    auto_sync_interval_seconds=10.0,  # shorter than in a real fleet, so that a run is short
    gossip_interval_seconds=5.0,
    min_free_bytes=64 * MIB,
)
PROVIDERS = (("nebius", "eu-north1"), ("lambda", "us-east-3"))


def invent_fleet(random: Random, count: int) -> Fleet:
    """Two domains; an excluded node, an ephemeral one, an NFS pair and one that cannot be dialled, as far as fit."""
    hosts: dict[str, Host] = {}
    for index in range(count):
        provider, region = PROVIDERS[index % 2]
        role = random.choice(("training", "selfplay", "worker"))
        name = f"node-{index:02d}"
        address = f"10.0.{index // 250}.{index % 250 + 1}:7946"
        hosts[name] = Host(name, address, provider, region, role=role)
    names = sorted(hosts)
    if count >= 5:
        hosts[names[-1]] = replace(hosts[names[-1]], excluded=True)
        hosts[names[-2]] = replace(hosts[names[-2]], ephemeral=True)
    if count >= 6:
        for name in (names[0], names[2]):
            hosts[name] = replace(hosts[name], nfs_group=names[0])
    if count >= 8:
        hosts[names[3]] = replace(hosts[names[3]], address=None)
    return Fleet("simulated", replace(ROUTING), hosts=hosts)
