"""Reading, hashing and copying files: the one loop for acceptance, publication and verification.

A copy is hashed as it is made, and what is hashed is what the copy holds: a source that changes meanwhile can make the
copy worthless, never wrong under a digest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol.chunks import CHUNK_BYTES, Hasher
from protocol.values import Digest
from storage.files import FileLayer

# What reflink answers where the file systems cannot share extents; anything else is a real failure.
NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})

Pace = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Hashed:
    """What one pass over some bytes found."""

    digest: Digest
    blake3: Digest
    size: int
    leaves: tuple[Digest, ...]


def hash_file(files: FileLayer, fd: int) -> Hashed:
    """Hash a file from its beginning to its end."""
    return _pass_over(files, fd, None)


def hash_from_disk(files: FileLayer, fd: int, pace: Pace | None = None) -> Digest:
    """The digest of what the disk has, not of what memory keeps of it; `pace` is told of each piece that was read."""
    files.drop_pages(fd)
    hasher = Hasher()
    while block := files.pread(fd, CHUNK_BYTES, hasher.size):
        hasher.update(block)
        if pace is not None:
            pace(len(block))
    return hasher.finish()[0]


def copy_hashed(files: FileLayer, source_fd: int, target_fd: int) -> Hashed:
    """Copy all of the source to the empty target, and hash it on the way."""
    return _pass_over(files, source_fd, target_fd)


def _pass_over(files: FileLayer, source_fd: int, target_fd: int | None) -> Hashed:
    hasher = Hasher()
    while block := files.pread(source_fd, CHUNK_BYTES, hasher.size):
        if target_fd is not None:
            files.pwrite(target_fd, block, hasher.size)
        hasher.update(block)
    return finish(hasher)


def finish(hasher: Hasher) -> Hashed:
    size = hasher.size
    digest, plain, leaves = hasher.finish()
    return Hashed(digest, plain, size, tuple(leaves))


def try_reflink(files: FileLayer, source_fd: int, target_fd: int) -> bool:
    """Share the extents of the source; False where the file system cannot."""
    try:
        files.reflink(source_fd, target_fd)
    except OSError as error:
        if error.errno in NO_REFLINK:
            return False
        raise
    return True


def create_draft(files: FileLayer, path: Path) -> int:
    """Open a new file of our own for writing; it must not exist."""
    return files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
