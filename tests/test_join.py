"""Joining over real TLS: one token, one call; and everybody who must not get a certificate, or a secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.certificates import DAY_SECONDS, create_csr
from node.identity import Identity, IdentityError, begin_join
from node.issuer import FAILURES_PER_ADDRESS_MAX, Issuer, JoinRefused, JoinRequest, Standing
from node.join import HOSTS_FILE, Joined, JoinError, join_cluster
from node.tls import join_server_context, unverified_join_context
from node.tokens import BOOK_FILE, TokenBook, parse_token
from tests.net import NOW, Node, get, issuer_identity, plain_socket, read_to_end, run, until


@pytest.fixture
def a(tmp_path: Path) -> Identity:
    return issuer_identity(tmp_path / "a")


async def join(token: str, directory: Path, node: str = "b", **options: Any) -> Joined:
    options.setdefault("clock", lambda: NOW)
    return await asyncio.to_thread(join_cluster, token, directory, node, **options)


async def refused(token: str, directory: Path, node: str = "b", **options: Any) -> str:
    with pytest.raises(JoinError) as problem:
        await join(token, directory, node, **options)
    sentence = str(problem.value)
    assert "\n" not in sentence
    return sentence


async def post(node: Node, body: bytes) -> tuple[int, dict[str, Any]]:
    context, port = unverified_join_context(), node.listener.port
    answer = await asyncio.to_thread(get, port, "/v1/join", context, method="POST", body=body)
    return answer.status, json.loads(answer.body)


def test_a_token_and_an_empty_folder_become_a_member_that_holds_sessions(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            brought = await join(issuer.token(), tmp_path / "b")
            assert (brought.identity.node, brought.identity.cluster) == ("b", "fleet")
            assert not brought.identity.issuer
            assert not brought.identity.facts.ephemeral
            assert brought.seeds == (issuer.address,)
            assert brought.hosts_file == tmp_path / "b" / HOSTS_FILE
            assert brought.hosts_file.read_text() == "cluster: fleet\n"
            assert issuer.told("joined") == ["b joined from 127.0.0.1"]
            async with Node(brought.identity) as member:
                member.sessions.dial("a", issuer.address)
                await until(lambda: issuer.sessions.peers() == ("b",))

    run(story)


def test_an_ephemeral_token_lets_in_a_machine_the_hosts_file_does_not_know(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            assert "not in the hosts file" in await refused(issuer.token(), tmp_path / "b", "spot-1")
            brought = await join(issuer.token(ephemeral=True), tmp_path / "c", "spot-1")
            assert brought.identity.facts.ephemeral
            assert brought.identity.facts.not_after == NOW + 7 * DAY_SECONDS

    run(story)


def test_the_next_address_of_a_token_is_tried_when_one_is_dead(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            with socket.create_server(("127.0.0.1", 0)) as unused:
                free = f"127.0.0.1:{unused.getsockname()[1]}"
            await join(issuer.token(addresses=[free, issuer.address]), tmp_path / "b")
            sentence = await refused(issuer.token(addresses=[free]), tmp_path / "c")
            assert f"cannot join: {free} cannot be reached: Connection refused" in sentence

    run(story)


def test_every_refusal_of_the_issuer_is_a_sentence_and_leaves_no_identity(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed |= {"b", "c", "d"}
            issuer.alive.add("d")
            once = issuer.token()
            await join(once, tmp_path / "b")
            assert "no uses left" in await refused(once, tmp_path / "c", "c")
            assert "node 'd' is alive" in await refused(issuer.token(), tmp_path / "d", "d")
            assert "node 'a' is alive" in await refused(issuer.token(), tmp_path / "e", "a")
            old = issuer.token(ttl_seconds=60)
            issuer.now = NOW + 61
            assert "the token has expired: make a new one" in await refused(old, tmp_path / "f", "c")
            elsewhere = TokenBook(tmp_path / "other.json").create(
                ttl_seconds=60,
                uses=1,
                ephemeral=False,
                addresses=[issuer.address],
                ca_pin=a.ca_pin,
                cluster="fleet",
                issuer="a",
                now=NOW,
            )
            assert "does not know the token" in await refused(elsewhere, tmp_path / "g", "c")
            for name in "cdefg":
                assert not (tmp_path / name / "identity").exists()
            assert issuer.told("refused-join-used_up")
            assert issuer.told("refused-join-alive")
            assert issuer.told("refused-join-expired")
            assert issuer.told("refused-join-unknown")

    run(story)


def test_what_is_wrong_here_is_said_before_anything_is_sent(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token()
            assert "copy the whole word again" in await refused(token[:-4], tmp_path / "b")
            assert "node name 'Not Good' is not usable" in await refused(token, tmp_path / "b", "Not Good")
            assert "token has expired" in await refused(token, tmp_path / "b", clock=lambda: NOW + 7200)
            (tmp_path / "file").write_text("")
            assert "cannot be written" in await refused(token, tmp_path / "file")
            assert issuer.reports == []
            await join(token, tmp_path / "b")  # no use of the token was taken
            assert "already has an identity" in await refused(token, tmp_path / "b")
            assert "is never replaced" in await refused(token, a.folder.parent)

    run(story)


def test_a_join_cut_short_can_be_repeated_without_another_use(
    a: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object, **options: object) -> None:
        raise IdentityError("damaged", "killed before the identity was in place")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token(uses=1)
            with monkeypatch.context() as patch:
                patch.setattr("node.join.install_identity", die)
                await refused(token, tmp_path / "b")
            brought = await join(token, tmp_path / "b")
            assert brought.identity.node == "b"

    run(story)


def test_another_hosts_file_that_was_there_is_kept_aside(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / HOSTS_FILE).write_text("cluster: mine\n")
            brought = await join(issuer.token(), tmp_path / "b")
            assert brought.hosts_file.read_text() == "cluster: fleet\n"
            assert (tmp_path / "b" / f"{HOSTS_FILE}.before-join").read_text() == "cluster: mine\n"

    run(story)


def test_a_revoked_node_that_joins_anew_is_let_in_again(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            await join(issuer.token(), tmp_path / "b")
            issuer.revocations["b"] = NOW + 3600  # the revoker's clock was ahead
            brought = await join(issuer.token(), tmp_path / "b", anew=True)
            async with Node(brought.identity) as member:
                member.sessions.dial("a", issuer.address)
                await until(lambda: issuer.sessions.peers() == ("b",))

    run(story)


# --- impostors ------------------------------------------------------------------------------------------------------


@contextmanager
def impostor(identity: Identity, authority: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answers joins with its own certificate and the given authority, and keeps every byte it is sent."""
    heard: list[bytes] = []
    context = join_server_context(identity)

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    tls = context.wrap_socket(connection, server_side=True)
                    with tls:
                        heard.append(tls.recv(65536))
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(authority)}\r\n\r\n".encode()
                        tls.sendall(head + authority)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", heard
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_man_in_the_middle_with_an_authority_of_his_own_never_sees_the_secret(a: Identity, tmp_path: Path) -> None:
    mallory = issuer_identity(tmp_path / "mallory", "a")  # the same names, another key

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            with impostor(mallory, mallory.ca_pem) as (address, heard):
                token = issuer.token(addresses=[address])
                assert "is not the token's" in await refused(token, tmp_path / "b")
            check_unheard(token, heard, asked=1)

    run(story)


def test_a_man_in_the_middle_who_shows_the_real_authority_never_sees_the_secret(a: Identity, tmp_path: Path) -> None:
    mallory = issuer_identity(tmp_path / "mallory", "a")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            with impostor(mallory, a.ca_pem) as (address, heard):
                token = issuer.token(addresses=[address])
                assert "is not the issuer" in await refused(token, tmp_path / "b")
            check_unheard(token, heard, asked=1)

    run(story)


def test_another_member_of_the_cluster_is_not_the_issuer_and_never_sees_the_secret(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed |= {"b", "c"}
            other = (await join(issuer.token(), tmp_path / "c", "c")).identity
            with impostor(other, a.ca_pem) as (address, heard):
                token = issuer.token(addresses=[address])
                assert "the node expected at this address is 'a'" in await refused(token, tmp_path / "b")
            check_unheard(token, heard, asked=1)

    run(story)


def check_unheard(token: str, heard: list[bytes], *, asked: int) -> None:
    """The impostor saw the question for the authority and nothing after it."""
    secret = parse_token(token).secret
    everything = b"".join(heard)
    assert sum(piece.startswith(b"GET /v1/ca") for piece in heard) == asked
    assert b"POST" not in everything
    assert secret not in everything
    assert secret.hex().encode() not in everything


def test_the_next_address_is_tried_after_an_impostor(a: Identity, tmp_path: Path) -> None:
    mallory = issuer_identity(tmp_path / "mallory", "a")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            with impostor(mallory, mallory.ca_pem) as (address, heard):
                token = issuer.token(addresses=[address, issuer.address])
                assert (await join(token, tmp_path / "b")).identity.node == "b"
            check_unheard(token, heard, asked=1)

    run(story)


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_an_endpoint_that_is_no_issuer_is_named_as_such(a: Identity, tmp_path: Path, answer: bytes) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            with impostor(a, answer) as (address, _):
                assert "is no issuer" in await refused(issuer.token(addresses=[address]), tmp_path / "b")

    run(story)


# --- strangers at the join endpoint ---------------------------------------------------------------------------------


def good_body(token: str, request: bytes, **changed: Any) -> bytes:
    parsed = parse_token(token)
    fields = {"token_id": parsed.token_id, "secret": parsed.secret.hex(), "node": "b", "csr": request.decode()}
    return json.dumps({**fields, **changed}).encode()


def test_malformed_requests_are_refused_with_a_sentence(a: Identity) -> None:
    _, csr = create_csr("b")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token()
            for body in (
                b"",
                b"\xff\xfe",
                b"[" * 60_000,
                b"[]",
                b"{}",
                good_body(token, csr, secret="xyz"),
                good_body(token, csr, node=7),
                good_body(token, csr, node="../x"),
                good_body(token, csr, csr="none"),
            ):
                status, answer = await post(issuer, body)
                assert (status, answer["reason"]) == (403, "unusable"), body[:60]
                assert answer["error"]
            context, port = unverified_join_context(), issuer.listener.port
            huge = await asyncio.to_thread(get, port, "/v1/join", context, method="POST", body=bytes(70_000))
            assert huge.status == 413
            for path in ("/v1/healthz", "/metrics", "/v1/blob/" + "0" * 64, "/v1/renew", "/v1/session"):
                assert (await asyncio.to_thread(get, port, path, context)).status == 404

    run(story)


def test_guessing_is_slowed_down_and_the_right_secret_waits_too(a: Identity) -> None:
    _, csr = create_csr("b")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token()
            wrong = good_body(token, csr, secret="00" * 32)
            for _ in range(FAILURES_PER_ADDRESS_MAX):
                assert (await post(issuer, wrong))[1]["reason"] == "wrong_secret"
            assert (await post(issuer, wrong))[0] == 429
            assert (await post(issuer, good_body(token, csr)))[0] == 429
            assert len(issuer.told("refused-join-wrong_secret")) == 1

    run(story)


def test_without_the_secret_nobody_learns_which_names_are_taken(a: Identity) -> None:
    _, csr = create_csr("b")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.alive.add("b")
            answers = [
                await post(issuer, good_body(issuer.token(), csr, secret="00" * 32, node=name)) for name in "abc"
            ]
            assert answers[0] == answers[1] == answers[2]

    run(story)


def test_a_joiner_who_says_nothing_is_closed(a: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.issuer.IDLE_SECONDS", 0.2)
    monkeypatch.setattr("node.issuer.REQUEST_SECONDS", 0.2)

    def wait_for_the_end(port: int, said: bytes) -> bytes:
        with plain_socket(port) as raw, unverified_join_context().wrap_socket(raw) as tls:
            tls.sendall(said)
            return read_to_end(tls)

    async def story() -> None:
        async with Node(a) as issuer:
            port = issuer.listener.port
            assert await asyncio.to_thread(wait_for_the_end, port, b"GET /v1/ca HT") == b""
            crawling = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            assert b" 504 " in await asyncio.to_thread(wait_for_the_end, port, crawling)
            await until(lambda: issuer.listener.open_connections == 0)

    run(story)


def test_a_damaged_book_grants_nothing_and_says_so(a: Identity, tmp_path: Path) -> None:
    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token()
            (a.folder / BOOK_FILE).write_text("{")
            assert "make new tokens" in await refused(token, tmp_path / "b")

    run(story)


def test_an_issuer_whose_disk_fails_says_so_and_takes_no_use_of_the_token(a: Identity, tmp_path: Path) -> None:
    def fail() -> bytes:
        raise OSError(5, "Input/output error")

    async def story() -> None:
        async with Node(a) as issuer:
            issuer.listed.add("b")
            token = issuer.token()
            whole, issuer.hosts_file = issuer.hosts_file, fail
            assert "the issuer failed at its own files" in await refused(token, tmp_path / "b")
            assert "Input/output error" in issuer.told("join-failed")[0]
            issuer.hosts_file = whole
            assert (await join(token, tmp_path / "c")).identity.node == "b"

    run(story)


def test_the_issuer_decides_alone_with_its_book_and_its_clock(a: Identity, tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "book.json")
    token = parse_token(
        book.create(
            ttl_seconds=60,
            uses=1,
            ephemeral=False,
            addresses=["h:1"],
            ca_pin=a.ca_pin,
            cluster="fleet",
            issuer="a",
            now=NOW,
        )
    )
    issuer = Issuer(
        lambda: a, book, standing=lambda node: Standing(True, True, False), revocations={}, clock=lambda: NOW
    )
    csr = begin_join(tmp_path / "b", "b")
    request = JoinRequest(token.token_id, token.secret, "b", csr)
    assert issuer.join(request)
    assert issuer.join(request)  # asked again with the same key: the same join
    other = JoinRequest(token.token_id, token.secret, "b", create_csr("b")[1])
    with pytest.raises(JoinRefused, match="no uses left"):
        issuer.join(other)


def test_the_join_endpoint_shows_a_certificate_and_asks_for_none(a: Identity) -> None:
    def look(port: int) -> tuple[str | None, str | None]:
        with plain_socket(port) as raw, unverified_join_context().wrap_socket(raw) as tls:
            return tls.version(), tls.selected_alpn_protocol()

    async def story() -> None:
        async with Node(a) as issuer:
            assert await asyncio.to_thread(look, issuer.listener.port) == ("TLSv1.3", "spore-join")

    run(story)


def test_tls_below_1_3_is_refused(a: Identity) -> None:
    def try_old(port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with plain_socket(port) as raw:
            context.wrap_socket(raw)

    async def story() -> None:
        async with Node(a) as issuer:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(try_old, issuer.listener.port)
            await until(lambda: issuer.told("refused-protocol"))

    run(story)
