"""Fields of messages from the network: each is of the right type and within its bound, or the message is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.names import NameRefused, check_name, check_node

META_ITEMS_MAX = 32  # fields carried along unread
META_BYTES_MAX = 2_048  # all of them together
NUMBER_MAX = (1 << 63) - 1  # what SQLite and everybody's counters hold

Packed = list[Any]
Pack = Callable[[Any], Packed]  # from a message to its fields
Unpack = Callable[[Packed], Any]  # and back; raises `WireError`


class WireError(ValueError):
    """A message that cannot be taken: truncated, too large, of another version, or with a field out of bounds."""


class UnknownMessage(WireError):
    """A message type of a later version: to be ignored, not punished."""


def shown(value: object) -> str:
    """A short form of what a peer sent, fit for a log: of a container its type only, for it may hold megabytes."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def as_list(value: object, length_max: int, what: str) -> Packed:
    if not isinstance(value, list):
        raise WireError(f"{what} must be a list, not {type(value).__name__}")
    if len(value) > length_max:
        raise WireError(f"{what} has {len(value)} entries, over the bound of {length_max}")
    return value


def as_fields(value: object, count: int, what: str) -> Packed:
    row = as_list(value, 64, what)
    if len(row) < count:
        raise WireError(f"a {what} needs {count} fields and has {len(row)}")
    return row


def as_int(value: object, value_max: int, what: str) -> int:
    if type(value) is not int or not 0 <= value <= value_max:
        raise WireError(f"{what} must be a whole number from 0 to {value_max}, not {shown(value)}")
    return value


def as_bool(value: object, what: str) -> bool:
    if type(value) is not bool:
        raise WireError(f"{what} must be true or false, not {shown(value)}")
    return value


def as_bytes(value: object, length: int, what: str) -> bytes:
    if type(value) is not bytes or len(value) != length:
        raise WireError(f"{what} must be {length} bytes")
    return value


def as_text(value: object, chars_max: int, what: str) -> str:
    if type(value) is not str or len(value) > chars_max:
        raise WireError(f"{what} must be text of at most {chars_max} characters")
    return value


def as_node(value: object) -> str:
    try:
        return check_node(as_text(value, 63, "node"))
    except NameRefused as refusal:
        raise WireError(str(refusal)) from refusal


def as_name(value: object) -> str:
    try:
        return check_name(as_text(value, 1024, "name"))
    except NameRefused as refusal:
        raise WireError(str(refusal)) from refusal


def as_meta(value: object) -> tuple[tuple[str, str | int], ...]:
    items: list[tuple[str, str | int]] = []
    bytes_used = 0
    for row in as_list(value, META_ITEMS_MAX, "meta"):
        pair = as_fields(row, 2, "meta item")
        key = as_text(pair[0], 64, "meta key")
        content = pair[1]
        if type(content) is int:
            as_int(abs(content), NUMBER_MAX, "meta number")
        elif type(content) is not str:
            raise WireError("a meta value must be text or a whole number")
        bytes_used += len(key.encode()) + len(str(content).encode())
        items.append((key, content))
    if bytes_used > META_BYTES_MAX:
        raise WireError(f"meta of {bytes_used} bytes is over the bound of {META_BYTES_MAX}")
    return tuple(items)
