"""`spore sync` on the agent's side: artifacts by glob, a page at a time, moved with a priority, told as they go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from node.door import EXIT_USAGE, DoorError, Facts
from protocol import events as e
from protocol.egress import WEIGHTS
from protocol.fleet import RESERVED_KIND
from protocol.names import NameRefused, check_node
from protocol.syncing import ITEMS_MAX, Item, Sync
from protocol.values import Record, State
from storage.queries import QueryRefused

if TYPE_CHECKING:
    from node.agent import Agent

TOLD_SECONDS = 0.5  # between rows of progress
LEFT_MAX = 1_000  # artifacts named that were not done; the count has all


class SyncAnswers:
    """The part of `node.door.Door` that moves what a user wants moved, for one running agent."""

    agent: Agent

    async def sync(self, glob: str | None, to: str, priority: str, timeout_seconds: float) -> AsyncIterator[Facts]:
        """Progress (`done`, `total`, `bytes`, `bytes_total`, `why`), then one result."""
        self._check(to, priority)
        total, total_bytes = await self._count(glob)
        account = _Account(total, total_bytes)
        until = time.monotonic() + timeout_seconds if timeout_seconds else float("inf")
        async for records in self._pages(glob):
            with self.agent.throttle.urgent({record.digest: priority for record in records} if priority else {}):
                async for row in self._page(records, to, account, until):
                    yield row
        yield account.result()

    def _check(self, to: str, priority: str) -> None:
        try:
            known = not to or check_node(to) in (self.agent.node, *self.agent.replica.members.peers)
        except NameRefused as refused:
            raise DoorError(str(refused), EXIT_USAGE) from refused
        if not known:
            raise DoorError(f"no node {to} is known here; `spore peers` lists them", EXIT_USAGE)
        if priority and priority not in WEIGHTS:
            raise DoorError(f"there is no priority {priority!r}; use one of {', '.join(WEIGHTS)}", EXIT_USAGE)

    async def _count(self, glob: str | None) -> tuple[int, int]:
        total = total_bytes = 0
        async for records in self._pages(glob):
            total += len(records)
            total_bytes += sum(record.size for record in records)
        return total, total_bytes

    async def _pages(self, glob: str | None) -> AsyncIterator[list[Record]]:
        """The newest versions of the names that match, as they stand when each page is read."""
        offset = 0
        while True:
            try:
                page = await self.agent.manifest.queries.list_artifacts(glob, limit=ITEMS_MAX, offset=offset)
            except QueryRefused as refused:
                raise DoorError(str(refused), EXIT_USAGE) from refused
            records = [x.record for x in page if x.record.kind != RESERVED_KIND and x.record.state is State.LIVE]
            if records:
                yield records
            if len(page) < ITEMS_MAX:
                return
            offset += ITEMS_MAX

    async def _page(self, records: list[Record], to: str, account: _Account, until: float) -> AsyncIterator[Facts]:
        number, future = self.agent.request()
        future.cancel()  # nothing is answered: how far it is stands in the core
        self.agent.post(e.Sync(number, tuple(records), to))
        try:
            sync = self.agent.replica.syncing.requests[number]
            while not sync.ended and time.monotonic() < until:
                yield account.row(sync)
                await asyncio.sleep(TOLD_SECONDS)
            account.take(sync)
            yield account.row(None)
        finally:
            self.agent.answers.pop(number, None)
            self.agent.post(e.Cancel(number))


class _Account:
    """What was done so far, over all pages."""

    def __init__(self, total: int, total_bytes: int) -> None:
        self.total, self.total_bytes = total, total_bytes
        self.done = self.done_bytes = self.there = self.there_bytes = 0
        self.left: list[Facts] = []
        self.left_count = 0

    def row(self, sync: Sync | None) -> Facts:
        """Progress; with what has ended of a page under way."""
        items = list(sync.items.values()) if sync else []
        ended = [item for item in items if item.ended]
        waiting = next((item for item in items if not item.ended), None)
        return {
            "done": self.done + self.there + len(ended),
            "total": self.total,
            "bytes": self.done_bytes + self.there_bytes + sum(item.record.size for item in ended),
            "bytes_total": self.total_bytes,
            "why": f"{waiting.record.name}: {waiting.why}" if waiting else "",
        }

    def take(self, sync: Sync) -> None:
        for item in sync.items.values():
            self._take(item)

    def _take(self, item: Item) -> None:
        size = item.record.size
        if item.ended and not item.why and item.was_there:
            self.there, self.there_bytes = self.there + 1, self.there_bytes + size
        elif item.ended and not item.why:
            self.done, self.done_bytes = self.done + 1, self.done_bytes + size
        else:
            self.left_count += 1
            why = item.why if item.ended else f"not done in time: {item.why}"
            self.left += [{"name": item.record.name, "size": size, "why": why}] if len(self.left) < LEFT_MAX else []

    def result(self) -> Facts:
        return {
            "result": True,
            "moved": self.done,
            "moved_bytes": self.done_bytes,
            "there": self.there,
            "there_bytes": self.there_bytes,
            "left": self.left,
            "left_count": self.left_count,
        }
