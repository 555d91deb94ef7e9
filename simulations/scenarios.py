"""The scenarios by name, and the report of a run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

from protocol.fleet import Fleet
from protocol.values import State
from simulations.options import Options, convergence, crash, disk_full, first_light, invent_fleet
from simulations.world import World

NODES_MAX = 200  # every pair has a session in this first form of membership: more takes minutes

SCENARIOS: dict[str, str] = {
    "first-light": "users work while nodes crash, disks fill, clocks jump and the network breaks; then all heals",
    "convergence": "no fault: how fast and at what cost everybody knows and holds what they should",
    "crash": "few nodes that die all the time, between any two effects and inside commits",
    "disk-full": "small disks that fill up, and writes that fail",
}
_OPTIONS: dict[str, Callable[[Random, int | None], Options]] = {
    "first-light": first_light,
    "convergence": convergence,
    "crash": crash,
    "disk-full": disk_full,
}


class UnknownScenario(ValueError):
    """There is no scenario of this name; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `coverage` is the share of (live node, live record) pairs that know each other."""

    scenario: str
    seed: int
    nodes: int
    coverage: float
    hops: int
    seconds_to_full: float
    copies_per_node: float
    bytes_per_node_per_second: float
    lost: int
    violations: tuple[str, ...]
    trace_hash: str
    reproduce: str
    bites: tuple[tuple[str, int], ...] = ()
    accepted: int = 0


def run(
    scenario: str = "first-light", nodes: int | None = None, seed: int = 1, fleet: Fleet | None = None, hosts: str = ""
) -> Report:
    """Run one seed. `fleet` replaces the invented one (`hosts` is the file it came from, for `reproduce`).

    Raises UnknownScenario for a name that is not in `SCENARIOS`, ValueError for a count that cannot be simulated.
    """
    world = build(scenario, nodes, seed, fleet)
    with _uncollected():
        world.run()
    return _report(world, scenario, nodes, hosts)


@contextmanager
def _uncollected() -> Iterator[None]:
    """A run leaves few cycles behind and millions of values alive: looking for garbage costs a tenth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def build(scenario: str, nodes: int | None, seed: int, fleet: Fleet | None = None, keep_trace: int = 0) -> World:
    if scenario not in _OPTIONS:
        raise UnknownScenario(f"there is no scenario {scenario!r}; use one of {', '.join(SCENARIOS)}")
    if nodes is not None and not 3 <= nodes <= NODES_MAX:
        raise ValueError(f"{nodes} nodes cannot be simulated; use 3 to {NODES_MAX}")
    random = Random(f"{seed}/{scenario}")
    options = _OPTIONS[scenario](random, nodes)
    if fleet is not None:
        options = replace(options, nodes=len(fleet.hosts))
    return World(options, fleet or invent_fleet(random, options.nodes), seed, keep_trace)


def _report(world: World, scenario: str, nodes: int | None, hosts: str) -> Report:
    where = f" --hosts {hosts}" if hosts else f" --nodes {nodes}" if nodes else ""
    count = len(world.nodes)
    seconds = max(1.0, world.schedule.now_ms / 1000)
    held = sum(store.digests() for store in world.oracle.distinct_stores())
    settled = max(0, world.settled_ms - max(world.clients.last_ms, 0))
    return Report(
        scenario=scenario,
        seed=world.seed,
        nodes=count,
        coverage=_coverage(world),
        hops=world.oracle.hops(),
        seconds_to_full=settled / 1000,
        copies_per_node=round(held / count, 2),
        bytes_per_node_per_second=round(world.around.network.bytes / count / seconds, 1),
        lost=len(world.verdict.lost),
        violations=tuple(world.oracle.violations),
        trace_hash=world.around.trace.hexdigest(),
        reproduce=f"spore simulate {scenario}{where} --seed {world.seed}",
        bites=tuple(sorted(world.around.bites.items())),
        accepted=len(world.oracle.promises),
    )


def _coverage(world: World) -> float:
    living = world.verdict.living()
    records = {
        record.key: record
        for node in living
        for record in node.disk.catalogue.snapshot().records.values()
        if record.state is State.LIVE
    }
    known = sum(node.disk.catalogue.record(key) is not None for node in living for key in sorted(records))
    return round(known / (len(living) * len(records)), 4) if living and records else 0.0
