"""Azure: Scheduled Events, asked every second.

A `Preempt` event names the machines it concerns and the moment before which nothing happens, 30 s ahead at least. The
first request of a machine switches the service on and may take two minutes: hence its patience. Events are not
approved, which would only hasten them. See "Scheduled Events for Linux VMs" in the Azure documentation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from node.notices.metadata import Answer, Metadata
from node.notices.seen import Coming, Seen, SourceTrouble, read_time

NOTICE_SECONDS = 30.0  # where the event does not say when
FIRST_SECONDS_MAX = 150.0
ASK_SECONDS_MAX = 5.0
HEADERS = {"Metadata": "true"}
EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
PRIORITY_PATH = "/metadata/instance/compute/priority?api-version=2021-02-01&format=text"


@dataclass(slots=True)
class Azure:
    metadata: Metadata = field(default_factory=Metadata)
    interval_seconds: float = 1.0
    clock: Callable[[], float] = time.time
    _name: str = ""  # ours, as events name machines
    _spot: str = ""
    _answered: bool = False
    _at: dict[str, float] = field(default_factory=dict)  # by event: when, where it does not say so itself

    def look(self) -> Seen:
        """Raises SourceTrouble."""
        if not self._name:
            self._name = self._get(NAME_PATH, ASK_SECONDS_MAX).text.strip()
            priority = self._get(PRIORITY_PATH, ASK_SECONDS_MAX).text.strip()
            self._spot = "Azure calls it a spot machine" if priority.lower() in ("spot", "low") else ""
        answer = self._get(EVENTS_PATH, ASK_SECONDS_MAX if self._answered else FIRST_SECONDS_MAX)
        self._answered = True
        return Seen(self._coming(answer), self._spot)

    def _coming(self, answer: Answer) -> Coming | None:
        try:
            events = json.loads(answer.text)["Events"]
            ours = [event for event in events if event["EventType"] == "Preempt" and self._name in event["Resources"]]
        except (ValueError, KeyError, TypeError) as problem:
            raise SourceTrouble("the scheduled events of Azure cannot be read") from problem
        return min((self._read(event) for event in ours), key=lambda coming: coming.at or 0.0, default=None)

    def _read(self, event: dict[str, Any]) -> Coming:
        """An event that has started says no time any more: what it said before holds, or 30 s from now."""
        stated = read_time(str(event.get("NotBefore", "")))
        key = str(event.get("EventId", ""))[:100]
        if stated is not None:
            self._at = {key: stated}
        at = self._at.get(key)
        if at is None:
            at = self.clock() + NOTICE_SECONDS
            self._at = {key: at}
        return Coming(at, "Azure evicts this machine: its Preempt event is scheduled")

    def _get(self, path: str, seconds_max: float) -> Answer:
        answer = self.metadata.ask("GET", path, HEADERS, seconds_max)
        if answer.status != 200:
            raise SourceTrouble(f"Azure answered {answer.status} for {path.partition('?')[0]}")
        return answer
