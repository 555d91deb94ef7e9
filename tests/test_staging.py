"""Staging through the depot: chunks verified before they are written, progress that survives, room kept in bounds."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chunks import CHUNK_BYTES
from protocol.values import Parcel, Record, Stripe
from storage.chunkmap import Marks, decode_map, encode_map
from storage.depot import NOTHING_MISSING
from storage.files import FileLayer
from storage.partials import MARK_CHUNKS
from storage.refusals import NotReserved, StorageFailed, WrongBytes
from storage.room import DiskUsage, RoomLimits
from storage.staging import QUIET_SECONDS, STALE_SECONDS
from tests.depots import Bench, Manifest, chunks_of, hashed, record_of, some_bytes
from tests.recording import FailingFiles

BIG = some_bytes(5 * CHUNK_BYTES + 7)


class CountingFiles(FileLayer):
    """Counts the bytes read back and the syncs."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.synced = 0

    def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
        piece = super().pread(fd, size_bytes, offset)
        self.read_bytes += len(piece) if size_bytes >= CHUNK_BYTES else 0
        return piece

    def fdatasync(self, fd: int) -> None:
        self.synced += 1
        super().fdatasync(fd)


def test_chunks_come_in_any_order_and_make_the_artifact(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    assert bench.depot.reserve(1, [Parcel(record)]).missing == ((),)
    partial = bench.depot.partial(record)
    assert not partial.leaves_known
    partial.set_leaves(hashed(BIG)[2])
    for index in (5, 0, 3, 1):
        partial.write_chunk(index, chunks_of(BIG)[index])
    assert partial.missing() == (Stripe(2, 1), Stripe(4, 1))
    assert not partial.complete
    for index in (4, 2):
        partial.write_chunk(index, memoryview(chunks_of(BIG)[index]))
    assert partial.complete
    assert partial.missing() == ()
    partial.close()
    assert bench.publish(record).done
    assert bench.read(record.digest) == BIG


def test_wrong_chunks_lists_and_lengths_are_refused_and_leave_no_byte(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    leaves = hashed(BIG)[2]
    with pytest.raises(WrongBytes, match="came before its chunk list"):
        partial.write_chunk(0, chunks_of(BIG)[0])
    for wrong in (leaves[:-1], leaves[::-1], [*leaves, leaves[0]], []):
        with pytest.raises(WrongBytes, match="chunk list"):
            partial.set_leaves(wrong)
    partial.set_leaves(leaves)
    with pytest.raises(WrongBytes, match="not what its digest says"):
        partial.write_chunk(0, chunks_of(BIG)[1])
    for index, chunk in ((0, b"short"), (-1, chunks_of(BIG)[0]), (6, b""), (5, chunks_of(BIG)[0])):
        with pytest.raises(WrongBytes, match="not its length"):
            partial.write_chunk(index, chunk)
    assert partial.missing() == (Stripe(0, 6),)
    partial.close()
    assert set((bench.store.staging / record.digest.hex()).read_bytes()) == {0}


@pytest.mark.parametrize("content", [b"", b"x", some_bytes(CHUNK_BYTES)])
def test_small_artifacts_need_neither_list_nor_map(tmp_path: Path, content: bytes) -> None:
    bench = Bench(tmp_path)
    record = record_of(content)
    wrong = record_of(content + b"!" if len(content) < CHUNK_BYTES else b"!" + content[1:], "model/other")
    failed = bench.depot.arrive_small([(record, content), (replace(wrong, size=len(content)), content)])
    assert [(r.name, "not those of its digest" in why) for r, why in failed] == [("model/other", True)]
    assert bench.depot.reserve(1, [Parcel(record)]).missing == (NOTHING_MISSING,)
    assert bench.depot.partial(record).complete
    assert bench.staged() == [record.digest.hex()]
    assert bench.publish(record).done
    assert bench.read(record.digest) == content


def test_a_small_artifact_may_come_as_its_one_chunk(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(b"tiny")
    assert bench.depot.reserve(1, [Parcel(record)]).missing == ((),)
    partial = bench.depot.partial(record)
    assert partial.missing() == (Stripe(0, 1),)
    with pytest.raises(WrongBytes):
        partial.write_chunk(0, b"tinY")
    with pytest.raises(WrongBytes):
        partial.write_chunk(1, b"tiny")
    partial.write_chunk(0, b"tiny")
    assert partial.complete


def test_after_a_restart_nothing_that_was_marked_is_hashed_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    for index in (0, 1, 4):
        partial.write_chunk(index, chunks_of(BIG)[index])
    partial.close()

    counting = CountingFiles()
    again = Bench(tmp_path, counting)
    again.depot.sweep()
    reservation = again.depot.reserve(9, [Parcel(record)])
    assert reservation.missing == ((Stripe(2, 2), Stripe(5, 1)),)
    assert counting.read_bytes == 0
    resumed = again.depot.partial(record)
    assert resumed.leaves_known
    for index in (2, 3, 5):
        resumed.write_chunk(index, chunks_of(BIG)[index])
    resumed.close()
    assert again.publish(record).done
    assert again.read(record.digest) == BIG


def test_a_killed_process_loses_no_chunk_that_was_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)  # never closed: what it held open dies with the process
    partial.set_leaves(hashed(BIG)[2])
    for index in (1, 3):
        partial.write_chunk(index, chunks_of(BIG)[index])

    counting = CountingFiles()
    again = Bench(tmp_path, counting)
    assert again.depot.reserve(1, [Parcel(record)]).missing == ((Stripe(0, 1), Stripe(2, 1), Stripe(4, 2)),)
    assert counting.read_bytes == 2 * CHUNK_BYTES
    bench.depot._staging._open[record.digest].release()  # type: ignore[attr-defined]


def test_a_hint_whose_chunk_is_not_there_is_not_believed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    partial.close()
    hints = bench.store.staging / f"{record.digest.hex()}.hints"
    assert not hints.exists()
    hints.write_bytes(b"\x01\0\0\0\xff\xff\xff\xff\x02\0")
    assert bench.depot.reserve(1, [Parcel(record)]).missing == ((),)


def test_marks_follow_a_sync_at_most_64_mib_apart(tmp_path: Path) -> None:
    content = bytes((MARK_CHUNKS + 6) * CHUNK_BYTES)
    counting = CountingFiles()
    bench = Bench(tmp_path, counting)
    record = record_of(content)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(content)[2])
    chunk = bytes(CHUNK_BYTES)
    map_path = bench.store.staging / f"{record.digest.hex()}.map"
    before = counting.synced
    for index in range(MARK_CHUNKS - 1):
        partial.write_chunk(index, chunk)
    assert not map_path.exists()
    assert counting.synced == before
    partial.write_chunk(MARK_CHUNKS - 1, chunk)
    marks = decode_map(map_path.read_bytes(), record.digest, record.size)
    assert marks is not None
    assert marks.missing() == (Stripe(MARK_CHUNKS, 6),)
    partial.close()


def test_a_map_is_not_believed_for_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    partial.write_chunk(0, chunks_of(BIG)[0])
    partial.close()
    (bench.store.staging / record.digest.hex()).unlink()
    assert Bench(tmp_path).depot.reserve(1, [Parcel(record)]).missing == ((),)


def test_several_threads_may_bring_the_same_chunks(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])

    def bring() -> None:
        partial = bench.depot.partial(record)
        partial.set_leaves(hashed(BIG)[2])
        for index, chunk in enumerate(chunks_of(BIG)):
            partial.write_chunk(index, chunk)
        partial.close()

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.publish(record).done
    assert bench.read(record.digest) == BIG
    assert bench.staged() == []


def test_a_writer_that_comes_late_does_not_touch_the_published_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(BIG)
    late = bench.depot.partial(record)
    place = bench.publish(record).done[0][1]
    late.write_chunk(0, chunks_of(BIG)[0])
    late.close()
    assert bench.depot.verify(place) == ""
    assert bench.read(record.digest) == BIG
    assert bench.staged() == []


def test_bytes_without_a_reservation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReserved, match="reserve it before"):
        Bench(tmp_path).depot.partial(record_of(BIG))


def test_a_record_that_lies_about_its_size_does_not_cost_the_progress_of_the_true_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    partial.write_chunk(0, chunks_of(BIG)[0])
    partial.close()
    liar = replace(record, size=record.size + CHUNK_BYTES)
    assert "proves otherwise" in bench.depot.reserve(2, [Parcel(liar)]).refused[0]
    assert bench.depot.reserve(1, [Parcel(record)]).missing == ((Stripe(1, 5),),)


def test_only_the_missing_part_of_the_stripes_offered_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    partial.write_chunk(1, chunks_of(BIG)[1])
    partial.close()
    reserve = bench.depot.reserve
    assert reserve(1, [Parcel(record, (Stripe(0, 3),))]).missing == ((Stripe(0, 1), Stripe(2, 1)),)
    assert reserve(1, [Parcel(record, (Stripe(1, 1),))]).missing == (NOTHING_MISSING,)


def test_room_is_allocated_before_a_byte_comes_and_a_full_disk_refuses(tmp_path: Path) -> None:
    bench = Bench(tmp_path, usage=lambda: DiskUsage(0, 10 * CHUNK_BYTES))
    record = record_of(BIG)
    other = record_of(some_bytes(5 * CHUNK_BYTES, 2), "model/other")
    reservation = bench.depot.reserve(1, [Parcel(record), Parcel(other)])
    assert reservation.refused[0] == ""
    assert "its cap is 70%" not in reservation.refused[0]
    allocated = os.stat(bench.store.staging / record.digest.hex())
    assert allocated.st_size == record.size
    assert allocated.st_blocks * 512 >= record.size
    assert bench.room.state().reserved_bytes in (0, 0 if reservation.refused[1] else 5 * CHUNK_BYTES)


def test_a_refused_parcel_leaves_nothing_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, usage=lambda: DiskUsage(6 * CHUNK_BYTES, 4 * CHUNK_BYTES))
    small = record_of(b"small", "model/small")
    reservation = bench.depot.reserve(1, [Parcel(record_of(BIG)), Parcel(small)])
    assert "its cap is 70%" in reservation.refused[0]
    assert reservation.refused[1] == ""
    assert bench.staged() == []
    bench.depot.unreserve(1)
    assert bench.room.state().reserved_bytes == 0


def test_staging_is_bounded_and_the_oldest_leftovers_make_room(tmp_path: Path) -> None:
    bench = Bench(tmp_path, staging_bytes_max=2 * len(BIG))
    records = [record_of(some_bytes(len(BIG), seed), f"model/{seed}") for seed in range(4)]
    for record in records[:2]:
        assert bench.depot.reserve(1, [Parcel(record)]).refused == ("",)
    assert "staging holds its limit" in bench.depot.reserve(1, [Parcel(records[2])]).refused[0]
    _age(bench, records[0].digest.hex(), QUIET_SECONDS + 60)
    assert bench.depot.reserve(1, [Parcel(records[2])]).refused == ("",)
    assert bench.staged() == sorted(record.digest.hex() for record in records[1:3])


def test_the_sweep_at_start_clears_drafts_and_what_nobody_resumed_for_a_week(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    old, new = (record_of(some_bytes(len(BIG), seed), f"model/{seed}") for seed in range(2))
    bench.depot.reserve(1, [Parcel(old), Parcel(new)])
    for name in ("draft-7", f"{new.digest.hex()}.map.new", f"{'0' * 64}.map"):
        (bench.store.staging / name).write_bytes(b"left over")
    _age(bench, old.digest.hex(), STALE_SECONDS + 60)
    bench.depot.close()

    again = Bench(tmp_path)
    assert again.depot.sweep() == len(BIG)
    assert again.staged() == [new.digest.hex()]


def _private(bench: Bench, content: bytes) -> tuple[Record, Path]:
    record = bench.arrive(content, record_of(content))
    [(_, place)] = bench.publish(record, None).done
    return record, bench.root / place.path


def test_the_sweep_at_start_removes_old_private_versions_that_nothing_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, shared=True)
    (_, named), (_, pending), (_, orphan) = (_private(bench, some_bytes(100, seed)) for seed in range(3))
    names = {path: str(path.relative_to(bench.root)) for path in (named, pending, orphan)}
    foreign = [orphan.with_suffix(".there"), orphan.with_suffix(".x.here"), orphan.with_suffix(""), orphan.parent / "x"]
    for path in foreign:
        path.write_bytes(b"of another member, or of nobody we know")
    places = {names[named]: bench.manifest.places[names[named]]}

    def next_life(manifest: Manifest) -> Bench:
        return Bench(tmp_path, shared=True, manifest=manifest)

    keep = {names[pending]}
    assert next_life(Manifest(places)).depot.sweep(keep=keep) == 0, "it is too young"
    monkeypatch.setattr("storage.private.ORPHAN_SECONDS", 0.0)
    assert next_life(Manifest()).depot.sweep(keep=keep) == 0, "the manifest was rebuilt and proves nothing"
    assert next_life(Manifest(places)).depot.sweep() == 0, "what the log still needs is not known"
    assert next_life(Manifest(places)).depot.sweep(starting=False, keep=keep) == 0, "only the last life's are orphans"
    assert orphan.exists()

    assert next_life(Manifest(places)).depot.sweep(keep=keep) == 100
    assert sorted(path.name for path in bench.store.versions.iterdir()) == sorted(
        path.name for path in (named, pending, *foreign)
    )


def test_a_private_version_that_a_put_counts_on_is_no_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.private.ORPHAN_SECONDS", 0.0)
    bench = Bench(tmp_path)
    _private(bench, BIG[:100])
    digest = bench.depot.accept_bytes(BIG).digest
    assert bench.depot.sweep(keep=()) == 0
    assert bench.read(digest) == BIG


def test_a_small_artifact_that_was_only_fetched_is_forgotten_when_the_get_ends(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    small, large = bench.arrive(b"small", record_of(b"small")), bench.arrive(BIG, transfer=2)
    for record in (small, large):
        bench.depot.forget_staged(record)
    assert bench.depot.open_staged(small) is None
    assert all(name.startswith(large.digest.hex()) for name in bench.staged())
    assert bench.publish(large).done
    bench.depot.forget_staged(large)
    bench.depot.forget_staged(small)
    assert bench.read(large.digest) == BIG


def _age(bench: Bench, stem: str, seconds: float) -> None:
    for path in bench.store.staging.glob(f"{stem}*"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails_while_bytes_arrive_loses_nothing_and_the_next_one_works(tmp_path: Path, code: int) -> None:
    verbs = {
        "open",
        "pwrite",
        "writev",
        "write",
        "fdatasync",
        "fsync_dir",
        "rename",
        "fallocate",
        "ftruncate",
        "unlink",
    }
    for at in range(1, 80):
        failing = FailingFiles(verbs=verbs, at=10**9, code=code)
        bench = Bench(tmp_path / str(at), failing)
        failing.at = failing.calls + at
        record = record_of(BIG)
        _try_to_bring(bench, record)
        if not failing.has_failed:
            return
        assert _try_to_bring(bench, record)
        assert bench.publish(record).done
        assert bench.read(record.digest) == BIG
    pytest.fail("an arrival needs fewer than 80 calls")


def _try_to_bring(bench: Bench, record: Record) -> bool:
    refused = bench.depot.reserve(1, [Parcel(record)]).refused[0]
    if refused:
        assert "\n" not in refused
        return False
    try:
        partial = bench.depot.partial(record)
    except StorageFailed:
        return False
    try:
        partial.set_leaves(hashed(BIG)[2])
        for stripe in partial.missing():
            for index in range(stripe.first, stripe.first + stripe.count):
                partial.write_chunk(index, chunks_of(BIG)[index])
                partial.mark() if index == 2 else None  # type: ignore[attr-defined]
    except StorageFailed:
        return False
    finally:
        partial.close()
    return partial.complete


def test_after_a_failed_sync_what_was_not_marked_counts_as_missing(tmp_path: Path) -> None:
    failing = FailingFiles(verbs={"fdatasync"}, at=10**9, code=errno.EIO)
    bench = Bench(tmp_path, failing)
    record = record_of(BIG)
    bench.depot.reserve(1, [Parcel(record)])
    partial = bench.depot.partial(record)
    partial.set_leaves(hashed(BIG)[2])
    partial.write_chunk(0, chunks_of(BIG)[0])
    partial.mark()  # type: ignore[attr-defined]
    partial.write_chunk(1, chunks_of(BIG)[1])
    failing.at = failing.calls + 1
    with pytest.raises(StorageFailed, match="input/output error"):
        partial.mark()  # type: ignore[attr-defined]
    assert partial.missing() == (Stripe(1, 5),)
    partial.close()


def test_a_node_over_its_cap_takes_nothing_even_if_it_would_fit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, usage=lambda: None, limits=RoomLimits())
    assert "cannot be measured" in bench.depot.reserve(1, [Parcel(record_of(b"x"))]).refused[0]


@given(st.integers(1, 200), st.sets(st.integers(0, 199)))
def test_a_map_reads_back_as_it_was_written(total: int, chosen: set[int]) -> None:
    marks = Marks(total)
    for index in sorted(chosen):
        if index < total:
            marks.add(index)
    size = total * CHUNK_BYTES
    read = decode_map(encode_map(b"d" * 32, size, marks), b"d" * 32, size)
    assert read is not None
    assert read.bits == marks.bits
    assert read.count == marks.count
    assert sum(stripe.count for stripe in read.missing()) == total - marks.count


@given(st.integers(0, 8 * 60), st.binary(max_size=80))
def test_a_damaged_map_counts_as_no_map(bit: int, noise: bytes) -> None:
    size = 20 * CHUNK_BYTES
    content = bytearray(encode_map(b"d" * 32, size, Marks(20, b"\xff\x01\x08")))
    content[bit // 8 % len(content)] ^= 1 << (bit % 8)
    assert decode_map(bytes(content), b"d" * 32, size) is None
    assert decode_map(noise, b"d" * 32, size) is None
    assert decode_map(encode_map(b"e" * 32, size, Marks(20)), b"d" * 32, size) is None
