"""The file layer does what the WAL and publication take for granted."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.files import FileLayer


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    files = FileLayer()
    opened = files.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    files.close(opened)


def test_a_vector_longer_than_the_kernel_takes_is_written_whole_and_in_order(fd: int) -> None:
    buffers = [str(number).encode() for number in range(5000)] + [b"", b"end"]
    files = FileLayer()
    assert files.writev(fd, buffers) == len(b"".join(buffers))
    assert files.pread(fd, 1 << 20, 0) == b"".join(buffers)


def test_short_writes_are_finished(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writev, pwrite = os.writev, os.pwrite
    monkeypatch.setattr(os, "writev", lambda fd, buffers: writev(fd, [b"".join(buffers)[:7]]))
    monkeypatch.setattr(os, "pwrite", lambda fd, payload, offset: pwrite(fd, payload[:3], offset))
    files = FileLayer()
    assert files.writev(fd, [b"a" * 5, b"", b"b" * 20, b"c"]) == 26
    assert files.pwrite(fd, b"0123456789", 30) == 10
    assert files.pread(fd, 100, 0) == b"a" * 5 + b"b" * 20 + b"c" + bytes(4) + b"0123456789"


def test_a_link_never_replaces_and_a_rename_does(tmp_path: Path) -> None:
    files = FileLayer()
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        files.link(tmp_path / "a", tmp_path / "b")
    files.rename(tmp_path / "a", tmp_path / "b")
    files.fsync_dir(tmp_path)
    assert files.listdir(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"a"


def test_every_way_to_sync_succeeds_on_a_real_file_and_fails_on_a_closed_one(fd: int) -> None:
    files = FileLayer()
    files.pwrite(fd, b"x" * 10_000, 0)
    files.sync_file_range(fd, 0, 4096)
    files.fsync(fd)
    files.fdatasync(fd)
    files.syncfs(fd)
    closed = os.dup(fd)
    os.close(closed)
    for sync in (files.fsync, files.fdatasync, files.syncfs, lambda number: files.sync_file_range(number, 0, 1)):
        with pytest.raises(OSError, match="Bad file descriptor") as failure:
            sync(closed)
        assert failure.value.errno == errno.EBADF


def test_reserved_room_is_counted_and_copies_inside_the_kernel_are_exact(fd: int, tmp_path: Path) -> None:
    files = FileLayer()
    files.pwrite(fd, b"content", 0)
    files.fallocate(fd, 0, 1 << 20)
    assert files.fstat(fd).st_size == 1 << 20
    target = files.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    try:
        assert files.copy_file_range(fd, target, 7, 0, 3) == 7
        assert files.pread(target, 100, 0) == b"\0\0\0content"
    finally:
        files.close(target)


def test_a_reflink_shares_the_whole_file_or_says_that_this_file_system_cannot(fd: int, tmp_path: Path) -> None:
    files = FileLayer()
    files.pwrite(fd, b"shared" * 1000, 0)
    target = files.open(tmp_path / "clone", os.O_RDWR | os.O_CREAT)
    outcome = 0
    try:
        files.reflink(fd, target)
    except OSError as refusal:
        outcome = refusal.errno or -1
    content = files.pread(target, 10_000, 0)
    files.close(target)
    cannot = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}
    assert (outcome == 0 and content == b"shared" * 1000) or (outcome in cannot and content == b"")
