"""Simulated bulk streams: uploads and fetches, their pace, and how they break.

Bytes are symbolic, so a stream is a list of steps: so many chunks of that artifact after so many milliseconds. Every
step looks again whether both ends live and reach each other; what arrived before a break stays in staging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from protocol.chunks import CHUNK_BYTES, chunk_count
from protocol.effects import Abandon, Fetch, Pull, Upload
from protocol.events import Arrived, Pulled, Uploaded
from protocol.values import NodeId, Parcel, Record, Stripe
from simulations.chance import between
from simulations.driver import SimNode
from simulations.network import Network
from simulations.uplinks import Uplinks

BYTES_PER_MS = 125_000  # 1 Gbit/s: a host without a limit is bound by its link
BATCH_BYTES = 8 << 20  # small artifacts written at once, as in the agent
STALL_MS = 30_000  # a stream that does not move is cut by the watchdog after this
STEPS_MAX = 4  # of one large artifact: enough for a break in the middle


@dataclass(frozen=True, slots=True)
class Step:
    """Once so many more bytes have come, these chunks of these artifacts stand in staging."""

    size_bytes: int
    parts: tuple[tuple[Record, Stripe], ...]


@dataclass(slots=True)
class Weather:
    """How often streams go wrong."""

    breaks: float = 0.0  # at each step
    stalls: float = 0.0
    lies: float = 0.0  # the sender's bytes are not those of the digest


@dataclass(slots=True)
class Run:
    """One stream between two lives."""

    transfer: int
    sender: SimNode
    sender_life: int
    receiver: SimNode
    receiver_life: int
    steps: list[Step]
    complete: list[Record] = field(default_factory=list)
    failed: list[tuple[Record, str]] = field(default_factory=list)

    def lives(self) -> tuple[bool, bool]:
        return self.sender.lives(self.sender_life), self.receiver.lives(self.receiver_life)


class Streams:
    """Performs `Upload` and `Fetch` for all nodes."""

    def __init__(self, network: Network, random: Random, nodes: dict[NodeId, SimNode]) -> None:
        self.network = network
        self.random = random
        self.nodes = nodes
        self.weather = Weather()
        self.payload_bytes = 0
        self.uplinks: Uplinks | None = None  # where budgets and priorities are rehearsed; None: shared evenly
        self._sending: dict[NodeId, int] = {}  # steps that each node is sending now
        self._rates: dict[NodeId, int] = {}
        self._busy_until_ms: dict[NodeId, float] = {}  # when all that was pulled from a node has left it
        self._cut: dict[tuple[NodeId, int], None] = {}  # pulls that their node gave up
        self.sent_bytes: dict[NodeId, int] = {}  # to those who pulled

    def _paced_ms(self, sender: NodeId, size_bytes: int) -> int:
        """How long these bytes take from now: what a node sends at the same time shares its egress limit evenly."""
        sharing = self._sending[sender] = self._sending.get(sender, 0) + 1
        duration_ms = size_bytes * sharing // self._bytes_per_ms(sender) + 1
        self.network.schedule.after(duration_ms, self._has_sent, sender)
        return duration_ms

    def _send(self, sender: NodeId, peer: NodeId, size_bytes: int, then: Callable[..., None], *arguments: Any) -> None:
        """Call `then` when these bytes have left the sender."""
        if self.uplinks is not None:
            self.uplinks.send(sender, peer, size_bytes, then, *arguments)
        else:
            self.network.schedule.after(self._paced_ms(sender, size_bytes), then, *arguments)

    def _has_sent(self, sender: NodeId) -> None:
        self._sending[sender] -= 1

    def _bytes_per_ms(self, sender: NodeId) -> int:
        rate = self._rates.get(sender)
        if rate is None:
            limit = self.nodes[sender].around.fleet.egress_bytes_per_second(sender)
            rate = self._rates[sender] = max(1, BYTES_PER_MS if limit is None else min(BYTES_PER_MS, limit // 1000))
        return rate

    # --- uploads ---

    def upload(self, node: SimNode, effect: Upload) -> None:
        if effect.peer not in self.nodes or not self.network.dialable(node.name, effect.peer):
            node.later(1_000, node.handle, Uploaded(effect.transfer, f"{effect.peer} cannot be reached"))
            return
        node.later(2 * self.network.latency_ms(node.name, effect.peer), self._begin, node, effect)

    def abandon(self, node: SimNode, effect: Abandon) -> None:
        """The sender closes the connection: the receiver takes no further step of it."""
        for name in sorted(self.nodes):
            self.nodes[name].expected.pop((node.name, effect.transfer), None)
            self.nodes[name].receiving_now.pop((node.name, effect.transfer), None)

    def _begin(self, node: SimNode, effect: Upload) -> None:
        peer = self.nodes[effect.peer]
        if not self.network.dialable(node.name, effect.peer):
            node.handle(Uploaded(effect.transfer, f"{effect.peer} cannot be reached"))
        elif (node.name, effect.transfer) not in peer.expected:
            node.handle(Uploaded(effect.transfer, f"{effect.peer} does not expect this upload"))
        else:
            del peer.expected[node.name, effect.transfer]
            run = Run(effect.transfer, node, node.life, peer, peer.life, _steps(effect.parcels))
            peer.receiving_now[node.name, effect.transfer] = None
            self._next(run)

    def _next(self, run: Run) -> None:
        """Walk on to the next step, or end."""
        if not run.steps:
            self._end(run, "")
            return
        step = run.steps.pop(0)
        if self.random.random() < self.weather.stalls:
            run.sender.bite("stream_stalled")
            self.network.schedule.after(STALL_MS, self._end, run, "the stream stalled")
            return
        self._send(run.sender.name, run.receiver.name, step.size_bytes, self._take, run, step)

    def _take(self, run: Run, step: Step) -> None:
        sends, takes = run.lives()
        cut = not self.network.reachable(run.sender.name, run.receiver.name)
        expected = (run.sender.name, run.transfer) in run.receiver.receiving_now
        if not sends or not takes or cut or not expected or self.random.random() < self.weather.breaks:
            run.sender.bite("stream_broken")
            self._end(run, "the connection was reset")
            return
        for record, part in step.parts:
            self._take_one(run, record, part)
        self._next(run)

    def _take_one(self, run: Run, record: Record, part: Stripe) -> None:
        if any(record.digest == bad.digest for bad, _ in run.failed):
            return
        self.payload_bytes += min(record.size, CHUNK_BYTES * part.count)
        if not run.sender.reads(record.digest):
            run.failed.append((record, "its bytes are no longer there"))
        elif self.random.random() < self.weather.lies:
            run.sender.bite("wrong_bytes")
            run.failed.append((record, f"{run.sender.name} sent wrong bytes"))
        elif not run.receiver.depot.write(record, part):
            run.failed.append((record, "no room is reserved for it"))
        elif run.receiver.depot.staged[record.digest].complete:
            run.complete.append(record)

    def _end(self, run: Run, error: str) -> None:
        sends, takes = run.lives()
        if takes:
            run.receiver.receiving_now.pop((run.sender.name, run.transfer), None)
            told = {record.digest: None for record in run.complete} | {r.digest: None for r, _ in run.failed}
            rest = [record for step in run.steps for record, _ in step.parts if record.digest not in told]
            unique = {record.digest: record for record in rest}.values()
            failed = (*run.failed, *((record, error or "the stream ended") for record in unique))
            arrived = Arrived(run.sender.name, run.transfer, tuple(run.complete), failed)
            run.receiver.later(between(self.random, 0, 5), run.receiver.handle, arrived)
        if sends:
            run.sender.later(between(self.random, 0, 5), run.sender.handle, Uploaded(run.transfer, error))

    # --- fetches ---

    def fetch(self, node: SimNode, effect: Fetch) -> None:
        self._from_next(node, effect, list(effect.sources))

    def _from_next(self, node: SimNode, effect: Fetch, sources: list[NodeId]) -> None:
        """Range requests to one source; the next one is tried when it fails."""
        if not sources:
            why = "no source could deliver it"
            node.handle(Arrived(node.name, effect.transfer, (), ((effect.record, why),)))
            return
        source = sources.pop(0)
        latency_ms = 2 * self.network.latency_ms(node.name, source)
        if self.uplinks is not None:
            there = (node.life, latency_ms, self._fetched, node, effect, source, sources)
            self.uplinks.send(source, node.name, effect.record.size, self._arrive, node, *there)
            return
        duration = self._paced_ms(source, effect.record.size) + latency_ms
        node.later(duration, self._fetched, node, effect, source, sources)

    def _arrive(self, node: SimNode, life: int, latency_ms: int, then: Callable[..., None], *arguments: Any) -> None:
        """What left a sender comes to a node, if that still lives."""
        if node.lives(life):
            node.later(latency_ms, then, *arguments)

    def _fetched(self, node: SimNode, effect: Fetch, source: NodeId, sources: list[NodeId]) -> None:
        record = effect.record
        cut = not self.network.dialable(node.name, source) or self.random.random() < self.weather.breaks
        lies = self.random.random() < self.weather.lies
        if lies:
            node.bite("wrong_bytes")
        if cut or lies or not self.nodes[source].reads(record.digest):
            self._from_next(node, effect, sources)
            return
        self.payload_bytes += record.size
        if node.depot.write(record, Stripe(0, max(1, chunk_count(record.size)))):
            node.handle(Arrived(node.name, effect.transfer, (record,)))
        else:
            node.handle(Arrived(node.name, effect.transfer, (), ((record, "no room is reserved for it"),)))

    # --- pulls ---

    def pull(self, node: SimNode, effect: Pull) -> None:
        """One run from one source: bytes leave it one after the other, in the order in which they were asked for."""
        self._cut.pop((node.name, effect.number), None)
        there_ms = self.network.latency_ms(node.name, effect.source)
        if effect.source not in self.nodes or not self.network.dialable(node.name, effect.source):
            node.later(2 * there_ms, node.handle, Pulled(effect.number, f"{effect.source} cannot be reached"))
            return
        size = min(effect.run.count * CHUNK_BYTES, effect.record.size - effect.run.first * CHUNK_BYTES)
        if self.uplinks is not None:
            there = (node.life, 2 * there_ms, self._pulled, node, effect, size)
            self.uplinks.send(effect.source, node.name, size, self._arrive, node, *there)
            return
        node.later(self._queued_ms(effect.source, size, there_ms) + there_ms, self._pulled, node, effect, size)

    def cut(self, node: SimNode, number: int) -> None:
        self._cut[node.name, number] = None

    def _queued_ms(self, sender: NodeId, size_bytes: int, there_ms: int) -> int:
        now_ms = self.network.schedule.now_ms
        begins_ms = max(now_ms + there_ms, self._busy_until_ms.get(sender, 0))
        self._busy_until_ms[sender] = begins_ms + size_bytes / self._bytes_per_ms(sender)
        return int(self._busy_until_ms[sender] - now_ms) + 1

    def _pulled(self, node: SimNode, effect: Pull, size: int) -> None:
        self.payload_bytes += size
        self.sent_bytes[effect.source] = self.sent_bytes.get(effect.source, 0) + size
        if self._cut.pop((node.name, effect.number), effect) is None:
            return
        source, digest = self.nodes[effect.source], effect.record.digest
        lies = self.random.random() < self.weather.lies
        error = ""
        if not self.network.dialable(node.name, effect.source) or self.random.random() < self.weather.breaks:
            node.bite("pull_broken")
            error = "the connection was reset"
        elif not source.depot.has_run(digest, effect.run) and not source.reads(digest):
            error = f"{effect.source} does not hold it"
        elif lies:
            node.bite("wrong_bytes")
            error = f"{effect.source} sent wrong bytes"
        elif not node.depot.write(effect.record, effect.run):
            error = "no room is reserved for it"
        if self.random.random() < self.weather.stalls:
            node.bite("pull_stalled")
            node.later(STALL_MS, node.handle, Pulled(effect.number, "it stalled"))
            return
        node.handle(Pulled(effect.number, error, lied=lies))


def _steps(parcels: Sequence[Parcel]) -> list[Step]:
    """Small artifacts many to a step, large ones in a few steps each, only the chunks that are missing."""
    steps: list[Step] = []
    batch: list[tuple[Record, Stripe]] = []
    batch_bytes = 0
    for parcel in parcels:
        record = parcel.record
        if record.size > CHUNK_BYTES:
            steps += _large(parcel)
            continue
        batch.append((record, Stripe(0, 1)))
        batch_bytes += record.size
        if batch_bytes >= BATCH_BYTES:
            steps.append(Step(batch_bytes, tuple(batch)))
            batch, batch_bytes = [], 0
    if batch:
        steps.append(Step(batch_bytes, tuple(batch)))
    return steps


def _large(parcel: Parcel) -> list[Step]:
    stripes = parcel.stripes or (Stripe(0, chunk_count(parcel.record.size)),)
    stride = max(1, -(-sum(stripe.count for stripe in stripes) // STEPS_MAX))
    runs = [
        Stripe(first, min(stride, stripe.first + stripe.count - first))
        for stripe in stripes
        for first in range(stripe.first, stripe.first + stripe.count, stride)
    ]
    return [Step(run.count * CHUNK_BYTES, ((parcel.record, run),)) for run in runs] or [
        Step(0, ((parcel.record, Stripe(0, 0)),))
    ]
