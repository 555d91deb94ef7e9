"""How many connections a node lets in, and from where: counted from accept until the socket is closed.

The count hangs on the socket itself (`CountedSocket`), because a connection passes from the accept loop to TLS, to
aiohttp or to a thread, and whoever ends it last closes the socket.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the listener lets in at once; every bound says why."""

    open_max: int = 1_024  # a fleet of 500 nodes with a session and a transfer each; below the usual 4,096 descriptors
    open_per_address_max: int = 256  # fleets behind one NAT, and all agents of a demo, share an address
    unproven_max: int = 256  # connections whose handshake is not over: strangers must not hold all the places
    unproven_per_address_max: int = 64  # one stranger must not hold all of those; 64 handshakes take us 0.2 s of CPU
    bulk_threads_max: int = 64  # each is a thread with 1 MiB buffers: 64 MiB in all
    bulk_per_address_max: int = 32  # a stranger who only begins handshakes must not hold every thread
    hello_seconds: float = 10.0  # a hello is one packet; ten seconds ride out two lost ones on a bad line
    handshake_seconds: float = 10.0  # two round trips and 5 ms of CPU, on a machine that may be busy training


class CountedSocket(socket.socket):
    """An accepted socket that says once when it is closed."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        tell, self.on_close = self.on_close, None
        if tell is not None:
            tell()


class ConnectionCount:
    """Counts open and unproven connections, in all and per address."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()
        self._unproven: Counter[str] = Counter()

    @property
    def open(self) -> int:
        return self._open.total()

    def refusal(self, address: str) -> str:
        """Why a connection from this address cannot be let in now, or nothing."""
        limits = self._limits
        if self._open[address] >= limits.open_per_address_max:
            return f"it has {limits.open_per_address_max} connections open already"
        if self._unproven[address] >= limits.unproven_per_address_max:
            return f"it has {limits.unproven_per_address_max} unfinished handshakes already"
        if self._open.total() >= limits.open_max:
            return f"this node has {limits.open_max} connections open, which is all it takes"
        if self._unproven.total() >= limits.unproven_max:
            return f"this node has {limits.unproven_max} unfinished handshakes, which is all it takes"
        return ""

    def admit(self, accepted: socket.socket, address: str) -> CountedSocket:
        """Count the connection as open and unproven until `proven`, and as open until it is closed."""
        counted = CountedSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
        counted.setblocking(False)
        self._open[address] += 1
        self._unproven[address] += 1
        counted.on_close = lambda: _subtract(self._open, address)
        return counted

    def proven(self, address: str) -> None:
        """The handshake is over, one way or the other."""
        _subtract(self._unproven, address)


def _subtract(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]  # addresses come and go: the counter holds only those that are here
