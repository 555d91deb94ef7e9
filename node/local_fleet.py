"""A fleet of real agents on this machine: what `spore demo`, the process tests and the benchmarks run.

Each agent is a process of its own with its own folder, port and certificate, on loopback. Processes are killed by
their id and never outlive the fleet.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cli.client import Client
from node.cli.failures import CommandFailed
from node.config import HOSTS_FILE_NAME, parse_fleet
from node.identity import Identity, begin_join, init_identity, install_identity

START_SECONDS_MAX = 60.0  # importing takes a second; six agents at once on two busy cores take their time
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
CLUSTER = "demo"
FOREIGN = ("SPORE_", "RUNPOD_", "VAST_", "SLURM_", "KUBERNETES_")  # what this machine is says nothing of the fleet's

# Explicit limits: the host's own disk, whatever its state, must not decide what a demo or a test shows.
ROUTING: Mapping[str, Any] = {
    "max_disk_usage_percent": 99,
    "min_free_disk_percent": 1,
    "min_free_bytes": "64 MiB",
    "bandwidth_limit": "none",
}


class FleetTrouble(Exception):
    """An agent did not start, or did not do something in time; the message says which, and what its log ends with."""


@dataclass(slots=True)
class Node:
    """One agent: its folder, and its process while it runs."""

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()  # before its command: to run it on a machine of its own

    @property
    def root(self) -> Path:
        return self.folder / "files"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass(slots=True)
class LocalFleet:
    """Prepares folders, starts and kills agents, asks them things. Use it in a `with` block."""

    folder: Path
    hosts: Mapping[str, Mapping[str, Any]]
    routing: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)  # of the hosts file, beside hosts and sync_routing
    env: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def __enter__(self) -> LocalFleet:
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- set-up ---

    def prepare(self) -> None:
        """Make the hosts file, the cluster's authority and a certificate for each node."""
        for name, port in zip(self.hosts, free_ports(len(self.hosts)), strict=True):
            self.nodes[name] = Node(name, self.folder / name, port)
            self.nodes[name].folder.mkdir(parents=True)
        text = self.hosts_file()
        first, *others = self.nodes
        now = time.time()
        issuer = init_identity(self.nodes[first].folder, CLUSTER, first, now=now)
        fleet = parse_fleet(text)
        for name in others:
            self._admit(issuer, name, fleet.host(name).ephemeral, now)
        for node in self.nodes.values():
            (node.folder / HOSTS_FILE_NAME).write_text(text)

    def hosts_file(self, **changes: Any) -> str:
        """The hosts file of this fleet; `changes` replace settings of `sync_routing`."""
        hosts = {}
        for index, (name, facts) in enumerate(self.hosts.items()):
            node = self.nodes[name]
            hosts[name] = {"address": f"127.0.0.1:{node.port}", "issuer": index == 0, **facts}
            if facts.get("address", "") is None:
                hosts[name] = {key: value for key, value in hosts[name].items() if key != "address"}
                hosts[name]["listen"] = f"127.0.0.1:{node.port}"
        routing = {**ROUTING, **self.routing, **changes}
        content = {"cluster": CLUSTER, "sync_routing": routing, **self.sections, "hosts": hosts}
        return json.dumps(content, indent=2)  # every JSON text is YAML

    def _admit(self, issuer: Identity, name: str, ephemeral: bool, now: float) -> None:
        folder = self.nodes[name].folder
        request = begin_join(folder, name)
        certificate = issuer.issue(request, name, ephemeral=ephemeral, now=now)
        install_identity(folder, issuer.ca_pem, certificate, node=name, pin=issuer.ca_pin, now=now)

    # --- processes ---

    def start(self, *names: str) -> None:
        """Start these agents (none named: all), and wait until each answers on its socket."""
        chosen = names or tuple(self.nodes)
        for name in chosen:
            self._launch(self.nodes[name])
        for name in chosen:
            self.until(lambda name=name: self._answers(name), f"{name} answers", START_SECONDS_MAX)  # type: ignore[misc]

    def _launch(self, node: Node) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                [*node.prefix, sys.executable, "-m", "node.cli", "agent", str(node.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**env, **self.env},
                start_new_session=True,
                cwd=Path(__file__).parents[1],
            )

    def _answers(self, name: str) -> bool:
        node = self.nodes[name]
        if not node.running:
            raise FleetTrouble(f"{name} ended at its start: {self.last_lines(name)}")
        with suppress(CommandFailed, OSError):
            return bool(self.ask(name, "status")["node"] == name)
        return False

    def kill(self, name: str) -> None:
        """SIGKILL: no warning, no flush."""
        self._signal(name, signal.SIGKILL)
        self.wait_end(name)

    def terminate(self, name: str) -> int:
        """SIGTERM: the final flush, then the exit code of the agent."""
        self._signal(name, signal.SIGTERM)
        return self.wait_end(name)

    def _signal(self, name: str, number: int) -> None:
        process = self.nodes[name].process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def wait_end(self, name: str) -> int:
        process = self.nodes[name].process
        return process.wait(STOP_SECONDS_MAX) if process is not None else 0

    def stop(self) -> None:
        """End every agent that still runs."""
        running = [node.process for node in self.nodes.values() if node.process is not None and node.running]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- asking ---

    def ask(self, node: str, command: str, /, **arguments: Any) -> Any:
        with Client(self.nodes[node].folder) as client:
            return client.ask(command, **arguments)

    def rows(self, node: str, command: str, /, **arguments: Any) -> list[Any]:
        with Client(self.nodes[node].folder) as client:
            return list(client.rows(command, **arguments))

    def spore(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against one agent."""
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", *arguments, "--dir", str(self.nodes[name].folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=Path(__file__).parents[1],
        )
        if check and done.returncode:
            raise FleetTrouble(f"spore {' '.join(arguments)} on {name} ended with {done.returncode}: {done.stderr}")
        return done

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        """Wait for a condition; its value. Raises FleetTrouble when it does not come."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise FleetTrouble(f"{what}: not within {seconds:g} s")
            time.sleep(POLL_SECONDS)

    def meshed(self) -> bool:
        """Whether every running agent is connected to every other."""
        running = [name for name, node in self.nodes.items() if node.running]
        return all(self.ask(name, "status")["members"]["alive"] >= len(running) for name in running)

    def where(self, asked: str, name: str) -> dict[str, Any] | None:
        """Where an artifact is, as one agent sees it; None when it does not know it (yet)."""
        try:
            found: dict[str, Any] = self.ask(asked, "where", name=name)
        except CommandFailed:
            return None
        return found

    def last_lines(self, name: str, count: int = 5) -> str:
        lines = self.nodes[name].log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-count:])


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with _bound(count) as sockets:
        return [int(sock.getsockname()[1]) for sock in sockets]


@contextmanager
def _bound(count: int) -> Iterator[list[socket.socket]]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        yield sockets
    finally:
        for sock in sockets:
            sock.close()
