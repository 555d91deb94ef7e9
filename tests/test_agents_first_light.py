"""First light, as the README tells it: three commands on each of three machines, and what appears on one is safe."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from node.local_fleet import ROUTING as LIMITS
from node.local_fleet import LocalFleet, Node, free_ports
from tests.agents import (
    GENEROUS_SECONDS,
    HOSTS,
    ROUTING,
    durable,
    holds,
    logged,
    plain,
    running,
    spore,
    started,
    written,
)

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    """Three machines that were set up by the commands of the README and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="spore-first-light-"))
    ports = dict(zip(HOSTS, free_ports(len(HOSTS)), strict=True))
    made = LocalFleet(folder, HOSTS, nodes={name: Node(name, folder / name, port) for name, port in ports.items()})
    try:
        _set_up(made)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def _set_up(fleet: LocalFleet) -> None:
    first, *others = fleet.nodes.values()
    hosts = [f"--host={other.name}=127.0.0.1:{other.port}" for other in others]
    begun = spore("init", first.folder, "--node", first.name, "--address", f"127.0.0.1:{first.port}", *hosts)
    assert begun.returncode == 0, begun.stderr
    _set_limits(first.folder / "distributed_hosts.yaml")
    assert spore("check", first.folder).returncode == 0
    token = spore("token", "--uses", len(others), "--dir", first.folder)
    assert token.returncode == 0, token.stderr
    fleet.start(first.name)
    for other in others:
        joined = spore("join", token.stdout.strip(), other.folder, "--node", other.name)
        assert joined.returncode == 0, joined.stderr
        fleet.start(other.name)
    fleet.until(fleet.meshed, "the three are connected", GENEROUS_SECONDS)


def _set_limits(path: Path) -> None:
    """What the README does not need: limits that a busy test machine does not decide, short timers, domains."""
    content = yaml.safe_load(path.read_text())
    routing = {**LIMITS, **ROUTING}
    content["sync_routing"] = {**(content.get("sync_routing") or {}), **routing}
    for name, facts in HOSTS.items():
        content["hosts"][name] |= facts
    path.write_text(yaml.safe_dump(content))


def test_a_file_in_a_watched_folder_is_durable_on_two_others(fleet: LocalFleet) -> None:
    content = os.urandom(3 << 20)
    written(fleet, "a", "models/first.pth", content)
    facts = durable(fleet, "b", "model/models/first.pth", plain(content))
    assert {holder["node"] for holder in facts["holders"]} == {"a", "b", "c"}
    for node in HOSTS:
        holds(fleet, node, "models/first.pth", content)


def test_files_of_one_name_that_two_nodes_wrote_lie_beside_each_other(fleet: LocalFleet) -> None:
    for node in ("a", "b"):
        path = fleet.nodes[node].root / "games/self.db"
        path.parent.mkdir()
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE writer AS SELECT ? AS name", (node,))
    for origin in ("a", "b"):
        durable(fleet, "c", f"game/{origin}/games/self.db")
        for other in HOSTS.keys() - {origin}:
            copy = fleet.nodes[other].root / f"peers/{origin}/games/self.db"
            fleet.until(copy.exists, f"{other} has the database of {origin}", GENEROUS_SECONDS)
            with closing(sqlite3.connect(copy)) as database:
                assert database.execute("SELECT name FROM writer").fetchall() == [(origin,)]


def test_put_waits_for_two_and_get_ls_and_where_agree(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "step-1"
    source.write_bytes(os.urandom(200_000))
    put = json.loads(
        fleet.spore("b", "put", str(source), "--kind", "checkpoint", "--wait", "2", "--timeout", "90", "--json").stdout
    )
    assert (put["name"], put["size"], put["kind"]) == ("checkpoint/step-1", 200_000, "checkpoint")
    target = tmp_path / "fetched"
    fleet.spore("c", "get", put["name"], "-o", str(target))
    assert target.read_bytes() == source.read_bytes()
    rows = json.loads(fleet.spore("a", "ls", "checkpoint/step-*", "--json").stdout)
    assert [(row["name"], row["digest"], row["origin"]) for row in rows] == [(put["name"], put["digest"], "b")]
    where = json.loads(fleet.spore("c", "where", put["name"], "--json").stdout)
    assert where["durable"]
    assert where["digest"] == put["digest"]
    assert {holder["state"] for holder in where["holders"]} == {"alive"}


def test_wait_ends_when_it_is_durable_and_fails_when_it_cannot_be(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "waited"
    source.write_bytes(os.urandom(10_000))
    fleet.spore("a", "put", str(source), "--kind", "checkpoint")
    assert fleet.spore("a", "wait", "checkpoint/waited", "--copies", "2", "--timeout", "90").returncode == 0
    too_many = fleet.spore("a", "wait", "checkpoint/waited", "--copies", "3", "--timeout", "1", check=False)
    assert too_many.returncode == 1
    assert "only 2 eligible stores of the 3 needed are reachable" in too_many.stderr or "2 of 3" in too_many.stderr


def test_flush_says_that_all_is_durable(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "flushed"
    source.write_bytes(os.urandom(10_000))
    fleet.spore("c", "put", str(source), "--kind", "checkpoint")
    done = fleet.spore("c", "flush", "--deadline", "60", "--json")
    assert json.loads(done.stdout)["durable"] is True
    assert fleet.ask("c", "risk") == []


def test_a_node_alone_has_everything_at_risk_and_says_why(fleet: LocalFleet, tmp_path: Path) -> None:
    source = tmp_path / "lonely"
    source.write_bytes(os.urandom(10_000))
    fleet.terminate("b")
    fleet.terminate("c")
    try:
        put = fleet.spore("a", "put", str(source), "--kind", "checkpoint", "--json")
        assert json.loads(put.stdout)["name"] == "checkpoint/lonely"
        (risk,) = [row for row in fleet.ask("a", "risk") if row["name"] == "checkpoint/lonely"]
        assert (risk["copies"], risk["needed"]) == (0, 2)
        assert risk["why"] == "only 0 eligible stores of the 2 needed are reachable"
        flush = fleet.spore("a", "flush", "--deadline", "1", check=False)
        assert flush.returncode == 1
        assert "spore risk" in flush.stderr
    finally:
        started(fleet, "b", "c")
    durable(fleet, "a", "checkpoint/lonely", plain(source.read_bytes()))


def test_a_deleted_artifact_is_gone_everywhere_and_does_not_return_with_a_node_that_was_away(
    fleet: LocalFleet, tmp_path: Path
) -> None:
    contents = {"checkpoint/doomed": os.urandom(100_000), "model/models/doomed.pth": os.urandom(2_000_000)}
    source = tmp_path / "doomed"
    source.write_bytes(contents["checkpoint/doomed"])
    fleet.spore("b", "put", str(source), "--kind", "checkpoint", "--wait", "2", "--timeout", "90")
    written(fleet, "b", "models/doomed.pth", contents["model/models/doomed.pth"])
    durable(fleet, "b", "model/models/doomed.pth")
    for node in HOSTS:
        holds(fleet, node, "doomed", source.read_bytes())
        holds(fleet, node, "models/doomed.pth", contents["model/models/doomed.pth"])
    fleet.kill("c")
    for name in contents:
        fleet.spore("a", "rm", name)
    for node in ("a", "b"):
        _gone(fleet, node, *contents.values())
    started(fleet, "c")
    _gone(fleet, "c", *contents.values())
    source.write_bytes(os.urandom(1_000))  # something new goes round: whatever the node brought would have come too
    fleet.spore("c", "put", str(source), "--kind", "checkpoint", "--name", "after", "--wait", "2", "--timeout", "90")
    for node in HOSTS:
        _gone(fleet, node, *contents.values())
        assert all(fleet.where(node, name) is None for name in contents)


def _gone(fleet: LocalFleet, node: str, *contents: bytes) -> None:
    """None of these bytes lies anywhere below the node's root."""
    sizes = {len(content) for content in contents}

    def gone() -> bool:
        files = [path for path in fleet.nodes[node].root.rglob("*") if path.is_file()]
        return not any(path.stat().st_size in sizes and path.read_bytes() in contents for path in files)

    fleet.until(gone, f"{node} has dropped the bytes", GENEROUS_SECONDS)


def test_revoke_ends_the_session_of_a_live_node_and_it_stays_out_until_it_joins_anew() -> None:
    with running() as fleet:
        fleet.spore("a", "revoke", "c")
        for node in ("a", "b"):
            fleet.until(
                lambda node=node: _state(fleet, node, "c") != "alive",  # type: ignore[misc]
                f"{node} ends its session with c",
                GENEROUS_SECONDS,
            )
            logged(fleet, node, "revoked", "c")
        fleet.kill("c")
        fleet.start("c")
        refused = logged(fleet, "b", "refused", "c", "revoked")
        assert "Traceback" not in refused
        assert _state(fleet, "a", "c") != "alive"
        assert fleet.ask("c", "status")["members"]["alive"] == 1
        fleet.terminate("c")
        token = fleet.spore("a", "token").stdout.strip()
        back = spore("join", token, fleet.nodes["c"].folder, "--node", "c", "--anew")
        assert back.returncode == 0, back.stderr
        started(fleet, "c")


def _state(fleet: LocalFleet, asked: str, node: str) -> str:
    return next(str(row["state"]) for row in fleet.ask(asked, "peers") if row["node"] == node)
