"""Metrics without TLS, on loopback alone: for a collector on the same machine that cannot show a certificate.

Off unless the hosts file says `metrics_port`. A port that cannot be had is reported and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from protocol.effects import Report

LOOPBACK = "127.0.0.1"
TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' exposition format


class MetricsPort:
    """Serves `GET /metrics`. `start`, then `stop`; safe to stop without a start."""

    def __init__(self, render: Callable[[], bytes], report: Callable[[Report], None]) -> None:
        self._render = render
        self._report = report
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, LOOPBACK, port).start()
        except OSError as problem:
            reason = problem.strerror or problem
            self._report(Report("error", "metrics_port", f"metrics are not shown on {LOOPBACK}:{port}: {reason}"))

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"Content-Type": TEXT})
