"""Transports, sync and limits between real agents on loopback: aria2, a relay for nodes that only dial out, budgets."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import HOSTS_FILE_NAME
from node.local_fleet import LocalFleet
from node.transports.choice import ARIA2_BYTES_MIN
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, holds, logged, running, signalled, tool, written

pytestmark = pytest.mark.processes
KINDS = {"kinds": {"bulk": {"paths": ["bulk/*"], "strategy": "pull"}}}
MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """a and b hold; c is excluded, and only gets."""
    hosts = {**HOSTS, "c": {**HOSTS["c"], "excluded": True}}
    with running(hosts, KINDS, min_copies=1) as made:
        yield made


def choices(fleet: LocalFleet, node: str, name: str) -> list[tuple[str, str]]:
    facts = fleet.where(node, name)
    assert facts is not None
    return [(choice["transport"], choice["outcome"]) for choice in facts["transfers"]]


def test_a_large_artifact_that_several_hold_is_fetched_by_aria2(fleet: LocalFleet, tmp_path: Path) -> None:
    tool("aria2c")
    content = os.urandom(ARIA2_BYTES_MIN + 1)
    written(fleet, "a", "bulk/large", content)
    durable(fleet, "c", "bulk/bulk/large")
    fleet.spore("c", "get", "bulk/bulk/large", "-o", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == content
    assert choices(fleet, "c", "bulk/bulk/large") == [("aria2", "arrived")]
    shown = fleet.spore("c", "where", "bulk/bulk/large", "--transfers").stdout
    assert f"{ARIA2_BYTES_MIN + 1} bytes lie on 2 nodes that are reached" in shown
    logged(fleet, "c", "transport:", "by aria2")


def test_sync_brings_an_artifact_to_a_node_and_says_why_it_does_not(fleet: LocalFleet) -> None:
    content = os.urandom(3 * MIB)
    written(fleet, "a", "checkpoints/step-1", content)
    durable(fleet, "a", "checkpoint/checkpoints/step-1")
    done = json.loads(fleet.spore("a", "sync", "checkpoint/*", "--to", "b", "--priority", "high", "--json").stdout)
    assert (done["moved"] + done["there"], done["left_count"]) == (1, 0)
    holds(fleet, "b", "checkpoints/step-1", content)
    refused = fleet.spore("a", "sync", "checkpoint/*", "--to", "c", check=False)
    assert (refused.returncode, "c is excluded from sync" in refused.stdout) == (1, True)
    assert fleet.spore("b", "sync").returncode == 0


def test_a_limit_holds_at_once_and_a_reload_brings_the_files_own(fleet: LocalFleet) -> None:
    rows = json.loads(fleet.spore("a", "limit", "2", "--json").stdout)
    assert rows[0] == {"egress": "all of a", "bytes_per_second": 2_000_000, "by": "spore limit"}
    content = os.urandom(6_000_000)
    began = time.monotonic()
    written(fleet, "a", "checkpoints/step-2", content)
    holds(fleet, "b", "checkpoints/step-2", content)
    assert time.monotonic() - began >= 2.4  # three seconds of the budget, less its burst
    fleet.spore("a", "limit", "default")
    path = fleet.nodes["a"].folder / HOSTS_FILE_NAME
    path.write_text(fleet.hosts_file(bandwidth_limit="80 Mbit/s", peer_limits={"b": "1 MB/s"}))
    signalled(fleet, "a", signal.SIGHUP)
    logged(fleet, "a", "reloaded")
    rows = json.loads(fleet.spore("a", "limit", "--json").stdout)
    assert [(row["egress"], row["bytes_per_second"]) for row in rows][-1] == ("to b", 1_000_000)


def test_two_nodes_that_only_dial_out_exchange_an_artifact_through_one_that_both_dial() -> None:
    """Neither can be dialled, and the coordinator between them holds nothing: it carries."""
    hosts = {
        "c": {"provider": "three", "excluded": True},
        "a": {"provider": "one", "address": None},
        "b": {"provider": "two", "address": None},
    }
    contents = {"models/large.pth": os.urandom(5 * MIB), "models/small.pth": os.urandom(5_000)}
    with running(hosts, min_copies=1) as made:
        for path, content in contents.items():
            written(made, "a", path, content)
        for path, content in contents.items():
            holds(made, "b", path, content)
            assert choices(made, "b", f"model/{path}")[-1] == ("relay", "arrived")
            facts = made.where("c", f"model/{path}")
            assert facts is not None
            assert {holder["node"] for holder in facts["holders"]} <= {"a", "b"}
        made.until(lambda: not made.ask("a", "status")["at_risk"]["artifacts"], "a is told", GENEROUS_SECONDS)
        logged(made, "c", "relayed:", "was carried to b")
