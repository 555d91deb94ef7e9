"""One small HTTPS question to an issuer, with the standard library: the CLI uses it before any agent runs.

Blocking, bounded in bytes, with a time limit for each step. (aiohttp would cost the CLI 0.4 s of import.)
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from node.admission import PeerRefused, explain_handshake_error

ANSWER_BYTES_MAX = 4 << 20  # a hosts file of a thousand hosts is 200 kB
STEP_SECONDS = 10.0  # for connecting, and for each read


class AskError(Exception):
    """No answer; the message says why. `distrusted`: somebody answered, and is not the one who should."""

    def __init__(self, message: str, *, distrusted: bool = False) -> None:
        super().__init__(message)
        self.distrusted = distrusted


class Answered(NamedTuple):
    status: int
    body: bytes


def ask(
    address: str,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    check: Callable[[bytes | None], object] | None = None,
    seconds: float = STEP_SECONDS,
) -> Answered:
    """Ask over a connection of its own. `check` sees the peer's certificate before anything is sent to it.

    Raises AskError, with `distrusted` for a certificate that context or check refuse.
    """
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPSConnection(host.strip("[]"), int(port), context=context, timeout=seconds)
    with _explained(address), contextlib.closing(connection):
        connection.connect()
        if check is not None:
            assert isinstance(connection.sock, ssl.SSLSocket)
            check(connection.sock.getpeercert(binary_form=True))
        connection.request(method, path, body=body)
        response = connection.getresponse()
        answer = response.read(ANSWER_BYTES_MAX + 1)
        if len(answer) > ANSWER_BYTES_MAX:
            raise AskError(f"{address} answered more than {ANSWER_BYTES_MAX} bytes: that is no issuer")
        return Answered(response.status, answer)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (PeerRefused, ssl.SSLCertVerificationError) as problem:
        sentence = explain_handshake_error(problem).sentence
        raise AskError(f"{address} is not the issuer: {sentence}", distrusted=True) from problem
    except TimeoutError as problem:
        raise AskError(f"{address} does not answer") from problem
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError, http.client.HTTPException) as problem:
        cause = ConnectionResetError() if isinstance(problem, http.client.HTTPException) else problem
        raise AskError(f"{address}: {explain_handshake_error(cause).sentence}") from problem
    except OSError as problem:
        raise AskError(f"{address} cannot be reached: {problem.strerror or problem}") from problem
