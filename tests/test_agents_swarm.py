"""Swarms of real agents on loopback, each with a small egress limit: who sends how much, and what deaths cost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, holds, plain, running, started, written
from tests.test_agents_data import sent_payload, staged_bytes

pytestmark = pytest.mark.processes
MIB = 1 << 20
SIZE = 40 * MIB
SLOW = "8 MB/s"  # five seconds from one node: long enough for a death in the middle
PLAIN = {"provider": "one", "bandwidth_limit": SLOW}


@contextmanager
def limited(names: str, **facts: Mapping[str, Any]) -> Iterator[LocalFleet]:
    hosts = {name: {**PLAIN, **facts.get(name, {})} for name in names}
    with running(hosts) as fleet:
        yield fleet


def has_part(fleet: LocalFleet, node: str, share: float) -> None:
    """Wait until a node has so much of what it fetches, and not yet all."""
    fleet.until(lambda: staged_bytes(fleet, node) >= share * SIZE, f"{node} has {share:.0%}", GENEROUS_SECONDS)


def test_a_push_to_two_leaves_the_source_about_once() -> None:
    with limited("abc") as fleet:
        content = os.urandom(SIZE)
        written(fleet, "a", "checkpoints/step", content)
        durable(fleet, "a", "checkpoint/checkpoints/step", plain(content))
        for node in "bc":
            holds(fleet, node, "checkpoints/step", content)
        sent = {node: sent_payload(fleet, node) for node in "abc"}
        assert sent["a"] <= 1.4 * SIZE, sent  # gaps are filled at the end; two pushes would be twice the size
        assert sum(sent.values()) <= 1.05 * 2 * SIZE, sent
        assert min(sent["b"], sent["c"]) >= 0.2 * SIZE, sent  # they exchanged what they had


def test_a_receiver_that_is_killed_half_way_costs_the_other_nothing() -> None:
    with limited("abcd") as fleet:
        content = os.urandom(SIZE)
        written(fleet, "a", "checkpoints/step", content)
        fleet.until(lambda: _fetching(fleet), "two fetch it", GENEROUS_SECONDS)
        victim = _fetching(fleet)[0]
        has_part(fleet, victim, 0.3)
        fleet.kill(victim)
        facts = durable(fleet, "a", "checkpoint/checkpoints/step", plain(content))  # the third takes its place
        assert victim not in {holder["node"] for holder in facts["holders"]}


def _fetching(fleet: LocalFleet) -> list[str]:
    moving = {
        node: [t for t in fleet.ask(node, "status")["transfers"] if t["direction"] == "fetch"]
        for node, agent in fleet.nodes.items()
        if agent.running
    }
    found = sorted(node for node, transfers in moving.items() if transfers)
    return found if len(found) >= 2 else []


def test_when_the_source_is_killed_half_way_and_returns_it_goes_on_where_it_was() -> None:
    with limited("abc") as fleet:
        content = os.urandom(SIZE)
        written(fleet, "a", "models/best.pth", content)
        has_part(fleet, "b", 0.4)
        before = sent_payload(fleet, "a")
        fleet.kill("a")
        started(fleet, "a")
        durable(fleet, "a", "model/models/best.pth", plain(content))
        for node in "bc":
            holds(fleet, node, "models/best.pth", content)
        sent = before + sum(sent_payload(fleet, node) for node in "abc")
        assert sent <= 1.15 * 2 * SIZE  # what was there was not sent again


def test_a_broadcast_reaches_every_eligible_node_and_names_the_others() -> None:
    with limited("abcde", d={"excluded": True}) as fleet:
        content = os.urandom(SIZE)
        written(fleet, "a", "checkpoints/step", content)  # hybrid: two copies, and no more
        durable(fleet, "a", "checkpoint/checkpoints/step", plain(content))
        done = fleet.spore("a", "broadcast", "checkpoint/checkpoints/step", "--timeout", "90s")
        assert "3 of 3 nodes have it" in done.stdout
        assert "it is excluded from sync" in done.stdout
        for node in "bce":
            holds(fleet, node, "checkpoints/step", content)
        facts = fleet.ask("a", "delivery", name="checkpoint/checkpoints/step")
        assert {row["node"]: row["state"] for row in facts["nodes"]} == {
            "b": "delivered", "c": "delivered", "e": "delivered", "d": "skipped",
        }  # fmt: skip


def test_a_broadcast_survives_deaths_of_receivers_in_the_middle() -> None:
    with limited("abcdef") as fleet:
        content = os.urandom(SIZE)
        written(fleet, "a", "models/best.pth", content)
        has_part(fleet, "c", 0.3)
        fleet.kill("c")
        has_part(fleet, "e", 0.5)
        fleet.kill("e")
        for node in "bdf":
            holds(fleet, node, "models/best.pth", content)
        started(fleet, "c", "e")
        for node in "ce":
            holds(fleet, node, "models/best.pth", content)
