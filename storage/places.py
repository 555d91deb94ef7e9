"""Where our own store has a digest: what the manifest says, and what this process did that is not committed yet.

Between a publication and the commit of its place there is a moment in which a scan could take our own file for a
user's. So publication tells this memory first, and whoever asks gets both.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.values import Digest, Place
from storage.folders import Stamp, place_stamp

RECENT_MAX = 65_536  # commits follow within a second; this many small files are a minute of publication


def _nothing(_digest: Digest) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Lookups:
    """What the depot asks of the manifest and the WAL. Called from any thread: the driver makes them safe for that.

    `places_of` and `place_at` read committed places; `inline_of` the bytes of a pending WAL entry, `recent_of` those of
    one that are still in memory; `load_leaves` and `save_leaves` keep chunk lists. `versions_of` gives the digests of
    a name's versions, the newest first, `chunk_lists` every chunk list there is, packed. The defaults know nothing:
    enough for tests of other things.
    """

    places_of: Callable[[Digest], tuple[Place, ...]] = lambda _digest: ()
    place_at: Callable[[str], Place | None] = lambda _path: None
    inline_of: Callable[[Digest], bytes | None] = _nothing
    load_leaves: Callable[[Digest], tuple[Digest, ...] | None] = _nothing
    save_leaves: Callable[[Digest, tuple[Digest, ...]], None] = lambda _digest, _leaves: None
    recent_of: Callable[[Digest], bytes | None] = _nothing
    versions_of: Callable[[str], tuple[Digest, ...]] = lambda _name: ()
    chunk_lists: Callable[[], Iterable[tuple[Digest, bytes]]] = lambda: ()


class Places:
    """Committed and recent places. Thread-safe."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Place] = OrderedDict()
        self._by_digest: dict[Digest, dict[str, Place]] = {}
        self._taken_away: OrderedDict[str, None] = OrderedDict()  # the latest paths

    def of(self, digest: Digest) -> tuple[Place, ...]:
        """Places of a digest: committed ones first. A recent word about a path replaces the committed one."""
        committed = self._lookups.places_of(digest)
        with self._lock:
            current = [p for p in committed if self._recent.get(p.path, p).digest == digest]
            recent = self._by_digest.get(digest, {})
            kept = [recent.get(place.path, place) for place in current]
            paths = {place.path for place in kept}
            return (*kept, *(place for path, place in sorted(recent.items()) if path not in paths))

    def at(self, path: str) -> Place | None:
        with self._lock:
            recent = self._recent.get(path)
        return recent or self._lookups.place_at(path)

    def knows(self, path: str, stamp: Stamp) -> bool:
        """Whether the file at a path is, unchanged, one that we published or accepted."""
        place = self.at(path)
        return place is not None and place_stamp(place) == stamp

    def remember(self, place: Place) -> Place | None:
        """The last word about a path; returns the one it replaces, unless that one is committed (or there is none)."""
        with self._lock:
            before = self._recent.get(place.path)
            self._drop(place.path)
            self._recent[place.path] = place
            self._by_digest.setdefault(place.digest, {})[place.path] = place
            while len(self._recent) > RECENT_MAX:
                self._drop(next(iter(self._recent)))
        return before

    def taking_away(self, path: str) -> None:
        """We are about to remove the file at a path ourselves, or to move it aside."""
        with self._lock:
            self._taken_away[path] = None
            while len(self._taken_away) > RECENT_MAX:
                self._taken_away.popitem(last=False)

    def took_away(self, path: str) -> bool:
        """Whether its absence is our own doing: no user deleted it."""
        with self._lock:
            return path in self._taken_away

    def drop(self, path: str) -> None:
        with self._lock:
            self._drop(path)

    def _drop(self, path: str) -> None:
        place = self._recent.pop(path, None)
        if place:
            sharers = self._by_digest[place.digest]
            sharers.pop(path, None)
            if not sharers:
                del self._by_digest[place.digest]
