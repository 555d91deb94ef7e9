"""What a service manager hears from the agent, read from a real datagram socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.notify import STATUS_CHARACTERS_MAX, Notifier


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)  # a UNIX socket path has 108 bytes at most; tests may run below long folders
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("/proc/self/cwd/notify")
        receiver.settimeout(10)
        yield receiver


def notifier(**more: str) -> Notifier:
    return Notifier.from_environment({"NOTIFY_SOCKET": "/proc/self/cwd/notify", **more})


def heard(receiver: socket.socket) -> list[str]:
    return receiver.recv(8192).decode().split("\n")


def test_without_the_variable_every_call_does_nothing() -> None:
    with Notifier.from_environment({}) as silent:
        assert not silent.enabled
        assert silent.watchdog_interval_seconds is None
        said = [silent.ready(), silent.stopping(), silent.status("x"), silent.watchdog(), silent.reloading()]
        assert not any(said)
        asyncio.run(silent.keep_watchdog(lambda: True))


def test_each_call_is_one_datagram_of_assignments(manager: socket.socket) -> None:
    with notifier() as link:
        assert link.ready("holding 3 artifacts")
        assert heard(manager) == ["READY=1", "STATUS=holding 3 artifacts"]
        assert link.status("2 at risk")
        assert heard(manager) == ["STATUS=2 at risk"]
        assert link.watchdog()
        assert heard(manager) == ["WATCHDOG=1"]
        assert link.extend_timeout(8.5)
        assert heard(manager) == ["EXTEND_TIMEOUT_USEC=8500000"]
        assert link.stopping()
        assert heard(manager) == ["STOPPING=1"]


def test_a_reload_carries_the_monotonic_time_it_began(manager: socket.socket) -> None:
    with notifier() as link:
        before_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert link.reloading()
        first, second = heard(manager)
        assert first == "RELOADING=1"
        key, _, value = second.partition("=")
        assert key == "MONOTONIC_USEC"
        assert before_usec <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_the_abstract_namespace_is_reached() -> None:
    name = f"spore-notify-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(10)
        with Notifier.from_environment({"NOTIFY_SOCKET": "@" + name}) as link:
            assert link.ready()
        assert heard(receiver) == ["READY=1"]


def test_a_status_stays_one_bounded_line(manager: socket.socket) -> None:
    with notifier() as link:
        link.status("a\nREADY=1\r\nb" + "x" * 5000)
        (line,) = heard(manager)
        assert line.startswith("STATUS=a READY=1 b")
        assert len(line) == len("STATUS=") + STATUS_CHARACTERS_MAX
        link.status("")
        assert heard(manager) == ["STATUS="]


@pytest.mark.parametrize(
    ("environment", "interval_seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_half_the_limit_meant_for_us(
    environment: dict[str, str], interval_seconds: float | None
) -> None:
    with Notifier.from_environment(environment) as link:
        assert link.watchdog_interval_seconds == interval_seconds


def test_the_watchdog_is_fed_only_while_the_agent_is_alive(manager: socket.socket) -> None:
    answers = iter([True, False, True])

    def alive() -> bool:
        return next(answers)  # the fourth question ends the loop

    async def feed() -> None:
        with notifier(WATCHDOG_USEC="2000") as link:
            await link.keep_watchdog(alive)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(feed())
    assert [heard(manager), heard(manager)] == [["WATCHDOG=1"], ["WATCHDOG=1"]]
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(8192)


def test_a_manager_that_is_gone_is_reported_once_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Notifier.from_environment({"NOTIFY_SOCKET": "/nonexistent/notify"}) as link,
    ):
        assert not link.ready()
        assert not link.watchdog()
    assert len(caplog.records) == 1
    assert "NOTIFY_SOCKET" in caplog.text


def test_an_address_of_another_sort_is_refused_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}) as link:
        assert not link.enabled
    assert "neither a path nor @name" in caplog.text
