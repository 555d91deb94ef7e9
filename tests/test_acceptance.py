"""Acceptance: bytes are safe before anybody hears of them, and what was hashed is what is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.chunks import CHUNK_BYTES
from protocol.effects import Inline, Kept, Referenced
from storage.acceptance import INLINE_BYTES_MAX
from storage.files import FileLayer
from storage.folders import stamp_of
from storage.refusals import (
    BlobChanged,
    ClaimedElsewhere,
    FileChanging,
    FileGone,
    NoRoom,
    PathRefused,
    StorageFailed,
)
from storage.room import DiskUsage, RoomLimits
from tests.depots import TIB, Bench, failing_once, hashed, record_of, some_bytes
from tests.recording import FailingFiles

BIG = some_bytes(2 * CHUNK_BYTES + 3)
PATH = "games/1.db"


class PlainFiles(FileLayer):
    """A file system that shares no extents, so that tests read the same on every machine."""

    def reflink(self, source_fd: int, target_fd: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no reflink here")


class CloningFiles(FileLayer):
    """A file system that shares extents, imitated by a copy."""

    def reflink(self, source_fd: int, target_fd: int) -> None:
        os.pwrite(target_fd, os.pread(source_fd, os.fstat(source_fd).st_size, 0), 0)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES_MAX])
def test_up_to_64_kib_the_bytes_go_into_the_log(tmp_path: Path, size: int) -> None:
    bench = Bench(tmp_path)
    content = some_bytes(size)
    path = bench.write(PATH, content)
    path.chmod(0o4640)
    accepted = bench.depot.accept_file(PATH)
    digest, plain, leaves = hashed(content)
    assert accepted.source == Inline(content)
    assert (accepted.digest, accepted.blake3, accepted.size, accepted.mode) == (digest, plain, size, 0o640)
    assert accepted.leaves == tuple(leaves)
    assert accepted.place is not None
    assert (accepted.place.path, accepted.place.private) == (PATH, False)


def test_above_it_a_private_copy_is_kept_that_nobody_else_writes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PlainFiles())
    path = bench.write(PATH, BIG)
    accepted = bench.depot.accept_file(PATH)
    assert isinstance(accepted.source, Kept)
    assert accepted.source.place.private
    assert bench.manifest.leaves[accepted.digest] == tuple(hashed(BIG)[2])
    path.write_bytes(b"the user goes on")
    assert bench.read(accepted.digest) == BIG
    assert bench.staged() == []


def test_beyond_the_limit_of_copies_the_users_file_is_referenced(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PlainFiles(), copy_max_bytes=CHUNK_BYTES)
    path = bench.write(PATH, BIG)
    accepted = bench.depot.accept_file(PATH)
    assert accepted.source == Referenced(accepted.place)  # type: ignore[arg-type]
    assert isinstance(bench.depot.accept_file(PATH, copy_max_bytes=len(BIG)).source, Kept)
    assert accepted.place is not None
    bench.manifest.places = {PATH: accepted.place}
    os.unlink(bench.root / f".spore/versions/{accepted.digest.hex()}")
    blob = bench.depot.open_blob(accepted.digest)
    assert blob is not None
    with open(path, "ab") as user:
        user.write(b"more")
    with pytest.raises(BlobChanged):
        blob.check()
    blob.close()


def test_where_extents_can_be_shared_any_size_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CloningFiles(), copy_max_bytes=0)
    bench.write(PATH, BIG)
    accepted = bench.depot.accept_file(PATH)
    assert isinstance(accepted.source, Kept)
    assert bench.read(accepted.digest) == BIG


def test_a_full_disk_still_accepts_by_reference_so_that_it_can_evacuate(tmp_path: Path) -> None:
    limits = RoomLimits(min_free_bytes=TIB)
    bench = Bench(tmp_path, PlainFiles(), usage=lambda: DiskUsage(TIB, 1000), limits=limits)
    bench.write(PATH, BIG)
    assert isinstance(bench.depot.accept_file(PATH).source, Referenced)
    with pytest.raises(NoRoom, match="min_free_bytes"):
        bench.depot.accept_bytes(b"new bytes need new room")
    assert bench.staged() == []


def test_the_same_bytes_accepted_twice_are_kept_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write("a", BIG)
    bench.write("b", BIG)
    first, second = bench.depot.accept_file("a"), bench.depot.accept_file("b")
    assert first.source == second.source
    assert Bench(tmp_path).depot.accept_bytes(BIG).source == first.source  # also by the next life


def test_a_removal_on_its_way_leaves_alone_what_a_put_counts_on_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    old = bench.arrive(BIG)
    [(_, place)] = bench.publish(old, None).done
    del bench.manifest.places[place.path]  # its last version was deleted: an Unlink is on its way
    accepted = [bench.depot.accept_bytes(BIG), bench.depot.accept_stream([BIG])]
    assert [a.source for a in accepted] == [Kept(place)] * 2

    [why] = bench.depot.unlink([place])
    assert "wanted again" in why
    bench.depot.unpin(place)
    assert bench.depot.sweep(starting=False) == 0  # one put was refused, the other still counts on it
    assert bench.read(old.digest) == BIG
    bench.manifest.places[place.path] = place
    bench.depot.unpin(place)
    bench.depot.sweep(starting=False)
    assert bench.read(old.digest) == BIG


def test_what_only_refused_puts_wanted_is_removed_by_a_later_sweep(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    source = bench.depot.accept_bytes(BIG).source
    assert isinstance(source, Kept)
    assert len(bench.depot.unlink([source.place])) == 1
    bench.depot.unpin(source.place)
    assert bench.depot.sweep(starting=False) == len(BIG)
    assert not (bench.root / source.place.path).exists()
    assert bench.depot.sweep(starting=False) == 0


def test_a_pin_that_nobody_takes_off_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.private.PIN_SECONDS_MAX", 0.0)
    bench = Bench(tmp_path)
    source = bench.depot.accept_bytes(BIG).source
    assert isinstance(source, Kept)
    assert bench.depot.unlink([source.place]) == ()
    assert not (bench.root / source.place.path).exists()


def test_an_acceptance_that_failed_pins_nothing(tmp_path: Path) -> None:
    failing = FailingFiles(verbs={"fsync_dir"}, at=1 << 30, code=errno.EIO)
    bench = Bench(tmp_path, failing)
    [(_, place)] = bench.publish(bench.arrive(BIG), None).done
    failing.at = failing.calls + 1
    with pytest.raises(StorageFailed):
        bench.depot.accept_bytes(BIG)
    assert bench.depot.unlink([place]) == ()


def test_a_damaged_leftover_under_the_private_name_is_replaced(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    leftover = bench.root / f".spore/versions/{record_of(BIG).digest.hex()}"
    leftover.write_bytes(b"!" + BIG[1:])
    accepted = bench.depot.accept_bytes(BIG)
    assert isinstance(accepted.source, Kept)
    assert leftover.read_bytes() == BIG


@pytest.mark.parametrize("size", [100, len(BIG)])
def test_a_file_that_changes_while_it_is_read_is_not_accepted(tmp_path: Path, size: int) -> None:
    class Writing(PlainFiles):
        armed = True

        def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
            piece = super().pread(fd, size_bytes, offset)
            if self.armed and offset == 0 and len(piece) >= 100:
                self.armed = False
                with open(tmp_path / "files" / PATH, "ab") as user:
                    user.write(b"more")
            return piece

    writing = Writing()
    writing.armed = False
    bench = Bench(tmp_path, writing)
    bench.write(PATH, some_bytes(size))
    writing.armed = True
    with pytest.raises(FileChanging, match="accepted when it is quiet"):
        bench.depot.accept_file(PATH)
    assert bench.staged() == []
    assert os.listdir(bench.store.versions) == []
    assert bench.depot.accept_file(PATH).size == size + 4


def test_a_file_that_is_replaced_while_it_is_read_is_not_accepted(tmp_path: Path) -> None:
    class Replacing(PlainFiles):
        armed = False

        def fsync(self, fd: int) -> None:
            super().fsync(fd)

        def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
            if self.armed:
                self.armed = False
                bench.write("games/new", BIG)
                os.replace(bench.root / "games/new", bench.root / PATH)
            return super().pread(fd, size_bytes, offset)

    replacing = Replacing()
    bench = Bench(tmp_path, replacing)
    bench.write(PATH, BIG)
    replacing.armed = True
    with pytest.raises(FileChanging):
        bench.depot.accept_file(PATH)


def test_a_file_that_is_not_as_the_scan_saw_it_is_looked_at_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = bench.write(PATH, b"first")
    seen = stamp_of(path.stat())
    path.write_bytes(b"second")
    with pytest.raises(FileChanging, match="looked at again"):
        bench.depot.accept_file(PATH, seen)
    path.unlink()
    with pytest.raises(FileGone):
        bench.depot.accept_file(PATH, seen)
    with pytest.raises(FileGone):
        bench.depot.accept_file("no/such/folder", seen)


@pytest.mark.parametrize(
    "path", ["../out", "/etc/hosts", "a\0b", "x" * 300, "a/./b", "", ".spore/store", "\udcff", "a/../b"]
)
def test_paths_that_leave_the_root_or_are_ours_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(PathRefused):
        Bench(tmp_path).depot.accept_file(path)


def test_links_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (bench.root / "link").symlink_to(secret / "file")
    (bench.root / "folder").symlink_to(secret)
    (bench.root / "inside").mkdir()
    os.mkfifo(bench.root / "pipe")
    for path in ("link", "folder/file", "folder", "inside", "pipe"):
        with pytest.raises(PathRefused):
            bench.depot.accept_file(path)


def test_of_two_members_that_see_a_file_one_accepts_it(tmp_path: Path) -> None:
    a, b = (Bench(tmp_path, node=node, shared=True) for node in ("node-a", "node-b"))
    a.write(PATH, BIG)
    a.depot.accept_file(PATH)
    with pytest.raises(ClaimedElsewhere, match="node-a"):
        b.depot.accept_file(PATH)
    assert b.depot.accept_file(PATH, take_over=True).size == len(BIG)


def test_bytes_from_the_command_line_are_inline_or_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    small, large = bench.depot.accept_bytes(b"small"), bench.depot.accept_bytes(BIG, 0o600)
    assert (small.source, small.place) == (Inline(b"small"), None)
    assert isinstance(large.source, Kept)
    assert (large.digest, large.blake3) == hashed(BIG)[:2]
    assert large.mode == 0o600
    assert bench.read(large.digest) == BIG


@pytest.mark.parametrize("block", [1000, INLINE_BYTES_MAX, CHUNK_BYTES + 1])
def test_a_stream_of_any_blocks_is_accepted_as_its_bytes(tmp_path: Path, block: int) -> None:
    bench = Bench(tmp_path)
    accepted = bench.depot.accept_stream(BIG[at : at + block] for at in range(0, len(BIG), block))
    assert accepted.digest == record_of(BIG).digest
    assert bench.read(accepted.digest) == BIG
    assert bench.staged() == []


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def breaking() -> Iterator[bytes]:
        yield BIG
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        bench.depot.accept_stream(breaking())
    assert bench.staged() == []
    assert os.listdir(bench.store.versions) == []


@pytest.mark.parametrize("content", [b"a small database", BIG])
def test_a_snapshot_is_accepted_and_its_draft_used_up(tmp_path: Path, content: bytes) -> None:
    bench = Bench(tmp_path)
    draft = bench.depot.draft()
    draft.write_bytes(content)
    accepted = bench.depot.accept_draft(draft)
    assert accepted.digest == record_of(content).digest
    assert isinstance(accepted.source, Inline if len(content) < INLINE_BYTES_MAX else Kept)
    assert bench.staged() == []


def test_what_was_published_is_not_known_any_more_once_a_user_changed_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.publish(bench.arrive(BIG), PATH)
    bench.manifest.places.clear()
    path = bench.write(PATH, b"a user's own work")
    accepted = bench.depot.accept_file(PATH)
    assert not bench.depot.knows(PATH, stamp_of(path.stat()))  # until the driver commits the new place
    assert accepted.place is not None
    bench.manifest.places[PATH] = accepted.place
    assert bench.depot.knows(PATH, stamp_of(path.stat()))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails_loses_nothing_and_the_next_acceptance_works(tmp_path: Path, code: int) -> None:
    verbs = {"open", "pread", "pwrite", "fsync", "fsync_dir", "rename", "unlink", "fstat", "lstat"}
    for at in range(1, 60):
        failing = FailingFiles(PlainFiles(), verbs=verbs, at=10**9, code=code)
        bench = Bench(tmp_path / str(at), failing)
        path = bench.write(PATH, BIG)
        failing.at = failing.calls + at
        failed = failing_once(lambda bench=bench: bench.depot.accept_file(PATH))  # type: ignore[misc]
        if not failing.has_failed:
            assert not failed
            return
        assert path.read_bytes() == BIG
        accepted = bench.depot.accept_file(PATH)
        assert isinstance(accepted.source, Kept)
        assert bench.read(accepted.digest) == BIG
        put_failed = FailingFiles(PlainFiles(), verbs=verbs, at=10**9, code=code)
        put = Bench(tmp_path / f"put {at}", put_failed)
        put_failed.at = put_failed.calls + at
        failing_once(lambda put=put: put.depot.accept_bytes(BIG))  # type: ignore[misc]
        put_failed.at = 10**9
        assert put.depot.accept_bytes(BIG).digest == accepted.digest
    pytest.fail("an acceptance needs fewer calls")


def test_a_disk_error_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    failing = FailingFiles(PlainFiles(), verbs={"pwrite"}, at=1, code=errno.ENOSPC)
    bench = Bench(tmp_path, failing)
    bench.write(PATH, BIG)
    with pytest.raises(StorageFailed, match=r"^cannot accept games/1.db: the disk is full; free some space$"):
        bench.depot.accept_file(PATH)
