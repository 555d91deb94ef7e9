"""Starts that are refused and hosts files that are not taken: exit 2 or the old one stays, always with a sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import node.run
from node.local_fleet import LocalFleet
from tests.agents import (
    GENEROUS_SECONDS,
    HOSTS,
    durable,
    lines,
    logged,
    one_sentence,
    running,
    signalled,
    spore,
    written,
)

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with running() as made:
        yield made


def refused_start(folder: Path) -> str:
    """What an agent says that does not start; exit 2."""
    done = spore("agent", folder)
    assert done.returncode == 2, done.stderr
    return done.stderr


def copied(fleet: LocalFleet, node: str, folder: Path) -> Path:
    """A folder of a node, without its agent: its identity and hosts file."""
    source = fleet.nodes[node].folder
    shutil.copytree(source / "identity", folder / "identity")
    shutil.copy(source / "distributed_hosts.yaml", folder)
    return folder


def test_two_agents_on_one_folder_are_one_too_many(fleet: LocalFleet) -> None:
    assert "another agent runs on" in one_sentence(refused_start(fleet.nodes["a"].folder))
    assert fleet.ask("a", "status")["node"] == "a"


def test_a_port_in_use_is_named(fleet: LocalFleet, tmp_path: Path) -> None:
    sentence = one_sentence(refused_start(copied(fleet, "a", tmp_path / "copy")))
    assert str(fleet.nodes["a"].port) in sentence
    assert fleet.ask("a", "status")["node"] == "a"


def test_a_folder_without_a_node_is_told_how_to_become_one(tmp_path: Path) -> None:
    assert "spore init" in one_sentence(refused_start(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    assert "Traceback" not in refused_start(tmp_path / "empty")


def test_a_node_that_the_hosts_file_does_not_name_is_told_where_to_be_added(fleet: LocalFleet, tmp_path: Path) -> None:
    folder = copied(fleet, "b", tmp_path / "unlisted")
    hosts = folder / "distributed_hosts.yaml"
    hosts.write_text(hosts.read_text().replace('"b": {', '"other": {'))
    sentence = one_sentence(refused_start(folder))
    assert f"node b is not in {hosts}" in sentence
    assert "add it under hosts" in sentence


def test_a_folder_on_a_network_file_system_is_refused(
    fleet: LocalFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(fleet, "a", tmp_path / "shared")
    monkeypatch.setattr(node.run, "network_file_system", lambda path: "nfs4" if path == folder else None)
    assert node.run.run(folder) == 2
    sentence = one_sentence(capsys.readouterr().err)
    assert "network file system (nfs4)" in sentence
    assert "local disk" in sentence
    assert not (folder / "manifest.db").exists()


def test_a_bad_hosts_file_at_the_start_is_refused_with_every_error_and_its_line(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    folder = copied(fleet, "a", tmp_path / "bad")
    hosts = folder / "distributed_hosts.yaml"
    good = hosts.read_text()
    hosts.write_text(
        good.replace('"provider"', '"providr"', 1).replace('"min_free_disk_percent": 1', '"min_copies": "many"')
    )
    said = refused_start(folder)
    assert "Traceback" not in said
    assert "providr" in said
    assert "many" in said
    assert said.count(f"{hosts.name}:") >= 2  # each with its line


def test_a_bad_hosts_file_at_a_reload_leaves_the_old_one_in_force_and_a_good_one_is_taken(fleet: LocalFleet) -> None:
    hosts = fleet.nodes["b"].folder / "distributed_hosts.yaml"
    good = hosts.read_text()
    try:
        hosts.write_text(good.replace('"provider"', '"providr"', 1))
        signalled(fleet, "b", signal.SIGHUP)
        line = logged(fleet, "b", "not_reloaded", "stays")
        assert "providr" in line
        durable(fleet, "b", _put(fleet, "checkpoints/under-the-old-one"))
        hosts.write_text(fleet.hosts_file(max_disk_usage_percent=97))
        signalled(fleet, "b", signal.SIGHUP)
        logged(fleet, "b", "reloaded: ", "in force")
        fleet.until(
            lambda: fleet.ask("b", "status")["disk"]["cap_percent"] == 97, "the new limit holds", GENEROUS_SECONDS
        )
        rows = {row["node"]: row["policy"] for row in fleet.ask("a", "peers")}
        fleet.until(
            lambda: {row["node"]: row["policy"] for row in fleet.ask("a", "peers")}["b"] == "differs",
            f"a sees that b has another hosts file, not {rows}",
            GENEROUS_SECONDS,
        )
        durable(fleet, "b", _put(fleet, "checkpoints/under-the-new-one"))
    finally:
        hosts.write_text(good)
        signalled(fleet, "b", signal.SIGHUP)
    assert not any("Traceback" in line for line in lines(fleet, "b"))


def _put(fleet: LocalFleet, path: str) -> str:
    written(fleet, "b", path, os.urandom(10_000))
    return f"checkpoint/{path}"


def test_help_and_version_need_no_agent_and_no_folder() -> None:
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", option],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_asking_where_no_agent_runs_is_exit_3(tmp_path: Path, fleet: LocalFleet) -> None:
    folder = copied(fleet, "c", tmp_path / "stopped")
    done = spore("status", "--dir", folder)
    assert done.returncode == 3
    assert f"spore agent {folder}" in one_sentence(done.stderr)
    assert set(HOSTS) <= set(fleet.nodes)
