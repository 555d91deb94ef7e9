"""What a node does in a root that others use as well: its mark, theirs, and the files that they have published."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from protocol.values import NodeId, Place, Record
from storage.claims import Claims
from storage.copies import hash_file
from storage.files import FileLayer
from storage.folders import entry_status, open_below, place_of, place_stamp, stamp_of
from storage.marks import Marks
from storage.places import Places
from storage.refusals import FileGone, sentences
from storage.store import Store


@dataclass(frozen=True, slots=True)
class SharedRoot:
    """The root as mates see it. All methods block and may be called from any thread. Raises StoreError."""

    store: Store
    files: FileLayer
    places: Places

    def mark(self, nonce: bytes) -> None:
        """Write our mark into the root, for mates to find."""
        Marks(self.store, self.files).write(nonce)

    def sees_mark(self, node: NodeId, nonce: bytes) -> bool:
        """Whether the mark of a node is in our root: then we share it."""
        return Marks(self.store, self.files).shows(node, nonce)

    def share(self) -> None:
        """Others use this root as well: from now on files are claimed before they are accepted."""
        self.store.shared = True

    def index(self, record: Record, relpath: str) -> Place | None:
        """The place of a file that a mate published or accepted, if it is as the mate's claim says; where there is no
        claim for it (a mount may tell whole seconds only), if its bytes are hashed to the record's digest."""
        with sentences(f"look for {relpath}"):
            status = entry_status(self.files, self.store.root / relpath)
            if status is None or status.st_size != record.size:
                return None
            stamp = stamp_of(status)
            claimed = Claims(self.store, self.files).recorded(relpath, stamp.size, stamp.mtime_ns)
        place = replace(place_of(relpath, record.digest, stamp), published=claimed)
        if not claimed and not self._hashes_to(place):
            return None
        self.places.remember(place)
        return place

    def _hashes_to(self, place: Place) -> bool:
        with suppress(FileGone), sentences(f"hash {place.path}"):
            fd, _ = open_below(self.files, self.store.root, place.path)
            try:
                digest = hash_file(self.files, fd).digest
                return digest == place.digest and stamp_of(self.files.fstat(fd)) == place_stamp(place)
            finally:
                self.files.close(fd)
        return False
