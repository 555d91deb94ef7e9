"""Figures of the sketch: updates, reading a difference of 1,000 among a million keys, and the bytes that it takes.

Run by `make bench` (pytest tests/bench_sketch.py). Items are random, as fingerprints are. A message is counted as its
body; `cells_per_difference` tells how many cells the differences needed, which a decoder finds by trying.
"""

from array import array
from collections.abc import Iterator
from random import Random
from statistics import median, quantiles

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from protocol.cells import CELLS_MAX, PREFIX_CELLS, Cells, continued, pack, parse
from protocol.differences import Decoded, cells_for, decode, estimate
from protocol.fingerprints import cluster_key
from protocol.sketch import Sketch

KEY = cluster_key("bench")
KEYS = 1_000_000
DIFFERENCES = 1_000
REQUEST_BYTES = 40  # a request names two cells and a fold, in msgpack


def drawn(count: int, seed: int) -> "array[int]":
    return array("Q", Random(seed).randbytes(8 * count))


@pytest.fixture(scope="module")
def million() -> Sketch:
    sketch = Sketch(KEY)
    sketch.apply(drawn(KEYS, 0))
    return sketch


def differing(common: Sketch, count: int, seed: int) -> tuple[Sketch, Sketch]:
    """Two sketches over the same keys that differ in `count` items, half on each side."""
    items = drawn(count, seed)
    own, other = common.copy(), common.copy()
    own.apply(items[: count // 2])
    other.apply(items[count // 2 :])
    return own, other


def reconcile(own: Sketch, other: Sketch) -> tuple[Decoded, int, int]:
    """As two nodes do it: what differs, how many rounds it took, how many bytes of bodies."""
    frame = other.prefix(PREFIX_CELLS)
    cells, sent_bytes, rounds = parse(frame), len(frame), 1
    while not (decoded := decode(own, cells)).complete and cells.end < CELLS_MAX:
        frame = pack(other.cells(cells.end, cells_for(estimate(own, cells), cells.end)))
        cells, sent_bytes, rounds = continued(cells, parse(frame)), sent_bytes + REQUEST_BYTES + len(frame), rounds + 1
    return decoded, rounds, sent_bytes


def cells_needed(own: Sketch, other: Sketch, enough: int) -> int:
    """The fewest cells that resolve, by bisection."""
    too_few = 0
    while enough - too_few > 1:
        tried = (too_few + enough) // 2
        if decode(own, other.cells(0, tried)).complete:
            enough = tried
        else:
            too_few = tried
    return enough


def test_single_update(benchmark: BenchmarkFixture) -> None:
    sketch = Sketch(KEY)
    items: Iterator[int] = iter(drawn(1_000_000, 1))
    benchmark.pedantic(lambda: sketch.add(next(items)), rounds=2_000, iterations=10, warmup_rounds=10)


def test_batch_update_of_100_000(benchmark: BenchmarkFixture) -> None:
    sketch, items = Sketch(KEY), drawn(100_000, 2).tolist()
    benchmark.pedantic(sketch.apply, (items,), rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_item"] = round(benchmark.stats.stats.median * 10, 2)


def test_save_and_read(benchmark: BenchmarkFixture, million: Sketch) -> None:
    again = benchmark(lambda: Sketch.from_bytes(KEY, million.to_bytes()))
    assert again == million
    benchmark.extra_info["bytes"] = len(million.to_bytes())


@pytest.mark.parametrize("count", [10, 1_000, 10_000])
def test_decode(benchmark: BenchmarkFixture, million: Sketch, count: int) -> None:
    own, other = differing(million, count, 3)
    cells = Cells(0, other.fold(), *fields(other, PREFIX_CELLS if count == 10 else min(CELLS_MAX, 2 * count)))
    decoded = benchmark.pedantic(decode, (own, cells), rounds=5, warmup_rounds=1)
    assert decoded.complete
    assert len(decoded.only_ours) + len(decoded.only_theirs) == count


def fields(sketch: Sketch, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    cells = sketch.cells(0, count)
    return cells.items, cells.tags


def test_bytes_of_both_rounds(benchmark: BenchmarkFixture, million: Sketch) -> None:
    pairs = [differing(million, DIFFERENCES, seed) for seed in range(40)]
    results = benchmark.pedantic(lambda: [reconcile(*pair) for pair in pairs], rounds=1)
    assert all(decoded.complete for decoded, _, _ in results)
    sent_bytes = [sent for _, rounds, sent in results if rounds == 2]
    benchmark.extra_info["bytes_median"] = median(sent_bytes)
    benchmark.extra_info["bytes_max"] = max(sent_bytes)
    benchmark.extra_info["third_rounds"] = sum(rounds > 2 for _, rounds, _ in results)
    benchmark.extra_info["bytes_of_equal_sets"] = len(million.prefix(PREFIX_CELLS))
    assert median(sent_bytes) <= 40_000


@pytest.mark.parametrize(("count", "runs"), [(10, 200), (100, 100), (1_000, 40), (10_000, 10)])
def test_cells_needed(benchmark: BenchmarkFixture, count: int, runs: int) -> None:
    empty = Sketch(KEY)
    pairs = [differing(empty, count, seed) for seed in range(runs)]
    enough = min(CELLS_MAX, 3 * count + 60)
    needed = benchmark.pedantic(lambda: [cells_needed(*pair, enough) for pair in pairs], rounds=1)
    shares = sorted(cells / count for cells in needed)
    benchmark.extra_info["cells_per_difference_median"] = round(median(shares), 2)
    benchmark.extra_info["cells_per_difference_p95"] = round(quantiles(shares, n=20)[-1], 2)
