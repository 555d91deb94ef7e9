"""The command line: a real socket with a fake agent behind it, commands in-process or as processes."""

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from node.admin import AdminServer
from node.cli.commands import spore as command
from node.cli.output import in_bytes, in_time, plain
from node.cli.pipeline import Terms
from node.cli.progress import Position, ProgressLine
from node.cli.putting import _Display
from node.cli.sources import Source
from node.config import load_fleet
from node.door import DoorError
from node.identity import Identity, init_identity
from node.tokens import parse_token
from protocol.chunks import digest_of
from tests.fake_door import FakeDoor

LARGE = 3_000_000
HOSTS = "cluster: fleet\nhosts:\n  node-a: {address: 10.0.0.1:7946, issuer: true}\n  node-b: {address: 10.0.0.2:7946}\n"
HEAVY = {"aiohttp", "aiosqlite", "asyncio", "cryptography", "msgpack", "numpy", "prometheus_client", "psutil"} | {
    "blake3",
    "pydantic",
    "rich",
    "simulations",
    "yaml",
}


class Agent:
    """A fake agent on a node's folder, its loop in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.door = FakeDoor()
        self._loop = asyncio.new_event_loop()
        self._server = AdminServer(directory / "agent.sock", self.door)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._do(self._server.start())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, function: Callable[[], Any]) -> None:
        """Run something of the door's in its loop."""

        async def run() -> None:
            function()

        self._do(run())

    def stop(self) -> None:
        self._do(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "node"
    place.mkdir()
    (place / "distributed_hosts.yaml").write_text(HOSTS)
    monkeypatch.setenv("SPORE_DIR", str(place))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.fixture
def agent(directory: Path) -> Iterator[Agent]:
    running = Agent(directory)
    yield running
    running.stop()


def spore(*words: str | Path) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def printed(*words: str | Path) -> Any:
    """The JSON that a successful command prints."""
    result = spore(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def process(*words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "node.cli", *map(str, words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def put(agent: Agent, name: str, content: bytes, kind: str = "model") -> str:
    file = agent.directory.parent / "given"
    file.write_bytes(content)
    return str(printed("put", file, "--kind", kind, "--name", name)["name"])


# --- help and usage ---


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, node.cli\n"
        "sys.argv = ['spore', '--help']\n"
        "try:\n    node.cli.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("Usage: spore")
    loaded = {name.partition(".")[0] for name in eval(done.stderr)}
    assert loaded & HEAVY == set()


def test_talking_to_the_agent_imports_nothing_heavy(agent: Agent) -> None:
    script = (
        "import sys, node.cli\n"
        "sys.argv = ['spore', 'ls', '--json']\n"
        "try:\n    node.cli.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
    loaded = {name.partition(".")[0] for name in eval(done.stderr)}
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("name", sorted(command.commands))
def test_every_command_explains_itself(name: str) -> None:
    result = spore(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: spore {name}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["put"], "Missing argument"),
        (["put", "a", "--nonsense"], "No such option"),
        (["wait", "model/a"], "Missing option '--copies'"),
        (["wait", "model/a", "--copies", "0"], "0 is not in the range"),
        (["wait", "model/a", "--copies", "1", "--timeout", "soon"], "is not a number with a unit"),
        (["wait", "model/a", "--copies", "1", "--timeout", "1000d"], "more than a year"),
        (["put", "a", "--kind"], "requires an argument"),
        (["put", "a", "--kind", "model", "--domains", "2"], "give --wait K"),
        (["put", "a", "b", "--kind", "model", "--name", "n"], "--name names one file"),
        (["put", "-", "--kind", "model"], "standard input has no name"),
        (["put", "x/a", "y/a", "--kind", "model"], "x/a and y/a would both be named model/a"),
        (["put", "unknown.bin"], "no kind's globs match unknown.bin; say which with --kind (game, model"),
        (["simulate", "nonsense"], "there is no scenario 'nonsense'"),
        (["simulate", "--nodes", "5", "--hosts", "f"], "leave --nodes out"),
        (["simulate", "--hosts", "none.yaml"], "cannot be read"),
        (["simulate", "--kill", "a:1"], "say which one with --hosts FILE"),
        (["simulate", "crash", "--fill", "a", "--hosts", "f"], "--fill belongs to the scenario rehearsal"),
        (["simulate", "--faults", "rain"], "there is no fault 'rain'; use none, or some of fuse, power"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(directory: Path, words: list[str], says: str) -> None:
    result = spore(*words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("words", [["ls"], ["status"], ["put", "given", "--kind", "model"], ["revoke", "node-b"]])
def test_no_agent_is_exit_3_with_what_to_do(directory: Path, words: list[str]) -> None:
    Path("given").write_bytes(b"x")
    result = spore(*words)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"spore: no agent runs at {directory}, and no node lives there; name the node's")
    (directory / "identity").mkdir()
    result = spore(*words)
    assert result.exit_code == 3
    assert result.stderr == f"spore: no agent runs at {directory}; start it with `spore agent {directory}`\n"


def test_a_socket_that_nobody_answers_at_is_no_agent(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / "agent.sock"))
    assert spore("ls").exit_code == 3


def test_the_folder_comes_from_option_variable_or_home(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert spore("ls").exit_code == 0
    assert f"at {tmp_path / 'other'}" in spore("ls", "--dir", tmp_path / "other").stderr
    monkeypatch.delenv("SPORE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"at {tmp_path / '.spore'}" in spore("ls").stderr
    assert spore("ls", "--dir", agent.directory).exit_code == 0


def test_an_unexpected_failure_is_one_sentence_and_debug_shows_all(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.looking.print_json_rows", lambda _: 1 / 0)
    result = spore("peers", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("spore: this failed unexpectedly (ZeroDivisionError: division by zero); run it as")
    assert len(result.stderr.splitlines()) == 1
    assert isinstance(spore("--debug", "peers", "--json").exception, ZeroDivisionError)


def test_the_agent_s_own_errors_keep_their_sentence_and_exit_code(agent: Agent) -> None:
    for exit_code in (1, 2):
        agent.door.fault = DoorError("the moon is in the way; wait", exit_code)
        result = spore("risk")
        assert (result.exit_code, result.stderr) == (exit_code, "spore: the moon is in the way; wait\n")


def test_an_agent_that_dies_while_asked_is_one_sentence(agent: Agent) -> None:
    put(agent, "a", b"x")
    agent.call(agent.door.gate.clear)
    waiting = process("wait", "model/a", "--copies", "1")
    until(lambda: agent.door.in_flight == 1)
    asyncio.run_coroutine_threadsafe(agent._server.stop(), agent._loop).result(60)
    _, told = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert told.decode().startswith(f"spore: the agent at {agent.directory} stopped before it had answered")
    assert len(told.splitlines()) == 1


# --- put ---


def test_put_of_one_file_prints_an_object_with_the_stable_fields(agent: Agent) -> None:
    Path("best.pth").write_bytes(b"weights")
    Path("best.pth").chmod(0o640)
    answer = printed("put", "best.pth", "--kind", "model", "--wait", "2", "--domains", "1", "--timeout", "1m")
    digest = digest_of(b"weights")[0].hex()
    assert answer == {"name": "model/best.pth", "digest": digest, "size": 7, "kind": "model", "copies": 3}
    (request,) = agent.door.puts
    assert (request.wait_copies, request.domains, request.timeout_seconds, request.mode) == (2, 1, 60.0, 0o640)


def test_put_of_several_files_prints_a_list_in_their_order(agent: Agent) -> None:
    for number in range(300):
        Path(f"{number}.pth").write_bytes(bytes(number * 400))
    names = [f"{number}.pth" for number in range(300)]
    answers = printed("put", *names, "--kind", "model")
    assert [answer["name"] for answer in answers] == [f"model/{name}" for name in names]
    assert [answer["size"] for answer in answers] == [number * 400 for number in range(300)]
    assert agent.door.held["model/299.pth"] == bytes(299 * 400)
    listed = spore("put", *names[:3], "--kind", "model").stdout.splitlines()
    assert listed[0].split() == ["name", "size", "copies", "digest"]
    assert listed[1].startswith("model/0.pth")
    assert spore("put", *names, "--kind", "model").stdout.startswith("300 files, 17.1 MiB, in ")


def test_small_and_large_files_go_through_one_connection_unchanged(agent: Agent) -> None:
    contents = {f"{n}": os.urandom(size) for n, size in enumerate([0, 65_536, 65_537, 10, LARGE, 1 << 20, 2 << 20, 5])}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    printed("put", *contents, "--kind", "model")
    assert agent.door.held == {f"model/{name}": content for name, content in contents.items()}


@pytest.mark.parametrize(
    ("file", "kind"),
    [("models/best.pth", "model"), ("run-7/games/a/b.db", "game"), ("models/best.txt", None)],
)
def test_the_kind_follows_from_the_globs_of_the_hosts_file(agent: Agent, file: str, kind: str | None) -> None:
    Path(file).parent.mkdir(parents=True)
    Path(file).write_bytes(b"x")
    result = spore("put", file, "--json")
    assert (json.loads(result.stdout)["kind"] if result.exit_code == 0 else None) == kind


def test_without_a_usable_hosts_file_the_kind_must_be_said(agent: Agent) -> None:
    (agent.directory / "distributed_hosts.yaml").write_text("cluster: 7 7 7\n")
    Path("a").write_bytes(b"x")
    result = spore("put", "a")
    assert result.exit_code == 2
    assert result.stderr.startswith("spore: the kinds cannot be read (")
    assert "--kind" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_files_that_cannot_be_put_are_named_and_the_others_are_put(agent: Agent) -> None:
    Path("a").write_bytes(b"a")
    Path("z").write_bytes(b"z")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    result = spore("put", "a", "none", "folder", "pipe", "z", "--kind", "model", "--json")
    assert result.exit_code == 2
    assert [answer["name"] for answer in json.loads(result.stdout)] == ["model/a", "model/z"]
    assert result.stderr.splitlines() == [
        "spore: none cannot be read (No such file or directory); check its name and rights",
        "spore: folder is a folder; name the files in it",
        "spore: pipe is no regular file; pipe it into `spore put - --kind KIND --name NAME`",
    ]


def test_one_reason_for_many_files_is_told_once(agent: Agent) -> None:
    for number in range(50):
        Path(f"{number}").write_bytes(b"x")
    result = spore("put", *[f"{number}" for number in range(50)], "--kind", "nothing")
    assert result.exit_code == 2
    expected = "0: there is no kind 'nothing'; use one of game, model (and so for 49 more files)"
    assert result.stderr == f"spore: {expected}\n"


@pytest.mark.parametrize("change", ["cut", "rewritten"])
def test_a_large_file_that_changes_while_it_is_read_is_not_put_and_the_others_are(agent: Agent, change: str) -> None:
    for name in ("a", "z"):
        Path(name).write_bytes(name.encode())
    Path("changing").write_bytes(bytes(64 << 20))
    agent.call(agent.door.gate.clear)
    agent.door.reads = 1
    putting = process("put", "changing", "z", "--kind", "model", "--json")
    until(lambda: agent.door.in_flight == 1)  # its first block has arrived, and the pipe to the agent is full
    with Path("changing").open("r+b") as file:
        if change == "cut":
            file.truncate(32 << 20)
        else:
            file.write(b"a byte of the beginning, read long ago; size and all that is still to be read stay")
    agent.call(agent.door.gate.set)
    printed_json, told = putting.communicate(timeout=60)
    assert putting.returncode == 1
    assert told.decode() == "spore: changing changed while it was read; put it once its writer is done\n"
    assert [answer["name"] for answer in json.loads(printed_json)] == ["model/z"]
    assert set(agent.door.held) == {"model/z"}


@pytest.mark.parametrize("size", [0, 5, LARGE])
def test_standard_input_is_put_from_a_pipe_or_a_file(agent: Agent, size: int) -> None:
    content = os.urandom(size)
    piped = process("put", "-", "--kind", "model", "--name", "piped", stdin=subprocess.PIPE)
    _, told = piped.communicate(content, timeout=60)
    assert (piped.returncode, told) == (0, b"")
    Path("given").write_bytes(content)
    with Path("given").open("rb") as file:
        redirected = process("put", "-", "--kind", "model", "--name", "redirected", stdin=file)
        _, told = redirected.communicate(timeout=60)
    assert (redirected.returncode, told) == (0, b"")
    assert agent.door.held == {"model/piped": content, "model/redirected": content}


def test_an_interrupted_put_is_one_sentence_and_exit_1(agent: Agent) -> None:
    Path("a").write_bytes(b"x")
    agent.call(agent.door.gate.clear)
    putting = process("put", "a", "--kind", "model", "--wait", "2")
    until(lambda: agent.door.in_flight == 1)
    putting.send_signal(signal.SIGINT)
    _, told = putting.communicate(timeout=60)
    assert putting.returncode == 1
    assert told.strip() == b"spore: interrupted; what was accepted before stays accepted"
    until(lambda: agent.door.cancelled == ["a"])


def test_an_agent_that_dies_during_a_put_fails_what_was_not_answered(agent: Agent) -> None:
    for number in range(20):
        Path(f"{number}").write_bytes(b"x")
    agent.call(agent.door.gate.clear)
    putting = process("put", *[f"{number}" for number in range(20)], "--kind", "model", "--json")
    until(lambda: agent.door.in_flight == 20)
    asyncio.run_coroutine_threadsafe(agent._server.stop(), agent._loop).result(60)
    printed_json, told = putting.communicate(timeout=60)
    assert putting.returncode == 1
    assert json.loads(printed_json) == []
    assert "stopped before it had answered" in told.decode()
    assert "(and so for 19 more files)" in told.decode()


# --- get ---


@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_get_writes_the_bytes_under_the_last_part_of_the_name(agent: Agent, size: int) -> None:
    content = os.urandom(size)
    name = put(agent, "deep/best.pth", content)
    facts = printed("get", name)
    digest, blake3 = digest_of(content)
    assert facts == {
        "name": name,
        "digest": digest.hex(),
        "size": size,
        "blake3": blake3.hex(),
        "path": "best.pth",
    }
    assert Path("best.pth").read_bytes() == content
    assert spore("get", name, "-o", "other").stdout.startswith("other  ")
    assert Path("other").read_bytes() == content
    assert spore("get", name, "-o", "-").stdout_bytes == content


def test_get_replaces_a_file_and_refuses_a_folder(agent: Agent) -> None:
    name = put(agent, "a", b"new")
    Path("a").write_bytes(b"old")
    Path("folder").mkdir()
    assert spore("get", name).exit_code == 0
    assert Path("a").read_bytes() == b"new"
    for target in ("folder", "."):
        result = spore("get", name, "-o", target)
        assert (result.exit_code, result.stderr) == (
            2,
            f"spore: {target} is a folder; name the file to write with -o\n",
        )
    result = spore("get", name, "-o", "none/a")
    assert result.exit_code == 2
    assert result.stderr.startswith("spore: none/a cannot be written (No such file or directory)")


def test_get_never_replaces_what_is_no_regular_file(agent: Agent) -> None:
    """Root may rename over anything: `-o /dev/null` must not take that from the machine."""
    name = put(agent, "a", b"new")
    os.mkfifo("pipe")
    result = spore("get", name, "-o", "pipe")
    assert result.exit_code == 2
    assert result.stderr == "spore: pipe is no regular file and is not replaced; use -o - and redirect that\n"
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("trouble", ["wrong bytes", "breaks", "unknown name"])
def test_a_get_that_fails_leaves_the_old_file_and_nothing_else(agent: Agent, trouble: str) -> None:
    name = put(agent, "a", os.urandom(LARGE))
    Path("a").write_bytes(b"old")
    agent.door.wrong_bytes = trouble == "wrong bytes"
    agent.door.get_breaks_after = 1_000_000 if trouble == "breaks" else None
    before = sorted(os.listdir())
    result = spore("get", "model/none" if trouble == "unknown name" else name, "-o", "a")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert Path("a").read_bytes() == b"old"
    assert sorted(os.listdir()) == before


def test_an_interrupted_get_leaves_no_partial(agent: Agent) -> None:
    name = put(agent, "a", os.urandom(LARGE))
    before = sorted(os.listdir())
    agent.call(agent.door.gate.clear)
    getting = process("get", name)
    until(lambda: any(entry.endswith(".part") for entry in os.listdir()))
    getting.send_signal(signal.SIGINT)
    getting.communicate(timeout=60)
    assert getting.returncode == 1
    assert sorted(os.listdir()) == before


# --- looking ---

FIELDS = {
    "where": ["name", "digest", "size", "version", "copies", "durable", "holders"],
    "ls": ["name", "kind", "digest", "size", "origin", "state", "copies"],
    "status": [
        *("node", "cluster", "role", "ephemeral", "uptime_seconds", "artifacts", "bytes", "kinds", "at_risk"),
        *("disk", "members"),
    ],
    "peers": ["node", "address", "state", "role", "provider", "domain", "rtt_ms"],
    "risk": ["name", "digest", "size", "copies", "needed", "why"],
    "events": ["at", "level", "event", "message"],
    "plan": ["name", "kind", "strategy", "copies", "domains", "enough", "holders", "others"],
    "pin": ["name", "node", "pinned"],
    "broadcast": [
        *("name", "digest", "size", "receivers", "delivered", "done", "seconds", "bound_seconds", "limited_by"),
        *("last", "nodes"),
    ],
    "age": ["prefix", "kind", "name", "version_at", "age_seconds", "copies", "needed", "stale"],
    "recommend": ["action", "name", "from", "to", "why", "by_itself"],
}


@pytest.mark.parametrize(
    "words",
    [
        ["where", "model/a"],
        ["ls"],
        ["status"],
        ["peers"],
        ["risk"],
        ["events"],
        ["plan", "model/a"],
        ["pin", "model/a"],
        ["broadcast", "model/a"],
    ],
    ids=lambda w: w[0],
)
def test_json_has_the_stable_fields(agent: Agent, words: list[str]) -> None:
    put(agent, "a", b"content")
    found = printed(*words)
    for row in found if isinstance(found, list) else [found]:
        assert set(FIELDS[words[0]]) <= set(row)
    if words[0] == "where":
        assert set(found["holders"][0]) == {"node", "store", "domain", "state", "verified_at"}
    if words[0] == "status":
        assert set(found["at_risk"]) == {"artifacts", "bytes"}
        assert {"used_percent", "cap_percent", "accepting"} <= set(found["disk"])
        assert set(found["members"]) == {"alive", "suspect", "down"}


@pytest.mark.parametrize("count", [0, 1, 2, 450])
def test_ls_json_is_a_list_of_any_length(agent: Agent, count: int) -> None:
    agent.door.held = {f"model/{number:03}": b"x" for number in range(count)}
    agent.door.copies = dict.fromkeys(agent.door.held, 1)
    assert [row["name"] for row in printed("ls")] == list(agent.door.held)
    assert [row["name"] for row in printed("ls", "model/*7")] == [n for n in agent.door.held if n.endswith("7")]


def test_tables_are_plain_aligned_text_where_no_terminal_is(agent: Agent) -> None:
    put(agent, "a", b"x" * 2048)
    put(agent, "a longer name", b"x")
    assert spore("ls").stdout.splitlines() == [
        "name                    size  copies  state  origin  digest",
        f"model/a              2.0 KiB       1  live   node-a  {digest_of(b'x' * 2048)[0].hex()[:12]}",
        f"model/a longer name      1 B       1  live   node-a  {digest_of(b'x')[0].hex()[:12]}",
    ]


def test_people_are_told_what_matters(agent: Agent) -> None:
    assert [line.split("  ", 1)[1] for line in spore("events").stdout.splitlines()] == [
        "info     node-0 is up",
        "info     node-1 is up",
    ]
    assert spore("risk").stdout.startswith("nothing is at risk")
    put(agent, "a", b"x" * 2048)
    assert "if this node died now you would lose 1 artifact, 2.0 KiB" in spore("risk").stdout
    assert "being sent to node-b" in spore("risk").stdout
    told = spore("status", "--cluster").stdout
    for words in ("node-a of fleet: worker", "at risk  1 artifact", "41% used", "3 alive, 0 suspect, 1 down", "node-b"):
        assert words in told
    assert "not durable yet" in spore("where", "model/a").stdout


def test_what_other_nodes_say_cannot_steer_a_terminal(agent: Agent) -> None:
    async def hostile() -> list[dict[str, Any]]:
        fields = dict.fromkeys(["node", "address", "state", "role", "provider", "domain", "rtt_ms"], "\x1b[2J[red]\r\n")
        return [fields]

    agent.door.peers = hostile  # type: ignore[method-assign]
    told = spore("peers").stdout
    assert "\x1b" not in told
    assert "\r" not in told
    assert "?[2J[red]??" in told


def test_output_into_a_closed_pipe_is_no_traceback(agent: Agent) -> None:
    agent.door.held = {f"model/{number:05}": b"x" for number in range(5000)}
    agent.door.copies = dict.fromkeys(agent.door.held, 1)
    listing = process("ls", "--json")
    assert listing.stdout is not None
    listing.stdout.readline()
    listing.stdout.close()
    assert listing.stderr is not None
    told = listing.stderr.read()
    listing.stderr.close()
    assert listing.wait(60) == 1
    assert told == b""


# --- wait, flush, verify, rm, revoke ---


def test_wait_says_whether_it_was_achieved(agent: Agent) -> None:
    put(agent, "a", b"x")
    assert printed("wait", "model/a", "--copies", "1")["durable"] is True
    result = spore("wait", "model/a", "--copies", "2", "--timeout", "5")
    assert (result.exit_code, result.stderr) == (1, "spore: model/a has 1 of 2 copies in time\n")
    assert agent.door.calls[-1][1].timeout_seconds == 5.0


def test_flush_is_exit_1_while_something_is_at_risk(agent: Agent) -> None:
    assert printed("flush") == {"durable": True, "at_risk": {"artifacts": 0, "bytes": 10}, "why": ""}
    put(agent, "a", b"x")
    result = spore("flush", "--deadline", "3")
    assert result.exit_code == 1
    assert "being sent to node-b" in result.stdout
    assert result.stderr == "spore: 1 artifact, 10 B, not durable after 3.0 s; `spore risk` says why\n"
    result = spore("flush", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["durable"] is False


def test_verify_is_exit_1_when_there_was_damage(agent: Agent) -> None:
    assert printed("verify") == {"checked": 2, "bytes": 20, "damaged": []}
    damaged = {"path": "models/a", "digest": "ab" * 32, "problem": "its bytes changed"}
    agent.door.verify_rows[-1]["damaged"] = [damaged]
    result = spore("verify")
    assert result.exit_code == 1
    assert "models/a  abababababab  its bytes changed" in result.stdout
    assert "1 damaged file set aside" in result.stderr


def test_rebuild_sets_the_manifest_aside_while_no_agent_runs(directory: Path) -> None:
    (directory / "identity").mkdir()
    (directory / "manifest.db").write_bytes(b"rubbish")
    facts = printed("verify", "--rebuild")
    assert Path(facts["aside"]).read_bytes() == b"rubbish"
    assert Path(facts["manifest"]).read_bytes().startswith(b"SQLite format 3")
    assert "start the agent" in spore("verify", "--rebuild").stdout


def test_rebuild_refuses_while_an_agent_runs_and_where_no_node_lives(directory: Path) -> None:
    import fcntl

    assert spore("verify", "--rebuild").exit_code == 2
    (directory / "identity").mkdir()
    (directory / "manifest.db").write_bytes(b"precious")
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = spore("verify", "--rebuild")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"spore: the agent at {directory} is running; stop it")
    assert (directory / "manifest.db").read_bytes() == b"precious"


def test_rm_and_revoke(agent: Agent) -> None:
    put(agent, "a", b"x")
    assert printed("rm", "model/a") == {"name": "model/a", "state": "deleted"}
    assert spore("rm", "model/a").exit_code == 1
    assert printed("revoke", "node-b")["node"] == "node-b"


def test_remove_says_what_is_left_to_do(agent: Agent) -> None:
    assert printed("remove", "node-b") == {"node": "node-b", "removed": True, "revoked_at": 1_700_000_000}
    assert spore("remove", "node-b").stdout == "node-b is gone for good; take it out of the hosts file too\n"


def test_a_broadcast_is_watched_until_every_node_has_it(agent: Agent) -> None:
    put(agent, "a", b"content")
    shown = spore("broadcast", "model/a").stdout
    assert "2 of 2 nodes have it, after 2.0 s: 2.00 x the least possible, 1.0 s, which the uplink of node-a" in shown
    assert "it is down" in shown
    assert [call[0] for call in agent.door.calls[-3:]] == ["broadcast", "delivery", "delivery"]


def test_a_broadcast_that_is_not_there_in_time_is_exit_1_and_goes_on(agent: Agent) -> None:
    put(agent, "a", b"content")
    result = spore("broadcast", "model/a", "--timeout", "0.01s")
    assert result.exit_code == 1
    assert "1 of 2 nodes have model/a; it goes on by itself" in result.stderr
    assert spore("broadcast", "model/a", "--detach").exit_code == 0


def test_drain_is_exit_1_while_something_depends_on_the_node(agent: Agent) -> None:
    assert printed("drain", "--copies", "1")["safe"] is True
    assert agent.door.calls[-1] == ("drain", (1, 3600.0, False))
    assert "it may be stopped" in spore("drain").stdout
    agent.door.safe = False
    result = spore("drain", "--deadline", "5m")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "spore: not safe to stop after 5 min 0 s: 3 artifacts or more depend on this node; it goes on meanwhile\n"
    )
    assert spore("drain", "--undo").stdout == "this node accepts again\n"


# --- making nodes ---


def test_init_makes_an_identity_and_a_hosts_file_that_checks(tmp_path: Path) -> None:
    place = tmp_path / "first"
    result = spore("init", place, "--node", "node-a", "--cluster", "my-fleet", "--address", "10.0.0.1:7000")
    assert result.exit_code == 0, result.output
    fleet = load_fleet(place)
    assert (fleet.cluster, fleet.host("node-a").address, fleet.host("node-a").issuer) == (
        "my-fleet",
        "10.0.0.1:7000",
        True,
    )
    assert Identity.load(place, now=time.time(), cluster="my-fleet", node="node-a").issuer
    again = spore("init", place, "--node", "node-a")
    assert again.exit_code == 2
    assert "already has an identity" in again.stderr


def test_init_uses_the_hosts_file_that_is_there(directory: Path) -> None:
    for words, says in (
        (["--node", "node-x"], "has no host node-x"),
        (["--node", "node-a", "--cluster", "x"], "is of cluster fleet"),
    ):
        result = spore("init", directory, *words)
        assert result.exit_code == 2
        assert says in result.stderr
    assert spore("init", "--dir", directory, "--node", "node-a").exit_code == 0
    assert (directory / "distributed_hosts.yaml").read_text() == HOSTS
    assert Identity.load(directory, now=time.time()).cluster == "fleet"


@pytest.mark.parametrize(
    "words", [["--node", "Not A Name"], ["--node", "a", "--cluster", "../x"], ["--address", "x y"]]
)
def test_init_refuses_bad_names_and_writes_nothing(tmp_path: Path, words: list[str]) -> None:
    result = spore("init", tmp_path / "new", *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_token_comes_from_the_agent_or_from_the_issuer_s_folder(directory: Path) -> None:
    assert spore("token").exit_code == 3
    init_identity(directory, "fleet", "node-a", now=time.time())
    facts = printed("token", "--ttl", "2h", "--uses", "3", "--ephemeral")
    parsed = parse_token(facts["token"])
    assert (parsed.addresses, parsed.issuer, parsed.ephemeral) == (("10.0.0.1:7946",), "node-a", True)
    assert abs(parsed.expires_at - time.time() - 7200) < 120
    assert parse_token(spore("token").stdout).cluster == "fleet"
    agent = Agent(directory)
    try:
        assert spore("token", "--ttl", "90s").stdout == "spore1-word\n"
        assert agent.door.calls[-1] == ("token", (90.0, 1, False))
    finally:
        agent.stop()


def test_token_on_a_node_that_is_no_issuer_names_who_is(directory: Path) -> None:
    init_identity(directory, "fleet", "node-b", now=time.time())
    (directory / "identity" / "ca.key").unlink()
    result = spore("token")
    assert result.exit_code == 2
    assert result.stderr == "spore: node-b does not hold the cluster's key; run this on node-a\n"


def test_join_with_a_bad_token_is_one_sentence(tmp_path: Path) -> None:
    result = spore("join", "nonsense", tmp_path / "new", "--node", "node-b")
    assert result.exit_code == 1
    assert result.stderr.startswith("spore: this is no token")
    assert not (tmp_path / "new").exists()


def test_check_names_every_error_and_is_exit_2(directory: Path) -> None:
    assert spore("check").stdout.strip().endswith("hash " + load_fleet(directory).hash[:12] + ".")
    facts = printed("check", directory / "distributed_hosts.yaml")
    assert (facts["usable"], facts["cluster"], facts["hosts"]) == (True, "fleet", ["node-a", "node-b"])
    (directory / "distributed_hosts.yaml").write_text(HOSTS + "nonsense: 1\nclutser: x\n")
    result = spore("check", directory)
    assert result.exit_code == 2
    assert "nonsense" in result.stderr
    assert "clutser" in result.stderr
    result = spore("check", directory, "--json")
    assert result.exit_code == 2
    assert len(json.loads(result.stdout)["errors"]) == 2


def test_simulate_prints_the_stable_fields() -> None:
    facts = printed("simulate", "convergence", "--nodes", "3", "--seed", "7")
    assert list(facts) == [
        *("scenario", "seed", "nodes", "coverage", "hops", "seconds_to_full", "copies_per_node"),
        *("bytes_per_node_per_second", "accepted", "refused", "at_risk", "lost", "violations"),
        *("trace_hash", "reproduce", "passed", "losses", "remedies", "shrunk", "figures"),
    ]
    assert (facts["scenario"], facts["seed"], facts["nodes"]) == ("convergence", 7, 3)


# --- what people see move ---


def test_sizes_and_times_are_told_in_words() -> None:
    assert [in_bytes(size) for size in (0, 1023, 1536, 1 << 30, 3 << 50)] == [
        *("0 B", "1023 B", "1.5 KiB", "1.0 GiB", "3,072.0 TiB")
    ]
    assert [in_time(seconds) for seconds in (0.04, 9.94, 59.4, 61, 3999, 90_000)] == [
        *("0.0 s", "9.9 s", "59 s", "1 min 1 s", "1 h 6 min", "1 d 1 h")
    ]
    assert (plain(None), plain(0), plain("a\tb")) == ("—", "0", "a?b")


def test_a_put_says_when_it_waits_for_room_in_the_agents_log() -> None:
    class Asked:
        def ask(self, command: str, **_: object) -> dict[str, Any]:
            assert command == "status"
            return {"node": "a", "wal": {"waits_seconds": 12.0}}

    display = _Display(Terms(), ProgressLine("put"))
    display.tally.oldest = Source(None, "model", "best.pth")
    assert "log is full: waiting 12 s" in display.ask(Asked()).why  # type: ignore[arg-type]


def test_progress_tells_rate_time_left_and_why_it_stalls() -> None:
    now = [0.0]
    line = ProgressLine("put", clock=lambda: now[0])
    assert line.describe(Position(0, 100 << 20)) == "0 B of 100.0 MiB"
    now[0] = 2.0
    assert line.describe(Position(20 << 20, 100 << 20)) == "20.0 MiB of 100.0 MiB, 10.0 MiB/s, 8.0 s left"
    now[0] = 60.0
    assert line.describe(Position(20 << 20, 100 << 20, why="no peer")) == "20.0 MiB of 100.0 MiB, stalled, no peer"
    assert ProgressLine("x").describe(Position(3, 10, "files")) == "3 of 10 files"


def on_a_terminal(*words: str, done: Callable[[bytes], bool], then: Callable[[], None]) -> bytes:
    """What a command shows on a terminal; `then` is called once what was shown is enough."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen([sys.executable, "-m", "node.cli", *words], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    told = False
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # the terminal's other end has closed
                break
            if not told and done(shown):
                told = True
                then()
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    assert told, shown
    return shown


def test_a_put_that_waits_shows_why_on_a_terminal(agent: Agent) -> None:
    Path("a").write_bytes(b"first")
    put(agent, "a", b"first")
    agent.call(agent.door.gate.clear)
    shown = on_a_terminal(
        *("put", "a", "--kind", "model", "--wait", "2"),
        done=lambda shown: b"a: 0 of 2 copies, being sent to node-b" in shown,
        then=lambda: agent.call(agent.door.gate.set),
    )
    assert b"model/a" in shown


def test_tables_on_a_terminal_show_names_as_they_are(agent: Agent) -> None:
    name = put(agent, "[bold]not markup", b"x")
    shown = on_a_terminal("ls", done=lambda shown: name.encode() in shown, then=lambda: None)
    assert b"not markup" in shown


def test_init_names_the_other_hosts_of_the_fleet(tmp_path: Path) -> None:
    result = spore(
        "init",
        tmp_path / "n",
        "--node",
        "a",
        "--address",
        "10.0.0.1",
        "--host",
        "b=10.0.0.2:7000",
        "--host",
        "c=10.0.0.3",
    )
    assert result.exit_code == 0, result.stderr
    fleet = load_fleet(tmp_path / "n")
    assert {name: host.dial_address for name, host in fleet.hosts.items()} == {
        "a": "10.0.0.1:7946",
        "b": "10.0.0.2:7000",
        "c": "10.0.0.3:7946",
    }


@pytest.mark.parametrize("words", [["b"], ["b=x y"], ["B=10.0.0.2"], ["a=10.0.0.2"], ["b=10.0.0.1"]])
def test_a_host_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, words: list[str]) -> None:
    options = [part for word in words for part in ("--host", word)]
    result = spore("init", tmp_path / "n", "--node", "a", "--address", "10.0.0.1", *options)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "n/identity").exists()
