"""The uplinks of simulated nodes, shared as in the agent: the same scheduler, the same budgets and priorities.

Bytes leave in pieces; a sender asks for its next piece when the last one has left, as a thread of the agent does. An
outside account of what left whom, and when, says whether a window of five seconds held more than a budget allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from protocol.egress import Budgets, Egress, Flow, budgets_of
from protocol.fleet import Fleet
from protocol.values import NodeId
from simulations.oracle import Oracle
from simulations.schedule import Schedule

LINK_BYTES_PER_SECOND = 125_000_000  # 1 Gbit/s: a host without a limit is bound by its link
PIECES = 16  # of one step at most: enough for a more urgent one to go between
WINDOW_MS = 5_000
EXCESS = 1.05  # of a budget, in any window, the piece that is leaving aside


@dataclass(slots=True)
class Send:
    """Bytes on their way out: what is left of them, and what happens when all have left."""

    flow: Flow
    left_bytes: int
    piece_bytes: int
    then: Callable[..., None]
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Uplink:
    """One node's."""

    egress: Egress
    asked: dict[int, tuple[Send, int]] = field(default_factory=dict)  # by ticket; the bytes of the piece
    wakes_ms: int = -1
    window: deque[tuple[int, int]] = field(default_factory=deque)  # (when, bytes) that left in the last five seconds
    window_bytes: int = 0


class Uplinks:
    """All of them."""

    def __init__(self, schedule: Schedule, fleet: Fleet, oracle: Oracle) -> None:
        self.schedule = schedule
        self.fleet = fleet
        self.oracle = oracle
        self._known: dict[NodeId, Uplink] = {}
        self._sends = 0

    def send(self, sender: NodeId, peer: NodeId, size_bytes: int, then: Callable[..., None], *arguments: Any) -> None:
        """Call `then` when so many bytes have left."""
        host = self.fleet.host(peer)
        self._sends += 1
        flow = Flow(peer, host.provider or "", host.sync_priority, self._sends)
        egress = self._of(sender).egress
        piece_bytes = max(egress.piece_bytes(flow), -(-size_bytes // PIECES))
        self._ask(sender, Send(flow, max(1, size_bytes), piece_bytes, then, arguments))

    def _of(self, sender: NodeId) -> Uplink:
        if sender not in self._known:
            budgets = budgets_of(self.fleet, sender)
            node = min(budgets.node or LINK_BYTES_PER_SECOND, LINK_BYTES_PER_SECOND)
            self._known[sender] = Uplink(Egress(replace(budgets, node=float(node))))
        return self._known[sender]

    def _ask(self, sender: NodeId, send: Send) -> None:
        uplink = self._of(sender)
        piece_bytes = min(send.left_bytes, send.piece_bytes)
        uplink.asked[uplink.egress.ask(send.flow, piece_bytes)] = (send, piece_bytes)
        self._grant(sender)

    def _grant(self, sender: NodeId) -> None:
        uplink, now_ms = self._of(sender), self.schedule.now_ms
        for ticket in uplink.egress.grant(now_ms / 1000):
            send, piece_bytes = uplink.asked.pop(ticket)
            self._account(sender, uplink, piece_bytes)
            leaves_ms = int(piece_bytes * 1000 / self._rate(uplink.egress.budgets, send.flow)) - 1  # it asks in time
            self.schedule.after(leaves_ms, self._left, sender, send, piece_bytes)
        wake = uplink.egress.wake_at(now_ms / 1000)
        if wake is not None and uplink.wakes_ms <= now_ms:
            uplink.wakes_ms = max(int(wake * 1000) + 1, now_ms + 1)
            self.schedule.after(uplink.wakes_ms - now_ms, self._grant, sender)

    def _rate(self, budgets: Budgets, flow: Flow) -> float:
        return min(rate for _, rate in budgets.of(flow))

    def _left(self, sender: NodeId, send: Send, piece_bytes: int) -> None:
        send.left_bytes -= piece_bytes
        if send.left_bytes > 0:
            self._ask(sender, send)
        else:
            send.then(*send.arguments)

    def _account(self, sender: NodeId, uplink: Uplink, piece_bytes: int) -> None:
        now_ms = self.schedule.now_ms
        allowed = (uplink.egress.budgets.node or 0) * WINDOW_MS / 1000 * EXCESS
        while uplink.window and uplink.window[0][0] <= now_ms - WINDOW_MS:
            uplink.window_bytes -= uplink.window.popleft()[1]
        if uplink.window_bytes > allowed:
            self.oracle.violation(f"{sender} sent {uplink.window_bytes} bytes within 5 s, and its budget is less")
        uplink.window.append((now_ms, piece_bytes))
        uplink.window_bytes += piece_bytes
