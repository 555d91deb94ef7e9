"""The agent's end of the local socket: `DIR/agent.sock`, for the command line, scripts and training code.

One JSON object per line in, one or more out, content as raw bytes after its line; docs/protocol.md, "Local socket",
has the whole of it. The kernel says who is at the other end: the socket is open to the agent's user and group, and
what destroys is for the agent's user and root alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from node.admin_connection import READ_BUFFER_BYTES, Connection, close_writer
from node.door import EXIT_NOT_ACHIEVED, Door
from node.local_socket import address_of, peer_user

CONNECTIONS_MAX = 64  # people, scripts and one per training process of a node; each may hold 16 MiB of contents
SOCKET_MODE = 0o660  # the group of the agent's user may use the node, nobody else
ACCEPT_AGAIN_SECONDS = 1.0  # without a free descriptor; trying at once again would only spin
ROOT = 0


class AdminRefused(OSError):
    """The socket cannot be had; one sentence says why and what to do."""


class AdminServer:
    """Serves a `Door` on a UNIX socket. `start`, then `stop`."""

    def __init__(
        self,
        path: Path,
        door: Door,
        *,
        owner: int | None = None,
        user_of: Callable[[socket.socket], int] = peer_user,
    ) -> None:
        self._path, self._door, self._user_of = path, door, user_of
        self._owner = os.geteuid() if owner is None else owner
        self._listening: socket.socket | None = None
        self._serving: dict[asyncio.Task[None], socket.socket] = {}
        self._identity: tuple[int, int] | None = None  # of the socket file, to remove no other

    async def start(self) -> None:
        """Listen. Raises AdminRefused when another agent answers there, or the path holds something else."""
        _clear(self._path)
        self._listening = _bind(self._path)
        found = self._path.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._accept_from(self._listening)

    async def stop(self) -> None:
        """Cancel what runs, close every connection, remove the socket. Safe to call twice."""
        if self._listening is None:
            return
        listening, self._listening = self._listening, None
        asyncio.get_running_loop().remove_reader(listening)
        listening.close()
        serving = dict(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # the turn in which aborted connections let go of their sockets
        for sock in serving.values():
            sock.close()  # of a task that was cancelled before it began; of others, again
        with suppress(FileNotFoundError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()

    # An `asyncio.Server` loses connections that it accepts in the very turn in which it is closed (CPython 3.11).

    def _accept_from(self, listening: socket.socket) -> None:
        if listening is self._listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is free: the connection waits in the kernel until one is
            loop.remove_reader(listening)
            loop.call_later(ACCEPT_AGAIN_SECONDS, self._accept_from, listening)
            return
        sock.setblocking(False)
        task = loop.create_task(self._serve(sock, full=len(self._serving) >= CONNECTIONS_MAX))
        self._serving[task] = sock
        task.add_done_callback(lambda ended: self._serving.pop(ended, None))

    async def _serve(self, sock: socket.socket, *, full: bool) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=READ_BUFFER_BYTES)
        if full:
            await _turn_away(writer)
        else:
            await Connection(reader, writer, self._door, trusted=self._trusted(sock)).serve()

    def _trusted(self, sock: socket.socket) -> bool:
        try:
            user = self._user_of(sock)
        except OSError:
            return False
        return user in (self._owner, ROOT)


async def _turn_away(writer: asyncio.StreamWriter) -> None:
    sentence = f"the agent serves {CONNECTIONS_MAX} clients already; close one of them and try again"
    line = json.dumps({"id": None, "error": sentence, "exit": EXIT_NOT_ACHIEVED})
    with suppress(ConnectionError):
        writer.write(line.encode() + b"\n")
        await writer.drain()
    await close_writer(writer)


def _clear(path: Path) -> None:
    """Remove a socket that nobody answers at: what a killed agent left. Anything else is left alone."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AdminRefused(f"{path} is no socket; move it away and start the agent again")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.setblocking(False)  # a listening agent accepts at once or is too busy; either way it lives
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise AdminRefused(f"another agent answers at {path}; stop it first")


def _bind(path: Path) -> socket.socket:
    """A listening socket that was never open to others, not for a moment, whatever the umask."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), SOCKET_MODE)  # Linux gives the file the mode of the socket, less the umask
        with address_of(path) as address:
            sock.bind(address)
        path.chmod(SOCKET_MODE)
        sock.listen(CONNECTIONS_MAX)
        sock.setblocking(False)
    except OSError as problem:
        sock.close()
        raise AdminRefused(
            f"the socket {path} cannot be made ({problem.strerror or problem}); check the folder"
        ) from problem
    return sock
