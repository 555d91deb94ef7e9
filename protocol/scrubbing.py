"""When the next file is to be read again: a round over all that is held, spread evenly over its period.

A round that was interrupted goes on where it was. One that is late (the agent did not run, the disk was busy) catches
up at the disk's expense, but never faster than `rate_bytes_per_second`.
"""

from __future__ import annotations

from dataclasses import dataclass

DAY_MS = 86_400_000
AIM = 0.9  # of the period: what is added meanwhile, and days on which the agent did not run, need room
WAIT_MS_MAX = 60_000  # a new period in the hosts file is heeded within a minute
RATE_BYTES_PER_SECOND_MIN = 50_000_000  # a third of a slow disk: training reads from it as well
CATCH_UP = 4  # times the even rate, for rounds that are late


@dataclass(frozen=True, slots=True)
class Round:
    """How far the present round is. Made by the scrubber, kept in the manifest as a fact."""

    began_ms: int
    done_bytes: int = 0
    after: str = ""  # the path that was looked at last; paths are taken in their order
    through: bool = False  # all was looked at; the next round begins when the period is over

    def encoded(self) -> str:
        return f"{self.began_ms} {self.done_bytes} {int(self.through)} {self.after}"


def decoded(text: str | None) -> Round | None:
    """The round that a fact tells; None when there is none, or it cannot be read."""
    parts = (text or "").split(" ", 3)
    if len(parts) != 4 or not all(part.isdecimal() for part in parts[:3]):
        return None
    return Round(int(parts[0]), int(parts[1]), parts[3], parts[2] == "1")


def wait_ms(now: Round, now_ms: int, period_ms: float, total_bytes: int) -> int:
    """How long until the next file, or the next round, is due; a minute at most. A period of 0 means never."""
    if not period_ms:
        return WAIT_MS_MAX
    if now.through:
        return int(min(WAIT_MS_MAX, max(0.0, now.began_ms + period_ms - now_ms)))
    share = now.done_bytes / total_bytes if total_bytes else 0.0
    due_ms = now.began_ms + AIM * period_ms * min(1.0, share)
    return int(min(WAIT_MS_MAX, max(0.0, due_ms - now_ms)))


def rate_bytes_per_second(period_ms: float, total_bytes: int) -> float:
    """How fast a file is read: gently, unless so much is held that the period asks for more."""
    even = total_bytes * 1000 / period_ms if period_ms else 0.0
    return max(RATE_BYTES_PER_SECOND_MIN, CATCH_UP * even)
