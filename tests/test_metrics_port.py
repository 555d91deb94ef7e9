"""Metrics on loopback, for a collector without a certificate: shown there alone, and never in the agent's way."""

import asyncio
import socket
import urllib.error
import urllib.request

import pytest

from node.metrics_port import MetricsPort
from protocol.effects import Report


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(port: int, path: str = "/metrics") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return bytes(answer.read())


def test_metrics_are_shown_and_nothing_else() -> None:
    async def story() -> None:
        port = free_port()
        shown = MetricsPort(lambda: b"spore_accepting 1.0\n", lambda report: None)
        await shown.start(port)
        assert await asyncio.to_thread(fetch, port) == b"spore_accepting 1.0\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(fetch, port, "/v1/healthz")
        await shown.stop()
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(fetch, port)

    asyncio.run(story())


def test_a_port_that_is_taken_is_reported_and_stops_nothing() -> None:
    async def story() -> list[Report]:
        reports: list[Report] = []
        with socket.create_server(("127.0.0.1", 0)) as taken:
            shown = MetricsPort(lambda: b"", reports.append)
            await shown.start(taken.getsockname()[1])
            await shown.stop()
        await shown.stop()
        return reports

    (report,) = asyncio.run(story())
    assert (report.level, report.event) == ("error", "metrics_port")
    assert "metrics are not shown on 127.0.0.1:" in report.message
