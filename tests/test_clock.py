"""Stamps: each above the last, above what it replaces, and no wall clock that jumps can change that."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.clock import COUNTER_BITS, FUTURE_MS_MAX, HLC_MAX, SCANNED_MAX, HybridClock, scanned, stamp_ms

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure
NOW = 1_760_000_000_000  # October 2025
MINUTE = 60_000

times = st.integers(NOW - 10 * MINUTE, NOW + 10 * MINUTE)


def test_a_stamp_tells_the_wall_clock_in_milliseconds() -> None:
    assert stamp_ms(HybridClock().stamp(NOW)) == NOW


def test_stamps_of_one_millisecond_count_up() -> None:
    clock = HybridClock()
    stamps = [clock.stamp(NOW) for _ in range(1_000)]
    assert stamps == list(range(stamps[0], stamps[0] + 1_000))


@UNHURRIED
@given(st.lists(times, min_size=1))
def test_stamps_rise_and_are_never_used_again_however_the_wall_clock_jumps(wall: list[int]) -> None:
    clock = HybridClock()
    stamps = [clock.stamp(now) for now in wall]
    assert stamps == sorted(set(stamps))


@UNHURRIED
@given(st.lists(st.tuples(times, st.integers(0, 1 << 62)), min_size=1))
def test_a_stamp_is_above_the_version_it_replaces_however_far_ahead_that_is(calls: list[tuple[int, int]]) -> None:
    clock = HybridClock()
    for now, replaced in calls:
        assert clock.stamp(now, above=replaced) > replaced


@UNHURRIED
@given(st.lists(times, min_size=2, max_size=20), st.integers(0, 1 << 62))
def test_the_versions_of_one_name_never_share_a_stamp(wall: list[int], first: int) -> None:
    clock = HybridClock()
    stamps = [first]
    for now in wall:
        stamps.append(clock.stamp(now, above=stamps[-1]))
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("ahead", [0, 1, FUTURE_MS_MAX << COUNTER_BITS])
def test_a_stamp_above_a_version_within_reach_is_not_given_again(ahead: int) -> None:
    clock = HybridClock()
    replaced = clock.stamp(NOW) + 1 + ahead
    stamps = [clock.stamp(NOW, above=replaced), *(clock.stamp(NOW) for _ in range(3))]
    assert stamps == sorted(set(stamps))


def test_replacing_a_version_from_the_future_does_not_carry_the_clock_there() -> None:
    clock = HybridClock()
    far = (NOW + 365 * 24 * 60 * MINUTE) << COUNTER_BITS
    assert clock.stamp(NOW, above=far) == far + 1
    assert stamp_ms(clock.stamp(NOW + 1)) == NOW + 1


@pytest.mark.parametrize("jump", [10 * MINUTE, -10 * MINUTE])
def test_after_a_jump_of_ten_minutes_stamps_still_rise(jump: int) -> None:
    clock = HybridClock()
    before = clock.stamp(NOW)
    after = clock.stamp(NOW + jump)
    assert before < after < clock.stamp(NOW + jump + 1)
    assert stamp_ms(after) == max(NOW, NOW + jump)


def test_a_peers_stamp_is_followed() -> None:
    clock = HybridClock()
    theirs = (NOW + MINUTE) << COUNTER_BITS | 5
    clock.observe(theirs, NOW)
    assert clock.stamp(NOW) == theirs + 1


def test_a_peers_stamp_is_followed_up_to_five_minutes_ahead_and_not_beyond() -> None:
    assert FUTURE_MS_MAX == 5 * MINUTE
    at_the_bound = (NOW + 5 * MINUTE) << COUNTER_BITS | 0xFFFF
    follows, ignores = HybridClock(), HybridClock()
    follows.observe(at_the_bound, NOW)
    ignores.observe(at_the_bound + 1, NOW)
    assert follows.stamp(NOW) == at_the_bound + 1
    assert ignores.stamp(NOW) == NOW << COUNTER_BITS


def test_an_older_stamp_of_a_peer_changes_nothing() -> None:
    clock = HybridClock()
    ours = clock.stamp(NOW)
    clock.observe((NOW - MINUTE) << COUNTER_BITS, NOW)
    assert clock.stamp(NOW) == ours + 1


def test_what_we_once_said_ourselves_is_followed_however_far_ahead() -> None:
    clock = HybridClock()
    said = (NOW + 24 * 60 * MINUTE) << COUNTER_BITS
    clock.restate(said)
    clock.restate(said - 1)
    assert clock.stamp(NOW) == said + 1


def test_a_clock_follows_nothing_that_would_leave_it_no_stamp_to_go_on_with() -> None:
    clock = HybridClock()
    clock.restate(HLC_MAX)
    assert clock.stamp(NOW) == NOW << COUNTER_BITS


def test_a_clock_goes_on_where_its_node_left_off() -> None:
    assert HybridClock(last=(NOW + MINUTE) << COUNTER_BITS).stamp(NOW) > (NOW + MINUTE) << COUNTER_BITS


# --- files found without history ---


@UNHURRIED
@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 1 << 46))
def test_a_scanned_stamp_is_below_every_written_one(mtime_s: int, now_ms: int) -> None:
    """Written stamps are those of any wall clock that shows more than the first five minutes of 1970."""
    written = HybridClock().stamp(max(now_ms, 5 * MINUTE))
    assert 0 < scanned(mtime_s) < SCANNED_MAX <= written


def test_a_file_dated_in_the_far_future_is_still_below_what_is_written_now() -> None:
    assert scanned(1 << 60) < HybridClock().stamp(int(time.time() * 1000))


@UNHURRIED
@given(st.integers(1 << 17, 1 << 33), st.integers(1, 1 << 30))
def test_scanned_stamps_follow_the_order_of_modification(earlier: int, later_by: int) -> None:
    assert scanned(earlier) < scanned(earlier + later_by)
