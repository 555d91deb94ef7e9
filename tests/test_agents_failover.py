"""Failover between real agents on machines of their own: a port is blocked, then its SSH, then both return."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, ROUTING, holds, started, written
from tests.netns import Machines, machines, spread
from tests.sshd import Sshd, sshd_in

pytestmark = [pytest.mark.processes, pytest.mark.root]
REPOSITORY = Path(__file__).parents[1]
SSH_PORT, PORT = 2222, 7946


@contextmanager
def fleet_on(made: Machines, sshd: Sshd, folder: Path) -> Iterator[LocalFleet]:
    """a and b hold, c is the coordinator that holds nothing; a can be reached by SSH."""
    command = f"env PYTHONPATH={REPOSITORY} {sys.executable} -m node.cli"
    reach = sshd.section(host=made.address("a"), command=command, dir=str(folder / "fleet" / "a"))
    hosts = {
        "a": {"address": f"{made.address('a')}:{PORT}", "provider": "one", "ssh": reach},
        "b": {"address": f"{made.address('b')}:{PORT}", "provider": "two"},
        "c": {"address": f"{made.address('c')}:{PORT}", "provider": "three", "excluded": True},
    }
    with LocalFleet(folder / "fleet", hosts, {**ROUTING, "min_copies": 1}) as fleet:
        spread(fleet, made)
        started(fleet)
        yield fleet


@pytest.fixture
def world() -> Iterator[tuple[LocalFleet, Machines]]:
    folder = Path(tempfile.mkdtemp(prefix="spore-failover-"))
    try:
        with (
            machines("a", "b", "c") as made,
            sshd_in(folder / "sshd", "0.0.0.0", made.inside("a"), SSH_PORT) as sshd,
            fleet_on(made, sshd, folder) as fleet,
        ):
            yield fleet, made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def came(fleet: LocalFleet, name: str) -> str:
    """By which transport an artifact came to b, by what b says; "" when it was pushed there."""
    facts = fleet.where("b", name)
    assert facts is not None
    return next((t["transport"] for t in facts["transfers"] if t["outcome"] == "arrived"), "")


def brought(fleet: LocalFleet, number: int) -> list[str]:
    """Write a large and a small artifact on a; by which transports they came to b."""
    contents = {f"models/large-{number}.pth": os.urandom(5 << 20), f"models/small-{number}.pth": os.urandom(5_000)}
    for path, content in contents.items():
        written(fleet, "a", path, content)
    for path, content in contents.items():
        holds(fleet, "b", path, content)
    found = [came(fleet, f"model/{path}") for path in contents]
    fleet.until(
        lambda: not fleet.ask("a", "status")["at_risk"]["artifacts"], "a knows that b has them", GENEROUS_SECONDS
    )
    return found


@pytest.mark.parametrize("silently", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["closed", "filtered"])
def test_a_transfer_goes_on_over_rsync_then_through_a_relay_and_comes_back(
    world: tuple[LocalFleet, Machines], silently: bool
) -> None:
    """A port that is closed refuses at once; one that is filtered lets every dial run into its time-out."""
    fleet, made = world
    assert set(brought(fleet, 1)) <= {"", "p2p_http"}
    made.block("a", "b", PORT, silently=silently)
    assert brought(fleet, 2) == ["rsync", "rsync"]
    made.block("a", "b", SSH_PORT, silently=silently)
    assert brought(fleet, 3) == ["relay", "relay"]
    facts = fleet.where("c", "model/models/large-3.pth")
    assert facts is not None
    assert {holder["node"] for holder in facts["holders"]} == {"a", "b"}  # c carried it, and does not hold it
    made.unblock("a", "b")
    fleet.until(lambda: set(brought(fleet, 4)) <= {"", "p2p_http"}, "the direct way is back", GENEROUS_SECONDS)
