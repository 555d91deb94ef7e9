"""The kernel's notifications below one root: which folders are watched, and what happened in them.

The one module that knows the inotify library. Folder paths are kept here rather than in the library, whose paths go
stale when a folder is renamed. Used from the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify, Mask, Watch

log = logging.getLogger(__name__)

EVENT_PAUSE_SECONDS = (
    0.005  # lets create, write and close of one file, or many writes of one database, become one batch
)
BUSY_PAUSE_SECONDS = 0.03  # where databases are written without end: fewer wake-ups, and still a prompt look at others
EVENTS_PER_BATCH_MAX = 4096  # about 40 ms of work; then the loop serves others


class Change(Enum):
    """What happened to one name in one folder."""

    WRITTEN = auto()  # closed after writing, or moved here
    CREATED = auto()  # a new name: a link, or a file whose writer may still be at work
    MODIFIED = auto()  # bytes written, the file still open
    GONE = auto()  # deleted or moved away
    FOLDER_NEW = auto()
    FOLDER_MOVED = auto()  # away, with all that is in it; a deleted folder was emptied by notices of its own
    OVERFLOW = auto()  # the kernel dropped events; only a scan can tell what


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification, made here and read by the watcher; `path` is relative to the root ("" for OVERFLOW)."""

    change: Change
    path: str


class Watches:
    """All inotify watches below one root. `available` is False where the kernel or platform gives none."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._inotify: Inotify | None = None
        self._folders: dict[int, str] = {}  # watch descriptor -> relative folder; the kernel's limit bounds it
        self._watches: dict[str, Watch] = {}
        self._unfinished = False
        self._pause_seconds = EVENT_PAUSE_SECONDS
        self.limited = False  # the kernel's limit of watches was reached: only rescans see the rest

    @property
    def available(self) -> bool:
        return self._inotify is not None

    def __len__(self) -> int:
        return len(self._folders)

    def open(self) -> None:
        self._inotify = _open_inotify()

    def watch(self, folder: str, *, modifications: bool) -> None:
        """Watch a folder, or renew its watch; adding it before its entries are read leaves no gap between."""
        if self._inotify is None:
            return
        try:
            watch = self._inotify.add_watch(os.path.join(self._root, folder), _mask(modifications))
        except OSError as error:
            self._refuse(folder, error)
            return
        earlier = self._watches.get(folder)
        if earlier is not None and earlier.wd != watch.wd:
            self._remove(earlier)  # another folder has taken the name
        if self._folders.get(watch.wd, folder) != folder:
            self._watches.pop(self._folders[watch.wd], None)  # the same folder has taken another name
        self._folders[watch.wd], self._watches[folder] = folder, watch

    def forget(self, folder: str) -> None:
        """Drop the watches of a folder that moved away and of all below it: their paths are no longer true."""
        below = [path for path in self._watches if path == folder or path.startswith(folder + "/")]
        for path in below:
            self._remove(self._watches.pop(path))

    def forget_all(self) -> None:
        for folder in [path for path in self._watches if "/" not in path]:
            self.forget(folder)

    async def notices(self) -> list[Notice]:
        """Wait for notifications and return a batch of them in their order; waits for ever when there are none."""
        while True:
            if not self._unfinished:
                await self._readable()
                await asyncio.sleep(self._pause_seconds)
            events = list(self._drain())
            self._unfinished = (
                len(events) == EVENTS_PER_BATCH_MAX
            )  # the library may hold more than the descriptor shows
            batch = [notice for event in events if (notice := self._translated(event)) is not None]
            busy = bool(batch) and all(notice.change is Change.MODIFIED for notice in batch)
            self._pause_seconds = BUSY_PAUSE_SECONDS if busy else EVENT_PAUSE_SECONDS
            if batch:
                return batch

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    async def _readable(self) -> None:
        if self._inotify is None:
            await asyncio.Event().wait()
            return
        loop, descriptor, ready = asyncio.get_running_loop(), self._inotify.fd, asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)

    def _drain(self) -> Iterator[Event]:
        for _ in range(EVENTS_PER_BATCH_MAX):
            event = None if self._inotify is None else self._inotify.sync_get()
            if event is None:
                return
            yield event

    def _translated(self, event: Event) -> Notice | None:
        from asyncinotify import Mask

        if Mask.Q_OVERFLOW in event.mask:
            return Notice(Change.OVERFLOW, "")
        watch = event.watch
        folder = None if watch is None else self._folders.get(watch.wd)
        if watch is None or folder is None:
            return None
        if Mask.IGNORED in event.mask:  # the folder was deleted, or its file system unmounted
            self._folders.pop(watch.wd)
            self._watches.pop(folder, None)
            return None
        change = _change(event.mask)
        if change is None or event.name is None:
            return None
        return Notice(change, f"{folder}/{event.name}" if folder else str(event.name))

    def _remove(self, watch: Watch) -> None:
        self._folders.pop(watch.wd, None)
        try:
            if self._inotify is not None:
                self._inotify.rm_watch(watch)
        except OSError:
            return  # the folder was deleted, and its watch with it

    def _refuse(self, folder: str, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return  # vanished since it was listed
        if error.errno != errno.ENOSPC:
            log.warning("folder %.80r cannot be watched (%s); the periodic scan covers it", folder, error.strerror)
        elif not self.limited:
            self.limited = True
            log.warning(
                "the limit of inotify watches is reached after %d folders; the others are seen by scans only, which now"
                " run more often; raise fs.inotify.max_user_watches",
                len(self._folders),
            )


def _open_inotify() -> Inotify | None:
    try:
        from asyncinotify import Inotify

        return Inotify(cache_size=64, sync_timeout=0)
    except (ImportError, RuntimeError) as error:
        why = str(error)
    except OSError as error:
        why = str(error.strerror)
    log.warning("files are found by scans only, because inotify cannot be used (%s)", why)
    return None


def _mask(modifications: bool) -> Mask:
    from asyncinotify import Mask

    wanted = Mask.CLOSE_WRITE | Mask.MOVE | Mask.CREATE | Mask.DELETE
    if modifications:  # only where databases live: elsewhere every write of every file would wake us
        wanted |= Mask.MODIFY
    return wanted | Mask.ONLYDIR | Mask.DONT_FOLLOW | Mask.EXCL_UNLINK


@lru_cache(maxsize=256)  # few masks come, each thousands of times, and flags are slow to take apart
def _change(mask: Mask) -> Change | None:
    from asyncinotify import Mask

    arrived, left = mask & (Mask.CREATE | Mask.MOVED_TO), mask & (Mask.DELETE | Mask.MOVED_FROM)
    if Mask.ISDIR in mask:
        return Change.FOLDER_NEW if arrived else Change.FOLDER_MOVED if Mask.MOVED_FROM in mask else None
    if mask & (Mask.CLOSE_WRITE | Mask.MOVED_TO):
        return Change.WRITTEN
    if left:
        return Change.GONE
    if arrived:
        return Change.CREATED
    return Change.MODIFIED if Mask.MODIFY in mask else None
