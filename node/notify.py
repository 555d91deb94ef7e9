"""Tell the service manager how the agent is doing: systemd's notification protocol, with the standard library alone.

Every message is one datagram of `KEY=value` lines to the socket named by NOTIFY_SOCKET (a path, or `@name` in the
abstract namespace); see sd_notify(3). Without the variable every call does nothing. A message that cannot be sent is
logged once and never stops the agent: the service manager is a listener here, not a part.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType

log = logging.getLogger(__name__)

STATUS_CHARACTERS_MAX = 512  # one line of `systemctl status`; systemd drops datagrams above 4 KiB whole
SEND_SECONDS_MAX = 1.0  # a service manager that does not read must not hold up the agent's event loop for longer


class Notifier:
    """The one link to the service manager. Built by the agent at start; used from its loop thread only."""

    def __init__(self, address: str = "", *, watchdog_seconds: float | None = None) -> None:
        self._address = _socket_address(address)
        self._socket: socket.socket | None = None
        self._complained = False
        self.watchdog_seconds = watchdog_seconds  # the limit systemd enforces; None when it does not watch us
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(SEND_SECONDS_MAX)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """A notifier for the variables systemd set; a silent one when there are none."""
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_seconds=_watchdog_limit(environment))

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    @property
    def watchdog_interval_seconds(self) -> float | None:
        """Half the enforced limit, as sd_watchdog_enabled(3) advises; None when nobody watches."""
        return None if self.watchdog_seconds is None else self.watchdog_seconds / 2

    def ready(self, status: str = "") -> bool:
        """Start-up (or a reload) has finished."""
        return self._send("READY=1", *_status_line(status))

    def stopping(self, status: str = "") -> bool:
        return self._send("STOPPING=1", *_status_line(status))

    def reloading(self) -> bool:
        """A reload begins; `ready()` ends it. systemd orders the two by the monotonic clock's microseconds."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}")

    def status(self, text: str) -> bool:
        """The one line that `systemctl status` shows."""
        return self._send(*(_status_line(text) or ("STATUS=",)))

    def watchdog(self) -> bool:
        """Still alive; due at least every `watchdog_interval_seconds`."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping needs this much longer, counted from now."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1_000_000))}")

    async def keep_watchdog(self, alive: Callable[[], bool]) -> None:
        """Report life at the interval for as long as `alive()` says so; returns at once when nobody watches.

        Runs on the loop it vouches for: a loop that hangs sends nothing, and that is the point.
        """
        interval_seconds = self.watchdog_interval_seconds
        while self.enabled and interval_seconds is not None:
            if alive():
                self.watchdog()
            await asyncio.sleep(interval_seconds)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, *lines: str) -> bool:
        """Whether the service manager's socket took the message."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            self._complain(error)
            return False
        self._complained = False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            log.warning("the service manager cannot be told %s; check NOTIFY_SOCKET and NotifyAccess", error)
        self._complained = True


def _socket_address(address: str) -> str:
    """The address for `sendto`, or "" where there is none we can reach."""
    if not address:
        return ""
    if address.startswith("@"):
        return "\0" + address[1:]  # the kernel's abstract namespace is spelled with a leading NUL
    if address.startswith("/"):
        return address
    log.warning("NOTIFY_SOCKET=%.80r is neither a path nor @name; the service manager is not told anything", address)
    return ""


def _watchdog_limit(environment: Mapping[str, str]) -> float | None:
    """Seconds from WATCHDOG_USEC when they are meant for this process (WATCHDOG_PID is ours or absent)."""
    watched, limit_usec = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if watched and watched != str(os.getpid()):
        return None
    if not (limit_usec.isascii() and limit_usec.isdigit() and int(limit_usec) > 0):
        return None
    return int(limit_usec) / 1_000_000


def _status_line(text: str) -> tuple[str, ...]:
    """A status is one line: a line break in it would begin a new assignment."""
    line = " ".join(text.split())[:STATUS_CHARACTERS_MAX]
    return (f"STATUS={line}",) if line else ()
