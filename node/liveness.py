"""Was this file written while we watched, or did it lie here before? The rule that keeps old files from beating new.

A file counts as live when an event showed it arriving, or when a scan finds it where an earlier complete scan of the
same root, folder and file system did not. Whatever else a scan finds lay there before: it is remembered as such until
it is known to the caller or changes, so that a second scan does not promote what the first one reported in vain.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from node.stability import FileIdentity

OLD_FILES_MAX = (
    100_000  # about 40 MB while a node without a manifest takes in its files; beyond, nothing scanned is live
)
UNREAD_FOLDERS_MAX = 10_000  # beyond, the scan does not count as complete


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one complete scan covered. Made when it ends, compared with by the next one."""

    root: tuple[int, int]
    devices: frozenset[int]
    unread: frozenset[str]

    def covered(self, path: str, device: int) -> bool:
        """Whether the scan would have seen this file: its file system was there and its folders could be read."""
        if device not in self.devices:
            return False
        return not self.unread or not any(path.startswith(folder + "/") for folder in sorted(self.unread))


class Liveness:
    """One per watcher: told of each scan's course, asked for each file."""

    def __init__(self) -> None:
        self._baseline: Baseline | None = None
        self._old: dict[str, FileIdentity] = {}
        self._old_overflowed = False
        self._root = (0, 0)
        self._devices: set[int] = set()
        self.unread: set[str] = set()  # folders that the scan under way, or else the last one, could not list

    def begin_scan(self, root: os.stat_result) -> None:
        """A root of another identity (an unmounted share, a replaced folder) was never scanned before."""
        self._root = (root.st_dev, root.st_ino)
        if self._baseline is not None and self._baseline.root != self._root:
            self._baseline = None
        self._devices, self.unread = {root.st_dev}, set()

    def folder_unread(self, folder: str) -> None:
        self.unread.add(folder)

    def scanned(self, path: str, status: os.stat_result, *, remember: bool) -> bool:
        """Whether this file, found by the scan under way, is live; if not, `remember` it as lying there before."""
        self._devices.add(status.st_dev)
        baseline, identity = self._baseline, FileIdentity.of(status)
        covered = baseline is not None and not self._old_overflowed and baseline.covered(path, status.st_dev)
        if covered and self._old.get(path) != identity:
            return True
        if not remember:
            return False
        if path in self._old or len(self._old) < OLD_FILES_MAX:
            self._old[path] = identity
        else:
            self._old_overflowed = True
        return False

    def is_old(self, path: str, status: os.stat_result) -> bool:
        """Whether an event concerns a file that has not changed since a scan found it lying there."""
        return bool(self._old) and self._old.get(path) == FileIdentity.of(status)

    def old(self) -> Collection[str]:
        """The files found lying there that the caller does not know yet."""
        return self._old.keys()

    def known(self, path: str) -> None:
        """The caller knows the file, or it is gone: its past does not matter any more."""
        self._old.pop(path, None)

    def end_scan(self) -> None:
        """The scan reached its end; what it covered is the measure from now on."""
        complete = "" not in self.unread and len(self.unread) <= UNREAD_FOLDERS_MAX
        if complete:
            self._baseline = Baseline(self._root, frozenset(self._devices), frozenset(self.unread))
