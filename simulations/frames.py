"""Messages through their wire form: every run exercises encoding, decoding and their bounds.

A message that goes to many is encoded once. What a receiver gets is what was decoded; where that equals what was sent,
it is the sender's own (immutable) value, so that a thousand nodes share one record in memory. A row that has come
through unchanged once is not decoded again: decoding is a function of its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol import wire
from protocol.messages import Hello, Message, RowsMessage
from protocol.values import Holding, Member, Record

PROVEN_MAX = 200_000  # rows remembered as proven: about 20 MB; beyond, they are proven anew

Row = Record | Holding | Member


class Frames:
    """The wire of one world."""

    def __init__(self) -> None:
        self._last: object = None  # the message, or the rows of the message, that was encoded last
        self._frame = b""
        self._decoded: Message | None = None
        self._proven: dict[int, Row] = {}  # by identity; kept, so that no other row takes it

    def through(self, message: Message) -> tuple[bytes, Message]:
        """The wire form of a message, and the message as its receiver decodes it."""
        content = message.rows if isinstance(message, RowsMessage) else message
        if self._last is not content or self._decoded is None:
            self._frame = wire.encode(message)
            if len(self._frame) > wire.MESSAGE_BYTES_MAX:
                raise AssertionError(f"a {type(message).__name__} of {len(self._frame)} bytes is over the bound")
            self._decoded = self._decode(message)
            self._last = content
        return self._frame, self._decoded

    def hello(self, hello: Hello) -> Hello:
        decoded = self.through(hello)[1]
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
