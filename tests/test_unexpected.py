"""What goes wrong beside the way: who hangs up is no fault of ours, and what nobody expected is never lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import upkeep
from node.agent import Agent
from node.config import HOSTS_FILE_NAME, load_fleet
from node.identity import Identity
from node.listener import WEB_ALPN
from node.local_fleet import LocalFleet
from node.run import _logger, unexpected
from node.service import Service
from node.tls import JOIN_ALPN, client_context, unverified_join_context
from protocol.effects import Report
from protocol.values import Digest
from tests.agents import HOSTS, ROUTING
from tests.kills import _whole
from tests.net import GENEROUS_SECONDS, MemoryBlob, Node, issuer_identity, joined, plain_socket, run, until


def reset(connection: socket.socket) -> None:
    """Close as the kernel does for a process that is killed: at once, with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def asked(port: int, path: str, context: object) -> socket.socket:
    connection = context.wrap_socket(plain_socket(port), server_hostname="x")  # type: ignore[attr-defined]
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection  # type: ignore[no-any-return]


def test_whoever_is_killed_before_the_answer_is_no_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = issuer_identity(tmp_path / "a")
    b = joined(tmp_path / "b", a, "b")

    async def story() -> None:
        async with Node(a) as node:
            digest = node.store.add(b"x" * 100_000)
            opening, gone = threading.Event(), threading.Event()
            open_blob = node.store.open_blob

            def slowly(digest: Digest) -> MemoryBlob | None:
                opening.set()
                assert gone.wait(GENEROUS_SECONDS)
                return open_blob(digest)

            node.store.open_blob = slowly  # type: ignore[method-assign]
            context = client_context(b, WEB_ALPN, lambda certificate: None)
            connection = await asyncio.to_thread(asked, node.listener.port, f"/v1/blob/{digest.hex()}", context)
            assert await asyncio.to_thread(opening.wait, GENEROUS_SECONDS)
            reset(connection)
            await until(lambda: node.listener.open_connections == 0, "the node to see that the client has gone")
            gone.set()
            await until(lambda: node.store.opened and node.store.opened[0].closed, "the answer to be given up")

    run(story)
    assert [record.message for record in caplog.records] == []


def test_whoever_is_killed_in_the_middle_of_joining_is_no_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = issuer_identity(tmp_path / "a")

    def half_a_request(port: int) -> socket.socket:
        context = unverified_join_context()
        context.set_alpn_protocols([JOIN_ALPN])
        connection = context.wrap_socket(plain_socket(port), server_hostname="x")
        connection.sendall(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        return connection

    async def story() -> None:
        async with Node(a) as node:
            connection = await asyncio.to_thread(half_a_request, node.listener.port)
            await asyncio.sleep(0.1)  # the request's head is read meanwhile; where it is not, nothing is tested
            reset(connection)
            await until(lambda: node.listener.open_connections == 0, "the node to see that the client has gone")
            assert [report.message for report in node.reports if report.level == "error"] == []

    run(story)
    assert [record.message for record in caplog.records] == []


@pytest.fixture
def logged_as_an_agent() -> Iterator[None]:
    """What `spore agent` does to this process's logging, undone afterwards."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:], threading.excepthook = handlers, hook
        root.setLevel(level)


def test_what_ends_a_thread_and_what_a_library_says_is_in_the_log_with_time_and_level(
    logged_as_an_agent: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _logger()
    logging.getLogger("some.library").warning("it is late")
    failing = threading.Thread(target=lambda: {}["missing"], name="reader")
    failing.start()
    failing.join()
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("Z WARNING it is late")
    assert said[1].endswith("Z ERROR   fault: the thread reader ended: KeyError: 'missing'")
    assert (said[2], said[-1]) == ("Traceback (most recent call last):", "KeyError: 'missing'")


def test_an_exception_that_nobody_awaits_is_a_fault_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[Report] = []

    async def failing() -> None:
        raise OSError("the cable was cut")

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(unexpected(reports.append))
        task = asyncio.create_task(failing())
        await asyncio.wait({task})
        del task
        gc.collect()

    asyncio.run(story())
    assert reports == [
        Report("error", "fault", "Task exception was never retrieved: OSError: the cable was cut"),
    ]
    assert "Traceback" in caplog.text


def test_a_traceback_in_a_log_is_told_whole() -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    log = [
        f"{stamp} ERROR   Error handling request",
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in <module>',
        "OSError: the cable was cut",
        f"{stamp} INFO    started: a of demo",
        f"{stamp} INFO    nothing more",
    ]
    assert list(_whole(log, 1)) == log[:5]
    assert list(_whole(log, 4)) == [log[4]]


def test_a_work_that_ended_and_should_not_have_is_told_by_status_metrics_and_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(upkeep, "WATCH_SECONDS", 0.01)
    fleet = LocalFleet(tmp_path, HOSTS, ROUTING)
    fleet.prepare()
    folder = fleet.nodes["a"].folder

    async def story() -> None:
        hosts_file = load_fleet(folder / HOSTS_FILE_NAME)
        identity = Identity.load(folder, now=time.time(), cluster=hosts_file.cluster)
        agent = Agent(folder, identity, hosts_file, {}, reports.append)
        await agent.start()
        try:
            service = Service(agent)
            assert (agent.healthy(), (await service.status(False))["not_running"]) == (True, [])
            agent.transfers.watch = lambda: {}["missing"]  # type: ignore[method-assign]
            await until(lambda: not agent.healthy(), "the watchdog to be told")
            assert (await service.status(False))["not_running"] == ["upkeep: watch_transfers"]
            assert b"spore_not_running 1.0" in agent.render_metrics()
            assert Report("error", "fault", "upkeep: watch_transfers failed: KeyError: 'missing'") in reports
            service.close()
        finally:
            await agent.stop()

    run(story)


def test_every_work_that_should_never_end_is_looked_at(tmp_path: Path) -> None:
    a = issuer_identity(tmp_path / "a")

    async def story() -> None:
        async with Node(a) as node:
            assert node.sessions.ended() + node.listener.ended() == []
            for task in asyncio.all_tasks():
                if task.get_name() in ("heartbeats of sessions", "listener"):
                    task.cancel()
            await until(lambda: node.sessions.ended() + node.listener.ended() == ["heartbeats of sessions", "listener"])

    run(story)
