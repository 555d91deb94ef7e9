"""The scenarios by name, and a run of one: from a case to its report."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from shlex import quote

from protocol.fleet import Fleet
from simulations import options as o
from simulations.fleets import invent_fleet
from simulations.options import FAULT_NAMES, Options
from simulations.report import Report, report
from simulations.samples import Samples
from simulations.script import Action, Request
from simulations.world import World

NODES_MIN = 3  # an origin and two stores for its copies
REST_MS = 5_000  # users go on for so long after the last thing that was asked for
NODES_MAX = 10_000  # the largest fleet that the protocol has bounds for

SCENARIOS: dict[str, str] = {
    "first-light": "users work while nodes crash, disks fill, clocks jump and the network breaks; then all heals",
    "convergence": "no fault: how fast and at what cost everybody knows and holds what they should",
    "crash": "few nodes that die all the time, between any two effects and inside commits",
    "disk-full": "small disks that fill up, and writes that fail",
    "partition": "two halves that do not meet for longer than any heartbeat, and users at work in both",
    "spot-storm": "the ephemeral third of the fleet is taken away within seconds, some with notice and some with none",
    "nfs-fleet": "groups of machines that share one root, and crash, stall and write over each other",
    "deletes": "names that are deleted and written again, while the fleet parts and nodes die and come back",
    "rolling-restart": "an upgrade: nodes come back one by one and say more than the others understand",
    "flaky-wan": "links that lose, delay, clog, work one way only, and part the fleet now and then",
    "swarm": "fleet, faults and their rates are all drawn from the seed",
    "broadcast": "100 GB from one node to all, over uplinks that differ, while some die on the way",
    "rehearsal": "a fleet at work, and exactly what --kill, --partition and --fill say",
}
_OPTIONS: dict[str, Callable[[Random, int | None], Options]] = {
    "first-light": o.first_light,
    "convergence": o.convergence,
    "crash": o.crash,
    "disk-full": o.disk_full,
    "partition": o.partition,
    "spot-storm": o.spot_storm,
    "nfs-fleet": o.nfs_fleet,
    "deletes": o.deletes,
    "rolling-restart": o.rolling_restart,
    "flaky-wan": o.flaky_wan,
    "swarm": o.swarm,
    "broadcast": o.broadcast,
    "rehearsal": o.rehearsal,
}


class UnknownScenario(ValueError):
    """There is no scenario of this name; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Case:
    """All that a run follows from. What is None is drawn from the seed, or as the scenario has it.

    `fleet` replaces the invented one (`hosts` is the file it came from, for `command`); `requests` are what a person
    asked for on the command line.
    """

    scenario: str = "first-light"
    seed: int = 1
    nodes: int | None = None
    fleet: Fleet | None = None
    hosts: str = ""
    seconds: int | None = None
    operations: int | None = None
    faults: tuple[str, ...] | None = None
    requests: tuple[Request, ...] = ()

    @property
    def command(self) -> str:
        """What reproduces this run, bit for bit."""
        words = ["spore simulate", self.scenario]
        if self.hosts:
            words.append(f"--hosts {quote(self.hosts)}")
        elif self.nodes is not None:
            words.append(f"--nodes {self.nodes}")
        words += [f"--{request.option} {quote(request.text)}" for request in self.requests]
        if self.faults is not None:
            words.append(f"--faults {','.join(self.faults) or 'none'}")
        if self.operations is not None:
            words.append(f"--operations {self.operations}")
        if self.seconds is not None:
            words.append(f"--seconds {self.seconds}")
        return " ".join([*words, f"--seed {self.seed}"])


def run(
    scenario: str = "first-light", nodes: int | None = None, seed: int = 1, fleet: Fleet | None = None, hosts: str = ""
) -> Report:
    """Run one seed.

    Raises UnknownScenario for a name that is not in `SCENARIOS`, ValueError for a count that cannot be simulated.
    """
    return run_case(Case(scenario, seed, nodes, fleet, hosts))


def run_case(case: Case) -> Report:
    """Run one case. Raises as `run` does, and ValueError for requests that the fleet cannot meet."""
    return _run(build_case(case), case)


def run_sampled(case: Case) -> tuple[Report, Samples]:
    """The same run, looked at over time."""
    world = build_case(case)
    samples = Samples(world)
    samples.start()
    return _run(world, case), samples


def _run(world: World, case: Case) -> Report:
    with _uncollected():
        world.run()
    return report(world, case.scenario, case.command)


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
    return build_case(Case(scenario, seed, nodes, fleet), keep_trace)


def build_case(case: Case, keep_trace: int = 0) -> World:
    if case.scenario not in _OPTIONS:
        raise UnknownScenario(f"there is no scenario {case.scenario!r}; use one of {', '.join(SCENARIOS)}")
    if case.nodes is not None and not NODES_MIN <= case.nodes <= NODES_MAX:
        raise ValueError(f"{case.nodes} nodes cannot be simulated; use {NODES_MIN} to {NODES_MAX:,}")
    random = Random(f"{case.seed}/{case.scenario}")
    options = _OPTIONS[case.scenario](random, case.nodes)
    fleet = case.fleet or invent_fleet(random, options.nodes, options.shape)
    options = replace(options, nodes=len(fleet.hosts))
    return World(_as_asked(options, case, fleet), fleet, case.seed, keep_trace)


def _as_asked(options: Options, case: Case, fleet: Fleet) -> Options:
    """The scenario's options with what the case says otherwise."""
    script = (*options.script, *(action for request in case.requests for action in request.actions(fleet)))
    options = replace(options, script=script, busy_ms=max(options.busy_ms, _end_ms(script) + REST_MS))
    if case.operations is not None:
        options = replace(options, operations=case.operations)
    if case.seconds is not None:
        options = replace(options, busy_ms=case.seconds * 1000)
    if case.faults is not None:
        unknown = [name for name in case.faults if name not in FAULT_NAMES]
        if unknown:
            raise ValueError(f"there is no fault {unknown[0]!r}; use none, or some of {', '.join(FAULT_NAMES)}")
        options = o.only(options, case.faults)
    return options


def _end_ms(script: tuple[Action, ...]) -> int:
    return max((max(action.at_ms, action.until_ms) for action in script), default=0)
