"""Staging: bytes on their way in, under the digest they must have, where nobody looks for artifacts.

`.spore/staging/<node>/` holds, for a digest in hex: the bytes (`<hex>`, of full size from the beginning when there is
more than one chunk), the chunk list (`.leaves`), the chunk map (`.map`), hints (`.hints`), and drafts of our own copies
(`draft-<n>`), which mean nothing after a restart. One process per folder: the agent's lock sees to that.

A file of bytes is never believed for its name: a small one is hashed again, a large one has a map. A new file of bytes
is made only after a stale map of the same name is durably gone, so that a map never speaks of another file.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_digest, digest_of, root_digest, split_leaves
from protocol.values import Digest, Record
from storage.chunkmap import read_file
from storage.files import FileLayer
from storage.folders import MODE_MASK, entry_status, remove_if_there
from storage.partials import Chunk, ChunkedPartial, Partial, SmallPartial, sidecar
from storage.refusals import NotReserved, StoreError, WrongBytes, sentences

STALE_SECONDS = 7 * 86_400  # a transfer that nobody took up again for a week will be asked for anew
QUIET_SECONDS = 600  # under pressure, leftovers go earlier; what came within ten minutes may await publication
OPEN_COMPLETE_MAX = 64  # complete partials kept open for publication: a descriptor or two each
SIDECARS = ("map", "leaves", "hints")
HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class _Group:
    """All files of one digest in staging, as a sweep sees them."""

    digest: Digest
    size_bytes: int = 0
    newest_seconds: float = 0.0
    paths: list[Path] = field(default_factory=list)


class Staging:
    """The staging folder of one node. Thread-safe."""

    def __init__(
        self, folder: Path, files: FileLayer, reuse: Callable[[ChunkedPartial], int] = lambda partial: 0
    ) -> None:
        """`reuse` copies into a partial what lies here already (see reuse.py)."""
        self._folder = folder
        self._files = files
        self._reuse = reuse
        self._lock = threading.RLock()
        self._open: dict[Digest, ChunkedPartial] = {}
        self._complete: OrderedDict[Digest, None] = OrderedDict()
        self._small: dict[Digest, os.stat_result] = {}  # written, or recognised, in this life
        self._left_over: set[str] = set(files.listdir(folder))  # what an earlier life left, or a failed write
        self._drafts = itertools.count()
        self._staged_bytes = sum(group.size_bytes for group in self._groups())
        self._maps_unlinked = True  # the life before us may have; a stale map must be durably gone before its file

    def path(self, digest: Digest) -> Path:
        return self._folder / digest.hex()

    def draft(self) -> Path:
        """A fresh path for a copy of our own making; whatever stands there from an earlier life is removed."""
        with self._lock:
            path = self._folder / f"draft-{next(self._drafts)}"
            with sentences("clear an old draft in staging"):
                remove_if_there(self._files, path)
            return path

    def is_allocated(self, record: Record) -> bool:
        """Whether the blocks of an artifact of several chunks are on the disk already. Raises WrongBytes."""
        with self._lock, sentences(f"look for {record.name} in staging"):
            return record.digest in self._open or self._usable(record)

    def allocate(self, record: Record) -> None:
        """Make the file of bytes at full size, with its blocks, unless it is there. Small artifacts need none."""
        if chunk_count(record.size) <= 1:
            return
        with self._lock, sentences(f"allocate {record.size} bytes for {record.name}"):
            if record.digest not in self._open and not self._usable(record):
                self._create(record)

    def partial(self, record: Record) -> Partial:
        """The partial of a record whose room was reserved. Raises NotReserved, WrongBytes or StorageFailed."""
        if chunk_count(record.size) <= 1:
            return SmallPartial(
                record, self.here, lambda small, chunk: self.arrive_small([(small, chunk)], strict=True)
            )
        with self._lock, sentences(f"open {record.name} in staging"):
            shared = self._open.get(record.digest)
            if shared:
                if shared.record.size != record.size:
                    raise WrongBytes(f"two records disagree about the size of {record.name}; one of them lies")
                shared.users += 1
                self._complete.pop(record.digest, None)
                return shared
            if not self._usable(record):
                raise NotReserved(f"no room was reserved for {record.name}; reserve it before its bytes come")
            fd = self._files.open(self.path(record.digest), os.O_RDWR | os.O_NOFOLLOW)
            try:
                partial = ChunkedPartial(self._files, self.path(record.digest), fd, record, self._closed, self._reuse)
            except BaseException:
                self._files.close(fd)
                raise
            self._open[record.digest] = partial
            return partial

    def reading(self, digest: Digest) -> ChunkedPartial | None:
        """The partial of an artifact that is on its way in now, to read what is verified of it; close it when done."""
        with self._lock:
            partial = self._open.get(digest)
            if partial is not None:
                partial.users += 1
                self._complete.pop(digest, None)
            return partial

    def arrive_small(self, items: list[tuple[Record, Chunk]], strict: bool = False) -> list[tuple[Record, str]]:
        """Verify small artifacts and write them, without a sync each: publication does that for all at once.

        Returns what failed, with the reason. `strict` raises the first failure instead.
        """
        failed: list[tuple[Record, str]] = []
        with self._lock:
            for record, content in items:
                try:
                    self._arrive_one(record, content)
                except StoreError as error:
                    if strict:
                        raise
                    failed.append((record, str(error)))
        return failed

    def here(self, record: Record) -> bool:
        """Whether all bytes of a record stand verified in staging."""
        if chunk_count(record.size) <= 1:
            with self._lock:
                return record.digest in self._small or (self._is_left_over(record) and self._recognise_small(record))
        try:
            partial = self.partial(record)
        except StoreError:
            return False
        try:
            return partial.complete
        finally:
            partial.close()

    def small_status(self, digest: Digest) -> os.stat_result | None:
        """How a small artifact's file looked when it was written or recognised: nobody but us touches it."""
        with self._lock:
            return self._small.get(digest)

    def _is_left_over(self, record: Record) -> bool:
        """Whether a file of this name may stand here although it was not written, whole, in this life."""
        return record.digest.hex() in self._left_over

    def forget(self, digest: Digest) -> None:
        """Remove everything of a digest: it was published, or is not wanted. Open users keep their descriptors."""
        with self._lock:
            small = self._small.pop(digest, None)
            self._complete.pop(digest, None)
            shared = self._open.pop(digest, None)
            if shared and shared.users == 0:
                shared.release()
            path = self.path(digest)
            if not small:
                status = entry_status(self._files, path)
                self._staged_bytes -= status.st_size if status and status.st_size > CHUNK_BYTES else 0
                for suffix in SIDECARS:
                    removed = remove_if_there(self._files, sidecar(path, suffix))
                    self._maps_unlinked |= removed and suffix == "map"
            remove_if_there(self._files, path)

    def leaves(self, record: Record) -> tuple[Digest, ...] | None:
        """The chunk list that came with a staged artifact; None for small ones and for what is not here."""
        try:
            partial = self.partial(record)
        except StoreError:
            return None
        try:
            return partial.leaves()
        finally:
            partial.close()

    def distrust(self, digest: Digest) -> None:
        """A sync of these bytes failed: what was not marked before counts as missing, a small artifact wholly."""
        with self._lock:
            partial = self._open.get(digest)
            if partial:
                partial.distrust()
                return
            gone = [sidecar(self.path(digest), "hints")]
            if self._small.pop(digest, None):
                gone.append(self.path(digest))
            for path in gone:
                with suppress(OSError):
                    self._files.unlink(path)

    @property
    def staged_bytes(self) -> int:
        """Bytes allocated for artifacts of several chunks; the small ones come and go within a second."""
        return self._staged_bytes

    def sweep(self, now_seconds: float, starting: bool = True) -> int:
        """Remove drafts of an earlier life (when `starting`) and partials nobody resumed for a week; bytes freed."""
        with self._lock, sentences("sweep staging"):
            if starting:
                self._remove_drafts()
            stale = [g for g in self._groups() if now_seconds - g.newest_seconds > STALE_SECONDS]
            return self._remove(stale, need_bytes=None)

    def make_room(self, need_bytes: int, now_seconds: float) -> int:
        """Under pressure: remove the oldest leftovers that nobody uses until `need_bytes` are free; bytes freed."""
        with self._lock, sentences("make room in staging"):
            quiet = [g for g in self._groups() if now_seconds - g.newest_seconds > QUIET_SECONDS]
            return self._remove(quiet, need_bytes)

    def close(self) -> None:
        """Mark what is open and close what nobody uses; called when the agent stops."""
        with self._lock:
            for digest, partial in list(self._open.items()):
                with suppress(StoreError):
                    partial.mark()
                if partial.users == 0:
                    self._release(digest)

    def _closed(self, partial: ChunkedPartial) -> None:
        with self._lock:
            digest = partial.record.digest
            partial.users -= 1
            if partial.users:
                return
            if self._open.get(digest) is not partial:
                partial.release()  # it was published, and forgotten here, while somebody still had it open
            elif partial.complete:
                self._complete[digest] = None  # publication comes next and needs no second look at it
                while len(self._complete) > OPEN_COMPLETE_MAX:
                    self._release(next(iter(self._complete)))
            else:
                self._release(digest)

    def _release(self, digest: Digest) -> None:
        self._complete.pop(digest, None)
        self._open.pop(digest).release()

    def _usable(self, record: Record) -> bool:
        """Whether the file of bytes is there, of full size, and nobody else's under a second name."""
        status = entry_status(self._files, self.path(record.digest))
        if status is None or status.st_nlink != 1:
            return False
        if status.st_size == record.size:
            return True
        packed = read_file(self._files, sidecar(self.path(record.digest), "leaves"), status.st_size)
        if packed and root_digest(status.st_size, split_leaves(packed)) == record.digest:
            raise WrongBytes(f"{record.name} is said to have {record.size} bytes, but its chunk list proves otherwise")
        return False

    def _create(self, record: Record) -> None:
        self.forget(record.digest)
        if self._maps_unlinked:
            self._files.fsync_dir(self._folder)
            self._maps_unlinked = False
        path = self.path(record.digest)
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self._allocate_blocks(fd, record.size)
        except OSError:
            with suppress(OSError):
                self._files.unlink(path)
            raise
        finally:
            self._files.close(fd)
        self._staged_bytes += record.size

    def _allocate_blocks(self, fd: int, size_bytes: int) -> None:
        try:
            self._files.fallocate(fd, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            self._files.ftruncate(fd, size_bytes)  # this file system cannot reserve: the room still counts it

    def _arrive_one(self, record: Record, content: Chunk) -> None:
        if record.size > CHUNK_BYTES or len(content) != record.size or not _is_of(record, content):
            raise WrongBytes(f"the bytes that came for {record.name} are not those of its digest; they were dropped")
        if record.digest in self._small:
            return
        path = self.path(record.digest)
        with sentences(f"write {record.name} to staging"):
            fd = self._create_small(path, record.mode & MODE_MASK)
            try:
                self._files.write(fd, content)
                self._small[record.digest] = self._files.fstat(fd)
            finally:
                self._files.close(fd)

    def _create_small(self, path: Path, mode: int) -> int:
        """A new file; what an earlier life left there makes way (rarely, so it is not looked for each time).

        It is made with the mode it is published with, where the umask lets us: that saves three calls for each.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            return self._files.open(path, flags, mode)
        except FileExistsError:
            remove_if_there(self._files, path)
            return self._files.open(path, flags, mode)

    def _recognise_small(self, record: Record) -> bool:
        """Hash a small file that an earlier life left; one with a second name may be published and is not ours."""
        path = self.path(record.digest)
        status = entry_status(self._files, path)
        if status is None or status.st_nlink != 1 or status.st_size != record.size:
            return False
        content = read_file(self._files, path, CHUNK_BYTES)
        if content is None or digest_of(content)[0] != record.digest:
            return False
        self._small[record.digest] = status
        return True

    def _remove_drafts(self) -> None:
        for name in self._files.listdir(self._folder):
            if name.startswith("draft-") or name.endswith(".new"):
                remove_if_there(self._files, self._folder / name)
        for group in self._groups():
            if not any(path.name == group.digest.hex() for path in group.paths):
                self._remove([group], need_bytes=None)  # a map or list whose bytes are gone

    def _groups(self) -> list[_Group]:
        """The digests in staging, the longest untouched first."""
        groups: dict[str, _Group] = {}
        for name in self._files.listdir(self._folder):
            stem = name.partition(".")[0]
            status = entry_status(self._files, self._folder / name) if HEX.fullmatch(stem) else None
            if status:
                group = groups.setdefault(stem, _Group(bytes.fromhex(stem)))
                group.size_bytes += status.st_size if name == stem and status.st_size > CHUNK_BYTES else 0
                group.newest_seconds = max(group.newest_seconds, status.st_mtime)
                group.paths.append(self._folder / name)
        return sorted(groups.values(), key=lambda group: (group.newest_seconds, group.digest))

    def _remove(self, groups: list[_Group], need_bytes: int | None) -> int:
        freed_bytes = 0
        for group in groups:
            if need_bytes is not None and freed_bytes >= need_bytes:
                break
            if group.digest not in self._open and group.digest not in self._small:
                self.forget(group.digest)
                freed_bytes += group.size_bytes
        return freed_bytes


def _is_of(record: Record, content: Chunk) -> bool:
    """Whether these bytes, one chunk at most, are those of the record's digest."""
    leaves = [chunk_digest(content)] if len(content) else []
    return root_digest(record.size, leaves) == record.digest
