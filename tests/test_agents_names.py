"""Names that cannot be used and files that are not what they seem: one sentence each, and the agent goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.client import Client, request_line
from node.cli.failures import AgentRefused
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, lines, one_sentence, plain, running, written

pytestmark = pytest.mark.processes

BAD_NAMES = {
    "up": "../escape",
    "up in the middle": "checkpoints/../../escape",
    "absolute": "/etc/escape",
    "own folder": ".spore/store",
    "the others' folder": "peers/b/escape",
    "300 bytes": "n" * 300,
    "empty": "",
    "a part that is empty": "checkpoints//escape",
    "NUL": "checkpoints/es\0cape",
    "line feed": "checkpoints/es\ncape",
    "not UTF-8": "checkpoints/es\udcffcape",
    "two kilobytes": "/".join(["d" * 200] * 11),
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def _goes_on(fleet: LocalFleet) -> Iterator[None]:
    """After each of these tests the agents take in and spread artifacts as before, and nothing went wrong in them."""
    yield
    content = os.urandom(2_000)
    written(fleet, "a", "checkpoints/after", content)
    durable(fleet, "b", "checkpoint/checkpoints/after", plain(content))
    for node in HOSTS:
        assert fleet.nodes[node].running
        assert not [line for line in lines(fleet, node) if "Traceback" in line or " fault: " in line]


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_name_is_refused_over_the_socket_in_one_sentence(fleet: LocalFleet, name: str) -> None:
    with Client(fleet.nodes["a"].folder) as client:
        terms = {"kind": "checkpoint", "name": name, "size": 3, "mode": 0o644}
        client.sock.sendall(request_line(1, "put", terms) + b"abc")
        with pytest.raises(AgentRefused) as refused:
            client.receive()
    assert "\n" not in refused.value.sentence
    assert "Traceback" not in refused.value.sentence
    assert not list(fleet.folder.rglob("*escape*"))


def test_bad_names_are_refused_by_the_command_line_with_exit_2(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "fine"
    source.write_bytes(b"abc")
    for name in (BAD_NAMES["up"], BAD_NAMES["absolute"], BAD_NAMES["300 bytes"]):
        done = fleet.spore("a", "put", str(source), "--kind", "checkpoint", "--name", name, check=False)
        assert done.returncode == 2
        assert "is not usable" in one_sentence(done.stderr)
    done = fleet.spore("a", "put", str(source), "--kind", "nonsense", check=False)
    assert done.returncode == 2
    assert "there is no kind 'nonsense'" in one_sentence(done.stderr)


def test_what_is_no_file_is_refused_by_the_command_line(fleet: LocalFleet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("pipe", "folder", "dangling", "missing"):
        done = fleet.spore("a", "put", str(tmp_path / name), "--kind", "checkpoint", check=False)
        assert done.returncode == 2
        assert name in one_sentence(done.stderr)


def test_names_that_cannot_be_used_in_a_watched_folder_are_told_and_left_alone(fleet: LocalFleet) -> None:
    folder = fleet.nodes["a"].root / "checkpoints"
    folder.mkdir(exist_ok=True)
    bad = [os.fsencode(folder) + b"/not-utf8-\xff", os.fsencode(folder) + b"/line-\nfeed"]
    for path in bad:
        with open(path, "wb") as file:
            file.write(b"content")
    for words in ("not-utf8", "line-"):
        fleet.until(
            lambda words=words: [line for line in lines(fleet, "a") if words in line],  # type: ignore[misc]
            f"{words} is told",
            GENEROUS_SECONDS,
        )
    listed = [row["name"] for row in fleet.rows("a", "ls")]
    assert not [name for name in listed if "not-utf8" in name or "line-" in name]
    for path in bad:
        assert os.path.exists(path)


def test_links_out_of_the_root_are_not_followed(fleet: LocalFleet, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"nobody's business " * 100)
    folder = fleet.nodes["a"].root / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "linked").symlink_to(secret)
    (tmp_path / "outside/models").mkdir(parents=True)
    (tmp_path / "outside/models/linked.pth").write_bytes(secret.read_bytes())
    models = fleet.nodes["a"].root / "models"
    models.symlink_to(tmp_path / "outside/models")
    written(fleet, "a", "checkpoints/beside", os.urandom(1_000))
    durable(fleet, "c", "checkpoint/checkpoints/beside")
    scans = fleet.ask("a", "status")["watcher"]["scans"]
    fleet.until(
        lambda: fleet.ask("a", "status")["watcher"]["scans"] > scans + 1, "the root is scanned again", GENEROUS_SECONDS
    )
    assert not [row for row in fleet.rows("c", "ls") if "linked" in row["name"]]
    for node in ("b", "c"):
        files = [path for path in fleet.nodes[node].root.rglob("*") if path.is_file()]
        assert not [path for path in files if path.read_bytes() == secret.read_bytes()]
    models.unlink()


def test_a_link_where_a_file_is_to_be_published_is_not_written_through(fleet: LocalFleet, tmp_path: Path) -> None:
    """A user of node b has a link under the name that comes: its target stays as it is, and the others get theirs."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"do not touch")
    folder = fleet.nodes["b"].root / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "through").symlink_to(precious)
    content = os.urandom(30_000)
    written(fleet, "a", "checkpoints/through", content)
    name = "checkpoint/checkpoints/through"

    def why() -> str:
        return next((row["why"] for row in fleet.ask("a", "risk") if row["name"] == name and "b: " in row["why"]), "")

    assert "link" in fleet.until(why, "a says why b does not have it", GENEROUS_SECONDS)
    assert precious.read_bytes() == b"do not touch"
    (folder / "through").unlink()
    durable(fleet, "a", name, plain(content))
    assert precious.read_bytes() == b"do not touch"
