"""Private versions: files in `.spore/versions/` that carry their digest as name and that nobody else writes.

Copies made at acceptance, snapshots, older versions that made room and versions without a path of their own lie here.
A name is given by linking a complete, synced file, so that it is never replaced by accident; what already bears the
name is used if it is what it says, else it is replaced by the verified one. What a put counts on is pinned: a removal
that was decided before the put was heard of leaves it alone.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protocol.values import Digest, Place
from storage.copies import copy_hashed, create_draft, hash_file, try_reflink
from storage.files import FileLayer
from storage.folders import Stamp, discard_draft, entry_status, place_of, place_stamp, stamp_of
from storage.places import Places
from storage.refusals import FileChanging
from storage.staging import Staging
from storage.store import Store

PIN_SECONDS_MAX = 600.0  # a put is committed or refused in seconds; a pin nobody takes off ends after ten minutes

ORPHAN_SECONDS = 600.0  # what was named within ten minutes may still be on its way to the manifest
_VERSION_NAME = re.compile(r"[0-9a-f]{64}")

# What link answers where it cannot be used: no links on this file system, too many, or a file of another user.
NO_LINK = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV})


class PrivateFiles:
    """Gives names in `versions/`. Thread-safe; `sync` makes the names durable, for any number of them at once."""

    def __init__(self, store: Store, files: FileLayer, staging: Staging, places: Places) -> None:
        self._store = store
        self._files = files
        self._staging = staging
        self._places = places
        self._lock = threading.Lock()
        self._pins: dict[str, list[float]] = {}  # path → when each pin ends by itself, the oldest first

    def adopt_draft(self, draft: Path, digest: Digest, stamp: Stamp, *, pin: bool = False) -> Place:
        """Name a synced file of ours; the draft is gone afterwards. Raises OSError.

        With `pin`, nothing removes what bears the name until `unpin`, be it this draft or an older file.
        """
        with self._lock:
            relpath = self._store.private_path(digest)
            existing = self._existing(relpath, digest)
            if existing is None:
                self._give_name(draft, self._store.root / relpath)
                existing = place_of(relpath, digest, stamp)
                self._places.remember(existing)
            if pin:
                self._pins.setdefault(relpath, []).append(time.monotonic() + PIN_SECONDS_MAX)
            discard_draft(self._files, draft)
            return existing

    def unpin(self, path: str) -> None:
        """A put that counted on this file was committed or refused. Of several puts each takes off its own pin."""
        with self._lock:
            ends = self._pins.get(path, [])
            del ends[:1]
            if not ends:
                self._pins.pop(path, None)

    def sweep(self, now_seconds: float, keep: Collection[str]) -> int:
        """Remove old private versions that neither the manifest nor `keep` names; bytes freed.

        Where it names none of all that lie here, it was just rebuilt, or is empty: then it proves nothing. In a shared
        store the files of other members bear other suffixes and are left alone.
        """
        ours = [path for path in map(self._own_path, self._files.listdir(self._store.versions)) if path]
        orphans = [path for path in ours if self._places.at(path) is None]
        if len(orphans) == len(ours):
            return 0
        return sum(self._remove_orphan(path, now_seconds) for path in orphans if path not in keep)

    def _own_path(self, name: str) -> str:
        """The path of a private version of ours with this name, or "" for any other file."""
        found = _VERSION_NAME.match(name)
        path = self._store.private_path(bytes.fromhex(found.group())) if found else ""
        return path if path.endswith(f"/{name}") else ""

    def _remove_orphan(self, path: str, now_seconds: float) -> int:
        with self.removing(path) as free:
            status = entry_status(self._files, self._store.root / path)
            if not free or status is None or self._places.at(path) is not None:
                return 0
            if now_seconds - max(status.st_mtime, status.st_ctime) < ORPHAN_SECONDS:  # ctime: when it got its name
                return 0
            self._files.unlink(self._store.root / path)
            return status.st_size if status.st_nlink == 1 else 0

    @contextmanager
    def removing(self, path: str) -> Iterator[bool]:
        """Whether the file may be removed: not while a put counts on it. None begins to while this is entered."""
        with self._lock:
            yield not self._is_pinned(path)

    def adopt_file(self, path: Path, place: Place) -> Place:
        """Give a published file a private name too, so that its path can be taken. Raises OSError, FileChanging."""
        with self._lock:
            relpath = self._store.private_path(place.digest)
            existing = self._existing(relpath, place.digest)
            if existing:
                return existing
            draft = self._staging.draft()
            try:
                stamp = self._second_name(path, draft, place)
                self._give_name(draft, self._store.root / relpath)
            finally:
                discard_draft(self._files, draft)
            kept = place_of(relpath, place.digest, stamp)
            self._places.remember(kept)
            return kept

    def existing(self, digest: Digest) -> Place | None:
        """The private version of a digest, if there is one and it is what it says."""
        with self._lock:
            return self._existing(self._store.private_path(digest), digest)

    def sync(self) -> None:
        self._files.fsync_dir(self._store.versions)

    def _is_pinned(self, path: str) -> bool:
        now_seconds = time.monotonic()
        ends = [end for end in self._pins.get(path, []) if end > now_seconds]
        if ends:
            self._pins[path] = ends
        else:
            self._pins.pop(path, None)
        return bool(ends)

    def _existing(self, relpath: str, digest: Digest) -> Place | None:
        path = self._store.root / relpath
        status = entry_status(self._files, path)
        if status is None:
            return None
        known = self._places.at(relpath)
        if known and known.digest == digest and place_stamp(known) == stamp_of(status):
            return known
        return self._recognise(path, relpath, digest)

    def _recognise(self, path: Path, relpath: str, digest: Digest) -> Place | None:
        """Hash what an earlier life left under this name; the WAL may still count on it."""
        with suppress(OSError):
            fd = self._files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                stamp = stamp_of(self._files.fstat(fd))
                if hash_file(self._files, fd).digest == digest:
                    self._files.fsync(fd)
                    place = place_of(relpath, digest, stamp)
                    self._places.remember(place)
                    return place
            finally:
                self._files.close(fd)
        return None

    def _give_name(self, draft: Path, target: Path) -> None:
        """Link, which is certain once `versions/` is synced. A rename, used where a link cannot be had or where
        something worthless bears the name, is certain only once the folder it came from is synced as well."""
        try:
            self._files.link(draft, target)
        except OSError as error:
            if error.errno not in NO_LINK | {errno.EEXIST}:
                raise
            self._files.rename(draft, target)
            self._files.fsync_dir(draft.parent)

    def _second_name(self, path: Path, draft: Path, place: Place) -> Stamp:
        """Link the file to a draft, or copy it where links do not work; either way it is what the place says."""
        try:
            self._files.link(path, draft)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            return self._copy(path, draft, place)
        if stamp_of(self._files.lstat(draft)) != place_stamp(place):
            raise FileChanging(f"{place.path} changed while it made room for a newer version")
        return place_stamp(place)

    def _copy(self, path: Path, draft: Path, place: Place) -> Stamp:
        source_fd = self._files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            draft_fd = create_draft(self._files, draft)
            try:
                cloned = try_reflink(self._files, source_fd, draft_fd)
                hashed = hash_file(self._files, draft_fd) if cloned else copy_hashed(self._files, source_fd, draft_fd)
                if hashed.digest != place.digest:
                    raise FileChanging(f"{place.path} changed while it made room for a newer version")
                self._files.fsync(draft_fd)
                return stamp_of(self._files.fstat(draft_fd))
            finally:
                self._files.close(draft_fd)
        finally:
            self._files.close(source_fd)
