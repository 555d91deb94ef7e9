"""The depot: everything a node does with bytes, behind one object.

It accepts local bytes, receives chunks into staging, publishes what is verified, opens what is held, and removes
what the core lets go. It decides nothing about who should have what. All methods block and may be called from any
thread; the event loop calls none of them. Refusals and failures are `StoreError`s whose text is one sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.chunks import chunk_count, chunk_digest, overlap
from protocol.effects import Entry, Kept, Publication, Referenced
from protocol.fleet import GIB, MIB
from protocol.names import OWN_FOLDER
from protocol.values import Digest, Parcel, Place, Record, Stripe
from protocol.wire import STRIPES_MAX
from storage.acceptance import Acceptance, Accepted
from storage.blobs import Blob, FileBlob, InlineBlob, PartialBlob, whole
from storage.claims import Claims
from storage.copies import Pace, hash_file, hash_from_disk
from storage.files import FileLayer
from storage.folders import Stamp, checked_parts, entry_status, open_below, place_of, place_stamp, stamp_of, walk
from storage.partials import Chunk, Partial
from storage.places import Lookups, Places
from storage.private import PrivateFiles
from storage.publication import Outcome, Publisher, QuickCheck
from storage.refusals import FileGone, PathRefused, StorageFailed, StoreError, failure, sentences
from storage.reuse import Reuse
from storage.room import Room
from storage.shared_root import SharedRoot
from storage.staging import Staging
from storage.store import Store

NOTHING_MISSING = (Stripe(0, 0),)  # an empty tuple would mean "all of it"


@dataclass(frozen=True, slots=True)
class Reservation:
    """The answer to a reservation, aligned with its parcels and with `protocol.events.Reserved`.

    `missing[i]`: stripes still to come, empty for all, `NOTHING_MISSING` when every chunk is in staging already.
    `refused[i]`: "" or why there is no room.
    """

    missing: tuple[tuple[Stripe, ...], ...]
    refused: tuple[str, ...]


class Depot:
    """The bytes of one node. `on_withdrawn(place, why)` is called from any thread when a place proves untrue, and
    `on_damaged(place, why)` instead when the disk changed the bytes and they were set aside.
    """

    def __init__(
        self,
        store: Store,
        room: Room,
        lookups: Lookups | None = None,
        *,
        files: FileLayer | None = None,
        copy_max_bytes: int = 64 * MIB,
        staging_bytes_max: int = 64 * GIB,
        quick_check: QuickCheck | None = None,
        on_withdrawn: Callable[[Place, str], None] = lambda place, why: None,
        on_damaged: Callable[[Place, str], None] | None = None,
    ) -> None:
        self.store = store
        self.room = room
        self._lookups = lookups or Lookups()
        self._files = files or FileLayer()
        self._staging_bytes_max = staging_bytes_max
        self._on_withdrawn = on_withdrawn
        self._on_damaged = on_damaged or on_withdrawn
        self._places = Places(self._lookups)
        self._reuse = Reuse(self._lookups, self.open_blob)
        self._staging = Staging(store.staging, self._files, self._reuse.fill)
        self._private = PrivateFiles(store, self._files, self._staging, self._places)
        shared = (store, self._files, self._staging, self._private, self._places, room)
        self.mates = SharedRoot(store, self._files, self._places)
        self._unlink_later: dict[str, Place] = {}  # one for each private version that a put wanted again, until a sweep
        self._acceptance = Acceptance(*shared, copy_max_bytes)
        self._publisher = Publisher(*shared, self._lookups, self.open_blob, quick_check)

    # What is held

    def open_blob(self, digest: Digest) -> Blob | None:
        """The bytes of a digest: from memory if they were accepted just now, else from the first place that still is
        what it was, else from a pending WAL entry."""
        recent = self._lookups.recent_of(digest)
        if recent is not None:
            return InlineBlob(recent)
        for place in self._places.of(digest):
            blob = self._open_place(place)
            if blob:
                return blob
        content = self._lookups.inline_of(digest)
        return None if content is None else InlineBlob(content)

    def held_among(self, digests: Sequence[Digest]) -> tuple[Digest, ...]:
        """Those whose file is there and looks as it did; what cannot be looked at is not among them."""
        held = []
        for digest in digests:
            with suppress(StoreError):
                blob = self.open_blob(digest)
                if blob is not None:
                    blob.close()
                    held.append(digest)
        return tuple(held)

    def open_partial(self, digest: Digest) -> PartialBlob | None:
        """What is on its way in, to serve those chunks of it that are verified. None when nothing of it is."""
        partial = self._staging.reading(digest)
        return PartialBlob(partial) if partial is not None else None

    def path_of(self, digest: Digest) -> Path | None:
        """A file of ours that has these bytes now, by its stat; None when there is none (or they stand in the WAL)."""
        with suppress(StoreError):
            blob = self.open_blob(digest)
            if isinstance(blob, FileBlob):
                blob.close()
                return self.store.root / blob.place.path
        return None

    def staged_path(self, record: Record) -> Path | None:
        """Where verified bytes stand in staging without being held; None when they do not."""
        return self._staging.path(record.digest) if self._staging.here(record) else None

    def open_staged(self, record: Record) -> Blob | None:
        """Verified bytes that stand in staging without being held: what `spore get` fetched. None when they do not."""
        if not self._staging.here(record):
            return None
        path = self._staging.path(record.digest)
        with sentences(f"open {record.name}"):
            fd = self._files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            place = place_of(str(path), record.digest, stamp_of(self._files.fstat(fd)))
        return FileBlob(self._files, fd, place, lambda place, why: None)

    def forget_staged(self, record: Record) -> None:
        """A `get` is done with what it fetched: a small file goes, a large one stays, bounded, for the next."""
        if chunk_count(record.size) <= 1:
            self._publisher.forget_staged(record)

    def leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        """The chunk list of what we hold; hashed again, and remembered, where it is not known. None: not held."""
        known = self._lookups.load_leaves(digest)
        if known is not None:
            return known
        coming = self._staging.reading(digest)
        if coming is not None:
            known = coming.leaves()
            coming.close()
            if known is not None:
                return known
        blob = self.open_blob(digest)
        if blob is None:
            return None
        try:
            if not isinstance(blob, FileBlob):
                content = whole(blob)  # at most 64 KiB: one chunk, or none
                return (chunk_digest(content),) if content else ()
            with sentences(f"hash {blob.place.path}"):
                hashed = hash_file(self._files, blob.fileno())
            blob.check()
            if hashed.digest != digest:
                self._set_aside(blob.place)
                return None
        finally:
            blob.close()
        if len(hashed.leaves) > 1:
            self._lookups.save_leaves(digest, hashed.leaves)
        return hashed.leaves

    def took_away(self, relpath: str) -> bool:
        """Whether we removed the file at this path ourselves, or moved it aside, lately."""
        return self._places.took_away(relpath)

    def knows(self, relpath: str, stamp: Stamp) -> bool:
        """Whether the file at this path, in this state, is one we published or accepted: a scan lets it be."""
        return self._places.knows(relpath, stamp)

    def missing(self, places: Sequence[Place]) -> list[Place]:
        """The places whose file was deleted or moved; none while the disk is away or fails, for that deletes nothing.

        The store is looked for before and after, since a mount may go or come back while the files are looked for.
        """
        if not self.store.present(self._files):
            return []
        gone = [place for place in places if self._is_gone(place)]
        return gone if gone and self.store.present(self._files) else []

    def followed(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """Entries of the WAL as their bytes lie now: a file accepted by reference may have made room for a newer
        version just before a crash, and then lies among the private versions."""
        return tuple(self._follow(entry) for entry in entries)

    def _follow(self, entry: Entry) -> Entry:
        if not isinstance(entry.source, Referenced):
            return entry
        place = entry.source.place
        with suppress(OSError, StoreError):
            status = entry_status(self._files, self.store.root / place.path)
            if status is None or stamp_of(status) != place_stamp(place):
                aside = self._private.existing(place.digest)
                return Entry(entry.record, Kept(aside)) if aside else entry
        return entry

    def verify(self, place: Place, pace: Pace | None = None) -> str:
        """Read a place from the disk and hash it. "" when it is what it says, else what is wrong in a sentence (and it
        is withdrawn)."""
        try:
            blob = self._open_place(place)
            if blob is None:
                return f"{place.path} is gone or was changed"
            try:
                with sentences(f"hash {place.path}"):
                    digest = hash_from_disk(self._files, blob.fileno(), pace)
                blob.check()
            finally:
                blob.close()
        except StoreError as error:
            return str(error)
        if digest == place.digest:
            return ""
        return self._set_aside(place)

    # What arrives

    def reserve(self, transfer: int, parcels: Sequence[Parcel]) -> Reservation:
        """Reserve room for a transfer, allocate it on the disk, and say what of it is missing."""
        missing: list[tuple[Stripe, ...]] = []
        refused: list[str] = []
        small = [(p.record.digest, p.record.size) for p in parcels if chunk_count(p.record.size) <= 1]
        answers = iter(self.room.reserve_many(transfer, small))
        for parcel in parcels:
            is_small = chunk_count(parcel.record.size) <= 1
            refusal = next(answers) if is_small else self._reserve_chunked(transfer, parcel.record)
            stripes: tuple[Stripe, ...] = ()
            try:
                stripes = stripes if refusal else self._missing(parcel)
            except StoreError as error:
                self.room.release(transfer, parcel.record.digest)
                refusal = str(error)
            refused.append(refusal)
            missing.append(stripes)
        return Reservation(tuple(missing), tuple(refused))

    def unreserve(self, transfer: int) -> None:
        """Give back the room a transfer did not use. What it brought and was verified stays in staging."""
        self.room.release(transfer)

    def partial(self, record: Record) -> Partial:
        """The partial of a record whose room was reserved; close it when done."""
        return self._staging.partial(record)

    def older(self, record: Record) -> Blob | None:
        """The newest other version of the same name that lies here, to compare a changed chunk with."""
        return self._reuse.older(record)

    def arrive_small(self, items: list[tuple[Record, Chunk]]) -> list[tuple[Record, str]]:
        """Verify artifacts of one chunk and write them to staging; returns what failed, each with the reason."""
        failed = self._staging.arrive_small(items)
        for record, _ in items:
            self.room.allocated(record.digest)
        return failed

    def publish(self, items: Sequence[Publication]) -> Outcome:
        """Give verified bytes their final names, durably. See publication.py for the rules."""
        outcome = self._publisher.publish(items)
        self.room.published(sum(r.size for r, _ in outcome.done if r.origin != self.store.node))
        return outcome

    # What is accepted

    def accept_file(
        self,
        relpath: str,
        expected: Stamp | None = None,
        *,
        take_over: bool = False,
        copy_max_bytes: int | None = None,
    ) -> Accepted:
        """Make a file of the root safe. `expected` is how a scan saw it; `take_over` sets another's old claim aside."""
        accepted = self._acceptance.accept_file(relpath, expected, take_over, copy_max_bytes)
        return self._remember_leaves(accepted)

    def accept_bytes(self, content: bytes, mode: int = 0o644) -> Accepted:
        """Make bytes from the CLI safe: inline up to 64 KiB, else in a private file."""
        return self._remember_leaves(self._acceptance.accept_bytes(content, mode))

    def accept_stream(self, blocks: Iterable[bytes], mode: int = 0o644) -> Accepted:
        """As `accept_bytes`, for any number of blocks; memory stays bounded by one block."""
        return self._remember_leaves(self._acceptance.accept_stream(blocks, mode))

    def draft(self) -> Path:
        """A path for a file of our own making, such as a snapshot, to be given to `accept_draft`."""
        return self._staging.draft()

    def accept_draft(self, draft: Path, mode: int = 0o644) -> Accepted:
        """Make a file at a path from `draft` safe; it is used up, whatever happens."""
        return self._remember_leaves(self._acceptance.accept_draft(draft, mode))

    # What goes

    def unpin(self, place: Place) -> None:
        """A put of a `Kept` place was committed or refused: from now on the file may be removed again.

        To be called once for each accepted place, after the put's commit; until then `unlink` leaves the file, for at
        most PIN_SECONDS_MAX.
        """
        self._private.unpin(place.path)

    def recorded(self, place: Place) -> None:
        """The put of this file was committed: another member of our NFS group may replace it by a newer version."""
        with sentences(f"mark {place.path} as recorded"):
            Claims(self.store, self._files).record(place.path, place.size, place.mtime_ns)

    def unlink(self, places: Sequence[Place]) -> tuple[str, ...]:
        """Remove files of ours, durably, each only if it is still what its place says; sentences for what stayed.

        A private version that a put counts on stays too; the next `sweep` removes it if the put came to nothing.
        """
        stayed: list[str] = []
        folders: set[str] = set()
        for place in places:
            try:
                if self._unlink_unless_pinned(place):
                    folders.add(place.path.rpartition("/")[0])
            except StoreError as error:
                stayed.append(str(error))
        for folder in sorted(folders):
            try:
                self._files.fsync_dir(self.store.root / folder)
            except OSError as error:
                stayed.append(str(failure(error, f"sync the folder {folder or '.'}")))
        return tuple(stayed)

    def sweep(self, starting: bool = True, keep: Collection[str] | None = None) -> int:
        """Bound staging and clear old claims; bytes freed. At start it also removes what the last life left behind.

        `keep`: the paths that pending entries of the WAL name. While they are not known (None), no private version is
        taken for left behind.
        """
        now_seconds = time.time()
        freed_bytes = self._staging.sweep(now_seconds, starting)
        excess_bytes = self._staging.staged_bytes - self._staging_bytes_max
        if excess_bytes > 0:
            freed_bytes += self._staging.make_room(excess_bytes, now_seconds)
        with sentences("sweep old claims"):
            Claims(self.store, self._files).sweep(now_seconds)
        if starting and keep is not None:
            with sentences("sweep the private versions"):
                freed_bytes += self._private.sweep(now_seconds, keep)
        return freed_bytes + self._unlink_again()

    def close(self) -> None:
        """Mark what staging has verified and close it."""
        self._staging.close()

    def _reserve_chunked(self, transfer: int, record: Record) -> str:
        try:
            allocated = self._staging.is_allocated(record)
            if not allocated:
                self._require_staging(record)
            refusal = self.room.reserve(transfer, record.digest, 0 if allocated else record.size)
            if refusal:
                return refusal
            self._staging.allocate(record)
        except StoreError as error:
            self.room.release(transfer, record.digest)
            return str(error)
        self.room.allocated(record.digest)
        return ""

    def _require_staging(self, record: Record) -> None:
        excess_bytes = self._staging.staged_bytes + record.size - self._staging_bytes_max
        if excess_bytes > 0 and self._staging.make_room(excess_bytes, time.time()) < excess_bytes:
            raise StorageFailed(
                f"staging holds its limit of {self._staging_bytes_max} bytes; other transfers come first"
            )

    def _missing(self, parcel: Parcel) -> tuple[Stripe, ...]:
        record = parcel.record
        if chunk_count(record.size) <= 1:
            return NOTHING_MISSING if self._staging.here(record) else parcel.stripes
        partial = self._staging.partial(record)
        try:
            missing = overlap(partial.missing(), parcel.stripes or (Stripe(0, chunk_count(record.size)),))
        finally:
            partial.close()
        if missing == (Stripe(0, chunk_count(record.size)),):
            return ()
        return missing[:STRIPES_MAX] or NOTHING_MISSING

    def _open_place(self, place: Place) -> FileBlob | None:
        try:
            fd, status = open_below(self._files, self.store.root, place.path)
        except (FileGone, PathRefused) as error:
            self._withdraw_if_present(place, str(error))
            return None
        except StorageFailed:
            return None  # it may well be readable again: nothing is withdrawn for a passing failure
        if stamp_of(status) == place_stamp(place):
            return FileBlob(self._files, fd, place, self._withdraw)
        self._files.close(fd)
        self._withdraw_if_present(place, f"{place.path} was changed after it was accepted")
        return None

    def _is_gone(self, place: Place) -> bool:
        try:
            self._files.lstat(self.store.root / place.path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # an input/output error or a stale handle: the file may well be there
        return False

    def _withdraw_if_present(self, place: Place, why: str) -> None:
        """A root that is missing, or an empty mount point, is a mount that is away: its files come back with it."""
        if self.store.present(self._files):
            self._withdraw(place, why)

    def _withdraw(self, place: Place, why: str) -> None:
        if self._places.at(place.path) == place:
            self._places.drop(place.path)
        self._on_withdrawn(place, why)

    def _set_aside(self, place: Place) -> str:
        """Move a damaged file to `.spore/quarantine/`: where it lay it would pass for a user's new version."""
        aside = self.store.own / "quarantine"
        why = f"{place.path} is damaged: its bytes are not those of its digest"
        try:
            with sentences(f"set the damaged {place.path} aside"), suppress(FileExistsError):
                self._files.mkdir(aside)
            with sentences(f"set the damaged {place.path} aside"):
                folder = walk(self._files, self.store.root, checked_parts(place.path)[:-1])
                self._places.taking_away(place.path)
                self._files.rename(self.store.root / place.path, aside / f"{place.digest.hex()}-{time.time_ns()}")
                self._files.fsync_dir(aside)
                self._files.fsync_dir(folder.path)
        except (StoreError, FileNotFoundError) as error:
            why = f"{why}, and stays there: {error}"
        else:
            why = f"{why}; it was moved to {OWN_FOLDER}/quarantine"
        self._places.drop(place.path)
        self._on_damaged(place, why)
        return why

    def _unlink_unless_pinned(self, place: Place) -> bool:
        with self._private.removing(place.path) as free:
            if free:
                return self._unlink_one(place)
        self._unlink_later[place.path] = place
        raise StoreError(
            f"{place.path} is wanted again by a put under way; if that is refused, a later sweep removes it"
        )

    def _unlink_again(self) -> int:
        """Remove what a put wanted and did not come to need: its pin is off, and no committed place names it."""
        freed_bytes = 0
        for path, place in list(self._unlink_later.items()):
            with suppress(StoreError), self._private.removing(path) as free:
                if not free:
                    continue
                del self._unlink_later[path]
                if self._lookups.place_at(path) is None and self._unlink_one(place):  # a pin outlives its commit
                    freed_bytes += place.size
        return freed_bytes

    def _unlink_one(self, place: Place) -> bool:
        parts = checked_parts(place.path)
        with sentences(f"remove {place.path}"):
            try:
                folder = walk(self._files, self.store.root, parts[:-1])
            except FileNotFoundError:
                return False
            status = entry_status(self._files, folder.path / parts[-1])
            self._places.drop(place.path)
            if status is None:
                return True  # its folder is synced all the same: an earlier removal may have failed there
            if stamp_of(status) != place_stamp(place):
                raise StoreError(f"{place.path} was changed since, so it is a user's file now and stays")
            self._places.taking_away(place.path)
            self._files.unlink(folder.path / parts[-1])
            return True

    def _remember_leaves(self, accepted: Accepted) -> Accepted:
        if len(accepted.leaves) > 1:
            self._lookups.save_leaves(accepted.digest, accepted.leaves)
        return accepted
