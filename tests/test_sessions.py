"""Sessions between real nodes over real TLS: what both ends are told, in which order, and what they refuse."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from node.dialling import FRAME_BYTES_MAX, new_client
from node.identity import Identity
from node.listener import WEB_ALPN
from node.session import CODE_DUPLICATE, CODE_TWIN, SessionLimits
from protocol import wire
from protocol.events import Challenged, DialFailed, Event, Received, SessionDown, SessionUp
from protocol.messages import Ask, Goodbye, Hello, RowsMessage
from protocol.values import Member, Record, Rows
from tests.net import CLUSTER, NOW, Node, issuer_identity, joined, run, until

QUICK = SessionLimits(hello_seconds=0.3, heartbeat_seconds=0.05, silent_seconds=30.0, close_seconds=1.0)


@pytest.fixture
def a(tmp_path: Path) -> Identity:
    return issuer_identity(tmp_path / "a")


@pytest.fixture
def b(tmp_path: Path, a: Identity) -> Identity:
    return joined(tmp_path / "b", a, "b")


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def is_up(node: Node, peer: str) -> bool:
    return peer in node.sessions.peers()


def check_order(events: list[Event]) -> None:
    """For each peer: up, received, down, and never two ups without a down."""
    standing: set[str] = set()
    for event in events:
        if isinstance(event, SessionUp):
            assert event.peer not in standing
            standing.add(event.peer)
        elif isinstance(event, SessionDown):
            assert event.peer in standing
            standing.remove(event.peer)
        elif isinstance(event, Received):
            assert event.peer in standing
    assert standing <= {event.peer for event in events if isinstance(event, SessionUp)}


def dialling() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("dial-")]


def goodbye(number: int) -> Goodbye:
    return Goodbye(f"message {number}")


@asynccontextmanager
async def raw_session(node: Node, identity: Identity) -> AsyncIterator[aiohttp.ClientWebSocketResponse[Any]]:
    """A peer that sends whatever the test likes."""
    client, speaker = new_client(), Node(identity)
    async with (
        client,
        client.ws_connect(
            f"https://{node.address}/v1/session", ssl=speaker.contexts.client(WEB_ALPN), max_msg_size=FRAME_BYTES_MAX
        ) as connection,
    ):
        yield connection


def hello_frame(node: str = "b", *, cluster: str = CLUSTER, boot: int = 1) -> bytes:
    return wire.encode(Hello(cluster, Member(node, 1), boot, (0, 0), boot << 20, boot))


async def last_word(connection: aiohttp.ClientWebSocketResponse[Any]) -> str:
    """The reason with which the node closed the session."""
    while True:
        message = await connection.receive()
        if message.type is aiohttp.WSMsgType.CLOSE:
            return str(message.extra)
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            return ""


def test_a_dialled_session_comes_up_at_both_ends_and_carries_messages_both_ways_in_order(
    a: Identity, b: Identity
) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b, boot=7) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b") and is_up(second, "a"))
            assert isinstance(first.events[0], SessionUp)
            assert (first.events[0].hello.boot, first.events[0].hello.member.node) == (7, "b")
            for number in range(500):
                assert first.sessions.send("b", goodbye(number))
                assert second.sessions.send("a", goodbye(number))
            expected_at_first = [Received("b", goodbye(number)) for number in range(500)]
            expected_at_second = [Received("a", goodbye(number)) for number in range(500)]
            await until(lambda: len(first.events) == 501 and len(second.events) == 501)
            assert first.events[1:] == expected_at_first
            assert second.events[1:] == expected_at_second
            assert first.sessions.sent_bytes == second.sessions.received_bytes
            first.sessions.hangup("b", "enough")
            await until(lambda: SessionDown("b", "enough") == first.events[-1])
            await until(lambda: SessionDown("a", "the peer closed it: enough") == second.events[-1])

    run(story)


def test_a_hangup_comes_after_everything_that_was_sent(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            for number in range(1000):
                first.sessions.send("b", goodbye(number))
            first.sessions.hangup("b", "done")
            assert not first.sessions.send("b", goodbye(-1))
            await until(lambda: SessionDown("a", "the peer closed it: done") in second.events)
            assert [event for event in second.events if isinstance(event, Received)] == [
                Received("a", goodbye(number)) for number in range(1000)
            ]

    run(story)


def test_round_trips_are_measured(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a, session_limits=QUICK) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: first.sessions.rtt_ms("b") is not None and second.sessions.rtt_ms("a") is not None)
            (facts,) = first.sessions.facts()
            assert facts.peer == "b"
            assert facts.dialled
            assert facts.rtt_ms is not None
            assert 0 < facts.rtt_ms < 30_000
            assert first.sessions.rtt_ms("nobody") is None

    run(story)


@pytest.mark.parametrize("turn", range(12))
def test_when_both_dial_at_once_one_session_stays_and_both_ends_use_the_same(
    a: Identity, b: Identity, turn: int
) -> None:
    async def story() -> None:
        chance = random.Random(turn)
        async with Node(a) as first, Node(b) as second:
            dials = [lambda: first.sessions.dial("b", second.address), lambda: second.sessions.dial("a", first.address)]
            chance.shuffle(dials)
            for dial in dials:
                dial()
                await asyncio.sleep(chance.choice([0.0, 0.0, 0.002, 0.01, 0.03]))
            await until(lambda: is_up(first, "b") and is_up(second, "a"))
            await until(lambda: not dialling(), "the dials to end")
            await until(lambda: is_up(first, "b") and is_up(second, "a"))
            (at_first,), (at_second,) = first.sessions.facts(), second.sessions.facts()
            assert at_first.dialled != at_second.dialled
            # What is sent on it now arrives: it is one session, and it stands.
            assert first.sessions.send("b", goodbye(1))
            assert second.sessions.send("a", goodbye(2))
            await until(
                lambda: Received("b", goodbye(2)) in first.events and Received("a", goodbye(1)) in second.events
            )
        check_order(first.events)
        check_order(second.events)

    run(story)


def test_a_crossing_dial_of_the_larger_name_is_turned_down_by_the_session_of_the_smaller(
    a: Identity, b: Identity
) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            async with raw_session(first, b) as crossing:
                await crossing.send_bytes(hello_frame())
                message = await crossing.receive()
                assert message.data == CODE_DUPLICATE
                assert "a's session is kept" in str(message.extra)
            assert kinds(first.events) == ["SessionUp"]

    run(story)


def test_a_crossing_dial_of_the_smaller_name_replaces_the_session_of_the_larger(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            second.sessions.dial("a", first.address)
            await until(lambda: is_up(second, "a"))
            async with raw_session(second, a) as crossing:
                await crossing.send_bytes(hello_frame("a"))
                assert isinstance(wire.decode(await crossing.receive_bytes()), Hello)
                await until(lambda: kinds(second.events) == ["SessionUp", "SessionDown", "SessionUp"])
                assert not second.sessions.facts()[0].dialled

    run(story)


def test_a_peer_in_a_new_life_replaces_its_half_open_session(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            async with raw_session(first, b) as reborn:
                await reborn.send_bytes(hello_frame(boot=2))
                assert isinstance(wire.decode(await reborn.receive_bytes()), Hello)
                await until(lambda: kinds(first.events) == ["SessionUp", "Challenged", "SessionDown", "SessionUp"])
                assert first.events[1:3] == [
                    Challenged("b", 2 << 20, 2),
                    SessionDown("b", "replaced by a new session"),
                ]
                assert first.sessions.send("b", goodbye(1))
                assert wire.decode(await reborn.receive_bytes()) == goodbye(1)

    run(story)


def test_a_newcomer_whose_older_life_answers_is_turned_away_and_both_ends_log_why(a: Identity, b: Identity) -> None:
    why = "another machine runs as b and answers"

    async def story() -> None:
        async with (
            Node(a, turns_away=lambda event: why) as first,
            Node(b) as second,
            Node(b, boot=2) as copied,
        ):
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            copied.sessions.dial("a", first.address)
            await until(lambda: kinds(copied.events) == ["DialFailed"])
            assert copied.events == [DialFailed("a", f"the peer closed it: {why}")]
            assert [report.event for report in copied.reports] == ["refused-twin"]
            assert why in copied.reports[0].message
            assert kinds(first.events) == ["SessionUp", "Challenged"]
            assert first.sessions.send("b", goodbye(1))
            await until(lambda: Received("a", goodbye(1)) in second.events)

    run(story)


def test_a_newcomer_that_is_turned_away_leaves_the_older_session_alone(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(b, turns_away=lambda event: "it answers") as second, raw_session(second, a) as older:
            await older.send_bytes(hello_frame("a", boot=1))
            await until(lambda: is_up(second, "a"))
            async with raw_session(second, a) as newcomer:
                await newcomer.send_bytes(hello_frame("a", boot=2))
                message = await newcomer.receive()
                assert (message.data, message.extra) == (CODE_TWIN, "it answers")
            assert is_up(second, "a")

    run(story)


def test_a_newcomer_is_let_in_when_the_core_gives_no_answer(a: Identity, b: Identity) -> None:
    async def story() -> None:
        limits = SessionLimits(challenge_seconds=0.1)
        async with Node(a, session_limits=limits) as first:
            first.sessions.admit = lambda *answer: None  # type: ignore[method-assign]
            async with raw_session(first, b) as older, raw_session(first, b) as reborn:
                for life, boot in ((older, 1), (reborn, 2)):
                    await life.send_bytes(hello_frame(boot=boot))
                    assert isinstance(wire.decode(await life.receive_bytes()), Hello)

    run(story)


def test_a_dial_long_after_the_session_began_replaces_it_because_its_peer_must_have_lost_it(
    a: Identity, b: Identity
) -> None:
    async def story() -> None:
        async with Node(a, session_limits=SessionLimits(contest_seconds=0.0)) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            async with raw_session(first, b) as again:
                await again.send_bytes(hello_frame())
                await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown", "SessionUp"])

    run(story)


def test_dialling_a_peer_that_has_a_session_does_nothing(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            first.sessions.dial("b", second.address)
            assert first.sessions.send("b", goodbye(1))
            await until(lambda: len(second.events) == 2)
            assert kinds(first.events) == ["SessionUp"]

    run(story)


def test_a_failed_dial_says_why_and_may_be_repeated_from_within_the_event(a: Identity, b: Identity) -> None:
    tries: list[Event] = []

    async def story() -> None:
        def again(event: Event) -> None:
            tries.append(event)
            if len(tries) < 3:
                first.sessions.dial("b", f"127.0.0.1:{free}")

        async with Node(a, on_event=again) as first:
            async with Node(b) as gone:
                free = gone.listener.port
            first.sessions.dial("b", f"127.0.0.1:{free}")
            await until(lambda: len(tries) == 3)

    run(story)
    assert all(isinstance(event, DialFailed) and "nothing listens there" in event.why for event in tries)


@pytest.mark.parametrize(
    ("address", "why"), [("nonsense", "write host:port"), ("", "write host:port"), ("127.0.0.1:0", "host:port")]
)
def test_an_unusable_address_is_a_failed_dial(a: Identity, address: str, why: str) -> None:
    async def story() -> None:
        async with Node(a) as first:
            first.sessions.dial("b", address)
            assert first.events == []  # never from within the call
            await until(lambda: first.events)
            (failed,) = first.events
            assert isinstance(failed, DialFailed)
            assert why in failed.why

    run(story)


def test_a_node_does_not_dial_itself(a: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first:
            first.sessions.dial("a", first.address)
            await until(lambda: first.events)
            assert "this node itself" in first.events[0].why  # type: ignore[union-attr]

    run(story)


def test_a_node_found_at_an_address_that_is_not_the_one_dialled_hears_nothing(
    a: Identity, b: Identity, tmp_path: Path
) -> None:
    c = joined(tmp_path / "c", a, "c")

    async def story() -> None:
        async with Node(a) as first, Node(b) as second, Node(c):
            first.sessions.dial("c", second.address)
            await until(lambda: first.events)
            (failed,) = first.events
            assert isinstance(failed, DialFailed)
            assert "the node expected at this address is 'c'" in failed.why
            assert second.events == []
            assert second.sessions.received_bytes == 0

    run(story)


@pytest.mark.parametrize("refused_by", ["dialler", "acceptor"])
def test_a_revoked_node_gets_no_session_and_loses_the_one_it_has(a: Identity, b: Identity, refused_by: str) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            first.revocations["b"] = NOW + 1
            first.sessions.recheck()
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])
            assert "revoked" in first.events[1].why  # type: ignore[union-attr]
            await until(lambda: not second.sessions.peers())
            if refused_by == "dialler":
                first.sessions.dial("b", second.address)
                await until(lambda: len(first.events) == 3)
                assert "revoked" in first.events[2].why  # type: ignore[union-attr]
            else:
                second.sessions.dial("a", first.address)
                await until(lambda: isinstance(second.events[-1], DialFailed))
                assert "its log says why" in second.events[-1].why  # type: ignore[union-attr]
                assert any("revoked" in line for line in first.told("refused-revoked"))
            assert not is_up(first, "b")

    run(story)


def test_the_heartbeat_ends_the_session_of_a_certificate_that_expired_meanwhile(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a, session_limits=QUICK) as first, Node(b) as second:
            first.sessions.dial("b", second.address)
            await until(lambda: is_up(first, "b"))
            first.now = NOW + 91 * 24 * 3600
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])
            assert "expired" in first.events[1].why  # type: ignore[union-attr]

    run(story)


def test_a_silent_peer_is_given_up(a: Identity, b: Identity) -> None:
    limits = SessionLimits(heartbeat_seconds=0.1, silent_seconds=0.5, close_seconds=0.2)

    async def story() -> None:
        async with Node(a, session_limits=limits) as first, raw_session(first, b) as mute:
            await mute.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])  # it reads nothing: no pongs
            assert "silent" in first.events[1].why  # type: ignore[union-attr]

    run(story)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (hello_frame(cluster="other"), "cluster 'other'"),
        (hello_frame("c"), "the hello is of node 'c' and the certificate of 'b'"),
        (wire.encode(goodbye(1)), "the first message must be a Hello"),
        (b"", "cannot be decoded"),
        (b"\xc1\xff\x00", "cannot be decoded"),
        (msgpack.packb([99, 1]), "speaks protocol version 99"),
        (msgpack.packb([wire.VERSION, 77, "later"]), "message type 77 is not known"),
        (None, "no hello within"),
    ],
    ids=["cluster", "name", "no-hello", "empty", "garbage", "version", "unknown", "mute"],
)
def test_a_session_begins_with_the_right_hello_or_not_at_all(
    a: Identity, b: Identity, frame: bytes | None, why: str
) -> None:
    async def story() -> None:
        async with Node(a, session_limits=QUICK) as first, raw_session(first, b) as stranger:
            if frame is not None:
                await stranger.send_bytes(frame)
            assert why in await last_word(stranger)
            await until(lambda: first.told("refused-session"))
            assert why in first.told("refused-session")[0]
            assert first.events == []

    run(story)


def test_the_dialler_checks_the_hello_too(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            second.hello_cluster = "other"
            first.sessions.dial("b", second.address)
            await until(lambda: first.events)
            assert isinstance(first.events[0], DialFailed)
            assert "cluster 'other'" in first.events[0].why
            await until(lambda: not second.sessions.peers())
        check_order(second.events)

    run(story)


def test_messages_of_a_later_version_are_ignored_and_reported_once(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, raw_session(first, b) as newer:
            await newer.send_bytes(hello_frame())
            for _ in range(5):
                await newer.send_bytes(msgpack.packb([wire.VERSION, 77, "later"]))
            await newer.send_bytes(wire.encode(goodbye(1)))
            await until(lambda: Received("b", goodbye(1)) in first.events)
            assert kinds(first.events) == ["SessionUp", "Received"]
            assert len(first.told("refused-unknown-message")) == 1

    run(story)


@pytest.mark.parametrize("seed", range(6))
def test_random_frames_end_the_session_and_nothing_else(a: Identity, b: Identity, seed: int) -> None:
    async def story() -> None:
        chance = random.Random(seed)
        async with Node(a) as first, raw_session(first, b) as mad:
            await mad.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            with suppress(ConnectionError, aiohttp.ClientError):
                for _ in range(20):
                    await mad.send_bytes(chance.randbytes(chance.choice([0, 1, 7, 300, 70_000])))
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])
            assert len(first.told("refused-wire")) == 1
            assert not first.told("session-failed")

    run(story)


def test_an_oversized_frame_ends_the_session_and_the_largest_allowed_one_does_not(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, raw_session(first, b) as large:
            await large.send_bytes(hello_frame())
            room = wire.MESSAGE_BYTES_MAX - len(msgpack.packb([wire.VERSION, 77, b""])) - 3  # a longer length field
            frame = msgpack.packb([wire.VERSION, 77, bytes(room)])
            assert len(frame) == wire.MESSAGE_BYTES_MAX
            await large.send_bytes(frame)
            await until(lambda: first.told("refused-unknown-message"))
            assert is_up(first, "b")
            await large.send_bytes(bytes(wire.MESSAGE_BYTES_MAX + 1))
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])

    run(story)


def test_text_frames_and_a_second_hello_end_the_session(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first:
            for strange in ("text", hello_frame()):
                async with raw_session(first, b) as peer:
                    await peer.send_bytes(hello_frame())
                    await until(lambda: is_up(first, "b"))
                    await (peer.send_str(strange) if isinstance(strange, str) else peer.send_bytes(strange))
                    await until(lambda: isinstance(first.events[-1], SessionDown))
            whys = [event.why for event in first.events if isinstance(event, SessionDown)]
            assert "text" in whys[0]
            assert "a second Hello" in whys[1]

    run(story)


def test_three_unreadable_messages_in_a_minute_and_the_peer_is_left_alone(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, Node(b) as second:
            for _ in range(3):
                async with raw_session(first, b) as mad:
                    await mad.send_bytes(hello_frame())
                    await mad.send_bytes(b"\xc1")
                    await last_word(mad)
                    await until(lambda: first.events and isinstance(first.events[-1], SessionDown))
            assert len(first.told("peer-banned")) == 1
            second.sessions.dial("a", first.address)
            await until(lambda: second.events)
            assert "too many unreadable messages from b" in second.events[0].why  # type: ignore[union-attr]
            first.sessions.dial("b", second.address)
            await until(lambda: isinstance(first.events[-1], DialFailed))
            assert "too many unreadable messages" in first.events[-1].why  # type: ignore[union-attr]

    run(story)


def big_rows(number: int) -> RowsMessage:
    record = Record("model/x", number, "b", bytes(32), bytes(32), 1, meta=(("pad", "x" * 1900),))
    return RowsMessage(Rows(records=(record,) * 500))


def test_a_peer_that_does_not_read_loses_its_session_and_the_node_its_queue(a: Identity, b: Identity) -> None:
    limits = SessionLimits(queue_messages_max=50, close_seconds=0.2)

    async def story() -> None:
        async with Node(a, session_limits=limits) as first, raw_session(first, b) as slow:
            await slow.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            sent = [first.sessions.send("b", big_rows(number)) for number in range(80)]
            assert sent[:50] == [True] * 50
            assert not sent[-1]
            assert kinds(first.events) == ["SessionUp"]  # told later, never from within `send`
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])
            assert "too slow" in first.events[1].why  # type: ignore[union-attr]

    run(story)


def test_the_queue_is_bounded_in_bytes_too(a: Identity, b: Identity) -> None:
    limits = SessionLimits(queue_bytes_max=3 << 20, close_seconds=0.2)

    async def story() -> None:
        async with Node(a, session_limits=limits) as first, raw_session(first, b) as slow:
            await slow.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            taken = sum(first.sessions.send("b", big_rows(number)) for number in range(10))
            assert 3 <= taken <= 4

    run(story)


def test_a_stream_of_rows_waits_for_a_slow_peer_instead_of_overflowing(a: Identity, b: Identity) -> None:
    limits = SessionLimits(queue_bytes_max=8 << 20, waiting_bytes=1 << 20)

    async def story() -> None:
        async with Node(a, session_limits=limits) as first, raw_session(first, b) as slow:
            await slow.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            done = []

            async def stream() -> None:
                for number in range(60):
                    assert await first.sessions.send_waiting("b", big_rows(number))
                    assert first.sessions.facts()[0].queued_bytes <= 4 << 20
                done.append(True)

            task = asyncio.create_task(stream())
            assert isinstance(wire.decode(await slow.receive_bytes()), Hello)
            assert not done  # 60 MB do not fit into the buffers between the two
            for number in range(60):
                assert wire.decode(await slow.receive_bytes()) == big_rows(number)
            await task
            assert not await first.sessions.send_waiting("nobody", goodbye(1))

    run(story)


def test_a_stream_of_rows_ends_when_the_session_does(a: Identity, b: Identity) -> None:
    async def story() -> None:
        limits = SessionLimits(close_seconds=0.2)
        async with Node(a, session_limits=limits) as first, raw_session(first, b) as slow:
            await slow.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))

            async def stream() -> int:
                count = 0
                while await first.sessions.send_waiting("b", big_rows(count)):
                    count += 1
                return count

            task = asyncio.create_task(stream())
            await until(lambda: first.sessions.facts()[0].queued_bytes > 1 << 20)
            first.revocations["b"] = NOW + 1
            first.sessions.recheck()
            assert await task > 0

    run(story)


def test_an_agent_that_fails_at_a_message_ends_that_session_and_says_so(a: Identity, b: Identity) -> None:
    seen: list[Event] = []

    def fail_at_messages(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Received):
            raise RuntimeError("a fault of ours")

    async def story() -> None:
        async with Node(a, on_event=fail_at_messages) as first, Node(b) as second:
            second.sessions.dial("a", first.address)
            await until(lambda: is_up(second, "a"))
            second.sessions.send("a", Ask(1, (bytes(32),)))
            await until(lambda: kinds(seen) == ["SessionUp", "Received", "SessionDown"])
            await until(lambda: not second.sessions.peers())
            assert len(first.told("session-failed")) == 1

    run(story)


def test_stopping_says_goodbye_and_refuses_newcomers(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(b) as second:
            async with Node(a) as first:
                first.sessions.dial("b", second.address)
                await until(lambda: is_up(first, "b") and is_up(second, "a"))
                for number in range(100):
                    first.sessions.send("b", goodbye(number))
                await first.sessions.stop()
                second.sessions.dial("a", first.address)
                await until(lambda: isinstance(second.events[-1], DialFailed))
                assert "this node stops" in second.events[-1].why  # type: ignore[union-attr]
            assert second.events[1:101] == [Received("a", goodbye(number)) for number in range(100)]
            assert second.events[101] == SessionDown("a", "the peer closed it: the node stops")

    run(story)


def test_a_peer_that_vanishes_without_a_word_is_down_at_once(a: Identity, b: Identity) -> None:
    async def story() -> None:
        async with Node(a) as first, raw_session(first, b) as peer:
            await peer.send_bytes(hello_frame())
            await until(lambda: is_up(first, "b"))
            transport = peer.get_extra_info("socket")
            assert transport is not None
            transport.shutdown(2)
            await until(lambda: kinds(first.events) == ["SessionUp", "SessionDown"])

    run(story)


def test_a_peer_that_is_killed_right_after_its_hello_is_no_fault_of_ours(
    a: Identity, b: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with Node(a) as node_a:
            welcome, read = node_a.sessions._welcome, asyncio.Event()

            async def slowly(*asked: Any) -> Hello:
                hello = await welcome(*asked)
                read.set()
                await until(lambda: node_a.listener.open_connections == 0, "the connection to be lost")
                return hello

            node_a.sessions._welcome = slowly  # type: ignore[method-assign]
            async with raw_session(node_a, b) as connection:
                await connection.send_bytes(wire.encode(Hello(CLUSTER, Member("b", 1), 1, (0, 0), 1, 1)))
                await read.wait()
                await connection.close()
            await until(lambda: "SessionDown" in kinds(node_a.events), "the session to be over")

    run(story)
    assert [record.getMessage() for record in caplog.records] == []
