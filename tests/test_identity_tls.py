"""Real handshakes over loopback: who gets in, who does not, and what each side can say about it.

Under TLS 1.3 a client whose certificate is refused sees its own handshake succeed and learns the truth when it reads:
every client here reads.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node.admission import PeerRefused, check_peer, explain_handshake_error
from node.certificates import BACKDATED_SECONDS, DAY_SECONDS, create_csr, describe
from node.identity import Identity, IdentityError, begin_join, init_identity, install_identity, replace_certificate
from node.tls import (
    JOIN_ALPN,
    IdentityContexts,
    client_context,
    pinned_join_context,
    unverified_join_context,
)

NOW = int(time.time())
ALPN = ["spore-bulk"]
GENEROUS_SECONDS = 60.0


@dataclass
class Node:
    """An identity with its contexts and a clock the test sets."""

    identity: Identity
    now: float = NOW
    revocations: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.contexts = IdentityContexts(self.identity, clock=lambda: self.now, revocations=self.revocations)


def joined(directory: Path, issuer: Identity, node: str, *, now: int = NOW) -> Identity:
    certificate = issuer.issue(begin_join(directory, node), node, ephemeral=False, now=now)
    return install_identity(directory, issuer.ca_pem, certificate, node=node, pin=issuer.ca_pin, now=now)


@pytest.fixture
def a(tmp_path: Path) -> Node:
    return Node(init_identity(tmp_path / "a", "fleet", "a", now=NOW))


@pytest.fixture
def b(tmp_path: Path, a: Node) -> Node:
    return Node(joined(tmp_path / "b", a.identity, "b"))


Outcome = bytes | OSError


@dataclass
class Meeting:
    """What came of one connection: at each end the bytes read, or the error; and whom each end saw."""

    server: Outcome
    client: Outcome
    seen_by_server: bytes | None = None
    seen_by_client: bytes | None = None
    alpn: str | None = None

    @property
    def server_says(self) -> tuple[str, str]:
        assert isinstance(self.server, OSError), self.server
        return tuple(explain_handshake_error(self.server))  # type: ignore[return-value]

    @property
    def client_says(self) -> tuple[str, str]:
        assert isinstance(self.client, OSError), self.client
        return tuple(explain_handshake_error(self.client))  # type: ignore[return-value]


def meet(server: ssl.SSLContext, client: ssl.SSLContext | bytes) -> Meeting:
    """One connection on which both ends handshake, send four bytes and read four; a client of bytes sends them bare."""
    meeting = Meeting(b"", b"")

    def listen(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(GENEROUS_SECONDS)
        with connection:
            try:
                with server.wrap_socket(connection, server_side=True) as secured:
                    meeting.seen_by_server = secured.getpeercert(binary_form=True)
                    meeting.alpn = secured.selected_alpn_protocol()
                    secured.sendall(b"from")
                    meeting.server = secured.recv(4)
            except OSError as error:
                meeting.server = error

    def dial(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=GENEROUS_SECONDS) as connection:
            try:
                if isinstance(client, bytes):
                    connection.sendall(client)
                    meeting.client = connection.recv(4)
                    return
                with client.wrap_socket(connection) as secured:
                    meeting.seen_by_client = secured.getpeercert(binary_form=True)
                    secured.sendall(b"tome")
                    received = secured.recv(4)
                    meeting.client = received or ConnectionResetError("closed")
            except OSError as error:
                meeting.client = error

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen, listener)
        dial(listener.getsockname()[1])
        listening.result(GENEROUS_SECONDS)
    return meeting


def test_two_nodes_of_a_cluster_meet_and_know_each_other(a: Node, b: Node) -> None:
    meeting = meet(a.contexts.server(ALPN), b.contexts.client(ALPN))
    assert (meeting.server, meeting.client, meeting.alpn) == (b"tome", b"from", "spore-bulk")
    assert a.contexts.check(meeting.seen_by_server, "b").node == "b"
    assert b.contexts.check(meeting.seen_by_client, "a").node == "a"


def test_a_node_of_another_cluster_is_foreign_to_both_ends(tmp_path: Path, a: Node) -> None:
    stranger = Node(init_identity(tmp_path / "x", "fleet", "b", now=NOW))  # even one of the same names
    meeting = meet(a.contexts.server(ALPN), stranger.contexts.client(ALPN))
    assert meeting.client_says[0] == "foreign"

    trusting = client_context(stranger.identity, ALPN, lambda _: None)
    trusting.load_verify_locations(cadata=a.identity.ca_pem.decode())
    meeting = meet(a.contexts.server(ALPN), trusting)
    assert meeting.server_says[0] == "foreign"
    assert "our cluster's authority did not issue" in meeting.server_says[1]
    assert meeting.client_says[0] in ("foreign", "closed")


def test_an_expired_certificate_is_refused_by_name_serial_and_dates(a: Node, b: Node) -> None:
    a.now = NOW + 91 * DAY_SECONDS
    meeting = meet(a.contexts.server(ALPN), b.contexts.client(ALPN))
    reason, sentence = meeting.server_says
    assert reason == "expired"
    assert "'b'" in sentence
    assert f"{b.identity.facts.serial:x}" in sentence
    assert time.strftime("%Y-%m-%d", time.gmtime(b.identity.facts.not_after)) in sentence
    assert isinstance(meeting.client, OSError)
    assert meeting.client_says[0] == "closed"


def test_a_dialler_refuses_an_expired_listener_before_it_sends_anything(a: Node, b: Node) -> None:
    b.now = NOW + 91 * DAY_SECONDS
    meeting = meet(a.contexts.server(ALPN), b.contexts.client(ALPN))
    assert meeting.client_says[0] == "expired"
    assert meeting.server != b"tome"


def test_a_certificate_from_the_future_is_refused_but_ten_minutes_of_clock_error_are_not(a: Node, b: Node) -> None:
    a.now = NOW - 600
    assert meet(a.contexts.server(ALPN), b.contexts.client(ALPN)).server == b"tome"
    a.now = NOW - BACKDATED_SECONDS - 60
    reason, sentence = meet(a.contexts.server(ALPN), b.contexts.client(ALPN)).server_says
    assert reason == "not_yet_valid"
    assert "compare the clocks" in sentence


def test_a_revoked_node_is_refused_from_the_next_handshake_on_and_may_join_anew(
    tmp_path: Path, a: Node, b: Node
) -> None:
    server = a.contexts.server(ALPN)
    assert meet(server, b.contexts.client(ALPN)).server == b"tome"
    a.revocations["b"] = NOW
    reason, sentence = meet(server, b.contexts.client(ALPN)).server_says
    assert reason == "revoked"
    assert "'b'" in sentence

    renewed = a.identity.issue(
        b.identity.renewal_csr(), "b", ephemeral=False, now=NOW + 9, joined_at=b.identity.facts.joined_at
    )
    replace_certificate(b.identity, renewed, now=NOW + 9)
    b.contexts.reload()
    assert meet(server, b.contexts.client(ALPN)).server_says[0] == "revoked"

    again = Node(joined(tmp_path / "b2", a.identity, "b", now=NOW + 1))
    assert meet(server, again.contexts.client(ALPN)).server == b"tome"


def test_a_listener_that_is_not_who_was_dialled_is_misnamed(a: Node, b: Node) -> None:
    meeting = meet(a.contexts.server(ALPN), b.contexts.client(ALPN))
    with pytest.raises(PeerRefused, match="the node expected at this address is 'c'") as refused:
        b.contexts.check(meeting.seen_by_client, "c")
    assert refused.value.reason == "misnamed"


def test_a_client_without_a_certificate_is_anonymous(a: Node) -> None:
    curious = unverified_join_context()
    curious.set_alpn_protocols(ALPN)
    meeting = meet(a.contexts.server(ALPN), curious)
    assert meeting.server_says[0] == "anonymous"
    assert isinstance(meeting.client, OSError)
    assert meeting.client_says[0] in ("anonymous", "closed")


def test_a_certificate_that_is_no_nodes_is_foreign_although_our_authority_signed_it(a: Node) -> None:
    with pytest.raises(PeerRefused) as refused:
        a.contexts.check(a.identity.ca_pem)
    assert refused.value.reason == "foreign"
    with pytest.raises(PeerRefused, match="of another cluster than 'other'") as refused:
        check_peer(a.identity.certificate_pem, expected_node=None, cluster="other", now=NOW, revocations={})
    assert refused.value.reason == "foreign"


@pytest.mark.parametrize("request_bytes", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /join HTTP/1.1\r\n\r\n"])
def test_plain_http_is_told_apart_and_gets_nothing(a: Node, request_bytes: bytes) -> None:
    meeting = meet(a.contexts.server(ALPN), request_bytes)
    assert meeting.server_says[0] == "plaintext"
    assert "plain HTTP" in meeting.server_says[1]
    assert not isinstance(meeting.client, bytes) or b"HTTP" not in meeting.client


def test_random_bytes_get_a_reason_too(a: Node) -> None:
    assert meet(a.contexts.server(ALPN), b"\x00" * 64).server_says[1]


def test_older_tls_is_refused(a: Node, b: Node) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(b.identity.certificate_path, b.identity.key_path)
    meeting = meet(a.contexts.server(ALPN), old)
    assert meeting.server_says[0] == "protocol"
    assert meeting.client_says[0] == "protocol"


def test_a_renewed_certificate_is_shown_in_the_next_handshake_of_the_same_contexts(a: Node, b: Node) -> None:
    listening, dialling, joining = a.contexts.server(ALPN), b.contexts.client(ALPN), a.contexts.join_server()
    before = describe(meet(listening, dialling).seen_by_server or b"").serial
    for node in (a, b):
        identity = node.identity
        renewed = a.identity.issue(identity.renewal_csr(), identity.node, ephemeral=False, now=NOW + 60)
        replace_certificate(identity, renewed, now=NOW + 60)
    assert describe(meet(listening, dialling).seen_by_server or b"").serial == before
    fresh = a.contexts.reload(), b.contexts.reload()
    meeting = meet(listening, dialling)
    assert describe(meeting.seen_by_client or b"").serial == fresh[0].facts.serial
    assert describe(meeting.seen_by_server or b"").serial == fresh[1].facts.serial != before
    seen_by_joiner = meet(joining, unverified_join_context()).seen_by_client
    assert describe(seen_by_joiner or b"").serial == fresh[0].facts.serial


def test_a_reload_of_a_damaged_folder_is_refused_and_the_old_certificate_stays_in_use(a: Node, b: Node) -> None:
    dialling = b.contexts.client(ALPN)
    b.identity.certificate_path.write_bytes(b"torn")
    with pytest.raises(IdentityError, match="is damaged"):
        b.contexts.reload()
    assert meet(a.contexts.server(ALPN), dialling).server == b"tome"


def test_a_joiner_fetches_the_authority_then_speaks_only_to_the_pinned_issuer(tmp_path: Path, a: Node, b: Node) -> None:
    first = meet(a.contexts.join_server(), unverified_join_context())
    assert (first.server, first.client, first.alpn) == (b"tome", b"from", JOIN_ALPN)
    pinned = pinned_join_context(a.identity.ca_pem, a.identity.ca_pin, "a", lambda: NOW)
    assert meet(a.contexts.join_server(), pinned).server == b"tome"

    # A node of the cluster that is not the issuer, and somebody who only knows the authority's public certificate.
    assert meet(b.contexts.join_server(), pinned).client_says[0] == "misnamed"
    other = Node(init_identity(tmp_path / "x", "fleet", "a", now=NOW))
    assert meet(other.contexts.join_server(), pinned).client_says[0] == "foreign"
    with pytest.raises(PeerRefused, match="is not the token's") as refused:
        pinned_join_context(other.identity.ca_pem, a.identity.ca_pin, "a", lambda: NOW)
    assert refused.value.reason == "foreign"


def test_asyncio_sees_a_refused_peer_as_a_failed_handshake_with_the_whole_sentence(a: Node, b: Node) -> None:
    a.revocations["b"] = NOW

    async def accept(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> BaseException:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
            listener.setblocking(False)
            client = loop.run_in_executor(pool, dial, listener.getsockname()[1])
            connection, _ = await loop.sock_accept(listener)
            reader = asyncio.StreamReader()
            with pytest.raises(ssl.SSLError) as refused:
                await loop.connect_accepted_socket(
                    lambda: asyncio.StreamReaderProtocol(reader, serve), connection, ssl=a.contexts.server(ALPN)
                )
            connection.close()
            assert await client in (b"", None)
            return refused.value

    def dial(port: int) -> bytes | None:
        with socket.create_connection(("127.0.0.1", port), timeout=GENEROUS_SECONDS) as connection:
            try:
                with b.contexts.client(ALPN).wrap_socket(connection) as secured:
                    return secured.recv(4)
            except OSError:
                return None

    served: list[str] = []
    error = asyncio.run(accept(lambda _reader, _writer: served.append("served")))
    assert isinstance(error, PeerRefused)
    assert explain_handshake_error(error).reason == "revoked"
    assert not served


def test_asyncio_on_both_ends_exchanges_bytes(a: Node, b: Node) -> None:
    async def exchange() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=a.contexts.server(["http/1.1"]))
        async with server:
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=b.contexts.client(["http/1.1"]), server_hostname="a"
            )
            writer.write(b"echo")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return answer

    assert asyncio.run(asyncio.wait_for(exchange(), GENEROUS_SECONDS)) == b"echo"


def test_curl_with_a_nodes_certificate_verifies_the_listeners_name(a: Node, b: Node) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            connection.settimeout(GENEROUS_SECONDS)
            with a.contexts.server(["http/1.1"]).wrap_socket(connection, server_side=True) as secured:
                secured.recv(4096)
                secured.sendall(answer)

        serving = pool.submit(serve)
        folder = b.identity.folder
        files = ["--cacert", folder / "ca.pem", "--cert", folder / "node.pem", "--key", folder / "node.key"]
        result = subprocess.run(
            [curl, "-sS", "--max-time", "60", "--resolve", f"a:{port}:127.0.0.1", *files, f"https://a:{port}/"],
            capture_output=True,
            check=False,
        )
        serving.result(GENEROUS_SECONDS)
    assert (result.stdout, result.stderr) == (b"ok", b"")


def test_renewal_while_other_threads_connect_disturbs_none_of_them(a: Node, b: Node) -> None:
    listening, dialling = a.contexts.server(ALPN), b.contexts.client(ALPN)
    with ThreadPoolExecutor(2) as pool:
        meetings = [pool.submit(meet, listening, dialling) for _ in range(40)]
        for _ in range(200):
            a.contexts.reload()
            b.contexts.reload()
        assert {meeting.result(GENEROUS_SECONDS).server for meeting in meetings} == {b"tome"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(), "closed"),
        (BrokenPipeError(), "closed"),
        (ssl.SSLEOFError(), "closed"),
        (TimeoutError(), "timeout"),
        (OSError(5, "Input/output error"), "other"),
        (PeerRefused("revoked", "because"), "revoked"),
    ],
)
def test_every_failure_of_a_handshake_gets_a_reason_and_a_sentence(error: OSError, reason: str) -> None:
    fault = explain_handshake_error(error)
    assert fault.reason == reason
    assert fault.sentence
    assert str(PeerRefused("revoked", "because")) == "because"


def test_a_stolen_certificate_without_its_key_is_of_no_use(tmp_path: Path, a: Node, b: Node) -> None:
    (tmp_path / "key.pem").write_bytes(create_csr("b")[0])
    thief = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLError):
        thief.load_cert_chain(b.identity.certificate_path, tmp_path / "key.pem")
