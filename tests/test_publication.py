"""Publication: only verified and synced bytes get a final name, and nothing of a user's is ever overwritten."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.chunks import CHUNK_BYTES
from protocol.effects import Entry, Kept, Publication, Referenced
from protocol.values import Parcel, Place
from storage.blobs import whole
from storage.depot import Depot
from storage.files import FileLayer
from storage.folders import stamp_of
from storage.places import Lookups
from storage.publication import LOCAL_CHANGE, SYNC_EACH_MAX, Outcome
from storage.refusals import BlobChanged, ClaimedElsewhere
from storage.room import Room, RoomLimits
from storage.store import open_store
from tests.depots import Bench, empty_disk, record_of, some_bytes
from tests.recording import FailingFiles

OLD, NEW = some_bytes(2 * CHUNK_BYTES, 1), some_bytes(2 * CHUNK_BYTES + 5, 2)
PATH = "models/best.pth"


def _failure(outcome: Outcome) -> str:
    assert not outcome.done
    [(_, why)] = outcome.failed
    assert "\n" not in why
    return why


def test_a_published_file_has_its_bytes_its_mode_and_a_place_that_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW, record_of(NEW, mode=0o4750))
    outcome = bench.publish(record)
    status = os.stat(bench.root / PATH)
    assert outcome == Outcome(
        done=((record, Place(PATH, record.digest, status.st_dev, status.st_ino, len(NEW), status.st_mtime_ns, False)),)
    )
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert status.st_nlink == 1
    assert (bench.root / PATH).read_bytes() == NEW
    assert bench.staged() == []
    assert bench.manifest.leaves[record.digest] == bench.depot.leaves(record.digest)


def test_without_a_path_it_becomes_a_private_version(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    [(_, place)] = bench.publish(record, None).done
    assert place.path == f".spore/versions/{record.digest.hex()}"
    assert place.private
    assert bench.publish(record, None).done[0][1] == place


def test_what_is_not_complete_is_not_published(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(NEW)
    assert "not here completely" in _failure(bench.publish(record))
    bench.depot.reserve(1, [Parcel(record)])
    assert "not here completely" in _failure(bench.publish(record))
    assert not (bench.root / PATH).exists()


def test_a_small_file_that_was_torn_in_staging_is_not_published(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(b"small")
    (bench.store.staging / record.digest.hex()).write_bytes(b"smal\0")
    assert "not here completely" in _failure(bench.publish(record))


def test_the_older_version_gets_a_private_name_before_its_path_is_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    old = bench.arrive(OLD, record_of(OLD, hlc=1))
    bench.publish(old)
    new = bench.arrive(NEW, record_of(NEW, hlc=2))
    outcome = bench.publish(new)
    assert (bench.root / PATH).read_bytes() == NEW
    [(was, now)] = outcome.moved
    assert was == PATH
    assert now.path == f".spore/versions/{old.digest.hex()}"
    assert bench.read(old.digest) == OLD
    assert bench.withdrawn == []


def test_a_file_that_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.publish(bench.arrive(OLD))
    bench.write(PATH, b"a user's own work")
    new = bench.arrive(NEW)
    assert _failure(bench.publish(new)) == LOCAL_CHANGE
    assert (bench.root / PATH).read_bytes() == b"a user's own work"

    accepted = bench.depot.accept_file(PATH)
    assert accepted.place is not None
    bench.manifest.places[PATH] = accepted.place
    outcome = bench.publish(new)
    assert outcome.done
    assert bench.read(accepted.digest) == b"a user's own work"
    assert (bench.root / PATH).read_bytes() == NEW


@pytest.mark.parametrize("content", [b"unknown", bytes(len(NEW))], ids=["another size", "the same size"])
def test_a_file_nobody_knows_is_left_alone(tmp_path: Path, content: bytes) -> None:
    bench = Bench(tmp_path)
    bench.write(PATH, content)
    assert _failure(bench.publish(bench.arrive(NEW))) == LOCAL_CHANGE
    assert (bench.root / PATH).read_bytes() == content


def test_a_file_that_appears_in_the_last_moment_is_left_alone(tmp_path: Path) -> None:
    class Racing(FileLayer):
        def link(self, source: Path, target: Path) -> None:
            if target.name == "best.pth":
                target.write_bytes(b"just now")
            super().link(source, target)

    bench = Bench(tmp_path, Racing())
    record = bench.arrive(NEW)
    assert _failure(bench.publish(record)) == LOCAL_CHANGE
    assert (bench.root / PATH).read_bytes() == b"just now"
    assert not bench.depot.knows(PATH, stamp_of(os.stat(bench.root / PATH)))


def test_a_file_that_changes_while_it_makes_room_is_left_alone(tmp_path: Path) -> None:
    class Racing(FileLayer):
        armed = False

        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            if self.armed and target.parent.name == "versions":
                (tmp_path / "files" / PATH).unlink()
                (tmp_path / "files" / PATH).write_bytes(b"just now")

    racing = Racing()
    bench = Bench(tmp_path, racing)
    old = bench.arrive(OLD)
    bench.publish(old)
    new = bench.arrive(NEW)
    racing.armed = True
    assert _failure(bench.publish(new)) == LOCAL_CHANGE
    assert (bench.root / PATH).read_bytes() == b"just now"


def test_the_same_digest_at_the_same_path_is_done_already(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    first = bench.publish(record)
    assert bench.publish(record) == first


def test_one_digest_may_have_several_paths_each_a_file_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    outcome = bench.depot.publish([Publication(record, "models/a"), Publication(record, "models/b")])
    assert [place.path for _, place in outcome.done] == ["models/a", "models/b"]
    (bench.root / "models/a").write_bytes(b"changed")
    assert (bench.root / "models/b").read_bytes() == NEW


def test_two_versions_of_a_path_in_one_call_end_with_the_last(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    old, new = bench.arrive(OLD, record_of(OLD, hlc=1)), bench.arrive(NEW, record_of(NEW, hlc=2))
    outcome = bench.depot.publish([Publication(old, PATH), Publication(new, PATH)])
    assert len(outcome.done) == 2
    assert [path for path, _ in outcome.moved] == [PATH]
    assert (bench.root / PATH).read_bytes() == NEW
    assert bench.read(old.digest) == OLD


def test_bytes_that_stand_in_the_wal_are_published_from_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(b"in the log")
    bench.manifest.inline[record.digest] = b"in the log"
    assert bench.publish(record).done
    assert (bench.root / PATH).read_bytes() == b"in the log"
    assert bench.staged() == []


def test_a_damaged_copy_here_is_not_published_as_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    [(_, place)] = bench.publish(record, "models/a").done
    path = bench.root / "models/a"
    path.write_bytes(b"!" + NEW[1:])
    os.utime(path, ns=(place.mtime_ns, place.mtime_ns))
    assert "damaged" in _failure(bench.publish(record, "models/b"))
    assert not (bench.root / "models/b").exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_live_database_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    bench = Bench(tmp_path)
    bench.write(f"games/1.db{suffix}", b"sidecar")
    outcome = bench.publish(bench.arrive(NEW), "games/1.db")
    [(_, place)] = outcome.done
    assert place.private
    assert "live database" in outcome.notes[0]
    assert not (bench.root / "games/1.db").exists()


def test_a_snapshot_that_fails_its_check_is_refused(tmp_path: Path) -> None:
    checked = []

    def quick_check(path: Path) -> str | None:
        checked.append(path.read_bytes())
        return "page 3 is malformed" if len(checked) == 1 else None

    bench = Bench(tmp_path, quick_check=quick_check)
    record = bench.arrive(NEW, record_of(NEW, meta=(("snapshot", "sqlite"),)))
    assert "page 3 is malformed" in _failure(bench.publish(record, "games/1.db"))
    assert bench.publish(record, "games/1.db").done
    assert checked == [NEW, NEW]


@pytest.mark.parametrize(
    "path",
    [
        "../out",
        "/etc/passwd",
        "a/../../out",
        "a\0b",
        "x" * 300,
        "a//b",
        "",
        ".spore/store",
        ".spore/versions/x",
        "a/\udcff",
        "/".join(["deep"] * 300),
    ],
)
def test_paths_that_leave_the_root_or_are_ours_are_refused(tmp_path: Path, path: str) -> None:
    bench = Bench(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    _failure(bench.publish(bench.arrive(b"x"), path))
    after = sorted(p for p in tmp_path.rglob("*") if p.parent.name != "here")
    assert after == before


def test_links_are_never_followed_out_of_the_root(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (bench.root / "models").symlink_to(outside)
    (bench.root / "target").symlink_to(outside / "file")
    (bench.root / "file").write_bytes(b"x")
    record = bench.arrive(NEW)
    for path, why in (
        ("models/best.pth", "nothing is followed"),
        ("models/deep/best.pth", "nothing is followed"),
        ("target", "a link"),
        ("file/below", "nothing is followed"),
    ):
        assert why in _failure(bench.publish(record, path))
    assert list(outside.iterdir()) == []


def test_a_folder_exchanged_for_a_link_meanwhile_is_noticed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    class Racing(FileLayer):
        def link(self, source: Path, target: Path) -> None:
            if target.name == "best.pth":
                target.parent.rename(target.parent.with_name("gone"))
                target.parent.symlink_to(outside)
            super().link(source, target)

    bench = Bench(tmp_path, Racing())
    assert "nothing is followed" in _failure(bench.publish(bench.arrive(NEW)))


def test_many_files_cost_one_syncfs_and_one_sync_for_each_folder(tmp_path: Path) -> None:
    class Counting(FileLayer):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def fsync(self, fd: int) -> None:
            self.calls.append("fsync")
            super().fsync(fd)

        def syncfs(self, fd: int) -> None:
            self.calls.append("syncfs")
            super().syncfs(fd)

        def fsync_dir(self, path: Path) -> None:
            self.calls.append(f"folder {path.name}")
            super().fsync_dir(path)

    counting = Counting()
    bench = Bench(tmp_path, counting)
    (bench.root / "even").mkdir()
    (bench.root / "odd").mkdir()
    contents = [b"content %d" % n for n in range(SYNC_EACH_MAX + 4)]
    records = [record_of(content, f"npz/{n}") for n, content in enumerate(contents)]
    counting.calls.clear()
    assert bench.depot.arrive_small(list(zip(records, contents, strict=True))) == []
    assert counting.calls == []
    items = [Publication(record, f"{('even', 'odd')[n % 2]}/{n}") for n, record in enumerate(records)]
    assert len(bench.depot.publish(items).done) == len(items)
    assert counting.calls == ["syncfs", "folder even", "folder odd"]


@pytest.mark.parametrize("others", [0, 10_000])
def test_many_at_once_heed_what_lies_in_their_folder_however_much_it_is(tmp_path: Path, others: int) -> None:
    bench = Bench(tmp_path)
    for number in range(others):  # more than are worth listing
        bench.write(f"games/other{number}", b"")
    bench.write("games/1.db-wal", b"sidecar")
    bench.write("games/2.db", b"a user's")
    contents = [b"content %d" % number for number in range(SYNC_EACH_MAX + 4)]
    records = [record_of(content, f"npz/{number}.db") for number, content in enumerate(contents)]
    bench.depot.arrive_small(list(zip(records, contents, strict=True)))
    outcome = bench.depot.publish([Publication(record, f"games/{n}.db") for n, record in enumerate(records)])
    assert [record.name for record, why in outcome.failed if why == LOCAL_CHANGE] == ["npz/2.db"]
    assert [record.name for record, place in outcome.done if place.private] == ["npz/1.db"]
    assert len(outcome.done) == len(records) - 1
    assert (bench.root / "games/2.db").read_bytes() == b"a user's"
    assert not (bench.root / "games/1.db").exists()


def test_what_was_accepted_just_now_is_read_from_memory_and_nothing_else_is_asked(tmp_path: Path) -> None:
    def asked(_digest: bytes) -> None:
        raise AssertionError("neither the manifest nor the log is asked")

    record = record_of(b"accepted", "model/a")
    files = FileLayer()
    store = open_store(tmp_path / "files", "here", files)
    room = Room(RoomLimits(min_free_bytes=0), empty_disk)
    recent = {record.digest: b"accepted"}.get
    depot = Depot(store, room, Lookups(places_of=asked, inline_of=asked, recent_of=recent))  # type: ignore[arg-type]
    blob = depot.open_blob(record.digest)
    assert blob is not None
    assert whole(blob) == b"accepted"
    [(_, place)] = depot.publish([Publication(record, "models/a")]).done
    assert (store.root / place.path).read_bytes() == b"accepted"


def test_one_bad_item_does_not_stop_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    good, bad = record_of(b"good", "npz/good"), record_of(b"bad", "npz/bad")
    bench.depot.arrive_small([(good, b"good")])
    outcome = bench.depot.publish([Publication(bad, "b"), Publication(good, "../a"), Publication(good, "a")])
    assert [record.name for record, _ in outcome.done] == ["npz/good"]
    assert [record.name for record, _ in outcome.failed] == ["npz/bad", "npz/good"]


def test_a_scan_recognises_what_was_published_before_it_is_committed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    bench.depot.publish([Publication(record, PATH)])
    assert bench.depot.knows(PATH, stamp_of(os.stat(bench.root / PATH)))
    bench.write(PATH, b"changed")
    assert not bench.depot.knows(PATH, stamp_of(os.stat(bench.root / PATH)))


def test_no_scan_ever_sees_a_published_file_as_unknown(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Looking(FileLayer):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            if target.name == "best.pth":
                seen.append(bench.depot.knows(PATH, stamp_of(os.stat(target))))

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if target.name == "best.pth":
                seen.append(bench.depot.knows(PATH, stamp_of(os.stat(target))))

    bench = Bench(tmp_path, Looking())
    bench.publish(bench.arrive(OLD))
    bench.publish(bench.arrive(NEW))
    assert seen == [True, True]


def test_publications_from_several_threads_do_not_meet(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    records = [bench.arrive(some_bytes(1000, n), record_of(some_bytes(1000, n), f"m/{n}", hlc=n + 1)) for n in range(6)]
    outcomes: list[Outcome] = []

    def publish(record: object) -> None:
        outcomes.append(bench.depot.publish([Publication(record, PATH), Publication(record, None)]))  # type: ignore[arg-type]

    threads = [threading.Thread(target=publish, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.failed for outcome in outcomes] == [()] * 6
    for record in records:
        assert bench.read(record.digest) is not None


def test_publishing_into_a_shared_store_claims_the_file_for_all_members(tmp_path: Path) -> None:
    bench = Bench(tmp_path, node="node-a", shared=True)
    bench.publish(bench.arrive(NEW))
    other = Bench(tmp_path, node="node-b", shared=True)
    with pytest.raises(ClaimedElsewhere, match="node-a"):
        other.depot.accept_file(PATH)
    [(_, place)] = bench.publish(bench.arrive(OLD), None).done
    assert place.path.endswith(".node-a")


def test_what_another_member_published_makes_room_for_a_newer_version(tmp_path: Path) -> None:
    """Else a group whose members take turns at receiving would show the first version for ever."""
    first, second = (Bench(tmp_path, node=node, shared=True) for node in ("node-a", "node-b"))
    first.publish(first.arrive(OLD))
    outcome = second.publish(second.arrive(NEW))
    assert outcome.failed == ()
    assert (second.root / PATH).read_bytes() == NEW
    [(path, moved)] = outcome.moved
    assert (path, moved.private, (second.root / moved.path).read_bytes()) == (PATH, True, OLD)


def test_a_users_file_makes_room_once_the_member_that_accepted_it_has_recorded_it(tmp_path: Path) -> None:
    first, second = (Bench(tmp_path, node=node, shared=True) for node in ("node-a", "node-b"))
    (first.root / PATH).parent.mkdir(parents=True)
    (first.root / PATH).write_bytes(OLD)
    accepted = first.depot.accept_file(PATH)
    newer = second.arrive(NEW)
    assert _failure(second.publish(newer)) == LOCAL_CHANGE
    assert accepted.place is not None
    first.depot.recorded(accepted.place)
    assert second.publish(newer).failed == ()
    assert (second.root / PATH).read_bytes() == NEW


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("count", [1, SYNC_EACH_MAX + 1])
def test_a_call_that_fails_loses_nothing_and_the_next_publication_works(tmp_path: Path, code: int, count: int) -> None:
    verbs = {"open", "fsync", "syncfs", "fsync_dir", "rename", "link", "unlink", "mkdir", "fchmod", "pread", "pwrite"}
    for at in range(1, 400):
        failing = FailingFiles(verbs=verbs, at=10**9, code=code)
        bench = Bench(tmp_path / str(at), failing)
        old = bench.arrive(OLD, record_of(OLD, hlc=1))
        bench.publish(old)
        new = bench.arrive(NEW, record_of(NEW, hlc=2))
        contents = [b"small %d" % n for n in range(count - 1)]
        small = [record_of(content, f"npz/{n}") for n, content in enumerate(contents)]
        bench.depot.arrive_small(list(zip(small, contents, strict=True)))
        items = [Publication(new, PATH), *(Publication(r, f"training/{n}") for n, r in enumerate(small))]
        failing.at = failing.calls + 1 + at * (1 if count == 1 else 3)
        bench.manifest.commit(bench.depot.publish(items))
        if not failing.has_failed:
            return
        assert (bench.root / PATH).read_bytes() in (OLD, NEW)
        assert bench.read(old.digest) == OLD
        for record, content in zip(small, contents, strict=True):
            bench.arrive(content, record)
        with closing(bench.depot.partial(bench.arrive(NEW, new))) as again:
            assert again.complete, "what failed to sync can be brought again"
        outcome = bench.depot.publish(items)
        assert outcome.failed == ()
        assert (bench.root / PATH).read_bytes() == NEW
        assert bench.read(old.digest) == OLD
        assert bench.read(new.digest) == NEW
        bench.depot.close()
    pytest.fail("a publication needs fewer calls")


def test_a_blob_is_refused_once_its_file_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    [(_, place)] = bench.publish(record).done
    blob = bench.depot.open_blob(record.digest)
    assert blob is not None
    blob.check()
    with open(bench.root / PATH, "r+b") as user:
        user.write(b"!")
        user.truncate(CHUNK_BYTES)
    with pytest.raises(BlobChanged, match="changed after it was accepted"):
        blob.check()
    with pytest.raises(BlobChanged, match="shorter"):
        blob.read_into(memoryview(bytearray(CHUNK_BYTES)), CHUNK_BYTES)
    blob.close()
    assert [withdrawn for withdrawn, _ in bench.withdrawn] == [place, place]
    assert bench.depot.open_blob(record.digest) is None


def test_a_blob_reads_any_range(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    bench.publish(record)
    bench.manifest.inline[record_of(b"inline").digest] = b"inline"
    for digest, content in ((record.digest, NEW), (record_of(b"inline").digest, b"inline")):
        blob = bench.depot.open_blob(digest)
        assert blob is not None
        for offset, length in ((0, 3), (len(content) - 2, 10), (len(content), 5), (len(content) + 9, 5)):
            view = bytearray(length)
            count = blob.read_into(memoryview(view), offset)
            assert bytes(view[:count]) == content[offset : offset + length]
        blob.close()


def test_a_place_that_is_not_true_is_withdrawn_and_the_next_one_serves(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    bench.publish(record, "models/a")
    bench.publish(record, "models/b")
    (bench.root / "models/a").unlink()
    assert bench.read(record.digest) == NEW
    assert [place.path for place, _ in bench.withdrawn] == ["models/a"]


def test_verify_finds_bit_rot_and_leaves_are_found_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    [(_, place)] = bench.publish(record).done
    leaves = bench.manifest.leaves.pop(record.digest)
    assert bench.depot.leaves(record.digest) == leaves
    assert bench.depot.verify(place) == ""
    (bench.root / PATH).write_bytes(b"!" + NEW[1:])
    os.utime(bench.root / PATH, ns=(place.mtime_ns, place.mtime_ns))
    assert "damaged" in bench.depot.verify(place)
    assert [withdrawn for withdrawn, _ in bench.withdrawn] == [place]
    bench.manifest.leaves.clear()
    assert bench.depot.leaves(record.digest) is None


def test_only_files_that_are_still_ours_are_unlinked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    [(_, mine)] = bench.publish(bench.arrive(OLD), "models/mine").done
    [(_, theirs)] = bench.publish(bench.arrive(NEW), "models/theirs").done
    bench.write("models/theirs", b"a user's work")
    gone = replace(mine, path="models/never")
    outside = replace(mine, path="../files/models/mine")
    stayed = bench.depot.unlink([theirs, gone, outside, mine])
    assert "stays" in stayed[0]
    assert len(stayed) == 2
    assert sorted(os.listdir(bench.root / "models")) == ["theirs"]
    assert bench.depot.unlink([mine]) == ()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_unlink_says_so_and_can_be_repeated(tmp_path: Path, code: int) -> None:
    for verb in ("unlink", "fsync_dir", "lstat"):
        failing = FailingFiles(verbs={verb}, at=10**9, code=code)
        bench = Bench(tmp_path / verb, failing)
        [(_, place)] = bench.publish(bench.arrive(OLD)).done
        failing.at = failing.calls + 1
        assert len(bench.depot.unlink([place])) == 1
        assert bench.depot.unlink([place]) == ()
        assert not (bench.root / PATH).exists()


def test_what_a_crash_left_under_the_final_name_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    """Killed between the rename and the commit of its place: the same bytes come again, and no user wrote them."""
    bench = Bench(tmp_path)
    record = bench.arrive(NEW)
    bench.depot.publish([Publication(record, PATH)])  # nothing of it reaches the manifest
    after = Bench(tmp_path, manifest=bench.manifest)
    [(_, place)] = after.publish(after.arrive(NEW, record)).done
    assert (place.path, place.digest) == (PATH, record.digest)
    assert (after.root / PATH).read_bytes() == NEW


def test_what_a_crash_left_where_nobody_but_us_writes_makes_room_and_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = "peers/b/games/live.db"
    older = bench.arrive(OLD)
    bench.depot.publish([Publication(older, path)])
    after = Bench(tmp_path, manifest=bench.manifest)
    outcome = after.publish(after.arrive(NEW), path)
    assert (after.root / path).read_bytes() == NEW
    [(moved_from, kept)] = outcome.moved
    assert (moved_from, kept.digest) == (path, older.digest)
    assert after.read(older.digest) == OLD


def test_a_referenced_file_that_made_room_just_before_a_crash_is_found_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(PATH, OLD)
    accepted = bench.depot.accept_file(PATH, copy_max_bytes=0)
    if not isinstance(accepted.source, Referenced):
        accepted = replace(accepted, source=Referenced(accepted.place))  # this file system makes reflinks
    entry = Entry(record_of(OLD), accepted.source)
    assert bench.depot.followed([entry]) == (entry,)
    assert accepted.place is not None
    bench.manifest.places[PATH] = accepted.place
    bench.depot.publish([Publication(bench.arrive(NEW), PATH)])  # and nothing of it is committed
    (followed,) = Bench(tmp_path).depot.followed([entry])
    assert isinstance(followed.source, Kept)
    assert (bench.root / followed.source.place.path).read_bytes() == OLD
