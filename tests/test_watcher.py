"""The watcher on real folders: which files it reports, when, and what it refuses."""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import node.scan
import node.stability
from node.patterns import KindPatterns, PatternRefused
from node.stability import FileIdentity, Writer
from node.watcher import Found, Watcher

PATTERNS: Mapping[str, Sequence[str]] = {
    "game": ["games/**/*.db"],
    "model": ["models/*.pth"],
    "npz": ["training/**/*.npz"],
    "checkpoint": ["checkpoints/*"],
}
SETTLE_SECONDS = 0.1
PATIENCE_SECONDS = 60.0  # only a failing test waits so long


class Agent:
    """What the tests see in place of the agent: it keeps every file it is told of, and knows it from then on."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.gone: list[str] = []
        self.scans = 0
        self.known: dict[str, FileIdentity] = {}
        self.accepting = True
        self.threads: set[int] = set()

    def on_found(self, found: Found) -> None:
        self.threads.add(threading.get_ident())
        self.found.append(found)
        if self.accepting:
            self.known[found.path] = found.identity

    def on_gone(self, path: Path) -> None:
        self.threads.add(threading.get_ident())
        self.gone.append(path.as_posix())
        self.known.pop(path.as_posix(), None)

    def on_scanned(self) -> None:
        self.threads.add(threading.get_ident())
        self.scans += 1

    def is_known(self, path: str, status: os.stat_result) -> bool:
        self.threads.add(threading.get_ident())
        return self.known.get(path) == FileIdentity.of(status)

    def paths(self) -> list[str]:
        return sorted(found.path for found in self.found)

    def reports(self, path: str) -> list[Found]:
        return [found for found in self.found if found.path == path]


@asynccontextmanager
async def watching(root: Path, agent: Agent, **more: Any) -> AsyncIterator[Watcher]:
    """A started watcher whose first scan is over; it scans again only when asked."""
    options: dict[str, Any] = {
        "rescan_seconds": 3600.0,
        "settle_seconds": SETTLE_SECONDS,
        "snapshot_kinds": frozenset({"game"}),
        "on_found": agent.on_found,
        "on_gone": agent.on_gone,
        "on_scanned": agent.on_scanned,
        "is_known": agent.is_known,
    }
    watcher = Watcher(root, PATTERNS, **(options | more))
    await watcher.start()
    try:
        await until(lambda: agent.scans > 0)
        await until(lambda: watcher.facts.candidates == 0)
        yield watcher
    finally:
        await watcher.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is whatever the test can see, not one event
            await asyncio.sleep(0.005)


async def quiet(watcher: Watcher, root: Path, agent: Agent) -> None:
    """Everything done so far has been seen: a marker written after it, and a whole scan, have come through."""
    marker = root / "training" / f"marker-{agent.scans}-{len(agent.found)}.npz"
    marker.write_bytes(b"marker")
    await until(lambda: bool(agent.reports(f"training/{marker.name}")))
    await watcher.rescan()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("games", "models", "training", "checkpoints", ".spore/staging", "peers/other/models"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def agent() -> Agent:
    return Agent()


# What is reported, and when.


async def _a_closed_file(root: Path, agent: Agent) -> None:
    (root / "models" / "old.pth").write_bytes(b"old")
    async with watching(root, agent):
        assert [(found.path, found.live) for found in agent.found] == [("models/old.pth", False)]
        path = root / "models" / "best.pth"
        path.write_bytes(b"weights")
        path.chmod(0o640)
        await until(lambda: len(agent.found) == 2)
        status = path.stat()
        assert agent.found[1] == Found(
            kind="model",
            path="models/best.pth",
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=7,
            mtime_ns=status.st_mtime_ns,
            mode=agent.found[1].mode,
            live=True,
        )


def test_a_closed_file_is_found_live_and_one_that_lay_there_is_not(root: Path, agent: Agent) -> None:
    asyncio.run(_a_closed_file(root, agent))
    assert agent.threads == {threading.get_ident()}, "a callback ran outside the loop's thread"


def test_a_file_is_not_found_while_somebody_writes_it(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        async with watching(root, agent) as watcher:
            with (root / "models" / "slow.pth").open("wb") as file:
                file.write(b"part")
                file.flush()
                await quiet(watcher, root, agent)
                assert watcher.facts.candidates == 1  # the scan saw it, and its writer
                assert not agent.reports("models/slow.pth")
                file.write(b"rest")
            await until(lambda: bool(agent.reports("models/slow.pth")))
            assert agent.reports("models/slow.pth")[0].size_bytes == 8

    asyncio.run(scenario())


def test_a_file_mapped_for_writing_waits_for_the_mapping_to_end(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        async with watching(root, agent) as watcher:
            descriptor = os.open(root / "models" / "mapped.pth", os.O_RDWR | os.O_CREAT)
            os.ftruncate(descriptor, 4096)
            mapping = mmap.mmap(descriptor, 4096)
            os.close(descriptor)  # the last close the kernel reports; the writing goes on
            await quiet(watcher, root, agent)
            assert not agent.reports("models/mapped.pth")
            mapping[:4] = b"late"
            mapping.close()
            await until(lambda: bool(agent.reports("models/mapped.pth")))

    asyncio.run(scenario())


def test_files_moved_and_linked_into_place_are_found(root: Path, agent: Agent, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watching(root, agent):
            for name in ("moved", "linked"):
                (tmp_path / name).write_bytes(name.encode())
            (tmp_path / "moved").rename(root / "models" / "moved.pth")
            os.link(tmp_path / "linked", root / "models" / "linked.pth")
            await until(lambda: agent.paths() == ["models/linked.pth", "models/moved.pth"])
            assert all(found.live for found in agent.found)

    asyncio.run(scenario())


def test_every_file_of_a_fast_nested_mkdir_is_found(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        async with watching(root, agent):
            for number in range(200):
                folder = root / "training" / f"run{number}" / "a" / "b"
                folder.mkdir(parents=True)
                (folder / "samples.npz").write_bytes(b"%d" % number)
            await until(lambda: len(set(agent.paths())) == 200)
            assert all(found.live for found in agent.found)

    asyncio.run(scenario())


def test_a_folder_moved_in_and_out_takes_its_files_along(root: Path, agent: Agent, tmp_path: Path) -> None:
    async def scenario() -> None:
        outside = tmp_path / "outside"
        (outside / "deep").mkdir(parents=True)
        (outside / "deep" / "a.npz").write_bytes(b"a")
        async with watching(root, agent) as watcher:
            outside.rename(root / "training" / "in")
            await until(lambda: agent.paths() == ["training/in/deep/a.npz"])
            watched = watcher.facts.folders_watched
            (root / "training" / "in").rename(root / "training" / "renamed")
            await until(lambda: agent.gone == ["training/in"])
            await until(lambda: "training/renamed/deep/a.npz" in agent.paths())
            assert watcher.facts.folders_watched == watched
            (root / "training" / "renamed" / "deep" / "b.npz").write_bytes(b"b")
            await until(lambda: "training/renamed/deep/b.npz" in agent.paths())
            (root / "training" / "renamed").rename(outside)
            await until(lambda: agent.gone == ["training/in", "training/renamed"])
            assert watcher.facts.folders_watched == watched - 2

    asyncio.run(scenario())


def test_a_deleted_file_is_reported_gone_and_a_replaced_one_found_again(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        (root / "models" / "a.pth").write_bytes(b"a")
        (root / "models" / "b.pth").write_bytes(b"b")
        async with watching(root, agent):
            (root / "models" / "a.pth").unlink()
            await until(lambda: agent.gone == ["models/a.pth"])
            (root / "models" / "new").write_bytes(b"longer")
            (root / "models" / "new").rename(root / "models" / "b.pth")
            await until(lambda: len(agent.reports("models/b.pth")) == 2)
            assert agent.reports("models/b.pth")[1].live
            assert agent.gone == ["models/a.pth"]

    asyncio.run(scenario())


def test_what_the_agent_knows_is_not_reported_again(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        published = root / "models" / "published.pth"
        async with watching(root, agent) as watcher:
            staged = root / ".spore" / "staging" / "x"
            staged.write_bytes(b"from a peer")
            agent.known["models/published.pth"] = FileIdentity.of(staged.stat())
            staged.rename(published)
            await quiet(watcher, root, agent)
            assert not agent.reports("models/published.pth")

    asyncio.run(scenario())


# Where the kernel cannot tell.


def test_without_leases_a_file_is_ready_when_two_looks_agree(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_seconds, sizes_seen = [0.0], [0]

    def no_answer(descriptor: int) -> Writer:
        sizes_seen.append(os.fstat(descriptor).st_size)
        return Writer.UNKNOWN

    def a_second_later() -> bool:
        now_seconds[0] += 1.0
        return bool(agent.found)

    async def scenario() -> None:
        monkeypatch.setattr(node.stability, "writer_of", no_answer)
        async with watching(root, agent, clock=lambda: now_seconds[0], settle_seconds=1.0) as watcher:
            path = root / "models" / "growing.pth"
            for size in range(1, 6):
                path.write_bytes(b"x" * size)
                await until(lambda size=size: sizes_seen[-1] == size)
                for _ in range(2):  # looks that agree, but too soon
                    looks = len(sizes_seen)
                    path.open("ab").close()
                    await until(lambda looks=looks: len(sizes_seen) > looks)
                await watcher.rescan()
                assert not agent.found  # within the settling time, and it grew since the look before
                now_seconds[0] += 0.9
            await until(a_second_later)
            assert agent.found[0].size_bytes == 5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EAGAIN, Writer.PRESENT), (errno.EACCES, Writer.UNKNOWN), (errno.EINVAL, Writer.UNKNOWN)],
)
def test_a_refused_lease_is_read_as_the_kernel_means_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: Writer
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert node.stability.look(str(path))[1] is Writer.NONE

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(node.stability.fcntl, "fcntl", refuse)
    assert node.stability.look(str(path))[1] is expected


LEASE_UNDER_FIRE = """
import sys
from node.stability import Writer, look
seen = {Writer.NONE: 0, Writer.PRESENT: 0}
while min(seen.values()) < 3000:
    seen[look(sys.argv[1])[1]] += 1
"""
OPEN_AND_CLOSE = """
import os, sys
while True:
    try:
        os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        pass  # the lease was held in that moment, and the kernel has signalled its holder
"""


def test_a_writer_that_comes_during_the_lease_check_does_not_end_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with subprocess.Popen([sys.executable, "-c", OPEN_AND_CLOSE, str(path)]) as writer:
        try:
            checker = subprocess.run(
                [sys.executable, "-c", LEASE_UNDER_FIRE, str(path)],
                cwd=Path(__file__).parent.parent,
                check=False,
                timeout=PATIENCE_SECONDS,
            )
        finally:
            writer.kill()
    assert checker.returncode == 0


def test_without_inotify_scans_find_everything(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_instance(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("asyncinotify.Inotify.__init__", no_instance)

    async def scenario() -> None:
        (root / "models" / "old.pth").write_bytes(b"old")
        async with watching(root, agent) as watcher:
            assert not watcher.facts.notified
            (root / "models" / "new.pth").write_bytes(b"new")
            await watcher.rescan()
            await until(lambda: len(agent.found) == 2)
            assert [(found.path, found.live) for found in agent.found] == [
                ("models/old.pth", False),
                ("models/new.pth", True),
            ]

    asyncio.run(scenario())
    assert "found by scans only" in caplog.text


def test_the_limit_of_watches_is_said_once_and_scans_go_on_faster(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_watch(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("asyncinotify.Inotify.add_watch", no_watch)
    monkeypatch.setattr("node.watcher.LIMITED_RESCAN_SECONDS_MAX", 0.05)

    async def scenario() -> None:
        async with watching(root, agent) as watcher:
            assert watcher.facts.limited
            (root / "models" / "new.pth").write_bytes(b"new")
            await until(lambda: agent.paths() == ["models/new.pth"])  # though a scan is due only after an hour

    asyncio.run(scenario())
    assert caplog.text.count("fs.inotify.max_user_watches") == 1


def test_events_the_kernel_dropped_are_made_up_for_by_a_scan(root: Path, agent: Agent) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queue > 20_000:
        pytest.skip("the kernel's event queue is too long here to be filled in a test")

    async def scenario() -> None:
        async with watching(root, agent):
            for number in range(queue // 2 + 500):  # each file is two events at least, and nobody reads meanwhile
                os.close(os.open(root / "training" / f"{number}.npz", os.O_WRONLY | os.O_CREAT))
            await until(lambda: len(set(agent.paths())) == queue // 2 + 500)
            assert agent.scans >= 2

    asyncio.run(scenario())


# Old never beats new.


def test_an_old_file_that_was_not_accepted_stays_old_in_later_scans(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        agent.accepting = False
        old = root / "models" / "old.pth"
        old.write_bytes(b"old")
        async with watching(root, agent) as watcher:
            await watcher.rescan()
            await until(lambda: len(agent.found) == 2)
            with old.open("ab"):
                pass  # opened for writing and closed untouched: nothing new
            await until(lambda: len(agent.found) == 3)
            assert [found.live for found in agent.found] == [False, False, False]
            old.write_bytes(b"newer")
            await until(lambda: len(agent.found) == 4)
            assert agent.found[3].live

    asyncio.run(scenario())


def test_a_root_that_goes_away_loses_nothing_and_returns_as_old(
    root: Path, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with watching(root, agent) as watcher:
            os.rename(root, root.with_name("unmounted"))
            await watcher.rescan()
            await watcher.rescan()
            assert (agent.scans, agent.gone) == (1, [])
            (root / "models").mkdir(parents=True)
            (root / "models" / "mirror.pth").write_bytes(b"of unknown age")
            await watcher.rescan()
            await until(lambda: bool(agent.found))
            assert [(found.path, found.live) for found in agent.found] == [("models/mirror.pth", False)]
            (root / "models" / "new.pth").write_bytes(b"new")
            await until(lambda: len(agent.found) == 2)
            assert agent.found[1].live

    asyncio.run(scenario())
    assert caplog.text.count("is it mounted?") == 1


def test_files_of_a_folder_that_could_not_be_read_are_old_when_it_can(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("/models"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    async def scenario() -> None:
        (root / "models" / "hidden.pth").write_bytes(b"old")
        (root / "training" / "seen.npz").write_bytes(b"old")
        monkeypatch.setattr(node.scan.os, "scandir", guarded)
        async with watching(root, agent) as watcher:
            await watcher.rescan()
            assert agent.paths() == ["training/seen.npz"]
            monkeypatch.setattr(node.scan.os, "scandir", real)
            await watcher.rescan()
            await until(lambda: len(agent.found) == 2)
            assert [(found.path, found.live) for found in agent.found][1] == ("models/hidden.pth", False)

    asyncio.run(scenario())
    assert caplog.text.count("'models' cannot be listed") == 1


# What is refused.


def test_our_own_and_the_peers_folders_are_never_entered(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        (root / "peers" / "other" / "models" / "theirs.pth").write_bytes(b"theirs")
        everything = {"any": ["**"], "model": ["models/*.pth"]}
        watcher = Watcher(
            root,
            everything,
            rescan_seconds=3600,
            settle_seconds=SETTLE_SECONDS,
            on_found=agent.on_found,
            on_gone=agent.on_gone,
            on_scanned=agent.on_scanned,
            is_known=agent.is_known,
        )
        await watcher.start()
        try:
            await until(lambda: agent.scans == 1)
            (root / "peers" / "late.pth").write_bytes(b"theirs")
            (root / ".spore" / "staging" / "partial").write_bytes(b"ours")
            await quiet(watcher, root, agent)
            assert all(path.startswith("training/marker") for path in agent.paths())
        finally:
            await watcher.stop()

    asyncio.run(scenario())


def test_links_out_of_the_root_are_refused_once_and_links_within_it_followed(
    root: Path, agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (root / "models" / "real.pth").write_bytes(b"real")
        (root / "models" / "out.pth").symlink_to(tmp_path / "secret")
        (root / "models" / "latest.pth").symlink_to("real.pth")
        (root / "models" / "circle.pth").symlink_to("circle.pth")
        (root / "models" / "staged.pth").symlink_to("../.spore/staging/x")
        (root / ".spore" / "staging" / "x").write_bytes(b"ours")
        (root / "training" / "elsewhere").symlink_to(tmp_path)
        async with watching(root, agent) as watcher:
            (root / "models" / "out2.pth").symlink_to(tmp_path / "secret")
            await quiet(watcher, root, agent)
            paths = [path for path in agent.paths() if path.startswith("models")]
            assert paths == ["models/latest.pth", "models/real.pth"]
            assert agent.reports("models/latest.pth")[0].inode == (root / "models" / "real.pth").stat().st_ino

    asyncio.run(scenario())
    assert caplog.text.count("'models/out.pth' is a link to a file outside") == 1
    assert caplog.text.count("'models/out2.pth' is a link to a file outside") == 1
    assert caplog.text.count("'models/staged.pth' is a link to a file outside") == 1
    assert caplog.text.count("'training/elsewhere' is a link to a folder") == 1


def test_names_that_cannot_be_artifacts_are_refused_once_each(
    root: Path, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(suffix: str) -> None:
        (root / "checkpoints" / f"line\nbreak{suffix}").write_bytes(b"x")
        Path(os.fsdecode(os.fsencode(root / "checkpoints") + b"/bad\xff" + suffix.encode())).write_bytes(b"x")
        deep = root / "training" / "/".join(["d" * 200] * 5) / suffix
        deep.mkdir(parents=True)
        (deep / ("f" * 50 + ".npz")).write_bytes(b"x")
        os.mkfifo(root / "checkpoints" / f"pipe{suffix}")
        (root / "checkpoints" / f"folder{suffix}").mkdir()

    async def scenario() -> None:
        spoil("before")
        async with watching(root, agent) as watcher:
            spoil("after")
            (root / "checkpoints" / "plain").write_bytes(b"x")
            await quiet(watcher, root, agent)
            await watcher.rescan()
            assert [path for path in agent.paths() if "marker" not in path] == ["checkpoints/plain"]

    asyncio.run(scenario())
    sentences = sorted(record.message for record in caplog.records)
    assert len(sentences) == len(set(sentences)) == 10, sentences
    assert sum("control character" in sentence for sentence in sentences) == 2
    assert sum("not valid UTF-8" in sentence for sentence in sentences) == 2
    assert sum("1024 bytes" in sentence for sentence in sentences) == 2
    assert sum("not a regular file" in sentence for sentence in sentences) == 2
    assert sum("its pattern asks for a file" in sentence for sentence in sentences) == 2


def test_an_unreadable_file_is_refused_with_what_to_do(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    async def scenario() -> None:
        (root / "models" / "private.pth").write_bytes(b"x")
        monkeypatch.setattr(node.scan, "look", denied)
        async with watching(root, agent) as watcher:
            await watcher.rescan()
            await until(lambda: watcher.facts.candidates == 0)
            assert not agent.found

    asyncio.run(scenario())
    assert caplog.text.count("'models/private.pth' cannot be read (Permission denied); give the agent's user read") == 1


# Databases.


def test_a_database_is_reported_at_each_change_while_it_stays_open(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        async with watching(root, agent) as watcher:
            database = sqlite3.connect(root / "games" / "live.db", isolation_level=None)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("CREATE TABLE games (id INTEGER PRIMARY KEY)")
                await until(lambda: bool(agent.found))
                await quiet(watcher, root, agent)
                for number in range(3):
                    before = len(agent.reports("games/live.db"))
                    database.execute("INSERT INTO games VALUES (?)", (number,))
                    await until(lambda before=before: len(agent.reports("games/live.db")) > before)
                reports = agent.reports("games/live.db")
                assert all(found.snapshot and found.live and found.kind == "game" for found in reports)
                assert {path for path in agent.paths() if "marker" not in path} == {"games/live.db"}
                await until(lambda: watcher.facts.candidates == 0)
                settled = len(agent.reports("games/live.db"))
                await watcher.rescan()
                await until(lambda: watcher.facts.candidates == 0)
                assert len(agent.reports("games/live.db")) == settled  # nothing changed, so nothing is said
            finally:
                database.close()

    asyncio.run(scenario())


def test_many_changes_of_a_database_are_one_report_per_settling_time(root: Path, agent: Agent) -> None:
    now_seconds = [0.0]

    async def scenario() -> None:
        async with watching(root, agent, clock=lambda: now_seconds[0], settle_seconds=0.01) as watcher:
            database = sqlite3.connect(root / "games" / "live.db", isolation_level=None)
            try:
                database.execute("CREATE TABLE games (id INTEGER PRIMARY KEY)")
                await until(lambda: bool(agent.found))
                for number in range(100):
                    database.execute("INSERT INTO games VALUES (?)", (number,))
                await quiet(watcher, root, agent)
                assert len(agent.reports("games/live.db")) == 1  # the watcher's time stands still
                now_seconds[0] += 1
                await until(lambda: len(agent.reports("games/live.db")) == 2)
            finally:
                database.close()

    asyncio.run(scenario())


def test_a_scan_notices_a_write_ahead_log_that_grew_unseen(
    root: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_instance(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("asyncinotify.Inotify.__init__", no_instance)

    async def scenario() -> None:
        database = sqlite3.connect(root / "games" / "live.db", isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE games (id INTEGER PRIMARY KEY)")
            async with watching(root, agent) as watcher:
                assert [(found.live, found.snapshot) for found in agent.found] == [(False, True)]
                database.execute("INSERT INTO games VALUES (1)")  # goes to the log; the database file stays as it is
                await watcher.rescan()
                await until(lambda: len(agent.found) == 2)
                assert agent.found[1].live
                assert agent.found[1].identity == agent.found[0].identity
        finally:
            database.close()

    asyncio.run(scenario())


def test_sqlite_sidecars_are_never_artifacts(root: Path, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        for name in ("run.db", "run.db-wal", "run.db-shm", "run.db-journal", "training-journal"):
            (root / "checkpoints" / name).write_bytes(b"x")
        async with watching(root, agent) as watcher:
            (root / "checkpoints" / "run.db-wal").write_bytes(b"xx")
            await quiet(watcher, root, agent)
            assert [path for path in agent.paths() if "marker" not in path] == ["checkpoints/run.db"]

    asyncio.run(scenario())
    assert caplog.text.count("is named as SQLite names its own files") == 1
    assert "'checkpoints/training-journal'" in caplog.text


# How it lives and ends.


def test_a_callback_that_fails_for_one_file_does_not_keep_the_others(
    root: Path, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    def poisoned(found: Found) -> None:
        if found.path == "models/poison.pth":
            raise ValueError("poison")
        agent.on_found(found)

    def poisoned_question(path: str, status: os.stat_result) -> bool:
        if path == "models/riddle.pth":
            raise ValueError("riddle")
        return agent.is_known(path, status)

    async def scenario() -> None:
        for name in ("poison", "riddle", "good"):
            (root / "models" / f"{name}.pth").write_bytes(b"x")
        async with watching(root, agent, on_found=poisoned, is_known=poisoned_question):
            assert agent.paths() == ["models/good.pth"]
            (root / "models" / "late.pth").write_bytes(b"x")
            await until(lambda: agent.paths() == ["models/good.pth", "models/late.pth"])

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "the watcher goes on" in caplog.text


def watched_descriptors(root: Path) -> list[str]:
    """What this process has open below the root, and its inotify instances; the test runner's own do not count."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(name for name in names if name.startswith(str(root)) or "inotify" in name)


def test_stopping_leaves_no_descriptor_task_or_caller_behind(root: Path, agent: Agent) -> None:
    async def scenario() -> None:
        for number in range(2000):
            (root / "training" / f"{number}.npz").write_bytes(b"x")
        (root / "models" / "open.pth").write_bytes(b"x")
        before = watched_descriptors(root)
        tasks = asyncio.all_tasks()
        for _ in range(5):
            watcher = Watcher(
                root,
                PATTERNS,
                rescan_seconds=3600,
                settle_seconds=SETTLE_SECONDS,
                on_found=agent.on_found,
                on_gone=agent.on_gone,
                is_known=agent.is_known,
            )
            await watcher.start()
            waiting = asyncio.create_task(watcher.rescan())
            await until(lambda: bool(agent.found))  # in the middle of its first scan
            await watcher.stop()
            found = len(agent.found)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.sleep(0)
            assert len(agent.found) == found
            assert asyncio.all_tasks() == tasks
            agent.found.clear()
            agent.known.clear()
        assert watched_descriptors(root) == before

    asyncio.run(scenario())


# Globs.


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("games/**/*.db", ["games/a.db", "games/x/y/a.db"], ["a.db", "games/.git/a.db", "games/a.dbx", "xgames/a.db"]),
        ("models/*.pth", ["models/a.pth"], ["models/d/a.pth", "models/.a.pth.Xy12", "models/.a.pth"]),
        ("checkpoints/*", ["checkpoints/a", "checkpoints/a b"], ["checkpoints", "checkpoints/a/b", "checkpoints/.a"]),
        ("data/**", ["data/a", "data/b/c"], ["data", "data/.b/c"]),
        ("**/w.bin", ["w.bin", "a/b/w.bin"], [".spore/w.bin", "peers/w.bin", "a/xw.bin"]),
        (".hidden/.*.cfg", [".hidden/.a.cfg"], [".hidden/a.cfg"]),
        ("run[0-9]/[!a-c]?.x", ["run7/dz.x"], ["run7/az.x", "runx/dz.x", "run7/d/.x"]),
        ("odd[/a+b(c).x", ["odd[/a+b(c).x"], ["odd/a+b(c).x"]),
    ],
)
def test_globs_match_as_in_a_shell(glob: str, matching: list[str], others: list[str]) -> None:
    patterns = KindPatterns({"kind": [glob]})
    assert {path: patterns.kind_of(path) for path in matching} == dict.fromkeys(matching, "kind")
    assert {path: patterns.kind_of(path) for path in others} == dict.fromkeys(others)
    for path in matching:
        folders = path.split("/")[:-1]
        assert all(patterns.may_hold("/".join(folders[:depth])) for depth in range(len(folders) + 1)), path


def test_folders_that_cannot_hold_a_match_are_left_alone() -> None:
    patterns = KindPatterns(PATTERNS)
    assert all(patterns.may_hold(folder) for folder in ("", "models", "games/a/b", "training/run"))
    others = ("models/deep", "other", ".spore", "peers", "games/.git", "checkpoints/a")
    assert not any(patterns.may_hold(folder) for folder in others)
    assert not KindPatterns({}).may_hold("")
    assert KindPatterns({"first": ["a/*"], "second": ["a/b"]}).kind_of("a/b") == "first"


@pytest.mark.parametrize("glob", ["", "/abs/*", "a/../b", "a//b", "./a", ".spore/*", "peers/**", "a[z-a]"])
def test_a_glob_that_cannot_be_meant_is_refused_with_a_sentence(glob: str) -> None:
    with pytest.raises(PatternRefused, match="pattern"):
        KindPatterns({"kind": [glob]})


def test_a_glob_of_many_wildcards_takes_no_exponential_time() -> None:
    patterns = KindPatterns({"kind": ["**/" * 30 + "x"]})
    assert patterns.kind_of("a/" * 400 + "y") is None


def test_a_path_is_watched_as_the_kind_that_a_scan_would_find_there(root: Path, agent: Agent) -> None:
    async def ask() -> list[bool]:
        async with watching(root, agent) as watcher:
            return [watcher.watches(path, kind) for path, kind in (("models/a.pth", "model"), ("models/a.pth", "game"))]

    assert asyncio.run(ask()) == [True, False]
