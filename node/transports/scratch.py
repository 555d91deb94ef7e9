"""Where external programs write, and how what they wrote becomes staging: hashed again, chunk by chunk.

A program's file lies in a folder of its own beside staging, with room reserved for it. Nothing of it counts until
`absorb` has read a chunk back and found that it is what the artifact's chunk list says; wrong chunks are left out, and
the next way fetches them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from node.bulk_stream import sentence_of
from node.progress import DISK
from node.transports.order import Kit, Order
from protocol.chunks import CHUNK_BYTES, LIST_PAGE_CHUNKS, chunk_count, chunk_digest, chunk_length
from protocol.values import Digest, Stripe
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

FILE = "content"


class ScratchRefused(Exception):
    """There is no place for what a program would write; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The folder of one order."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def size(self) -> int:
        """Bytes written so far, wherever the program keeps them while it works."""
        found = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                found += min(status.st_size, status.st_blocks * 512) if stat.S_ISREG(status.st_mode) else 0
        return found


@contextlib.contextmanager
def scratch_for(kit: Kit, order: Order) -> Iterator[Scratch]:
    """A folder with room for the artifact. It is removed afterwards. Raises ScratchRefused."""
    record = order.record
    key = scratch_key(record.digest)
    folder = kit.workshop / record.digest.hex()
    with _owned(folder) as made:
        try:
            refusal = kit.reserve(key, record.size)
            if refusal:
                raise ScratchRefused(refusal)
            yield made
        finally:
            kit.release(key)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[Scratch]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as problem:
        raise ScratchRefused(f"{folder} cannot be made: {problem.strerror or problem}") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ScratchRefused("another transfer of these bytes is under way") from None
    else:
        yield Scratch(folder)
    finally:
        os.close(lock)


def prepare(kit: Kit, order: Order, path: Path) -> None:
    """Make a file of full size that holds what staging has verified already, for a program that resumes from it."""
    record = order.record
    partial = kit.depot.partial(record)
    try:
        source = getattr(partial, "fd", -1)
        if source < 0 or not partial.leaves_known or partial.missing() == (Stripe(0, chunk_count(record.size)),):
            return
        path.parent.mkdir(mode=0o700)
        with path.open("wb") as target:
            target.truncate(record.size)
            for first, end in _present(record.size, partial.missing()):
                _copy(source, target.fileno(), first, end)
    finally:
        partial.close()


def _present(size: int, missing: tuple[Stripe, ...]) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of what is not missing."""
    at = 0
    for stripe in missing:
        first = stripe.first * CHUNK_BYTES
        if first > at:
            yield at, first
        at = min(size, (stripe.first + stripe.count) * CHUNK_BYTES)
    if at < size:
        yield at, size


def _copy(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        count = os.copy_file_range(source, target, end - at, at, at)
        if not count:
            raise ScratchRefused("staging ends early; it is fetched whole")
        at += count


def sweep(workshop: Path) -> None:
    """At the start of an agent: what the last life's programs left behind."""
    shutil.rmtree(workshop, ignore_errors=True)


def scratch_key(digest: Digest) -> Digest:
    """The name under which room for a program's file is reserved, beside that of staging itself."""
    return blake2b(digest, digest_size=32, person=b"spore.scratch").digest()


def absorb(kit: Kit, order: Order, scratch: Scratch) -> str:
    """Take what a program wrote into staging; "" when the artifact is complete now, else the reason in a sentence."""
    try:
        with _opened(scratch.file) as source:
            return (
                _absorb_small(kit, order, source) if order.record.size <= CHUNK_BYTES else _absorb(kit, order, source)
            )
    except (StoreError, OSError) as problem:
        return sentence_of(problem)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise WrongBytes("what came is no regular file; it was dropped")
        yield source
    finally:
        os.close(source)


def _absorb_small(kit: Kit, order: Order, source: int) -> str:
    record = order.record
    content = os.pread(source, record.size + 1, 0)
    if len(content) != record.size:
        return f"what came of {record.name} has {len(content)} bytes instead of {record.size}; it was dropped"
    return next((why for _, why in kit.depot.arrive_small([(record, content)])), "")


def _absorb(kit: Kit, order: Order, source: int) -> str:
    partial = kit.depot.partial(order.record)
    try:
        if not partial.leaves_known:
            return f"the chunk list of {order.record.name} is not known, so nothing that came can be verified"
        wrong = sum(_wrong_chunks(order, partial, source))
        order.meter.enter(DISK)
        if partial.complete:
            return ""
        return (
            f"{wrong} chunks of {order.record.name} did not come or are not what their digests say; they were dropped"
        )
    finally:
        partial.close()


def _wrong_chunks(order: Order, partial: Partial, source: int) -> Iterator[bool]:
    """For each chunk that was missing, whether it still is."""
    leaves = partial.leaves() or ()
    for stripe in partial.missing():
        for index in range(stripe.first, stripe.first + stripe.count):
            order.job.go_on()
            chunk = os.pread(source, chunk_length(order.record.size, index), index * CHUNK_BYTES)
            wrong = chunk_digest(chunk) != leaves[index] if chunk else True
            if not wrong:
                partial.write_chunk(index, chunk)
            yield wrong


def pages(count: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the pages of a chunk list."""
    for first in range(0, count, LIST_PAGE_CHUNKS):
        yield first, min(LIST_PAGE_CHUNKS, count - first)
