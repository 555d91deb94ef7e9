"""Reading the difference of two sets off their cells: peeling, and how many cells it would take.

`decode` subtracts cell from cell. A cell of the difference that holds a single item shows it; taken out of its other
cells it uncovers more, until nothing is left or nothing shows. Peeling is that of Yang et al. (see cells.py).

What may be believed. A cell is taken for a single item when its sum is that item's tag or minus its tag, and when the
item's places name this very cell. A cell i that holds several items and counts one passes for single with probability
2^-36 · 2 / (i + 2), since the exclusive-or of its items has a tag of its own. Each of d items is taken out of cell i
with probability 2 / (i + 2), and then the cell is looked at again: summed over all cells, an untrue item shows with a
probability below d · 2.6 · 2^-36, once in 2.6 million decodes of 10,000 differences. Even then the result is not
complete: an untrue item leaves its other cells unresolved, or shows again with the opposite sign, and cancels.
`complete` says that every cell came out empty, items and tags, and that the count is the difference of both folds; so
a complete result is untrue only if hundreds of independent bits agree by chance. An incomplete one makes a caller
fetch more, not act.

A peer may send anything, of course, and names can be sought whose tags collide. The result is then incomplete, or what
the peer wants us to believe of its own set, which it could say without deceit. Whether an item that seems to be only
ours is ours, the caller sees when it looks for the row. The work is bounded whatever the cells hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from protocol.cells import (
    CELLS_MAX,
    COUNT_SPAN,
    PREFIX_CELLS,
    TAG_MASK,
    Cells,
    CellsRefused,
    places_of,
    seed_of,
    tag_of,
)
from protocol.sketch import Sketch

DIFFERENCES_MAX = 10_000  # estimated; above, sorted pages cost less than cells and look-ups
TOUCHES_PER_CELL_MAX = 20  # cells visited by peeling, per cell given; an honest difference needs 14 at most
BATCH_CELLS_MIN = 2_048  # 30 ms of pure Python: below that, numpy would not be worth its loading
SINGLE = (1, COUNT_SPAN - 1)  # what a cell of a difference counts when it may hold one item: ours, or theirs


@dataclass(frozen=True, slots=True)
class Decoded:
    """Items that only our set has, and only theirs, ascending; all of them if `complete`."""

    only_ours: tuple[int, ...]
    only_theirs: tuple[int, ...]
    complete: bool


def decode(own: Sketch, theirs: Cells) -> Decoded:
    """The difference of our set and a peer's, from its cells 0 to any. Raises `CellsRefused` if they begin later."""
    items, tags = _subtracted(own, theirs)
    signs = _peel_many(items, tags, own.key)
    ours = tuple(sorted(item for item, sign in signs.items() if sign > 0))
    only_theirs = tuple(sorted(item for item, sign in signs.items() if sign < 0))
    empty = not any(items) and not any(tags)
    counted = len(ours) - len(only_theirs) == own.fold()[0] - theirs.fold[0]
    return Decoded(ours, only_theirs, empty and counted)


def _subtracted(own: Sketch, theirs: Cells) -> tuple[list[int], list[int]]:
    """Ours minus theirs, for as many cells as both have."""
    if theirs.first != 0:
        raise CellsRefused(f"a difference is read from cell 0 on, not from {theirs.first}: ask from 0 on")
    ours = own.cells(0, theirs.end)
    items = [a ^ b for a, b in zip(ours.items, theirs.items, strict=False)]
    tags = [(a - b) & TAG_MASK for a, b in zip(ours.tags, theirs.tags, strict=False)]
    return items, tags


def _peel_many(items: list[int], tags: list[int], key: int) -> dict[int, int]:
    if len(items) < BATCH_CELLS_MIN:
        return _peel(items, tags, key)
    from protocol import sketch_batches

    signs = sketch_batches.peel(items, tags, key)
    for item, sign in _peel(items, tags, key).items():
        signs[item] = signs.get(item, 0) + sign
    return signs


def _peel(items: list[int], tags: list[int], key: int) -> dict[int, int]:
    """Take out what shows until nothing does; returns the items with +1 (ours), -1 (theirs) or 0 (shown as both)."""
    signs: dict[int, int] = {}
    touches_left = len(items) * TOUCHES_PER_CELL_MAX
    waiting = list(range(len(items)))  # taken from the end, where cells hold the fewest items
    while waiting and touches_left > 0:
        cell = waiting.pop()
        item, tag = items[cell], tags[cell]
        count = tag % COUNT_SPAN
        if count not in SINGLE:
            continue
        seed = seed_of(item, key)
        if tag != (tag_of(seed) if count == 1 else TAG_MASK + 1 - tag_of(seed)):
            continue
        places = places_of(seed, len(items))
        touches_left -= len(places)
        if cell in places:
            signs[item] = signs.get(item, 0) + (1 if count == 1 else -1)
            waiting += _take_out(items, tags, places, item, tag)
    return signs


def _take_out(items: list[int], tags: list[int], places: list[int], item: int, tag: int) -> list[int]:
    """Returns the cells that may show something now."""
    for place in places:
        items[place] ^= item
        tags[place] = tags[place] - tag & TAG_MASK
    return [place for place in places if tags[place] % COUNT_SPAN in SINGLE]


# --- how many cells it takes ---


def estimate(own: Sketch, theirs: Cells) -> int:
    """About how many items differ, from cells that did not resolve.

    Cell i counts ours minus theirs among its items: a number with mean Δ · p and variance d · p(1-p), where p is
    2 / (i+2), Δ the difference of both sizes, which the folds tell, and d what is sought. So each cell but the first
    estimates d without bias, and cells are independent of each other. The mean over n cells has a standard error of
    √(2/n): 18% from 64 cells, 4% from 1,500, whatever d is and however it is split between both sides.
    """
    _, tags = _subtracted(own, theirs)
    surplus = own.fold()[0] - theirs.fold[0]
    total = sum(_spread(cell, tags[cell], surplus) for cell in range(1, len(tags)))
    return max(abs(surplus), total // max(1, len(tags) - 1))


def _spread(cell: int, tag: int, surplus: int) -> int:
    """(count - Δp)² / p(1-p), in whole numbers. The count is known modulo 4,096: it is the one nearest to Δp."""
    expected = 2 * surplus // (cell + 2)
    count = expected + (tag - expected + COUNT_SPAN // 2) % COUNT_SPAN - COUNT_SPAN // 2
    return (count * (cell + 2) - 2 * surplus) ** 2 // (2 * cell)


def cells_for(estimated: int, seen: int = PREFIX_CELLS) -> int:
    """How many cells to have in all, once `seen` of them did not resolve and gave this estimate.

    d differences resolve from 1.36 · d + 2.7 · √d cells in 95 of 100 cases (measured for d from 30 to 10,000). For d,
    two standard errors are put on top of the estimate; and what did not resolve from n cells is likely over n / 2.
    """
    likely = max(estimated, seen // 2)
    assumed = likely + isqrt(8 * likely * likely // seen)
    wanted = 136 * assumed // 100 + 27 * isqrt(assumed) // 10
    return min(CELLS_MAX, max(wanted, seen + seen // 4))
