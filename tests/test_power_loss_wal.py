"""Power loss at every operation of the write-ahead log, with every permitted loss of what was not synced."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from storage.files import FileLayer
from storage.wal import Wal, WalWriteFailed
from tests.recording import CrashState, FailingFiles, RecordingFiles, crash_states

BOUNDS = {"segment_bytes": 4096, "size_bytes_max": 64 * 1024}


class Story:
    """Drives a log on a recording layer and marks what was promised when."""

    def __init__(self, files: RecordingFiles, seed: int = 7) -> None:
        self.files = files
        self.random = Random(seed)
        self.written: dict[int, bytes] = {}
        self.tried: set[bytes] = set()
        self.unreleased: list[int] = []
        self.wal = Wal.open(files.root / "wal", files, **BOUNDS)

    def put(self, *sizes: int) -> None:
        payloads = [self.random.randbytes(size) for size in sizes]
        self.tried |= set(payloads)
        ids = self.wal.append(payloads)
        group = dict(zip(ids, payloads, strict=True))
        self.written |= group
        self.files.mark(("handed out", group))
        self.wal.sync()
        self.files.mark(("promised", group))
        self.unreleased += ids

    def release(self, count: int) -> None:
        ids = [self.unreleased.pop(self.random.randrange(len(self.unreleased))) for _ in range(count)]
        self.files.mark(("releasing", ids))
        self.wal.release(ids)

    def sync(self, released: list[int]) -> None:
        self.wal.sync()
        self.files.mark(("released for good", released))

    def kill_and_restart(self) -> None:
        """A killed process: everything written is still in the page cache, synced or not."""
        self.wal = Wal.open(self.files.root / "wal", self.files, **BOUNDS)


def promises(state: CrashState) -> tuple[dict[int, bytes], dict[int, bytes], set[int]]:
    """What must be live, what may be live, and what must not."""
    must: dict[int, bytes] = {}
    may: dict[int, bytes] = {}
    must_not: set[int] = set()
    for kind, what in state.marks:  # type: ignore[misc]
        if kind == "handed out":
            may |= what
        elif kind == "promised":
            must |= what
        elif kind == "releasing":
            must = {entry_id: payload for entry_id, payload in must.items() if entry_id not in what}
        elif kind == "released for good":
            must_not |= set(what)
    return must, may, must_not


def check(state: CrashState, folder: Path, story: Story, files: FileLayer | None = None) -> None:
    must, may, must_not = promises(state)
    wal = Wal.open(folder / "wal", files or FileLayer(), **BOUNDS)
    try:
        live = dict(wal.live())
        assert must.items() <= live.items(), f"a promised entry is lost: {state.why}"
        assert all(live[entry_id] == payload for entry_id, payload in may.items() if entry_id in live), state.why
        assert set(live.values()) <= story.tried | {b"after the crash"}, f"an entry that nobody wrote: {state.why}"
        assert not must_not & live.keys(), f"a release that was synced is forgotten: {state.why}"
        assert wal.recovered.missing_segments == 0, f"{wal.recovered.reports}: {state.why}"
        assert not any("has lost its last" in report for report in wal.recovered.reports), state.why
        new_id = wal.append([b"after the crash"])[0]
        assert new_id > max(may, default=0), f"an id was handed out twice: {state.why}"
        wal.sync()
        assert wal.read(new_id) == b"after the crash"
    finally:
        wal.close()


def survive_everywhere(story: Story, tmp_path: Path, random_seeds: int = 9) -> int:
    count = 0
    for count, state in enumerate(crash_states(story.files, random_seeds), start=1):
        check(state, state.write_to(tmp_path / "after" / str(count)), story)
    return count


def first_groups(story: Story) -> None:
    story.put(10, 2000, 0)
    story.put(700)
    story.release(2)
    story.put(300, 300)


def several_segments(story: Story) -> None:
    for _ in range(6):
        story.put(900, 1500, 40)
        story.release(1)
    story.put(6000)  # larger than a segment: it gets one of its own


def compaction(story: Story) -> None:
    for _ in range(4):
        story.put(1200, 1200, 1200)
        story.release(2)
    while story.wal.compact():
        pass
    released = list(story.written.keys() - set(story.unreleased))
    story.sync(released)
    story.put(500)
    story.release(3)
    while story.wal.compact():
        pass


def restarts(story: Story) -> None:
    story.put(1000, 1000)
    payload = b"appended, not synced"
    story.tried.add(payload)
    unsynced = dict(zip(story.wal.append([payload]), [payload], strict=True))
    story.written |= unsynced
    story.files.mark(("handed out", unsynced))
    story.kill_and_restart()
    story.files.mark(("promised", unsynced))  # live after the restart, so from now on it must stay
    story.put(1000)
    story.release(1)
    story.kill_and_restart()
    story.put(3000)
    while story.wal.compact():
        pass
    story.kill_and_restart()


@pytest.mark.parametrize("tell", [first_groups, several_segments, compaction, restarts])
def test_every_synced_entry_is_live_after_power_loss_at_any_operation(
    tell: Callable[[Story], None], tmp_path: Path
) -> None:
    story = Story(RecordingFiles(tmp_path / "disk"))
    tell(story)
    assert survive_everywhere(story, tmp_path) > 25


@pytest.mark.parametrize("verb", ["writev", "fdatasync", "fsync", "fsync_dir"])
def test_power_loss_after_a_failed_write_or_sync_loses_nothing_that_was_promised(verb: str, tmp_path: Path) -> None:
    for at in range(1, 30):
        failing = FailingFiles(verbs={verb}, at=10**9, code=errno.ENOSPC)
        story = Story(RecordingFiles(tmp_path / f"disk{at}", inner=failing))
        failing.calls, failing.at = 0, at
        for _ in range(4):
            try:
                story.put(1200, 900)
                story.release(1)
            except WalWriteFailed as failure:
                story.unreleased = [entry for entry in story.unreleased if entry not in failure.lost_ids]
        survive_everywhere(story, tmp_path / str(at), random_seeds=1)
        with suppress(WalWriteFailed):  # the fault may still be to come
            story.wal.close()
        if not failing.has_failed:
            return
    raise AssertionError("the faults never came to an end")


def test_a_second_power_loss_during_recovery_loses_nothing_either(tmp_path: Path) -> None:
    story = Story(RecordingFiles(tmp_path / "disk"))
    compaction(story)
    for count, state in enumerate(crash_states(story.files, random_seeds=1)):
        if count % 6:
            continue  # each recovery has its own journal, with a dozen states of its own
        again = RecordingFiles(state.write_to(tmp_path / "once" / str(count)))
        check(state, again.root, story, again)
        for twice, second in enumerate(crash_states(again, random_seeds=1)):
            both = CrashState(f"{state.why}; then {second.why}", second.tree, state.marks)
            folder = second.write_to(tmp_path / "twice" / f"{count}-{twice}")
            check(both, folder, story)


class NoSync(RecordingFiles):
    """Believes that a write is durable by itself: the journal shows no sync of any file."""

    def fdatasync(self, fd: int) -> None:
        pass


class NoFolderSync(RecordingFiles):
    def fsync_dir(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("careless", [NoSync, NoFolderSync])
def test_the_check_catches_a_log_that_does_not_sync(careless: type[RecordingFiles], tmp_path: Path) -> None:
    story = Story(careless(tmp_path / "disk"))
    first_groups(story)
    with pytest.raises(AssertionError, match=r"promised entry is lost|handed out twice"):
        survive_everywhere(story, tmp_path)


def test_the_check_catches_a_log_that_unlinks_before_it_has_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wal, "_move_forward", lambda wal, victim: True)
    story = Story(RecordingFiles(tmp_path / "disk"))
    compaction(story)
    with pytest.raises(AssertionError, match="promised entry is lost"):
        survive_everywhere(story, tmp_path)
