"""Everything that is held is read again within its period, and what rotted is mended without anybody asking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.scrubbing import (
    DAY_MS,
    RATE_BYTES_PER_SECOND_MIN,
    WAIT_MS_MAX,
    Round,
    decoded,
    rate_bytes_per_second,
    wait_ms,
)
from tests.agents import GENEROUS_SECONDS, durable, holds, logged, plain, running, written
from tests.depots import Bench, record_of, some_bytes
from tests.test_agents_damage import flip


def test_a_round_is_spread_over_nine_tenths_of_its_period() -> None:
    began = 1_000_000
    half = Round(began, done_bytes=500)
    due = began + int(0.45 * DAY_MS)
    assert wait_ms(half, due - 10_000, DAY_MS, 1_000) == 10_000
    assert wait_ms(half, due, DAY_MS, 1_000) == 0
    assert wait_ms(half, due + 1, DAY_MS, 1_000) == 0


def test_a_round_that_is_through_waits_for_its_period_to_end() -> None:
    through = Round(0, 500, through=True)
    assert wait_ms(through, DAY_MS - 5, DAY_MS, 500) == 5
    assert wait_ms(through, DAY_MS, DAY_MS, 500) == 0


@pytest.mark.parametrize("now", [Round(0), Round(0, through=True)])
def test_a_period_of_nothing_means_never(now: Round) -> None:
    assert wait_ms(now, 10**15, 0, 500) == WAIT_MS_MAX


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.integers(60_000, 100 * DAY_MS))
def test_every_round_is_through_before_its_period_is_over(sizes: list[int], period_ms: int) -> None:
    now, total = 0, sum(sizes)
    scrub = Round(now)
    for size in sizes:
        while wait := wait_ms(scrub, now, period_ms, total):
            now += wait
        scrub = Round(scrub.began_ms, scrub.done_bytes + size)
    assert now <= period_ms


def test_what_is_much_is_read_faster() -> None:
    assert rate_bytes_per_second(30 * DAY_MS, 10**12) == RATE_BYTES_PER_SECOND_MIN
    assert rate_bytes_per_second(DAY_MS, 10**14) == 4 * 10**14 / 86_400


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.text(), st.booleans())
def test_how_far_a_round_is_survives_a_restart(began: int, done: int, after: str, through: bool) -> None:
    now = Round(began, done, after, through)
    assert decoded(now.encoded()) == now


@pytest.mark.parametrize("text", [None, "", "1 2", "x 2 0 a", "1 2 y a"])
def test_a_fact_that_cannot_be_read_begins_a_round(text: str | None) -> None:
    assert decoded(text) is None


def test_a_file_is_read_from_the_disk_at_the_pace_that_is_set(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    record = bench.arrive(some_bytes(2_500_000), record_of(some_bytes(2_500_000)))
    ((_, place),) = bench.publish(record).done
    read: list[int] = []
    assert bench.depot.verify(place, read.append) == ""
    assert sum(read) == 2_500_000
    assert max(read) <= 1 << 20


@pytest.mark.processes
def test_a_file_that_rotted_is_found_and_mended_without_being_asked() -> None:
    with running({"a": {"provider": "one"}, "b": {"provider": "two"}}, min_copies=1, scrub_days=0.0001) as fleet:
        content = os.urandom(3 << 20)
        written(fleet, "a", "models/rots.pth", content)
        durable(fleet, "a", "model/models/rots.pth")
        holds(fleet, "b", "models/rots.pth", content)
        flip(fleet.nodes["b"].root / "models/rots.pth", 1_234_567)
        logged(fleet, "b", "damaged", "models/rots.pth")
        holds(fleet, "b", "models/rots.pth", content)
        durable(fleet, "a", "model/models/rots.pth", plain(content))
        status = fleet.ask("b", "status")["scrub"]
        assert status["damaged"] == 1
        assert status["period_seconds"] == 8.64
        fleet.until(
            lambda: fleet.ask("a", "status")["scrub"]["last_round_ended_ms"], "a round is through", GENEROUS_SECONDS
        )
