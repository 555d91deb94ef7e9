"""The egress limit of a node: one token bucket that every bulk thread draws from before it sends payload.

The rate is the hosts file's (or `spore limit`'s) in bytes per second and can be changed while threads wait. A taker may
go into debt by the one piece it is about to send; the next takers wait until the debt is paid, so that the average
holds for pieces of any size.
"""

from __future__ import annotations

import threading
import time

BURST_SECONDS = 0.2  # the design's: enough to keep a link busy between wake-ups, too short to be noticed as a burst
RATE_BYTES_PER_SECOND_MIN = 64 << 10  # a slower stream would look stalled to its receiver (64 KiB in 30 s) when shared


class Throttle:
    """A thread-safe token bucket. `rate` None: no limit. After `close` nobody waits any more."""

    def __init__(self, rate_bytes_per_second: float | None = None) -> None:
        self._changed = threading.Condition()
        self._rate: float | None = None
        self._tokens = 0.0
        self._filled_at = time.monotonic()
        self._closed = False
        self.set_rate(rate_bytes_per_second)

    @property
    def rate_bytes_per_second(self) -> float | None:
        return self._rate

    def set_rate(self, rate_bytes_per_second: float | None) -> None:
        """From now on; threads that wait are woken and wait by the new rate."""
        if rate_bytes_per_second is not None:
            rate_bytes_per_second = max(rate_bytes_per_second, RATE_BYTES_PER_SECOND_MIN)
        with self._changed:
            self._refill()
            old, self._rate = self._rate, rate_bytes_per_second
            if rate_bytes_per_second is not None and old is None:
                self._tokens = rate_bytes_per_second * BURST_SECONDS
            self._changed.notify_all()

    def take(self, count_bytes: int) -> None:
        """Return when `count_bytes` of payload may be sent."""
        with self._changed:
            while self._rate is not None and not self._closed:
                self._refill()
                if self._tokens > 0:
                    self._tokens -= count_bytes
                    return
                self._changed.wait(-self._tokens / self._rate + 0.0005)

    def close(self) -> None:
        """Let every waiting thread through: the agent stops, and their sockets are closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _refill(self) -> None:
        now = time.monotonic()
        if self._rate is not None:
            earned = (now - self._filled_at) * self._rate
            self._tokens = min(self._tokens + earned, self._rate * BURST_SECONDS)
        self._filled_at = now
