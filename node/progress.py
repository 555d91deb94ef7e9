"""How far each transfer is and what it waits for, for `status`, `put --wait` and every other moving display.

One `Meter` per transfer, written by the threads that move its bytes, read by anybody. It is always in one phase; the
one it has spent most of its time in is its bottleneck, and when nothing moves, the one it is in. (A fetch from two
sources has two threads and one meter: its phases are those of either, which is close enough for a hint.)
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from protocol.sending import RECEIPT_MS_MAX, UPLOAD_BYTES_PER_SECOND_MIN

QUEUED, CONNECTING, NETWORK, DISK, LIMIT = "a free thread", "connecting", "network", "disk", "bandwidth limit"
STALLED_SECONDS = 120.0  # without a byte while we wait for a peer; streams end earlier, a resolver that hangs does not
_STILL_SECONDS = 2.0  # longer without a byte than this, what matters is where it hangs now


@dataclass(frozen=True, slots=True)
class Progress:
    """A transfer as it stands; made by a `Meter`, read by the admin socket. Times are seconds before now."""

    transfer: int
    peer: str
    direction: str  # "out", "in" (an upload to us) or "fetch"
    bytes_done: int
    bytes_total: int
    running_seconds: float
    still_seconds: float  # since the last byte moved
    waits_for: str
    left_seconds: float  # until its deadline

    def overdue(self) -> str:
        """Why it should be given up now, in a sentence; "" while it may go on."""
        if self.left_seconds < 0:
            return f"not done within the {self.running_seconds:.0f} s that {self.bytes_total} bytes may take"
        if self.waits_for in (CONNECTING, NETWORK) and self.still_seconds > STALLED_SECONDS:
            return f"stalled: no byte for {self.still_seconds:.0f} s, waiting for {self.waits_for}"
        return ""


class Meter:
    """Counts one transfer. `total` is payload only."""

    def __init__(self, transfer: int, peer: str, direction: str, bytes_total: int) -> None:
        self.transfer, self.peer, self.direction, self.bytes_total = transfer, peer, direction, bytes_total
        self.bytes_done = 0
        self._lock = threading.Lock()
        self._started = self._moved = self._entered = time.monotonic()
        self._phase = QUEUED
        self._spent_seconds = dict.fromkeys((QUEUED, CONNECTING, NETWORK, DISK, LIMIT), 0.0)

    def start(self) -> None:
        """A thread has taken it up: its deadline counts from now."""
        self.enter(CONNECTING)
        with self._lock:
            self._started = self._moved = self._entered

    def enter(self, phase: str) -> None:
        """What the transfer does from now on."""
        with self._lock:
            now = time.monotonic()
            self._spent_seconds[self._phase] += now - self._entered
            self._entered, self._phase = now, phase

    def moved(self, count_bytes: int) -> None:
        with self._lock:
            self.bytes_done += count_bytes
            self._moved = time.monotonic()

    def read(self) -> Progress:
        now = time.monotonic()
        still_seconds = now - self._moved
        spent = sorted(self._spent_seconds.items())
        longest = max(spent, key=lambda item: item[1])[0]
        return Progress(
            transfer=self.transfer,
            peer=self.peer,
            direction=self.direction,
            bytes_done=min(self.bytes_done, self.bytes_total),
            bytes_total=self.bytes_total,
            running_seconds=now - self._started,
            still_seconds=still_seconds,
            waits_for=self._phase if still_seconds > _STILL_SECONDS or self._phase == QUEUED else longest,
            left_seconds=allowed_seconds(self.bytes_total) + self._started - now,
        )


def allowed_seconds(size_bytes: int) -> float:
    """The deadline of a transfer, as its peer counts it too (see protocol/sending.py)."""
    return RECEIPT_MS_MAX / 1000 + size_bytes / UPLOAD_BYTES_PER_SECOND_MIN
