"""Fleets of real agents for the tests that need them, and what such tests look at: files, hashes, logs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from node.local_fleet import LocalFleet

GENEROUS_SECONDS = 90.0  # only a fault reaches it: two cores may be shared with much else
HOSTS: Mapping[str, Mapping[str, Any]] = {
    "a": {"provider": "one"},
    "b": {"provider": "two"},
    "c": {"provider": "three"},
}
# Shortened, so that a rescan or a digest is not what a test waits for.
ROUTING: Mapping[str, Any] = {
    "auto_sync_interval_seconds": 2,
    "gossip_interval_seconds": 2,
    "settle_seconds": 0.3,
    "snapshot_seconds_min": 1,
    "flush_seconds": 4,
}


@contextmanager
def running(
    hosts: Mapping[str, Mapping[str, Any]] = HOSTS,
    sections: Mapping[str, Any] | None = None,
    only: tuple[str, ...] = (),
    **routing: Any,
) -> Iterator[LocalFleet]:
    """A fleet whose agents (or `only` these) run and are connected, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="spore-agents-"))
    try:
        with LocalFleet(folder, hosts, {**ROUTING, **routing}, sections or {}) as fleet:
            started(fleet, *only)
            yield fleet
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def started(fleet: LocalFleet, *names: str) -> None:
    """Start these agents (none named: all); all that run are connected afterwards."""
    fleet.start(*names)
    fleet.until(fleet.meshed, "the agents are connected", GENEROUS_SECONDS)


def durable(fleet: LocalFleet, asked: str, name: str, plain: str = "") -> dict[str, Any]:
    """Wait until one agent says that an artifact (with these bytes) is durable; what it says of it."""

    def found() -> dict[str, Any] | None:
        facts = fleet.where(asked, name)
        return facts if facts and facts["durable"] and plain in ("", facts["blake3"]) else None

    facts: dict[str, Any] = fleet.until(found, f"{name} is durable, says {asked}", GENEROUS_SECONDS)
    return facts


def written(fleet: LocalFleet, node: str, path: str, content: bytes) -> Path:
    """A file in a watched folder, as training code writes it: under a temporary name, then renamed."""
    target = fleet.nodes[node].root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    draft.write_bytes(content)
    draft.rename(target)
    return target


def holds(fleet: LocalFleet, node: str, path: str, content: bytes) -> None:
    """Wait until the file at this path below a node's root has this content."""
    target = fleet.nodes[node].root / path
    fleet.until(
        lambda: target.is_file() and target.read_bytes() == content,
        f"{node} has {path} as it was put",
        GENEROUS_SECONDS,
    )


def plain(content: bytes) -> str:
    return blake3(content).hexdigest()


def logged(fleet: LocalFleet, node: str, *words: str) -> str:
    """Wait until a line of an agent's log has all these words; that line."""

    def line() -> str:
        return next((line for line in lines(fleet, node) if all(word in line for word in words)), "")

    found: str = fleet.until(line, f"{node} logs {' … '.join(words)}", GENEROUS_SECONDS)
    return found


def lines(fleet: LocalFleet, node: str) -> list[str]:
    return fleet.nodes[node].log.read_text(errors="replace").splitlines()


def process_id(fleet: LocalFleet, node: str) -> int:
    process = fleet.nodes[node].process
    assert process is not None
    return process.pid


def signalled(fleet: LocalFleet, node: str, number: signal.Signals) -> None:
    process = fleet.nodes[node].process
    assert process is not None
    process.send_signal(number)


@contextmanager
def stopped(fleet: LocalFleet, *nodes: str) -> Iterator[None]:
    """These agents are frozen, and go on afterwards."""
    for node in nodes:
        signalled(fleet, node, signal.SIGSTOP)
    try:
        yield
    finally:
        for node in nodes:
            signalled(fleet, node, signal.SIGCONT)


def spore(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )


def one_sentence(text: str) -> str:
    """What a command said on stderr: one line, no traceback."""
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    return line


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
