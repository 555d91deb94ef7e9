"""Disk room: one arithmetic, counted as df counts, with reservations counted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.fleet import Routing
from storage.files import FileLayer
from storage.refusals import NoRoom
from storage.room import BLOCK_BYTES, DiskUsage, Room, RoomLimits, disk_usage

K = 100 * BLOCK_BYTES  # a disk of 100 such units makes a unit one percent
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


class Disk:
    """A disk of 100 units whose usage a test sets."""

    def __init__(self, used: float) -> None:
        self.used = used

    def __call__(self) -> DiskUsage | None:
        return DiskUsage(int(self.used * K), int((100 - self.used) * K))


def _room(disk: Disk, **limits: object) -> Room:
    chosen = {"cap_percent": 70.0, "min_free_bytes": 0} | limits
    return Room(RoomLimits(**chosen), disk)  # type: ignore[arg-type]


def test_used_percent_is_what_df_prints(tmp_path: Path) -> None:
    usage = disk_usage(FileLayer(), tmp_path)
    status = os.statvfs(tmp_path)
    assert usage is not None
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    available = status.f_bavail * status.f_frsize
    assert usage.used_percent == pytest.approx(100 * used / (used + available), abs=1)


def test_the_stricter_of_both_percentages_is_the_cap() -> None:
    assert RoomLimits.of(Routing(max_disk_usage_percent=80, min_free_disk_percent=30)).cap_percent == 70
    assert RoomLimits.of(Routing(max_disk_usage_percent=60, min_free_disk_percent=30)).cap_percent == 60


def test_what_would_go_over_the_cap_is_refused_before_a_byte_comes() -> None:
    room = _room(Disk(used=60))
    assert room.reserve(1, A, 9 * K) == ""
    assert "its cap is 70%" in room.reserve(1, B, 2 * K)
    assert room.reserve(1, C, K) == ""


def test_reservations_count_until_they_are_released() -> None:
    room = _room(Disk(used=60))
    assert room.reserve(1, A, 8 * K) == ""
    assert room.reserve(2, B, 8 * K) != ""
    room.release(1)
    assert room.reserve(2, B, 8 * K) == ""
    assert room.state().reserved_bytes == 8 * K


def test_allocated_blocks_are_counted_by_the_file_system_and_not_twice() -> None:
    disk = Disk(used=60)
    room = _room(disk)
    assert room.reserve(1, A, 5 * K) == ""
    disk.used = 65
    room.allocated(A)
    assert room.reserve(1, B, 4 * K) == ""
    assert room.state().reserved_bytes == 4 * K
    room.release(1)
    assert room.state().reserved_bytes == 0


def test_a_digest_that_two_transfers_bring_is_reserved_once_and_until_both_end() -> None:
    room = _room(Disk(used=60))
    assert room.reserve(1, A, 8 * K) == ""
    assert room.reserve(2, A, 8 * K) == ""
    room.release(1)
    assert room.state().reserved_bytes == 8 * K
    room.release(2)
    assert room.state().reserved_bytes == 0


def test_accepting_stops_at_the_cap_and_resumes_two_points_below() -> None:
    disk = Disk(used=60)
    room = _room(disk)
    seen = []
    for used in (69.9, 70.0, 69.0, 68.0, 67.9, 69.9):
        disk.used = used
        seen.append(room.state().accepting)
    assert seen == [True, False, False, False, True, True]


def test_local_acceptance_stops_at_min_free_bytes_and_resumes_above_it() -> None:
    disk = Disk(used=91)
    room = _room(disk, min_free_bytes=8 * K)
    room.require_local(K)
    with pytest.raises(NoRoom, match="free some space or lower min_free_bytes"):
        room.require_local(2 * K)
    disk.used = 92.5
    with pytest.raises(NoRoom):
        room.require_local(0)
    disk.used = 91.5
    assert not room.state().local
    disk.used = 90.5
    assert room.state().local


def test_a_full_node_accepts_nothing_for_others_but_still_its_own() -> None:
    state = _room(Disk(used=80), min_free_bytes=8 * K).state()
    assert (state.accepting, state.local) == (False, True)


@pytest.mark.parametrize("usage", [None])
def test_an_unknown_capacity_refuses_everything(usage: DiskUsage | None) -> None:
    room = Room(RoomLimits(), lambda: usage)
    assert "cannot be measured" in room.reserve(1, A, 1)
    with pytest.raises(NoRoom, match="cannot be measured"):
        room.require_local(0)
    assert (room.state().accepting, room.state().local) == (False, False)


def test_a_folder_that_is_gone_or_a_file_system_without_blocks_is_unknown(tmp_path: Path) -> None:
    assert disk_usage(FileLayer(), tmp_path / "gone") is None
    if os.path.isdir("/proc/self"):
        assert disk_usage(FileLayer(), Path("/proc/self")) is None


def test_the_limit_in_bytes_counts_what_is_held_and_what_is_reserved() -> None:
    held = [0]
    limits = RoomLimits(min_free_bytes=0, max_bytes=10 * K)
    room = Room(limits, Disk(used=0), lambda: held[0])
    assert room.reserve(1, A, 6 * K) == ""
    room.allocated(A)
    assert "limit of" in room.reserve(1, B, 5 * K)
    room.release(1)
    held[0] = 10 * K
    assert not room.state().accepting


def test_new_limits_count_at_once() -> None:
    room = _room(Disk(used=60))
    room.set_limits(RoomLimits(cap_percent=50, min_free_bytes=0))
    assert room.reserve(1, A, K) != ""


def test_many_are_reserved_with_one_look_at_the_disk_and_each_counts_for_the_next() -> None:
    looks: list[None] = []
    disk = Disk(68)

    def usage() -> DiskUsage | None:
        looks.append(None)
        return disk()

    room = Room(RoomLimits(min_free_bytes=0), usage)
    answers = room.reserve_many(1, [(A, K), (B, K + 1), (C, K)])
    assert [bool(refusal) for refusal in answers] == [False, True, False]
    assert len(looks) == 1


# --- caps under any interleaving ---

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "release", "publish", "count", "others"]), st.integers(1, 8), st.integers(1, 20)
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_what_is_held_for_others_never_passes_a_cap_whatever_comes_between(steps: list[tuple[str, int, int]]) -> None:
    """Reservations, publications, counts and other programs' writes in any order: our own share never makes it more."""
    held: dict[bytes, int] = {}
    counted = [0]
    other = [0]

    def used() -> int:
        return sum(held.values()) + other[0]

    def usage() -> DiskUsage:
        return DiskUsage(used(), 100 * BLOCK_BYTES - used())

    room = Room(RoomLimits(cap_percent=70, min_free_bytes=0, max_bytes=40 * BLOCK_BYTES), usage, lambda: counted[0])
    reserved: dict[int, tuple[bytes, int]] = {}
    for what, number, blocks in steps:
        size = blocks * BLOCK_BYTES
        digest = bytes([number]) * 32
        if what == "reserve" and number not in reserved and digest not in held:
            before = used() + sum(each for _, each in reserved.values())
            if room.reserve(number, digest, size) == "":
                reserved[number] = (digest, size)
                assert before + size <= 70 * BLOCK_BYTES
        elif what == "release" and number in reserved:
            del reserved[number]
            room.release(number)
        elif what == "publish" and number in reserved:
            held[digest] = reserved.pop(number)[1]
            room.published(held[digest])
            room.release(number)
        elif what == "count":
            before_count = room.published_since()
            counted[0] = sum(held.values())
            room.counted_anew(before_count)
        elif what == "others":
            other[0] = min(blocks, max(0, 99 - sum(held.values()) // BLOCK_BYTES)) * BLOCK_BYTES
        assert sum(held.values()) <= 40 * BLOCK_BYTES


def test_what_was_published_counts_before_anybody_has_counted_it_anew() -> None:
    counted = [0]
    room = Room(RoomLimits(min_free_bytes=0, max_bytes=10 * K), Disk(used=0), lambda: counted[0])
    assert room.reserve(1, A, 6 * K) == ""
    room.published(6 * K)
    room.release(1)
    assert "limit of" in room.reserve(1, B, 5 * K)
    before = room.published_since()
    counted[0] = 6 * K
    room.counted_anew(before)
    assert "limit of" in room.reserve(1, B, 5 * K)
    assert room.reserve(1, C, 3 * K) == ""


# --- emergencies ---


def test_an_emergency_begins_above_its_share_and_ends_below_the_hysteresis() -> None:
    disk = Disk(used=89)
    room = _room(disk)
    assert room.state().excess_bytes == 0
    disk.used = 91
    assert room.state().excess_bytes == pytest.approx(3 * K, rel=0.01)
    disk.used = 89
    assert room.state().excess_bytes == pytest.approx(K, rel=0.01)
    disk.used = 87.9
    assert room.state().excess_bytes == 0
    disk.used = 89
    assert room.state().excess_bytes == 0


def test_less_than_min_free_bytes_is_an_emergency_whatever_the_share() -> None:
    assert _room(Disk(used=95), min_free_bytes=8 * K, cap_percent=99).state().excess_bytes == 4 * K


def test_no_cap_makes_an_emergency_by_itself() -> None:
    """What is held up to the cap is in order: nothing goes for it."""
    assert _room(Disk(used=94), cap_percent=95, emergency_disk_percent=80).state().excess_bytes == 0


def test_a_disk_that_cannot_be_measured_is_no_emergency() -> None:
    assert Room(RoomLimits(), lambda: None).state().excess_bytes == 0
