"""The power-loss recorder itself: what it lets a crash take, and what it never lets it take."""

import errno
import os
from pathlib import Path

import pytest

from tests.recording import CrashState, FailingFiles, RecordingFiles, crash_states


def write(files: RecordingFiles, path: Path, content: bytes, sync: bool = True) -> None:
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    files.write(fd, content)
    if sync:
        files.fsync(fd)
    files.close(fd)


def last_states(files: RecordingFiles, seeds: int = 40) -> list[dict[str, bytes | None]]:
    """The trees that a crash after the whole journal may leave."""
    end = object()
    files.mark(end)
    ends = [state for state in crash_states(files, seeds) if end in state.marks]
    return [_contents(state) for state in ends]


def _contents(state: CrashState) -> dict[str, bytes | None]:
    return {path: file and bytes(file.content) for path, file in state.tree.items()}


def test_what_is_synced_with_its_name_survives_always(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    write(files, files.root / "a", b"content")
    files.fsync_dir(files.root)
    assert last_states(files) == [{"a": b"content"}]


def test_a_synced_file_without_a_synced_name_may_be_missing(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    write(files, files.root / "a", b"content")
    states = last_states(files)
    assert {} in states
    assert {"a": b"content"} in states
    assert len(states) == 2


def test_an_unsynced_file_under_a_synced_name_may_be_empty_zero_torn_or_whole(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    content = b"A" * 512 + b"B" * 512
    write(files, files.root / "a", content, sync=False)
    files.fsync_dir(files.root)
    found = [state["a"] for state in last_states(files, seeds=200)]
    for expected in (b"", content, bytes(1024), bytes(512) + b"B" * 512, b"A" * 512):
        assert expected in found


@pytest.mark.parametrize("synced_folders", [[], ["."], ["sub"], [".", "sub"]])
def test_a_rename_across_folders_is_one_step_and_certain_when_both_are_synced(
    synced_folders: list[str], tmp_path: Path
) -> None:
    (tmp_path / "disk" / "sub").mkdir(parents=True)
    (tmp_path / "disk" / "a").write_bytes(b"new")
    (tmp_path / "disk" / "sub" / "b").write_bytes(b"old")
    files = RecordingFiles(tmp_path / "disk")
    files.rename(files.root / "a", files.root / "sub" / "b")
    for folder in synced_folders:
        files.fsync_dir(files.root / folder)
    before = {"a": b"new", "sub": None, "sub/b": b"old"}
    after = {"sub": None, "sub/b": b"new"}
    states = last_states(files)
    assert after in states
    assert (before in states) == (len(synced_folders) < 2)
    assert len(states) <= 2


def test_an_unlink_or_link_may_have_happened_or_not(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").write_bytes(b"x")
    files = RecordingFiles(tmp_path / "disk")
    files.link(files.root / "a", files.root / "b")
    files.unlink(files.root / "a")
    names = {tuple(sorted(state)) for state in last_states(files)}
    assert names == {("a",), ("a", "b"), ("b",), ()}
    files.fsync_dir(files.root)
    assert last_states(files) == [{"b": b"x"}]


def test_a_folder_whose_name_is_lost_takes_its_files_along(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    files.mkdir(files.root / "sub")
    write(files, files.root / "sub" / "a", b"content")
    files.fsync_dir(files.root / "sub")
    states = last_states(files)
    assert {} in states
    assert {"sub": None, "sub/a": b"content"} in states
    files.fsync_dir(files.root)
    assert last_states(files) == [{"sub": None, "sub/a": b"content"}]


def test_truncation_reservation_and_appending_are_replayed_as_they_happened(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").write_bytes(b"0123456789")
    files = RecordingFiles(tmp_path / "disk")
    fd = files.open(files.root / "a", os.O_RDWR | os.O_APPEND)
    files.ftruncate(fd, 4)
    files.write(fd, b"tail")
    files.fallocate(fd, 0, 12)
    files.fdatasync(fd)
    files.close(fd)
    assert (files.root / "a").read_bytes() == b"0123tail" + bytes(4)
    assert last_states(files) == [{"a": b"0123tail" + bytes(4)}]


def test_syncfs_makes_everything_certain(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    files.mkdir(files.root / "sub")
    write(files, files.root / "sub" / "a", b"content", sync=False)
    fd = files.open(files.root / "sub" / "a", os.O_RDONLY)
    files.syncfs(fd)
    files.close(fd)
    assert last_states(files) == [{"sub": None, "sub/a": b"content"}]


def test_every_prefix_is_visited_and_marks_come_with_what_precedes_the_crash(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    write(files, files.root / "a", b"one")
    files.fsync_dir(files.root)
    files.mark("one is safe")
    write(files, files.root / "b", b"two")
    files.fsync_dir(files.root)
    files.mark("two is safe")
    states = list(crash_states(files))
    assert {state.marks for state in states} == {(), ("one is safe",), ("one is safe", "two is safe")}
    for state in states:
        tree = _contents(state)
        assert "one is safe" not in state.marks or tree["a"] == b"one"
        assert "two is safe" not in state.marks or tree["b"] == b"two"


def test_a_state_is_laid_down_as_ordinary_files_with_their_modes_and_times(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    files.mkdir(files.root / "sub")
    fd = files.open(files.root / "sub" / "a", os.O_RDWR | os.O_CREAT)
    files.write(fd, b"content")
    files.fchmod(fd, 0o640)
    files.futime_ns(fd, 1_700_000_000_000_000_000)
    files.close(fd)
    *_, whole = [state for state in crash_states(files) if state.why.startswith("everything")]
    laid = whole.write_to(tmp_path / "after")
    info = (laid / "sub" / "a").stat()
    assert (laid / "sub" / "a").read_bytes() == b"content"
    assert info.st_mode & 0o777 == 0o640
    assert info.st_mtime_ns == 1_700_000_000_000_000_000


def test_the_same_journal_gives_the_same_states(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    for name in "abc":
        write(files, files.root / name, name.encode() * 2000, sync=False)
    assert [_contents(state) for state in crash_states(files)] == [_contents(state) for state in crash_states(files)]


def test_a_write_that_fails_halfway_is_journalled_as_far_as_it_went(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk", inner=FailingFiles(verbs={"writev"}, at=1, code=errno.ENOSPC))
    fd = files.open(files.root / "a", os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        files.write(fd, b"0123456789")
    files.fsync(fd)
    files.close(fd)
    files.fsync_dir(files.root)
    assert (files.root / "a").read_bytes() == b"01234"
    assert last_states(files) == [{"a": b"01234"}]


def test_files_outside_the_root_are_left_out(tmp_path: Path) -> None:
    files = RecordingFiles(tmp_path / "disk")
    write(files, tmp_path / "elsewhere", b"x")
    files.rename(tmp_path / "elsewhere", tmp_path / "moved")
    assert files.journal == []
