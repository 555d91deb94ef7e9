"""Agents that are stopped, frozen, filled and written to meanwhile: nothing is lost, and each tells what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.local_fleet import LocalFleet
from tests.agents import (
    GENEROUS_SECONDS,
    HOSTS,
    durable,
    holds,
    lines,
    logged,
    one_sentence,
    plain,
    running,
    signalled,
    started,
    stopped,
    written,
)

pytestmark = pytest.mark.processes
MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with running(flush_seconds=2, wal_bytes_max="4 MiB") as made:
        yield made


def put(fleet: LocalFleet, node: str, folder: Path, name: str, content: bytes) -> str:
    """Put bytes as a person does; the name it has afterwards."""
    source = folder / name
    source.write_bytes(content)
    done = fleet.spore(node, "put", str(source), "--kind", "checkpoint", "--json")
    return str(json.loads(done.stdout)["name"])


# --- signals ---


def test_sigterm_with_debts_ends_in_time_names_them_and_they_are_delivered_after_the_restart(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    small, large = os.urandom(20_000), os.urandom(3 * MIB)
    with stopped(fleet, "b", "c"):
        put(fleet, "a", tmp_path, "unsafe-small", small)
        put(fleet, "a", tmp_path, "unsafe-large", large)
        assert len(fleet.ask("a", "risk")) >= 2
        assert fleet.terminate("a") == 1
    for name in ("unsafe-small", "unsafe-large"):
        assert "on this disk alone" in logged(fleet, "a", "unsafe: ", f"checkpoint/{name} ")
    assert "at most 2 s" in logged(fleet, "a", "leaving: ")
    assert any("Traceback" in line for line in lines(fleet, "a")) is False
    started(fleet, "a")
    for name, content in (("unsafe-small", small), ("unsafe-large", large)):
        durable(fleet, "c", f"checkpoint/{name}", plain(content))
        for node in HOSTS:
            holds(fleet, node, name, content)


def test_the_flush_budget_is_kept_though_peers_take_nothing(fleet: LocalFleet, tmp_path: Path) -> None:
    """Two seconds of flush, and whatever is said goodbye to: far below the ten that container runtimes give."""
    with stopped(fleet, "b", "c"):
        put(fleet, "a", tmp_path, "late", os.urandom(1_000))
        began = time.monotonic()
        assert fleet.terminate("a") == 1
        spent = time.monotonic() - began
    started(fleet, "a")
    durable(fleet, "a", "checkpoint/late")
    assert spent < 10.0, f"it took {spent:.1f} s"


def test_a_second_sigterm_means_now(fleet: LocalFleet, tmp_path: Path) -> None:
    with stopped(fleet, "b", "c"):
        put(fleet, "a", tmp_path, "hurried", os.urandom(1_000))
        before = len([line for line in lines(fleet, "a") if "leaving: " in line])
        signalled(fleet, "a", signal.SIGTERM)
        fleet.until(
            lambda: len([line for line in lines(fleet, "a") if "leaving: " in line]) > before,
            "a leaves",
            GENEROUS_SECONDS,
        )
        signalled(fleet, "a", signal.SIGTERM)
        assert fleet.wait_end("a") == 1
    assert "without finishing" in logged(fleet, "a", "stopped_now: ")
    started(fleet, "a")
    durable(fleet, "a", "checkpoint/hurried")


def test_sigterm_without_debts_is_exit_0(fleet: LocalFleet, tmp_path: Path) -> None:
    name = put(fleet, "b", tmp_path, "safe", os.urandom(50_000))
    durable(fleet, "b", name)
    assert fleet.spore("b", "flush").returncode == 0
    assert fleet.terminate("b") == 0
    logged(fleet, "b", "left: everything accepted here is durable")
    started(fleet, "b")


def test_a_node_that_was_frozen_is_found_down_and_catches_up(fleet: LocalFleet, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    with stopped(fleet, "c"):
        name = put(fleet, "a", tmp_path, "meanwhile", content)
        holds(fleet, "b", "meanwhile", content)

        def given_up() -> bool:
            return any(row["node"] == "c" and row["state"] == "down" for row in fleet.ask("a", "peers"))

        fleet.until(given_up, "a gives c up", GENEROUS_SECONDS)
        told = json.loads(fleet.spore("a", "events", "--json").stdout)
        assert any(row["event"] == "peer_down" and row["message"].startswith("c is down") for row in told)
        (risk,) = [row for row in fleet.ask("a", "risk") if row["name"] == name]
        assert (risk["copies"], risk["needed"]) == (1, 2)
        assert "only 1 eligible store" in risk["why"]
    durable(fleet, "a", name, plain(content))
    holds(fleet, "c", "meanwhile", content)
    fleet.until(fleet.meshed, "c is connected again", GENEROUS_SECONDS)


# --- files ---


def test_a_watched_file_larger_than_the_whole_log_is_accepted(fleet: LocalFleet) -> None:
    content = os.urandom(9 * MIB)
    written(fleet, "a", "checkpoints/larger-than-the-log", content)
    durable(fleet, "b", "checkpoint/checkpoints/larger-than-the-log", plain(content))


def test_a_log_that_is_full_makes_puts_wait_and_refuses_none(fleet: LocalFleet, tmp_path: Path) -> None:
    sources = []
    for number in range(150):  # more than twice what the log holds, and nobody takes any of it for a while
        source = tmp_path / f"many-{number:03}"
        source.write_bytes(os.urandom(60_000))
        sources.append(str(source))
    with stopped(fleet, "b", "c"):
        putting = subprocess.Popen(
            command(fleet, "a", "put", *sources, "--kind", "checkpoint", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        fleet.until(lambda: fleet.ask("a", "status")["wal"]["entries"] >= 30, "the log fills", GENEROUS_SECONDS)
        logged(fleet, "a", "log_full", "undelivered entries")
        assert fleet.ask("a", "status")["wal"]["waits_seconds"] > 0
    out, err = putting.communicate(timeout=GENEROUS_SECONDS)
    assert (putting.returncode, err) == (0, b"")
    assert len(json.loads(out)) == len(sources)
    assert not [line for line in lines(fleet, "a") if "disk_failed" in line]
    assert fleet.spore("a", "flush").returncode == 0
    logged(fleet, "a", "log_has_room")
    assert fleet.ask("a", "status")["wal"]["waits_seconds"] == 0


def command(fleet: LocalFleet, node: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "node.cli", *arguments, "--dir", str(fleet.nodes[node].folder)]


def test_a_file_that_changes_while_it_is_served_is_a_new_version_and_never_wrong_bytes() -> None:
    """Accepted by reference (nothing is copied) and sent slowly; it is overwritten in place half-way."""
    hosts = {**HOSTS, "a": {"provider": "one", "bandwidth_limit": "1 MB/s"}}
    with running(hosts, copy_max="1 MiB") as fleet:
        first, second = os.urandom(12 * MIB), os.urandom(12 * MIB)
        path = written(fleet, "a", "checkpoints/moving", first)
        name = "checkpoint/checkpoints/moving"
        fleet.until(lambda: fleet.where("a", name), "it is accepted", GENEROUS_SECONDS)

        def under_way() -> bool:
            moving = [moved for node in ("b", "c") for moved in fleet.ask(node, "status")["transfers"]]
            return any(moved["bytes_done"] > 0 for moved in moving)  # what is large is pulled by those who receive it

        fleet.until(under_way, "it is being sent", GENEROUS_SECONDS)
        with path.open("r+b") as file:
            file.write(second)
        durable(fleet, "a", name, plain(second))
        for node in HOSTS:
            holds(fleet, node, "checkpoints/moving", second)
        lost = [line for line in lines(fleet, "a") if " lost: " in line]
        kept = [path for node in ("b", "c") for path in fleet.nodes[node].root.rglob("*") if _is(path, first)]
        assert lost or kept  # either somebody has the first version whole, or its loss was reported
        for node in ("b", "c"):
            for path in fleet.nodes[node].root.rglob("moving*"):
                assert path.read_bytes() in (first, second)


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


# --- disks ---


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[Path]:
    """A file system of its own, in memory."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_with_a_reason_another_takes_over_and_the_full_node_still_sends(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        hosts = {
            **{name: dict(facts) for name, facts in HOSTS.items()},
            "d": {"provider": "four"},
        }
        hosts["c"] |= {
            "root": str(disk),
            "max_disk_usage_percent": 50,
            "min_free_disk_percent": 50,
            "min_free_bytes": "16 MiB",
        }
        folder = tmp_path / "fleet"
        with LocalFleet(folder, hosts, {"auto_sync_interval_seconds": 2, "settle_seconds": 0.3}) as fleet:
            started(fleet, "a", "b", "c")
            own = os.urandom(MIB)
            source = tmp_path / "own"
            source.write_bytes(own)
            fleet.spore("c", "put", str(source), "--kind", "checkpoint", "--wait", "2", "--timeout", "90")
            too_large = os.urandom(40 * MIB)  # above half of the disk
            written(fleet, "a", "checkpoints/too-large", too_large)
            name = "checkpoint/checkpoints/too-large"

            def why() -> str:
                found = [row["why"] for row in fleet.ask("a", "risk") if row["name"] == name]
                return found[0] if found and found[0].startswith("c: ") else ""

            assert "its cap is 50%" in fleet.until(why, "a says why c does not take it", GENEROUS_SECONDS)
            assert fleet.where("a", name)["copies"] == 2  # type: ignore[index]
            started(fleet, "d")
            facts = durable(fleet, "a", name, plain(too_large))
            assert {holder["node"] for holder in facts["holders"]} == {"a", "b", "d"}
            _fill(fleet, disk, tmp_path)
            target = tmp_path / "fetched"
            fleet.spore("a", "get", "checkpoint/own", "-o", str(target))
            assert target.read_bytes() == own
            late = os.urandom(MIB)
            (disk / "filler").unlink()
            source.write_bytes(late)
            fleet.until(
                lambda: fleet.spore("c", "put", str(source), "--kind", "checkpoint", check=False).returncode == 0,
                "c accepts again",
                GENEROUS_SECONDS,
            )
            durable(fleet, "c", "checkpoint/own", plain(late))


def _fill(fleet: LocalFleet, disk: Path, folder: Path) -> None:
    """Somebody else fills the disk: what is put there is refused in one sentence, and the rest goes on."""
    free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free_bytes - 4 * MIB)))
    source = folder / "refused"
    source.write_bytes(os.urandom(2 * MIB))

    def refused() -> str:
        done = fleet.spore("c", "put", str(source), "--kind", "checkpoint", check=False)
        return one_sentence(done.stderr) if done.returncode == 1 else ""

    assert "min_free_bytes" in fleet.until(refused, "c refuses", GENEROUS_SECONDS)
    fleet.until(lambda: not fleet.ask("c", "status")["disk"]["accepting"], "c accepts nothing", GENEROUS_SECONDS)
    source.write_bytes(b"tiny")  # small ones need the log alone: the core refuses them, once it was told of the disk
    assert "min_free_bytes" in fleet.until(refused, "c refuses small ones too", GENEROUS_SECONDS)
