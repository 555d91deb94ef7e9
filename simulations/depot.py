"""A simulated depot: the storage contract the core relies on, over a simulated disk.

Bytes are verified as they arrive, marked in a durable map after a sync, and renamed to their final name only when
complete. A file that does not look as the manifest says is the user's and is never overwritten. Room is reserved before
the first byte, up to the cap for what is held for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from protocol.effects import Entry, Kept, Publication, Referenced
from protocol.fleet import Routing
from protocol.names import PEERS_FOLDER
from protocol.values import Digest, NodeId, Parcel, Place, Record, Stripe
from simulations.disks import LocalDisk, SimFile, Staged, StoreDisk

MARK_CHUNKS = 8  # chunks between two syncs of a partial; a crash costs at most these
STAGED_MAX = 2_000  # partials of one node: more than 64 transfers of any size leave behind here
HYSTERESIS_PERCENT = 2.0  # between stopping and resuming to accept, as in the agent

Reserved = tuple[tuple[tuple[Stripe, ...], ...], tuple[str, ...]]


@dataclass(slots=True)
class Renamed:
    """One item of a publication that has its name and is not durable yet."""

    record: Record
    path: str
    private: bool


@dataclass(slots=True)
class Publishing:
    """A publication between its renames and its syncs."""

    renamed: list[Renamed]
    failed: list[tuple[Record, str]]
    moved: list[tuple[str, Place]]
    local: list[tuple[str, Record]]  # where a user's file is in the way of what: it is accepted first


class SimDepot:
    """One node's access to its store."""

    def __init__(self, node: NodeId, store: StoreDisk, disk: LocalDisk, routing: Routing, random: Random) -> None:
        self.node = node
        self.store = store
        self.disk = disk
        self.routing = routing
        self.random = random
        self.trouble = 0.0  # how often a reservation or a rename meets ENOSPC or EIO
        self.on_trouble: Callable[[str], None] = lambda knob: None
        self.recorded: Callable[[str, int], bool] = lambda path, inode: False  # by another member of the NFS group
        self.accepting = True
        self.emergency = False
        self._reserved: dict[tuple[NodeId, int], list[Digest]] = {}
        self._remembered: dict[str, Place] = {}  # published or kept in this life, perhaps not committed yet

    @property
    def staged(self) -> dict[Digest, Staged]:
        return self.store.staging.setdefault(self.node, {})

    # --- room ---

    def cap_bytes(self) -> int:
        return int(self.store.capacity_bytes * self.routing.disk_cap_percent / 100)

    def local_room(self) -> bool:
        return self.store.free_bytes() > self.routing.min_free_bytes

    def look(self) -> bool:
        """Whether bytes for others are taken now, with hysteresis."""
        slack = 0 if self.accepting else int(self.store.capacity_bytes * HYSTERESIS_PERCENT / 100)
        self.accepting = self.store.used_bytes() + slack < self.cap_bytes() and self.local_room()
        return self.accepting

    def excess_bytes(self) -> int:
        """What must go to end an emergency, as the agent's `Room` says it."""
        percent = max(self.routing.emergency_disk_percent, self.routing.disk_cap_percent + HYSTERESIS_PERCENT)
        used, capacity = self.store.used_bytes(), self.store.capacity_bytes
        stop = self.routing.min_free_bytes
        begins = used * 100 > capacity * percent or capacity - used < stop
        over = used - int(capacity * (percent - HYSTERESIS_PERCENT) / 100)
        excess = max(0, over, stop + stop // 8 - (capacity - used))
        self.emergency = bool(excess) and (begins or self.emergency)
        return excess if self.emergency else 0

    def _has_trouble(self, knob: str) -> bool:
        bites = self.random.random() < self.trouble
        if bites:
            self.on_trouble(knob)
        return bites

    # --- staging ---

    def reserve(self, peer: NodeId, transfer: int, parcels: tuple[Parcel, ...]) -> Reserved:
        missing: list[tuple[Stripe, ...]] = []
        refused: list[str] = []
        for parcel in parcels:
            why = self._admit(parcel.record)
            refused.append(why)
            missing.append(() if why else self._missing(parcel.record))
            if not why:
                self._reserved.setdefault((peer, transfer), []).append(parcel.record.digest)
        return tuple(missing), tuple(refused)

    def _admit(self, record: Record) -> str:
        staged = self.staged.get(record.digest)
        more = record.size - (staged.room_bytes if staged else 0)
        if self._has_trouble("reserve_refused"):
            return "there is no room: the disk failed"
        if self.store.used_bytes() + more > self.cap_bytes():
            self.on_trouble("disk_full")
            return f"the disk of {self.node} is at its cap"
        if len(self.staged) >= STAGED_MAX:
            return f"{self.node} has {STAGED_MAX} partial artifacts already"
        self.staged.setdefault(record.digest, Staged(record)).reserved = True
        return ""

    def _missing(self, record: Record) -> tuple[Stripe, ...]:
        staged = self.staged[record.digest]
        return (staged.missing() or (Stripe(0, 0),)) if staged.written else ()

    def unreserve(self, peer: NodeId, transfer: int) -> None:
        """Give back the room; verified chunks stay, so that the next try needs fewer."""
        for digest in self._reserved.pop((peer, transfer), []):
            staged = self.staged.get(digest)
            if staged is None or any(digest in others for others in self._reserved.values()):
                continue
            staged.reserved = False
            if not staged.written:
                del self.staged[digest]

    def forget_reservations(self) -> None:
        """The process died; what is staged stays."""
        self._reserved.clear()
        self._remembered.clear()

    def place_at(self, path: str) -> Place | None:
        """What we know to lie at a path, if it still does: published in this life, or committed."""
        for place in (self._remembered.get(path), self.disk.catalogue.place(path)):
            if place is not None and self.store.stands(place):
                return place
        return None

    def write(self, record: Record, run: Stripe) -> bool:
        """A run of chunks of an artifact, verified; False when nothing is reserved for it."""
        staged = self.staged.get(record.digest)
        if staged is None or not staged.reserved:
            return False
        staged.written |= ((1 << run.count) - 1 << run.first) & staged.all
        unmarked = (staged.written & ~staged.marked).bit_count()
        if staged.chunks > 1 and (unmarked >= MARK_CHUNKS or staged.complete):
            staged.marked = staged.written
        return True

    # --- reading ---

    def readable(self, digest: Digest, withdrawn: Callable[[Place], None]) -> bool:
        """Whether the bytes can be served; places that are no longer true are reported and passed over."""
        for place in self.disk.catalogue.places(digest):
            if self.store.stands(place):
                return True
            if self._remembered.get(place.path, place).digest == digest:
                withdrawn(place)
        recent = [place for place in self._remembered.values() if place.digest == digest]
        return any(self.store.stands(place) for place in recent) or self.disk.inline(digest)

    def has_run(self, digest: Digest, run: Stripe) -> bool:
        """Whether this run of an artifact that is being fetched is written."""
        staged = self.staged.get(digest)
        wanted = (1 << run.count) - 1 << run.first
        return staged is not None and staged.reserved and staged.written & wanted == wanted

    # --- publication ---

    def rename(self, items: tuple[Publication, ...], now_ms: int) -> Publishing:
        """Verify and rename; what this returns is visible and not durable yet."""
        work = Publishing([], [], [], [])
        for item in items:
            if self._has_trouble("publish_failed"):
                work.failed.append((item.record, "it could not be renamed: no space left on device"))
            else:
                self._rename_one(item, work, now_ms)
        return work

    def _rename_one(self, item: Publication, work: Publishing, now_ms: int) -> None:
        record = item.record
        path = item.path or self.version_path(record.digest)
        private = item.path is None
        there = self.store.files.get(path)
        ours = self.place_at(path) is not None or path.startswith(PEERS_FOLDER + "/")  # nobody else writes there
        ours = ours or (there is not None and self.recorded(path, there.inode))
        if there is not None and there.digest == record.digest and (ours or private):
            work.renamed.append(Renamed(record, path, private))
        elif not self._has_bytes(record.digest):
            work.failed.append((record, "its bytes are not here"))
        elif there is not None and not (ours or private):
            work.failed.append((record, "a file of the user is in the way; it is accepted first"))
            work.local.append((path, record))
        else:
            self._replace(record, path, private, there, work, now_ms)

    def _replace(
        self, record: Record, path: str, private: bool, there: SimFile | None, work: Publishing, now_ms: int
    ) -> None:
        """The older version gets a durable name among the versions before it loses this one."""
        if there is not None and there.digest != record.digest:
            aside = self.version_path(there.digest)
            self.store.by_mate[there.digest] = self.node
            if aside not in self.store.files:
                self.store.write(aside, there.digest, there.size, now_ms)
            self._remembered[aside] = self.store.place(aside, True)
            work.moved.append((path, self._remembered[aside]))
        self.store.write(path, record.digest, record.size, now_ms, synced_by=self.node)
        self._remembered[path] = self.store.place(path, private)
        self.staged.pop(record.digest, None)
        work.renamed.append(Renamed(record, path, private))

    def _has_bytes(self, digest: Digest) -> bool:
        staged = self.staged.get(digest)
        if staged is not None and staged.complete:
            return True
        return self.readable(digest, lambda place: None)

    def sync(self, work: Publishing, now_ms: int) -> tuple[list[tuple[Record, Place]], list[tuple[Record, str]]]:
        """The folders are synced: what was renamed is durable. A file that a user changed meanwhile is not ours."""
        done, failed = [], list(work.failed)
        for item in work.renamed:
            there = self.store.files.get(item.path)
            if there is not None and there.digest == item.record.digest:
                self.store.sync(item.path, there, now_ms)  # also one that was there: who made it may not have synced
            if there is None or there.digest != item.record.digest:
                failed.append((item.record, "the file was changed while it was published"))
            else:
                done.append((item.record, self.store.place(item.path, item.private)))
        return done, failed

    def version_path(self, digest: Digest) -> str:
        """Members of an NFS group remove only their own versions, so these carry the member's name."""
        suffix = f".{self.node}" if self.store.shared else ""
        return f".spore/versions/{digest.hex()}{suffix}"

    def followed(self, entries: list[Entry]) -> list[Entry]:
        """As the agent's depot: a referenced file may have made room just before a crash."""
        return [self._follow(entry) for entry in entries]

    def _follow(self, entry: Entry) -> Entry:
        if isinstance(entry.source, Referenced) and not self.store.stands(entry.source.place):
            aside = self.version_path(entry.record.digest)
            if aside in self.store.files:
                return Entry(entry.record, Kept(self.store.place(aside, True)))
        return entry

    def keep(self, digest: Digest, size: int, now_ms: int) -> Place:
        """A private copy of what is being accepted, synced."""
        path = self.version_path(digest)
        if path not in self.store.files:
            self.store.write(path, digest, size, now_ms)
        return self.store.place(path, True)

    def unlink(self, places: tuple[Place, ...]) -> None:
        for place in places:
            if self.store.stands(place):
                self.store.by_mate[place.digest] = self.node
                self.store.remove(place.path)
