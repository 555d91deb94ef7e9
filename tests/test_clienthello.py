"""The hello parser: what real TLS clients send is read, everything else is refused or waited for."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.clienthello import HELLO_BYTES_MAX, ClientHello, HelloRefused, parse


def real_hello(*alpn: str, server_name: str | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same handshake message, split over records of `size` bytes."""
    message = hello[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


HELLO = real_hello("spore-bulk", server_name="node.example")


def test_a_real_hello_tells_its_protocols_and_its_server_name() -> None:
    assert parse(HELLO) == ClientHello("node.example", ("spore-bulk",))
    assert parse(real_hello("h2", "http/1.1")) == ClientHello("", ("h2", "http/1.1"))
    assert parse(real_hello()) == ClientHello("", ())


def test_every_beginning_of_a_hello_waits_for_more() -> None:
    for length in range(len(HELLO)):
        assert parse(HELLO[:length]) is None


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
def test_a_hello_split_over_records_is_read(size: int) -> None:
    split = in_records(HELLO, size)
    assert parse(split) == ClientHello("node.example", ("spore-bulk",))
    assert parse(split[:-1]) is None


def test_what_follows_the_hello_is_left_alone() -> None:
    assert parse(HELLO + b"early bytes of any kind") == ClientHello("node.example", ("spore-bulk",))


@pytest.mark.parametrize(
    ("opening", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "plaintext"),
        (b"CONNECT x:1 HTTP/1.1\r\n", "plaintext"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "garbage"),
        (b"\x80\x2e\x01\x00\x02", "garbage"),
        (b"\x16\x02\x00\x00\x10", "garbage"),
        (b"\x16\x03\x01\x00\x00", "garbage"),
        (b"\x16\x03\x01\xff\xff", "garbage"),
        (b"\x16\x03\x01\x00\x01\x02", "garbage"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "garbage"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "garbage"),
    ],
)
def test_other_openings_are_refused_with_a_reason(opening: bytes, reason: str) -> None:
    with pytest.raises(HelloRefused) as refusal:
        parse(opening)
    assert refusal.value.reason == reason


def test_a_hello_that_never_ends_is_refused_at_the_bound() -> None:
    endless = in_records(b"\x16\x03\x01\x00\x00" + b"\x01\x00\x3f\xf0" + bytes(HELLO_BYTES_MAX), 1)
    assert parse(endless[: HELLO_BYTES_MAX - 1]) is None
    with pytest.raises(HelloRefused, match="longer than"):
        parse(endless[:HELLO_BYTES_MAX])


@given(st.binary(max_size=600))
@example(HELLO)
def test_any_bytes_are_a_hello_or_refused_or_waited_for(content: bytes) -> None:
    for opening in (content, b"\x16\x03\x01" + len(content).to_bytes(2, "big") + content):
        try:
            found = parse(opening)
        except HelloRefused:
            continue
        assert found is None or isinstance(found, ClientHello)


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_hello_with_any_byte_changed_breaks_nothing(position: int, value: int) -> None:
    changed = bytearray(HELLO)
    changed[position] = value
    try:
        found = parse(bytes(changed))
    except HelloRefused:
        return
    assert found is None or isinstance(found, ClientHello)
