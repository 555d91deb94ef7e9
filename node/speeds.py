"""How fast the link with each peer was lately; decides whether changed chunks are compared block by block."""

from __future__ import annotations

import threading

from protocol.values import NodeId

SAMPLE_BYTES_MIN = 8 << 20  # of a run that tells a link's speed: less is over before the congestion window opens
SPEEDS_MAX = 4_096  # peers whose speed is remembered


class Speeds:
    """What each peer's link has brought lately, in bytes a second. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[NodeId, float] = {}

    def seen(self, peer: NodeId, count_bytes: int, seconds: float) -> None:
        if count_bytes < SAMPLE_BYTES_MIN or seconds <= 0:
            return
        with self._lock:
            before = self._known.pop(peer, count_bytes / seconds)
            self._known[peer] = (before + count_bytes / seconds) / 2
            if len(self._known) > SPEEDS_MAX:
                del self._known[next(iter(self._known))]

    def of(self, peer: NodeId) -> float | None:
        with self._lock:
            return self._known.get(peer)
