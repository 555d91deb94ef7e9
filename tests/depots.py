"""Helpers for tests of the store: records of given bytes, a manifest in memory, and a depot over a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from protocol.chunks import CHUNK_BYTES, Hasher
from protocol.effects import Publication
from protocol.values import Digest, Parcel, Place, Record
from storage.depot import Depot
from storage.files import FileLayer
from storage.places import Lookups
from storage.publication import Outcome
from storage.refusals import StoreError
from storage.room import DiskUsage, Room, RoomLimits
from storage.store import open_store

TIB = 1 << 40


def some_bytes(size: int, seed: int = 1) -> bytes:
    return Random(f"{size} {seed}").randbytes(size)


def record_of(content: bytes, name: str = "model/best.pth", hlc: int = 1, mode: int = 0o644, **more: object) -> Record:
    digest, plain, _ = hashed(content)
    return Record(name, hlc, "origin", digest, plain, len(content), mode, **more)  # type: ignore[arg-type]


def hashed(content: bytes) -> tuple[Digest, Digest, list[Digest]]:
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish()


def chunks_of(content: bytes) -> list[bytes]:
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]


@dataclass
class Manifest:
    """What a manifest and a WAL would answer, in dictionaries."""

    places: dict[str, Place] = field(default_factory=dict)
    inline: dict[Digest, bytes] = field(default_factory=dict)
    leaves: dict[Digest, tuple[Digest, ...]] = field(default_factory=dict)
    versions: dict[str, tuple[Digest, ...]] = field(default_factory=dict)

    def commit(self, outcome: Outcome) -> None:
        for _, place in outcome.done:
            self.places[place.path] = place
        for _, place in outcome.moved:
            self.places[place.path] = place

    def lookups(self) -> Lookups:
        return Lookups(
            places_of=lambda digest: tuple(p for _, p in sorted(self.places.items()) if p.digest == digest),
            place_at=self.places.get,
            inline_of=self.inline.get,
            load_leaves=self.leaves.get,
            save_leaves=self.leaves.__setitem__,
            versions_of=lambda name: self.versions.get(name, ()),
            chunk_lists=lambda: [(digest, b"".join(leaves)) for digest, leaves in sorted(self.leaves.items())],
        )


def failing_once(call: Callable[[], object]) -> bool:
    """Whether a call failed; if it did, in one sentence."""
    try:
        call()
    except StoreError as error:
        sentence = str(error)
        assert sentence
        assert "\n" not in sentence
        assert "Errno" not in sentence
        return True
    return False


def empty_disk() -> DiskUsage:
    return DiskUsage(0, TIB)


class Bench:
    """A depot over `folder/files`, with everything a test wants to look at."""

    def __init__(
        self,
        folder: Path,
        files: FileLayer | None = None,
        manifest: Manifest | None = None,
        usage: Callable[[], DiskUsage | None] = empty_disk,
        limits: RoomLimits | None = None,
        node: str = "here",
        shared: bool = False,
        **more: object,
    ) -> None:
        self.root = folder / "files"
        self.files = files or FileLayer()
        self.manifest = manifest or Manifest()
        self.withdrawn: list[tuple[Place, str]] = []
        self.room = Room(limits or RoomLimits(min_free_bytes=0), usage)
        self.store = open_store(self.root, node, self.files, shared)
        self.depot = Depot(
            self.store,
            self.room,
            self.manifest.lookups(),
            files=self.files,
            on_withdrawn=lambda place, why: self.withdrawn.append((place, why)),
            **more,  # type: ignore[arg-type]
        )

    def write(self, relpath: str, content: bytes) -> Path:
        path = self.root / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def arrive(self, content: bytes, record: Record | None = None, transfer: int = 1) -> Record:
        """Bring an artifact into staging whole."""
        record = record or record_of(content)
        assert self.depot.reserve(transfer, [Parcel(record)]).refused == ("",)
        partial = self.depot.partial(record)
        try:
            if len(content) > CHUNK_BYTES:
                partial.set_leaves(hashed(content)[2])
            for index, chunk in enumerate(chunks_of(content) or [b""]):
                partial.write_chunk(index, chunk)
            assert partial.complete
        finally:
            partial.close()
        return record

    def publish(self, record: Record, path: str | None = "models/best.pth") -> Outcome:
        """Publish one record, and commit what came of it."""
        outcome = self.depot.publish([Publication(record, path)])
        self.manifest.commit(outcome)
        return outcome

    def read(self, digest: Digest) -> bytes | None:
        blob = self.depot.open_blob(digest)
        if blob is None:
            return None
        try:
            content = bytearray(blob.size)
            blob.read_into(memoryview(content), 0)
            blob.check()
            return bytes(content)
        finally:
            blob.close()

    def staged(self) -> list[str]:
        return sorted(path.name for path in self.store.staging.iterdir())
