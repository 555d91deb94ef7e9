"""Why the store refuses or fails: one exception for each reason that a caller treats differently.

Every message is one sentence that says what is wrong and, where a person can act, what to do. An `OSError` of the
kernel is turned into `StorageFailed` at the edge of this package, so that nobody above parses errno values.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """Anything the store refuses or fails; `str()` of it is one sentence."""


class PathRefused(StoreError):
    """A path that does not stay below the root, or that leads through something other than plain folders."""


class StoreRefused(StoreError):
    """The root cannot serve as a store: its own folder is garbled or not writable."""


class WrongBytes(StoreError):
    """Bytes, or a chunk list, that are not those of the digest. Nothing of them was kept."""


class BlobChanged(StoreError):
    """A file no longer has the stat it had when its digest was taken; what was read from it must not be sent."""


class FileChanging(StoreError):
    """A file changed while it was read; try again when it is quiet."""


class FileGone(StoreError):
    """A file that was to be accepted is not there any more."""


class ClaimedElsewhere(StoreError):
    """Another member of the sharing group has claimed this file and will accept it."""

    def __init__(self, claimer: str, age_seconds: float) -> None:
        super().__init__(f"{claimer} claimed this file {age_seconds:.0f} s ago and accepts it")
        self.claimer = claimer
        self.age_seconds = age_seconds


class NoRoom(StoreError):
    """The disk has no room for this under the limits of the hosts file."""


class NotReserved(StoreError):
    """Bytes came for an artifact for which no room was reserved."""


class StorageFailed(StoreError):
    """A system call failed. What was promised before still holds, and the next call may work."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


ADVICE = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space or raise the quota",
    errno.EIO: "the disk reports an input/output error; check its health",
    errno.EROFS: "the file system is read-only; remount it or check the disk",
    errno.EACCES: "permission is denied; give the agent's user access",
    errno.EPERM: "permission is denied; give the agent's user access",
    errno.EMFILE: "this process has too many open files; raise its limit of open files",
    errno.ENFILE: "the machine has too many open files; raise its limit",
}


def failure(error: OSError, doing: str) -> StorageFailed:
    """The sentence for a failed system call, as in "cannot write x.part: the disk is full; free some space"."""
    code = error.errno or 0
    return StorageFailed(f"cannot {doing}: {ADVICE.get(code) or os.strerror(code).lower()}", code)


@contextmanager
def sentences(doing: str) -> Iterator[None]:
    """Turn an `OSError` of the block into `StorageFailed`."""
    try:
        yield
    except OSError as error:
        raise failure(error, doing) from error
