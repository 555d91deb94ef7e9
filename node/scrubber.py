"""The scrubber: reads again what is held, file by file, within the period that the hosts file sets.

A file that is not what its digest says is set aside by the depot, which tells the core; that fetches it from another
holder. The times of all this stay local. Files are read at a bounded rate, past the page cache, in a thread that ends
with the agent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from protocol.effects import Report
from protocol.scrubbing import DAY_MS, Round, decoded, rate_bytes_per_second, wait_ms
from protocol.values import Place

if TYPE_CHECKING:
    from node.agent import Agent

FACT = "scrub"
PAGE = 200  # places looked up at once
SAVE_SECONDS = 60.0  # between notes of how far the round is: a restart reads a minute's files again
LATER_SECONDS = 10.0  # after the manifest could not be asked

Facts = dict[str, int | float | None]


class Stopped(Exception):
    """The agent stops in the middle of a file."""


class Scrubber:
    """One round after the other, for as long as the agent runs."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._round = Round(agent.now_ms())
        self._total_bytes = 0
        self._through_ms: int | None = None  # when the last round of this life was through
        self._saved = time.monotonic()
        self._stopping = threading.Event()

    def facts(self) -> Facts:
        """For `status`."""
        return {
            "period_seconds": round(self._period_ms() / 1000, 3),
            "round_seconds": round((self._agent.now_ms() - self._round.began_ms) / 1000, 1),
            "bytes_done": self._round.done_bytes,
            "bytes_total": self._total_bytes,
            "damaged": self._agent.damaged,
            "last_round_ended_ms": self._through_ms,
        }

    async def run(self) -> None:
        self._round = decoded(self._agent.manifest.fact(FACT)) or self._round
        try:
            while True:
                try:
                    await self._step()
                except Exception as problem:
                    self._agent.report(Report("warning", "not_scrubbed", f"nothing was read again: {problem}"))
                    await asyncio.sleep(LATER_SECONDS)
        finally:
            self._stopping.set()

    def _period_ms(self) -> float:
        return self._agent.fleet.routing_for(self._agent.node).scrub_days * DAY_MS

    async def _step(self) -> None:
        """A page of files, each when it is due; after the last one, the wait for the next round."""
        queries = self._agent.manifest.queries
        _, self._total_bytes = await queries.count_places()
        if self._round.through:
            await self._wait_for_turn()
            self._round = Round(self._agent.now_ms())
        page = await queries.places(self._round.after, PAGE)
        for place in page:
            await self._wait_for_turn()
            await self._look_at(place)
        if not page:
            await self._end_round()

    async def _wait_for_turn(self) -> None:
        while True:
            wait = wait_ms(self._round, self._agent.now_ms(), self._period_ms(), self._total_bytes)
            if not wait:
                return
            await asyncio.sleep(wait / 1000)

    async def _look_at(self, place: Place) -> None:
        rate = rate_bytes_per_second(self._period_ms(), self._total_bytes)
        await asyncio.to_thread(self._agent.depot.verify, place, lambda count: self._pace(count / rate))
        done = self._round.done_bytes + place.size
        self._round = replace(self._round, done_bytes=done, after=place.path)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            await self._save()

    def _pace(self, seconds: float) -> None:
        """Called from the thread that reads, after each piece."""
        if self._stopping.wait(seconds):
            raise Stopped

    async def _end_round(self) -> None:
        self._through_ms = self._agent.now_ms()
        if self._round.done_bytes:
            seconds = (self._through_ms - self._round.began_ms) / 1000
            sentence = f"all that is held was read again, {self._round.done_bytes} bytes in {seconds:.0f} s"
            self._agent.report(Report("info", "scrubbed", sentence))
        self._round = replace(self._round, after="", through=True)
        await self._save()

    async def _save(self) -> None:
        self._saved = time.monotonic()
        await self._agent.manifest.set_fact(FACT, self._round.encoded())
