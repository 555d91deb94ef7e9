"""Many puts over one connection: this thread reads files and sends, another reads the answers.

The agent reads ahead as far as its bounds allow and answers in any order; nothing is asked twice. Small files leave in
batches, so that ten thousand of them cost a few hundred system calls on the socket.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cli.client import Client, request_line
from node.cli.failures import AgentRefused, CommandFailed
from node.cli.sources import Opened, Source, SourceFailed, opened
from node.local_socket import INLINE_BYTES_MAX

BATCH_BYTES = 128 << 10  # what is sent at once; the kernel's buffer of a UNIX socket holds about 200 KiB


@dataclass(frozen=True, slots=True)
class Terms:
    """What every put of a command asks for beside its content."""

    wait_copies: int = 0
    domains: int = 0
    timeout_seconds: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """Those that are not the default: ten thousand lines are shorter without."""
        terms = {"wait_copies": self.wait_copies, "domains": self.domains, "timeout_seconds": self.timeout_seconds}
        return {name: value for name, value in terms.items() if value}


@dataclass(slots=True)
class Tally:
    """How far a command is; written by both threads, read by whoever draws it."""

    files: int
    total_bytes: int = 0  # of the files read so far; of one file, its size
    read_bytes: int = 0
    answered: int = 0
    oldest: Source | None = None  # of those not yet answered


@dataclass(slots=True)
class _Asked:
    """The requests on one connection, by their place in the command."""

    waiting: dict[int, Source] = field(default_factory=dict)
    ended: CommandFailed | None = None


class Pipeline:
    """Puts sources in order. `outcomes[i]` is the answer to source i, or why there is none."""

    def __init__(self, directory: Path, terms: Terms, sources: list[Source], look: Callable[[Tally], None]) -> None:
        self._directory, self._terms, self._sources, self._look = directory, terms, sources, look
        self.outcomes: dict[int, dict[str, Any] | CommandFailed] = {}
        self.tally = Tally(len(sources))

    def run(self) -> None:
        """Put everything. Raises NoAgent when nobody answers at first; later failures are outcomes."""
        start = 0
        while start < len(self._sources):
            with Client(self._directory) as client:
                start = _Run(self, client).go(start)


class _Run:
    """One connection of a pipeline: until all is answered, or a file spoils the connection."""

    def __init__(self, pipeline: Pipeline, client: Client) -> None:
        self._pipeline, self._client = pipeline, client
        self._sources, self._outcomes, self._tally = pipeline._sources, pipeline.outcomes, pipeline.tally
        self._asked = _Asked()
        self._changed = threading.Condition()
        self._closing = False
        self._batch = bytearray()

    def go(self, start: int) -> int:
        """Put from source `start` on; returns the first that is still to be put."""
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        following = len(self._sources)
        try:
            following = self._send_all(start)
            self._flush()
            self._await(lambda: not self._asked.waiting)
        except (BrokenPipeError, ConnectionResetError):
            self._await(lambda: False)  # the agent closed; the reader learns why
        finally:
            self._closing = True
            with suppress(OSError):
                self._client.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader
            reader.join()
        if self._asked.ended is not None:
            for index in range(start, len(self._sources)):
                self._outcomes.setdefault(index, self._asked.ended)
            return len(self._sources)
        return following

    # --- sending ---

    def _send_all(self, start: int) -> int:
        for index in range(start, len(self._sources)):
            if self._asked.ended is not None:
                return len(self._sources)
            source = self._sources[index]
            try:
                with opened(source) as found:
                    clean = self._send(index, found)
            except SourceFailed as problem:
                self._outcomes[index] = problem
                clean = True
            if not clean:
                return index + 1
        return len(self._sources)

    def _send(self, index: int, found: Opened) -> bool:
        """Send one file; False when it changed after its beginning was sent, so that the connection must end."""
        if found.size <= INLINE_BYTES_MAX:
            content = found.whole()
            self._expect(index, found)
            self._batch += content
            self._tally.read_bytes += len(content)
            if len(self._batch) >= BATCH_BYTES:
                self._flush()
            return True
        self._expect(index, found)
        self._flush()
        try:
            for block in found.blocks():
                self._client.sock.sendall(block)
                self._tally.read_bytes += len(block)
                self._pipeline._look(self._tally)
        except SourceFailed as problem:
            with self._changed:
                self._asked.waiting.pop(index, None)
            self._outcomes[index] = problem
            return False
        return True

    def _expect(self, index: int, found: Opened) -> None:
        source = found.source
        with self._changed:
            self._asked.waiting[index] = source
        self._tally.total_bytes += found.size
        header = {"kind": source.kind, "name": source.name, "size": found.size, "mode": found.mode}
        self._batch += request_line(index, "put", header | self._pipeline._terms.arguments())

    def _flush(self) -> None:
        if self._batch:
            self._client.sock.sendall(self._batch)
            self._batch.clear()
        self._pipeline._look(self._tally)

    # --- answers ---

    def _await(self, condition: Callable[[], bool]) -> None:
        """Wait for answers until the condition holds or the connection ends, showing how far it is."""
        with self._changed:
            while not condition() and self._asked.ended is None:
                self._changed.wait(0.2)
                self._tally.oldest = next(iter(self._asked.waiting.values()), None)
                self._pipeline._look(self._tally)

    def _read(self) -> None:
        """In the reading thread: file every answer until the connection ends."""
        try:
            while True:
                self._file(self._client.read_line())
        except (CommandFailed, OSError, ValueError) as problem:
            with self._changed:
                if not self._closing:
                    self._asked.ended = problem if isinstance(problem, CommandFailed) else self._client.gone()
                self._changed.notify()

    def _file(self, line: dict[str, Any]) -> None:
        index = line.get("id")
        with self._changed:
            if index is None:
                raise AgentRefused(line.get("error", "the agent answered nonsense"), line.get("exit", 1))
            if self._asked.waiting.pop(index, None) is None:
                return
            self._outcomes[index] = AgentRefused(line["error"], line["exit"]) if "error" in line else line["answer"]
            self._tally.answered += 1
            self._changed.notify()
