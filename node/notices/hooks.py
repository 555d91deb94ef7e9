"""Notices of everything else: a file that somebody writes, or a command that says yes.

The file's first line, and the command's, may be the seconds that are left; without it the default holds. A file that
exists and a command that ends with 0 mean that the end is coming; a command that ends with 1 means that it is not.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.notices.seen import Coming, Seen, SourceTrouble

LINE_BYTES_MAX = 200
COMMAND_SECONDS_MAX = 30.0
NOT_COMING = 1  # the exit code of a command that saw nothing
SECONDS_MAX = 30 * 86_400.0


@dataclass(slots=True)
class _Hook:
    """Remembers when the end was first announced: later looks do not move it."""

    seconds: float
    clock: Callable[[], float]
    _at: float | None = None

    def coming(self, line: str, why: str) -> Coming:
        if self._at is None:
            self._at = self.clock() + _seconds(line, self.seconds)
        return Coming(self._at, why)


def _seconds(line: str, otherwise: float) -> float:
    try:
        stated = float(line.strip())
    except ValueError:
        return otherwise
    return stated if 0 <= stated <= SECONDS_MAX else otherwise


@dataclass(slots=True)
class FileHook:
    """`SPORE_NOTICE_FILE`: the file exists."""

    path: Path
    seconds: float
    interval_seconds: float = 1.0
    clock: Callable[[], float] = time.time
    _hook: _Hook | None = field(default=None)

    def look(self) -> Seen:
        """Raises SourceTrouble."""
        try:
            with self.path.open("rb") as file:
                line = file.readline(LINE_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:
            self._hook = None  # removed again: the notice is withdrawn
            return Seen()
        except OSError as problem:
            raise SourceTrouble(f"the notice file {self.path} cannot be read: {problem.strerror}") from problem
        self._hook = self._hook or _Hook(self.seconds, self.clock)
        return Seen(self._hook.coming(line, f"{self.path} says that this machine will be taken away"))


@dataclass(slots=True)
class CommandHook:
    """`SPORE_NOTICE_COMMAND`: a shell command ends with 0."""

    command: str
    seconds: float
    interval_seconds: float = 5.0
    clock: Callable[[], float] = time.time
    _hook: _Hook | None = field(default=None)

    def look(self) -> Seen:
        """Raises SourceTrouble."""
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", self.command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise SourceTrouble(f"the notice command did not end: {problem}"[:300]) from problem
        if done.returncode == NOT_COMING:
            self._hook = None
            return Seen()
        if done.returncode:
            raise SourceTrouble(f"the notice command ended with {done.returncode}; it should with 0 or 1")
        self._hook = self._hook or _Hook(self.seconds, self.clock)
        line = done.stdout[:LINE_BYTES_MAX].decode(errors="replace").partition("\n")[0]
        return Seen(self._hook.coming(line, "the notice command says that this machine will be taken away"))
