"""Real agents that share one folder, as members of an NFS group do: whoever receives, the newest version is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, plain, running, started, written

pytestmark = pytest.mark.processes
PAIR = ("b", "c")  # the first in name order receives for both while it is there


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def fleet(shared: Path) -> Iterator[LocalFleet]:
    """One of the pair is not there yet."""
    pair = {name: {"provider": "pair", "root": str(shared)} for name in PAIR}
    hosts = {**HOSTS, **pair, "d": {"provider": "four"}}
    with running(hosts, only=("a", "c", "d"), nfs_sharing_groups=[list(PAIR)]) as fleet:
        yield fleet


def shows(fleet: LocalFleet, path: Path, content: bytes) -> None:
    fleet.until(lambda: path.is_file() and path.read_bytes() == content, f"{path.name} is shown", GENEROUS_SECONDS)


def test_what_one_member_published_makes_room_for_what_another_receives(fleet: LocalFleet, shared: Path) -> None:
    first, second = os.urandom(90_000), os.urandom(90_001)
    written(fleet, "a", "checkpoints/step", first)
    shows(fleet, shared / "checkpoints/step", first)
    started(fleet, "b")
    written(fleet, "a", "checkpoints/step", second)
    shows(fleet, shared / "checkpoints/step", second)
    durable(fleet, "a", "checkpoint/checkpoints/step", plain(second))


def test_what_one_member_accepted_makes_room_for_what_another_receives(fleet: LocalFleet, shared: Path) -> None:
    first, second = os.urandom(90_000), os.urandom(90_001)
    (shared / "checkpoints").mkdir(exist_ok=True)
    (shared / "checkpoints/own").write_bytes(first)
    durable(fleet, "c", "checkpoint/checkpoints/own", plain(first))
    started(fleet, "b")
    written(fleet, "a", "checkpoints/own", second)
    shows(fleet, shared / "checkpoints/own", second)
    durable(fleet, "a", "checkpoint/checkpoints/own", plain(second))
