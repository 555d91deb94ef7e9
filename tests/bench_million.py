"""A large cluster seen by one agent: memory and start with a million records, and how soon an empty node has them all.

    python tests/bench_million.py [records] [folder]        (default 1,000,000; each with three holdings)

The rows are written straight into the manifest of `a`, as if they had come over months; then two real agents run.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from node.local_fleet import CLUSTER, LocalFleet
from protocol.clock import COUNTER_BITS
from protocol.values import Digest, Holding, Record
from storage.manifest_file import prepare
from storage.manifest_rows import (
    HOLDING_COLUMNS,
    HOLDING_WIDTH,
    RECORD_COLUMNS,
    RECORD_WIDTH,
    Row,
    holding_row,
    record_row,
)

RECORDS, HOLDERS, BATCH = 1_000_000, 3, 50_000
START_SECONDS_MAX, JOIN_SECONDS_MAX = 600.0, 3_600.0
FIRST_MS = 1_700_000_000_000
MIB = 1 << 20


def digest(number: int) -> Digest:
    """Spread over all digests as hashes are, so that indexes and pages are as in life."""
    return (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "big") * 4


def records(count: int) -> Iterator[Row]:
    for number in range(count):
        stamp = (FIRST_MS + number * 10) << COUNTER_BITS
        name = f"npz/training/run-{number // 1000:04}/batch-{number % 1000:03}.npz"
        yield record_row(Record(name, stamp, f"maker-{number % 50}", digest(number), digest(number + 1), 1 << 20))


def holdings(count: int) -> Iterator[Row]:
    for number in range(count):
        for holder in range(HOLDERS):
            node = f"keeper-{(number + holder * 7) % 100:03}"
            stamp = (FIRST_MS + number * 10 + holder) << COUNTER_BITS
            yield holding_row(Holding(node, node.encode().ljust(16, b"."), digest(number), stamp))


def fill(path: Path, node: str, count: int) -> None:
    prepare(path, CLUSTER, node)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        for table, columns, width, rows in (
            ("records", RECORD_COLUMNS, RECORD_WIDTH, records(count)),
            ("holdings", HOLDING_COLUMNS, HOLDING_WIDTH, holdings(count)),
        ):
            statement = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * width)})"
            while batch := list(islice(rows, BATCH)):
                connection.execute("BEGIN")
                connection.executemany(statement, batch)
                connection.execute("COMMIT")
        connection.execute("INSERT INTO totals (kind, artifacts, bytes) VALUES ('npz', ?, ?)", (count, count << 20))
        connection.execute("UPDATE facts SET value = '1' WHERE key = 'clean'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def resident_mib(fleet: LocalFleet, node: str) -> float:
    process = fleet.nodes[node].process
    assert process is not None
    return psutil.Process(process.pid).memory_info().rss / MIB


def processor_seconds(fleet: LocalFleet, node: str) -> float:
    process = fleet.nodes[node].process
    assert process is not None
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def agree(fleet: LocalFleet, count: int) -> bool:
    """Whether b has every record, and every holding (by a name at the end of the list)."""
    facts = fleet.ask("b", "status")
    return bool(facts["artifacts"] >= count)


def main(count: int = RECORDS, folder: str = "") -> None:
    where = Path(folder or tempfile.mkdtemp(prefix="spore-million-"))
    hosts = {"a": {"excluded": True, "provider": "one"}, "b": {"excluded": True, "provider": "two"}}
    try:
        with LocalFleet(where / "fleet", hosts) as fleet:
            begun = time.monotonic()
            fill(fleet.nodes["a"].folder / "manifest.db", "a", count)
            size = (fleet.nodes["a"].folder / "manifest.db").stat().st_size / MIB
            print(
                f"{count} records, {HOLDERS * count} holdings: {size:.0f} MiB, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            for start in ("first (every row is folded)", "second (the tail alone is folded)"):
                begun = time.monotonic()
                fleet._launch(fleet.nodes["a"])
                fleet.until(lambda: fleet._answers("a"), "a answers", START_SECONDS_MAX)
                took, used = time.monotonic() - begun, processor_seconds(fleet, "a")
                time.sleep(20)  # its first sweep begins after 15 s
                print(
                    f"start, {start}: {took:.1f} s, {used:.1f} s of processor, {resident_mib(fleet, 'a'):.0f} MiB",
                    flush=True,
                )
                if start.startswith("first"):
                    fleet.terminate("a")
            begun = time.monotonic()
            fleet.start("b")
            fleet.until(lambda: agree(fleet, count), "b knows everything", JOIN_SECONDS_MAX)
            took = time.monotonic() - begun
            used = {node: f"{processor_seconds(fleet, node):.0f}" for node in hosts}
            memory = {node: f"{resident_mib(fleet, node):.0f}" for node in hosts}
            print(
                f"an empty node has all records after {took:.0f} s; processor {used}; resident MiB {memory}", flush=True
            )
    finally:
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))  # type: ignore[arg-type]
