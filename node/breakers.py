"""The breakers of this node, for any thread: `protocol.breakers` with a clock, chance and a lock.

A transport asks `admits` before it dials a peer and tells afterwards how it went. A refusal by the peer is a success
here: the way works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random, SystemRandom

from protocol.breakers import Breakers, Phase
from protocol.values import NodeId

P2P_HTTP = "p2p_http"  # our own bulk path


class Guards:
    """One breaker for each (peer, transport)."""

    def __init__(self, clock_seconds: Callable[[], float] = time.monotonic, chance: Random | None = None) -> None:
        self._clock_seconds = clock_seconds
        self._chance = chance or SystemRandom()
        self._lock = threading.Lock()
        self._breakers = Breakers()

    def admits(self, peer: NodeId, transport: str) -> str:
        """ "" when the way may be tried now, else a sentence why not and for how long. Report how a try ended."""
        with self._lock:
            now_ms = self._now_ms()
            if self._breakers.admits(peer, transport, now_ms):
                return ""
            return self._refusal(peer, transport, now_ms)

    def shut(self, peer: NodeId, transport: str) -> str:
        """As `admits`, for whoever only plans: takes no try."""
        with self._lock:
            now_ms = self._now_ms()
            if self._breakers.phase(peer, transport, now_ms) is not Phase.OPEN:
                return ""
            return self._refusal(peer, transport, now_ms)

    def succeeded(self, peer: NodeId, transport: str) -> None:
        with self._lock:
            self._breakers.succeeded(peer, transport)

    def failed(self, peer: NodeId, transport: str, why: str) -> None:
        with self._lock:
            self._breakers.failed(peer, transport, why, self._now_ms(), self._chance)

    def heard(self, peer: NodeId) -> None:
        """A session with the peer came up: whatever was broken may be tried at once."""
        with self._lock:
            self._breakers.heard(peer, self._now_ms())

    def facts(self) -> list[dict[str, str | int | float]]:
        """Every way with a failure since its last success, for `status`."""
        with self._lock:
            now_ms = self._now_ms()
            known = self._breakers.all()
        return [
            {
                "peer": peer,
                "transport": transport,
                "state": breaker.phase(now_ms).value,
                "failures": breaker.failures,
                "retry_seconds": round(max(0, breaker.until_ms - now_ms) / 1000, 1),
                "why": breaker.why,
            }
            for (peer, transport), breaker in known
        ]

    def _refusal(self, peer: NodeId, transport: str, now_ms: int) -> str:
        seconds = max(0, self._breakers.until_ms(peer, transport) - now_ms) / 1000
        why = self._breakers.why(peer, transport)
        return f"{peer} is left alone over {transport} for {seconds:.0f} s after failures in a row: {why}"

    def _now_ms(self) -> int:
        return int(self._clock_seconds() * 1000)
