"""Many items into a sketch, or out of a difference, at once, with numpy: for rebuilds and for large differences.

numpy takes a tenth of a second and 25 MiB to load, so it is loaded when the first large batch comes. The results are
those of `cells` and `differences` bit for bit; tests compare them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from protocol import cells

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Places = NDArray[np.int64]

CHUNK_ITEMS = 1 << 15  # 2 MB of intermediate vectors, which stay in the processor's cache
ROUND_ITEMS_MIN = 32  # a round of peeling that shows fewer costs more than peeling them one by one


def put(items: array[int], tags: array[int], key: int, batch: Sequence[int], sign: int) -> None:
    """Add (`sign` 1) or take out (-1) every item of `batch`; `items` and `tags` are changed in place."""
    import numpy as np

    item_sums, tag_sums = np.frombuffer(items, np.uint64), np.frombuffer(tags, np.uint64)
    for start in range(0, len(batch), CHUNK_ITEMS):
        chunk = np.array(batch[start : start + CHUNK_ITEMS], np.uint64)
        seeds = _seeds(np, chunk, key)
        signed = _tags(np, seeds)
        _sum_up(np, item_sums, tag_sums, chunk, signed if sign > 0 else -signed, seeds)


def peel(items: list[int], tags: list[int], key: int) -> dict[int, int]:
    """The bulk of a difference, in rounds: everything that shows is taken out at once. `items` and `tags` are changed.

    Returns the items with +1 (ours) or -1 (theirs). What is left, or shows only now, is for peeling one by one. An
    honest difference has no more items than cells; rounds end when more have shown.
    """
    import numpy as np

    item_sums, tag_sums = np.array(items, np.uint64), np.array(tags, np.uint64)
    signs: dict[int, int] = {}
    items_left = len(items)
    while True:
        found, signed, seeds = _shown(np, item_sums, tag_sums, key)
        items_left -= len(found)
        if len(found) < ROUND_ITEMS_MIN or items_left < 0:
            break
        _sum_up(np, item_sums, tag_sums, found, -signed, seeds)
        ours = (signed & cells.COUNT_SPAN - 1) == 1
        for item, is_ours in zip(found.tolist(), ours.tolist(), strict=True):
            signs[item] = signs.get(item, 0) + (1 if is_ours else -1)
    items[:], tags[:] = item_sums.tolist(), tag_sums.tolist()
    return signs


def _shown(np: Any, item_sums: Words, tag_sums: Words, key: int) -> tuple[Words, Words, Words]:
    """The items that cells hold alone, each once, with their signed tags and seeds."""
    seeds = _seeds(np, item_sums, key)
    tags = _tags(np, seeds)
    minus = -tags & np.uint64(cells.TAG_MASK)
    alone = np.flatnonzero((tag_sums == tags) | (tag_sums == minus))
    alone = alone[_are_in(np, alone, seeds[alone], len(item_sums))]
    found, at = np.unique(item_sums[alone], return_index=True)
    alone = alone[at]
    return found, tag_sums[alone], seeds[alone]


def _are_in(np: Any, places: Places, seeds: Words, count: int) -> Any:
    """Whether the item of each seed is in the cell beside it."""
    inside = places == 0
    for positions, reached in _walk(np, seeds, count):
        inside[positions] |= reached == places[positions]
    return inside


def _sum_up(np: Any, item_sums: Words, tag_sums: Words, items: Words, tags: Words, seeds: Words) -> None:
    item_sums[0] ^= np.bitwise_xor.reduce(items)
    tag_sums[:1] += tags.sum()  # as an array: a single number would warn when it wraps
    for positions, places in _walk(np, seeds, len(item_sums)):
        np.bitwise_xor.at(item_sums, places, items[positions])
        np.add.at(tag_sums, places, tags[positions])
    tag_sums &= np.uint64(cells.TAG_MASK)  # sums wrapped at 2^64, of which 2^48 is a divisor


def _walk(np: Any, seeds: Words, count: int) -> Iterator[tuple[Places, Places]]:
    """Step by step, which seeds (by position) are in which further cell below `count`: `cells.places_of`, many at once.

    Divided as doubles, and exact all the same: a quotient below 2^14 that is no whole number is at least 2^-32 away
    from one, where doubles lie 2^-39 apart; larger quotients are beyond every sketch.
    """
    states = seeds | np.uint64(1)
    positions = np.arange(len(seeds))
    places = np.zeros(len(seeds), np.int64)
    while len(positions):
        states = states * np.uint64(cells.STEP_FACTOR)
        high = states >> np.uint64(32) | np.uint64(1)
        low = (states ^ high) & np.uint64(cells.HALF_MASK) | np.uint64(1)
        near = ((places + 1 << 32) - 1) / high
        far = ((places + 2 << 32) - 1) / low - 1
        places = np.minimum(near, far).astype(np.int64)  # cut off towards 0; both are at least 0
        within = np.flatnonzero(places < count)
        positions, places, states = positions[within], places[within], states[within]
        yield positions, places


def _seeds(np: Any, items: Words, key: int) -> Words:
    mixed = items ^ np.uint64(key)
    mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(cells.MIX_FIRST)
    mixed = (mixed ^ mixed >> np.uint64(33)) * np.uint64(cells.MIX_SECOND)
    return mixed ^ mixed >> np.uint64(33)  # type: ignore[no-any-return]


def _tags(np: Any, seeds: Words) -> Words:
    return seeds >> np.uint64(28) << np.uint64(cells.COUNT_BITS) | np.uint64(1)  # type: ignore[no-any-return]
