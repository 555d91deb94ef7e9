"""The end, announced: watches for notices around one running agent, and acts on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from node.agent import Agent
from node.notices.ending import Ending
from node.notices.seen import Coming
from node.notices.watching import Watching, notice_seconds, sources_for
from protocol import events as e
from protocol.effects import Report


class Announced:
    """Made beside the agent; `start` once it runs, `stop` at its end. `go` begins the last flush.

    Raises ValueError, one sentence, for a variable of the environment that says nothing.
    """

    def __init__(self, agent: Agent, go: Callable[[], None]) -> None:
        self._agent = agent
        self._go = go
        self._going: asyncio.TimerHandle | None = None
        provider = agent.fleet.host(agent.node).provider or ""
        self.signal_seconds = notice_seconds(agent.env)
        self.ending = Ending(time.time, self._begin_plan, self._hurry, self._withdrawn, self._go_in)
        self.watching = Watching(
            sources_for(provider, agent.env),
            on_coming=lambda name, coming: self._from_thread(self.ending.noticed, name, coming),
            on_spot=lambda why: self._from_thread(agent.found_spot, why),
            on_report=agent.report_from_thread,
        )

    def start(self) -> None:
        self.watching.start()

    def stop(self) -> None:
        self.watching.stop()
        if self._going is not None:
            self._going.cancel()

    def signalled(self) -> None:
        """SIGUSR1: a batch system says that the job will end."""
        why = f"SIGUSR1: the job ends in about {self.signal_seconds:g} s"
        self.ending.noticed("signal", Coming(time.time() + self.signal_seconds, why))

    def facts(self) -> dict[str, Any]:
        return {"watched": sorted(self.watching.sources), "coming": self.ending.facts()}

    def _from_thread(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            self._agent.loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            return  # the loop has closed: the agent is gone

    def _begin_plan(self, seconds_left: float, why: str) -> None:
        self._agent.post(e.Notice(self._agent.now_ms() + int(seconds_left * 1000), why))

    def _hurry(self, seconds: float, why: str) -> None:
        self._agent.report(Report("warning", "notice", why))
        self._agent.post(e.Flush(0, self._agent.now_ms() + int(seconds * 1000), leave=False))

    def _withdrawn(self, why: str) -> None:
        self._agent.post(e.Notice(0, why))

    def _go_in(self, seconds: float | None) -> None:
        """A later word replaces an earlier one; None takes it back."""
        if self._going is not None:
            self._going.cancel()
        self._going = None if seconds is None else self._agent.loop.call_later(seconds, self._go)
