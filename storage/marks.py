"""Marks: what each user of a root writes into `.spore/members/`, so that others who mount the same root can find it.

A mark is a file named after its node that holds the nonce of the node's life in hex. It is replaced as a whole; a look
opens it anew each time, which makes an NFS client ask its server, once what it knows of the folder is out of date.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from protocol.names import NODE_PATTERN
from protocol.values import NodeId
from storage.files import FileLayer
from storage.folders import ensure_folder, remove_if_there
from storage.refusals import sentences
from storage.store import Store

NONCE_BYTES_MAX = 64
MARK_SECONDS_MAX = 30 * 86_400  # a node that has not started for so long shares nothing


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks in one store."""

    store: Store
    files: FileLayer

    @property
    def folder(self) -> Path:
        return self.store.own / "members"

    def write(self, nonce: bytes) -> None:
        """Write our own. Raises StoreError."""
        with sentences("write our mark into the root"):
            ensure_folder(self.files, self.folder)
            draft = self.folder / f"{self.store.node}.new"
            remove_if_there(self.files, draft)
            fd = self.files.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                self.files.write(fd, nonce.hex().encode())
                self.files.fsync(fd)
            finally:
                self.files.close(fd)
            self.files.rename(draft, self.folder / self.store.node)
            self.files.fsync_dir(self.folder)

    def shows(self, node: NodeId, nonce: bytes) -> bool:
        """Whether the mark of a node is there with this nonce. Raises StoreError."""
        with sentences(f"look for the mark of {node}"):
            try:
                fd = self.files.open(self.folder / node, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                self.files.listdir(self.store.own)  # an NFS client may only look again once it has to
                return False
            try:
                return self.files.pread(fd, NONCE_BYTES_MAX, 0) == nonce.hex().encode()
            finally:
                self.files.close(fd)


def others(files: FileLayer, own: Path, node: NodeId) -> list[NodeId]:
    """Who else has marked the root below which `own` (`.spore`) lies, within a month."""
    folder = own / "members"
    try:
        names = [name for name in files.listdir(folder) if name != node and NODE_PATTERN.fullmatch(name)]
        fresh = [n for n in names if time.time() - files.lstat(folder / n).st_mtime < MARK_SECONDS_MAX]
    except OSError:
        return []
    return sorted(name for name in fresh if not name.endswith(".new"))
