"""The client's end of the local socket: standard library alone, blocking, one JSON object per line.

`docs/protocol.md`, "Local socket", describes what is said here.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, AgentRefused, CommandFailed, NoAgent
from node.local_socket import SOCKET_NAME, address_of

READ_BUFFER_BYTES = 256 << 10  # thousands of short answers, or a quarter of a block, in one system call


class Client:
    """One connection to the agent of a node's folder."""

    def __init__(self, directory: Path) -> None:
        """Connect. Raises NoAgent, or CommandFailed when the socket is not ours to use."""
        self.directory = directory
        self.sock = _connect(directory)
        self._incoming = self.sock.makefile("rb", buffering=READ_BUFFER_BYTES)

    def close(self) -> None:
        self._incoming.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _problem: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """The one answer to a request. Raises AgentRefused, CommandFailed."""
        self.send(command, arguments)
        return self.receive()["answer"]

    def rows(self, command: str, **arguments: Any) -> Iterator[Any]:
        """The answers to a request that has many. Raises AgentRefused, CommandFailed."""
        self.send(command, arguments)
        while (line := self.receive()).get("more"):
            yield line["answer"]

    def send(self, command: str, arguments: dict[str, Any]) -> None:
        # An agent that closed may have said why before: `receive` finds out.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(request_line(0, command, arguments))

    def receive(self) -> dict[str, Any]:
        """The next line, if it is no error."""
        line = self.read_line()
        if "error" in line:
            raise AgentRefused(line["error"], line["exit"])
        return line

    def read_line(self) -> dict[str, Any]:
        """The next line, whatever it says. Raises CommandFailed at the end of the connection."""
        try:
            line = self._incoming.readline()
        except ConnectionResetError:
            line = b""
        if not line.endswith(b"\n"):
            raise self.gone()
        fields: dict[str, Any] = json.loads(line)
        return fields

    def read_block(self, size: int) -> bytes:
        block: bytes = self._incoming.read(size)
        if len(block) != size:
            raise self.gone()
        return block

    def gone(self) -> CommandFailed:
        return CommandFailed(
            f"the agent at {self.directory} stopped before it had answered; see its log, and start it again with "
            f"`spore agent {self.directory}`",
            EXIT_NOT_ACHIEVED,
        )


def request_line(request_id: int, command: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"id": request_id, "do": command, **arguments}, separators=(",", ":")).encode() + b"\n"


def agent_runs(directory: Path) -> bool:
    """Whether an agent answers at this folder."""
    try:
        _connect(directory).close()
    except NoAgent:
        return False
    return True


def _connect(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address_of(directory / SOCKET_NAME) as address:
            sock.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        sock.close()
        raise NoAgent(_nobody(directory)) from None
    except OSError as problem:
        sock.close()
        raise CommandFailed(
            f"the agent at {directory} cannot be reached ({problem.strerror}): run this as the agent's user or as a "
            "member of its group",
            EXIT_USAGE,
        ) from problem
    return sock


def _nobody(directory: Path) -> str:
    if (directory / "identity").is_dir():
        return f"no agent runs at {directory}; start it with `spore agent {directory}`"
    return (
        f"no agent runs at {directory}, and no node lives there; name the node's folder with --dir or $SPORE_DIR, or "
        "make one with `spore init` or `spore join`"
    )
