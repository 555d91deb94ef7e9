"""Snapshots of databases that another process is writing: whole, consistent, in order, and harmless to their source."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from node.snapshot import (
    RESTARTS_MAX,
    NotADatabaseError,
    SnapshotError,
    SnapshotFailedError,
    SnapshotStoppedError,
    SourceBusyError,
    SourceDamagedError,
    quick_check,
    snapshot_database,
)

PROJECT = Path(__file__).parent.parent
PAST_NS = time.time_ns() - 3_600_000_000_000

# Another process, because only that holds POSIX locks against us: it plays games and keeps their sum in a second table.
WRITER = """
import os, sqlite3, sys, threading, time
path, journal = sys.argv[1:3]

def connect():
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    database.execute(f"PRAGMA journal_mode={journal}")
    database.execute("PRAGMA synchronous=OFF")
    return database

database = connect()
database.execute("CREATE TABLE IF NOT EXISTS games (id INTEGER PRIMARY KEY, score INTEGER, moves BLOB)")
database.execute("CREATE TABLE IF NOT EXISTS totals (score INTEGER)")
database.execute("INSERT INTO totals SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM totals)")

def play():
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO games (score, moves) VALUES (7, randomblob(200))")
        database.execute("UPDATE totals SET score = score + 7")
        database.execute("COMMIT")
        return "done"
    except sqlite3.OperationalError:
        if database.in_transaction:
            database.execute("ROLLBACK")
        return "busy"

for line in sys.stdin:
    command = line.strip()
    answer = "done"
    if command == "play":
        answer = play()
    elif command == "fill":
        database.execute("BEGIN")
        for _ in range(2000):
            database.execute("INSERT INTO games (score, moves) VALUES (7, randomblob(200))")
        database.execute("UPDATE totals SET score = score + 14000")
        database.execute("COMMIT")
    elif command == "lock":
        database.execute("BEGIN EXCLUSIVE")
    elif command == "spill":
        database.execute("PRAGMA cache_size=5")
        database.execute("BEGIN")
        database.execute("UPDATE games SET score = 8, moves = randomblob(200)")
    elif command == "die":
        os._exit(9)
    elif command == "leave":
        database.close()
        break
    elif command in ("hurry", "reopen for ever"):
        print("done", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        while True:
            play()
            if command == "reopen for ever":
                database.close()
                while True:
                    try:
                        database = connect()
                        break
                    except sqlite3.OperationalError:
                        pass
            time.sleep(0.001 if journal == "wal" else 0)  # else it outgrows what can be checked fifty times
    print(answer, flush=True)
"""


class Writer:
    """The other process, told what to do line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self, command: str) -> None:
        self.tell(command)
        self._process.wait(60)


@contextmanager
def writing(path: Path, journal: str) -> Iterator[Writer]:
    command = [sys.executable, "-c", WRITER, str(path), journal]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Writer(process)
        finally:
            process.kill()


def games_in(snapshot: Path) -> int:
    """The number of games in a snapshot that is sound in itself."""
    with closing(sqlite3.connect(f"file://{snapshot}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        games, score = connection.execute("SELECT COUNT(*), COALESCE(SUM(score), 0) FROM games").fetchone()
        assert connection.execute("SELECT score FROM totals").fetchone() == (score,)
    assert sorted(path.name for path in snapshot.parent.glob(f"{snapshot.name}*")) == [snapshot.name]
    return int(games)


def folder_state(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything in a folder; of the shared-memory index, which readers mark by design, only that it is there."""
    state = {}
    for path in sorted(folder.iterdir()):
        status, shared = path.stat(), path.name.endswith("-shm")
        content = path.read_bytes() if path.is_file() and not shared else b""
        state[path.name] = (status.st_ino, status.st_size, 0 if shared else status.st_mtime_ns, content)
    return state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "games").mkdir()
    (tmp_path / "staging").mkdir()
    return tmp_path / "games" / "live.db"


@pytest.fixture
def destination(tmp_path: Path, source: Path) -> Path:
    return tmp_path / "staging" / "copy.db"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_fifty_snapshots_under_constant_writes_are_whole_and_in_order(
    source: Path, tmp_path: Path, journal: str
) -> None:
    with writing(source, journal) as writer:
        assert writer.tell("fill") == "done"
        assert writer.tell("hurry") == "done"
        counts = []
        for number in range(50):
            copy = tmp_path / "staging" / f"{number}.db"
            facts = snapshot_database(source, copy, pages_per_step=16, busy_seconds=60)
            assert facts.size_bytes == copy.stat().st_size
            assert quick_check(copy) is None
            counts.append(games_in(copy))
            copy.unlink()
        assert counts == sorted(counts)
        assert counts[0] >= 2000
        assert counts[-1] > counts[0], "the writer was never let through"


def test_writers_of_a_write_ahead_log_go_on_during_a_snapshot(source: Path, destination: Path) -> None:
    with writing(source, "wal") as writer:
        writer.tell("fill")
        answers: list[str] = []

        def play() -> bool:
            answers.append(writer.tell("play"))
            return False

        facts = snapshot_database(source, destination, pages_per_step=4, stop=play)
        assert len(answers) > 20
        assert set(answers) == {"done"}
        assert facts.restarts == 0
        assert games_in(destination) == 2000  # the moment it began, whatever was written meanwhile


def test_a_rollback_journal_writer_that_never_pauses_is_held_up_only_after_some_restarts(
    source: Path, destination: Path
) -> None:
    with writing(source, "delete") as writer:
        writer.tell("fill")
        answers: list[str] = []

        def play() -> bool:
            answers.append(writer.tell("play"))
            return False

        facts = snapshot_database(source, destination, pages_per_step=4, stop=play)
        assert facts.restarts == RESTARTS_MAX + 1
        let_through = answers.index("busy")
        assert let_through > RESTARTS_MAX
        assert set(answers[:let_through]) == {"done"}
        assert games_in(destination) == 2000 + let_through
        assert writer.tell("play") == "done"


def test_a_write_ahead_log_left_by_a_crash_is_read_and_left_as_it_is(source: Path, destination: Path) -> None:
    with writing(source, "wal") as writer:
        writer.tell("fill")
        writer.end("die")
    before = folder_state(source.parent)
    assert set(before) == {"live.db", "live.db-shm", "live.db-wal"}
    assert before["live.db-wal"][1] > 0
    snapshot_database(source, destination)  # ours is the only, hence the last, connection to close
    assert folder_state(source.parent) == before
    assert games_in(destination) == 2000


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_database_at_rest_gets_no_sidecars_from_us(source: Path, destination: Path, journal: str) -> None:
    with writing(source, journal) as writer:
        writer.tell("fill")
        writer.end("leave")
    before = folder_state(source.parent)
    assert set(before) == {"live.db"}
    snapshot_database(source, destination)
    assert folder_state(source.parent) == before
    assert games_in(destination) == 2000


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_two_snapshots_of_one_state_have_the_same_bytes(source: Path, tmp_path: Path, journal: str) -> None:
    copies = [tmp_path / "staging" / name for name in ("open", "open again", "at rest")]
    with writing(source, journal) as writer:
        writer.tell("fill")
        snapshot_database(source, copies[0])
        snapshot_database(source, copies[1], pages_per_step=1)
        assert copies[0].read_bytes() == copies[1].read_bytes()
        writer.end("leave")
    snapshot_database(source, copies[2])
    assert games_in(copies[2]) == 2000


# What is unchanged is not copied again.


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_an_unchanged_database_is_recognised_and_a_changed_one_too(source: Path, tmp_path: Path, journal: str) -> None:
    with writing(source, journal) as writer:
        writer.tell("fill")
        for path in source.parent.iterdir():
            os.utime(path, ns=(PAST_NS, PAST_NS))
        facts = snapshot_database(source, tmp_path / "staging" / "1")
        assert facts.unchanged_since(source)
        writer.tell("play")
        assert not facts.unchanged_since(source)
        for path in source.parent.iterdir():
            os.utime(path, ns=(PAST_NS, PAST_NS))
        later = snapshot_database(source, tmp_path / "staging" / "2")
        assert later.unchanged_since(source)
        assert (later.change_counter > facts.change_counter) == (journal == "delete")
        writer.end("leave")
        if journal == "wal":
            assert not later.unchanged_since(source)  # the log was folded into the database
    source.unlink()
    assert not later.unchanged_since(source)


def test_a_source_written_in_the_same_clock_tick_is_never_called_unchanged(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        writer.end("leave")
    future_ns = time.time_ns() + 3_600_000_000_000
    os.utime(source, ns=(future_ns, future_ns))
    facts = snapshot_database(source, destination)
    assert not facts.source.settled
    assert not facts.unchanged_since(source)


# What cannot be copied.


def refused(source: Path, destination: Path, **more: float) -> SnapshotError:
    """The refusal, which is one sentence that names the source and leaves nothing behind."""
    before = folder_state(source.parent)
    with pytest.raises(SnapshotError) as refusal:
        snapshot_database(source, destination, **more)  # type: ignore[arg-type]
    assert folder_state(source.parent) == before
    assert list(destination.parent.iterdir()) == []
    assert str(source) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return refusal.value


def test_what_is_not_a_database_is_refused(source: Path, destination: Path) -> None:
    source.write_bytes(b"")
    assert "empty and not yet a database" in str(refused(source, destination))
    for content in (b"short", b"x" * 8192, b"SQLite format 3\0" + b"\xff" * 8192):
        source.write_bytes(content)
        assert isinstance(refused(source, destination), NotADatabaseError | SourceDamagedError)
    source.unlink()
    source.mkdir()
    assert isinstance(refused(source, destination), NotADatabaseError)
    source.rmdir()
    os.mkfifo(source)
    with pytest.raises(NotADatabaseError):
        snapshot_database(source, destination)
    source.unlink()
    assert isinstance(refused(source, destination), SnapshotFailedError)


def test_a_damaged_database_is_refused(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        writer.tell("fill")
        writer.end("leave")
    content = bytearray(source.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = b"\xa5" * 4096
    source.write_bytes(content)
    refusal = refused(source, destination)
    assert isinstance(refusal, SourceDamagedError)
    assert "is damaged" in str(refusal)
    source.write_bytes(content[: len(content) // 2])
    assert isinstance(refused(source, destination), SourceDamagedError)


def test_a_transaction_cut_by_a_crash_is_left_for_its_own_program(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        writer.tell("fill")
        writer.tell("spill")
        writer.end("die")
    assert (source.parent / "live.db-journal").stat().st_size
    refusal = refused(source, destination)
    assert isinstance(refusal, SourceDamagedError)
    assert "open it once with the program that writes it" in str(refusal)


def test_a_crashed_transaction_that_its_program_repairs_meanwhile_is_no_obstacle(
    source: Path, destination: Path
) -> None:
    with writing(source, "delete") as writer:
        writer.tell("fill")
        writer.tell("spill")
        writer.end("die")

    def repair() -> bool:
        if (source.parent / "live.db-journal").exists():
            with writing(source, "delete") as repairer:
                repairer.end("leave")
        return False

    snapshot_database(source, destination, stop=repair)
    assert games_in(destination) == 2000


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_a_writer_that_opens_and_closes_all_the_time_is_no_obstacle(source: Path, tmp_path: Path, journal: str) -> None:
    with writing(source, journal) as writer:
        writer.tell("fill")
        assert writer.tell("reopen for ever") == "done"
        counts = []
        for number in range(20):
            copy = tmp_path / "staging" / f"{number}.db"
            snapshot_database(source, copy, pages_per_step=16, busy_seconds=60)
            counts.append(games_in(copy))
        assert counts == sorted(counts)


def test_a_locked_database_is_given_up_after_the_bound(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        writer.tell("lock")
        refusal = refused(source, destination, busy_seconds=0.1)
        assert isinstance(refusal, SourceBusyError)
        assert "locked by its writers" in str(refusal)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_snapshot_can_be_stopped_at_each_step(source: Path, destination: Path, journal: str) -> None:
    with writing(source, journal) as writer:
        writer.tell("fill")
        for steps in range(5):
            answers = iter([False] * steps + [True])
            with pytest.raises(SnapshotStoppedError):
                snapshot_database(source, destination, pages_per_step=4, stop=lambda answers=answers: next(answers))
            assert list(destination.parent.iterdir()) == []


def test_one_source_is_copied_once_at_a_time_under_whatever_name(
    source: Path, destination: Path, tmp_path: Path
) -> None:
    alias = tmp_path / "alias.db"
    alias.symlink_to(source)
    refusals = []

    def meanwhile() -> bool:
        with pytest.raises(SourceBusyError) as refusal:
            snapshot_database(alias, tmp_path / "staging" / "second.db")
        refusals.append(str(refusal.value))
        return False

    with writing(source, "delete") as writer:
        writer.tell("fill")
        snapshot_database(source, destination, pages_per_step=64, stop=meanwhile)
        assert refusals
        assert "being copied already" in refusals[0]
        assert writer.tell("play") == "done"
    assert games_in(destination) == 2000
    snapshot_database(alias, tmp_path / "staging" / "second.db")


def test_an_existing_destination_is_never_overwritten(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        writer.end("leave")
    destination.write_bytes(b"precious")
    with pytest.raises(SnapshotFailedError, match="exists already"):
        snapshot_database(source, destination)
    assert destination.read_bytes() == b"precious"


TOO_SMALL = """
import resource, sys
from pathlib import Path
from node.snapshot import SnapshotFailedError, snapshot_database
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    snapshot_database(Path(sys.argv[1]), Path(sys.argv[2]), pages_per_step=4)
except SnapshotFailedError as error:
    print(error)
"""


def test_a_destination_that_cannot_grow_is_removed_with_a_sentence(source: Path, destination: Path) -> None:
    with writing(source, "wal") as writer:
        writer.tell("fill")
        command = [sys.executable, "-c", TOO_SMALL, str(source), str(destination)]
        answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60)
    assert str(source) in answer.stdout
    assert list(destination.parent.iterdir()) == []


def test_paths_that_mean_something_in_a_uri_are_taken_literally(source: Path, tmp_path: Path) -> None:
    for name in ("a?mode=memory.db", "100%20.db", "#1.db", "a&b=c.db", "späte 'Züge'.db"):
        odd = source.with_name(name)
        with writing(odd, "wal") as writer:
            writer.tell("play")
            snapshot_database(odd, tmp_path / "staging" / name)
        with closing(sqlite3.connect(tmp_path / "staging" / name)) as connection:
            assert connection.execute("SELECT COUNT(*) FROM games").fetchone() == (1,)
    assert len(list((tmp_path / "staging").iterdir())) == 5


# What a receiver checks.


def test_the_receivers_check_finds_what_is_wrong_and_creates_nothing(source: Path, destination: Path) -> None:
    with writing(source, "wal") as writer:
        writer.tell("fill")
        snapshot_database(source, destination)
        writer.end("leave")
    assert quick_check(destination) is None
    assert quick_check(source) is None  # marked for a write-ahead log, and still none is made
    good = destination.read_bytes()
    wrong = [b"", b"no database", good[:-4096], good[: len(good) // 2], good[:8192] + b"\xa5" * 4096 + good[12288:]]
    for content in wrong:
        destination.write_bytes(content)
        problem = quick_check(destination)
        assert problem
        assert "\n" not in problem
    assert os.listdir(destination.parent) == ["copy.db"]
    assert os.listdir(source.parent) == ["live.db"]
    with pytest.raises(FileNotFoundError):
        quick_check(destination.with_name("missing.db"))


def test_a_long_check_can_be_stopped(source: Path, destination: Path) -> None:
    with writing(source, "delete") as writer:
        for _ in range(10):
            writer.tell("fill")
        writer.end("leave")
    with pytest.raises(SnapshotStoppedError):
        quick_check(source, stop=lambda: True)
