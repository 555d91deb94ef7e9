"""How far each transfer is and what it waits for, for `status`, `put --wait`, the log and every other moving display.

One `Meter` per transfer, written by the threads that move its bytes, read by anybody. Each thread is in one phase at a
time; of a phase's seconds those that the thread computed count as `CPU`, the others as waiting. What most of the time
went to is the transfer's bottleneck, and while nothing moves, what it waits for now.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from protocol.sending import RECEIPT_MS_MAX, UPLOAD_BYTES_PER_SECOND_MIN

QUEUED, CONNECTING, DISK, LIMIT, CPU = "a free thread", "connecting", "disk", "bandwidth limit", "CPU"
NETWORK, LINK, PEER = "peer or link", "link", "peer"  # who sends can tell a slow peer from a slow link (see Stream)
STALLED_SECONDS = 120.0  # without a byte while we wait for a peer; streams end earlier, a resolver that hangs does not
LOGGED_BYTES_MIN = 64 << 20  # transfers of this size tell in the log how they went: a line for some seconds of work
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
        if self.waits_for in (CONNECTING, NETWORK, LINK, PEER) and self.still_seconds > STALLED_SECONDS:
            return f"stalled: no byte for {self.still_seconds:.0f} s, waiting for {self.waits_for}"
        return ""

    def sentence(self, name: str) -> str:
        """For the log, when it is over."""
        rate = self.bytes_done / max(self.running_seconds, 0.001) / 1e6
        moved = f"{self.bytes_done} bytes in {self.running_seconds:.1f} s, {rate:.0f} MB/s"
        return (
            f"{name} {'to' if self.direction == 'out' else 'from'} {self.peer}: {moved}; bottleneck: {self.waits_for}"
        )


@dataclass(frozen=True, slots=True)
class _Clock:
    """Where one thread is: its phase, since when, and the processor seconds it had used by then."""

    phase: str
    entered: float
    cpu: float


class Meter:
    """Counts one transfer. `total` is payload only."""

    def __init__(self, transfer: int, peer: str, direction: str, bytes_total: int) -> None:
        self.transfer, self.peer, self.direction, self.bytes_total = transfer, peer, direction, bytes_total
        self.bytes_done = 0
        self._lock = threading.Lock()
        self._started = self._moved = time.monotonic()
        self._phase = QUEUED  # the last one that a thread entered
        self._clocks: dict[int, _Clock] = {}
        self._spent_seconds = dict.fromkeys((QUEUED, CONNECTING, NETWORK, LINK, PEER, DISK, LIMIT, CPU), 0.0)

    def start(self) -> None:
        """A thread has taken it up: its deadline counts from now."""
        self.enter(CONNECTING)
        with self._lock:
            self._started = self._moved = time.monotonic()

    def enter(self, phase: str) -> None:
        """What this thread does, or waits for, from now on."""
        with self._lock:
            clock = self._charge()
            self._clocks[threading.get_ident()] = replace(clock, phase=phase)
            self._phase = phase

    def leave(self) -> None:
        """This thread does nothing for the transfer for now."""
        with self._lock:
            self._charge()
            self._clocks.pop(threading.get_ident(), None)

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

    def _charge(self) -> _Clock:
        """Count this thread's time since its last call; its clock as it stands now."""
        now, cpu = time.monotonic(), time.thread_time()
        clock = self._clocks.get(threading.get_ident())
        if clock is not None:
            computed = min(cpu - clock.cpu, now - clock.entered)
            self._spent_seconds[CPU] += computed
            self._spent_seconds[clock.phase] += now - clock.entered - computed
        return _Clock("", now, cpu)


def allowed_seconds(size_bytes: int) -> float:
    """The deadline of a transfer, as its peer counts it too (see protocol/sending.py)."""
    return RECEIPT_MS_MAX / 1000 + size_bytes / UPLOAD_BYTES_PER_SECOND_MIN
