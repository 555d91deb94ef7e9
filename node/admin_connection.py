"""One client of the local socket: its requests read ahead, performed side by side, answered as they end.

Nothing here grows with what a client sends: requests in flight, content in memory and answers not yet read are
bounded, and a client that goes beyond is simply not read from. A client that leaves takes its requests with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from node.admin_content import Content
from node.admin_requests import BadRequest, Id, Request, read_request
from node.door import EXIT_NOT_ACHIEVED, EXIT_USAGE, Door, DoorError, Facts, PutRequest, WaitRequest
from node.local_socket import BLOCK_BYTES, INLINE_BYTES_MAX

REQUESTS_MAX = 1024  # in flight: with receipts 0.3 s away that still is 3,000 puts a second
CONTENT_BYTES_MAX = 16 << 20  # of small contents in flight: 1,024 puts of 16 KiB; large ones have four blocks each
READ_BUFFER_BYTES = 256 << 10  # asyncio receives at most this much at once, and keeps twice this
UNREAD_BYTES_MAX = 1 << 20  # of answers; beyond it no further request is read
ROWS_BETWEEN_TURNS = 200  # rows written before others get their turn on the event loop
GONE_LOOK_SECONDS = 0.25  # between looks whether a client that stopped sending has left altogether

_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode  # `json.dumps` makes one at each call
_LOGGER = logging.getLogger("spore")


class Connection:
    """Serves one client until it leaves. `trusted`: it may also destroy."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: Door, *, trusted: bool
    ) -> None:
        self._reader, self._writer, self._door, self._trusted = reader, writer, door, trusted
        self._tasks: set[asyncio.Task[None]] = set()
        self._contents: set[Content] = set()
        self._content_bytes = 0
        self._ended = asyncio.Event()  # some request ended
        self._outgoing: list[bytes] = []
        self._flushing = False
        self._draining = asyncio.Lock()  # StreamWriter.drain is for one at a time

    async def serve(self) -> None:
        try:
            while (line := await self._line()) is not None:
                await self._take(line)
            await self._until(lambda: not self._tasks)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, perhaps in the middle of a content
        except asyncio.CancelledError:
            self._writer.transport.abort()  # the agent stops: a client that reads nothing must not hold it up
            raise
        finally:
            await self._close()

    async def _close(self) -> None:
        for content in self._contents:
            content.cut("the client left before all bytes had come")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._flush()
        await close_writer(self._writer)

    # --- reading ---

    async def _line(self) -> bytes | None:
        """The next line; None at the end. Of one that is too long, enough to be refused; the rest is dropped."""
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            return end.partial or None
        except asyncio.LimitOverrunError as overrun:
            start = await self._reader.readexactly(overrun.consumed)
        while True:
            try:
                await self._reader.readuntil(b"\n")
                return start
            except asyncio.LimitOverrunError as overrun:
                await self._reader.readexactly(overrun.consumed)

    async def _take(self, line: bytes) -> None:
        """Read one request, with its content, and begin it."""
        if not line.strip():
            return
        try:
            request = read_request(line)
            if request.destructive and not self._trusted:
                content_bytes = request.arguments.get("size", 0)
                raise BadRequest(
                    f"only the agent's user and root may {request.command}; use sudo", request.id, content_bytes
                )
        except BadRequest as problem:
            self._refuse(problem.request_id, str(problem), EXIT_USAGE)
            if problem.skip_bytes is None:
                raise ConnectionResetError("where the next line begins is unknown") from None
            await self._skip(problem.skip_bytes)
            await self._drain()
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            await self._drain()
        if request.command == "put":
            await self._take_put(request)
        else:
            await self._until(lambda: len(self._tasks) < REQUESTS_MAX)
            self._begin(self._perform(request), 0)

    async def _take_put(self, request: Request) -> None:
        put = PutRequest(**request.arguments)
        small = put.size if put.size <= INLINE_BYTES_MAX else 0
        await self._until(lambda: len(self._tasks) < REQUESTS_MAX and self._content_bytes + small <= CONTENT_BYTES_MAX)
        if put.size <= INLINE_BYTES_MAX:
            self._begin(self._put(request.id, put, await self._reader.readexactly(put.size)), small)
        else:
            await self._stream_in(request.id, put)

    async def _stream_in(self, request_id: Id, put: PutRequest) -> None:
        content = Content()
        self._contents.add(content)
        task = self._begin(self._put(request_id, put, content), 0)
        task.add_done_callback(lambda _: content.abandon())
        try:
            left = put.size
            while left:
                block = await self._reader.read(min(BLOCK_BYTES, left))
                if not block:
                    raise ConnectionResetError
                left -= len(block)
                await content.feed(block)
            content.end()
        except BaseException:
            content.cut("the client left before all bytes had come")
            raise
        finally:
            self._contents.discard(content)

    async def _skip(self, size: int) -> None:
        while size:
            block = await self._reader.read(min(BLOCK_BYTES, size))
            if not block:
                raise ConnectionResetError
            size -= len(block)

    # --- performing ---

    def _begin(self, work: Coroutine[Any, Any, None], content_bytes: int) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        self._content_bytes += content_bytes

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._content_bytes -= content_bytes
            self._ended.set()

        task.add_done_callback(ended)
        return task

    async def _put(self, request_id: Id, put: PutRequest, content: bytes | AsyncIterator[bytes]) -> None:
        with _Answering(self, request_id):
            self._answer(request_id, await self._door.put(put, content))

    async def _perform(self, request: Request) -> None:
        with _Answering(self, request.id):
            match request.command:
                case "get":
                    await self._stream_out(request.id, *await self._door.get(**request.arguments))
                case "ls":
                    await self._rows(request.id, self._door.ls(**request.arguments))
                case "events":
                    await self._rows(request.id, self._door.events(**request.arguments))
                case "sync":
                    await self._rows(request.id, self._door.sync(**request.arguments))
                case "lend":
                    await self._rows(request.id, self._door.lend(**request.arguments))
                case "verify":
                    await self._rows(request.id, self._door.verify(**request.arguments))
                case "wait":
                    self._answer(request.id, await self._door.wait(WaitRequest(**request.arguments)))
                case command:
                    self._answer(request.id, await getattr(self._door, command)(**request.arguments))

    async def _rows(self, request_id: Id, rows: AsyncIterator[Facts]) -> None:
        """Each row a line with `more`, and a last line without a row."""
        count = 0
        try:
            async for row in rows:
                self._send({"id": request_id, "more": True, "answer": row})
                count += 1
                if count % ROWS_BETWEEN_TURNS == 0:
                    await self._drain()
                    await asyncio.sleep(0)
            self._send({"id": request_id})
        finally:
            await _close(rows)

    async def _stream_out(self, request_id: Id, facts: Facts, blocks: AsyncIterator[bytes]) -> None:
        """The facts, then blocks, each behind a line that tells its bytes, and a last line."""
        try:
            self._send({"id": request_id, "more": True, "answer": facts})
            async for block in blocks:
                self._send({"id": request_id, "more": True, "bytes": len(block)}, block)
                await self._drain()
            self._send({"id": request_id})
        finally:
            await _close(blocks)

    # --- answering ---

    def _answer(self, request_id: Id, answer: Facts | list[Facts]) -> None:
        self._send({"id": request_id, "answer": answer})

    def _refuse(self, request_id: Id, sentence: str, exit_code: int) -> None:
        self._send({"id": request_id, "error": sentence, "exit": exit_code})

    def refuse(self, request_id: Id, problem: BaseException) -> bool:
        """Answer with an error, if this is one; whether it was."""
        if isinstance(problem, DoorError):
            self._refuse(request_id, problem.sentence, problem.exit_code)
        elif isinstance(problem, Exception):
            _LOGGER.error("admin: a request failed: %r", problem, exc_info=problem)
            sentence = f"the agent failed at this ({type(problem).__name__}: {problem}); its log has more"
            self._refuse(request_id, sentence, EXIT_NOT_ACHIEVED)
        return isinstance(problem, Exception)

    def _send(self, line: Facts, block: bytes = b"") -> None:
        """Queue a line. Those of one turn of the event loop leave together: one system call for many puts."""
        self._outgoing.append(_ENCODE(line).encode() + b"\n")
        if block:
            self._outgoing.append(block)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and not self._writer.is_closing():
            self._writer.write(b"".join(outgoing))

    async def _drain(self) -> None:
        self._flush()
        async with self._draining:
            await self._writer.drain()

    # --- waiting ---

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for requests to end until the condition holds. Raises ConnectionResetError when the client is gone."""
        while not condition():
            self._ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_LOOK_SECONDS):
                    await self._ended.wait()
            if not condition() and self._gone():
                raise ConnectionResetError

    def _gone(self) -> bool:
        """Whether the client closed altogether. One that only stopped sending (`nc -N`) still gets its answers."""
        sock = self._writer.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), 0)  # the kernel tells of a hang-up unasked
        return bool(poll.poll(0))


async def close_writer(writer: asyncio.StreamWriter) -> None:
    """Close a connection once its client has read what was written; at once when the caller is cancelled."""
    writer.close()
    try:
        await asyncio.shield(writer.wait_closed())
    except ConnectionError:
        pass  # the client closed first
    except asyncio.CancelledError:
        writer.transport.abort()
        raise


class _Answering:
    """Turns what a request raises into its answer; a cancelled request has nobody to answer."""

    def __init__(self, connection: Connection, request_id: Id) -> None:
        self._connection, self._request_id = connection, request_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> bool:
        if isinstance(problem, ConnectionError):
            return True  # the client left; whoever reads from it notices
        return problem is not None and self._connection.refuse(self._request_id, problem)


async def _close(iterator: AsyncIterator[Any]) -> None:
    """End an iterator that was left half-way: a generator holds files and pages open."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
