"""Large artifacts between real agents: sources that die, receivers that are killed, databases that changed a little."""

from __future__ import annotations

import http.client
import os
import random
import re
import sqlite3
import ssl
from pathlib import Path

import pytest

from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, holds, plain, running, started, written

pytestmark = pytest.mark.processes
MIB = 1 << 20
TWO = {"a": {"provider": "one"}, "b": {"provider": "two"}}
THREE = {**TWO, "c": {"provider": "three"}}
SLOW = "8 MB/s"  # an upload of some seconds: long enough to be interrupted


def sent_payload(fleet: LocalFleet, node: str) -> int:
    """Bytes of artifacts that this life of an agent has sent, as its metrics tell."""
    identity = fleet.nodes[node].folder / "identity"
    context = ssl.create_default_context(cafile=str(identity / "ca.pem"))
    context.check_hostname = False
    context.load_cert_chain(identity / "node.pem", identity / "node.key")
    connection = http.client.HTTPSConnection("127.0.0.1", fleet.nodes[node].port, context=context, timeout=30)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.search(r"^spore_sent_payload_bytes ([0-9.e+]+)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def staged_bytes(fleet: LocalFleet, node: str) -> int:
    """How much of what is on its way in is written: blocks are allocated first, so the chunk hints and maps tell."""
    moving = fleet.ask(node, "status")["transfers"]
    return sum(transfer["bytes_done"] for transfer in moving if transfer["direction"] != "out")


def half_way(fleet: LocalFleet, node: str, size: int) -> int:
    found: int = fleet.until(
        lambda: done if size // 3 < (done := staged_bytes(fleet, node)) else 0, f"{node} has a third", GENEROUS_SECONDS
    )
    return found


def test_a_receiver_that_is_killed_goes_on_where_it_was() -> None:
    content = os.urandom(48 * MIB)
    with running(TWO, min_copies=1, bandwidth_limit=SLOW) as fleet:
        written(fleet, "a", "checkpoints/step", content)
        had = half_way(fleet, "b", len(content))
        fleet.kill("b")
        before = sent_payload(fleet, "a")
        started(fleet, "b")
        holds(fleet, "b", "checkpoints/step", content)
        durable(fleet, "a", "checkpoint/checkpoints/step", plain(content))
        again = sent_payload(fleet, "a") - before
        # What was in flight comes again: a few chunks in each of the streams, and what the sockets held.
        assert again < len(content) - had + 12 * MIB
        assert not (fleet.nodes["b"].root / ".spore/staging/b").joinpath(plain(content)).exists()


def test_a_source_that_dies_in_the_middle_is_replaced_by_another_holder() -> None:
    content = os.urandom(48 * MIB)
    with running(THREE, min_copies=1, bandwidth_limit=SLOW, only=("a", "b")) as fleet:
        written(fleet, "a", "models/best.pth", content)
        holds(fleet, "b", "models/best.pth", content)
        durable(fleet, "a", "model/models/best.pth", plain(content))
        started(fleet, "c")
        half_way(fleet, "c", len(content))
        fleet.kill("b")
        holds(fleet, "c", "models/best.pth", content)
        assert fleet.nodes["a"].running


def test_an_origin_that_dies_in_the_middle_delivers_the_rest_when_it_is_back() -> None:
    content = os.urandom(48 * MIB)
    with running(TWO, min_copies=1, bandwidth_limit=SLOW) as fleet:
        written(fleet, "a", "checkpoints/step", content)
        had = half_way(fleet, "b", len(content))
        fleet.kill("a")
        started(fleet, "a")
        holds(fleet, "b", "checkpoints/step", content)
        durable(fleet, "a", "checkpoint/checkpoints/step", plain(content))
        assert sent_payload(fleet, "a") < len(content) - had + 12 * MIB


def test_a_database_updated_in_place_moves_little_more_than_its_changed_pages() -> None:
    with running(TWO, min_copies=1, bandwidth_limit="40 MB/s") as fleet:
        root = fleet.nodes["a"].root / "checkpoints"
        root.mkdir(parents=True)
        work = fleet.folder / "work.db"
        made(work, 24 * MIB)
        published(fleet, work)
        before = sent_payload(fleet, "a")
        pages = changed(work, 40)
        published(fleet, work)
        moved = sent_payload(fleet, "a") - before
        assert moved <= 1.1 * pages * 4096
        with sqlite3.connect(fleet.nodes["b"].root / "checkpoints/games.db") as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        copy.close()


def published(fleet: LocalFleet, source: Path) -> None:
    content = source.read_bytes()
    written(fleet, "a", "checkpoints/games.db", content)
    durable(fleet, "a", "checkpoint/checkpoints/games.db", plain(content))
    holds(fleet, "b", "checkpoints/games.db", content)


def made(path: Path, size: int) -> None:
    chance = random.Random(1)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE games (id INTEGER PRIMARY KEY, moves BLOB)")
        rows = ((chance.randbytes(1_000),) for _ in range(size // 1_030))
        connection.executemany("INSERT INTO games (moves) VALUES (?)", rows)
    connection.close()


def changed(path: Path, count: int) -> int:
    """Update so many rows of a database; how many of its pages differ afterwards."""
    before = path.read_bytes()
    chance = random.Random(2)
    with sqlite3.connect(path) as connection:
        (highest,) = connection.execute("SELECT max(id) FROM games").fetchone()
        chosen = chance.sample(range(1, highest + 1), count)
        rows = [(chance.randbytes(1_000), number) for number in chosen]
        connection.executemany("UPDATE games SET moves = ? WHERE id = ?", rows)
    connection.close()
    after = path.read_bytes()
    assert len(after) == len(before)
    return sum(before[at : at + 4096] != after[at : at + 4096] for at in range(0, len(after), 4096))
