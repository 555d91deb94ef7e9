"""What the role checks on a host before it installs anything: every failure is one sentence that says what to do."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "deploy/ansible/roles/spore_agent/files/preflight.py"


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, Any]:
    """A host on which nothing is wrong."""
    return {
        "node": "a",
        "dir": str(tmp_path / "node"),
        "root": str(tmp_path / "node" / "files"),
        "prefix": str(tmp_path / "opt"),
        "port": 1,
        "mates": [],
        "excluded": False,
        "join_anew": False,
        "now": time.time(),
        "clock_offset_seconds_max": 600,
        "disk_cap_percent": 100.0,
        "min_free_bytes": 1,
        "seconds": 1,
        "peers": {},
    }


def says(stage: str, facts: dict[str, Any]) -> str:
    """The sentence on standard output; empty exactly if the exit code is 0."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), stage, json.dumps(facts)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    assert (done.returncode == 0) == (done.stdout.strip() == "")
    return done.stdout.strip()


def test_a_host_on_which_nothing_is_wrong_passes(facts: dict[str, Any]) -> None:
    assert says("host", facts) == ""


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"now": 1_700_000_000.0}, "s off that of the deploying machine: set it, and run a time service"),
        ({"min_free_bytes": 1 << 60}, "below min_free_bytes"),
        ({"disk_cap_percent": 0.0}, "above the cap of 0%"),
        ({"mates": ["b"], "root": "/nowhere/shared"}, "/nowhere/shared does not exist: mount the folder shared with b"),
    ],
)
def test_what_is_wrong_is_said(facts: dict[str, Any], changed: dict[str, Any], sentence: str) -> None:
    assert sentence in says("host", facts | changed)


def test_an_excluded_host_needs_no_room_for_others(facts: dict[str, Any]) -> None:
    assert says("host", facts | {"excluded": True, "disk_cap_percent": 0.0}) == ""


def test_an_identity_of_another_node_is_noticed(facts: dict[str, Any], tmp_path: Path) -> None:
    from node.identity import init_identity

    init_identity(tmp_path / "node", "fleet", "somebody", now=time.time())
    assert "holds the identity of ['somebody'], not of a: is this the right machine?" in says("host", facts)
    assert says("host", facts | {"node": "somebody"}) == ""


def test_a_peer_that_does_not_answer_is_named_with_its_address(facts: dict[str, Any]) -> None:
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as open_port:
        closed.bind(("127.0.0.1", 0))
        there, not_there = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in (open_port, closed))
        said = says("peers", facts | {"peers": {"a": "127.0.0.1:1", "b": there, "c": not_there, "d": ""}})
    assert said.startswith(f"c does not answer at {not_there} (")
    assert said.endswith("open that port, or correct its address")


def test_mates_that_do_not_share_their_root_are_noticed(facts: dict[str, Any], tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    a = facts | {"mates": ["b"], "root": str(one), "peers": {"a": "", "b": ""}}
    b = facts | {"node": "b", "mates": ["a"], "root": str(one), "peers": {"a": "", "b": ""}}
    assert [says("host", a), says("host", b), says("peers", a), says("peers", b)] == [""] * 4
    assert "is not the folder that b has there" in says("peers", a | {"root": str(other)})
    says("end", a)
    says("end", b)
    assert list(one.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the listener notes in /run, which is root's, that it listens")
def test_a_host_listens_for_its_peers_until_it_is_told_to_stop(facts: dict[str, Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = facts | {"port": port}
    listening = subprocess.Popen([sys.executable, str(SCRIPT), "listen", json.dumps(there)])
    assert says("peers", facts | {"seconds": 60, "peers": {"b": f"127.0.0.1:{port}"}}) == ""
    says("end", there)
    assert listening.wait(60) == 0


def test_a_port_that_another_program_has_is_said(facts: dict[str, Any]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is used by another program" in says("listen", facts | {"port": port})
        Path(facts["prefix"]).mkdir()
        (Path(facts["prefix"]) / "current").touch()
        assert says("listen", facts | {"port": port}) == ""  # it is our agent
