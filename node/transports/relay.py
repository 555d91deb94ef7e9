"""The gossip relay: bytes come by way of a node that both sides reach, when neither side can dial the other.

The carrier is asked (`POST /v1/relay/{digest}`), fetches the artifact into its own staging as it would for a user,
says how far it is, and then serves it to us until we say that we have it or have not asked for a while (`relay_desk`).
It never becomes a holder, and what it carries is bounded, counted and shown.
"""

from __future__ import annotations

import json
import time

from node.bulk_client import Connection
from node.bulk_stream import StreamBroken, sentence_of
from node.fetching import Fetching
from node.progress import CONNECTING
from node.transports.order import Kit, Order
from protocol.values import NodeId

ASK_SECONDS = 0.5  # between questions how far the carrier is
STALL_SECONDS = 60.0  # without news of more bytes from the carrier
_ANSWER_BYTES_MAX = 4_096


class CarrierRefused(Exception):
    """The carrier does not bring it; the message is its sentence."""


class Relay:
    """Asks one carrier after the other."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    def missing(self) -> str:
        return ""

    def fetch(self, order: Order, nodes: tuple[NodeId, ...]) -> str:
        reasons = []
        for node in nodes:
            why = self._by(order, node)
            if not why:
                return ""
            reasons.append(why)
        return sentence_of("; ".join(reasons) or "no node reaches both sides")

    def _by(self, order: Order, node: NodeId) -> str:
        kit = self._kit
        try:
            self._until_there(order, node)
            shared = (kit.depot, kit.connections, order.meter, order.job, kit.on_wrong_bytes)
            why = Fetching(order.record, (node,), *shared, order.headers).run()
            if not why:
                self._ask(order, node, done=True)
            return why
        except (StreamBroken, CarrierRefused) as problem:
            order.job.go_on()
            return sentence_of(problem)

    def _until_there(self, order: Order, node: NodeId) -> None:
        """Until the carrier has it. Raises CarrierRefused, StreamBroken."""
        before, moved_at = -1, time.monotonic()
        while True:
            order.meter.enter(CONNECTING)
            told = self._ask(order, node)
            if told.get("here"):
                return
            done = told.get("bytes_done")
            if isinstance(done, int) and done > before:
                before, moved_at = done, time.monotonic()
                order.meter.moved(0)  # it moves, though not here yet
            if time.monotonic() - moved_at > STALL_SECONDS:
                raise CarrierRefused(f"{node} was asked to carry it and got no further for {STALL_SECONDS:.0f} s")
            time.sleep(ASK_SECONDS)

    def _ask(self, order: Order, node: NodeId, done: bool = False) -> dict[str, object]:
        connection = self._kit.connections.take(node, order.job)
        kept = False
        try:
            told = _answer(connection, f"/v1/relay/{order.record.digest.hex()}{'/done' if done else ''}")
            kept = True
            return told
        except CarrierRefused:
            kept = True
            raise
        finally:
            give = self._kit.connections.give_back if kept else self._kit.connections.drop
            give(connection, order.job)


def _answer(connection: Connection, path: str) -> dict[str, object]:
    connection.send_request("POST", path, {"Content-Length": "0"})
    head = connection.read_answer(connection.stream.patience.stall_seconds)
    if head.status != 200:
        raise CarrierRefused(connection.read_sentence(head))
    if head.length > _ANSWER_BYTES_MAX:
        raise StreamBroken(f"{connection.peer} answered with {head.length} bytes")
    body = bytearray(head.length)
    connection.stream.read_into(memoryview(body))
    try:
        told = json.loads(body)
        return dict(told)
    except (ValueError, TypeError) as problem:
        raise StreamBroken(f"{connection.peer} answered in a way that is not understood: {problem}") from problem
