"""The files that may be ready: those to look at now, and those to look at again when they have had time to settle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from node.stability import FileIdentity

CANDIDATES_MAX = 65_536  # in each of the two queues, about 20 MB; what does not fit is found again by the next scan
SCAN_AHEAD_MAX = 4096  # a scan waits for the looks to catch up, so that it cannot crowd out events
BATCH_CANDIDATES = 256  # looked at per hop to a thread: about 10 ms of system calls


@dataclass(frozen=True, slots=True)
class Candidate:
    """One path to look at. `created` means that only a new name was seen, not the end of its writing.

    `identity` and `looked_at_seconds` are of the last look that could not tell whether there is a writer.
    """

    path: str
    kind: str
    live: bool
    created: bool = False
    identity: FileIdentity | None = None
    looked_at_seconds: float = 0.0


class Candidates:
    """Both queues, first in first out, each path once. Used from the event loop's thread only."""

    def __init__(self, settle_seconds: float, clock: Callable[[], float]) -> None:
        self._settle_seconds, self._clock = settle_seconds, clock
        self._now: dict[str, Candidate] = {}
        self._later: dict[str, tuple[float, Candidate]] = {}  # in order of due time, since all wait equally long
        self._in_hand = 0  # of the last batch, until the next is asked for
        self._added, self._taken = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._now) + len(self._later) + self._in_hand

    def add(self, candidate: Candidate, *, hurry: bool = True) -> bool:
        """Queue for a look now; False when there is no room. Without `hurry` one that waits goes on waiting."""
        path = candidate.path
        if not hurry and path in self._later:
            due_seconds, waiting = self._later[path]
            self._later[path] = (due_seconds, _merged(waiting, candidate))
            return True
        earlier = self._now.get(path) or self._later.pop(path, (0.0, None))[1]
        if earlier is None and len(self._now) >= CANDIDATES_MAX:
            return False
        self._now[path] = candidate if earlier is None else _merged(earlier, candidate)
        self._added.set()
        return True

    def again(self, candidate: Candidate) -> None:
        """Look at it again after the settling time, unless something new puts it back at once."""
        newer = self._now.get(candidate.path)
        if newer is not None:
            self._now[candidate.path] = _merged(candidate, newer)
            return
        if len(self._later) >= CANDIDATES_MAX:
            return
        self._later.pop(candidate.path, None)
        self._later[candidate.path] = (self._clock() + self._settle_seconds, candidate)
        self._added.set()

    async def due(self) -> list[Candidate]:
        """The next batch to look at; waits until there is one. Asking for it says that the last one is done."""
        self._in_hand = 0
        while True:
            self._added.clear()
            self._promote()
            if self._now:
                break
            await self._wait_for_work()
        batch = [self._now.pop(path) for path in list(islice(self._now, BATCH_CANDIDATES))]
        self._in_hand = len(batch)
        self._taken.set()
        return batch

    async def room(self) -> None:
        """Wait until a scan may add more."""
        while len(self._now) > SCAN_AHEAD_MAX:
            self._taken.clear()
            await self._taken.wait()

    def _promote(self) -> None:
        now_seconds = self._clock()
        for path, (due_seconds, candidate) in list(islice(self._later.items(), BATCH_CANDIDATES)):
            if due_seconds > now_seconds:
                return
            del self._later[path]
            self._now.setdefault(path, candidate)

    async def _wait_for_work(self) -> None:
        first = next(iter(self._later.values()), None)
        wait_seconds = None if first is None else max(0.0, first[0] - self._clock())
        try:
            async with asyncio.timeout(wait_seconds):
                await self._added.wait()
        except TimeoutError:
            return  # the first of those that wait is due


def _merged(earlier: Candidate, later: Candidate) -> Candidate:
    """What both say together: live if either is, merely created if both are; the earlier look stands."""
    return replace(earlier, live=earlier.live or later.live, created=earlier.created and later.created)
