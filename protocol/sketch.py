"""The sketch of a set: a prefix of its cells, kept while items come and go, from which two nodes find what differs.

Items are the 64-bit fingerprints of all committed records and present holdings (see fingerprints.py). One node sends
the first 64 cells; the other subtracts its own and usually reads off both sides of the difference (`differences`), else
it asks for as many further cells as it estimates to need, which continue the first. What cells are stands in
cells.py. Here is how they are kept: changed one item at a time or in batches, copied, saved and read again.

A sketch cannot tell whether an item is in the set: its owner puts each in once and takes it out once.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence

from protocol.cells import (
    CELLS_MAX,
    TAG_MASK,
    Cells,
    Fold,
    pack,
    pack_fields,
    places_of,
    seed_of,
    sketch_key,
    tag_of,
    unpack_fields,
)

BATCH_ITEMS_MIN = 512  # 8 ms of pure Python: below that, numpy would not be worth its loading
WARM_ITEMS_MIN = 96  # where numpy is loaded already: half the time of one by one

_MAGIC = b"SPS1"  # another form, or other places or tags for the same item, have another magic
_HEADER = struct.Struct("<4sIQqI")  # magic, count of cells, key, rows, checksum


class SketchDamaged(ValueError):
    """A saved sketch that cannot be used: made by another release or cluster, or damaged. It is made anew."""


class Sketch:
    """The first `cells` cells of a set. Fewer cells take less memory and resolve less; the cells are the same."""

    __slots__ = ("_items", "_key", "_rows", "_tags", "_warm")

    def __init__(self, key: bytes, cells: int = CELLS_MAX) -> None:
        """`key` is the cluster's, as for fingerprints: sketches of two clusters have nothing in common."""
        assert 1 <= cells <= CELLS_MAX, "a sketch has from 1 to CELLS_MAX cells"
        self._key = sketch_key(key)
        self._rows = 0
        self._warm = False  # numpy was loaded for this one: smaller batches are worth it as well
        self._items = array("Q", bytes(8 * cells))
        self._tags = array("Q", bytes(8 * cells))

    @property
    def key(self) -> int:
        return self._key

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sketch):
            return NotImplemented
        return (self._key, self._rows, self._items, self._tags) == (other._key, other._rows, other._items, other._tags)

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> Sketch:
        """The same set, from here on changed apart."""
        twin = object.__new__(Sketch)
        twin._key, twin._rows, twin._warm = self._key, self._rows, self._warm
        twin._items, twin._tags = self._items[:], self._tags[:]
        return twin

    def add(self, item: int) -> None:
        """Put in an item that is not in the set."""
        seed = seed_of(item, self._key)
        self._put(item, seed, tag_of(seed))
        self._rows += 1

    def remove(self, item: int) -> None:
        """Take out an item that is in the set."""
        seed = seed_of(item, self._key)
        self._put(item, seed, -tag_of(seed))
        self._rows -= 1

    def _put(self, item: int, seed: int, tag: int) -> None:
        items, tags = self._items, self._tags
        for place in places_of(seed, len(items)):
            items[place] ^= item
            tags[place] = tags[place] + tag & TAG_MASK

    def apply(self, added: Sequence[int], removed: Sequence[int] = ()) -> None:
        """Many at once, in any order: the same as one after the other, and many times as fast."""
        if len(added) + len(removed) < (WARM_ITEMS_MIN if self._warm else BATCH_ITEMS_MIN):
            for item in added:
                self.add(item)
            for item in removed:
                self.remove(item)
            return
        from protocol import sketch_batches

        self._warm = True
        for sign, batch in ((1, added), (-1, removed)):
            sketch_batches.put(self._items, self._tags, self._key, batch, sign)
            self._rows += sign * len(batch)

    def fold(self) -> Fold:
        """(count, exclusive-or) of all items: sets with equal folds are, but for chance, equal."""
        return self._rows, self._items[0]

    def cells(self, first: int, end: int) -> Cells:
        """Cells `first` up to `end`, or to the last that this sketch has."""
        return Cells(first, self.fold(), tuple(self._items[first:end]), tuple(self._tags[first:end]))

    def prefix(self, count: int) -> bytes:
        """The first cells as they are sent; `cells.parse` reads them."""
        return pack(self.cells(0, count))

    # --- saved ---

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`: 229 kB for a full one."""
        fields = pack_fields(tuple(self._items), tuple(self._tags))
        head = (_MAGIC, len(self._items), self._key, self._rows)
        return _HEADER.pack(*head, _checksum(_HEADER.pack(*head, 0), fields)) + fields

    @classmethod
    def from_bytes(cls, key: bytes, frame: bytes, cells: int = CELLS_MAX) -> Sketch:
        """What `to_bytes` saved with this key and count of cells. Raises `SketchDamaged`."""
        sketch = cls(key, cells)
        if len(frame) < _HEADER.size or frame[:4] != _MAGIC:
            raise SketchDamaged("the saved sketch is of another release: it is made anew from the rows")
        _, count, its_key, rows, checksum = _HEADER.unpack_from(frame)
        fields = frame[_HEADER.size :]
        if checksum != _checksum(_HEADER.pack(_MAGIC, count, its_key, rows, 0), fields):
            raise SketchDamaged("the saved sketch is damaged: it is made anew from the rows")
        if count != cells or its_key != sketch._key:
            raise SketchDamaged("the saved sketch is of another cluster or size: it is made anew from the rows")
        items, tags = unpack_fields(fields, count)
        sketch._rows, sketch._items, sketch._tags = rows, array("Q", items), array("Q", tags)
        return sketch


def _checksum(header: bytes, fields: bytes) -> int:
    return zlib.crc32(fields, zlib.crc32(header))
