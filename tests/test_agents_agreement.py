"""Agreement between real agents: one that was away, halves that were parted, one that nobody can dial, and a copy."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from node.config import HOSTS_FILE_NAME
from node.local_fleet import LocalFleet, Node, free_ports
from tests.agents import GENEROUS_SECONDS, HOSTS, ROUTING, durable, holds, running, started, written
from tests.netns import Machines, machines, spread

pytestmark = pytest.mark.processes
RECORDS, PORT = 500, 7946
HALVES = (("a", "b"), ("c", "d"))


def known(fleet: LocalFleet, node: str) -> dict[str, str]:
    """Every artifact that an agent knows, with its digest."""
    return {row["name"]: row["digest"] for row in fleet.rows(node, "ls")}


def states(fleet: LocalFleet, node: str) -> dict[str, str]:
    return {row["node"]: row["state"] for row in fleet.ask(node, "peers")}


def put_many(fleet: LocalFleet, node: str, kind: str, count: int, folder: Path) -> None:
    """Small artifacts over one connection of the command line."""
    files = [folder / f"{kind}-{node}-{number:03}.npz" for number in range(count)]
    for file in files:
        file.write_bytes(f"{node} {file.name}".encode())
    fleet.spore(node, "put", *map(str, files), "--kind", kind)


def test_a_node_that_was_away_agrees_after_one_exchange(tmp_path: Path) -> None:
    """No digest is due for ten minutes: what it learns, it learns from the comparison when its sessions begin."""
    with running(gossip_interval_seconds=600) as fleet:
        assert fleet.terminate("c") == 0
        put_many(fleet, "a", "npz", RECORDS, tmp_path)
        fleet.until(lambda: len(known(fleet, "b")) == RECORDS, "b knows all", GENEROUS_SECONDS)
        fleet.start("c")
        fleet.until(lambda: known(fleet, "c") == known(fleet, "a"), "c knows what a knows", GENEROUS_SECONDS)
        assert len(known(fleet, "c")) == RECORDS


def test_a_node_that_only_dials_out_gets_and_gives_everything() -> None:
    hosts: dict[str, dict[str, Any]] = {**{name: dict(facts) for name, facts in HOSTS.items()}}
    hosts["c"]["address"] = None
    contents = {size: os.urandom(size) for size in (5_000, 3 << 20)}
    with running(hosts) as fleet:
        for size, content in contents.items():
            written(fleet, "a", f"models/to-{size}.pth", content)
            written(fleet, "c", f"models/from-{size}.pth", content[::-1])
        for size, content in contents.items():
            holds(fleet, "c", f"models/to-{size}.pth", content)
            for node in ("a", "b"):
                holds(fleet, node, f"models/from-{size}.pth", content[::-1])
            durable(fleet, "c", f"model/models/from-{size}.pth")
        everything = known(fleet, "a")
        assert len(everything) == 2 * len(contents)
        fleet.until(lambda: known(fleet, "c") == everything, "c knows everything", GENEROUS_SECONDS)


# --- halves that were parted ---


@contextmanager
def four(made: Machines) -> Iterator[LocalFleet]:
    hosts = {
        node: {"address": f"{made.address(node)}:{PORT}", "provider": f"provider-{node}"} for node in sum(HALVES, ())
    }
    folder = Path(tempfile.mkdtemp(prefix="spore-parted-"))
    try:
        with LocalFleet(folder, hosts, ROUTING) as fleet:
            spread(fleet, made)
            started(fleet)
            yield fleet
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.root
def test_halves_that_were_parted_agree_when_they_meet_again(tmp_path: Path) -> None:
    with machines(*sum(HALVES, ())) as made, four(made) as fleet:
        for one, other in product(*HALVES):
            made.block(one, other, PORT)
        for half, others in (HALVES, HALVES[::-1]):
            for node in half:
                down = dict.fromkeys(others, "down")
                fleet.until(
                    lambda node=node, down=down: states(fleet, node).items() >= down.items(),  # type: ignore[misc]
                    f"{node} sees the other half no more",
                    GENEROUS_SECONDS,
                )
        put_many(fleet, "a", "npz", 50, tmp_path)
        put_many(fleet, "c", "npz", 50, tmp_path)
        fleet.until(
            lambda: len(known(fleet, "b")) == len(known(fleet, "d")) == 50, "each half agrees", GENEROUS_SECONDS
        )
        made.unblock(*fleet.nodes)
        fleet.until(
            lambda: all(len(known(fleet, node)) == 100 for node in fleet.nodes), "all know all", GENEROUS_SECONDS
        )
        everything = known(fleet, "a")
        assert all(known(fleet, node) == everything for node in fleet.nodes)
        fleet.until(fleet.meshed, "all are alive again", GENEROUS_SECONDS)


# --- a copied identity ---


def copied(fleet: LocalFleet, name: str) -> str:
    """A second machine from a copy of a node's folder: same identity, same manifest, a port of its own."""
    original, twin = fleet.nodes[name], f"{name}-copy"
    (port,) = free_ports(1)
    folder = fleet.folder / twin
    shutil.copytree(original.folder, folder, ignore=shutil.ignore_patterns("agent.sock", "agent.log"))
    hosts_file = folder / HOSTS_FILE_NAME
    mine = f'"address": "127.0.0.1:{original.port}"'
    hosts_file.write_text(hosts_file.read_text().replace(mine, f'{mine}, "listen": "127.0.0.1:{port}"'))
    fleet.nodes[twin] = Node(twin, folder, port)
    return twin


def test_a_copy_of_a_running_node_is_turned_away_and_says_so() -> None:
    with running() as fleet:
        twin = copied(fleet, "c")
        original = fleet.nodes["c"].process
        fleet._launch(fleet.nodes[twin])
        log = fleet.nodes[twin].log
        fleet.until(
            lambda: log.read_text().count("another machine runs as c and answers") >= 2,
            "both others turn the copy away",
            GENEROUS_SECONDS,
        )
        assert original is not None
        assert original.poll() is None
        written(fleet, "c", "models/still.pth", b"the original works on")
        for node in ("a", "b"):
            assert states(fleet, node)["c"] == "alive"
            holds(fleet, node, "models/still.pth", b"the original works on")
        fleet.kill("c")  # a machine that restarts is let in: nobody is locked out for good
        fleet.until(
            lambda: states_of_copy(fleet, twin) == {"a": "alive", "b": "alive"}, "the copy is let in", GENEROUS_SECONDS
        )


def states_of_copy(fleet: LocalFleet, twin: str) -> dict[str, str]:
    return {row["node"]: row["state"] for row in fleet.ask(twin, "peers") if row["node"] in ("a", "b")}
