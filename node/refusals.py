"""The log of refused peers: every refusal says who and why, and no stranger can fill the disk with such sentences."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from protocol.effects import Report

REPEAT_SECONDS = 60.0  # one sentence a minute for each reason and peer is enough to be seen and too little to drown in
REMEMBERED_MAX = 1_024  # (reason, peer) pairs; a scan from more addresses than this is told of more often, that is all
_QUIET = frozenset(
    {"closed", "timeout"}
)  # port scanners and load balancers do this all day: told, but not as a warning


@dataclass(slots=True)
class _Told:
    at: float
    unsaid: int = 0


class RefusalLog:
    """Reports refusals, at most one a minute for the same reason and peer. Called from the event loop and threads."""

    def __init__(self, report: Callable[[Report], None], *, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never run backwards."""
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str], _Told] = {}

    def refused(self, reason: str, peer: str, sentence: str) -> None:
        """`peer` is an address without its port, or a node: what the same stranger keeps from try to try."""
        suppressed = self._suppressed((reason, peer))
        if suppressed is None:
            return
        more = f" ({suppressed} more like it since the last line)" if suppressed else ""
        level = "info" if reason in _QUIET else "warning"
        self._report(Report(level, f"refused-{reason}", f"peer {peer}: {sentence}{more}"))

    def _suppressed(self, key: tuple[str, str]) -> int | None:
        """How many refusals like this went unsaid, or None when this one is to go unsaid too."""
        with self._lock:
            now, told = self._clock(), self._told.get(key)
            if told is not None and now - told.at < REPEAT_SECONDS:
                told.unsaid += 1
                return None
            self._told.pop(key, None)
            if len(self._told) >= REMEMBERED_MAX:
                self._told.pop(next(iter(self._told)))  # the one told longest ago
            self._told[key] = _Told(now)
            return told.unsaid if told is not None else 0
