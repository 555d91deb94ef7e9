"""When to go: what follows from notices, with the time that is left.

A notice begins the plan (the core pushes what is at risk first, and goes on accepting); the last flush begins shortly
before the end, so that what training writes until then is saved too. SIGTERM begins it at once, and has what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from node.notices.seen import Coming

LAST_SHARE = 0.25  # of a notice is kept for the last flush,
LAST_SECONDS_MIN = 4.0  # but not less
SPARE_SECONDS = 1.0  # between our end and the machine's
HURRY_SECONDS = 60.0  # what is pending is pushed within this when the end is only likelier than before


@dataclass(slots=True)
class Ending:
    """`begin_plan(seconds_left, why)`, `hurry(why)`, `withdrawn(why)` and `go_in(seconds)` are the agent's. Times are
    those of the wall clock, in seconds since 1970."""

    clock: Callable[[], float]
    begin_plan: Callable[[float, str], None]
    hurry: Callable[[float, str], None]
    withdrawn: Callable[[str], None]
    go_in: Callable[[float | None], None]
    _coming: dict[str, Coming] = field(default_factory=dict)  # by source

    def noticed(self, source: str, coming: Coming | None) -> None:
        """A source says something new."""
        if coming is None:
            self._gone(source)
            return
        self._coming[source] = coming
        if coming.at is None:
            self.hurry(HURRY_SECONDS, coming.why)
            return
        left = max(0.0, coming.at - self.clock())
        self.begin_plan(max(0.0, left - SPARE_SECONDS), f"{coming.why}; {left:.0f} s are left")
        self.go_in(max(0.0, left - SPARE_SECONDS - max(LAST_SECONDS_MIN, left * LAST_SHARE)))

    def _gone(self, source: str) -> None:
        before = self._coming.pop(source, None)
        if before is not None and before.at is not None and self.end is None:
            self.withdrawn(f"the notice of {source} was withdrawn")
            self.go_in(None)

    @property
    def end(self) -> float | None:
        """When the machine will be taken away, as far as is known."""
        return min((coming.at for coming in self._coming.values() if coming.at is not None), default=None)

    def budget_seconds(self, flush_seconds: float) -> float:
        """How long the last flush may take, begun now."""
        if self.end is None:
            return flush_seconds
        return max(0.5, min(flush_seconds, self.end - SPARE_SECONDS - self.clock()))

    def facts(self) -> list[dict[str, object]]:
        return [{"source": name, "at": coming.at, "why": coming.why} for name, coming in sorted(self._coming.items())]
