"""Join tokens: one word that lets a machine into the cluster, some times, for some time.

`parse_token` and `Token.encode` are the word itself: where the issuer listens, the pin of the cluster's authority (so
that a joiner knows whom it talks to before it sends the secret), an id, the secret, and what the token is good for.

`TokenBook` is the issuer's memory, a JSON file in its identity folder. It holds no secret, only what checks one.
A use is taken durably before the certificate is issued. If the answer is lost then, the same joiner (same token, node
and key) may ask again without taking another use. The CLI and the agent may use the book at the same time.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from node.secret_files import FILE_MODE, replace_file
from protocol.names import check_node

TOKEN_PREFIX = "spore1-"  # noqa: S105 - the version of the format, no secret
TOKEN_CHARACTERS_MAX = 4096  # eight addresses of 262 characters and the rest in base64
TOKEN_ID_BYTES = 8
SECRET_BYTES = 32
PIN_BYTES = 32
CHECKSUM_BYTES = 4  # finds a word cut or mistyped while copying; it is no defence and need not be one
ADDRESSES_MAX = 8  # one machine has a few addresses at most: public, private, tailnet
ADDRESS_CHARACTERS_MAX = 262  # a host name of 253, brackets and a port
TTL_SECONDS_MAX = 30 * 24 * 3600  # a token is for the joins at hand; one that outlives them is a key under the mat
USES_MAX = 10_000  # no fleet is larger; the book keeps one line per use
TOKENS_MAX = 1000  # expired ones are forgotten first; the whole book is read at each use
REMEMBERED_SECONDS = 7 * 24 * 3600  # for so long an expired token is answered "expired" and not "unknown"
BOOK_FILE = "tokens.json"
_EPHEMERAL_FLAG = 1


class TokenError(ValueError):
    """A token that cannot be read or made; the message says what to do."""


class TokenRefused(Exception):
    """A join that is not granted. `reason` is one of unknown, wrong_secret, expired, used_up, unlisted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TokenBookDamaged(Exception):
    """The book cannot be read; nothing is granted until an operator has looked."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says; made by the issuer, read by the joiner. `issuer` is the node that can redeem it."""

    addresses: tuple[str, ...]
    ca_pin: str
    token_id: str
    secret: bytes = field(repr=False)
    cluster: str
    issuer: str
    expires_at: int
    ephemeral: bool

    def encode(self) -> str:
        """The token as one word, safe in shells, URLs and chat."""
        body = struct.pack(
            f">B{TOKEN_ID_BYTES}s{SECRET_BYTES}s{PIN_BYTES}sQ",
            _EPHEMERAL_FLAG if self.ephemeral else 0,
            bytes.fromhex(self.token_id),
            self.secret,
            bytes.fromhex(self.ca_pin),
            self.expires_at,
        )
        for text in (self.cluster, self.issuer, *self.addresses):
            encoded = text.encode()
            body += struct.pack(">H", len(encoded)) + encoded
        word = base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=")
        return TOKEN_PREFIX + word.decode("ascii")


def parse_token(text: str) -> Token:
    """The token in `text`; spaces and line breaks that copying put in are forgiven. Raises TokenError."""
    word = "".join(text.split())
    if not word.startswith(TOKEN_PREFIX):
        raise TokenError(f"this is no token: a token begins with {TOKEN_PREFIX!r}; make one with `spore token`")
    if len(word) > TOKEN_CHARACTERS_MAX:
        raise TokenError(f"this is no token: it has {len(word)} characters, above {TOKEN_CHARACTERS_MAX}")
    try:
        body = _unwrap(word.removeprefix(TOKEN_PREFIX))
        token = _unpack(body)
        for address in token.addresses:
            check_address(address)
        check_node(token.issuer)
    except (binascii.Error, struct.error, UnicodeError, ValueError) as problem:
        raise TokenError("the token is cut or damaged: copy the whole word again, or make a new one") from problem
    return token


def check_address(address: str) -> str:
    """`host:port`, or `[v6]:port`; returned unchanged. Raises TokenError."""
    host, colon, port = address.rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    usable = bool(colon and plain) and address.isascii() and address.isprintable() and not set(address) & set(" /@")
    usable = usable and len(address) <= ADDRESS_CHARACTERS_MAX and port.isdecimal() and 1 <= int(port) <= 65535
    if not usable or (":" in plain) != host.startswith("["):
        raise TokenError(f"address {address[:80]!r} is not usable: write host:port, or [address]:port for IPv6")
    return address


def _unwrap(word: str) -> bytes:
    padded = word + "=" * (-len(word) % 4)
    whole = base64.b64decode(padded, altchars=b"-_", validate=True)
    body, checksum = whole[:-CHECKSUM_BYTES], whole[-CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise ValueError("checksum")
    return body


def _unpack(body: bytes) -> Token:
    head = f">B{TOKEN_ID_BYTES}s{SECRET_BYTES}s{PIN_BYTES}sQ"
    flags, token_id, secret, pin, expires_at = struct.unpack_from(head, body)
    texts, position = [], struct.calcsize(head)
    while position < len(body):
        (length,) = struct.unpack_from(">H", body, position)
        position += 2 + length
        if position > len(body):
            raise ValueError("length")
        texts.append(body[position - length : position].decode())
    cluster, issuer, *addresses = texts
    if not 1 <= len(addresses) <= ADDRESSES_MAX:
        raise ValueError("addresses")
    ephemeral = bool(flags & _EPHEMERAL_FLAG)
    return Token(tuple(addresses), pin.hex(), token_id.hex(), secret, cluster, issuer, expires_at, ephemeral)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """A join that is granted. `repeated`: the same joiner asked again, no use was taken."""

    ephemeral: bool
    repeated: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """One token as the book keeps it; `joins` are (node, SHA-256 of its key) of those it let in."""

    salt: str
    check: str
    uses_left: int
    expires_at: int
    ephemeral: bool
    joins: tuple[tuple[str, str], ...] = ()


class TokenBook:
    """The tokens an issuer has given out. Calls block on a file lock and on fsync: keep them off the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(
        self,
        *,
        ttl_seconds: float,
        uses: int,
        ephemeral: bool,
        addresses: Sequence[str],
        ca_pin: str,
        cluster: str,
        issuer: str,
        now: float,
    ) -> str:
        """A new token, durable in the book before it is returned. Raises TokenError, TokenBookDamaged, OSError."""
        _check_terms(ttl_seconds, uses, addresses)
        check_node(issuer)
        secret, salt = secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(16)
        expires_at = int(now + ttl_seconds)
        token_id = secrets.token_hex(TOKEN_ID_BYTES)
        entry = _Entry(salt.hex(), _secret_check(salt, secret), uses, expires_at, ephemeral)
        with self._locked():
            entries = {
                known: other for known, other in self._read().items() if now <= other.expires_at + REMEMBERED_SECONDS
            }
            if len(entries) >= TOKENS_MAX:
                raise TokenError(f"there are {TOKENS_MAX} tokens already: wait until some have expired")
            self._write(entries | {token_id: entry})
        token = Token(tuple(addresses), ca_pin, token_id, secret, cluster, issuer, expires_at, ephemeral)
        return token.encode()

    def redeem(
        self, token_id: str, secret: bytes, node: str, key_sha256: str, *, listed: bool, now: float
    ) -> TokenGrant:
        """Take a use of the token for `node`, durably; only then may a certificate be issued.

        `key_sha256` is `certificates.csr_key_sha256` of the request, `listed` whether the hosts file has the node.
        Raises TokenRefused, TokenBookDamaged, OSError (then no use was taken).
        """
        with self._locked():
            entries = self._read()
            entry = _checked_entry(entries.get(token_id), secret, now)
            if not listed and not entry.ephemeral:
                raise TokenRefused(
                    "unlisted",
                    f"node {node!r} is not in the hosts file: add it, or make a token with `spore token --ephemeral`",
                )
            if (node, key_sha256) in entry.joins:
                return TokenGrant(entry.ephemeral, repeated=True)
            if entry.uses_left < 1:
                raise TokenRefused("used_up", "the token has no uses left: make a new one with `spore token`")
            joins = (*entry.joins, (node, key_sha256))
            self._write(entries | {token_id: replace(entry, uses_left=entry.uses_left - 1, joins=joins)})
            return TokenGrant(entry.ephemeral, repeated=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock_path = self._path.with_suffix(".lock")
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # closing releases the lock

    def _read(self) -> dict[str, _Entry]:
        try:
            written = json.loads(self._path.read_bytes())
            return {token_id: _entry(fields) for token_id, fields in written["tokens"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise TokenBookDamaged(
                f"{self._path} is damaged: remove it and make new tokens with `spore token`"
            ) from problem

    def _write(self, entries: dict[str, _Entry]) -> None:
        tokens = {token_id: asdict(entry) for token_id, entry in entries.items()}
        replace_file(self._path, json.dumps({"version": 1, "tokens": tokens}, indent=1).encode())


def _check_terms(ttl_seconds: float, uses: int, addresses: Sequence[str]) -> None:
    if not 1 <= ttl_seconds <= TTL_SECONDS_MAX:
        raise TokenError(f"a token may live 1 second to {TTL_SECONDS_MAX // 86400} days, not {ttl_seconds:g} seconds")
    if not 1 <= uses <= USES_MAX:
        raise TokenError(f"a token may have 1 to {USES_MAX} uses, not {uses}")
    if not 1 <= len(addresses) <= ADDRESSES_MAX:
        raise TokenError(f"a token needs 1 to {ADDRESSES_MAX} addresses of this node and got {len(addresses)}")
    for address in addresses:
        check_address(address)


def _checked_entry(entry: _Entry | None, secret: bytes, now: float) -> _Entry:
    """The entry when the secret is its own and it still lives. Only who knows the secret learns what became of it."""
    if entry is None:
        raise TokenRefused("unknown", "this issuer does not know the token: make a new one with `spore token` here")
    if not hmac.compare_digest(entry.check.encode(), _secret_check(bytes.fromhex(entry.salt), secret).encode()):
        raise TokenRefused("wrong_secret", "the token's secret is wrong: copy the whole token again")
    if now > entry.expires_at:
        raise TokenRefused("expired", "the token has expired: make a new one with `spore token`")
    return entry


def _secret_check(salt: bytes, secret: bytes) -> str:
    # The secret has 256 random bits: nobody guesses it from this, so a slow password hash would gain nothing.
    return hmac.new(salt, secret, hashlib.sha256).hexdigest()


def _entry(fields: dict[str, Any]) -> _Entry:
    """One token as read from the file; raises ValueError, TypeError or KeyError when it is not one we wrote."""
    bytes.fromhex(fields["salt"])
    for name, kind in (("check", str), ("uses_left", int), ("expires_at", int), ("ephemeral", bool)):
        if not isinstance(fields[name], kind):
            raise TypeError(name)
    return _Entry(**{**fields, "joins": tuple((str(node), str(key)) for node, key in fields["joins"])})
