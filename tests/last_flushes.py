"""Real agents that must go: debts under a limited uplink, SIGTERM, and what the others have then, seen from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from blake3 import blake3

from node.cli.client import Client, request_line
from node.local_fleet import LocalFleet
from tests.agents import process_id, signalled

GOING = "a"  # who must go; the others stay
UPLINK_MBPS = 2.0
HOSTS: Mapping[str, Mapping[str, Any]] = {
    "b": {"provider": "two"},
    "c": {"provider": "three"},
    "d": {"provider": "two"},
    GOING: {"provider": "one", "ephemeral": True, "bandwidth_limit_mbps": UPLINK_MBPS},
}
SIZES = (300, 4_000, 30_000, 120_000, 400_000)


@dataclass(slots=True)
class Farewell:
    """What became of one last flush."""

    seconds: float
    code: int
    debt_bytes: int
    debts: dict[str, str]  # name → plain hash, of what was at risk when the signal was sent
    lost: list[str]  # names whose bytes nobody else has, by looking at their disks
    named: list[str]  # names that the log calls safe nowhere else
    log: list[str] = field(repr=False)

    @property
    def told_truly(self) -> bool:
        """Everything that is lost is named. What is named and is there had arrived, and its receipt had not: then the
        log says that it was on its way."""
        arrived = [name for name in self.named if name not in self.lost]
        explained = [n for n in arrived if any(f" {n} (" in line and "on its way" in line for line in self.log)]
        return set(self.lost) <= set(self.named) and explained == arrived


def contents(seed: int, total_bytes: int) -> dict[str, bytes]:
    """Artifacts of many sizes, the names of which say the run."""
    random, made, left = Random(seed), {}, total_bytes
    while left > 0:
        size = min(left, random.choice(SIZES))
        made[f"run-{seed}/part-{len(made):04d}.npz"] = random.randbytes(size)
        left -= size
    return made


def put_all(fleet: LocalFleet, node: str, artifacts: Mapping[str, bytes]) -> None:
    """Many to one connection, without waiting for one before the next; all are accepted afterwards."""
    with Client(fleet.nodes[node].folder) as client:
        for number, (name, content) in enumerate(artifacts.items()):
            facts = {"kind": "npz", "name": name, "size": len(content)}
            client.sock.sendall(request_line(number, "put", facts) + content)
        for _ in artifacts:
            client.receive()


def end(fleet: LocalFleet, artifacts: Mapping[str, bytes], number: int, budget_seconds: float) -> Farewell:
    """Signal the node that must go, and look what the others have once it has gone."""
    risks = {row["name"]: row["size"] for row in fleet.ask(GOING, "risk")}
    hashes = {f"npz/{name}": blake3(content).hexdigest() for name, content in artifacts.items()}
    node = fleet.nodes[GOING]
    before = len(node.log.read_text(errors="replace").splitlines())
    began = time.monotonic()
    assert process_id(fleet, GOING)
    signalled(fleet, GOING, number)  # type: ignore[arg-type]
    assert node.process is not None
    code = node.process.wait(budget_seconds + 30)
    seconds = time.monotonic() - began
    log = node.log.read_text(errors="replace").splitlines()[before:]
    held = set().union(*(held_by(fleet, name) for name in fleet.nodes if name != GOING))
    debts = {name: plain for name, plain in hashes.items() if name in risks}
    lost = sorted(name for name, plain in hashes.items() if plain not in held)
    named = sorted(name for name in hashes for line in log if f" {name} (" in line and "on this disk alone" in line)
    return Farewell(seconds, code, sum(risks.values()), debts, lost, named, log)


def held_by(fleet: LocalFleet, name: str) -> set[str]:
    """The hashes of all whole files below a node's root, its private versions too; staging does not count."""
    root = fleet.nodes[name].root
    found = set()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if path.is_file() and not relative.startswith(".spore/staging"):
            found |= _hash(path)
    return found


def _hash(path: Path) -> set[str]:
    try:
        return {blake3(path.read_bytes()).hexdigest()}
    except FileNotFoundError:  # it was renamed meanwhile
        return set()


def cpu_is_shared() -> bool:
    """Whether much else runs here: then a limit of bytes says little about seconds."""
    return os.getloadavg()[0] > 4 * (os.cpu_count() or 1)
