"""Hybrid logical clocks: stamps that order versions although no two wall clocks agree.

A stamp is one integer: 48 bits of milliseconds, 16 bits of counter (Kulkarni et al., "Logical Physical Clocks",
2014). Stamps below `SCANNED_MAX` are kept for files found without knowledge of what they replace: they rank below
every written version (see `scanned`).
"""

from __future__ import annotations

from protocol.values import Hlc

COUNTER_BITS = 16
HLC_MAX = (1 << 63) - 1  # SQLite integers are signed: stamps stay below this until the year 6429
FOLLOWED_MAX = HLC_MAX - (1 << 40)  # our clock follows no stamp above: each of ours must have room for its successors
FUTURE_MS_MAX = 5 * 60 * 1000  # our clock does not follow a peer's that is further ahead than this
SCANNED_MAX = 1 << 34  # a written stamp has milliseconds above bit 16; seconds fit 34 bits until the year 2514


def stamp_ms(hlc: Hlc) -> int:
    """Milliseconds since 1970 that a written stamp stands for."""
    return hlc >> COUNTER_BITS


def age_ms(hlc: Hlc, now_ms: int) -> int:
    """How old a version is: since it was written, or, where nobody knows that, since its file was modified."""
    return now_ms - (hlc * 1000 if hlc < SCANNED_MAX else stamp_ms(hlc))


class HybridClock:
    """Hands out stamps of one node, each above every stamp it made by its own clock or followed before."""

    def __init__(self, last: Hlc = 0) -> None:
        self.last = last

    def stamp(self, now_ms: int, above: Hlc = 0) -> Hlc:
        """A new stamp: above all of ours, and above `above` (the version it replaces), however far ahead that is.

        What is within reach is followed, so that no later stamp is the same one.
        """
        reach_ms = max(now_ms + FUTURE_MS_MAX, stamp_ms(self.last))
        self.last = max(self.last + 1, now_ms << COUNTER_BITS)
        if above < self.last:
            return self.last
        if stamp_ms(above) <= reach_ms:
            self.last = above + 1
        return above + 1

    def observe(self, hlc: Hlc, now_ms: int) -> None:
        """Follow a peer's stamp, unless it lies more than `FUTURE_MS_MAX` ahead of our own wall clock."""
        if stamp_ms(hlc) <= now_ms + FUTURE_MS_MAX:
            self.last = max(self.last, hlc)

    def restate(self, hlc: Hlc) -> None:
        """Never fall behind what we ourselves once said, even if our wall clock did.

        What lies above `FOLLOWED_MAX` no clock of ours has said: following it would leave no stamp to go on with.
        """
        if hlc <= FOLLOWED_MAX:
            self.last = max(self.last, hlc)


def scanned(mtime_s: int) -> Hlc:
    """The stamp of a file found without manifest knowledge: below every written version, ordered by modification."""
    return min(max(mtime_s, 1), SCANNED_MAX - 1)
