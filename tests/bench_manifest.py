"""Figures of the manifest: rows taken in by groups of batches, and the look-ups that the core makes for each event.

Run by `make bench` (pytest tests/bench_manifest.py). A row is a record or a holding; half are of each kind. Digests
are random, as real ones are, so that the indexes grow everywhere at once.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from protocol.values import Batch, Holding, Record, Rows
from storage.manifest import Manifest

BATCH_ROWS = 1_000
STORE = bytes(16)


def digest(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest()


def batch(start: int) -> Batch:
    """Half records of seven nodes, half holdings of them."""
    numbers = range(start, start + BATCH_ROWS // 2)
    records = tuple(
        Record(f"game/n{n % 7}/games/{n:09d}.db", (1 << 57) + n, f"n{n % 7}", digest(n), digest(-n % (1 << 60)), 1000)
        for n in numbers
    )
    return Batch(Rows(records, tuple(Holding(record.origin, STORE, record.digest, record.hlc) for record in records)))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def manifest(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Manifest]:
    opening = Manifest.open(tmp_path / "manifest.db", cluster="bench", node="n0")
    manifest = loop.run_until_complete(opening)
    yield manifest
    loop.run_until_complete(manifest.close())


@pytest.mark.parametrize("batches", [1, 10], ids=lambda count: f"{count} batches a group")
def test_apply(benchmark: BenchmarkFixture, manifest: Manifest, loop: asyncio.AbstractEventLoop, batches: int) -> None:
    starts = iter(range(0, 1 << 40, BATCH_ROWS // 2))

    def prepare() -> tuple[tuple[list[Batch]], dict[str, object]]:
        return ([batch(next(starts)) for _ in range(batches)],), {}

    def apply(group: list[Batch]) -> None:
        loop.run_until_complete(manifest.apply(group))

    benchmark.pedantic(apply, setup=prepare, rounds=20, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["rows_per_second"] = round(batches * BATCH_ROWS / benchmark.stats.stats.median)


LOOKUPS: dict[str, Callable[[Manifest, Record], object]] = {
    "record": lambda manifest, record: manifest.record(record.key),
    "versions": lambda manifest, record: manifest.versions(record.name),
    "sharers": lambda manifest, record: manifest.sharers(record.digest),
    "holdings": lambda manifest, record: manifest.holdings(record.digest),
    "places": lambda manifest, record: manifest.places(record.digest),
    "fold": lambda manifest, _: manifest.sketch().fold(),
}


@pytest.mark.parametrize("question", LOOKUPS)
def test_look_up_among_fifty_thousand_rows(
    benchmark: BenchmarkFixture, manifest: Manifest, loop: asyncio.AbstractEventLoop, question: str
) -> None:
    group = [batch(start) for start in range(0, 25_000, BATCH_ROWS // 2)]
    loop.run_until_complete(manifest.apply(group))
    record = group[20].rows.records[7]
    answer = benchmark(LOOKUPS[question], manifest, record)
    assert answer is not None
