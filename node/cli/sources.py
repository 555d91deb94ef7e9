"""What `spore put` reads: files and standard input, checked to hold still while they are read."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.cli.failures import EXIT_USAGE, CommandFailed
from node.local_socket import BLOCK_BYTES, INLINE_BYTES_MAX

READS_MAX = 3  # of a small file that changes meanwhile; a file that changes all the time is none to put
DEFAULT_MODE = 0o644  # of what came through a pipe


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to put. `path` None is standard input."""

    path: Path | None
    kind: str
    name: str

    def __str__(self) -> str:
        return "standard input" if self.path is None else str(self.path)


class SourceFailed(CommandFailed):
    """A file that cannot be put; the others can."""


class SourceChanged(SourceFailed):
    """The file changed while its bytes were on their way: what was sent is not what it holds."""

    def __init__(self, source: Source) -> None:
        super().__init__(f"{source} changed while it was read; put it once its writer is done")


@dataclass(slots=True)
class Opened:
    """An open source: its size and mode, and its bytes."""

    source: Source
    descriptor: int
    size: int
    mode: int
    _found: os.stat_result

    def whole(self) -> bytes:
        """The content of a small file."""
        for _ in range(READS_MAX):
            content = self._read_all()
            if content is not None:
                return content
            self._found = os.fstat(self.descriptor)
            self.size = self._found.st_size
            if self.size > INLINE_BYTES_MAX:
                break
        raise SourceChanged(self.source)

    def _read_all(self) -> bytes | None:
        content = os.pread(self.descriptor, self.size + 1, 0)
        return content if len(content) == self.size and not self._changed() else None

    def blocks(self) -> Iterator[memoryview]:
        """The content in blocks. The last one is held back until the file is known to have stood still."""
        buffer = bytearray(BLOCK_BYTES)
        view = memoryview(buffer)
        offset = 0
        while offset < self.size:
            count = os.preadv(self.descriptor, [view[: min(BLOCK_BYTES, self.size - offset)]], offset)
            offset += count
            if count == 0 or (offset == self.size and self._changed()):
                raise SourceChanged(self.source)
            yield view[:count]

    def _changed(self) -> bool:
        now = os.fstat(self.descriptor)
        return (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns)


@contextmanager
def opened(source: Source) -> Iterator[Opened]:
    """Open a source. Raises SourceFailed."""
    if source.path is None:
        with _standard_input(source) as kept:
            yield kept
        return
    try:
        # O_NONBLOCK: a named pipe must be refused, not waited for. On regular files it means nothing.
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        raise SourceFailed(
            f"{source} cannot be read ({problem.strerror}); check its name and rights", EXIT_USAGE
        ) from problem
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SourceFailed(_no_file(source, found), EXIT_USAGE)
        yield Opened(source, descriptor, found.st_size, found.st_mode & 0o777, found)
    finally:
        os.close(descriptor)


def _no_file(source: Source, found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return f"{source} is a folder; name the files in it"
    return f"{source} is no regular file; pipe it into `spore put - --kind KIND --name NAME`"


@contextmanager
def _standard_input(source: Source) -> Iterator[Opened]:
    """Standard input: the file it is redirected from, or what comes through the pipe, kept in a nameless file."""
    stream = sys.stdin.buffer
    found = os.fstat(stream.fileno())
    if stat.S_ISREG(found.st_mode) and os.lseek(stream.fileno(), 0, os.SEEK_CUR) == 0:
        yield Opened(source, stream.fileno(), found.st_size, found.st_mode & 0o777, found)
        return
    import tempfile

    with tempfile.TemporaryFile() as kept:
        _copy(stream, kept, source)
        found = os.fstat(kept.fileno())
        yield Opened(source, kept.fileno(), found.st_size, DEFAULT_MODE, found)


def _copy(stream: BinaryIO, kept: BinaryIO, source: Source) -> None:
    try:
        while block := stream.read(BLOCK_BYTES):
            kept.write(block)
        kept.flush()
    except OSError as problem:
        raise SourceFailed(
            f"{source} cannot be kept in the temporary folder ({problem.strerror}); make room there, or set TMPDIR"
        ) from problem
