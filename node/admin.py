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

from node.admin_connection import READ_BUFFER_BYTES, Connection
from node.door import EXIT_NOT_ACHIEVED, Door
from node.local_socket import address_of, peer_user

CONNECTIONS_MAX = 64  # people, scripts and one per training process of a node; each may hold 16 MiB of contents
SOCKET_MODE = 0o660  # the group of the agent's user may use the node, nobody else
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
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._identity: tuple[int, int] | None = None  # of the socket file, to remove no other

    async def start(self) -> None:
        """Listen. Raises AdminRefused when another agent answers there, or the path holds something else."""
        _clear(self._path)
        listening = _bind(self._path)
        try:
            found = self._path.stat()
            self._identity = (found.st_dev, found.st_ino)
            self._server = await asyncio.start_unix_server(self._accept, sock=listening, limit=READ_BUFFER_BYTES)
        except BaseException:
            listening.close()
            raise

    async def stop(self) -> None:
        """Cancel what runs, close every connection, remove the socket. Safe to call twice."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await server.wait_closed()
        with suppress(FileNotFoundError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "the stream server runs this in a task"
        if len(self._serving) >= CONNECTIONS_MAX:
            await _turn_away(writer)
            return
        self._serving.add(task)
        try:
            await Connection(reader, writer, self._door, trusted=self._trusted(writer)).serve()
        except asyncio.CancelledError:
            pass  # by `stop`; the connection has closed itself
        finally:
            self._serving.discard(task)

    def _trusted(self, writer: asyncio.StreamWriter) -> bool:
        try:
            user = self._user_of(writer.get_extra_info("socket"))
        except OSError:
            return False
        return user in (self._owner, ROOT)


async def _turn_away(writer: asyncio.StreamWriter) -> None:
    sentence = f"the agent serves {CONNECTIONS_MAX} clients already; close one of them and try again"
    line = json.dumps({"id": None, "error": sentence, "exit": EXIT_NOT_ACHIEVED})
    with suppress(ConnectionError):
        writer.write(line.encode() + b"\n")
        await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


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
