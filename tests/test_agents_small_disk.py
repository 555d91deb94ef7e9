"""A real agent on a small file system of its own: filled to the cap by us, over it by others, and freed again."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, running, written

pytestmark = pytest.mark.processes
MIB = 1 << 20
DISK_MIB, CAP_PERCENT, FREE_MIB = 128, 70, 4


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """An ext4 of its own, on a loop device; its name is its own, and it goes with the test."""
    if os.geteuid():
        pytest.skip("only root mounts file systems")
    image, at = folder / "disk.img", folder / f"disk-{os.getpid()}-{secrets.token_hex(3)}"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    for command in (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(at)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()[:200]}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False, timeout=60)


def disk(fleet: LocalFleet) -> dict[str, Any]:
    facts: dict[str, Any] = fleet.ask("d", "status")["disk"]
    return facts


def held(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "models").glob("*.pth")) if (root / "models").is_dir() else []


def used_percent(root: Path) -> float:
    status = os.statvfs(root)
    used = status.f_blocks - status.f_bfree
    return 100 * used / (used + status.f_bavail)


def test_the_cap_holds_an_emergency_frees_what_others_hold_and_room_is_used_again(tmp_path: Path) -> None:
    limits = {
        "max_disk_usage_percent": CAP_PERCENT,
        "min_free_disk_percent": 100 - CAP_PERCENT,
        "min_free_bytes": f"{FREE_MIB} MiB",
    }
    with small_disk(tmp_path) as root:
        hosts = {**HOSTS, "d": {"provider": "four", "root": str(root), **limits}}
        with running(hosts) as fleet:
            # by ourselves: up to the cap, and no byte over it
            for number in range(14):
                written(fleet, "a", f"models/{number:02}.pth", os.urandom(8 * MIB))
                durable(fleet, "a", f"model/models/{number:02}.pth")
            fleet.until(lambda: len(held(root)) >= 8, "d holds what it may", GENEROUS_SECONDS)
            assert used_percent(root) <= CAP_PERCENT
            assert len(held(root)) < 14
            before = held(root)
            # by others: what enough nodes confirm makes room, and nothing else
            own = root / "training/own.npz"
            own.parent.mkdir(exist_ok=True)
            own.write_bytes(os.urandom(100_000))
            durable(fleet, "d", "npz/training/own.npz")
            filler = root / "somebody's"
            free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
            filler.write_bytes(bytes(free - 2 * MIB))
            fleet.until(lambda: disk(fleet)["excess_bytes"] > 0 or len(held(root)) < len(before), "an emergency", 60)
            fleet.until(lambda: disk(fleet)["excess_bytes"] == 0, "it is over", GENEROUS_SECONDS)
            left = held(root)
            assert set(left) < set(before)
            assert own.exists()
            assert not disk(fleet)["accepting"]
            for name in set(before) - set(left):  # what went is durable without it
                assert durable(fleet, "a", f"model/models/{name}")["copies"] >= 3
            # freed again: it takes what it should hold
            filler.unlink()
            fleet.until(lambda: disk(fleet)["accepting"], "it accepts again", GENEROUS_SECONDS)
            fleet.until(lambda: len(held(root)) > len(left), "it holds more again", GENEROUS_SECONDS)
            assert used_percent(root) <= CAP_PERCENT
