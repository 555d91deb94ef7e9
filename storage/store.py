"""A store: the folder `.spore/` below a root, its UUID, and the paths of everything in it.

A root shared by an NFS group is one store: whichever member comes first writes the UUID, by linking a complete file
to its name, so that two members that start together agree on one. Folders that hold a node's own work carry its
name; `versions/` of a shared store tells its files apart by a suffix, since each member removes only its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from protocol.names import OWN_FOLDER, check_node
from protocol.values import Digest, NodeId, StoreId
from storage.files import FileLayer
from storage.folders import ensure_folder, remove_if_there
from storage.refusals import StoreRefused, failure

STORE_FILE_BYTES_MAX = 64  # a UUID in text is 36 bytes and a line end; anything longer is not ours


@dataclass(slots=True)
class Store:
    """An opened store; made by `open_store`, read by everything that touches the root. `shared` turns true, once, when
    it is found that others use the root as well."""

    root: Path
    node: NodeId
    shared: bool
    uuid: StoreId

    @property
    def own(self) -> Path:
        return self.root / OWN_FOLDER

    @property
    def staging(self) -> Path:
        return self.own / "staging" / self.node

    @property
    def versions(self) -> Path:
        return self.own / "versions"

    @property
    def claims(self) -> Path:
        return self.own / "claims"

    def private_path(self, digest: Digest) -> str:
        """Where a private version of a digest lies, relative to the root."""
        suffix = f".{self.node}" if self.shared else ""
        return f"{OWN_FOLDER}/versions/{digest.hex()}{suffix}"

    def present(self, files: FileLayer) -> bool:
        """Whether the root still shows this very store. A mount that is away, or fails, says nothing of its files."""
        try:
            return _read_id(files, self.own / "store") == self.uuid
        except (OSError, StoreRefused):
            return False


def open_store(root: Path, node: NodeId, files: FileLayer, shared: bool = False) -> Store:
    """Open or create the store of a root. Raises StoreRefused with a sentence that says what to do."""
    check_node(node)
    own = root / OWN_FOLDER
    try:
        os.makedirs(root, mode=0o755, exist_ok=True)
        folders = [own, own / "staging", own / "staging" / node, own / "versions", own / "claims"]
        for folder in folders:
            _ensure_real_folder(files, folder)
        return Store(root, node, shared, _store_id(files, own, node))
    except OSError as error:
        raise StoreRefused(f"the store {own} cannot be opened: {failure(error, 'prepare it')}") from error


def _ensure_real_folder(files: FileLayer, folder: Path) -> None:
    ensure_folder(files, folder)
    if folder.is_symlink() or not folder.is_dir():
        raise StoreRefused(f"{folder} is not a plain folder; move it away, spore makes its own")


def _store_id(files: FileLayer, own: Path, node: NodeId) -> StoreId:
    """Read the UUID, or write one: the file gets its name only when it is complete and durable."""
    path = own / "store"
    draft = own / f"store.{node}.new"
    try:
        return _read_id(files, path)
    except FileNotFoundError:
        remove_if_there(files, draft)
    _write_draft(files, draft, f"{uuid4()}\n".encode())
    try:
        files.link(draft, path)
    except FileExistsError:
        pass  # another member of the group was first; its UUID counts
    except OSError:
        files.rename(draft, path)  # a file system without links is not shared by several members
    remove_if_there(files, draft)
    files.fsync_dir(own)
    return _read_id(files, path)


def _write_draft(files: FileLayer, draft: Path, content: bytes) -> None:
    fd = files.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        files.write(fd, content)
        files.fsync(fd)
    finally:
        files.close(fd)


def _read_id(files: FileLayer, path: Path) -> StoreId:
    fd = files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        content = files.pread(fd, STORE_FILE_BYTES_MAX + 1, 0)
    finally:
        files.close(fd)
    try:
        return UUID(content.decode("ascii").strip()).bytes
    except ValueError as error:
        raise StoreRefused(
            f"{path} does not hold a UUID; restore it from a backup, or move it away to give this root a new identity"
        ) from error
