"""Simulated disks: what is on them, what of it would survive a crash, and how full they are.

A `StoreDisk` is a root folder (one for each NFS group), a `LocalDisk` is a node's own folder: WAL and manifest.
Contents are symbolic, a digest stands for its bytes. What was not synced may be lost when the power goes; which part of
it, the seed decides. Bytes of one digest are counted once, since copies within a store are reflinks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from protocol.chunks import chunk_count
from protocol.effects import Entry, Inline
from protocol.values import Digest, NodeId, Place, Record, RecordKey, StoreId, Stripe
from simulations.memory import MemoryCatalogue, Tables

EPOCH_MS = 1_760_000_000_000  # virtual time begins in October 2025: stamps look like real ones
DEVICE = 1  # every simulated root is one file system


@dataclass(slots=True, eq=False)
class SimFile:
    """A file below a root. `before` is what a rename that is not synced yet would fall back to."""

    digest: Digest
    size: int
    inode: int
    mtime_ns: int
    synced_by: NodeId = ""  # who has renamed it and not synced the folder yet; empty: it is durable
    before: SimFile | None = None
    users: bool = False  # a user wrote it; else we published it


@dataclass(slots=True, eq=False)
class Staged:
    """A partial: the chunks written, and those of them that are marked in the durable chunk map, as bits."""

    record: Record
    written: int = 0
    marked: int = 0
    reserved: bool = False

    @property
    def chunks(self) -> int:
        return max(1, chunk_count(self.record.size))

    @property
    def complete(self) -> bool:
        return self.written == self.all

    @property
    def room_bytes(self) -> int:
        return self.record.size if self.reserved else self.record.size * self.written.bit_count() // self.chunks

    @property
    def all(self) -> int:
        return (1 << self.chunks) - 1

    def missing(self) -> tuple[Stripe, ...]:
        """Runs of chunks that are not written."""
        runs = []
        left = self.all & ~self.written
        while left:
            first = (left & -left).bit_length() - 1
            count = (~(left >> first) & (left >> first) + 1).bit_length() - 1
            runs.append(Stripe(first, count))
            left &= ~(((1 << count) - 1) << first)
        return tuple(runs)


@dataclass(slots=True, eq=False)
class StoreDisk:
    """One root: files by path, staging by node, and the room there is."""

    store: StoreId
    shared: bool
    capacity_bytes: int
    other_bytes: int = 0
    files: dict[str, SimFile] = field(default_factory=dict)
    staging: dict[NodeId, dict[Digest, Staged]] = field(default_factory=dict)
    held_since: dict[Digest, int] = field(default_factory=dict)  # every digest ever verified and synced here
    by_user: dict[Digest, None] = field(default_factory=dict)  # digests of files that users have changed or removed
    marks: dict[NodeId, bytes] = field(default_factory=dict)  # by whoever uses this root
    by_mate: dict[Digest, NodeId] = field(default_factory=dict)  # in a shared store: who removed or renamed it last
    ephemeral: bool = False
    gone: bool = False  # the machine and its disk will not come back
    _inode: int = 0
    _paths: dict[Digest, dict[str, None]] = field(default_factory=dict)  # where each digest lies
    _file_bytes: int = 0  # of all digests, each counted once

    # --- files ---

    def write(self, path: str, digest: Digest, size: int, now_ms: int, synced_by: NodeId = "") -> SimFile:
        """Put a file at a path. With `synced_by` the rename is not durable until `sync`."""
        self._inode += 1
        file = SimFile(digest, size, self._inode, (EPOCH_MS + now_ms) * 1_000_000, synced_by)
        file.before = self.files.get(path) if synced_by else None
        self._put(path, file)
        if not synced_by:
            self.held_since.setdefault(digest, now_ms)
        return file

    def remove(self, path: str) -> None:
        file = self.files.pop(path, None)
        if file is not None:
            self._unlist(path, file)

    def _put(self, path: str, file: SimFile) -> None:
        """Every file comes and goes by here, so that its bytes are found and counted without looking at all files."""
        before = self.files.get(path)
        if before is not None:
            self._unlist(path, before)
        self.files[path] = file
        if file.digest not in self._paths:
            self._file_bytes += file.size
        self._paths.setdefault(file.digest, {})[path] = None

    def _unlist(self, path: str, file: SimFile) -> None:
        del self._paths[file.digest][path]
        if not self._paths[file.digest]:
            del self._paths[file.digest]
            self._file_bytes -= file.size

    def sync(self, path: str, file: SimFile, now_ms: int) -> None:
        file.synced_by, file.before = "", None
        if self.files.get(path) is file:
            self.held_since.setdefault(file.digest, now_ms)

    def place(self, path: str, private: bool) -> Place:
        file = self.files[path]
        return Place(path, file.digest, DEVICE, file.inode, file.size, file.mtime_ns, private)

    def stands(self, place: Place) -> bool:
        """Whether the file still looks as it did when this place was true."""
        file = self.files.get(place.path)
        return file is not None and (file.inode, file.size, file.mtime_ns) == (
            place.inode,
            place.size,
            place.mtime_ns,
        )

    def holds(self, digest: Digest) -> bool:
        paths = self._paths.get(digest)
        return paths is not None and not self.gone and any(not self.files[path].synced_by for path in paths)

    def paths_of(self, digest: Digest) -> list[str]:
        """Where these bytes lie, synced or not."""
        return list(self._paths.get(digest, ()))

    def digests(self) -> int:
        """How many different artifacts lie here."""
        return len(self._paths)

    # --- room ---

    def used_bytes(self) -> int:
        staged = sum(s.room_bytes for partials in self.staging.values() for s in partials.values())
        return self.other_bytes + self._file_bytes + staged

    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes()

    # --- an image of the machine ---

    def image(self) -> dict[str, SimFile]:
        """The files as they are now, for a machine that is set back to this moment."""
        return {path: replace(file, synced_by="", before=None) for path, file in self.files.items()}

    def set_back(self, image: dict[str, SimFile]) -> None:
        for path in list(self.files):
            self.remove(path)
        for path, file in image.items():
            self._put(path, replace(file))
        self.staging.clear()

    # --- a crash ---

    def crash(self, node: NodeId, power: bool, random: Random, now_ms: int) -> None:
        """What this node had not synced: kept by the page cache when only the process died, else as chance has it."""
        for path in sorted(self.files):
            file = self.files[path]
            if file.synced_by != node:
                continue
            if power and random.random() < 0.5:
                self.remove(path)
                if file.before is not None:
                    self._put(path, file.before)
            else:
                self.sync(path, file, now_ms)
        for digest, staged in sorted(self.staging.get(node, {}).items()):
            staged.reserved = False
            if power:
                staged.written = staged.marked
            if not staged.written:
                del self.staging[node][digest]


@dataclass(slots=True, eq=False)
class LocalDisk:
    """A node's folder: the WAL, the manifest and the count of boots; all that outlives the process."""

    catalogue: MemoryCatalogue
    boots: int = 0
    wal: dict[RecordKey, Entry] = field(default_factory=dict)
    released: dict[RecordKey, None] = field(default_factory=dict)  # not written down yet
    known: bool = True  # the manifest knows what lay here before; False after it was rebuilt

    def image(self) -> tuple[Tables, int, dict[RecordKey, Entry]]:
        """Manifest, count of boots and WAL as they are now."""
        return self.catalogue.snapshot(), self.boots, dict(self.wal)

    def set_back(self, image: tuple[Tables, int, dict[RecordKey, Entry]]) -> None:
        tables, self.boots, wal = image
        self.catalogue.restore(tables)
        self.wal = dict(wal)
        self.released.clear()

    def forget_cluster(self) -> None:
        """What joining anew does to a manifest: its rows go, places, stamps and the WAL stay (storage.rejoining)."""
        tables = self.catalogue.tables
        self.catalogue.restore(Tables(places=tables.places, paths=tables.paths, last_hlc=tables.last_hlc))
        self.known = False

    def pending(self) -> list[Entry]:
        return [entry for key, entry in self.wal.items() if key not in self.released]

    def inline(self, digest: Digest) -> bool:
        """Whether the bytes of this digest stand in an entry that is not released."""
        return any(
            entry.record.digest == digest and isinstance(entry.source, Inline) and key not in self.released
            for key, entry in self.wal.items()
        )

    def write_releases(self) -> None:
        for key in self.released:
            self.wal.pop(key, None)
        self.released.clear()

    def crash(self, unsynced: list[Entry], power: bool, random: Random) -> int:
        """A prefix of the group that was being written survives; a release may be forgotten. Returns entries lost."""
        survivors = random.randint(0, len(unsynced)) if power else len(unsynced)
        for entry in unsynced[:survivors]:
            self.wal[entry.record.key] = entry
        for key in list(self.released):
            if random.random() < 0.5:
                self.wal.pop(key, None)
        self.released.clear()
        return len(unsynced) - survivors
