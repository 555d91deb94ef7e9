"""The moving line of a long command, on stderr: how far, how fast, how long still, and why it stalls.

It appears on terminals alone; programs read the result.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.cli.client import Client
from node.cli.failures import CommandFailed
from node.cli.output import in_bytes, in_time, plain

REDRAW_SECONDS = 0.1  # faster is flicker
POLL_SECONDS = 0.5  # between questions to the agent, each a few hundred microseconds of its time
STALLED_SECONDS = 2.0  # without a byte; shorter pauses are ordinary
RATE_WINDOW_SECONDS = 5.0  # the rate of the last seconds: a start-up or an old stall must not blur it


@dataclass(frozen=True, slots=True)
class Position:
    """How far a command is. `total` 0: unknown. `unit` "bytes", or the plural of what is counted."""

    done: float
    total: float = 0
    unit: str = "bytes"
    why: str = ""


class ProgressLine:
    """Shows positions in one line; silent when stderr is no terminal."""

    def __init__(self, label: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._clock = label, clock
        self.shown = sys.stderr.isatty()
        self._drawn = -REDRAW_SECONDS
        self._past: deque[tuple[float, float]] = deque()
        self._lock = threading.Lock()  # a poller and the command itself may both draw

    def show(self, position: Position) -> None:
        with self._lock:
            now = self._clock()
            if not self.shown or now - self._drawn < REDRAW_SECONDS:
                return
            self._drawn = now
            line = f"{self._label}  {self.describe(position)}"[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()

    def describe(self, position: Position) -> str:
        """The line without its label: `512.0 MiB of 1.0 GiB, 48.0 MiB/s, 11 s left, being sent to node-b`."""
        rate, seconds = self._rate(position.done)
        parts = [_amount(position)]
        if rate > 0:
            parts.append(f"{in_bytes(rate)}/s" if position.unit == "bytes" else f"{rate:,.1f} {position.unit}/s")
            if position.total > position.done:
                parts.append(f"{in_time((position.total - position.done) / rate)} left")
        elif seconds >= STALLED_SECONDS and 0 < position.done < position.total:
            parts.append("stalled")
        return ", ".join([*parts, *([plain(position.why)] if position.why else [])])

    def _rate(self, done: float) -> tuple[float, float]:
        """What moved each second, over how many seconds."""
        now = self._clock()
        self._past.append((now, done))
        while now - self._past[0][0] > RATE_WINDOW_SECONDS and len(self._past) > 2:
            self._past.popleft()
        then, before = self._past[0]
        return (done - before) / (now - then) if now > then else 0.0, now - then

    def clear(self) -> None:
        """Take the line away, for what is printed next."""
        with self._lock:
            if self.shown and self._drawn > 0:
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()


def _amount(position: Position) -> str:
    if position.unit == "bytes":
        total = f" of {in_bytes(position.total)}" if position.total else ""
        return f"{in_bytes(position.done)}{total}"
    total = f" of {position.total:,.0f}" if position.total else ""
    return f"{position.done:,.0f}{total} {position.unit}"


@contextmanager
def watching(directory: Path, line: ProgressLine, look: Callable[[Client], Position]) -> Iterator[None]:
    """While the body waits for its answer, ask the agent how far it is, over a connection of its own."""
    if not line.shown:
        yield
        return
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(directory, line, look, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        line.clear()


def _watch(directory: Path, line: ProgressLine, look: Callable[[Client], Position], stop: threading.Event) -> None:
    try:
        with Client(directory) as client:
            while not stop.wait(POLL_SECONDS):
                line.show(look(client))
    except (CommandFailed, OSError):
        return  # the answer that the body waits for will tell
