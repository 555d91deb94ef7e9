"""How fast this node's bytes leave: the configured limit, corrected by what was seen.

While anything is being uploaded, the rate lies between two bounds: what was delivered (receipts came for it), and that
and all that is under way, over the time since it began. A limit above the upper bound is more than the link gives; one
below the lower bound does not limit. Between the bounds the limit is believed. Single transfers say less: several share
the link, and each alone shows a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SEEN_MS_MIN = 500  # below, round trips and syncs are measured instead of the link
SEEN_MS_MAX = 10_000  # what was seen longer ago is forgotten: links change
SEEN_BYTES_MIN = 256 << 10
UPLOADS_MAX = 10_000  # started and never ended: no peer is offered so many


@dataclass(slots=True)
class Uplink:
    """One node's. `sending` tells what starts and ends; the meter and the final flush read `rate`."""

    _under_way: dict[int, int] = field(default_factory=dict)  # bytes, by transfer
    _since_ms: int = 0
    _delivered: int = 0  # since then
    _broken: int = 0  # of uploads that ended otherwise: some of it has left
    _seen: int | None = None  # the lower bound of the last busy time

    def started(self, transfer: int, size_bytes: int, now_ms: int) -> None:
        if not self._under_way:
            self._begin(now_ms)
        if len(self._under_way) < UPLOADS_MAX:
            self._under_way[transfer] = size_bytes

    def delivered(self, transfer: int, size_bytes: int, now_ms: int) -> None:
        """The receipt of an upload has come."""
        if self._under_way.pop(transfer, None) is None:
            return
        self._delivered += size_bytes
        elapsed_ms = now_ms - self._since_ms
        if elapsed_ms > 0 and self._delivered >= SEEN_BYTES_MIN:
            self._seen = self._delivered * 1000 // elapsed_ms
        if elapsed_ms > SEEN_MS_MAX:
            self._begin(now_ms)

    def ended(self, transfer: int) -> None:
        """It failed, or was given up."""
        self._broken += self._under_way.pop(transfer, 0)

    def rate(self, limit_bytes_per_second: int | None, now_ms: int) -> int | None:
        """Bytes per second, at least 1; None while nothing is known and nothing is limited."""
        rate = self._seen if limit_bytes_per_second is None else limit_bytes_per_second
        elapsed_ms = now_ms - self._since_ms
        if rate is not None and self._under_way and elapsed_ms >= SEEN_MS_MIN:
            most = (self._delivered + self._broken + sum(self._under_way.values())) * 1000 // elapsed_ms
            rate = min(max(rate, self._delivered * 1000 // elapsed_ms), most)
        return None if rate is None else max(1, rate)

    def _begin(self, now_ms: int) -> None:
        self._since_ms, self._delivered, self._broken = now_ms, 0, 0
