"""A live SQLite database under constant writes: every version that reaches another node is whole and of one moment."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from node.demo_game import SCHEMA, SelfPlay, count_games
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, lines, running

pytestmark = pytest.mark.processes
PATH, NAME = "games/live.db", "game/a/games/live.db"
WRITERS = 2  # connections that write at the same time, as several games of self-play do


@contextmanager
def playing(fleet: LocalFleet) -> Iterator[list[SelfPlay]]:
    path = fleet.nodes["a"].root / PATH
    path.parent.mkdir()
    with closing(sqlite3.connect(fleet.folder / "empty.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        for statement in SCHEMA:
            database.execute(statement)
        database.commit()
    (fleet.folder / "empty.db").rename(path)  # both tables or none: a snapshot between the two would be as right
    plays = [SelfPlay(path, seed) for seed in range(WRITERS)]
    for play in plays:
        play.start()
    try:
        yield plays
    finally:
        for play in plays:
            play.stop()


class Collector:
    """Copies each version of the replica's file as it appears, which is never while it is written: it is renamed."""

    def __init__(self, fleet: LocalFleet, node: str, folder: Path) -> None:
        self.replica = fleet.nodes[node].root / "peers/a" / PATH
        self.folder = folder
        self.versions: list[Path] = []
        self._last = (0, 0)

    def look(self) -> int:
        """How many versions have been collected."""
        if self.replica.exists():
            with self.replica.open("rb") as file:  # an open file stays what it was, whatever takes its name
                status = os.fstat(file.fileno())
                found = (status.st_ino, status.st_mtime_ns)
                if found != self._last:
                    self._last = found
                    kept = self.folder / f"{len(self.versions):03}.db"
                    with kept.open("wb") as copy:
                        shutil.copyfileobj(file, copy)
                    self.versions.append(kept)
        return len(self.versions)


def collect(count: int, folder: Path) -> list[Path]:
    """So many versions at a replica of a database that is written without a pause; then one with every game."""
    with running(auto_sync_interval_seconds=1) as fleet:
        collector = Collector(fleet, "b", folder)
        with playing(fleet) as plays:
            fleet.until(lambda: collector.look() >= count, f"{count} versions", 30.0 * count + GENEROUS_SECONDS)
        games = sum(play.games for play in plays)
        replica = collector.replica
        fleet.until(lambda: count_games(replica) == games, f"the replica has all {games} games", GENEROUS_SECONDS)
        facts = durable(fleet, "c", NAME)
        assert facts["blake3"] == blake3(replica.read_bytes()).hexdigest()
        assert not list(replica.parent.glob("*-wal")) + list(replica.parent.glob("*-shm"))
        with closing(sqlite3.connect(fleet.nodes["a"].root / PATH)) as source:  # and the original is untouched
            assert source.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert source.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for node in fleet.nodes:
            assert not [line for line in lines(fleet, node) if "snapshot_failed" in line or "Traceback" in line]
    return collector.versions


def check(versions: list[Path]) -> None:
    """Each is a database of its own, intact, holds whole games only, and no fewer than the one before."""
    before = 0
    for version in versions:
        games = count_games(version)  # integrity_check, and games and moves that agree
        assert games >= before, f"{version.name} has {games} games, and the one before had {before}"
        before = games
    assert len({version.read_bytes() for version in versions}) == len(versions)
    assert before > 0


def test_every_version_of_a_live_database_arrives_intact(tmp_path: Path) -> None:
    check(collect(8, tmp_path))


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_fifty_versions_of_a_live_database_arrive_intact(tmp_path: Path) -> None:
    check(collect(50, tmp_path))


def test_the_check_finds_a_torn_copy(tmp_path: Path) -> None:
    """A copy made beside a writer without the backup API: pages of two moments."""
    whole = tmp_path / "whole.db"
    play = SelfPlay(whole, 1)
    play.start()
    while play.games < 3:
        pass
    play.stop()
    with closing(sqlite3.connect(whole)) as database, database:
        database.execute("INSERT INTO games (winner, length) VALUES (1, 7)")  # a game without its moves
    with pytest.raises(ValueError, match="is damaged"):
        check([whole])
