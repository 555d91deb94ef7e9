"""What the write-ahead log makes of a damaged disk: it starts, keeps every intact entry, and says what is wrong."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest

from storage import wal_recovery
from storage.files import FileLayer
from storage.wal import Wal
from tests.recording import FailingFiles

SMALL = {"segment_bytes": 4096, "size_bytes_max": 256 * 1024}
HEADER_BYTES = 24  # docs/formats.md


def open_small(folder: Path, files: FileLayer | None = None) -> Wal:
    folder.mkdir(exist_ok=True)
    return Wal.open(folder / "wal", files or FileLayer(), **SMALL)


def write_log(folder: Path, *groups: list[bytes]) -> dict[int, bytes]:
    """Write and close a log, each group synced; returns all its entries."""
    wal = open_small(folder)
    written: dict[int, bytes] = {}
    for group in groups:
        written |= dict(zip(wal.append(group), group, strict=True))
        wal.sync()
    wal.close()
    return written


def live_of(folder: Path, files: FileLayer | None = None) -> tuple[dict[int, bytes], Wal]:
    wal = open_small(folder, files)
    live = dict(wal.live())
    wal.close()
    return live, wal


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "wal").glob("*.wal"))


def quarantined(folder: Path) -> list[Path]:
    return sorted((folder / "wal" / "quarantine").iterdir())


def flip(path: Path, at: int, bits: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def without(entries: dict[int, bytes], payload: bytes) -> dict[int, bytes]:
    return {entry_id: other for entry_id, other in entries.items() if other != payload}


def test_a_tail_torn_at_any_byte_of_the_last_group_is_cut_and_the_rest_survives(tmp_path: Path) -> None:
    first = write_log(tmp_path / "whole", [b"first", b"second"])
    kept_bytes = segments(tmp_path / "whole")[0].stat().st_size
    wal = open_small(tmp_path / "other")
    wal.append([b"first", b"second"])
    last = [b"third" * 5, b"", b"fourth"]
    wal.append(last)
    wal.close()
    whole = segments(tmp_path / "other")[0].read_bytes()
    for length in range(kept_bytes, len(whole)):
        folder = tmp_path / str(length)
        shutil.copytree(tmp_path / "other", folder)
        os.truncate(segments(folder)[0], length)
        live, wal = live_of(folder)
        survivors = [*first.values(), *last]
        complete = [
            b"first",
            b"second",
            *[payload for at, payload in enumerate(last) if _ends(last, at) <= length - kept_bytes],
        ]
        assert list(live.values()) == complete
        assert survivors[: len(complete)] == complete
        torn_bytes = length - kept_bytes - max((_ends(last, at) for at in range(len(complete) - 2)), default=0)
        assert wal.recovered.torn_bytes == torn_bytes
        assert len(wal.recovered.reports) == (1 if torn_bytes else 0)
        again, wal = live_of(folder)
        assert again == live
        assert wal.recovered.reports == (), "a cut tail is not reported again"


def _ends(payloads: list[bytes], at: int) -> int:
    """Where frame `at` of a group ends, from the group's start."""
    return sum(HEADER_BYTES + len(payload) for payload in payloads[: at + 1])


def test_any_flipped_bit_in_a_middle_frame_costs_that_entry_alone_and_is_reported(tmp_path: Path) -> None:
    victim = b"the victim's payload"
    written = write_log(tmp_path / "whole", [b"before", victim, b"after", b"last"])
    path = segments(tmp_path / "whole")[0]
    start = path.read_bytes().index(victim) - HEADER_BYTES
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    original = path.read_bytes()
    for at in range(start, start + HEADER_BYTES + len(victim)):
        for bit in range(8):
            segments(tmp_path / "copy")[0].write_bytes(original)
            flip(segments(tmp_path / "copy")[0], at, 1 << bit)
            live, wal = live_of(tmp_path / "copy")
            assert live == without(written, victim), f"byte {at - start} bit {bit}"
            assert wal.recovered.quarantined_bytes == HEADER_BYTES + len(victim)
            assert "is damaged" in wal.recovered.reports[0]
            assert wal.recovered.torn_bytes == 0


def test_a_damaged_begin_frame_costs_no_entry(tmp_path: Path) -> None:
    written = write_log(tmp_path / "whole", [b"x" * 3000, b"y" * 3000, b"z" * 3000])
    assert len(segments(tmp_path / "whole")) == 3
    for number in range(3):
        for at in range(0, 48, 3):
            folder = tmp_path / f"{number}-{at}"
            shutil.copytree(tmp_path / "whole", folder)
            flip(segments(folder)[number], at, 0xFF)
            live, wal = live_of(folder)
            assert live == written
            assert wal.recovered.quarantined_bytes == 48
            assert wal.recovered.missing_segments == 0


@pytest.mark.parametrize("seed", range(20))
def test_bytes_overwritten_at_random_cost_only_the_entries_they_hit(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    groups = [[random.randbytes(random.randrange(1, 900)) for _ in range(5)] for _ in range(8)]
    written = write_log(tmp_path, *groups)
    hit: set[bytes] = set()
    for _ in range(3):
        path = random.choice(segments(tmp_path))
        content = path.read_bytes()
        start = random.randrange(len(content) - 1)
        end = min(len(content), start + random.randrange(1, 300))
        for payload in written.values():
            at = content.find(payload)
            if at >= 0 and at - HEADER_BYTES < end and start < at + len(payload):
                hit.add(payload)
        path.write_bytes(content[:start] + random.randbytes(end - start) + content[end:])
    live, wal = live_of(tmp_path)
    assert live.items() <= written.items()
    assert written.keys() - live.keys() <= {entry_id for entry_id, payload in written.items() if payload in hit}
    assert wal.recovered.reports


def test_damage_is_copied_to_quarantine_once_and_disappears_with_its_segment(tmp_path: Path) -> None:
    written = write_log(tmp_path, [b"before", b"victim", b"after"])
    path = segments(tmp_path)[0]
    flip(path, path.read_bytes().index(b"victim"), 1)
    for _ in range(3):
        live, wal = live_of(tmp_path)
        assert live == without(written, b"victim")
        assert len(wal.recovered.reports) == 1
        assert len(quarantined(tmp_path)) == 1
    assert quarantined(tmp_path)[0].read_bytes()[HEADER_BYTES:] == b"wictim"
    _, wal = live_of(tmp_path, FailingFiles(verbs={"writev"}, at=1, code=errno.EIO))
    assert "copied to quarantine/" in wal.recovered.reports[0], "there is nothing left to write"
    wal = open_small(tmp_path)
    wal.release(list(live)[:1])
    while wal.compact():
        pass
    wal.close()
    live, wal = live_of(tmp_path)
    assert list(live.values()) == [b"after"]
    assert wal.recovered.reports == ()


def test_a_full_quarantine_or_one_that_cannot_be_written_does_not_keep_the_log_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_log(tmp_path, [b"before", b"victim", b"after"])
    path = segments(tmp_path)[0]
    flip(path, path.read_bytes().index(b"victim"), 1)
    live, wal = live_of(tmp_path, FailingFiles(verbs={"writev"}, at=1, code=errno.ENOSPC, times=10))
    assert live == without(written, b"victim")
    assert "not copied: No space left on device" in wal.recovered.reports[0]
    quarantined(tmp_path)[0].unlink()
    monkeypatch.setattr(wal_recovery, "QUARANTINE_BYTES_MAX", 10)
    live, wal = live_of(tmp_path)
    assert live == without(written, b"victim")
    assert "not copied: quarantine/ has reached" in wal.recovered.reports[0]
    assert quarantined(tmp_path) == []


def test_a_missing_segment_is_reported_and_the_others_are_used(tmp_path: Path) -> None:
    written = write_log(tmp_path / "whole", [b"x" * 3000, b"y" * 3000, b"z" * 3000])
    for number, lost in ((0, b"x"), (1, b"y")):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        gone = segments(folder)[number]
        gone.unlink()
        live, wal = live_of(folder)
        assert live == without(written, lost * 3000)
        assert wal.recovered.missing_segments == 1
        assert f"{gone.name} is missing" in wal.recovered.reports[0]


def test_removed_segments_are_not_reported_missing_and_ones_that_come_back_are_not_believed(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    ids = wal.append([b"x" * 3000, b"y" * 3000, b"z" * 3000])
    first = segments(tmp_path)[0]
    content = first.read_bytes()
    wal.release(ids[:2])
    while wal.compact():
        pass
    assert not first.exists()
    wal.close()
    first.write_bytes(content)  # its removal was never synced, and a power loss brought it back
    live, wal = live_of(tmp_path)
    assert list(live) == ids[2:]
    assert wal.recovered.reports == ()
    assert not first.exists()


def test_a_closed_segment_that_has_lost_its_end_is_reported(tmp_path: Path) -> None:
    written = write_log(tmp_path, [b"x" * 1500, b"y" * 1500, b"z" * 3000])
    path = segments(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 100)
    live, wal = live_of(tmp_path)
    assert live == without(written, b"y" * 1500)
    assert "has lost its last 100 bytes" in wal.recovered.reports[0]
    assert wal.recovered.torn_bytes == 0


def test_frames_inside_a_payload_are_never_taken_for_entries(tmp_path: Path) -> None:
    write_log(tmp_path / "inner", [b"smuggled one", b"smuggled two"])
    archive = segments(tmp_path / "inner")[0].read_bytes()  # the same segment number, and valid frames
    written = write_log(tmp_path / "outer", [b"before", archive, b"after"])
    path = segments(tmp_path / "outer")[0]
    flip(path, path.read_bytes().index(archive) - HEADER_BYTES, 1)
    live, wal = live_of(tmp_path / "outer")
    assert live == without(written, archive)
    assert wal.recovered.quarantined_bytes == HEADER_BYTES + len(archive)


def test_a_block_that_the_disk_cannot_read_costs_only_what_it_holds(tmp_path: Path) -> None:
    files = FileLayer()
    payloads = [bytes([number]) * 1000 for number in range(60)]
    wal = Wal.open(tmp_path / "wal", files)
    ids = wal.append(payloads)
    wal.close()

    class BadBlock(FileLayer):
        def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
            if offset < 24_576 and offset + size_bytes > 20_480:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().pread(fd, size_bytes, offset)

    wal = Wal.open(tmp_path / "wal", BadBlock())
    live = dict(wal.live())
    lost = [entry_id for entry_id in ids if entry_id not in live]
    assert 4 <= len(lost) <= 6
    assert live == {entry_id: payloads[at] for at, entry_id in enumerate(ids) if entry_id not in lost}
    assert "is damaged" in wal.recovered.reports[0]
    wal.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"SPW1" * 2000, b"not a segment"])
def test_a_segment_of_rubbish_is_reported_and_never_stops_the_start(content: bytes, tmp_path: Path) -> None:
    written = write_log(tmp_path, [b"good"])
    for sequence in (2, 3, 0xFFFF):
        (tmp_path / "wal" / f"{sequence:016x}.wal").write_bytes(content)
    (tmp_path / "wal" / "notes.txt").write_bytes(b"not ours")
    live, wal = live_of(tmp_path)
    assert live == written
    assert wal.recovered.torn_bytes + wal.recovered.quarantined_bytes == 3 * len(content)
    wal = open_small(tmp_path)
    new_id = wal.append([b"goes on"])[0]
    assert new_id >> 32 == 0x10000, "a number that a file has is not used again"
    wal.close()
    live, wal = live_of(tmp_path)
    assert live == {**written, new_id: b"goes on"}


def test_a_frame_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    from storage import wal_format as fmt

    written = write_log(tmp_path, [b"good"])
    path = segments(tmp_path)[0]
    with path.open("ab") as segment:
        header = fmt.header(1, segment.tell(), 200, 99, b"news")
        segment.write(header + b"news")
    live, wal = live_of(tmp_path)
    assert live == written
    assert wal.recovered.reports == ()


def test_what_a_killed_process_had_not_synced_is_synced_at_the_start(tmp_path: Path) -> None:
    wal = open_small(tmp_path)
    wal.append([b"in the page cache"])
    synced: list[str] = []

    class Watching(FileLayer):
        def fsync(self, fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            super().fsync(fd)

    again = open_small(tmp_path, Watching())
    assert [payload for _, payload in again.live()] == [b"in the page cache"]
    assert synced == [str(segments(tmp_path)[0])]
    again.close()
    wal.close()


def test_the_next_entry_is_found_wherever_it_lies_after_more_than_a_mebibyte_of_damage(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for shift in range(8):  # the search reads in steps of 1 MiB: let the next frame's magic lie across an edge
        wal = Wal.open(folder / str(shift), FileLayer())
        edge = 48 + 1 + (1 << 20) - 4 + shift  # near where the second step begins
        entries = [b"d" * 131_072] * 7 + [b"d" * (edge - 48 - 7 * (HEADER_BYTES + 131_072) - HEADER_BYTES)]
        wal.append(entries)
        kept = wal.append([b"after"])
        wal.close()
        path = next((folder / str(shift)).glob("*.wal"))
        path.write_bytes(path.read_bytes()[:48] + bytes(edge - 48) + path.read_bytes()[edge:])
        again = Wal.open(folder / str(shift), FileLayer())
        assert list(again.live()) == [(kept[0], b"after")]
        assert again.recovered.quarantined_bytes == edge - 48
        again.close()


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from random import Random
    from storage.files import FileLayer
    from storage.wal import Wal
    wal = Wal.open(Path(sys.argv[1]), FileLayer(), segment_bytes=4096, size_bytes_max=256 * 1024)
    random = Random(sys.argv[2])
    mine = [entry_id for entry_id, _ in wal.live()]
    while True:
        ids = wal.append([b"%08d" % random.randrange(10**8) * random.randrange(1, 60) for _ in range(3)])
        wal.sync()
        print("accepted", *ids, flush=True)
        mine += ids
        random.shuffle(mine)
        released, mine = mine[6:], mine[:6]
        print("releasing", *released, flush=True)
        wal.release(released)
        wal.compact()
""")


def test_a_killed_process_loses_nothing_that_it_had_accepted(tmp_path: Path) -> None:
    accepted: set[int] = set()
    for turn in range(6):
        arguments = [sys.executable, "-c", CHILD, str(tmp_path / "wal"), str(turn)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(40 + 13 * turn)]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        for line in lines:
            verb, *ids = line.split()
            assert verb in {"accepted", "releasing"}
            accepted = accepted | set(map(int, ids)) if verb == "accepted" else accepted - set(map(int, ids))
        live, wal = live_of(tmp_path)
        assert accepted <= live.keys()
        assert wal.recovered.missing_segments == 0
        accepted = set(live)  # the next child carries on with all of them
