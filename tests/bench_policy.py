"""What placement costs: one artifact among fifty nodes, a page of the sweep after a change, the question of ages."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from protocol import events as e
from protocol.fleet import Fleet, Host, Kind
from protocol.placement import eligible, pool, targets
from protocol.sweeping import FIRST_MS, PAGE
from protocol.values import Holding, Member, Record
from storage.manifest import Manifest
from tests.replicas import NOW, Bench, store_of

NODES = [f"n{number:02}" for number in range(50)]
RECORDS = 100_000


def digest(number: int) -> bytes:
    return number.to_bytes(4, "big") * 8


def test_one_placement_among_fifty_nodes(benchmark: Any) -> None:
    members = [
        Member(node, 1, role="abc"[n % 3], domain="xyz"[n % 3], store=store_of(node), accepting=True)
        for n, node in enumerate(NODES)
    ]
    seats, kind = eligible(members, b""), Kind("npz", roles=("a",))
    numbers = iter(range(1 << 30))

    def place() -> None:
        around = pool(digest(next(numbers)), seats, 2, 0, kind)
        targets(around.seats, 2, around.domains)

    benchmark(place)


def test_a_page_of_the_sweep_after_a_change(benchmark: Any) -> None:
    """A full re-plan of 100,000 artifacts is 200 of these, between which the loop turns."""
    alpha = Bench("n00", of=Fleet("test", hosts={node: Host(node, f"{node}:7946") for node in NODES})).boot()
    alpha.connect(*NODES[1:])
    alpha.tick(FIRST_MS)
    page = tuple(_row(number) for number in range(PAGE))
    sweeping = alpha.replica.sweeping

    def look() -> None:
        sweeping._running = sweeping._op
        alpha.handle(e.Scanned(sweeping._op, page, False))

    benchmark(look)


def _row(number: int) -> tuple[Record, tuple[Holding, ...]]:
    made = Record(f"npz/x/{number:06}", (NOW << 16) - 1, NODES[number % 50], digest(number), digest(number), 1_000)
    held = [NODES[(number + mate) % 50] for mate in range(3)]
    return made, tuple(Holding(node, store_of(node), made.digest, 5) for node in held)


def test_the_newest_below_each_prefix_of_a_hundred_thousand_records(benchmark: Any, tmp_path: Path) -> None:
    async def asked() -> None:
        manifest = await Manifest.open(tmp_path / "manifest.db", cluster="c", node="a")
        try:
            found = await manifest.queries.newest_below()
            assert len(found) == 50
        finally:
            await manifest.close()

    asyncio.run(_filled(tmp_path / "manifest.db"))
    benchmark(lambda: asyncio.run(asked()))


async def _filled(path: Path) -> None:
    await (await Manifest.open(path, cluster="c", node="a")).close()
    connection = sqlite3.connect(path)
    rows = (
        (f"game/{NODES[n % 50]}/games/{n}.db", (NOW + n) << 16, "a", digest(n), digest(n), 1, 420, 0, "cluster", b"")
        for n in range(RECORDS)
    )
    connection.executemany("INSERT INTO records VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
    connection.commit()
    connection.close()
