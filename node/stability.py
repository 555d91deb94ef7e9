"""Is anybody still writing this file? What the kernel can say about it, and how one state of a file is recognised.

A read lease is granted only while no process has the file open (or mapped) for writing, so asking for one answers
the question exactly; it is given back at once. Where the kernel refuses to answer (another user's file without
CAP_LEASE, file systems without leases) the caller compares two looks at size and mtime instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import sys
from dataclasses import dataclass
from enum import Enum


class Writer(Enum):
    """What is known about writers of a file: said by `look`, read by the watcher."""

    NONE = "none"  # proven: nobody has it open for writing
    PRESENT = "present"  # proven: somebody has
    UNKNOWN = "unknown"  # the kernel gives no lease here; only stable size and mtime can tell


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """One state of one file: while all four are equal, the bytes are taken to be the same."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def look(path: str) -> tuple[os.stat_result, Writer]:
    """Stat the regular file at `path` and say whether it has a writer, both through one descriptor.

    Raises OSError as `open` does; a symlink raises ELOOP and anything but a regular file EINVAL. O_NONBLOCK keeps a
    FIFO, or a file leased by somebody else, from holding us up.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BlockingIOError:
        return os.lstat(path), Writer.PRESENT  # another process holds a write lease (a file server, for example)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return status, writer_of(descriptor)
    finally:
        os.close(descriptor)


def writer_of(descriptor: int) -> Writer:
    """Ask for a read lease on a descriptor opened read-only, and give it back."""
    if sys.platform != "linux":
        return Writer.UNKNOWN
    try:
        # A process that opens the file for writing within these microseconds makes the kernel signal us, by default
        # with SIGIO, whose default action ends the agent. SIGURG is ignored by default; asyncio does not use it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        # EAGAIN: a writer. EACCES: not our file. EINVAL, ENOLCK, EOPNOTSUPP: no leases on this file system.
        return Writer.PRESENT if error.errno == errno.EAGAIN else Writer.UNKNOWN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Writer.NONE


def log_identity(database: str) -> FileIdentity | None:
    """The write-ahead log beside a database; None when there is none or nothing in it."""
    try:
        status = os.lstat(database + "-wal")
    except OSError:
        return None
    return FileIdentity.of(status) if status.st_size else None
