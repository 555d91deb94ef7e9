"""Claims: which member of an NFS sharing group accepts a file that all of them see.

A claim is a file in `.spore/claims/` named after (path, size, mtime) and made with O_EXCL, which NFS keeps atomic;
it holds the claimer's name and, once the claimer's manifest knows the file, the word `recorded`. Publishing into a
shared store leaves a claim too, so that the other members' scans let the published file be. A recorded file may make
room for a newer version, whichever member brings it; any other may be a user's that nobody has accepted yet. Claims
need not survive power loss: without them a file is accepted twice, which is harmless.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from protocol.names import NODE_PATTERN
from storage.files import FileLayer
from storage.folders import remove_if_there
from storage.refusals import ClaimedElsewhere
from storage.store import Store

CLAIM_SECONDS_MAX = 7 * 86_400  # by then every member has seen the record, or the file is long forgotten
CLAIM_BYTES_MAX = 80  # a node name has at most 63 characters; then RECORDED
RECORDED = b" recorded"


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of one store; in a store that is not shared every claim succeeds without touching the disk."""

    store: Store
    files: FileLayer

    def claim(self, relpath: str, size: int, mtime_ns: int, take_over: bool = False) -> None:
        """Claim one state of one file. Raises ClaimedElsewhere, unless `take_over` sets an old claim aside.

        One that was recorded stays: a manifest knows that file, and taken for a new one it would beat what replaced it.
        """
        if not self.store.shared:
            return
        path = self._path(relpath, size, mtime_ns)
        for _ in range(2):  # the second round follows a claim that was swept or set aside
            if self._create(path):
                return
            claimer, age_seconds = self._read(path)
            if claimer == self.store.node:
                return
            if not take_over or self._content(path).endswith(RECORDED):
                raise ClaimedElsewhere(claimer, age_seconds)
            self._set_aside(path)
            take_over = False
        raise ClaimedElsewhere(*self._read(path))

    def note(self, relpath: str, size: int, mtime_ns: int) -> None:
        """Leave a claim for a file that we publish, whose record the manifest has."""
        if self.store.shared:
            self._create(self._path(relpath, size, mtime_ns))
            self.record(relpath, size, mtime_ns)

    def record(self, relpath: str, size: int, mtime_ns: int) -> None:
        """What we claimed is in our manifest: from now on it may make room for what replaces it."""
        path = self._path(relpath, size, mtime_ns)
        if not self.store.shared or self._content(path) != self.store.node.encode():
            return  # nobody else, nothing claimed, another's claim, or recorded already
        fd = self.files.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            self.files.write(fd, RECORDED)
        finally:
            self.files.close(fd)

    def recorded(self, relpath: str, size: int, mtime_ns: int) -> bool:
        """Whether a member's manifest knows, or knew, this state of a file: it is no user's unaccepted work."""
        return self.store.shared and self._content(self._path(relpath, size, mtime_ns)).endswith(RECORDED)

    def sweep(self, now_seconds: float) -> int:
        """Remove claims older than a week; how many."""
        if not self.store.shared:
            return 0
        removed = 0
        for name in self.files.listdir(self.store.claims):
            path = self.store.claims / name
            try:
                if now_seconds - self.files.lstat(path).st_mtime > CLAIM_SECONDS_MAX:
                    removed += remove_if_there(self.files, path)
            except FileNotFoundError:
                continue  # another member sweeps as well
        return removed

    def _path(self, relpath: str, size: int, mtime_ns: int) -> Path:
        key = b"%s\0%d\0%d" % (relpath.encode("utf-8", "surrogateescape"), size, mtime_ns)
        return self.store.claims / blake3(key).hexdigest(16)

    def _create(self, path: Path) -> bool:
        try:
            fd = self.files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            self.files.write(fd, self.store.node.encode())
        finally:
            self.files.close(fd)
        return True

    def _read(self, path: Path) -> tuple[str, float]:
        """Claimer and age. An empty claim is one being written; a garbled one counts as somebody's."""
        try:
            age_seconds = max(0.0, time.time() - self.files.lstat(path).st_mtime)
        except FileNotFoundError:
            return "nobody", 0.0
        name = self._content(path).removesuffix(RECORDED).decode("ascii", "replace")
        return (name if NODE_PATTERN.fullmatch(name) else "another member"), age_seconds

    def _content(self, path: Path) -> bytes:
        """What a claim says; nothing where there is none."""
        try:
            fd = self.files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return b""
        try:
            return self.files.pread(fd, CLAIM_BYTES_MAX, 0)
        finally:
            self.files.close(fd)

    def _set_aside(self, path: Path) -> None:
        """Of members that take a claim over at once mostly one moves it away; if two do, both accept: harmless."""
        aside = path.with_name(f"{path.name}.{self.store.node}")
        try:
            self.files.rename(path, aside)
        except FileNotFoundError:
            return
        remove_if_there(self.files, aside)
