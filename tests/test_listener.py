"""The one port, over real TLS on loopback: who is let in and where to, who is not and what the log says of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node.certificates import DAY_SECONDS
from node.connections import ConnectionLimits
from node.identity import Identity
from node.listener import BULK_ALPN, Listener, ListenError
from node.refusals import RefusalLog
from node.renewal import RenewalFailed, renew_certificate
from node.tls import JOIN_ALPN, client_context, unverified_join_context
from protocol.chunks import CHUNK_BYTES, LIST_PAGE_CHUNKS
from protocol.effects import Report
from tests.net import NOW, Answer, Node, get, issuer_identity, joined, plain_socket, read_to_end, run, until

WEB = ["http/1.1"]


@pytest.fixture
def a(tmp_path: Path) -> Identity:
    return issuer_identity(tmp_path / "a")


@pytest.fixture
def b(tmp_path: Path, a: Identity) -> Identity:
    return joined(tmp_path / "b", a, "b")


def client(identity: Identity, alpn: list[str] | None = None) -> ssl.SSLContext:
    """A client that accepts any node of its own cluster."""
    return client_context(identity, alpn or WEB, lambda certificate: None)


def careless(identity: Identity | None = None, alpn: list[str] | None = None) -> ssl.SSLContext:
    """A client that accepts any server, and shows the identity's certificate or none."""
    context = unverified_join_context()
    context.set_alpn_protocols(alpn or WEB)
    if identity is not None:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    return context


async def ask(node: Node, path: str, context: ssl.SSLContext, method: str = "GET", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asyncio.to_thread(get, node.listener.port, path, context, method=method, headers=named)


def what_a_stranger_gets(port: int, context: ssl.SSLContext) -> bytes:
    """Under TLS 1.3 a refused client learns of it when it reads: so this one asks, and reads to the end."""
    with contextlib.suppress(ssl.SSLError, ConnectionError), plain_socket(port) as raw, over(raw, context) as tls:
        tls.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return read_to_end(tls)
    return b""


def over(raw: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(raw, server_hostname="x")


# --- dispatch -------------------------------------------------------------------------------------------------------


def test_one_port_leads_to_web_bulk_and_join_by_alpn(a: Identity, b: Identity) -> None:
    def bulk(sock: socket.socket, address: str) -> None:
        with node.contexts.server([BULK_ALPN]).wrap_socket(sock, server_side=True) as tls:
            tls.sendall(f"bulk for {address.partition(':')[0]}".encode())

    def ask_bulk() -> bytes:
        with plain_socket(node.listener.port) as raw, over(raw, client(b, [BULK_ALPN])) as tls:
            return read_to_end(tls)

    async def story() -> None:
        async with node:
            health, authority, moved = await asyncio.gather(
                ask(node, "/v1/healthz", client(b)),
                ask(node, "/v1/ca", unverified_join_context()),
                asyncio.to_thread(ask_bulk),
            )
            assert b'"node": "a"' in health.body
            assert authority.body == a.ca_pem
            assert moved == b"bulk for 127.0.0.1"
            assert (await ask(node, "/v1/ca", client(b))).status == 404
            assert (await ask(node, "/v1/healthz", unverified_join_context())).status == 404
            await until(lambda: node.listener.open_connections == 0)

    node = Node(a, bulk=bulk)
    run(story)


def test_a_hello_that_comes_byte_by_byte_is_waited_for(a: Identity, b: Identity) -> None:
    def drip(port: int) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client(b).wrap_bio(incoming, outgoing)
        with plain_socket(port) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            hello = outgoing.read()
            for at in range(len(hello)):
                raw.sendall(hello[at : at + 1])
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    incoming.write(raw.recv(65536))
            tls.write(b"GET /v1/healthz HTTP/1.0\r\n\r\n")
            raw.sendall(outgoing.read())
            received = b""
            while b"ok" not in received:
                piece = raw.recv(65536)
                assert piece
                incoming.write(piece)
                with contextlib.suppress(ssl.SSLWantReadError):
                    received += tls.read(65536)
            return received

    async def story() -> None:
        async with Node(a) as node:
            assert b'"status": "ok"' in await asyncio.to_thread(drip, node.listener.port)

    run(story)


def test_a_bulk_handler_that_fails_is_reported_and_its_connection_closed(a: Identity, b: Identity) -> None:
    def bulk(sock: socket.socket, address: str) -> None:
        raise RuntimeError("a fault of ours")

    async def story() -> None:
        async with Node(a, bulk=bulk) as node:
            got = await asyncio.to_thread(what_a_stranger_gets, node.listener.port, client(b, [BULK_ALPN]))
            assert got == b""
            await until(lambda: node.told("bulk-failed") and node.listener.open_connections == 0)

    run(story)


def test_stopping_ends_bulk_threads_that_wait_for_their_peer(a: Identity, b: Identity) -> None:
    read: list[bytes] = []

    def bulk(sock: socket.socket, address: str) -> None:
        with node.contexts.server([BULK_ALPN]).wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"!")
            read.append(read_to_end(tls))

    async def story() -> None:
        async with node:
            with plain_socket(node.listener.port) as raw:
                tls = await asyncio.to_thread(client(b, [BULK_ALPN]).wrap_socket, raw, server_hostname="x")
                with tls:
                    assert await asyncio.to_thread(tls.recv, 1) == b"!"
                    await node.listener.stop()
                    assert read == [b""]

    node = Node(a, bulk=bulk)
    run(story)


# --- strangers ------------------------------------------------------------------------------------------------------


def test_strangers_get_nothing_and_the_log_says_who_and_why(a: Identity, b: Identity, tmp_path: Path) -> None:
    foreign = issuer_identity(tmp_path / "foreign", "b")  # the same cluster name and node name, another authority
    old = joined(tmp_path / "old", a, "old", now=NOW - 80 * DAY_SECONDS)
    revoked = joined(tmp_path / "revoked", a, "revoked")
    early = joined(tmp_path / "early", a, "early")

    async def story() -> None:
        async with Node(a) as node:
            node.revocations["revoked"] = NOW + 1
            for context, reason, words in [
                (careless(), "anonymous", "showed no certificate"),
                (careless(foreign), "foreign", "did not issue"),
                (careless(revoked), "revoked", "node 'revoked'"),
            ]:
                assert await asyncio.to_thread(what_a_stranger_gets, node.listener.port, context) == b""
                await until(lambda reason=reason: node.told(f"refused-{reason}"), reason)
                (line,) = node.told(f"refused-{reason}")
                assert words in line
                assert "127.0.0.1" in line
            node.now = NOW + 20 * DAY_SECONDS
            assert await asyncio.to_thread(what_a_stranger_gets, node.listener.port, careless(old)) == b""
            await until(lambda: node.told("refused-expired"))
            assert "node 'old'" in node.told("refused-expired")[0]
            node.now = NOW - DAY_SECONDS
            assert await asyncio.to_thread(what_a_stranger_gets, node.listener.port, careless(early)) == b""
            await until(lambda: node.told("refused-not_yet_valid"))
            node.now = NOW
            assert b"ok" in await asyncio.to_thread(what_a_stranger_gets, node.listener.port, careless(b))

    run(story)


def test_plain_http_and_garbage_are_closed_with_a_sentence(a: Identity) -> None:
    def say(port: int, words: bytes) -> bytes:
        with plain_socket(port) as raw:
            raw.sendall(words)
            return read_to_end(raw)

    async def story() -> None:
        async with Node(a) as node:
            port = node.listener.port
            assert await asyncio.to_thread(say, port, b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            assert await asyncio.to_thread(say, port, b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff") == b""
            assert await asyncio.to_thread(say, port, b"\x00" * 70_000) == b""
            await until(lambda: node.told("refused-plaintext") and node.told("refused-garbage"))
            assert "plain HTTP" in node.told("refused-plaintext")[0]
            await until(lambda: node.listener.open_connections == 0)

    run(story)


def test_a_refused_stranger_who_keeps_trying_is_told_of_once(a: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            for _ in range(5):
                await asyncio.to_thread(what_a_stranger_gets, node.listener.port, careless())
            await until(lambda: node.listener.open_connections == 0)
            assert len(node.told("refused-anonymous")) == 1

    run(story)


def test_the_refusal_log_counts_what_it_did_not_say_and_stays_small() -> None:
    told: list[Report] = []
    now = [0.0]
    log = RefusalLog(told.append, clock=lambda: now[0])
    for _ in range(4):
        log.refused("foreign", "10.0.0.1", "no")
    log.refused("foreign", "10.0.0.2", "no")
    log.refused("closed", "10.0.0.1", "gone")
    assert [(report.level, report.event) for report in told] == [
        ("warning", "refused-foreign"),
        ("warning", "refused-foreign"),
        ("info", "refused-closed"),
    ]
    now[0] = 61.0
    log.refused("foreign", "10.0.0.1", "no")
    assert told[-1].message == "peer 10.0.0.1: no (3 more like it since the last line)"
    for number in range(5000):
        log.refused("foreign", f"host-{number}", "no")
    assert len(log._told) <= 1024


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["silent", "half-a-hello"])
def test_who_sends_no_hello_in_time_is_closed(a: Identity, sent: bytes) -> None:
    def wait_for_the_end(port: int) -> bytes:
        with plain_socket(port) as raw:
            raw.sendall(sent)
            return read_to_end(raw)

    async def story() -> None:
        async with Node(a, connection_limits=ConnectionLimits(hello_seconds=0.2)) as node:
            assert await asyncio.to_thread(wait_for_the_end, node.listener.port) == b""
            await until(lambda: node.told("refused-timeout"))

    run(story)


def test_who_does_not_finish_the_handshake_in_time_is_closed(a: Identity, b: Identity) -> None:
    def stall(port: int) -> None:
        outgoing = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            client(b).wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        with plain_socket(port) as raw:
            raw.sendall(outgoing.read())
            read_to_end(raw)

    async def story() -> None:
        async with Node(a, connection_limits=ConnectionLimits(handshake_seconds=0.2)) as node:
            await asyncio.to_thread(stall, node.listener.port)
            await until(lambda: node.told("refused-timeout"))
            await until(lambda: node.listener.open_connections == 0)

    run(story)


def test_a_crowd_of_half_open_connections_is_bounded_and_the_port_recovers(a: Identity, b: Identity) -> None:
    limits = ConnectionLimits(unproven_per_address_max=5)

    async def story() -> None:
        async with Node(a, connection_limits=limits) as node:
            port = node.listener.port
            with contextlib.ExitStack() as crowd:
                for _ in range(5):
                    crowd.enter_context(plain_socket(port))
                await until(lambda: node.listener.open_connections == 5)
                with plain_socket(port) as one_more:
                    assert await asyncio.to_thread(read_to_end, one_more) == b""
                assert "5 unfinished handshakes" in node.told("refused-crowded")[0]
            await until(lambda: node.listener.open_connections == 0)
            assert (await ask(node, "/v1/healthz", client(b))).status == 200

    run(story)


def test_bulk_threads_are_bounded(a: Identity, b: Identity) -> None:
    def bulk(sock: socket.socket, address: str) -> None:
        with node.contexts.server([BULK_ALPN]).wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"!")
            read_to_end(tls)

    def connect() -> ssl.SSLSocket:
        tls = client(b, [BULK_ALPN]).wrap_socket(plain_socket(node.listener.port), server_hostname="x")
        assert tls.recv(1) == b"!"
        return tls

    async def story() -> None:
        async with node:
            with await asyncio.to_thread(connect), await asyncio.to_thread(connect):
                got = await asyncio.to_thread(what_a_stranger_gets, node.listener.port, client(b, [BULK_ALPN]))
                assert got == b""
                assert "2 bulk connections" in node.told("refused-crowded")[0]
            await until(lambda: node.listener.open_connections == 0)
            (await asyncio.to_thread(connect)).close()

    node = Node(a, bulk=bulk, connection_limits=ConnectionLimits(bulk_threads_max=2))
    run(story)


def test_a_port_in_use_is_one_sentence(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            second = Listener(
                node.contexts,
                web=node.web.protocol,
                join=None,
                bulk_handler=None,
                report=node.reports.append,
                refusals=node.refusals,
            )
            with pytest.raises(ListenError, match=r"port \d+ of 127.0.0.1 is in use: stop the program") as refusal:
                await second.start("127.0.0.1", node.listener.port)
            assert "\n" not in str(refusal.value)
            with pytest.raises(ListenError, match="name an address of this machine"):
                await second.start("192.0.2.1", 0)
            await second.stop()
            assert (await ask(node, "/v1/healthz", client(b))).status == 200

    run(story)


def test_without_a_host_the_node_listens_on_every_address(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            await node.listener.stop()
            await node.listener.start("", 0)
            assert (await ask(node, "/v1/healthz", client(b))).status == 200

    run(story)


# --- what members get -----------------------------------------------------------------------------------------------


CONTENT = hashlib.shake_128(b"content").digest(2 * CHUNK_BYTES + 12345)


@pytest.mark.parametrize(
    ("header", "status", "first", "end"),
    [
        ("", 200, 0, len(CONTENT)),
        ("bytes=0-", 206, 0, len(CONTENT)),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=5-99", 206, 5, 100),
        (f"bytes={CHUNK_BYTES - 1}-{2 * CHUNK_BYTES}", 206, CHUNK_BYTES - 1, 2 * CHUNK_BYTES + 1),
        ("bytes=-100", 206, len(CONTENT) - 100, len(CONTENT)),
        ("bytes=-99999999999", 206, 0, len(CONTENT)),
        ("bytes=100-99999999999", 206, 100, len(CONTENT)),
        ("bytes=0-1,5-6", 200, 0, len(CONTENT)),
        ("bytes=9-5", 200, 0, len(CONTENT)),
        ("lines=1-2", 200, 0, len(CONTENT)),
        ("bytes=-", 200, 0, len(CONTENT)),
    ],
)
def test_a_blob_is_served_whole_or_by_one_range(
    a: Identity, b: Identity, header: str, status: int, first: int, end: int
) -> None:
    async def story() -> None:
        async with Node(a) as node:
            digest = node.store.add(CONTENT)
            for method in ("GET", "HEAD"):
                headers = {"Range": header} if header else {}
                answer = await ask(node, f"/v1/blob/{digest.hex()}", client(b), method, **headers)
                assert answer.status == status
                assert answer.headers["etag"] == f'"{digest.hex()}"'
                assert answer.headers["content-length"] == str(end - first)
                if status == 206:
                    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(CONTENT)}"
                assert answer.body == (CONTENT[first:end] if method == "GET" else b"")
            await until(lambda: all(blob.closed for blob in node.store.opened))

    run(story)


def test_blob_requests_that_cannot_be_met_are_answered_with_a_sentence(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            digest = node.store.add(b"twelve bytes")
            beyond = await ask(node, f"/v1/blob/{digest.hex()}", client(b), Range="bytes=12-")
            assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */12")
            nothing = await ask(node, f"/v1/blob/{digest.hex()}", client(b), Range="bytes=-0")
            assert nothing.status == 416
            missing = await ask(node, f"/v1/blob/{bytes(32).hex()}", client(b))
            assert (missing.status, missing.body[:26]) == (404, b"this node does not hold th")
            for wrong in ("abc", "G" * 64, digest.hex().upper(), "..%2f" * 4):
                assert (await ask(node, f"/v1/blob/{wrong}", client(b))).status == 400
            unchanged = await ask(node, f"/v1/blob/{digest.hex()}", client(b), If_None_Match=f'"{digest.hex()}"')
            assert unchanged.status == 304
            other = await ask(node, f"/v1/blob/{digest.hex()}", client(b), Range="bytes=0-1", If_Range='"other"')
            assert (other.status, other.body) == (200, b"twelve bytes")

    run(story)


def test_an_empty_blob_is_served(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            digest = node.store.add(b"")
            assert (await ask(node, f"/v1/blob/{digest.hex()}", client(b))).body == b""
            assert (await ask(node, f"/v1/blob/{digest.hex()}", client(b), Range="bytes=0-")).status == 416

    run(story)


@pytest.mark.parametrize("offset", [0, CHUNK_BYTES + 5, len(CONTENT) - 1])
def test_a_file_that_changes_while_it_is_sent_is_cut_short_and_never_wrong(
    a: Identity, b: Identity, offset: int
) -> None:
    def fetch(port: int, digest: bytes) -> bytes:
        with plain_socket(port) as raw, client(b).wrap_socket(raw, server_hostname="x") as tls:
            tls.sendall(f"GET /v1/blob/{digest.hex()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return read_to_end(tls)

    async def story() -> None:
        async with Node(a) as node:
            digest = node.store.add(CONTENT)
            node.store.changes_at[digest] = offset
            if offset == 0:  # nothing is sent yet: there is time for an answer
                assert (await ask(node, f"/v1/blob/{digest.hex()}", client(b))).status == 503
            else:
                head, _, body = (await asyncio.to_thread(fetch, node.listener.port, digest)).partition(b"\r\n\r\n")
                assert f"Content-Length: {len(CONTENT)}".encode() in head
                assert len(body) < len(CONTENT)
                assert CONTENT.startswith(body)
                assert node.told("blob-broken")
            await until(lambda: all(blob.closed for blob in node.store.opened))

    run(story)


def test_blobs_are_paced_by_what_the_node_may_send(a: Identity, b: Identity) -> None:
    asked: list[tuple[str, str]] = []
    paced: list[int] = []

    def pace(peer: str, transfer: int, priority: str) -> Callable[[int], int]:
        asked.append((peer, priority))

        def allow(wanted_bytes: int) -> int:
            paced.append(min(wanted_bytes, 10_000))
            return paced[-1]

        return allow

    async def story() -> None:
        async with Node(a, pace=pace) as node:
            digest = node.store.add(CONTENT)
            answer = await ask(node, f"/v1/blob/{digest.hex()}", client(b), Spore_Priority="high")
            assert (answer.body, sum(paced), asked) == (CONTENT, len(CONTENT), [("b", "high")])

    run(story)


def test_a_chunk_list_is_served_in_pages(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            leaves = tuple(number.to_bytes(32, "big") for number in range(LIST_PAGE_CHUNKS + 10))
            digest = bytes(range(32))
            node.store.lists[digest] = leaves
            path = f"/v1/chunks/{digest.hex()}"
            first = await ask(node, path, client(b))
            rest = await ask(node, f"{path}?from={LIST_PAGE_CHUNKS}&count=99999999", client(b))
            some = await ask(node, f"{path}?from=3&count=2", client(b))
            assert first.headers["spore-chunks"] == str(len(leaves))
            assert first.body + rest.body == b"".join(leaves)
            assert some.body == leaves[3] + leaves[4]
            assert (await ask(node, f"{path}?from=99999999", client(b))).body == b""
            assert (await ask(node, f"{path}?from=-1", client(b))).status == 400
            assert (await ask(node, f"{path}?count=x", client(b))).status == 400
            assert (await ask(node, f"/v1/chunks/{bytes(32).hex()}", client(b))).status == 404

    run(story)


def test_metrics_and_health_are_for_members(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            metrics = await ask(node, "/metrics", client(b))
            assert (metrics.status, metrics.body) == (200, b"spore_up 1\n")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert (await ask(node, "/v1/healthz", client(b))).status == 200
            assert (await ask(node, "/v1/nothing", client(b))).status == 404

    run(story)


def test_a_connection_that_stands_is_refused_from_the_revocation_on(a: Identity, b: Identity) -> None:
    def converse(node: Node) -> tuple[bytes, bytes]:
        request = b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        with plain_socket(node.listener.port) as raw, client(b).wrap_socket(raw, server_hostname="x") as tls:
            tls.sendall(request)
            first = tls.recv(65536)
            node.revocations["b"] = NOW + 1
            tls.sendall(request)
            return first, read_to_end(tls)

    async def story() -> None:
        async with Node(a) as node:
            before, after = await asyncio.to_thread(converse, node)
            assert before.startswith(b"HTTP/1.1 200")
            assert after.startswith(b"HTTP/1.1 403")
            assert b"revoked" in after
            assert node.told("refused-revoked")

    run(story)


# --- outside tools --------------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_curl_fetches_a_blob_by_range_with_a_nodes_certificate_and_nothing_without(
    a: Identity, b: Identity, tmp_path: Path
) -> None:
    curl = tool("curl")

    def fetch(port: int, digest: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
        url = f"https://a:{port}/v1/blob/{digest.hex()}"
        return subprocess.run(
            [curl, "--silent", "--show-error", "--noproxy", "*", "--resolve", f"a:{port}:127.0.0.1", *options, url],
            capture_output=True,
            timeout=60,
            check=False,
        )

    async def story() -> None:
        async with Node(a) as node:
            digest, port = node.store.add(CONTENT), node.listener.port
            ours = ["--cacert", str(b.folder / "ca.pem")]
            member = [*ours, "--cert", str(b.certificate_path), "--key", str(b.key_path)]
            whole = await asyncio.to_thread(fetch, port, digest, *member)
            assert (whole.stderr, whole.stdout == CONTENT) == (b"", True)
            part = await asyncio.to_thread(fetch, port, digest, *member, "--range", "100-199")
            assert part.stdout == CONTENT[100:200]
            anonymous = await asyncio.to_thread(fetch, port, digest, *ours)
            assert anonymous.returncode != 0
            assert anonymous.stdout == b""

    run(story)


def test_aria2c_fetches_a_blob_over_several_connections(a: Identity, b: Identity, tmp_path: Path) -> None:
    aria2c = tool("aria2c")

    def fetch(port: int, digest: bytes) -> subprocess.CompletedProcess[bytes]:
        options = [
            "--no-conf",
            "--no-netrc",
            "--max-connection-per-server=4",
            "--split=4",
            "--min-split-size=1M",
            "--check-certificate=false",  # aria2c compares host names, and nodes have none for 127.0.0.1
            f"--certificate={b.certificate_path}",
            f"--private-key={b.key_path}",
            f"--dir={tmp_path}",
            "--out=fetched",
        ]
        url = f"https://127.0.0.1:{port}/v1/blob/{digest.hex()}"
        return subprocess.run([aria2c, *options, url], capture_output=True, timeout=60, check=False)

    async def story() -> None:
        async with Node(a) as node:
            content = hashlib.shake_128(b"large").digest(9 * CHUNK_BYTES + 1)
            digest = node.store.add(content)
            done = await asyncio.to_thread(fetch, node.listener.port, digest)
            assert done.returncode == 0, done.stdout.decode(errors="replace")
            assert (tmp_path / "fetched").read_bytes() == content
            assert len(node.store.opened) > 1

    run(story)


# --- renewal --------------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_over_its_own_connection_without_a_restart(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as issuer, Node(b) as member:
            issuer.now = member.now = NOW + 61 * DAY_SECONDS
            renewed = await asyncio.to_thread(
                renew_certificate, member.contexts, [("a", issuer.address)], now=member.now
            )
            assert renewed.facts.not_after == member.now + 90 * DAY_SECONDS
            assert renewed.facts.joined_at == b.facts.joined_at
            own = await asyncio.to_thread(renew_certificate, issuer.contexts, [], now=issuer.now)
            assert own.facts.serial != a.facts.serial
            # Past the end of both old certificates, sessions between the two still come up.
            issuer.now = member.now = NOW + 100 * DAY_SECONDS
            issuer.sessions.dial("b", member.address)
            await until(lambda: issuer.sessions.peers() and member.sessions.peers())

    run(story)


def test_a_renewal_that_no_issuer_grants_keeps_the_old_certificate(a: Identity, b: Identity, tmp_path: Path) -> None:
    c = joined(tmp_path / "c", a, "c")

    async def story() -> None:
        async with Node(a) as issuer, Node(b) as member, Node(c) as other:
            free = f"127.0.0.1:{other.listener.port}"
            for issuers, words in [
                ([], "no issuer is known"),
                ([("c", free)], "this node is no issuer"),
                ([("a", free)], "the node expected at this address is 'a'"),
            ]:
                with pytest.raises(RenewalFailed, match=words):
                    await asyncio.to_thread(renew_certificate, member.contexts, issuers, now=NOW + 1)
            issuer.revocations["b"] = NOW + 1
            with pytest.raises(RenewalFailed, match="its log says why"):
                await asyncio.to_thread(renew_certificate, member.contexts, [("a", issuer.address)], now=NOW + 10)
            assert member.contexts.identity == b

    run(story)


def test_a_signing_request_that_is_none_or_too_long_is_refused(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as node:
            for body, status in [(b"nonsense", 403), (b"", 403), (bytes(100_000), 413)]:
                answer = await asyncio.to_thread(
                    get, node.listener.port, "/v1/renew", client(b), method="POST", body=body
                )
                assert answer.status == status

    run(story)


def test_a_node_that_is_no_issuer_closes_joins(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(b) as node:
            got = await asyncio.to_thread(what_a_stranger_gets, node.listener.port, careless(alpn=[JOIN_ALPN]))
            assert got == b""
            assert "no issuer" in node.told("refused-not-issuer")[0]

    run(story)
