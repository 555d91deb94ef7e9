"""A peer with a good certificate and bad manners: nothing of it lands under a final name, and others are served."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgpack
import pytest

from node.bulk_client import Connections
from node.bulk_stream import Patience, StreamBroken
from node.dialling import ClientSocket, new_client, open_socket
from node.identity import Identity
from node.local_fleet import LocalFleet
from node.session import SessionLimits
from node.tls import IdentityContexts
from node.uploading import end_push
from protocol import messages as m
from protocol import wire
from protocol.chunks import CHUNK_BYTES
from protocol.values import Member, Parcel, Record, Rows
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, lines, logged, plain, running, written
from tests.bulk_world import Node as BulkNode
from tests.bulk_world import Pusher, leaves_of, record_of

pytestmark = pytest.mark.processes
ROGUES = ("rogue", "noisy")  # the second is shut out for a minute by what it sends
MIB = 1 << 20


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    hosts = {**HOSTS, **{name: {"provider": "elsewhere"} for name in ROGUES}}
    with running(hosts, only=tuple(HOSTS)) as made:
        yield made


@pytest.fixture(autouse=True)
def _goes_on(fleet: LocalFleet) -> Iterator[None]:
    """After each of these tests others are served as before, and nothing of the rogue's has a final name."""
    yield
    content = os.urandom(200_000)
    written(fleet, "a", "checkpoints/after", content)
    durable(fleet, "b", "checkpoint/checkpoints/after", plain(content))
    for node in HOSTS:
        assert fleet.nodes[node].running
        assert not [line for line in lines(fleet, node) if "Traceback" in line or " fault: " in line]
        files = [path for path in fleet.nodes[node].root.rglob("rogue*") if ".spore" not in path.parts]
        assert files == []


@dataclass
class Rogue:
    """One session with agent a, by hand."""

    name: str
    connection: ClientSocket
    contexts: IdentityContexts
    address: str

    async def say(self, *messages: m.Message) -> None:
        for message in messages:
            await self.connection.send_bytes(wire.encode(message))

    async def hears(self, kind: type[m.Message]) -> Any:
        """The next message of a kind."""
        while True:
            frame = await self.connection.receive()
            assert frame.type not in _ENDS, f"the session ended: {frame.extra or frame.data}"
            if frame.type is aiohttp.WSMsgType.BINARY:
                message = wire.decode(frame.data)
                if isinstance(message, kind):
                    return message

    async def ended(self) -> str:
        """Why the other side ends the session."""
        while True:
            frame = await self.connection.receive()
            if frame.type in _ENDS:
                return str(frame.extra or "")

    async def offer(self, transfer: int, *records: Record) -> m.Take:
        await self.say(m.RowsMessage(Rows(records=records)))
        await self.say(m.Offer(transfer, tuple(Parcel(record) for record in records)))
        take = await self.hears(m.Take)
        assert isinstance(take, m.Take)
        return take

    def pusher(self, transfer: int) -> Pusher:
        """An upload by hand."""
        near = SimpleNamespace(connections=Connections(self.contexts, {"a": self.address}.get, Patience()))
        far = SimpleNamespace(name="a")
        pusher = Pusher(cast(BulkNode, near), cast(BulkNode, far), transfer)
        try:
            return pusher.begin()
        except StreamBroken:
            pusher.close()
            raise


_ENDS = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR)


def meet(fleet: LocalFleet, story: Callable[[Rogue], Awaitable[None]], name: str = "rogue") -> None:
    """Open a session with agent a as a member that holds nothing for others, and play a story on it."""

    async def whole() -> None:
        identity = Identity.load(fleet.nodes[name].folder, now=time.time())
        contexts = IdentityContexts(identity, clock=time.time, revocations={})
        address = f"127.0.0.1:{fleet.nodes['a'].port}"
        async with asyncio.timeout(GENEROUS_SECONDS), new_client() as client:
            connection, _ = await open_socket(client, contexts, "a", address, SessionLimits())
            sock = connection.get_extra_info("socket")
            try:
                rogue = Rogue(name, connection, contexts, address)
                own = Member(name, int(time.time() * 1000) << 16, store=name.encode().ljust(16), excluded=True)
                await rogue.say(m.Hello("demo", own, time.time_ns(), (0, 0), 1, 1))
                await rogue.hears(m.Hello)
                await story(rogue)
            finally:
                await connection.close()
                while sock.fileno() != -1:  # noqa: ASYNC110 - TLS closes in steps of the loop, and tells nobody
                    await asyncio.sleep(0.005)

    asyncio.run(whole())


def offered(content: bytes, path: str = "rogue.bin") -> Record:
    """A record of these bytes, as the rogue would make it."""
    return replace(record_of(content, f"checkpoint/{path}"), origin="rogue", hlc=int(time.time() * 1000) << 16)


# --- frames ---


def test_random_and_oversized_frames_end_the_session_and_the_third_within_a_minute_bars_the_peer(
    fleet: LocalFleet,
) -> None:
    async def noise(rogue: Rogue) -> None:
        await rogue.connection.send_bytes(b"\xc1" + os.urandom(5_000))
        assert "unreadable" in await rogue.ended()

    async def flood(rogue: Rogue) -> None:
        await rogue.connection.send_bytes(bytes(wire.MESSAGE_BYTES_MAX + 1_000))
        await rogue.ended()

    for story in (noise, flood, noise):
        meet(fleet, story, "noisy")
    assert "no session for 60 s" in logged(fleet, "a", "peer-banned", "noisy")


def test_a_message_of_another_version_is_told_and_of_another_type_ignored(fleet: LocalFleet) -> None:
    async def newer(rogue: Rogue) -> None:
        await rogue.connection.send_bytes(msgpack.packb([wire.VERSION, 999, "whatever", {"later": 1}]))
        take = await rogue.offer(1, offered(b"still heard"))  # the session stands
        assert len(take.refused) == 1
        await rogue.connection.send_bytes(msgpack.packb([wire.VERSION + 1, 2, []]))
        assert "protocol version" in await rogue.ended()

    meet(fleet, newer)


def test_names_that_lead_out_of_the_root_end_the_session(fleet: LocalFleet) -> None:
    async def escape(rogue: Rogue) -> None:
        record = replace(offered(b"escape"), name="checkpoint/../../rogue")
        await rogue.say(m.Offer(1, (Parcel(record),)))
        assert "unreadable" in await rogue.ended()

    meet(fleet, escape)


# --- bytes ---


def test_wrong_bytes_are_refused_and_told(fleet: LocalFleet) -> None:
    promised, sent = os.urandom(50_000), os.urandom(50_000)
    record = offered(promised, "rogue-wrong")

    async def lie(rogue: Rogue) -> None:
        take = await rogue.offer(11, record)
        assert take.refused == ("",)
        await asyncio.to_thread(_push_small, rogue, 11, record, sent)
        receipt = await rogue.hears(m.Receipt)
        assert receipt.holdings == ()
        assert [digest for digest, _ in receipt.failed] == [record.digest]

    meet(fleet, lie)
    logged(fleet, "a", "wrong_bytes", "rogue")


def test_a_size_that_is_a_lie_is_refused(fleet: LocalFleet) -> None:
    content = os.urandom(60_000)
    record = replace(offered(content, "rogue-size"), size=10)

    async def lie(rogue: Rogue) -> None:
        await rogue.offer(21, record)
        try:
            await asyncio.to_thread(_push_small, rogue, 21, record, content)
        except StreamBroken:
            return  # the connection is cut: as good as any refusal
        receipt = await rogue.hears(m.Receipt)
        assert receipt.holdings == ()

    meet(fleet, lie)


def test_wrong_chunks_of_a_large_artifact_are_not_kept(fleet: LocalFleet) -> None:
    promised = os.urandom(3 * MIB)
    record = offered(promised, "rogue-chunks")

    async def lie(rogue: Rogue) -> None:
        await rogue.offer(31, record)
        await asyncio.to_thread(_push_wrong_chunks, rogue, 31, record, promised)
        receipt = await rogue.hears(m.Receipt)
        assert receipt.holdings == ()

    meet(fleet, lie)
    logged(fleet, "a", "wrong_bytes", "rogue", record.digest.hex()[:12])


def test_a_transfer_that_stops_half_way_leaves_nothing_under_a_final_name(fleet: LocalFleet) -> None:
    content = os.urandom(4 * MIB)
    record = offered(content, "rogue-half")

    async def stop(rogue: Rogue) -> None:
        await rogue.offer(41, record)
        await asyncio.to_thread(_push_half, rogue, 41, record, content)

    meet(fleet, stop)

    async def ask_again(rogue: Rogue) -> None:
        """What came and was verified is not asked for again."""
        take = await rogue.offer(42, record)
        assert take.refused == ("",)
        assert sum(stripe.count for stripe in take.missing[0]) < 4

    meet(fleet, ask_again)


def test_an_upload_that_nobody_asked_for_is_not_welcome(fleet: LocalFleet) -> None:
    async def barge_in(rogue: Rogue) -> None:
        with pytest.raises(StreamBroken):
            await asyncio.to_thread(rogue.pusher, 51)

    meet(fleet, barge_in)


def _push_small(rogue: Rogue, transfer: int, record: Record, content: bytes) -> None:
    pusher = rogue.pusher(transfer)
    try:
        pusher.small(record, content)
        pusher.frames.end()
        end_push(pusher.connection)
    finally:
        pusher.close()


def _push_wrong_chunks(rogue: Rogue, transfer: int, record: Record, promised: bytes) -> None:
    """The right list, and other bytes under it."""
    pusher = rogue.pusher(transfer)
    try:
        pusher.frames.large(record.digest, record.size, leaves_of(promised))
        for index in range(3):
            pusher.chunk(index, os.urandom(CHUNK_BYTES))
        pusher.frames.close()
        pusher.frames.end()
        end_push(pusher.connection)
    finally:
        pusher.close()


def _push_half(rogue: Rogue, transfer: int, record: Record, content: bytes) -> None:
    pusher = rogue.pusher(transfer)
    try:
        pusher.frames.large(record.digest, record.size, leaves_of(content))
        for index in range(2):
            pusher.chunk(index, content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        pusher.flush()
    finally:
        pusher.close()
