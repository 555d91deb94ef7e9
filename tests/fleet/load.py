"""A client that goes on working while the fleet is upgraded, and the check of what it was promised."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fleet.hosts import ssh_options

if TYPE_CHECKING:
    from tests.fleet.fleet import Fleet

# Runs on a host. Each artifact is tried again until it is durable on two others: the agent of this host restarts too.
CLIENT = r"""
import hashlib, os, subprocess, sys, time
number = 0
while not os.path.exists("/run/load-stop"):
    began, number = time.monotonic(), number + 1
    content = hashlib.sha256(str(number).encode()).hexdigest().encode() * (1 + number % 7 * 500)
    while True:
        done = subprocess.run(
            ["spore", "put", "-", "--kind=checkpoint", f"--name=load/{number:05}", "--wait=2", "--timeout=60"],
            input=content, capture_output=True)
        if done.returncode == 0:
            break
        print(f"again {number} {done.stderr.decode().strip()}", flush=True)
        time.sleep(0.5)
    print(f"safe {number:05} {hashlib.sha256(content).hexdigest()} {time.monotonic() - began:.2f}", flush=True)
    time.sleep(max(0.0, 1 - (time.monotonic() - began)))
"""


class Load:
    """The client on one host, from `start` to `stop`."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.log = fleet.work / f"load-{name}.log"

    def start(self) -> None:
        host = self.fleet.host(self.name)
        (host.root / "srv/load.py").write_text(CLIENT)
        command = ["ssh", "-i", str(self.fleet.login), *ssh_options(self.fleet.work), f"root@{host.address}"]
        self.process = subprocess.Popen(
            [*command, "rm -f /run/load-stop; python3 /srv/load.py"],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.fleet.until("the client's first artifact is safe", self.safe)

    def safe(self) -> dict[str, str]:
        """By number, the SHA-256 of every artifact that the client was told is durable."""
        rows = [line.split() for line in self.log.read_text().splitlines() if line.startswith("safe ")]
        return {number: digest for _, number, digest, _ in rows}

    def stop(self) -> dict[str, str]:
        self.fleet.on(self.name, "touch /run/load-stop")
        self.process.wait(timeout=120)
        return self.safe()

    def waits(self) -> list[float]:
        return sorted(float(line.split()[3]) for line in self.log.read_text().splitlines() if line.startswith("safe "))


def check_copies(fleet: Fleet, promised: dict[str, str], copies: int) -> None:
    """Every artifact lies, whole and identical, in the folders of enough hosts: looked at from outside the agents."""
    for number, digest in promised.items():
        holders = [host.name for host in fleet.hosts if _sha256(fleet.files(host.name) / "load" / number) == digest]
        assert len(holders) >= copies, f"load/{number} lies on {holders} alone"


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
