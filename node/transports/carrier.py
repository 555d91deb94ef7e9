"""Trying the ways to an artifact in order, and telling why each was chosen and how it ended.

What one way brought stays in staging, so the next one fetches the rest. The newest choices are kept for
`spore where NAME --transfers`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from node.bulk_client import Job
from node.bulk_stream import sentence_of
from node.progress import Meter
from node.transports import ssh
from node.transports.choice import P2P_HTTP, Situation, Source, Way, ways
from node.transports.order import Kit, Order, Transport
from node.transports.table import TABLE
from protocol.chunks import chunk_count, chunk_length
from protocol.effects import Fetch, Report
from protocol.values import Digest, NodeId, Record
from storage.refusals import StoreError

CHOICES_MAX = 1_000  # remembered, newest last
UNDER_WAY, ARRIVED = "under way", "arrived"


@dataclass(frozen=True, slots=True)
class Choice:
    """One way that was tried for one artifact: shown by `where --transfers`."""

    digest: Digest
    transfer: int
    transport: str
    nodes: tuple[NodeId, ...]
    why: str
    at_seconds: float
    outcome: str = UNDER_WAY  # or "arrived", or why it failed


class Carrier:
    """Fetches by whatever way works. `relays` names nodes with a session now; `refused` says why a port is avoided."""

    def __init__(
        self,
        kit: Kit,
        relays: Callable[[], tuple[NodeId, ...]],
        refused: Callable[[NodeId], str],
        report: Callable[[Report], None],
    ) -> None:
        self._kit = kit
        self._relays = relays
        self._refused = refused
        self._report = report
        self.transports: dict[str, Transport] = {name: make(kit) for name, make in TABLE.items()}
        self._lock = threading.Lock()
        self._choices: deque[Choice] = deque(maxlen=CHOICES_MAX)

    def missing(self) -> dict[str, str]:
        """The transports that cannot be used on this machine, each with the reason: for `status`."""
        reasons = {name: transport.missing() for name, transport in self.transports.items()}
        return {name: why for name, why in reasons.items() if why}

    def choices(self, digest: Digest) -> list[Choice]:
        """What was tried for an artifact lately, oldest first."""
        with self._lock:
            return [choice for choice in self._choices if choice.digest == digest]

    def pulled(self, record: Record, transfer: int, nodes: tuple[NodeId, ...], whole: bool) -> None:
        """A swarm has ended: its pieces came over our own protocol, from all that had some."""
        why = "large: pulled piece by piece from all that are reached"
        outcome = ARRIVED if whole else "it did not come whole; what came is kept"
        with self._lock:
            self._choices.append(Choice(record.digest, transfer, P2P_HTTP, nodes, why, time.time(), outcome))

    def fetch(self, effect: Fetch, meter: Meter, job: Job) -> str:
        """Bring it into staging; "" or why it did not come. Raises StreamBroken when the order was cancelled."""
        reasons: list[str] = []
        for way in ways(self._situation(effect)):
            why = self._try(way, Order(effect, meter, job), bool(reasons))
            job.go_on()
            if not why:
                return ""
            reasons.append(why)
        return sentence_of("; ".join(dict.fromkeys(reasons)) or "no way leads to a node that holds it")

    def _try(self, way: Way, order: Order, again: bool) -> str:
        choice = Choice(order.record.digest, order.fetch.transfer, way.transport, way.nodes, way.why, time.time())
        with self._lock:
            self._choices.append(choice)
        told = f"{order.record.name} from {', '.join(way.nodes)} by {way.transport}: {way.why}"
        self._report(Report("info" if again or way.transport != P2P_HTTP else "debug", "transport", told))
        why = "it was broken off"
        try:
            why = self.transports[way.transport].fetch(order, way.nodes)
            return why
        finally:
            self._end(choice, why)

    def _end(self, choice: Choice, why: str) -> None:
        with self._lock:
            if choice in self._choices:
                self._choices[self._choices.index(choice)] = replace(choice, outcome=why or ARRIVED)
        if why:
            told = f"{', '.join(choice.nodes)} by {choice.transport}: {why}"
            self._report(Report("info", "transport_failed", sentence_of(told)))

    def _situation(self, effect: Fetch) -> Situation:
        fleet = self._kit.fleet()
        own = fleet.host(self._kit.node).provider
        sources = tuple(
            Source(
                node,
                self._port(node),
                ssh.why_not(fleet.host(node), self._kit.identity.parent),
                near=own is not None and fleet.host(node).provider == own,
            )
            for node in effect.sources
        )
        relays = () if effect.direct else self._relays()
        return Situation(self._wanted_bytes(effect), sources, relays, self.missing())

    def _port(self, node: NodeId) -> str:
        if not self._kit.address_of(node):
            return f"no address is known for {node}"
        return self._refused(node)

    def _wanted_bytes(self, effect: Fetch) -> int:
        record = effect.record
        if chunk_count(record.size) <= 1:
            return record.size
        try:
            partial = self._kit.depot.partial(record)
        except (StoreError, OSError):
            return record.size
        try:
            return sum(
                chunk_length(record.size, index)
                for stripe in partial.missing()
                for index in range(stripe.first, stripe.first + stripe.count)
            )
        finally:
            partial.close()
