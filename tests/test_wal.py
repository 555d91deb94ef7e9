"""The write-ahead log through its front door: groups, releases, room, bounds, threads."""

import threading
from pathlib import Path

import pytest

from storage.files import FileLayer
from storage.wal import (
    ENTRY_BYTES_MAX,
    Wal,
    WalDamaged,
    WalEntryNotLive,
    WalEntryTooLarge,
    WalFull,
    WalUsage,
)

SMALL = {"segment_bytes": 4096, "size_bytes_max": 64 * 1024}


def open_small(folder: Path, **bounds: int) -> Wal:
    return Wal.open(folder / "wal", FileLayer(), **{**SMALL, **bounds})


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "wal").glob("*.wal"))


def test_entries_come_back_in_order_before_and_after_a_restart(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    entries = [b"one", b"", b"three" * 100, bytes(range(256))]
    ids = wal.append(entries)
    wal.sync()
    assert ids == sorted(ids)
    assert list(wal.live()) == list(zip(ids, entries, strict=True))
    wal.close()
    again = open_small(tmp_path)
    assert list(again.live()) == list(zip(ids, entries, strict=True))
    assert again.recovered.live_entries == 4
    assert again.recovered.reports == ()
    again.close()


def test_an_empty_log_opens_makes_its_folder_and_writes_no_segment(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    assert wal.usage() == WalUsage(bytes=0, live_bytes=0, live_entries=0, segments=0)
    assert wal.append([]) == []
    wal.sync()
    wal.release([1, 2, 3])
    assert not wal.compact()
    assert segments(tmp_path) == []
    wal.close()


def test_a_group_is_one_write_and_one_sync(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counting(FileLayer):
        def writev(self, fd, buffers):  # type: ignore[no-untyped-def]
            calls.append("write")
            return super().writev(fd, buffers)

        def fdatasync(self, fd: int) -> None:
            calls.append("sync")
            super().fdatasync(fd)

    wal = Wal.open(tmp_path / "wal", Counting())
    wal.append([b"the first append begins a segment"])
    wal.sync()
    calls.clear()
    ids = wal.append([b"entry"] * 5000)
    wal.sync()
    wal.sync()
    assert calls == ["write", "sync"]
    assert len(ids) == 5000
    wal.close()


def test_a_released_entry_is_gone_and_stays_gone(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    kept, released = wal.append([b"kept", b"released"])
    wal.sync()
    wal.release([released, released, 12345])
    with pytest.raises(WalEntryNotLive, match="is not live"):
        wal.read(released)
    assert list(wal.live()) == [(kept, b"kept")]
    wal.close()
    again = open_small(tmp_path)
    assert list(again.live()) == [(kept, b"kept")]
    again.close()


def test_many_releases_at_once_fit_their_frames(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "wal", FileLayer())
    ids = wal.append([b"x"] * 40_000)  # more than one release frame can name
    wal.release(ids[1:])
    wal.close()
    again = Wal.open(tmp_path / "wal", FileLayer())
    assert list(again.live()) == [(ids[0], b"x")]
    again.close()


def test_an_entry_above_the_bound_is_refused_and_nothing_of_its_group_is_written(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "wal", FileLayer())
    with pytest.raises(WalEntryTooLarge, match="131073 bytes is above the bound of 131072"):
        wal.append([b"small", bytes(ENTRY_BYTES_MAX + 1)])
    assert list(wal.live()) == []
    largest = wal.append([bytes(ENTRY_BYTES_MAX)])
    assert len(wal.read(largest[0])) == ENTRY_BYTES_MAX
    wal.close()


def test_an_entry_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    ids = wal.append([b"a", b"b" * 9000, b"c"])
    assert [payload[:1] for _, payload in wal.live()] == [b"a", b"b", b"c"]
    assert wal.usage().segments == 3
    wal.close()
    again = open_small(tmp_path)
    assert [entry_id for entry_id, _ in again.live()] == ids
    again.close()


def test_ids_rise_and_are_never_used_twice_even_when_everything_was_released(tmp_path: Path) -> None:
    seen: list[int] = []
    for restart in range(5):
        wal = open_small(tmp_path)
        ids = wal.append([b"x" * 500] * 10)
        seen += ids
        wal.sync()
        wal.release(ids)
        while wal.compact():
            pass
        if restart % 2:
            wal.append([b"handed out, never synced"])
            seen.append(wal.append([b"and another"])[0])
            continue  # killed: not closed
        wal.close()
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)


def test_the_size_bound_pushes_back_with_a_sentence_and_release_makes_room(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    ids: list[int] = []
    while wal.room(1000):
        ids += wal.append([b"x" * 1000])
    with pytest.raises(WalFull, match="undelivered entries"):
        wal.append([b"x" * 1000])
    assert wal.usage().bytes <= SMALL["size_bytes_max"]
    assert [entry_id for entry_id, _ in wal.live()] == ids, "a refused append leaves the rest alone"
    wal.release(ids[: len(ids) // 2])
    while wal.compact():
        pass
    assert wal.room(1000)
    wal.append([b"x" * 1000])
    wal.close()


def test_a_group_that_does_not_fit_whole_is_refused_whole(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    with pytest.raises(WalFull):
        wal.append([b"x" * 1000] * 100)
    assert wal.usage().live_entries == 0
    wal.close()


def test_the_number_of_entries_is_bounded_too(tmp_path: Path) -> None:
    wal = open_small(tmp_path, entries_max=3)
    ids = wal.append([b"1", b"2", b"3"])
    assert not wal.room(1)
    with pytest.raises(WalFull, match="3 undelivered entries"):
        wal.append([b"4"])
    wal.release(ids[:1])
    assert wal.room(1)
    wal.close()


@pytest.mark.parametrize(
    "bounds",
    [{"segment_bytes": 100}, {"segment_bytes": 65536, "size_bytes_max": 65536}, {"entries_max": 0}],
)
def test_bounds_that_cannot_work_are_refused_with_a_sentence(bounds: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot work"):
        open_small(tmp_path, **bounds)


def test_one_undeliverable_entry_does_not_pin_the_log(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    stuck = wal.append([b"nobody can take this"])[0]
    for _ in range(200):
        ids = wal.append([b"x" * 900] * 3)
        wal.sync()
        wal.release(ids)
        while wal.compact():
            pass
    assert wal.usage().segments <= 3
    assert len(segments(tmp_path)) == wal.usage().segments
    assert list(wal.live()) == [(stuck, b"nobody can take this")]
    wal.close()
    again = open_small(tmp_path)
    assert list(again.live()) == [(stuck, b"nobody can take this")]
    again.close()


def test_a_log_that_is_full_of_scattered_live_entries_can_still_be_compacted(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    ids: list[int] = []
    while wal.room(300):
        ids += wal.append([b"x" * 300])
    wal.release(ids[::4])  # a quarter of each segment: none of them is mostly dead
    while wal.compact():
        pass
    assert wal.room(300)
    assert [entry_id for entry_id, _ in wal.live()] == [entry_id for at, entry_id in enumerate(ids) if at % 4]
    wal.close()


def test_compaction_has_nothing_to_do_when_everything_is_live(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    wal.append([b"x" * 900] * 20)
    assert not wal.compact()
    wal.close()


def test_many_restarts_do_not_pile_up_segments(tmp_path: Path) -> None:
    ids: list[int] = []
    for _ in range(120):
        wal = open_small(tmp_path)
        ids += wal.append([b"one more" * 30])  # more than its segment's other frames: nothing is mostly dead
        while wal.compact():
            pass
        wal.close()
    assert len(segments(tmp_path)) < 60
    wal = open_small(tmp_path)
    assert [entry_id for entry_id, _ in wal.live()] == ids
    wal.close()


def test_one_step_of_compaction_copies_a_bounded_amount(tmp_path: Path) -> None:
    written: list[int] = []

    class Weighing(FileLayer):
        def writev(self, fd, buffers):  # type: ignore[no-untyped-def]
            written.append(super().writev(fd, buffers))
            return written[-1]

    wal = Wal.open(tmp_path / "wal", Weighing(), segment_bytes=16 << 20)
    ids = wal.append([bytes(100_000)] * 400)
    wal.release(ids[::2])
    wal.release(ids[1::10])
    steps = 0
    while True:
        written.clear()
        if not wal.compact():
            break
        steps += 1
        assert sum(written) <= (4 << 20) + 1000
    assert steps > 2
    assert wal.usage().live_entries == 160
    wal.close()


def test_an_entry_that_rots_while_the_log_is_open_is_reported_and_holds_up_nobody(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    good, rotten, also_good = wal.append([b"good", b"rotten", b"also good"])
    wal.append([b"x" * 3000] * 2)
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b"rotten", b"rOtten"))
    with pytest.raises(WalDamaged, match="is damaged"):
        wal.read(rotten)
    assert [payload for _, payload in wal.live()][:2] == [b"good", b"also good"]
    wal.release([entry_id for entry_id, payload in wal.live() if len(payload) > 100])
    while wal.compact():
        pass
    assert list(wal.live()) == [(good, b"good"), (also_good, b"also good")]
    assert list(wal.damaged()) == [rotten]
    assert "copied to quarantine/" in wal.damaged()[rotten]
    assert b"rOtten" in next((tmp_path / "wal" / "quarantine").iterdir()).read_bytes()
    wal.close()


def test_readers_in_other_threads_see_each_entry_whole_while_the_writer_compacts(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    stop = threading.Event()
    troubles: list[BaseException] = []
    reads: list[int] = []

    def read_all() -> None:
        try:
            while not stop.is_set():
                reads.extend(len(payload) for _, payload in wal.live() if payload != payload[:1] * len(payload))
                reads.append(0)
        except BaseException as trouble:
            troubles.append(trouble)

    readers = [threading.Thread(target=read_all) for _ in range(3)]
    for reader in readers:
        reader.start()
    kept = wal.append([bytes([65]) * 50])
    for turn in range(150):
        ids = wal.append([bytes([turn % 250 + 1]) * 700] * 4)
        wal.sync()
        wal.release(ids)
        wal.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert troubles == []
    assert wal.damaged() == {}
    assert reads
    assert not any(reads)
    assert [entry_id for entry_id, _ in wal.live()] == kept
    wal.close()


def test_a_closed_log_refuses_with_a_sentence_and_closes_twice(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    ids = wal.append([b"x"])
    wal.close()
    wal.close()
    for call in (lambda: wal.append([b"y"]), wal.sync, wal.compact, lambda: wal.release(ids)):
        with pytest.raises(ValueError, match="is closed"):
            call()
    with pytest.raises(WalEntryNotLive):
        wal.read(ids[0])
