"""Paths below a root, walked so that no symbolic link leads out of it.

Every component is opened with O_NOFOLLOW relative to the descriptor of the one before. Changes of names go through
the `FileLayer`, which speaks of paths; whoever makes one walks the folder before and compares `identity` afterwards,
so that a folder exchanged for a link in between is noticed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from protocol.names import OWN_FOLDER, NameRefused, check_path
from protocol.values import Digest, Place
from storage.files import FileLayer
from storage.refusals import FileGone, PathRefused, failure

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: a FIFO of that name must not hold us up
MODE_MASK = 0o777  # permission bits; set-user-id and its kin never travel
FOLDER_MODE = 0o755  # folders of published files are the users'; they read and list them


class Stamp(NamedTuple):
    """One state of one file. While all four are equal, the bytes are taken to be the same."""

    device: int
    inode: int
    size: int
    mtime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def place_stamp(place: Place) -> Stamp:
    return Stamp(place.device, place.inode, place.size, place.mtime_ns)


def place_of(path: str, digest: Digest, stamp: Stamp) -> Place:
    """The place of a digest at a path relative to the root; what lies in our own folder is private."""
    private = path.partition("/")[0] == OWN_FOLDER
    return Place(path, digest, stamp.device, stamp.inode, stamp.size, stamp.mtime_ns, private)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was reached without following a link: `path` for the file layer, `identity` to compare later."""

    path: Path
    identity: tuple[int, int]


def checked_parts(relpath: str) -> list[str]:
    """The components of a relative path; raises PathRefused for `..`, absolute, over-long and unprintable ones."""
    try:
        return check_path(relpath).split("/")
    except NameRefused as refused:
        raise PathRefused(str(refused)) from refused


def walk(files: FileLayer, root: Path, parts: list[str], make: bool = False) -> Folder:
    """Reach the folder `parts` below the root, making what is missing (each one durable in its parent) on request."""
    here = root
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)  # the root itself may well be a link: the operator chose it
    try:
        for part in parts:
            below = _enter(fd, part, "/".join(parts), make_at=(files, here) if make else None)
            os.close(fd)
            fd, here = below, here / part
        status = os.fstat(fd)
        return Folder(here, (status.st_dev, status.st_ino))
    finally:
        os.close(fd)


def _enter(fd: int, part: str, whole: str, make_at: tuple[FileLayer, Path] | None) -> int:
    try:
        return os.open(part, FOLDER_FLAGS, dir_fd=fd)
    except FileNotFoundError:
        if make_at is None:
            raise
    except OSError as error:
        raise _refusal(error, part, whole) from error
    files, parent = make_at
    with suppress(FileExistsError):  # somebody else made it just now
        files.mkdir(parent / part, FOLDER_MODE)
    files.fsync_dir(parent)
    try:
        return os.open(part, FOLDER_FLAGS, dir_fd=fd)
    except OSError as error:
        raise _refusal(error, part, whole) from error


def _refusal(error: OSError, part: str, whole: str) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return PathRefused(
            f"{part!r} in {whole!r} is a link or a file, not a folder; nothing is followed out of the root"
        )
    return error


def open_below(files: FileLayer, root: Path, relpath: str) -> tuple[int, os.stat_result]:
    """Open a regular file below the root for reading. Raises FileGone, PathRefused or StorageFailed."""
    parts = checked_parts(relpath)
    try:
        folder = walk(files, root, parts[:-1])
        fd = files.open(folder.path / parts[-1], FILE_FLAGS)
    except FileNotFoundError as error:
        raise FileGone(f"{relpath} is not there any more") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise PathRefused(f"{relpath} is not a regular file; only plain files are artifacts") from error
        raise failure(error, f"open {relpath}") from error
    try:
        status = files.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PathRefused(f"{relpath} is not a regular file; only plain files are artifacts")
        if walk(files, root, parts[:-1]).identity != folder.identity:
            raise PathRefused(f"the folder of {relpath} was exchanged while it was opened; try again")
    except OSError as error:
        files.close(fd)
        raise failure(error, f"open {relpath}") from error
    except PathRefused:
        files.close(fd)
        raise
    return fd, status


def entry_status(files: FileLayer, path: Path) -> os.stat_result | None:
    """The entry itself, a link not followed; None when there is none."""
    try:
        return files.lstat(path)
    except FileNotFoundError:
        return None


def ensure_folder(files: FileLayer, path: Path, mode: int = 0o700) -> None:
    """Make one folder of our own durably, unless it is there."""
    with suppress(FileExistsError):
        files.mkdir(path, mode)
    files.fsync_dir(path.parent)


def remove_if_there(files: FileLayer, path: Path) -> bool:
    """Unlink a file of our own; whether there was one."""
    try:
        files.unlink(path)
    except FileNotFoundError:
        return False
    return True


def discard_draft(files: FileLayer, path: Path) -> None:
    """Remove a draft if it is still there. One that cannot be removed means nothing, and the next start clears it."""
    with suppress(OSError):
        files.unlink(path)
