"""Running an external program for one order: an argument list, no shell, bounded time, and an end that is certain.

The program gets a session of its own, so that everything it starts (ssh below rsync) ends with it: when the order is
cancelled, when the agent stops, and when it says nothing for too long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from node.bulk_client import Job
from node.bulk_stream import sentence_of

OUTPUT_BYTES_MAX = 8 << 20  # of an answer that is read whole: chunk lists of 100 GB are 3.2 MB, 6.4 in hexadecimal
KILL_SECONDS = 2.0  # between the polite signal and the other one
LOOK_SECONDS = 0.2  # between looks at how far a program is


class ProgramFailed(Exception):
    """A program ended badly, or did not end; the message is a sentence with its last words."""


class Program:
    """One running program. Use it with `with`; on leaving it is ended if it still runs."""

    def __init__(self, arguments: Sequence[str], job: Job, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        """Start it. Raises ProgramFailed, or Cancelled when the order has ended already."""
        self.name = Path(arguments[0]).name
        self._job = job
        self._output = bytearray()
        base = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
        try:
            self.process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**base, **(env or {})},
                start_new_session=True,
                close_fds=True,
            )
        except OSError as problem:
            raise ProgramFailed(f"{self.name} cannot be started: {problem.strerror or problem}") from problem
        self._reader = threading.Thread(target=self._read, name=f"{self.name}-output", daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        try:
            self._job.adopt(self)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._job.release(self)
        self.close()

    def wait(self, seconds: float, moved: Callable[[], bool] = lambda: False) -> bytes:
        """Its output, once it has ended well. `moved` is asked now and then whether it got further; after `seconds`
        in which it did not, it is ended. Raises ProgramFailed, Cancelled."""
        until = time.monotonic() + seconds
        while True:
            try:
                code = self.process.wait(LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                self._job.go_on()
                if moved():
                    until = time.monotonic() + seconds
                if time.monotonic() > until:
                    self.close()
                    raise ProgramFailed(f"{self.name} made no progress for {seconds:.0f} s and was ended") from None
        self._reader.join(KILL_SECONDS)
        self._job.go_on()
        moved()
        if code:
            raise ProgramFailed(f"{self.name} ended with {code}: {self.last_words()}")
        return bytes(self._output)

    def last_words(self) -> str:
        lines = [line.strip() for line in bytes(self._output[-4096:]).decode(errors="replace").splitlines()]
        return sentence_of(" · ".join([line for line in lines if line][-3:]) or "it said nothing")

    def abort(self) -> None:
        """From any thread: end it at once."""
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """End it and all it started, and wait until it has ended."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(KILL_SECONDS)
        self._signal(signal.SIGKILL)  # whatever of its session is left
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            while block := stream.read1(65536):  # type: ignore[attr-defined]  # a pipe is a buffered reader
                if len(self._output) < OUTPUT_BYTES_MAX:
                    self._output += block


def lacking(*names: str) -> str:
    """Which of these programs are not installed, in a sentence; "" when all are."""
    absent = [name for name in names if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""
