"""What the agent reported lately, kept in memory for `spore events`: the same sentences that go to the log."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from node.door import Facts
from protocol.effects import Report

KEPT_MAX = 1_000  # reports: a day of an agent at rest, minutes of one in trouble; the log has the rest
WAITING_MAX = 10_000  # reports a follower has not read yet; a slower one loses the oldest


class Journal:
    """Keeps reports, and gives them to whoever follows. Use it on the event loop."""

    def __init__(self, sink: Callable[[Report], None]) -> None:
        self._sink = sink
        self._kept: deque[Facts] = deque(maxlen=KEPT_MAX)
        self._followers: dict[int, tuple[deque[Facts], asyncio.Event]] = {}
        self._count = 0

    def report(self, report: Report) -> None:
        """To the log, and into memory."""
        self._sink(report)
        facts = {"at": time.time(), "level": report.level, "event": report.event, "message": report.message}
        self._kept.append(facts)
        for waiting, wake in self._followers.values():
            waiting.append(facts)
            wake.set()

    async def events(self, follow: bool) -> AsyncIterator[Facts]:
        """What is kept, oldest first; with `follow`, then what comes, until nobody listens."""
        for facts in list(self._kept):
            yield facts
        if not follow:
            return
        self._count += 1
        number, waiting, wake = self._count, deque[Facts](maxlen=WAITING_MAX), asyncio.Event()
        self._followers[number] = waiting, wake
        try:
            while True:
                while waiting:
                    yield waiting.popleft()
                wake.clear()
                await wake.wait()
        finally:
            del self._followers[number]
