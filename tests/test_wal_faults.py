"""A disk that is full or fails, at each single call: what was synced stays, what failed is not live, and it goes on."""

import errno
from pathlib import Path

import pytest

from storage.files import FileLayer
from storage.wal import Wal, WalWriteFailed
from tests.recording import FailingFiles

SMALL = {"segment_bytes": 4096, "size_bytes_max": 64 * 1024}


class Book:
    """Runs a fixed programme on a log and keeps the account of what it was told."""

    def __init__(self, wal: Wal) -> None:
        self.wal = wal
        self.synced: dict[int, bytes] = {}
        self.open: dict[int, bytes] = {}
        self.failures: list[OSError] = []

    def run(self) -> None:
        for turn in range(6):
            self.attempt(self.put, [bytes([turn]) * 800] * 3)
            self.attempt(self.put, [b"small%d" % turn])
            self.attempt(self.wal_sync)
            self.attempt(self.release, list(self.synced)[::2])
            self.attempt(self.wal.compact)
            assert dict(self.wal.live()) == self.synced | self.open

    def attempt(self, act, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            act(*arguments)
        except OSError as failure:
            self.failures.append(failure)
            for entry_id in getattr(failure, "lost_ids", ()):
                self.open.pop(entry_id, None)

    def put(self, payloads: list[bytes]) -> None:
        self.open |= dict(zip(self.wal.append(payloads), payloads, strict=True))

    def wal_sync(self) -> None:
        self.wal.sync()
        self.synced |= self.open
        self.open = {}

    def release(self, ids: list[int]) -> None:
        for entry_id in ids:
            del self.synced[entry_id]
        self.wal.release(ids)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("verb", ["writev", "fdatasync", "fsync", "fsync_dir", "open", "ftruncate", "unlink"])
def test_a_fault_at_any_call_loses_only_the_group_it_was_told_about(
    verb: str, code: int, times: int, tmp_path: Path
) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at)
        faulty = FailingFiles(verbs={verb}, at=10**9, code=code, times=times)
        book = Book(Wal.open(folder, faulty, **SMALL))
        faulty.calls, faulty.at = 0, at
        book.run()
        faulty.verbs = set()  # the disk is well again
        book.attempt(book.put, [b"room is back"])
        book.attempt(book.wal_sync)
        assert dict(book.wal.live()) == book.synced
        assert all(failure.errno == code for failure in book.failures)
        book.wal.close()
        again = Wal.open(folder, FileLayer(), **SMALL)
        assert dict(again.live()) == book.synced, f"{verb} {at}: {again.recovered.reports}"
        assert not any("damaged" in report or "missing" in report for report in again.recovered.reports)
        again.close()
        if not faulty.has_failed:
            assert at > 1 or verb == "ftruncate", "the fault was never met"
            return
    raise AssertionError("the faults never came to an end")


def test_the_failure_is_a_sentence_that_names_the_cause_and_the_entries(tmp_path: Path) -> None:
    faulty = FailingFiles(verbs={"fdatasync"}, at=1, code=errno.ENOSPC)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    ids = wal.append([b"one", b"two"])
    with pytest.raises(WalWriteFailed, match=r"No space left on device.*: 2 entries .* free space") as failure:
        wal.sync()
    assert failure.value.lost_ids == tuple(ids)
    assert failure.value.errno == errno.ENOSPC
    wal.close()


def test_a_segment_whose_sync_failed_is_never_synced_or_written_again(tmp_path: Path) -> None:
    touched: list[tuple[str, int]] = []

    class Watching(FileLayer):
        def writev(self, fd, buffers):  # type: ignore[no-untyped-def]
            touched.append(("write", fd))
            return super().writev(fd, buffers)

        def fdatasync(self, fd: int) -> None:
            touched.append(("sync", fd))
            super().fdatasync(fd)

    faulty = FailingFiles(Watching(), verbs={"fdatasync"}, at=2, code=errno.EIO)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    durable = wal.append([b"durable"])
    wal.sync()
    failed_fd = touched[-1][1]
    wal.append([b"lost"])
    with pytest.raises(WalWriteFailed):
        wal.sync()
    touched.clear()
    wal.append([b"next"])
    wal.sync()
    assert failed_fd not in [fd for _, fd in touched]
    assert [payload for _, payload in wal.live()] == [b"durable", b"next"]
    assert wal.read(durable[0]) == b"durable"
    wal.close()


def test_a_group_that_failed_is_not_live_after_a_kill_either(tmp_path: Path) -> None:
    faulty = FailingFiles(verbs={"fdatasync"}, at=2, code=errno.EIO)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    wal.append([b"durable"])
    wal.sync()
    wal.append([b"failed"])
    with pytest.raises(WalWriteFailed):
        wal.sync()
    again = Wal.open(tmp_path / "wal", FileLayer(), **SMALL)  # the first one was never closed
    assert [payload for _, payload in again.live()] == [b"durable"]
    again.close()
    wal.close()


def test_a_group_that_failed_is_not_live_even_when_it_could_not_be_cut_off(tmp_path: Path) -> None:
    faulty = FailingFiles(
        FailingFiles(verbs={"ftruncate"}, at=1, code=errno.EIO, times=99), verbs={"fdatasync"}, at=2, code=errno.EIO
    )
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    wal.append([b"durable"])
    wal.sync()
    wal.append([b"failed, and still in the file"])
    with pytest.raises(WalWriteFailed):
        wal.sync()
    wal.append([b"next"])
    wal.sync()
    wal.close()
    assert b"failed, and still" in b"".join(path.read_bytes() for path in (tmp_path / "wal").glob("*.wal"))
    again = Wal.open(tmp_path / "wal", FileLayer(), **SMALL)
    assert [payload for _, payload in again.live()] == [b"durable", b"next"]
    assert again.recovered.reports == ()
    again.close()


def test_a_release_whose_frame_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    faulty = FailingFiles(verbs={"writev"}, at=3, code=errno.ENOSPC)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    ids = wal.append([b"released", b"kept"])
    wal.sync()
    with pytest.raises(WalWriteFailed):
        wal.release(ids[:1])
    assert [payload for _, payload in wal.live()] == [b"kept"]
    wal.close()
    again = Wal.open(tmp_path / "wal", FileLayer(), **SMALL)
    assert [payload for _, payload in again.live()] == [b"kept"]
    again.close()


def test_a_sync_that_returns_has_written_the_releases_that_failed_before(tmp_path: Path) -> None:
    faulty = FailingFiles(verbs={"writev"}, at=3, code=errno.ENOSPC)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    ids = wal.append([b"released", b"kept"])
    wal.sync()
    with pytest.raises(WalWriteFailed):
        wal.release(ids[:1])
    wal.sync()
    again = Wal.open(tmp_path / "wal", FileLayer(), **SMALL)  # the first one was killed
    assert [payload for _, payload in again.live()] == [b"kept"]
    again.close()
    wal.close()


def test_a_group_over_several_segments_fails_whole(tmp_path: Path) -> None:
    faulty = FailingFiles(verbs={"fdatasync"}, at=3, code=errno.EIO)
    wal = Wal.open(tmp_path / "wal", faulty, **SMALL)
    with pytest.raises(WalWriteFailed):
        wal.append([b"x" * 3000] * 5)  # each closed segment of the group is synced, the third sync fails
    assert list(wal.live()) == []
    wal.close()
    again = Wal.open(tmp_path / "wal", FileLayer(), **SMALL)
    assert list(again.live()) == []
    again.close()
