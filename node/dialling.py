"""Dialling: from an address to a WebSocket with the very node we meant, or to one sentence that says why not."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp

from node.admission import PeerRefused, explain_handshake_error
from node.listener import WEB_ALPN
from node.session import CODE_REFUSED, SessionLimits, close_socket
from node.tls import IdentityContexts, shown_certificate
from node.tokens import TokenError, check_address
from protocol.values import NodeId
from protocol.wire import MESSAGE_BYTES_MAX

REASON_HEADER = "Spore-Reason"  # why a session is refused before it begins; the body of a refused upgrade is not read
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX + 1  # aiohttp refuses what reaches its bound, we what exceeds ours

ClientSocket = aiohttp.ClientWebSocketResponse[Any]


class DialError(Exception):
    """A dial that did not come to a session; the message says why."""


def new_client() -> aiohttp.ClientSession:
    """The client all dials of a node share; made in a running loop. Every session has a connection of its own."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # dials are bounded by one a peer
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), trust_env=False)


async def open_socket(
    client: aiohttp.ClientSession,
    contexts: IdentityContexts,
    peer: NodeId,
    address: str,
    limits: SessionLimits,
) -> tuple[ClientSocket, bytes | None]:
    """The connection and the certificate of `peer`. Nothing was sent to anybody else. Raises DialError."""
    try:
        check_address(address)
        async with asyncio.timeout(limits.connect_seconds):
            connection = await client.ws_connect(
                f"https://{address}/v1/session",
                ssl=contexts.client(WEB_ALPN),
                max_msg_size=FRAME_BYTES_MAX,
                autoping=False,
                compress=0,  # rows are mostly digests: they do not compress, and bombs need no defusing
                timeout=aiohttp.ClientWSTimeout(ws_close=limits.close_seconds),
            )
    except TokenError as problem:
        raise DialError(str(problem)) from problem
    except TimeoutError as problem:
        raise DialError(f"{address} did not answer within {limits.connect_seconds:.0f} s") from problem
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        raise DialError(f"{address}: {explain_dial_error(problem)}") from problem
    return connection, await _checked_certificate(connection, contexts, peer, limits)


async def _checked_certificate(
    connection: ClientSocket, contexts: IdentityContexts, peer: NodeId, limits: SessionLimits
) -> bytes | None:
    certificate = shown_certificate(connection)
    if certificate is None:
        raise DialError(f"{peer} was lost before its hello")  # a server without a certificate completes no handshake
    try:
        contexts.check(certificate, expected_node=peer)
    except PeerRefused as refusal:
        await close_socket(connection, CODE_REFUSED, "you are not the node I dialled", limits.close_seconds)
        raise DialError(refusal.message) from refusal
    return certificate


def explain_dial_error(problem: BaseException) -> str:
    """A sentence from what aiohttp raises, which wraps TLS errors in several ways."""
    if isinstance(problem, aiohttp.WSServerHandshakeError):
        reason = problem.headers.get(REASON_HEADER, "") if problem.headers is not None else ""
        return f"refused the session: {reason[:300]}" if reason else f"answered {problem.status}, not a session"
    for cause in _causes(problem):
        if isinstance(cause, ssl.SSLError):
            return explain_handshake_error(cause).sentence
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
    if isinstance(problem, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return explain_handshake_error(ConnectionResetError()).sentence
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return f"{type(problem).__name__}: {problem}"


def _causes(problem: BaseException) -> list[BaseException]:
    """The error and what it wraps, outermost first."""
    found: list[BaseException] = []
    at: BaseException | None = problem
    while at is not None and len(found) < 8:  # chains are two or three long; a cycle must not hold us
        found.append(at)
        inner = getattr(at, "os_error", None)
        at = inner if isinstance(inner, BaseException) and inner is not at else at.__cause__
    return found
