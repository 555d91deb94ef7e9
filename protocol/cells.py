"""Cells of the rateless sketch: which items fall into which cells, what a cell holds, how a run of cells travels.

The algorithm is that of Yang, Gilad and Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024. A set of
64-bit items has an endless sequence of cells. Every item is in cell 0 and in cell i with probability 2 / (i + 2),
whatever else it is in; which cells these are follows from the item alone, so that the cells of two sets subtract to
those of their difference. `sketch` keeps a prefix of the sequence, `differences` reads it.

A cell has two fields: the exclusive-or of its items, and the sum of their *tags* modulo 2^48. A tag is a keyed 36-bit
check of the item above a 12-bit one, so that the low bits of a sum count the items (modulo 4,096, which tells ±1 from
everything a decoder meets, and a difference's spread from 0). Sums, unlike an exclusive-or of checks, keep the sign:
a cell of a difference that holds one item alone is its tag, or minus its tag, and says by that whose it is.

Everything is exact integers: the same on every platform, in pure Python and in `sketch_batches`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

CELLS_MAX = 1 << 14  # resolves 10,000 differences at 1.4 cells each with room for a wrong estimate; 230 kB to send
PREFIX_CELLS = 64  # of a first message: 0.9 kB, which resolves some 40 differences at once
ROWS_MAX = (1 << 63) - 1  # of a set, as SQLite counts; a claim above it is no count
CELL_BYTES = 14  # 8 of items, 6 of tags
COUNT_BITS = 12
COUNT_SPAN = 1 << COUNT_BITS
TAG_MASK = (1 << 48) - 1
ITEM_MASK = (1 << 64) - 1
HALF_MASK = (1 << 32) - 1

# The finalizer of MurmurHash3, and a multiplier for 64-bit congruential generators from Steele and Vigna,
# "Computationally easy, spectrally good multipliers" (2021).
MIX_FIRST, MIX_SECOND = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
STEP_FACTOR = 0xD1342543DE82EF95

# One multiplication of long integers makes many draws, a third faster than one by one: draw n is in lane n, 128 bits
# wide so that lanes do not meet. An item is in 19 of `CELLS_MAX` cells on average and rarely in more than 24.
_LANES = 24
_FACTORS = sum(pow(STEP_FACTOR, lane + 1, 1 << 64) << 128 * lane for lane in range(_LANES))
_LOW_HALVES = sum(ITEM_MASK << 128 * lane for lane in range(_LANES))
_ODD = sum((1 << 32 | 1) << 128 * lane for lane in range(_LANES))
_NEXT_LANES = pow(STEP_FACTOR, _LANES, 1 << 64)
_LANE = struct.Struct("<II8x")

_VERSION = 1  # of the wire form and of all that decides which item is in which cell
_HEADER = struct.Struct("<BHHQQ")  # version, first cell, count of cells, rows, exclusive-or of all
Fold = tuple[int, int]  # (count, exclusive-or) of all items: what two equal sets have in common


class CellsRefused(ValueError):
    """Bytes that are no run of cells, or cells that do not fit together; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells `first`, `first` + 1, … of a set that had this fold; made by a `Sketch` or by `parse`, read by `decode`."""

    first: int
    fold: Fold
    items: tuple[int, ...]
    tags: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first cell behind these: what to ask for next."""
        return self.first + len(self.items)


def sketch_key(key: bytes) -> int:
    """What keys the items' places and checks, from a cluster's key of any length up to 64 bytes."""
    return int.from_bytes(blake2b(key=key, digest_size=8, person=b"spore.sketch").digest(), "little")


def seed_of(item: int, key: int) -> int:
    """64 bits from which all about an item follows: its check and its places. Not linear, so that the tag of an
    exclusive-or of items is unrelated to theirs."""
    mixed = (item ^ key) & ITEM_MASK
    mixed = ((mixed ^ mixed >> 33) * MIX_FIRST) & ITEM_MASK
    mixed = ((mixed ^ mixed >> 33) * MIX_SECOND) & ITEM_MASK
    return mixed ^ mixed >> 33


def tag_of(seed: int) -> int:
    """The check, and a one below it."""
    return seed >> 28 << COUNT_BITS | 1


def places_of(seed: int, cells: int) -> list[int]:
    """The cells below `cells` that an item is in, ascending, 0 first.

    After cell i the next is beyond j with probability (i+1)(i+2) / (j+1)(j+2). (The paper rounds this law to a square
    root.) The product is that of two independent events, so the next is the nearer of two draws, without a root and
    without rounding: the least j with j+1 ≥ (i+1)/u or j+2 ≥ (i+2)/v, where u and v are uniform in (0, 1).
    """
    places = [0]
    place = 0
    state = seed | 1
    while True:
        for second, first in _draws(state):
            near = ((place + 1 << 32) - 1) // first
            if first < second:  # else the second draw is never the nearer one
                far = ((place + 2 << 32) - 1) // second - 1
                near = near if near < far else far
            place = near
            if place >= cells:
                return places
            places.append(place)
        state = state * _NEXT_LANES & ITEM_MASK


def _draws(state: int) -> Iterator[tuple[int, int]]:
    """The next pairs of draws: of the state after each step, its low half xor its high half, and its high half; odd."""
    states = state * _FACTORS & _LOW_HALVES
    return _LANE.iter_unpack((states ^ states >> 32 | _ODD).to_bytes(16 * _LANES, "little"))


# --- on the wire ---


def pack(cells: Cells) -> bytes:
    """At most 230 kB: a header of 21 bytes, then all items, then all tags, little-endian throughout."""
    count = len(cells.items)
    header = _HEADER.pack(_VERSION, cells.first, count, *cells.fold)
    return header + pack_fields(cells.items, cells.tags)


def parse(frame: bytes) -> Cells:
    """Cells from a peer. Raises `CellsRefused`."""
    if len(frame) < _HEADER.size:
        raise CellsRefused(f"{len(frame)} bytes are too few for cells of a sketch: ask again")
    version, first, count, rows, combined = _HEADER.unpack_from(frame)
    if version != _VERSION:
        raise CellsRefused(f"the peer's sketch has version {version}, ours {_VERSION}: upgrade the older node")
    if not count or first + count > CELLS_MAX or len(frame) != _HEADER.size + count * CELL_BYTES or rows > ROWS_MAX:
        raise CellsRefused(
            f"{len(frame)} bytes cannot be {count} cells from {first} on of a sketch of {rows} rows: ask again"
        )
    items, tags = unpack_fields(frame[_HEADER.size :], count)
    if first == 0 and (items[0] != combined or (tags[0] - rows) % COUNT_SPAN):
        raise CellsRefused("the first cell of a sketch contradicts its fold: ask again")
    return Cells(first, (rows, combined), items, tags)


def continued(head: Cells, tail: Cells) -> Cells:
    """Two runs as one. Raises `CellsRefused` unless `tail` follows `head` and is of a set with the same fold."""
    if tail.first != head.end or tail.fold != head.fold:
        raise CellsRefused(f"cells from {tail.first} on do not continue those before {head.end}: ask from 0 on")
    return Cells(head.first, head.fold, head.items + tail.items, head.tags + tail.tags)


def pack_fields(items: tuple[int, ...], tags: tuple[int, ...]) -> bytes:
    """All items of 8 bytes, then all tags of 6."""
    count = len(items)
    wide = struct.pack(f"<{count}Q", *tags)
    narrow = bytearray(count * 6)
    for byte in range(6):
        narrow[byte::6] = wide[byte::8]
    return struct.pack(f"<{count}Q", *items) + narrow


def unpack_fields(frame: bytes, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The inverse, from exactly `count` times `CELL_BYTES` bytes."""
    wide = bytearray(count * 8)
    narrow = frame[count * 8 :]
    for byte in range(6):
        wide[byte::8] = narrow[byte::6]
    return struct.unpack_from(f"<{count}Q", frame), struct.unpack(f"<{count}Q", wide)
