"""The first message of a TLS connection, read just far enough to know where the connection belongs.

One port serves sessions, bulk transfers and joins; which one a connection wants stands in the ALPN extension of its
ClientHello (RFC 8446 section 4.1.2, RFC 7301, RFC 6066). Nothing here is trusted: whoever gets the connection completes
and checks its own handshake over the same bytes. Pure functions over bytes; every length is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HELLO_BYTES_MAX = 16 << 10  # a hello with post-quantum key shares is 2 kB; beyond this it is no client of ours

_RECORD_HANDSHAKE = 22
_MESSAGE_CLIENT_HELLO = 1
_RECORD_HEADER_BYTES = 5
_MESSAGE_HEADER_BYTES = 4
_RECORD_BYTES_MAX = 1 << 14  # RFC 8446 section 5.1: a plaintext record
_FIXED_BYTES = 34  # legacy version and random
_EXTENSION_SERVER_NAME = 0
_EXTENSION_ALPN = 16


class HelloRefused(ValueError):
    """Bytes that do not open a TLS connection. `reason` is plaintext or garbage; the message is a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a connection asks for; made by `parse`, read by the listener."""

    server_name: str
    alpn: tuple[str, ...]


def parse(peeked: bytes) -> ClientHello | None:
    """The hello at the start of a connection, or None while more bytes are needed. Raises HelloRefused."""
    if not peeked:
        return None
    if peeked[0] != _RECORD_HANDSHAKE:
        raise _not_tls(peeked)
    body = _hello_body(peeked)
    if body is None:
        if len(peeked) >= HELLO_BYTES_MAX:
            raise HelloRefused("garbage", f"its TLS hello is longer than {HELLO_BYTES_MAX} bytes")
        return None
    return _read_hello(_Reader(body))


def _not_tls(peeked: bytes) -> HelloRefused:
    verb = peeked[:8].split(b" ")[0]
    if verb.isalpha() and verb.isupper():
        return HelloRefused("plaintext", "it speaks plain HTTP: this port speaks TLS 1.3 with client certificates only")
    return HelloRefused("garbage", "it does not speak TLS: check address and port")


def _hello_body(peeked: bytes) -> bytes | None:
    """The ClientHello without its headers, joined from the records it may be split over; None while incomplete."""
    message = b""
    for fragment in _fragments(peeked):
        message += fragment
        if message[0] != _MESSAGE_CLIENT_HELLO:
            raise HelloRefused("garbage", "its first TLS message is no hello")
        if len(message) < _MESSAGE_HEADER_BYTES:
            continue
        end = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:4], "big")
        if end > HELLO_BYTES_MAX:
            raise HelloRefused("garbage", f"its TLS hello is longer than {HELLO_BYTES_MAX} bytes")
        if len(message) >= end:
            return message[_MESSAGE_HEADER_BYTES:end]
    return None


def _fragments(peeked: bytes) -> Iterator[bytes]:
    """What the handshake records hold, the last one as far as it has come. A fragment is never empty."""
    at = 0
    while len(peeked) - at >= _RECORD_HEADER_BYTES:
        length = int.from_bytes(peeked[at + 3 : at + 5], "big")
        if peeked[at] != _RECORD_HANDSHAKE or peeked[at + 1] != 3 or not 1 <= length <= _RECORD_BYTES_MAX:
            raise HelloRefused("garbage", "its TLS records are malformed")
        fragment = peeked[at + _RECORD_HEADER_BYTES : at + _RECORD_HEADER_BYTES + length]
        if fragment:
            yield fragment
        at += _RECORD_HEADER_BYTES + length


class _Reader:
    """A cursor over bytes from the network; reading past the end is a refusal."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._content):
            raise HelloRefused("garbage", "its TLS hello is malformed")
        taken, self._at = self._content[self._at : end], end
        return taken

    def number(self, width_bytes: int) -> int:
        return int.from_bytes(self.take(width_bytes), "big")

    def vector(self, width_bytes: int) -> _Reader:
        """The content behind a length of `width_bytes` bytes."""
        return _Reader(self.take(self.number(width_bytes)))

    def __bool__(self) -> bool:
        return self._at < len(self._content)

    def text(self) -> str:
        return self.take(len(self._content) - self._at).decode("ascii", "replace")


def _read_hello(hello: _Reader) -> ClientHello:
    hello.take(_FIXED_BYTES)
    hello.vector(1)  # legacy session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # legacy compression methods
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    extensions = hello.vector(2) if hello else _Reader(b"")  # before TLS 1.2 there may be none
    while extensions:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _EXTENSION_SERVER_NAME:
            server_name = _read_server_name(content)
        elif kind == _EXTENSION_ALPN:
            alpn = _read_alpn(content)
    return ClientHello(server_name, alpn)


def _read_server_name(content: _Reader) -> str:
    if not content:
        return ""
    names = content.vector(2)
    while names:
        kind, name = names.number(1), names.vector(2)
        if kind == 0:
            return name.text()
    return ""


def _read_alpn(content: _Reader) -> tuple[str, ...]:
    protocols = content.vector(2)
    found: list[str] = []
    while protocols:
        found.append(protocols.vector(1).text())
    return tuple(found)
