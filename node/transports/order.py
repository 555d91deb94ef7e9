"""What every transport gets and gives: an order for one artifact, the agent's tools, and the shape of a transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.bulk_client import Connections, Job
from node.bulk_store import BulkDepot
from node.progress import Meter
from node.throttle import PRIORITY_HEADER
from protocol.effects import Fetch
from protocol.fleet import Fleet
from protocol.values import Digest, NodeId, Record


@dataclass(frozen=True, slots=True)
class Order:
    """One artifact that is to come, and the hold that the outside has on its coming."""

    fetch: Fetch
    meter: Meter
    job: Job

    @property
    def record(self) -> Record:
        return self.fetch.record

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request for bytes."""
        return {PRIORITY_HEADER: self.fetch.priority}


@dataclass(frozen=True, slots=True)
class Kit:
    """What transports use of the agent; the callables are safe from any thread."""

    node: NodeId
    depot: BulkDepot
    connections: Connections
    workshop: Path  # a folder of our own on the file system of staging, for what programs write
    reserve: Callable[[Digest, int], str]  # room for what a program writes, under a key of its own; "" or why not
    release: Callable[[Digest], None]
    identity: Path  # the folder of ca.pem, node.pem, node.key
    fleet: Callable[[], Fleet]
    address_of: Callable[[NodeId], str | None]
    on_wrong_bytes: Callable[[str, Digest, str], None]


class Transport(Protocol):
    """One way. `fetch` blocks in a thread; it may raise StreamBroken when the order was cancelled."""

    def missing(self) -> str:
        """Why it cannot be used on this machine; "" when it can."""
        ...

    def fetch(self, order: Order, nodes: tuple[NodeId, ...]) -> str:
        """Bring what is missing into staging; "" when all is there, else the reason in a sentence."""
        ...
