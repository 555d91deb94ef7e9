"""Circuit breakers: whether a way to a peer is worth trying now. One for each (peer, transport).

    closed ──three failures in a row──► open ──its time is over──► half open: one try
      ▲                                  ▲                              │
      │                                  └────────── it failed ─────────┤
      └──────────────────────────────────────────── it succeeded ───────┘

An open breaker spares everybody the time-outs of a way that is broken. It waits twice as long after each failed try,
with jitter so that a fleet does not knock all at once, and never longer than `WAIT_MS_MAX`: nobody is unhealthy for
ever. A try that is never reported counts as lost after `TRY_MS_MAX`, and the next one may begin.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from random import Random

from protocol.values import NodeId

FAILURES_MAX = 3  # in a row; one may be bad luck, and so may two in a burst of parallel transfers
WAIT_MS_MIN = 1_000  # after the third failure: a restarted agent is back within seconds
WAIT_MS_MAX = 60_000  # a way that works again is used again within a minute, however long it was broken
TRY_MS_MAX = 60_000  # a probing transfer that says nothing for this long was lost
BREAKERS_MAX = 4_096  # (peer, transport) pairs remembered: a thousand nodes, four transports; quiet ones go first

Key = tuple[NodeId, str]


class Phase(enum.Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of one breaker, as `status` shows it. Only breakers with a failure behind them exist."""

    failures: int = 0  # in a row
    waits: int = 0  # how often it was opened since its last success
    until_ms: int = 0  # open: when the next try may begin; half open: when that try counts as lost
    trying: bool = False
    why: str = ""  # the last failure

    def phase(self, now_ms: int) -> Phase:
        if self.failures < FAILURES_MAX:
            return Phase.CLOSED
        return Phase.HALF_OPEN if self.trying or now_ms >= self.until_ms else Phase.OPEN


class Breakers:
    """All breakers of one node. Not thread-safe; time and chance are arguments."""

    def __init__(self) -> None:
        self._known: dict[Key, Breaker] = {}

    def admits(self, peer: NodeId, transport: str, now_ms: int) -> bool:
        """Whether a transfer may try this way now. A yes of an open breaker is its one try: report how it ended."""
        breaker = self._known.get((peer, transport))
        if breaker is None or breaker.failures < FAILURES_MAX:
            return True
        if now_ms < breaker.until_ms:
            return False
        self._known[peer, transport] = Breaker(
            breaker.failures, breaker.waits, now_ms + TRY_MS_MAX, trying=True, why=breaker.why
        )
        return True

    def succeeded(self, peer: NodeId, transport: str) -> None:
        self._known.pop((peer, transport), None)

    def failed(self, peer: NodeId, transport: str, why: str, now_ms: int, chance: Random) -> None:
        """A try ended without success. While a breaker is open, stragglers that began before change nothing."""
        before = self._known.pop((peer, transport), Breaker())
        if before.phase(now_ms) is Phase.OPEN:
            self._known[peer, transport] = before
            return
        failures, waits, until_ms = before.failures + 1, before.waits, 0
        if failures >= FAILURES_MAX:
            until_ms = now_ms + wait_ms(waits, chance)
            waits += 1
        self._known[peer, transport] = Breaker(failures, waits, until_ms, why=why)
        self._bound()

    def heard(self, peer: NodeId, now_ms: int) -> None:
        """The peer gave a sign of life: its open breakers may be tried at once."""
        for key, breaker in self._known.items():
            if key[0] == peer and breaker.phase(now_ms) is Phase.OPEN:
                self._known[key] = Breaker(breaker.failures, breaker.waits, now_ms, why=breaker.why)

    def phase(self, peer: NodeId, transport: str, now_ms: int) -> Phase:
        return self._known.get((peer, transport), Breaker()).phase(now_ms)

    def until_ms(self, peer: NodeId, transport: str) -> int:
        """When a breaker that does not admit anybody will."""
        return self._known.get((peer, transport), Breaker()).until_ms

    def why(self, peer: NodeId, transport: str) -> str:
        return self._known.get((peer, transport), Breaker()).why

    def all(self) -> list[tuple[Key, Breaker]]:
        """Every way with a failure since its last success, in order."""
        return sorted(self._known.items())

    def _bound(self) -> None:
        if len(self._known) > BREAKERS_MAX:
            del self._known[next(iter(self._known))]  # the one that failed longest ago


def wait_ms(waits: int, chance: Random) -> int:
    """How long a breaker stays open for the `waits`-th time in a row: doubled each time, and up to half of it less."""
    full = min(WAIT_MS_MAX, WAIT_MS_MIN << min(waits, 16))
    return full - chance.randrange(full // 2)
