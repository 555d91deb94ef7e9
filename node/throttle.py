"""The egress budgets at work: every thread that sends payload asks here first. A thin shell around `protocol.egress`.

`allow` says how much of what is to be sent may leave now, and returns when it may; so that slow budgets are kept in
small pieces. Of the threads that wait, one watches the clock and wakes whoever's turn has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from protocol.egress import RATE_BYTES_PER_SECOND_MIN, WEIGHTS, Budgets, Egress, Flow
from protocol.fleet import Priority
from protocol.values import Digest, NodeId

__all__ = ["PRIORITY_HEADER", "RATE_BYTES_PER_SECOND_MIN", "Throttle"]

ANY = Flow()
PRIORITY_HEADER = "spore-priority"  # of a GET: whoever fetches says how much it matters
Describe = Callable[[NodeId], tuple[str, Priority]]


class Throttle:
    """A thread-safe `Egress`. `describe` gives a peer's provider and its priority in the hosts file. After `close`
    nobody waits any more."""

    def __init__(
        self, budgets: Budgets | float | None = None, describe: Describe = lambda peer: ("", "normal")
    ) -> None:
        self._describe = describe
        self._lock = threading.Lock()
        self._egress = Egress(_budgets(budgets))
        self._waiting: dict[int, threading.Condition] = {}  # by ticket; bounded by the threads that send
        self._timing: threading.Condition | None = None  # of the one thread that wakes when time alone lets someone go
        self._urgent: dict[Digest, list[str]] = {}  # bounded by the requests of users: a page of 1,000 each
        self._closed = False
        self.sent_bytes = 0  # of payload, since the start

    @property
    def budgets(self) -> Budgets:
        return self._egress.budgets

    def set_rate(self, budgets: Budgets | float | None) -> None:
        """From now on; threads that wait are woken and wait by the new budgets."""
        with self._lock:
            self._egress.change(_budgets(budgets))
            self._wake_all()

    def pace(
        self, peer: NodeId, transfer: int, priority: str = "", digests: Iterable[Digest] = ()
    ) -> Callable[[int], int]:
        """`allow` for one transfer to one peer. What is urgent here (one of the `digests` is) comes first, then a
        priority that is given and not the usual one, then that of the peer in the hosts file."""
        provider, usual = self._describe(peer)
        with self._lock:
            urgent = next((self._urgent[digest][-1] for digest in digests if self._urgent.get(digest)), "")
        stated = urgent or (priority if priority != "normal" else "")
        return partial(self.allow, flow=Flow(peer, provider, stated if stated in WEIGHTS else usual, transfer))

    @contextmanager
    def urgent(self, wanted: Mapping[Digest, str]) -> Iterator[None]:
        """As long as this lasts, transfers of these artifacts that begin have these priorities."""
        with self._lock:
            for digest, priority in wanted.items():
                self._urgent.setdefault(digest, []).append(priority)
        try:
            yield
        finally:
            with self._lock:
                for digest, priority in wanted.items():
                    self._urgent[digest].remove(priority)
                    if not self._urgent[digest]:
                        del self._urgent[digest]

    def allow(self, wanted_bytes: int, flow: Flow = ANY) -> int:
        """How many of these bytes may be sent, at least one; returns when they may."""
        size_bytes = min(wanted_bytes, self._egress.piece_bytes(flow)) if self.budgets.of(flow) else wanted_bytes
        self.take(size_bytes, flow)
        return size_bytes

    def take(self, count_bytes: int, flow: Flow = ANY) -> None:
        """Return when `count_bytes` of payload may be sent."""
        with self._lock:
            self.sent_bytes += count_bytes
            if self._closed or not self._egress.budgets.of(flow):
                return
            ticket = self._egress.ask(flow, count_bytes)
            turn = self._waiting[ticket] = threading.Condition(self._lock)
            try:
                while self._grants(ticket):
                    self._sleep(turn)
            finally:
                self._waiting.pop(ticket, None)
                self._egress.withdraw(flow, ticket)
                self._pass_on(turn)

    def lend(self, share: float, size_bytes: int) -> float | None:
        """Set aside a share for another program that sends for us; see `Egress.lend`."""
        with self._lock:
            return self._egress.lend(share, size_bytes, time.monotonic())

    def close(self) -> None:
        """Let every waiting thread through: the agent stops, and their sockets are closed."""
        with self._lock:
            self._closed = True
            self._wake_all()

    # All below under the lock.

    def _grants(self, own: int) -> bool:
        """Wake everybody whose turn it is; whether our own ticket still waits."""
        for ticket in self._egress.grant(time.monotonic()):
            turn = self._waiting.pop(ticket, None)
            if turn is not None:
                turn.notify()
        return own in self._waiting and not self._closed

    def _sleep(self, turn: threading.Condition) -> None:
        if self._timing not in (None, turn):
            turn.wait()
            return
        self._timing = turn
        now = time.monotonic()
        at = self._egress.wake_at(now)
        turn.wait(None if at is None else max(at - now, 0.0002))

    def _pass_on(self, turn: threading.Condition) -> None:
        """Whoever watched the clock goes; another one does from now on."""
        if self._timing is turn:
            self._timing = None
            for other in self._waiting.values():
                other.notify()
                return

    def _wake_all(self) -> None:
        for turn in self._waiting.values():
            turn.notify()


def _budgets(stated: Budgets | float | None) -> Budgets:
    return stated if isinstance(stated, Budgets) else Budgets(stated)
