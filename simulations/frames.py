"""Messages through their wire form: every run exercises encoding, decoding and their bounds.

A message that goes to many is encoded once. What a receiver gets is what was decoded; where that equals what was sent,
it is the sender's own (immutable) value, so that a thousand nodes share one record in memory. A row that has come
through unchanged once is not decoded again: decoding is a function of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from protocol import wire
from protocol.fields import UnknownMessage
from protocol.messages import Hello, Message, RowsMessage
from protocol.values import Holding, Member, Record

PROVEN_MAX = 200_000  # rows remembered as proven: about 20 MB; beyond, they are proven anew

LATER_FIELD = {"later": [1, "what a later version says"]}  # appended wherever fields may be appended
ROW_FIELDS_MIN = 5  # a holding has five fields, stripes and pairs have two
LATER_MESSAGE = 120  # no version up to now has a message of this number

Row = Record | Holding | Member


class Frames:
    """The wire of one world. `bites` counts, as everywhere, what really struck."""

    def __init__(self, bites: dict[str, int]) -> None:
        self.bites = bites
        self._last: object = None  # the message, or the rows of the message, that was encoded last
        self._frame = b""
        self._decoded: Message | None = None
        self._proven: dict[int, Row] = {}  # by identity; kept, so that no other row takes it

    def through(self, message: Message, newer: bool = False) -> tuple[bytes, Message]:
        """The wire form of a message and what its receiver decodes; with `newer` as a later version says it."""
        if newer:
            return self._from_later(message)
        content = message.rows if isinstance(message, RowsMessage) else message
        if self._last is not content or self._decoded is None:
            self._frame = wire.encode(message)
            if len(self._frame) > wire.MESSAGE_BYTES_MAX:
                raise AssertionError(f"a {type(message).__name__} of {len(self._frame)} bytes is over the bound")
            self._decoded = self._decode(message)
            self._last = content
        return self._frame, self._decoded

    def _from_later(self, message: Message) -> tuple[bytes, Message]:
        """A later version adds fields to every message and row, and sends messages of kinds that nobody knows yet."""
        version, number, *fields = cast("list[object]", wire.unpack_value(wire.encode(message)))
        said = [version, number, *(_with_more(field) for field in fields), LATER_FIELD]
        frame = wire.pack_value(said)
        try:
            wire.decode(wire.pack_value([version, LATER_MESSAGE, LATER_FIELD]))
        except UnknownMessage:
            self.bites["unknown_message"] = self.bites.get("unknown_message", 0) + 1
        return frame, wire.decode(frame)

    def hello(self, hello: Hello, newer: bool) -> Hello:
        decoded = self.through(hello, newer)[1]
        assert isinstance(decoded, Hello)
        return decoded

    def _decode(self, message: Message) -> Message:
        if not isinstance(message, RowsMessage):
            decoded = wire.decode(self._frame)
            return message if decoded == message else decoded
        rows: Sequence[Row] = (*message.rows.records, *message.rows.holdings, *message.rows.members)
        if all(id(row) in self._proven for row in rows):
            return message
        decoded = wire.decode(self._frame)
        if decoded != message:
            return decoded
        if len(self._proven) + len(rows) > PROVEN_MAX:
            self._proven.clear()
        self._proven.update((id(row), row) for row in rows)
        return message


def _with_more(field: object) -> object:
    """Rows are lists within lists of messages: each gets one more field at its end."""
    if isinstance(field, list) and field and all(_is_row(row) for row in field):
        return [[*row, LATER_FIELD] for row in field]
    return field


def _is_row(row: object) -> bool:
    """A list of many stripes is none, long as it may be: it holds nothing but lists."""
    return isinstance(row, list) and len(row) >= ROW_FIELDS_MIN and not all(isinstance(part, list) for part in row)
