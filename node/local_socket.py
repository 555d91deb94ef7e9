"""The address of the local socket, `DIR/agent.sock`: how both ends name it, and who is at the other end.

Standard library alone: the command line imports this at every start.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET_NAME = "agent.sock"
ADDRESS_BYTES_MAX = 107  # sun_path of unix(7) has 108 bytes with its final zero
LINE_BYTES_MAX = 64 << 10  # a request or a header: names have 1 KiB at most, a row of `status` some KiB
INLINE_BYTES_MAX = 64 << 10  # contents up to this size are handed over whole, as the WAL takes them whole
BLOCK_BYTES = 1 << 20  # contents above it travel in blocks: large enough to make their header and wake-up vanish


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """The address to bind or connect to. A path too long for a socket is reached through its opened folder."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_user(sock: socket.socket) -> int:
    """The user id of whoever connected, from the kernel (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
