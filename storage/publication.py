"""Publication: verified bytes get their final name, and only they.

For any number of artifacts at once: verify, sync the bytes (one syncfs for many), give the older version of each path a
private name, rename or link, sync every folder once. A result says "done" only after all of it. A path whose file is
not the one we know is left alone: that file is somebody's work and is accepted first. A free path is taken by link,
which cannot replace what a user writes there in the same moment.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from protocol.chunks import chunk_count
from protocol.effects import Publication
from protocol.names import OWN_FOLDER, PEERS_FOLDER, SQLITE_SIDECARS
from protocol.values import Place, Record
from storage.blobs import Blob, FileBlob, whole
from storage.claims import Claims
from storage.copies import copy_hashed, create_draft, hash_file, try_reflink
from storage.files import FileLayer
from storage.folders import (
    MODE_MASK,
    Folder,
    Stamp,
    checked_parts,
    discard_draft,
    entry_status,
    place_of,
    place_stamp,
    stamp_of,
    walk,
)
from storage.places import Lookups, Places
from storage.private import NO_LINK, PrivateFiles
from storage.refusals import FileChanging, PathRefused, StoreError, WrongBytes, failure, sentences
from storage.room import Room
from storage.staging import Staging
from storage.store import Store

LOCAL_CHANGE = "local change"  # the reason of a publication that waits until the user's file was accepted
NAMES_PER_ITEM = 32  # a folder of so many names for each of many items is listed: cheaper than four looks for each
SYNC_EACH_MAX = 8  # up to this many files are synced one by one; above, one syncfs is cheaper even on a busy disk
DAMAGED = "the copy of {} that lies here is damaged; it is fetched again"
SNAPSHOT_MARK = ("snapshot", "sqlite")  # in a record's meta: the bytes are a database and must pass its check

_READ = os.O_RDONLY | os.O_NOFOLLOW

QuickCheck = Callable[[Path], str | None]
OpenBlob = Callable[[bytes], Blob | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a publication, aligned with `protocol.events.Published`; `notes` are sentences for the log."""

    done: tuple[tuple[Record, Place], ...] = ()
    failed: tuple[tuple[Record, str], ...] = ()
    moved: tuple[tuple[str, Place], ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.done + other.done, self.failed + other.failed, self.moved + other.moved, self.notes + other.notes
        )


@dataclass(slots=True)
class _Target:
    """A folder that items are published into, in one round. `names` is what lies there, when listing it paid."""

    folder: Folder
    names: frozenset[str] | None

    def may_hold(self, name: str) -> bool:
        return self.names is None or name in self.names


@dataclass(slots=True)
class _Job:
    """One item on its way through the phases. `error` ends it; `place` is set once the bytes bear their name."""

    item: Publication
    relpath: str | None  # None: as a private version
    folder: Folder | None = None
    source: Path | None = None  # None: the bytes are at `place` already
    is_draft: bool = False
    stamp: Stamp | None = None
    older: Place | None = None
    moved: Place | None = None
    renamed: bool = False  # across folders: certain only once staging is synced too
    place: Place | None = None
    error: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def record(self) -> Record:
        return self.item.record

    @property
    def keys(self) -> frozenset[str]:
        """What no two publications may work on at once: the digest and the path."""
        return frozenset({self.record.digest.hex(), f"path {self.item.path}"} - {"path None"})


class Publisher:
    """Publishes from staging, or from another place or the WAL that has the bytes. Thread-safe."""

    def __init__(
        self,
        store: Store,
        files: FileLayer,
        staging: Staging,
        private: PrivateFiles,
        places: Places,
        room: Room,
        lookups: Lookups,
        open_blob: OpenBlob,
        quick_check: QuickCheck | None,
    ) -> None:
        self._store = store
        self._files = files
        self._staging = staging
        self._private = private
        self._places = places
        self._room = room
        self._lookups = lookups
        self._open_blob = open_blob
        self._quick_check = quick_check
        self._claims = Claims(store, files)
        self._free = threading.Condition()
        self._busy: set[str] = set()

    def publish(self, items: Sequence[Publication]) -> Outcome:
        """Publish in the order given; items that share a digest or a path come in turns. Never raises for an item."""
        outcome = Outcome()
        rest = [_Job(item, item.path) for item in items]
        while rest:
            jobs, rest = _independent(rest)
            with self._exclusive(frozenset().union(*(job.keys for job in jobs))):
                outcome += self._round(jobs)
        return outcome

    def forget_staged(self, record: Record) -> None:
        """Remove an artifact from staging, after a publication of it that is under way."""
        with self._exclusive(frozenset({record.digest.hex()})), sentences(f"remove {record.name} from staging"):
            self._staging.forget(record.digest)

    def _round(self, jobs: list[_Job]) -> Outcome:
        targets: dict[str, _Target] = {}
        names_max = NAMES_PER_ITEM * len(jobs) if len(jobs) > SYNC_EACH_MAX else 0
        try:
            for job in jobs:
                self._guarded(job, lambda job: self._prepare(job, targets, names_max))
            self._make_durable(_going(jobs))
            self._make_room(_going(jobs))
            for job in _going(jobs):
                self._guarded(job, self._name)
            self._sync_folders(_going(jobs))
        finally:
            for job in jobs:
                self._clear(job)
        return _outcome(jobs)

    @contextmanager
    def _exclusive(self, keys: frozenset[str]) -> Iterator[None]:
        with self._free:
            while self._busy & keys:
                self._free.wait()
            self._busy |= keys
        try:
            yield
        finally:
            with self._free:
                self._busy -= keys
                self._free.notify_all()

    def _guarded(self, job: _Job, step: Callable[[_Job], None]) -> None:
        """One item's failure is its own."""
        try:
            step(job)
        except StoreError as error:
            job.error = str(error)
        except OSError as error:
            job.error = str(failure(error, f"publish {job.record.name}"))

    # What to do

    def _prepare(self, job: _Job, targets: dict[str, _Target], names_max: int) -> None:
        if job.relpath is not None:
            self._look_at_target(job, targets, names_max)
        if job.error:
            return
        if job.relpath is None and job.place is None:
            job.place = self._private.existing(job.record.digest)
        if job.place is None:
            self._find_bytes(job)
            self._check_snapshot(job)
            self._set_mode(job)

    def _look_at_target(self, job: _Job, targets: dict[str, _Target], names_max: int) -> None:
        relpath = job.relpath
        assert relpath is not None
        parts = checked_parts(relpath)
        if parts[0] == OWN_FOLDER:
            raise PathRefused(f"{relpath} lies in spore's own folder; artifacts lie elsewhere")
        parent = "/".join(parts[:-1])
        around = targets.get(parent)
        if around is None:
            folder = walk(self._files, self._store.root, parts[:-1], make=True)
            names = self._files.names(folder.path, names_max) if names_max else None
            around = targets[parent] = _Target(folder, names)
        job.folder, name = around.folder, parts[-1]
        status = entry_status(self._files, job.folder.path / name) if around.may_hold(name) else None
        if status is not None:
            self._meet_existing(job, relpath, status)
        if not job.error and job.place is None and self._has_sidecars(around, name):
            job.notes.append(f"{relpath} is a live database here; its new version is kept as a private one beside it")
            job.relpath = job.folder = job.older = None

    def _meet_existing(self, job: _Job, relpath: str, now: os.stat_result) -> None:
        if not stat.S_ISREG(now.st_mode):
            raise PathRefused(f"{relpath} is a folder, a link or a device here; move it away to let the file come")
        known: Place | None = self._places.at(relpath)
        if known is None or place_stamp(known) != stamp_of(now):
            known = self._left_over(job, relpath, now)
        if known is None:
            job.error = LOCAL_CHANGE
        elif known.digest == job.record.digest:
            job.place, job.renamed = known, True  # an earlier try may have failed at its last sync: all syncs again
        else:
            job.older = known

    def _left_over(self, job: _Job, relpath: str, now: os.stat_result) -> Place | None:
        """What a crash left between a rename and its commit: the very bytes that are to come, or, where nobody but us
        writes, any other; and what another member of our NFS group has recorded. It is taken for what it is, and makes
        room like an older version. None: a user's file."""
        ours = relpath.partition("/")[0] == PEERS_FOLDER and not self._store.shared  # else a mate may have written it
        ours = ours or self._claims.recorded(relpath, now.st_size, now.st_mtime_ns)
        if not ours and now.st_size != job.record.size:
            return None
        fd = self._files.open(self._store.root / relpath, _READ)
        try:
            stamp = stamp_of(self._files.fstat(fd))
            digest = hash_file(self._files, fd).digest
            unchanged = stamp == stamp_of(self._files.fstat(fd)) == stamp_of(now)
        finally:
            self._files.close(fd)
        if not unchanged or not (ours or digest == job.record.digest):
            return None
        place = place_of(relpath, digest, stamp)
        self._places.remember(place)
        return place

    def _has_sidecars(self, around: _Target, name: str) -> bool:
        """Beside a sidecar lies a live database, which is never replaced."""
        beside = [name + suffix for suffix in SQLITE_SIDECARS if around.may_hold(name + suffix)]
        return any(entry_status(self._files, around.folder.path / other) for other in beside)

    def _find_bytes(self, job: _Job) -> None:
        if self._staging.here(job.record):
            job.source = self._staging.path(job.record.digest)
            return
        blob = self._open_blob(job.record.digest)
        if blob is None:
            raise StoreError(f"the bytes of {job.record.name} are not here completely; they are fetched again")
        try:
            self._room.require_local(blob.size)
            if isinstance(blob, FileBlob):
                job.source, job.is_draft = self._staging.draft(), True
                self._clone(blob, job.source, job.record)
            else:
                self._stage(whole(blob), job)
        finally:
            blob.close()

    def _stage(self, content: bytes, job: _Job) -> None:
        """Bytes from the WAL, verified in memory, go the way of those that a peer sends."""
        if self._staging.arrive_small([(job.record, content)]):
            raise WrongBytes(DAMAGED.format(job.record.name))
        job.source = self._staging.path(job.record.digest)

    def _clone(self, blob: FileBlob, draft: Path, record: Record) -> None:
        """Copy bytes that lie elsewhere here to a draft, verified on the way."""
        fd = create_draft(self._files, draft)
        try:
            if try_reflink(self._files, blob.fileno(), fd):
                hashed = hash_file(self._files, fd)
            else:
                hashed = copy_hashed(self._files, blob.fileno(), fd)
        finally:
            self._files.close(fd)
        blob.check()
        if hashed.digest != record.digest:
            raise WrongBytes(DAMAGED.format(record.name))

    def _check_snapshot(self, job: _Job) -> None:
        if SNAPSHOT_MARK in job.record.meta and self._quick_check and job.source:
            complaint = self._quick_check(job.source)
            if complaint:
                raise StoreError(f"{job.record.name} did not pass the check of its database: {complaint}")

    def _set_mode(self, job: _Job) -> None:
        assert job.source is not None
        mode = job.record.mode & MODE_MASK
        status = self._staging.small_status(job.record.digest) if not job.is_draft else None
        status = status or self._files.lstat(job.source)
        if stat.S_IMODE(status.st_mode) != mode:
            fd = self._files.open(job.source, _READ)
            try:
                self._files.fchmod(fd, mode)
            finally:
                self._files.close(fd)
        job.stamp = stamp_of(status)

    # Doing it

    def _make_durable(self, jobs: list[_Job]) -> None:
        """Sync the bytes: all at once when there are many. A failed sync makes what was not marked missing again."""
        if len(jobs) > SYNC_EACH_MAX:
            try:
                fd = self._files.open(self._store.staging, _READ)
                try:
                    self._files.syncfs(fd)
                finally:
                    self._files.close(fd)
            except OSError as error:
                for job in jobs:
                    self._fail_sync(job, error)
            return
        for job in jobs:
            try:
                self._sync_one(job.source or self._store.root / _required(job.place).path)
            except OSError as error:
                self._fail_sync(job, error)

    def _sync_one(self, path: Path) -> None:
        fd = self._files.open(path, _READ)
        try:
            self._files.fsync(fd)  # not fdatasync: the place names the mtime, which must survive as well
        finally:
            self._files.close(fd)

    def _fail_sync(self, job: _Job, error: OSError) -> None:
        job.error = str(failure(error, f"sync {job.record.name}"))
        if not job.is_draft and job.source:
            self._staging.distrust(job.record.digest)

    def _make_room(self, jobs: list[_Job]) -> None:
        """Give the older version at each path a private name, durable before anything takes its path."""
        older = [job for job in jobs if job.older]
        for job in older:
            self._guarded(job, self._keep_older)
        if any(job.moved for job in older):
            try:
                self._private.sync()
            except OSError as error:
                for job in older:
                    job.error = job.error or str(failure(error, f"keep the older version at {job.relpath}"))

    def _keep_older(self, job: _Job) -> None:
        assert job.older is not None
        try:
            job.moved = self._private.adopt_file(self._store.root / job.older.path, job.older)
        except FileChanging:
            job.error = LOCAL_CHANGE
        except FileNotFoundError:
            job.older = None  # its user removed it just now: the path is free

    def _name(self, job: _Job) -> None:
        if job.place is not None:
            return
        assert job.source is not None
        assert job.stamp is not None
        if job.relpath is None:
            job.place = self._private.adopt_draft(job.source, job.record.digest, job.stamp)
            return
        target = self._store.root / job.relpath
        place = place_of(job.relpath, job.record.digest, job.stamp)
        self._claims.note(job.relpath, job.stamp.size, job.stamp.mtime_ns)
        before = self._places.remember(place)  # before the name is there: a scan must recognise it as ours at once
        try:
            taken = self._replace(job, target) if job.older else self._take_free(job, target)
        except OSError:
            self._take_back(job.relpath, before)
            raise
        if taken:
            job.place = place
        else:
            job.error = LOCAL_CHANGE
            self._take_back(job.relpath, before)

    def _take_back(self, relpath: str, before: Place | None) -> None:
        """The name was not given: what was known before counts again, the manifest's word where there was no later."""
        if before is not None:
            self._places.remember(before)
        else:
            self._places.drop(relpath)

    def _replace(self, job: _Job, target: Path) -> bool:
        assert job.older is not None
        assert job.source is not None
        now = entry_status(self._files, target)
        if now is not None and stamp_of(now) != place_stamp(job.older):
            return False
        self._files.rename(job.source, target)
        job.renamed = True
        return True

    def _take_free(self, job: _Job, target: Path) -> bool:
        assert job.source is not None
        try:
            self._files.link(job.source, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINK or entry_status(self._files, target) is not None:
                raise
            self._files.rename(job.source, target)
            job.renamed = True
        return True

    def _sync_folders(self, jobs: list[_Job]) -> None:
        renamed = [job for job in jobs if job.renamed]
        if renamed:
            try:
                self._files.fsync_dir(self._store.staging)
            except OSError as error:
                for job in renamed:
                    job.error = str(failure(error, "sync staging"))
        by_folder: dict[str, list[_Job]] = {}
        for job in jobs:
            by_folder.setdefault(_required(job.place).path.rpartition("/")[0], []).append(job)
        for parent, sharers in sorted(by_folder.items()):
            try:
                with sentences(f"sync the folder {parent or '.'}"):
                    self._sync_folder(parent, sharers)
            except StoreError as error:
                for job in sharers:
                    job.error = str(error)

    def _sync_folder(self, parent: str, sharers: list[_Job]) -> None:
        self._files.fsync_dir(self._store.root / parent)
        reached = walk(self._files, self._store.root, parent.split("/") if parent else [])
        if any(job.folder and job.folder.identity != reached.identity for job in sharers):
            raise PathRefused(f"the folder {parent} was exchanged during publication; it is tried again")

    def _clear(self, job: _Job) -> None:
        """Leave nothing of a published artifact in staging, and no draft of any."""
        with suppress(OSError):
            if job.is_draft and job.source:
                discard_draft(self._files, job.source)
            if job.place and not job.error:
                chunked = chunk_count(job.record.size) > 1
                leaves = self._staging.leaves(job.record) if chunked and job.source and not job.is_draft else None
                if leaves:
                    self._lookups.save_leaves(job.record.digest, leaves)
                self._staging.forget(job.record.digest)


def _independent(jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
    """The jobs that can go together, and the rest: a digest or a path that came before has its turn first."""
    taken: set[str] = set()
    now: list[_Job] = []
    later: list[_Job] = []
    for job in jobs:
        (later if taken & job.keys else now).append(job)
        taken |= job.keys
    return now, later


def _going(jobs: Iterable[_Job]) -> list[_Job]:
    return [job for job in jobs if not job.error]


def _required(place: Place | None) -> Place:
    assert place is not None
    return place


def _outcome(jobs: list[_Job]) -> Outcome:
    done = tuple((job.record, _required(job.place)) for job in jobs if not job.error)
    failed = tuple((job.record, job.error) for job in jobs if job.error)
    moved = tuple((job.older.path, job.moved) for job in jobs if job.older and job.moved and not job.error)
    return Outcome(done, failed, moved, tuple(note for job in jobs for note in job.notes))
