"""Acceptance: making the bytes of a new artifact safe before anybody is told of it.

Up to 64 KiB the bytes go into the WAL entry. Above, they get a private copy: a reflink where the file system shares
extents, else a copy up to `copy_max_bytes`. Beyond that, or where the disk has no room for a copy, the user's own
file is referenced, and a later change of it is a loss that gets reported. What is hashed is always what is kept.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.chunks import CHUNK_BYTES, Hasher
from protocol.effects import Inline, Kept, Referenced, Source
from protocol.names import OWN_FOLDER
from protocol.values import Digest, Place
from storage.claims import Claims
from storage.copies import Hashed, copy_hashed, create_draft, finish, hash_file, try_reflink
from storage.files import FileLayer
from storage.folders import MODE_MASK, Stamp, discard_draft, entry_status, open_below, place_of, stamp_of
from storage.places import Places
from storage.private import PrivateFiles
from storage.refusals import FileChanging, NoRoom, PathRefused, sentences
from storage.room import Room
from storage.staging import Staging
from storage.store import Store

INLINE_BYTES_MAX = 64 << 10  # what an entry of the WAL carries; above, a file of its own costs less than rewriting it
ROOM_LOOK_BYTES = 64 << 20  # a stream of unknown length looks at the disk this often


@dataclass(frozen=True, slots=True)
class Accepted:
    """An artifact whose bytes are safe here; the driver makes a `Put` of it. `place`: the user's own file, if any."""

    digest: Digest
    blake3: Digest
    size: int
    mode: int
    source: Source
    place: Place | None
    leaves: tuple[Digest, ...]


class Acceptance:
    """Accepts files of the root and bytes from elsewhere. Thread-safe: each call works on a draft of its own."""

    def __init__(
        self,
        store: Store,
        files: FileLayer,
        staging: Staging,
        private: PrivateFiles,
        places: Places,
        room: Room,
        copy_max_bytes: int,
    ) -> None:
        self._store = store
        self._files = files
        self._staging = staging
        self._private = private
        self._places = places
        self._room = room
        self._copy_max_bytes = copy_max_bytes
        self._claims = Claims(store, files)

    def accept_file(
        self, relpath: str, expected: Stamp | None, take_over: bool = False, copy_max_bytes: int | None = None
    ) -> Accepted:
        """Accept a file of the root. Raises FileChanging, FileGone, PathRefused, ClaimedElsewhere, StorageFailed."""
        if relpath.partition("/")[0] == OWN_FOLDER:
            raise PathRefused(f"{relpath} lies in spore's own folder; artifacts lie elsewhere")
        fd, status = open_below(self._files, self._store.root, relpath)
        try:
            with sentences(f"accept {relpath}"):
                stamp = stamp_of(status)
                if expected is not None and stamp != expected:
                    raise FileChanging(f"{relpath} changed since it was found; it is looked at again")
                self._claims.claim(relpath, stamp.size, stamp.mtime_ns, take_over)
                limit_bytes = self._copy_max_bytes if copy_max_bytes is None else copy_max_bytes
                accepted = self._secure(fd, relpath, stamp, limit_bytes)
        finally:
            self._files.close(fd)
        self._places.drop(relpath)  # what we once published there is not what lies there now
        return replace(accepted, mode=status.st_mode & MODE_MASK)

    def accept_bytes(self, content: bytes, mode: int = 0o644) -> Accepted:
        """Accept bytes from the CLI."""
        return self.accept_stream([content], mode)

    def accept_stream(self, blocks: Iterable[bytes], mode: int = 0o644) -> Accepted:
        """Accept bytes of unknown length. Raises NoRoom or StorageFailed; then nothing of them is left."""
        intake = Intake(self._files, self._staging, self._room)
        try:
            for block in blocks:
                intake.write(block)
            return self._take_in(intake, mode)
        finally:
            intake.discard()

    def accept_draft(self, draft: Path, mode: int = 0o644) -> Accepted:
        """Accept a file that we made ourselves at a path from `draft()`: a snapshot. The draft is used up."""
        try:
            with sentences("accept a snapshot"):
                fd = self._files.open(draft, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    hashed = hash_file(self._files, fd)
                    content = self._files.pread(fd, hashed.size, 0) if hashed.size <= INLINE_BYTES_MAX else None
                    source = Inline(content) if content is not None else self._keep(draft, fd, hashed)
                finally:
                    self._files.close(fd)
                return _accepted(hashed, mode, source, None)
        finally:
            discard_draft(self._files, draft)

    def _take_in(self, intake: Intake, mode: int) -> Accepted:
        with sentences("keep the bytes of a put"):
            hashed = finish(intake.hasher)
            if intake.draft is None:
                return _accepted(hashed, mode, Inline(bytes(intake.inline)), None)
            return _accepted(hashed, mode, self._keep(intake.draft, intake.fd, hashed), None)

    def _secure(self, fd: int, relpath: str, stamp: Stamp, copy_max_bytes: int) -> Accepted:
        if stamp.size <= INLINE_BYTES_MAX:
            hashed, content = self._read_small(fd)
            self._require_unchanged(fd, relpath, stamp, hashed)
            place = place_of(relpath, hashed.digest, stamp)
            return _accepted(hashed, 0, Inline(content), place)
        draft = self._staging.draft()
        try:
            draft_fd = create_draft(self._files, draft)
            try:
                copied = self._copy(fd, draft_fd, stamp.size, copy_max_bytes)
                hashed = copied or hash_file(self._files, fd)
                self._require_unchanged(fd, relpath, stamp, hashed)
                place = place_of(relpath, hashed.digest, stamp)
                source = self._keep(draft, draft_fd, hashed) if copied else self._reference(fd, place)
            finally:
                self._files.close(draft_fd)
        finally:
            discard_draft(self._files, draft)
        return _accepted(hashed, 0, source, place)

    def _read_small(self, fd: int) -> tuple[Hashed, bytes]:
        content = b""
        while piece := self._files.pread(fd, INLINE_BYTES_MAX + 1 - len(content), len(content)):
            content += piece
        hasher = Hasher()
        hasher.update(content)
        return finish(hasher), content

    def _copy(self, fd: int, draft_fd: int, size: int, copy_max_bytes: int) -> Hashed | None:
        """A private copy; None when there can be none: too large to copy, or no room for it on the disk."""
        if try_reflink(self._files, fd, draft_fd):
            return hash_file(self._files, draft_fd)
        if size > copy_max_bytes:
            return None
        try:
            self._room.require_local(size)
        except NoRoom:
            return None  # a full disk still evacuates: a reference costs no byte here
        return copy_hashed(self._files, fd, draft_fd)

    def _keep(self, draft: Path, draft_fd: int, hashed: Hashed) -> Kept:
        self._files.fsync(draft_fd)  # not fdatasync: the place names the mtime, which must survive as well
        stamp = stamp_of(self._files.fstat(draft_fd))
        place = self._private.adopt_draft(draft, hashed.digest, stamp, pin=True)
        try:
            self._private.sync()
        except BaseException:
            self._private.unpin(place.path)
            raise
        return Kept(place)

    def _reference(self, fd: int, place: Place) -> Referenced:
        self._files.fsync(fd)
        return Referenced(place)

    def _require_unchanged(self, fd: int, relpath: str, stamp: Stamp, hashed: Hashed) -> None:
        """The file under the name is still the one that was opened, and nobody wrote to it while it was read."""
        named = entry_status(self._files, self._store.root / relpath)
        same = named is not None and stat.S_ISREG(named.st_mode) and stamp_of(named) == stamp
        if not same or stamp_of(self._files.fstat(fd)) != stamp or hashed.size != stamp.size:
            raise FileChanging(f"{relpath} changed while it was read; it is accepted when it is quiet")


class Intake:
    """Bytes of unknown length on their way in: in memory up to 64 KiB, then in a draft."""

    def __init__(self, files: FileLayer, staging: Staging, room: Room) -> None:
        self._files = files
        self._staging = staging
        self._room = room
        self._looked_at = 0
        self.hasher = Hasher()
        self.inline = bytearray()
        self.draft: Path | None = None
        self.fd = -1
        room.require_local(0)

    def write(self, block: bytes) -> None:
        with sentences("keep the bytes of a put"):
            if self.draft is None and len(self.inline) + len(block) > INLINE_BYTES_MAX:
                self._begin_draft()
            if self.draft is None:
                self.inline += block
            else:
                self._files.pwrite(self.fd, block, self.hasher.size)
        self.hasher.update(block)
        if self.hasher.size - self._looked_at >= ROOM_LOOK_BYTES:
            self._room.require_local(CHUNK_BYTES)
            self._looked_at = self.hasher.size

    def discard(self) -> None:
        """Close and remove what was not kept; call it in any case."""
        if self.draft is not None:
            self._files.close(self.fd)
            discard_draft(self._files, self.draft)
            self.draft = None

    def _begin_draft(self) -> None:
        draft = self._staging.draft()
        self.fd = create_draft(self._files, draft)
        self.draft = draft
        self._files.pwrite(self.fd, self.inline, 0)


def _accepted(hashed: Hashed, mode: int, source: Source, place: Place | None) -> Accepted:
    return Accepted(hashed.digest, hashed.blake3, hashed.size, mode & MODE_MASK, source, place, hashed.leaves)
