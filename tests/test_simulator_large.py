"""Large fleets in virtual time: they begin as settled, and everybody knows everything at once."""

from __future__ import annotations

from dataclasses import replace
from math import log2
from random import Random

import pytest

from protocol.messages import Message, RowsMessage
from simulations import run
from simulations.fleets import invent_fleet
from simulations.options import LARGE_FLEET, Options
from simulations.world import World

QUIET = Options(nodes=30, operations=0, busy_ms=8_000, settled=True)


def test_a_settled_fleet_has_its_sessions_and_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(QUIET, invent_fleet(Random(1), 30), 1)
    told: list[Message] = []
    network = world.around.network
    send = network.send

    def note(node: str, peer: str, message: Message) -> bytes:
        told.append(message)
        return send(node, peer, message)

    monkeypatch.setattr(network, "send", note)
    world.run()
    assert world.oracle.violations == []
    assert told
    assert not [message for message in told if isinstance(message, RowsMessage)]
    for node in world.nodes.values():
        members = node.replica.members
        assert len(members.alive) == 29
        assert set(members.sessions) >= set(members.swim.kept())


def test_a_node_of_a_settled_fleet_that_dies_is_known_to_be_dead_everywhere() -> None:
    world = World(replace(QUIET, busy_ms=40_000), invent_fleet(Random(1), 30), 1)
    victim = world.nodes["node-07"]
    world.schedule.after(2_000, victim.vanish)
    world.run()
    assert world.oracle.violations == []
    assert all("node-07" not in node.replica.members.alive for node in world.verdict.living())


@pytest.mark.timeout(1_800)
def test_a_thousand_nodes_agree() -> None:
    report = run("convergence", 1_000, seed=1)
    assert report.nodes == 1_000 > LARGE_FLEET
    assert report.violations == ()
    assert report.coverage == 1.0
    assert report.accepted >= 10
    assert report.seconds_to_full <= 60
    assert report.hops <= 2 * log2(1_000) + 1  # of any record to any node; see docs/performance.md for the usual
