"""What the simulator looks at inside of nodes: each rule is broken by hand once, and noticed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from protocol.claims import Claim, Standing
from protocol.messages import Lacking
from protocol.receiving import INCOMING_MAX
from protocol.values import Batch, Holding, Record, Rows
from simulations.driver import SimNode
from simulations.fleets import invent_fleet
from simulations.options import Options
from simulations.scenarios import build
from simulations.world import World

STAMP = 1_770_000_000_000 << 16  # later than anything in the run
RECORD = Record("npz/a", STAMP, "node-00", b"d" * 32, b"b" * 32, 5)


@pytest.fixture
def world() -> World:
    """A few nodes that have known each other for long."""
    world = World(Options(nodes=5, settled=True), invent_fleet(Random(1), 5), 1)
    world.inspection.start()
    for name in world.nodes:
        world.nodes[name].start()
    world.schedule.run_until(20_000)
    assert world.oracle.violations == []
    return world


def found(world: World, node: SimNode | None = None) -> list[str]:
    """What is wrong, without the moment at which it was seen."""
    world.inspection.look_at(node or world.nodes["node-00"])
    return [violation.partition(": ")[2] for violation in world.oracle.violations]


def test_a_sketch_that_is_not_the_fold_of_the_rows_is_noticed(world: World) -> None:
    world.nodes["node-00"].disk.catalogue.sketch().add(12_345)
    assert found(world) == ["the sketch of node-00 is not that of its 5 committed rows"]


def test_a_map_beyond_its_bound_is_noticed(world: World) -> None:
    incoming = world.nodes["node-00"].replica.receiving.incoming
    incoming.update({("node-01", number): None for number in range(INCOMING_MAX + 1)})  # type: ignore[misc]
    assert found(world) == ["node-00 has 65 transfers coming in, and 64 is the bound"]


def test_an_incarnation_that_falls_is_noticed(world: World) -> None:
    assert found(world) == []
    world.nodes["node-00"].replica.members.swim.circle.incarnation -= 1
    assert "the incarnation of node-00 fell from" in found(world)[0]


def test_an_incarnation_that_its_owner_never_had_is_noticed(world: World) -> None:
    view = world.nodes["node-00"].replica.members.swim.view
    view.merge(Claim("node-01", Standing.ALIVE, 1 << 40), 0)
    assert found(world) == ["node-00 believes an incarnation of node-01 that node-01 never raised itself to"]


def test_a_stamp_that_stands_for_two_things_is_noticed(world: World) -> None:
    holding = Holding("node-00", b"s" * 16, b"d" * 32, STAMP)
    world.inspection.committed("node-00", Batch(Rows((RECORD,))))
    world.inspection.committed("node-01", Batch(Rows((RECORD,), (holding,))))
    assert found(world) == []
    world.inspection.committed("node-00", Batch(Rows(holdings=(holding,))))
    assert found(world) == [f"node-00 used its stamp {STAMP} for two things"]


def test_a_difference_that_is_none_is_noticed(world: World) -> None:
    has = next(iter(world.nodes["node-00"].disk.catalogue.tables.prints))
    world.inspection.sending("node-00", "node-01", Lacking((has, 77)))
    assert found(world) == [
        "node-00 asks node-01 for a row that it has",
        "node-00 asks node-01 for row 000000000000004d, which nobody ever had",
    ]


def test_whoever_is_wrong_about_who_is_alive_is_named(world: World) -> None:
    living = list(world.nodes.values())
    assert world.inspection.membership(living) == []
    del world.nodes["node-02"].replica.members.alive["node-04"]
    assert world.inspection.membership(living) == ["node-02 is wrong about who is alive: node-04"]


def test_an_idle_fleet_that_talks_is_noticed(world: World) -> None:
    world.inspection.traffic(5 * 6 * 2_048, 6_000)
    assert found(world) == []
    world.inspection.traffic(5 * 6 * 2_060, 6_000)
    assert found(world) == ["an idle node sends 2060 bytes a second"]


def test_runs_ask_for_differences_so_that_the_rule_about_them_says_something() -> None:
    world = build("partition", None, 1)
    world.options = replace(world.options, heal_ms_max=200_000)
    world.run()
    assert world.oracle.violations == []
    assert world.inspection.differences > 5
