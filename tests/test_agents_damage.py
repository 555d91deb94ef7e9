"""Disks that rot and manifests that are lost: what `spore verify` finds, mends and rebuilds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, holds, plain, running, started, written

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with running() as made:
        yield made


def flip(path: Path, offset: int) -> None:
    """Change one byte as a bad disk does: size and mtime stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))
        file.flush()
        os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))  # before anybody hears of the close
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_a_replica_that_rotted_is_set_aside_reported_and_fetched_again(fleet: LocalFleet) -> None:
    content = os.urandom(3 << 20)
    written(fleet, "a", "models/rots.pth", content)
    durable(fleet, "a", "model/models/rots.pth")
    replica = fleet.nodes["b"].root / "models/rots.pth"
    holds(fleet, "b", "models/rots.pth", content)
    flip(replica, 2_500_000)
    done = fleet.spore("b", "verify", "--json", check=False)
    assert done.returncode == 1
    assert "fetched again" in done.stderr
    (damage,) = json.loads(done.stdout)["damaged"]
    assert damage["path"] == "models/rots.pth"
    holds(fleet, "b", "models/rots.pth", content)
    durable(fleet, "a", "model/models/rots.pth", plain(content))
    assert fleet.spore("b", "verify").returncode == 0
    for node in ("a", "c"):
        holds(fleet, node, "models/rots.pth", content)


def test_the_original_that_rotted_is_mended_from_a_replica(fleet: LocalFleet) -> None:
    content = os.urandom(200_000)
    original = written(fleet, "c", "checkpoints/rots", content)
    durable(fleet, "c", "checkpoint/checkpoints/rots")
    for node in HOSTS:
        holds(fleet, node, "checkpoints/rots", content)
    flip(original, 100_000)
    assert fleet.spore("c", "verify", check=False).returncode == 1
    holds(fleet, "c", "checkpoints/rots", content)
    for node in HOSTS:
        facts = durable(fleet, node, "checkpoint/checkpoints/rots", plain(content))
        assert facts["versions"] == 1  # damage is no new version


def test_a_manifest_is_not_rebuilt_under_a_running_agent(fleet: LocalFleet) -> None:
    done = fleet.spore("b", "verify", "--rebuild", check=False)
    assert done.returncode == 2
    assert "is running; stop it" in done.stderr


def test_a_rebuilt_manifest_comes_back_from_files_and_peers_and_old_never_beats_new(fleet: LocalFleet) -> None:
    old, new, own = os.urandom(90_000), os.urandom(90_000), os.urandom(150_000)
    written(fleet, "a", "checkpoints/step", os.urandom(80_000))
    durable(fleet, "a", "checkpoint/checkpoints/step")
    written(fleet, "a", "checkpoints/step", new)
    durable(fleet, "a", "checkpoint/checkpoints/step", plain(new))
    written(fleet, "b", "checkpoints/own", own)
    durable(fleet, "b", "checkpoint/checkpoints/own", plain(own))
    holds(fleet, "b", "checkpoints/step", new)
    before = _listed(fleet, "a")
    assert fleet.terminate("b") == 0
    # Somebody restores an old backup over the newest version, and the manifest is lost with it.
    (fleet.nodes["b"].root / "checkpoints/step").write_bytes(old)
    done = fleet.spore("b", "verify", "--rebuild", "--json")
    assert json.loads(done.stdout)["aside"]
    started(fleet, "b")

    def back() -> bool:
        return _listed(fleet, "b") == before

    fleet.until(back, "the manifest of b came back", GENEROUS_SECONDS)
    holds(fleet, "b", "checkpoints/step", new)
    holds(fleet, "b", "checkpoints/own", own)
    for node in HOSTS:
        assert durable(fleet, node, "checkpoint/checkpoints/step")["blake3"] == plain(new)
        holds(fleet, node, "checkpoints/step", new)
    # The old file is not thrown away: it is a version below the current one.
    found = durable(fleet, "a", "checkpoint/checkpoints/step")
    assert found["versions"] == 3
    assert any(
        path.is_file() and path.read_bytes() == old for path in (fleet.nodes["b"].root / ".spore/versions").iterdir()
    )


def _listed(fleet: LocalFleet, node: str) -> dict[str, str]:
    return {row["name"]: row["digest"] for row in fleet.rows(node, "ls")}
