"""Ephemeral nodes that are killed under load and never come back: what they had promised, and what the others have.

Each is a new machine with a name of its own. Its users put 1 MiB at a time: some puts wait for two copies, for the
others it is measured how long they take to the first copy. Then SIGKILL, and the disks of the others are looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

from blake3 import blake3

from node.cli.client import Client, request_line
from node.cli.failures import CommandFailed
from node.config import HOSTS_FILE_NAME
from node.identity import Identity
from node.local_fleet import LocalFleet, Node, free_ports
from tests.agents import started
from tests.last_flushes import held_by

SIZE_BYTES = 1 << 20


@dataclass(slots=True)
class Put:
    """One artifact of a doomed node: when it was accepted, and when so many others had it."""

    plain: str
    accepted_at: float = 0.0
    first_copy_at: float = 0.0
    two_copies: bool = False


@dataclass(slots=True)
class Life:
    """What one node did until it was killed."""

    puts: list[Put] = field(default_factory=list)
    killed_at: float = 0.0
    lost: list[Put] = field(default_factory=list)

    @property
    def delays(self) -> list[float]:
        return [p.first_copy_at - p.accepted_at for p in self.puts if p.first_copy_at]


def newcomer(fleet: LocalFleet, name: str) -> None:
    """A machine that the hosts file does not list, with an ephemeral certificate, running."""
    issuer_node = next(iter(fleet.nodes))
    issuer = Identity.load(fleet.nodes[issuer_node].folder, now=time.time(), cluster="demo")
    (port,) = free_ports(1)
    node = fleet.nodes[name] = Node(name, fleet.folder / name, port)
    node.folder.mkdir(parents=True)
    fleet._admit(issuer, name, True, time.time())
    hosts_file = (fleet.nodes[issuer_node].folder / HOSTS_FILE_NAME).read_text()
    (node.folder / HOSTS_FILE_NAME).write_text(hosts_file)
    fleet.env = {"SPORE_LISTEN": f"127.0.0.1:{port}", "SPORE_ADVERTISE": f"127.0.0.1:{port}"}
    started(fleet, name)


def lived(fleet: LocalFleet, name: str, random: Random, seconds: float) -> Life:
    """A life under load, its end, and what is left of it."""
    newcomer(fleet, name)
    life, stop = Life(), threading.Event()
    users = [
        threading.Thread(target=_use, args=(fleet, name, life, stop, Random(random.random()), wait), daemon=True)
        for wait in (0, 0, 2)
    ]
    for user in users:
        user.start()
    time.sleep(seconds)
    life.killed_at = time.monotonic()
    fleet.kill(name)
    stop.set()
    for user in users:
        user.join(30)
    with _forgotten(fleet, name):
        held = set().union(*(held_by(fleet, other) for other in fleet.nodes if fleet.nodes[other].running))
    life.lost = [put for put in life.puts if put.accepted_at and put.plain not in held]
    return life


@contextmanager
def _forgotten(fleet: LocalFleet, name: str) -> Iterator[None]:
    """The node is gone for good."""
    node = fleet.nodes.pop(name)
    yield
    assert not node.running


def _use(fleet: LocalFleet, name: str, life: Life, stop: threading.Event, random: Random, wait_copies: int) -> None:
    """Put, one after the other, until the node is gone."""
    number = 0
    with suppress(CommandFailed, OSError), Client(fleet.nodes[name].folder) as client:
        while not stop.is_set():
            content = os.urandom(8) + random.randbytes(SIZE_BYTES - 8)
            put = Put(blake3(content).hexdigest())
            life.puts.append(put)
            path = f"{name}/{threading.get_ident()}-{number}"
            number += 1
            ask = {"kind": "npz", "name": path, "size": len(content), "wait_copies": wait_copies}
            client.sock.sendall(request_line(0, "put", ask) + content)
            client.receive()
            put.accepted_at = time.monotonic()
            put.two_copies = wait_copies == 2
            if not wait_copies:
                client.ask("wait", name=f"npz/{path}", copies=1)
                put.first_copy_at = time.monotonic()
