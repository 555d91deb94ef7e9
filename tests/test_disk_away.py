"""A disk that is away or fails: what cannot be seen is not taken for deleted, and comes back with the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from storage.files import FileLayer
from tests.depots import Bench, record_of, some_bytes
from tests.recording import FailingFiles

CONTENT = some_bytes(3_000)
PATH = "models/best.pth"


@pytest.mark.parametrize("mount_point", ["missing", "empty", "another disk"])
def test_a_mount_that_is_away_withdraws_nothing_and_its_files_come_back_with_it(
    tmp_path: Path, mount_point: str
) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(CONTENT)
    [(_, place)] = bench.publish(record).done
    away = tmp_path / "away"
    bench.root.rename(away)
    if mount_point != "missing":
        bench.root.mkdir()
    if mount_point == "another disk":
        other = Bench(tmp_path)
        other.write(PATH, b"something else")

    assert bench.depot.missing([place]) == []
    assert bench.read(record.digest) is None
    assert bench.withdrawn == []

    if mount_point != "missing":
        bench.root.rename(tmp_path / "other")
    away.rename(bench.root)
    assert bench.read(record.digest) == CONTENT


def test_a_deleted_file_is_missing_and_withdrawn_while_the_disk_is_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(CONTENT)
    [(_, place)] = bench.publish(record).done
    assert bench.depot.missing([place]) == []
    (bench.root / PATH).unlink()
    assert bench.depot.missing([place]) == [place]
    (bench.root / "models").rmdir()
    bench.write("models", b"a file where the folder was")
    assert bench.depot.missing([place]) == [place]
    assert bench.read(record.digest) is None
    assert [withdrawn for withdrawn, _ in bench.withdrawn] == [place]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("verb", ["lstat", "open"])
def test_a_disk_that_fails_to_answer_does_not_make_a_file_missing(tmp_path: Path, code: int, verb: str) -> None:
    failing = FailingFiles(verbs={verb}, at=1 << 30, code=code)
    bench = Bench(tmp_path, files=failing)
    [(_, place)] = bench.publish(bench.arrive(CONTENT)).done
    (bench.root / PATH).unlink()
    failing.at, failing.times = failing.calls + 1, 1 << 30
    found = bench.depot.missing([place])
    failing.times = 0
    assert found == []
    assert bench.depot.missing([place]) == [place]


def test_a_mount_that_goes_while_files_are_looked_for_withdraws_nothing(tmp_path: Path) -> None:
    class Leaving(FileLayer):
        going = False

        def lstat(self, path: Path):  # type: ignore[no-untyped-def]
            if self.going and bench.root.exists():
                bench.root.rename(tmp_path / "away")
            return super().lstat(path)

    files = Leaving()
    bench = Bench(tmp_path, files=files)
    [(_, place)] = bench.publish(bench.arrive(CONTENT)).done
    files.going = True
    assert bench.depot.missing([place]) == []
    assert not bench.root.exists()


def test_a_garbled_identity_says_nothing_of_the_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(CONTENT)
    [(_, place)] = bench.publish(bench.arrive(CONTENT, record)).done
    (bench.root / PATH).unlink()
    (bench.store.own / "store").write_text("garbled")
    assert bench.depot.missing([place]) == []
