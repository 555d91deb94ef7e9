"""The content of one large put, on its way from the socket to the door: a few blocks, never the whole of it."""

from __future__ import annotations

import asyncio
from collections import deque

from node.door import DoorError

BLOCKS_MAX = 4  # one being written, one hashed, and two to hide the wake-ups between


class Content:
    """An asynchronous iterator fed by the connection. The reader's slowness stops the feeding, and so the client."""

    def __init__(self) -> None:
        self._blocks: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._cut = ""
        self._abandoned = False

    async def feed(self, block: bytes) -> None:
        """Hand over a block; returns when there is room for the next, or nobody wants more."""
        if self._abandoned:
            return
        self._blocks.append(block)
        self._changed.set()
        while len(self._blocks) >= BLOCKS_MAX and not self._abandoned:
            await self._wait()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def cut(self, why: str) -> None:
        """The rest never comes: the reader gets an error, also one that is blocked in another thread."""
        self._cut = why
        self._blocks.clear()
        self._changed.set()

    def abandon(self) -> None:
        """The reader is gone; what still comes is dropped."""
        self._abandoned = True
        self._blocks.clear()
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def __aiter__(self) -> Content:
        return self

    async def __anext__(self) -> bytes:
        while not (self._blocks or self._ended or self._cut):
            await self._wait()
        if self._cut:
            raise DoorError(self._cut)
        if not self._blocks:
            raise StopAsyncIteration
        block = self._blocks.popleft()
        self._changed.set()
        return block
