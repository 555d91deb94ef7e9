"""What may be asked on the local socket: each command, its arguments and their bounds; and the reading of one line.

`docs/protocol.md`, "Local socket", is this table in words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from node.local_socket import LINE_BYTES_MAX
from protocol.clock import HLC_MAX

ID_CHARACTERS_MAX = 100  # an id is echoed in every line of its answer
COPIES_MAX = 10_000  # no fleet is larger
SECONDS_MAX = 10 * 365 * 86_400.0  # a wait beyond it is a wait for ever, written 0
SIZE_MAX = (1 << 63) - 1  # of a file, and of an integer in SQLite
Id = int | str | None


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command. `default` is ... when it must be given."""

    type: type
    default: Any = ...
    maximum: float = 0


_TEXT = Argument(str)
_WORD = Argument(str, "")
_COPIES = Argument(int, 0, COPIES_MAX)
_SECONDS = Argument(float, 0.0, SECONDS_MAX)
_FLAG = Argument(bool, False)

COMMANDS: Mapping[str, Mapping[str, Argument]] = {
    "put": {
        "kind": _TEXT,
        "name": _TEXT,
        "size": Argument(int, ..., SIZE_MAX),
        "mode": Argument(int, 0o644, 0o777),
        "wait_copies": _COPIES,
        "domains": _COPIES,
        "timeout_seconds": _SECONDS,
        "origin": _WORD,
        "hlc": Argument(int, 0, HLC_MAX),
        "digest": _WORD,
        "meta": _WORD,
    },
    "get": {"name": _TEXT},
    "ls": {"glob": Argument(str, None)},
    "where": {"name": _TEXT},
    "rm": {"name": _TEXT},
    "status": {"cluster": _FLAG},
    "peers": {},
    "risk": {"cluster": _FLAG},
    "events": {"follow": _FLAG},
    "wait": {"name": _TEXT, "copies": Argument(int, ..., COPIES_MAX), "domains": _COPIES, "timeout_seconds": _SECONDS},
    "flush": {"deadline_seconds": Argument(float, ..., SECONDS_MAX)},
    "verify": {"rebuild": _FLAG},
    "token": {
        "ttl_seconds": Argument(float, ..., SECONDS_MAX),
        "uses": Argument(int, 1, 1_000_000),
        "ephemeral": _FLAG,
    },
    "revoke": {"node": _TEXT},
    "renew": {},
    "remove": {"node": _TEXT},
    "drain": {"copies": _COPIES, "deadline_seconds": Argument(float, 3600.0, SECONDS_MAX), "undo": _FLAG},
    "progress": {"name": _TEXT},
    "plan": {"name": _TEXT},
    "age": {"glob": Argument(str, None)},
    "recommend": {},
    "expire": {"glob": _TEXT, "older_seconds": Argument(float, ..., SECONDS_MAX)},
    "broadcast": {"name": _TEXT},
    "delivery": {"name": _TEXT},
    "pin": {"name": _TEXT, "node": Argument(str, ""), "pinned": Argument(bool, True)},
    "sync": {
        "glob": Argument(str, None),
        "to": Argument(str, ""),
        "priority": Argument(str, ""),
        "timeout_seconds": _SECONDS,
    },
    "lend": {"digest": _TEXT, "to": _TEXT, "priority": Argument(str, "normal")},
    "limit": {"node": Argument(str, ""), "rate": Argument(str, "")},
}
# These, and `verify` with `rebuild`, destroy, or let machines in.
OWNERS_ONLY = frozenset({"rm", "expire", "revoke", "remove", "drain", "token"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked. Made here, performed by a connection."""

    id: Id
    command: str
    arguments: Mapping[str, Any]

    @property
    def destructive(self) -> bool:
        return self.command in OWNERS_ONLY or bool(self.arguments.get("rebuild") or self.arguments.get("origin"))


class BadRequest(Exception):
    """A line that is no request; one sentence. `skip_bytes` of content follow it, None when nobody can know."""

    def __init__(self, sentence: str, request_id: Id = None, skip_bytes: int | None = 0) -> None:
        super().__init__(sentence)
        self.request_id = request_id
        self.skip_bytes = skip_bytes


def read_request(line: bytes) -> Request:
    """The request in one line. Raises BadRequest."""
    if len(line) > LINE_BYTES_MAX:
        raise BadRequest(f"a request has at most {LINE_BYTES_MAX} bytes in its line; send content after the line")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("this line is no JSON; send one JSON object per line") from None
    if not isinstance(fields, dict):
        raise BadRequest('this line is no JSON object; send one like {"id": 1, "do": "status"}')
    request_id = fields.get("id")
    if not _usable_id(request_id):
        sentence = f"an id is a number or a text of at most {ID_CHARACTERS_MAX} characters"
        raise BadRequest(sentence, None, _content_bytes(fields))
    try:
        return Request(request_id, *_command(fields))
    except ValueError as problem:
        raise BadRequest(str(problem), request_id, _content_bytes(fields)) from None


def _usable_id(request_id: Any) -> bool:
    short = isinstance(request_id, str) and len(request_id) <= ID_CHARACTERS_MAX
    return request_id is None or isinstance(request_id, int) or short


def _content_bytes(fields: dict[str, Any]) -> int | None:
    """How many bytes follow the line, whatever else is wrong with it."""
    if fields.get("do") != "put":
        return 0
    size = fields.get("size")
    return size if type(size) is int and 0 <= size <= SIZE_MAX else None


def _command(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command and its arguments, complete. Raises ValueError with the sentence."""
    command = fields.get("do")
    arguments = COMMANDS.get(command) if isinstance(command, str) else None
    if arguments is None:
        raise ValueError(f"there is no command {str(command)[:40]!r}; use one of {', '.join(COMMANDS)}")
    for name in fields:
        if name not in arguments and name not in ("id", "do"):
            raise ValueError(f"{command} takes no {name[:40]!r}; leave it out")
    return str(command), {name: _read(command, fields.get(name), name, arguments[name]) for name in arguments}


def _read(command: Any, value: Any, name: str, argument: Argument) -> Any:
    """One argument's value, checked."""
    expected: Any = argument.type
    if value is None:
        if argument.default is ...:
            raise ValueError(f"{command}: {name!r} is missing; give it")
        return argument.default
    if expected is float and type(value) is int:
        value = float(value) if abs(value) <= argument.maximum else math.inf
    if type(value) is not expected:
        raise ValueError(f"{command}: {name!r} must be {_WORDS[expected]}")
    if argument.maximum and not 0 <= value <= argument.maximum:
        raise ValueError(f"{command}: {name!r} must be between 0 and {argument.maximum:g}")
    return value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
