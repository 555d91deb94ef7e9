"""Virtual time: what happens next is the earliest entry of a heap ordered by (time, sequence).

Nothing here waits. Two entries of the same millisecond run in the order in which they were made, so that a run is a
function of its seed alone. The trace is a running hash of what happened, for comparing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any

Act = Callable[..., None]
NOTES_MAX = 1_024  # notes hashed at once: one call for many costs a third of a call each


class Schedule:
    """The world's clock and everything that is still to happen."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Act, tuple[Any, ...]]] = []
        self._sequence = 0

    def after(self, delay_ms: int, act: Act, *args: Any) -> None:
        """Call `act(*args)` after so long; what is in the past happens as soon as it can."""
        self._sequence = sequence = self._sequence + 1
        heappush(self._heap, (self.now_ms + delay_ms if delay_ms > 0 else self.now_ms, sequence, act, args))

    def run_until(self, at_ms: int) -> None:
        """Let everything up to and including this moment happen."""
        heap = self._heap
        while heap and heap[0][0] <= at_ms:
            self.now_ms, _, act, args = heappop(heap)
            self.steps += 1
            act(*args)
        self.now_ms = max(self.now_ms, at_ms)


class Trace:
    """A hash over (time, node, what happened), the same for a seed on every machine."""

    def __init__(self, keep: int = 0) -> None:
        self._hash = blake2b(digest_size=16)
        self._notes: list[bytes] = []  # not hashed yet
        self.lines: list[str] = []  # the last `keep` lines, for looking at a failing seed
        self._keep = keep

    def note(self, now_ms: int, node: str, what: str, content: bytes = b"") -> None:
        line = f"{now_ms} {node} {what}"
        self._notes.append(f"{len(line)} {len(content)} {line}".encode())
        if content:
            self._notes.append(content)
        if len(self._notes) >= NOTES_MAX:
            self._hash_notes()
        if self._keep:
            self.lines.append(line)
            del self.lines[: -self._keep]

    def _hash_notes(self) -> None:
        self._hash.update(b"".join(self._notes))
        self._notes.clear()

    def hexdigest(self) -> str:
        self._hash_notes()
        return self._hash.hexdigest()
