"""The watched folder of a simulated node: what users do to files, and how the node finds out.

Files are noticed after a while, or by the rescan that follows a start, never at once. A file that changes while it is
being accepted is looked at again. In an NFS group the members see the same files: a claim says which of them accepts
one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.effects import Inline, Kept, Referenced, Source
from protocol.events import Put, RootKnown, Withdrawn
from protocol.fleet import Kind, is_reserved
from protocol.names import name_of
from protocol.values import Digest, Place
from simulations.chance import between
from simulations.disks import SimFile

if TYPE_CHECKING:
    from simulations.driver import SimNode

INLINE_BYTES_MAX = 64 << 10  # up to this size the bytes stand in the WAL
ACCEPT_BYTES_PER_MS = 500_000  # reading, hashing and copying
NOTICE_MS = (20, 1_500)  # inotify, or a look at stable sizes
RESCAN_FIRST_MS = 1_000
CLAIM_MS_MAX = 30_000  # a claim whose claimer never told of the file is taken over after this


@dataclass(slots=True)
class Claims:
    """Which member of an NFS group accepts which state of a file; lies in the shared store."""

    taken: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    recorded: dict[tuple[str, int], None] = field(default_factory=dict)  # the claimer's manifest knows it


class Watching:
    """One node's eyes on its root."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.claims = Claims()
        self.scanned = False  # the first scan of this life is complete: what is new after it is news
        self.old: dict[tuple[str, int], None] = {}  # what lay here when we first looked and was not known then
        self.root_known = False  # all of that is known by now

    def start(self) -> None:
        self.scanned = self.root_known = False
        self.old.clear()
        self.node.later(RESCAN_FIRST_MS, self._rescan)

    # --- what users do ---

    def user_writes(self, path: str, digest: Digest, size: int) -> None:
        self._user_touched(path)
        file = self.node.store.write(path, digest, size, self.node.around.schedule.now_ms)
        file.users = True
        self._notice(path)

    def user_removes(self, path: str) -> None:
        self._user_touched(path)
        self.node.store.remove(path)
        self._notice(path)

    def _user_touched(self, path: str) -> None:
        before = self.node.store.files.get(path)
        if before is not None:
            self.node.store.by_user[before.digest] = None

    def _notice(self, path: str) -> None:
        self.node.later(between(self.node.random, *NOTICE_MS), self._look, path)

    # --- how the node finds out ---

    def _rescan(self) -> None:
        """Look at every file and every place: events are missed, and nothing was seen while the node was down."""
        places = self.node.disk.catalogue.tables.places
        for path in sorted({**self.node.store.files, **places}):
            self._look(path)
        self.scanned = True
        self._look_whether_all_is_known()
        interval = self.node.around.fleet.routing_for(self.node.name).auto_sync_interval_seconds
        self.node.later(int(interval * 1000), self._rescan)

    def _look_whether_all_is_known(self) -> None:
        """As the agent's intake says it at the end of a scan: of what lay here nothing waits to be taken in."""
        if not self.root_known and not any(self._waits(path, inode) for path, inode in self.old):
            self.root_known = True
            self.node.handle(RootKnown())

    def _waits(self, path: str, inode: int) -> bool:
        file = self.node.store.files.get(path)
        if file is None or file.inode != inode or self.node.depot.place_at(path) is not None:
            return False
        return self.claims.taken.get((path, inode), (self.node.name, 0))[0] == self.node.name

    def _look(self, path: str) -> None:
        file = self.node.store.files.get(path)
        place = self.node.disk.catalogue.place(path)
        if self.node.depot.place_at(path) is not None:
            if file is not None and place is not None and self.node.store.stands(place):
                self.claims.recorded[path, file.inode] = None
            return
        if file is not None and self._is_artifact(path):
            self.found(path, self.node.around.fleet.kind_of_path(path))
        elif place is not None:
            self.node.bite("place_lost")
            self.node.handle(Withdrawn(place, "the file was removed or changed"))

    def _is_artifact(self, path: str) -> bool:
        kind = self.node.around.fleet.kind_of_path(path)
        return kind is not None and kind.snapshot is None and not is_reserved(path)

    def found(self, path: str, kind: Kind | None) -> None:
        """A file that is not known as it is now."""
        file = self.node.store.files.get(path)
        place = self.node.disk.catalogue.place(path)
        if file is not None and not self.scanned:
            self.old[path, file.inode] = None
        if file is not None and kind is not None and self._claim(path, file, kind):
            self._accept(path, file, kind, live=(path, file.inode) not in self.old)
        elif place is not None:
            self.node.handle(Withdrawn(place, "another member of the group has changed the file"))

    def in_the_way(self, path: str, kind: Kind | None) -> None:
        """Something is to be published over a file that we do not know: it is accepted first.

        It may be a user's, another member's of the NFS group, or one that an earlier life published and did not live to
        commit: so it does not outrank anything, unless the file that we knew at this path was changed.
        """
        file = self.node.store.files.get(path)
        if file is not None and kind is not None and self._claim(path, file, kind):
            self._accept(path, file, kind, live=False)

    def _accept(self, path: str, file: SimFile, kind: Kind, live: bool) -> None:
        """Copy or reference it, and look whether it changed meanwhile."""
        delay = file.size // ACCEPT_BYTES_PER_MS + 1
        self.node.later(delay, self._accepted, path, file, kind, live)

    def _is_new(self, name: str, path: str, file: SimFile) -> bool:
        """Whether a file that nobody saw being written is a user's new one, by the rule of the agent's intake.

        It may be one that an earlier life published and did not live to commit: its bytes are those of a known version
        then, or no scan has found it, since its path is not watched. Such a file must not outrank anything.
        """
        kind = self.node.around.fleet.kind_of_path(path)
        if kind is None or not name.startswith(kind.name + "/") or not self.node.disk.known:
            return False
        return all(version.digest != file.digest for version in self.node.disk.catalogue.versions(name))

    def _accepted(self, path: str, file: SimFile, kind: Kind, live: bool) -> None:
        if self.node.store.files.get(path) is not file:
            self.node.bite("changed_while_accepted")
            self._notice(path)
            return
        place = self.node.store.place(path, False)
        if self.node.depot.place_at(path) == place:
            return
        fleet = self.node.around.fleet
        name = name_of(kind.name, path, self.node.name, kind.namespace == "node")
        known = live or self._is_new(name, path, file)
        if not known:
            self.node.bite("found_without_history")
        elif not file.users:
            self.node.around.oracle.published_file_found(self.node.name, name, file.digest)
        source = self._source(file, place, fleet.copy_max_bytes(kind, self.node.name))
        self.node.bite(f"accepted_{type(source).__name__.lower()}")
        self.node.handle(Put(0, name, file.digest, file.digest, file.size, 0o644, source, place, known))

    def _source(self, file: SimFile, place: Place, copy_bytes_max: int) -> Source:
        if file.size <= INLINE_BYTES_MAX:
            return Inline(file.digest)
        if file.size <= copy_bytes_max:
            return Kept(self.node.depot.keep(file.digest, file.size, self.node.around.schedule.now_ms))
        return Referenced(place)

    # --- claims ---

    def _claim(self, path: str, file: SimFile, kind: Kind) -> bool:
        if not self.node.store.shared:
            return True
        now = self.node.around.schedule.now_ms
        claimer, since = self.claims.taken.setdefault((path, file.inode), (self.node.name, now))
        if claimer == self.node.name:
            return True
        if (path, file.inode) in self.claims.recorded:
            return False
        told = self.node.disk.catalogue.versions(name_of(kind.name, path, self.node.name, kind.namespace == "node"))
        if told or now - since < CLAIM_MS_MAX:
            return False
        self.claims.taken[path, file.inode] = (self.node.name, now)
        return True

    def published(self, path: str) -> None:
        """What is published is claimed too, in the moment it gets its name, so that the other members let it be."""
        if self.node.store.shared:
            inode = self.node.store.files[path].inode
            self.claims.taken.setdefault((path, inode), (self.node.name, 0))
            self.claims.recorded[path, inode] = None
