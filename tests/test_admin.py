"""The agent's end of the local socket: a real server, a real socket, a fake door."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.admin import CONNECTIONS_MAX, AdminRefused, AdminServer
from node.admin_connection import CONTENT_BYTES_MAX, REQUESTS_MAX
from node.admin_requests import COMMANDS, BadRequest, Request, read_request
from node.door import DoorError
from node.local_socket import ADDRESS_BYTES_MAX, INLINE_BYTES_MAX, LINE_BYTES_MAX, address_of
from tests.fake_door import FakeDoor

LARGE = 3_000_000  # a few blocks
STRANGER = 54_321  # a user id that is neither ours nor root's


class Talk:
    """A client that writes lines and reads lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, content: bytes = b"", **fields: Any) -> None:
        self.writer.write(json.dumps(fields).encode() + b"\n" + content)

    async def answer(self) -> Any:
        line = await asyncio.wait_for(self.reader.readline(), 60)
        return json.loads(line) if line else None

    async def ask(self, content: bytes = b"", **fields: Any) -> Any:
        self.send(content, **fields)
        return await self.answer()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


class World:
    """A server over a fake door, and the clients of a test."""

    def __init__(self, path: Path, door: FakeDoor) -> None:
        self.path, self.door = path, door
        self._talks: list[Talk] = []

    async def talk(self) -> Talk:
        with address_of(self.path) as address:
            talk = Talk(*await asyncio.open_unix_connection(address, limit=1 << 24))
        self._talks.append(talk)
        return talk

    async def close(self) -> None:
        for talk in self._talks:
            talk.writer.close()
        await asyncio.gather(*(talk.writer.wait_closed() for talk in self._talks), return_exceptions=True)


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[World]:
    door = FakeDoor()
    server = AdminServer(folder / "agent.sock", door, **options)
    await server.start()
    world = World(folder / "agent.sock", door)
    try:
        yield world
    finally:
        await world.close()
        await server.stop()


def run(folder: Path, story: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def told() -> None:
        async with serving(folder, **options) as world:
            await story(world)

    asyncio.run(told())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the fake has no event for everything a test may wait for
            await asyncio.sleep(0.005)


def put(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"id": name, "do": "put", "kind": "model", "name": name, "size": size, **more}


# --- puts ---


def test_a_put_hands_over_its_bytes_and_its_terms(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        terms = {"mode": 0o600, "wait_copies": 2, "domains": 1, "timeout_seconds": 5}
        answer = await talk.ask(b"bytes", **put("best.pth", 5, **terms))
        assert answer["id"] == "best.pth"
        assert answer["answer"]["name"] == "model/best.pth"
        assert answer["answer"]["copies"] == 3
        (request,) = world.door.puts
        assert (request.mode, request.wait_copies, request.domains, request.timeout_seconds) == (0o600, 2, 1, 5.0)
        assert world.door.held == {"model/best.pth": b"bytes"}

    run(tmp_path, story)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, LARGE])
def test_contents_of_every_size_arrive_as_they_were_sent(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)

    async def story(world: World) -> None:
        talk = await world.talk()
        assert (await talk.ask(content, **put("a", size)))["answer"]["size"] == size
        assert world.door.held["model/a"] == content
        assert (await talk.ask(id=2, do="peers"))["id"] == 2

    run(tmp_path, story)


def test_pipelined_puts_are_each_answered_with_their_own_id(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        for number in range(500):
            content = f"content {number}".encode()
            talk.send(content, **put(f"{number}", len(content)))
        answers = [await talk.answer() for _ in range(500)]
        assert {a["id"]: a["answer"]["name"] for a in answers} == {f"{n}": f"model/{n}" for n in range(500)}
        assert world.door.held["model/77"] == b"content 77"

    run(tmp_path, story)


def test_no_more_requests_are_taken_than_may_be_in_flight(tmp_path: Path) -> None:
    count = REQUESTS_MAX + 500

    async def story(world: World) -> None:
        world.door.gate.clear()
        talk = await world.talk()
        for number in range(count):
            talk.send(b"x", **put(f"{number}", 1))
        await until(lambda: world.door.in_flight == REQUESTS_MAX)
        world.door.gate.set()
        answers = [await talk.answer() for _ in range(count)]
        assert len({answer["id"] for answer in answers}) == count
        assert world.door.in_flight_max == REQUESTS_MAX

    run(tmp_path, story)


def test_no_more_content_is_read_than_may_be_in_memory(tmp_path: Path) -> None:
    fitting = CONTENT_BYTES_MAX // INLINE_BYTES_MAX

    async def story(world: World) -> None:
        world.door.gate.clear()
        talk = await world.talk()
        for number in range(fitting + 50):
            talk.send(bytes(INLINE_BYTES_MAX), **put(f"{number}", INLINE_BYTES_MAX))
        await until(lambda: world.door.in_flight == fitting)
        world.door.gate.set()
        for _ in range(fitting + 50):
            assert "answer" in await talk.answer()
        assert world.door.in_flight_max == fitting

    run(tmp_path, story)


def test_a_slow_reader_of_a_large_put_stops_the_client(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 32

    async def story(world: World) -> None:
        world.door.gate.clear()
        world.door.reads = 1
        talk = await world.talk()
        talk.send(**put("large", len(content)))
        talk.writer.write(content)
        sending = asyncio.create_task(talk.writer.drain())
        await until(lambda: world.door.in_flight == 1)
        for _ in range(200):  # turns of the loop, in which an unbounded server would take everything
            await asyncio.sleep(0.001)
        assert not sending.done()
        world.door.gate.set()
        assert (await talk.answer())["answer"]["size"] == len(content)
        assert world.door.held["model/large"] == content
        await sending

    run(tmp_path, story)


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_refused_put_is_skipped_and_the_connection_goes_on(tmp_path: Path, size: int) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        refused = await talk.ask(os.urandom(size), **(put("a", size) | {"kind": "nothing"}))
        assert refused["error"].startswith("there is no kind 'nothing'")
        assert refused["exit"] == 2
        assert (await talk.ask(b"y", **put("b", 1)))["answer"]["size"] == 1

    run(tmp_path, story)


def test_a_client_that_leaves_in_the_middle_of_a_large_put_leaves_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        talk.send(bytes(LARGE // 2), **put("half", LARGE))
        await talk.writer.drain()
        await until(lambda: len(world.door.puts) == 1)
        await talk.close()
        other = await world.talk()
        assert (await other.ask(b"y", **put("b", 1)))["answer"]["size"] == 1
        assert world.door.held == {"model/b": b"y"}

    run(tmp_path, story)


def test_a_blocked_reader_in_a_thread_is_woken_when_the_client_leaves(tmp_path: Path) -> None:
    class Threaded(FakeDoor):
        """Takes a large put as the agent does: a thread asks the loop for every block."""

        outcome = ""

        async def _gather(self, request: Any, content: AsyncIterator[bytes]) -> bytes:
            loop = asyncio.get_running_loop()

            def read() -> bytes:
                try:
                    while True:
                        asyncio.run_coroutine_threadsafe(anext(content), loop).result()  # type: ignore[arg-type]
                except DoorError as problem:
                    self.outcome = problem.sentence
                    raise

            return await loop.run_in_executor(None, read)

    async def story() -> None:
        door = Threaded()
        server = AdminServer(tmp_path / "agent.sock", door)
        await server.start()
        world = World(tmp_path / "agent.sock", door)
        talk = await world.talk()
        talk.send(bytes(LARGE // 2), **put("half", LARGE))
        await until(lambda: len(door.puts) == 1)
        await talk.close()
        await until(lambda: bool(door.outcome))
        assert "the client left" in door.outcome
        await server.stop()

    asyncio.run(story())


# --- everything else ---


def test_every_command_is_answered(tmp_path: Path) -> None:
    asked: dict[str, dict[str, Any]] = {
        "where": {"name": "model/a"},
        "status": {"cluster": True},
        "peers": {},
        "risk": {},
        "wait": {"name": "model/a", "copies": 1, "timeout_seconds": 1.5},
        "flush": {"deadline_seconds": 3},
        "token": {"ttl_seconds": 60, "uses": 2, "ephemeral": True},
        "revoke": {"node": "node-b"},
        "renew": {},
        "remove": {"node": "node-b"},
        "drain": {},
        "progress": {"name": "model/a"},
        "plan": {"name": "model/a"},
        "broadcast": {"name": "model/a"},
        "delivery": {"name": "model/a"},
        "pin": {"name": "model/a", "node": "node-b"},
        "age": {},
        "recommend": {},
        "expire": {"glob": "none/*", "older_seconds": 60},
        "limit": {"node": "node-b", "rate": "50"},
        "rm": {"name": "model/a"},
    }

    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        for number, (command, arguments) in enumerate(asked.items()):
            answer = await talk.ask(id=number, do=command, **arguments)
            assert answer["id"] == number
            assert "answer" in answer, answer
        assert [command for command, _ in world.door.calls[1:] if command != "peers"] == [
            command for command in asked if command != "peers"
        ]
        assert set(asked) | {"put", "get", "ls", "events", "verify", "lend", "sync"} == set(COMMANDS)

    run(tmp_path, story)


def test_rows_come_one_a_line_and_the_last_line_has_no_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        for number in range(450):
            await talk.ask(b"x", **put(f"{number:03}", 1))
        talk.send(id=7, do="ls", glob="model/*")
        rows = []
        while (line := await talk.answer()).get("more"):
            assert line["id"] == 7
            rows.append(line["answer"]["name"])
        assert line == {"id": 7}
        assert rows == [f"model/{number:03}" for number in range(450)]

    run(tmp_path, story)


async def received(talk: Talk, name: str) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """The facts, the bytes and the last line of a `get`."""
    facts = (await talk.ask(id=1, do="get", name=name))["answer"]
    content = b""
    while "bytes" in (line := await talk.answer()):
        assert line["more"]
        content += await talk.reader.readexactly(line["bytes"])
    return facts, content, line


def test_a_get_tells_the_facts_and_then_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(LARGE)

    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(content, **put("a", LARGE, mode=0o755))
        facts, got, last = await received(talk, "model/a")
        assert (facts["size"], facts["mode"]) == (LARGE, 0o755)
        assert got == content
        assert last == {"id": 1}

    run(tmp_path, story)


def test_a_get_that_breaks_ends_in_an_error_and_the_connection_goes_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(bytes(LARGE), **put("a", LARGE))
        world.door.get_breaks_after = 1_000_000
        _, got, last = await received(talk, "model/a")
        assert len(got) < LARGE
        assert "changed while it was read" in last["error"]
        assert (await talk.ask(id=2, do="get", name="model/none"))["error"].startswith(
            "there is no artifact model/none"
        )

    run(tmp_path, story)


def test_requests_on_one_connection_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        world.door.gate.clear()
        talk.send(id="slow", do="wait", name="model/a", copies=1)
        assert (await talk.ask(id="quick", do="risk"))["id"] == "quick"
        world.door.gate.set()
        assert (await talk.answer())["id"] == "slow"

    run(tmp_path, story)


def test_a_client_that_leaves_cancels_what_it_waited_for(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        world.door.gate.clear()
        talk.send(id=1, do="wait", name="model/a", copies=1)
        talk.send(id=2, do="flush", deadline_seconds=60)
        await until(lambda: world.door.in_flight == 2)
        await talk.close()
        await until(lambda: world.door.in_flight == 0)
        assert sorted(world.door.cancelled) == ["flush", "model/a"]

    run(tmp_path, story)


def test_a_client_that_leaves_while_nothing_is_read_from_it_is_noticed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.door.gate.clear()
        talk = await world.talk()
        for number in range(REQUESTS_MAX + 10):
            talk.send(b"x", **put(f"{number}", 1))
        await until(lambda: world.door.in_flight == REQUESTS_MAX)
        await talk.close()
        await until(lambda: world.door.in_flight == 0)

    run(tmp_path, story)


def test_a_client_that_only_stops_sending_still_gets_its_answers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        world.door.gate.clear()
        talk.send(id=1, do="wait", name="model/a", copies=1)
        talk.writer.write(b'{"id":2,"do":"risk"}')  # without its line's end, as `printf` leaves it
        talk.writer.write_eof()
        await until(lambda: world.door.in_flight == 1)
        assert (await talk.answer())["id"] == 2
        world.door.gate.set()
        assert (await talk.answer())["id"] == 1
        assert await talk.answer() is None

    run(tmp_path, story)


# --- bad input ---

BAD_LINES = {
    b"nonsense": "no JSON",
    b"\xff\xfe\x00": "no JSON",
    b"[" * 5000: "no JSON",
    b"[1]": "no JSON object",
    b'"status"': "no JSON object",
    b'{"id":1}': "there is no command",
    b'{"id":1,"do":["put"]}': "there is no command",
    b'{"id":1,"do":"drop"}': "there is no command 'drop'; use one of put, get",
    b'{"id":{"a":1},"do":"peers"}': "an id is a number or a text",
    b'{"id":1,"do":"peers","x":1}': "peers takes no 'x'",
    b'{"id":1,"do":"where"}': "'name' is missing",
    b'{"id":1,"do":"where","name":7}': "'name' must be a text",
    b'{"id":1,"do":"status","cluster":1}': "'cluster' must be true or false",
    b'{"id":1,"do":"wait","name":"a/b","copies":1.5}': "'copies' must be a whole number",
    b'{"id":1,"do":"wait","name":"a/b","copies":true}': "'copies' must be a whole number",
    b'{"id":1,"do":"wait","name":"a/b","copies":-1}': "'copies' must be between 0 and",
    b'{"id":1,"do":"flush","deadline_seconds":NaN}': "'deadline_seconds' must be between 0 and",
    b'{"id":1,"do":"flush","deadline_seconds":1e999}': "'deadline_seconds' must be between 0 and",
    b'{"id":1,"do":"flush","deadline_seconds":' + b"9" * 400 + b"}": "'deadline_seconds' must be between 0 and",
    b'{"id":1,"do":"put","kind":"model","name":"a","size":2,"mode":4096}xy': "no JSON",
    b'{"do":"where","name":"' + b"a" * LINE_BYTES_MAX + b'"}': "a request has at most",
    b"x" * (5 * LINE_BYTES_MAX): "a request has at most",
    b"x" * (1 << 20): "a request has at most",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40].decode("latin-1"))
def test_a_bad_line_is_answered_in_one_sentence_and_the_connection_goes_on(tmp_path: Path, line: bytes) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        talk.writer.write(line + b"\n")
        refused = await talk.answer()
        assert BAD_LINES[line] in refused["error"]
        assert refused["exit"] == 2
        assert (await talk.ask(id="next", do="peers"))["id"] == "next"

    run(tmp_path, story)


def test_a_put_with_a_bad_argument_is_skipped_with_its_content(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        refused = await talk.ask(b'{"do":"rm"}\n', **put("a", 12, mode=4096))
        assert "'mode' must be between 0 and" in refused["error"]
        assert (await talk.ask(id="next", do="peers"))["id"] == "next"
        assert world.door.puts == []

    run(tmp_path, story)


@pytest.mark.parametrize("size", [-1, None, "5", 1.5, True, 1 << 70])
def test_a_put_whose_length_is_unknown_ends_the_connection(tmp_path: Path, size: Any) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        refused = await talk.ask(b"hello", **(put("a", 0) | {"size": size}))
        assert "'size'" in refused["error"]
        assert await talk.answer() is None
        other = await world.talk()
        assert (await other.ask(id=1, do="peers"))["id"] == 1

    run(tmp_path, story)


@given(st.binary(max_size=300))
def test_no_bytes_make_reading_a_request_fail_otherwise(line: bytes) -> None:
    with suppress(BadRequest):
        assert isinstance(read_request(line), Request)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(sorted(COMMANDS)),
    st.dictionaries(st.sampled_from(["id", "name", "kind", "size", "mode", "copies", "deadline_seconds"]), VALUES),
)
def test_no_arguments_make_reading_a_request_fail_otherwise(command: str, arguments: dict[str, Any]) -> None:
    with suppress(BadRequest):
        request = read_request(json.dumps({"do": command, **arguments}).encode())
        assert set(request.arguments) == set(COMMANDS[command])


def test_an_unexpected_failure_is_one_sentence_and_the_connection_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        world.door.fault = RuntimeError("the cat sat on it")
        talk = await world.talk()
        failed = await talk.ask(id=1, do="status")
        assert failed["error"] == "the agent failed at this (RuntimeError: the cat sat on it); its log has more"
        assert failed["exit"] == 1
        assert (await talk.ask(id=2, do="status"))["answer"]["node"] == "node-a"

    run(tmp_path, story)
    assert "the cat sat on it" in caplog.text


# --- who may ---

DESTRUCTIVE: list[dict[str, Any]] = [
    {"do": "rm", "name": "model/a"},
    {"do": "revoke", "node": "node-b"},
    {"do": "remove", "node": "node-b"},
    {"do": "drain"},
    {"do": "token", "ttl_seconds": 60},
    {"do": "verify", "rebuild": True},
]


@pytest.mark.parametrize("request_fields", DESTRUCTIVE, ids=lambda fields: fields["do"])
def test_only_the_owner_and_root_may_destroy(tmp_path: Path, request_fields: dict[str, Any]) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        refused = await talk.ask(id=1, **request_fields)
        assert refused["error"] == f"only the agent's user and root may {request_fields['do']}; use sudo"
        assert refused["exit"] == 2
        assert "answer" in await talk.ask(id=2, do="where", name="model/a")
        assert (await talk.ask(id=3, do="verify"))["more"]
        assert request_fields["do"] not in [command for command, argument in world.door.calls if argument is not False]

    run(tmp_path, story, owner=1000, user_of=lambda _: STRANGER)


@pytest.mark.parametrize("user", [1000, 0])
@pytest.mark.parametrize("request_fields", DESTRUCTIVE, ids=lambda fields: fields["do"])
def test_the_owner_and_root_may(tmp_path: Path, user: int, request_fields: dict[str, Any]) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        await talk.ask(b"x", **put("a", 1))
        assert "error" not in await talk.ask(id=1, **request_fields)

    run(tmp_path, story, owner=1000, user_of=lambda _: user)


def test_the_kernel_says_who_connects(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talk = await world.talk()
        assert "error" not in await talk.ask(id=1, do="revoke", node="node-b")

    run(tmp_path, story)  # the default: SO_PEERCRED, and we are the owner


# --- the socket ---


def test_the_socket_is_for_user_and_group_and_goes_when_the_server_stops(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert stat.S_IMODE(world.path.stat().st_mode) == 0o660

    old = os.umask(0)
    try:
        run(tmp_path, story)
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == []


def test_a_second_agent_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        with pytest.raises(AdminRefused, match=r"another agent answers at .*; stop it first"):
            await AdminServer(world.path, FakeDoor()).start()
        talk = await world.talk()
        assert (await talk.ask(id=1, do="peers"))["id"] == 1

    run(tmp_path, story)


def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left, address_of(tmp_path / "agent.sock") as address:
        left.bind(address)

    async def story(world: World) -> None:
        talk = await world.talk()
        assert (await talk.ask(id=1, do="peers"))["id"] == 1

    run(tmp_path, story)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("precious")
    with pytest.raises(AdminRefused, match="is no socket; move it away"):
        asyncio.run(AdminServer(tmp_path / "agent.sock", FakeDoor()).start())
    assert (tmp_path / "agent.sock").read_text() == "precious"


def test_a_socket_in_a_folder_that_is_not_there_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AdminRefused, match="cannot be made"):
        asyncio.run(AdminServer(tmp_path / "none" / "agent.sock", FakeDoor()).start())


def test_stopping_leaves_the_socket_of_a_successor_alone(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "agent.sock"
        first, second = AdminServer(path, FakeDoor()), AdminServer(path, FakeDoor())
        await first.start()
        path.unlink()
        await second.start()
        await first.stop()
        assert path.exists()
        await second.stop()
        await second.stop()  # twice is no error

    asyncio.run(story())
    assert list(tmp_path.iterdir()) == []


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    assert len(os.fsencode(folder)) > ADDRESS_BYTES_MAX

    async def story(world: World) -> None:
        talk = await world.talk()
        assert (await talk.ask(id=1, do="peers"))["id"] == 1

    run(folder, story)


def test_one_client_too_many_is_told_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        talks = [await world.talk() for _ in range(CONNECTIONS_MAX)]
        for talk in talks:
            assert "answer" in await talk.ask(id=1, do="risk")
        late = await world.talk()
        assert (await late.answer())["error"].startswith(f"the agent serves {CONNECTIONS_MAX} clients already")
        assert await late.answer() is None
        await talks[0].close()

        async def served() -> bool:
            talk = await world.talk()
            answer = None
            with suppress(ConnectionError):  # turned away before it had asked
                answer = await talk.ask(id=1, do="risk")
            with suppress(ConnectionError):
                await talk.close()
            return answer is not None and "answer" in answer

        async with asyncio.timeout(60):
            while not await served():  # noqa: ASYNC110 - see `until`
                await asyncio.sleep(0.01)

    run(tmp_path, story)


def test_stopping_cancels_what_is_in_flight(tmp_path: Path) -> None:
    async def story() -> None:
        door = FakeDoor()
        door.gate.clear()
        server = AdminServer(tmp_path / "agent.sock", door)
        await server.start()
        world = World(tmp_path / "agent.sock", door)
        talk = await world.talk()
        talk.send(b"x", **put("a", 1))
        talk.send(bytes(10), **put("large", LARGE))
        await until(lambda: len(door.puts) == 2)
        await server.stop()
        assert door.cancelled == ["a"]
        assert await talk.answer() is None
        await world.close()

    asyncio.run(story())


def test_stopping_does_not_wait_for_a_client_that_reads_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        door = FakeDoor()
        server = AdminServer(tmp_path / "agent.sock", door)
        await server.start()
        world = World(tmp_path / "agent.sock", door)
        talk = await world.talk()
        await talk.ask(bytes(LARGE), **put("a", LARGE))
        talk.reader._limit = 1  # type: ignore[attr-defined]  # so that this end stops reading after one block
        talk.send(id=1, do="get", name="model/a")
        await until(lambda: ("get", "model/a") in door.calls)
        async with asyncio.timeout(60):
            await server.stop()
        await world.close()

    asyncio.run(story())
