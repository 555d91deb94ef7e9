"""Circuit breakers: three failures open one, it waits ever longer, and somebody always tries again."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.breakers import P2P_HTTP, Guards
from node.bulk_stream import Patience, Stream, StreamBroken
from node.progress import CPU, DISK, LIMIT, NETWORK, STALLED_SECONDS, Meter, allowed_seconds
from protocol.breakers import BREAKERS_MAX, TRY_MS_MAX, WAIT_MS_MAX, WAIT_MS_MIN, Breakers, Phase, wait_ms
from protocol.effects import Fetch, Upload
from protocol.values import Parcel
from tests.bulk_world import GENEROUS_SECONDS, World, content_of, record_of, world_in

WAY = ("b", "p2p_http")


class Chance(Random):
    """Takes nothing off: waits are as long as they can be."""

    def randrange(self, *bounds: int) -> int:  # type: ignore[override]
        return 0


def failed(breakers: Breakers, times: int, now_ms: int = 0) -> None:
    for _ in range(times):
        breakers.failed(*WAY, "it broke", now_ms, Chance())


def phase(breakers: Breakers, now_ms: int) -> Phase:
    return next((breaker.phase(now_ms) for key, breaker in breakers.all() if key == WAY), Phase.CLOSED)


def test_two_failures_in_a_row_close_nothing_and_the_third_opens() -> None:
    breakers = Breakers()
    failed(breakers, 2)
    assert breakers.admits(*WAY, 0)
    failed(breakers, 1)
    assert not breakers.admits(*WAY, 0)
    assert phase(breakers, 0) is Phase.OPEN


def test_a_success_between_failures_begins_the_count_anew() -> None:
    breakers = Breakers()
    failed(breakers, 2)
    breakers.succeeded(*WAY)
    failed(breakers, 2)
    assert breakers.admits(*WAY, 0)


def test_one_way_that_is_broken_says_nothing_of_another() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    assert breakers.admits("b", "rsync", 0)
    assert breakers.admits("c", "p2p_http", 0)


def test_a_half_open_breaker_lets_one_try_through_and_no_second() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    assert breakers.admits(*WAY, WAIT_MS_MIN)
    assert not breakers.admits(*WAY, WAIT_MS_MIN)
    assert phase(breakers, WAIT_MS_MIN) is Phase.HALF_OPEN
    breakers.succeeded(*WAY)
    assert breakers.admits(*WAY, WAIT_MS_MIN)
    assert breakers.all() == []


def test_each_failed_try_doubles_the_wait_up_to_a_minute() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    now, waits = 0, []
    for _ in range(9):
        waited = breakers.until_ms(*WAY) - now
        waits.append(waited)
        now += waited
        assert breakers.admits(*WAY, now)
        failed(breakers, 1, now)
    assert waits == [min(WAIT_MS_MIN << n, WAIT_MS_MAX) for n in range(9)]


def test_a_try_that_is_never_reported_does_not_close_the_way_for_ever() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    assert breakers.admits(*WAY, WAIT_MS_MIN)
    assert breakers.admits(*WAY, WAIT_MS_MIN + TRY_MS_MAX)


def test_stragglers_of_an_open_breaker_do_not_lengthen_its_wait() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    before = breakers.until_ms(*WAY)
    failed(breakers, 10, now_ms=1)
    assert breakers.until_ms(*WAY) == before


def test_a_sign_of_life_lets_the_next_try_begin_at_once() -> None:
    breakers = Breakers()
    failed(breakers, 3)
    breakers.heard("b", 10)
    assert breakers.admits(*WAY, 10)
    assert not breakers.admits(*WAY, 10)  # one try, as ever


def test_the_memory_of_failures_is_bounded() -> None:
    breakers = Breakers()
    for number in range(BREAKERS_MAX + 10):
        breakers.failed(f"n{number}", "p2p_http", "it broke", 0, Chance())
    assert len(breakers.all()) == BREAKERS_MAX


@pytest.mark.parametrize("waits", [0, 1, 5, 40, 10_000])
def test_jitter_takes_off_up_to_half(waits: int) -> None:
    full = min(WAIT_MS_MAX, WAIT_MS_MIN << min(waits, 16))
    seen = {wait_ms(waits, Random(seed)) for seed in range(50)}
    assert min(seen) > full // 2
    assert max(seen) <= full
    assert len(seen) > 10


@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "ask", "hear"]), st.integers(0, 5_000)), max_size=60))
def test_whatever_happened_a_minute_later_somebody_may_try(history: list[tuple[str, int]]) -> None:
    breakers, now = Breakers(), 0
    for what, later_ms in history:
        now += later_ms
        if what == "fail":
            breakers.failed(*WAY, "it broke", now, Random(now))
        elif what == "succeed":
            breakers.succeeded(*WAY)
        elif what == "ask":
            breakers.admits(*WAY, now)
        else:
            breakers.heard("b", now)
    assert breakers.admits(*WAY, now + max(WAIT_MS_MAX, TRY_MS_MAX))


def test_the_guards_say_why_and_for_how_long_and_show_it() -> None:
    now = [100.0]
    guards = Guards(lambda: now[0], Chance())
    assert guards.admits("b", P2P_HTTP) == ""
    for _ in range(3):
        guards.failed("b", P2P_HTTP, "b closed the connection")
    assert guards.admits("b", P2P_HTTP) == (
        "b is left alone over p2p_http for 1 s after failures in a row: b closed the connection"
    )
    (fact,) = guards.facts()
    assert fact == {
        "peer": "b",
        "transport": "p2p_http",
        "state": "open",
        "failures": 3,
        "retry_seconds": 1.0,
        "why": "b closed the connection",
    }
    now[0] += 1
    assert guards.admits("b", P2P_HTTP) == ""
    guards.succeeded("b", P2P_HTTP)
    assert guards.facts() == []


# --- on the bulk path ---


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as world:
        yield world


def test_three_uploads_that_cannot_reach_a_peer_spare_the_fourth_the_attempt(world: World) -> None:
    near, far = world.node("a"), world.node("b")
    record = near.shelf.hold(content_of(1000))
    near.addresses["b"] = "127.0.0.1:1"
    for number in range(3):
        near.transfers.upload(Upload(number, "b", (Parcel(record),)))
        assert "cannot be reached" in near.heard.upload_end(number + 1).error
    near.transfers.upload(Upload(3, "b", (Parcel(record),)))
    assert "left alone over p2p_http" in near.heard.upload_end(4).error
    near.addresses["b"] = far.address
    near.guards.heard("b")
    far.shelf.depot.reserve(4, [Parcel(record)])
    far.server.inbox.expect("a", 4, [Parcel(record)])
    near.transfers.upload(Upload(4, "b", (Parcel(record),)))
    assert near.heard.upload_end(5).error == ""
    assert near.guards.facts() == []


def test_a_refusal_is_no_failure_of_the_way(world: World) -> None:
    near, _ = world.node("a"), world.node("b")
    record = near.shelf.hold(content_of(1000))
    for number in range(4):
        near.transfers.upload(Upload(number, "b", (Parcel(record),)))
        assert "not expected" in near.heard.upload_end(number + 1).error
    assert near.guards.facts() == []


def test_who_sends_wrong_bytes_three_times_is_not_asked_a_fourth_time(world: World) -> None:
    near, far = world.node("a"), world.node("b")
    record, content = record_of(content_of(3000)), content_of(3000, seed=2)
    place = far.shelf.hold(content)
    other = far.shelf.bench.manifest.places.pop(place.digest.hex())
    lie = replace(other, digest=record.digest)
    far.shelf.bench.manifest.places[lie.path] = lie
    for number in range(4):
        near.shelf.depot.reserve(number, [Parcel(record)])
        near.transfers.fetch(Fetch(number, record, ("b",)))
        near.heard.arrival(number + 1)
    assert len(near.heard.wrong) == 3
    ((_, why),) = near.heard.arrival(4).failed
    assert "left alone over p2p_http" in why


def test_a_transfer_past_its_deadline_is_ended_and_says_so() -> None:
    meter = Meter(1, "b", "out", 0)
    meter.start()
    assert meter.read().overdue() == ""
    meter._started -= allowed_seconds(0) + 1
    assert "not done within" in meter.read().overdue()


def test_a_transfer_that_waits_for_its_peer_without_a_byte_is_ended_and_one_that_waits_for_the_disk_is_not() -> None:
    meter = Meter(1, "b", "out", 1 << 40)
    meter.start()
    meter._moved -= STALLED_SECONDS + 1
    assert meter.read().overdue() == "stalled: no byte for 121 s, waiting for connecting"
    meter.enter(DISK)
    assert meter.read().overdue() == ""


def test_what_a_thread_computes_is_not_taken_for_waiting() -> None:
    meter = Meter(1, "b", "fetch", 1 << 40)
    meter.start()
    meter.enter(NETWORK)
    until(lambda: sum(range(10_000)) > 0 and meter.enter(NETWORK) is None and meter._spent_seconds[CPU] > 0.05)
    meter.leave()
    counted = sum(meter._spent_seconds.values())
    time.sleep(0.05)
    meter.enter(DISK)
    assert sum(meter._spent_seconds.values()) == counted  # what a thread does elsewhere is not counted


def test_the_bottleneck_is_what_most_of_the_time_went_to() -> None:
    meter = Meter(1, "b", "fetch", 1_000_000)
    meter.start()
    meter._spent_seconds.update({DISK: 3.0, NETWORK: 2.0, CPU: 1.0})
    meter.moved(1_000_000)
    assert meter.read().waits_for == DISK
    assert meter.read().sentence("model/best.pth").startswith("model/best.pth from b: 1000000 bytes in ")
    assert meter.read().sentence("model/best.pth").endswith("bottleneck: disk")


def test_a_sender_tells_a_slow_peer_from_a_slow_link() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listening.getsockname())
    receiver, _ = listening.accept()
    stream = Stream(sender, "c", Patience(stall_seconds=0.5))
    assert not stream.slowed_by_peer()
    with pytest.raises(StreamBroken):
        stream.send(bytes(64 << 20))  # it does not read: its window shuts, and the kernel counts how long
    assert stream.slowed_by_peer()
    stream.close()
    assert not stream.slowed_by_peer()
    receiver.close()
    listening.close()


def test_a_queued_transfer_has_no_deadline_yet() -> None:
    meter = Meter(1, "b", "out", 0)
    meter._started -= 10 * allowed_seconds(0)
    meter.start()
    assert meter.read().overdue() == ""


def test_the_watchdog_ends_an_upload_that_hangs(world: World) -> None:
    near, far = world.node("a"), world.node("b")
    record = near.shelf.hold(content_of(1000))
    far.shelf.depot.reserve(1, [Parcel(record)])
    far.server.inbox.expect("a", 1, [Parcel(record)])
    near.throttle.set_rate(64 << 10)
    near.throttle.take(10 << 20)  # a debt that takes minutes to pay: the upload waits
    near.transfers.upload(Upload(1, "b", (Parcel(record),)))
    (task,) = near.transfers._tasks
    until(lambda: task.meter._phase == LIMIT)
    task.meter._started -= allowed_seconds(1000) + 1
    near.transfers.watch()
    near.throttle.set_rate(None)
    assert "not done within" in near.heard.upload_end(1).error
    assert [fact["failures"] for fact in near.guards.facts()] == [1]
