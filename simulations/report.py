"""The report of a run: what was found, in numbers and sentences, and the command that finds it again."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.values import State
from simulations.broadcast import Broadcast
from simulations.losses import Loss, at_risk, losses
from simulations.workers import Workers
from simulations.world import World


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `coverage` is the share of (live node, live record) pairs that know each other.

    `lost` counts broken promises; in a rehearsal every accepted artifact that is on no disk any more (`losses`).
    `bites` says how often each fault really struck.
    """

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
    losses: tuple[Loss, ...] = ()
    at_risk: int = 0
    refused: int = 0
    steps: int = 0
    figures: tuple[tuple[str, float], ...] = ()  # of a broadcast

    @property
    def passed(self) -> bool:
        return not self.lost and not self.violations


def report(world: World, scenario: str, command: str) -> Report:
    count = len(world.nodes)
    seconds = max(1.0, world.schedule.now_ms / 1000)
    held = sum(store.digests() for store in world.oracle.distinct_stores())
    settled = max(0, world.settled_ms - max(world.clients.last_ms, 0))
    rehearsed = losses(world.oracle) if world.options.rehearsal else ()
    return Report(
        scenario=scenario,
        seed=world.seed,
        nodes=count,
        coverage=_coverage(world),
        hops=world.oracle.hops(),
        seconds_to_full=settled / 1000,
        copies_per_node=round(held / count, 2),
        bytes_per_node_per_second=round(world.around.network.bytes / count / seconds, 1),
        lost=len(rehearsed) if world.options.rehearsal else len(world.verdict.lost),
        violations=tuple(world.oracle.violations),
        trace_hash=world.around.trace.hexdigest(),
        reproduce=command,
        bites=tuple(sorted(world.around.bites.items())),
        accepted=len(world.oracle.promises),
        losses=rehearsed,
        at_risk=at_risk(world.oracle),
        refused=world.clients.refused if isinstance(world.clients, Workers) else 0,
        steps=world.schedule.steps,
        figures=tuple(world.clients.figures().items()) if isinstance(world.clients, Broadcast) else (),
    )


def _coverage(world: World) -> float:
    """Tables are compared as sets of keys: a thousand nodes with a million pairs take a second."""
    tables = [node.disk.catalogue.tables.records for node in world.verdict.living()]
    live = {key for records in tables for key, record in records.items() if record.state is State.LIVE}
    known = sum(len(live & records.keys()) for records in tables)
    return round(known / (len(tables) * len(live)), 4) if tables and live else 0.0
