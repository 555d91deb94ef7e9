"""Watches the sources of notices that apply to this machine, each in a thread of its own.

Threads are daemons: a metadata service that does not answer must not hold up the end of the process. What a source says
is handed over when it changes; trouble is reported once, and when it is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from node.notices.aws import Aws
from node.notices.azure import Azure
from node.notices.gcp import Gcp
from node.notices.hooks import CommandHook, FileHook
from node.notices.metadata import LINK_LOCAL_URL, Metadata
from node.notices.seen import Coming, Seen, SourceTrouble
from protocol.effects import Report

METADATA_URL, NOTICE_FILE, NOTICE_COMMAND = "SPORE_METADATA_URL", "SPORE_NOTICE_FILE", "SPORE_NOTICE_COMMAND"
NOTICE_SECONDS = "SPORE_NOTICE_SECONDS"
NOTICE_SECONDS_DEFAULT = 60.0  # what Slurm's --signal means when no time is given
TROUBLE_SECONDS = 5.0  # after a failure a source is asked again not before this


class Source(Protocol):
    """One way to learn of the end."""

    @property
    def interval_seconds(self) -> float: ...

    def look(self) -> Seen:
        """What is known now. May block for minutes. Raises SourceTrouble."""
        ...


def notice_seconds(environment: Mapping[str, str]) -> float:
    """How long before the end a notice without a time comes. Raises ValueError with one sentence."""
    text = environment.get(NOTICE_SECONDS, "").strip()
    try:
        seconds = float(text) if text else NOTICE_SECONDS_DEFAULT
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 30 * 86_400:
        raise ValueError(f"{NOTICE_SECONDS}={text!r} is no number of seconds; write one such as 60")
    return seconds


def sources_for(provider: str, environment: Mapping[str, str]) -> dict[str, Source]:
    """The sources for a provider, and for the hooks that the environment names. Raises ValueError."""
    metadata = Metadata(environment.get(METADATA_URL, "").strip() or LINK_LOCAL_URL)
    sources: dict[str, Source] = {}
    if provider == "aws":
        sources["aws"] = Aws(metadata)
    elif provider in ("gcp", "gke"):
        sources["gcp"] = Gcp(metadata)
    elif provider == "azure":
        sources["azure"] = Azure(metadata)
    seconds = notice_seconds(environment)
    if path := environment.get(NOTICE_FILE, "").strip():
        sources["file"] = FileHook(Path(path), seconds)
    if command := environment.get(NOTICE_COMMAND, "").strip():
        sources["command"] = CommandHook(command, seconds)
    return sources


@dataclass(slots=True)
class Watching:
    """Runs the sources. The callbacks are called from their threads."""

    sources: Mapping[str, Source]
    on_coming: Callable[[str, Coming | None], None]
    on_spot: Callable[[str], None]
    on_report: Callable[[Report], None]
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for name, source in self.sources.items():
            threading.Thread(target=self._watch, args=(name, source), name=f"notices-{name}", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self, name: str, source: Source) -> None:
        seen, trouble = Seen(), ""
        while not self._stop.is_set():
            pause = source.interval_seconds
            try:
                latest = source.look()
            except SourceTrouble as problem:
                pause = max(pause, TROUBLE_SECONDS)
                self._report_change(name, trouble, trouble := str(problem))
            else:
                self._report_change(name, trouble, trouble := "")
                self._hand_over(name, seen, latest)
                seen = latest
            self._stop.wait(pause)

    def _hand_over(self, name: str, before: Seen, now: Seen) -> None:
        if now.spot and now.spot != before.spot:
            self.on_spot(now.spot)
        if now.coming != before.coming:
            self.on_coming(name, now.coming)

    def _report_change(self, name: str, before: str, now: str) -> None:
        """Once when it begins, once when it is over: a service that is away is asked thousands of times."""
        if now and not before:
            self.on_report(Report("warning", "notices_blind", f"notices of {name} cannot be read: {now}"))
        elif before and not now:
            self.on_report(Report("info", "notices_seen", f"notices of {name} can be read again"))
