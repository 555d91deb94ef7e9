"""Real agents decide where data goes, and say why: plans, pins, ages, expiry, a host that does not receive a kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.cli.failures import CommandFailed
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, running, written
from tests.sshd import sshd_in

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    kinds: dict[str, Any] = {"npz": {"paths": ["training/*.npz"], "strategy": "pull", "min_copies": 1, "versions": 1}}
    kinds["notes"] = {"paths": ["notes/*"], "delete": "propagate"}
    hosts = {**HOSTS, "d": {"provider": "four", "receive": {"model": False}}}
    with running(hosts, sections={"kinds": kinds}) as fleet:
        yield fleet


def put(fleet: LocalFleet, node: str, kind: str, name: str, copies: int) -> None:
    path = fleet.folder / "content"
    path.write_bytes(f"{kind}/{name}".encode() * 100)
    fleet.spore(node, "put", str(path), "--kind", kind, "--name", name, "--wait", str(copies), "--timeout", "60")


def holders(fleet: LocalFleet, name: str) -> set[str]:
    found = fleet.where("a", name)
    return {holder["node"] for holder in found["holders"]} if found else set()


def test_who_holds_is_who_the_plan_says_and_every_other_node_has_its_reason(fleet: LocalFleet) -> None:
    put(fleet, "a", "model", "best.pth", 2)
    fleet.until(lambda: holders(fleet, "model/best.pth") == {"a", "b", "c"}, "all have the model", GENEROUS_SECONDS)
    for node in "abcd":  # every node says the same
        facts = fleet.ask(node, "plan", name="model/best.pth")
        assert [holder["node"] for holder in facts["holders"] if holder["holds"]] != []
        assert {holder["node"] for holder in facts["holders"]} == {"a", "b", "c"}
        assert facts["others"] == [{"node": "d", "why": "it does not receive the kind model"}]


def test_what_is_held_on_request_comes_with_a_pin(fleet: LocalFleet) -> None:
    put(fleet, "a", "npz", "set.npz", 1)
    (free, *_) = sorted({"b", "c", "d"} - holders(fleet, "npz/set.npz"))
    fleet.ask("b", "pin", name="npz/set.npz", node=free, pinned=True)
    fleet.until(lambda: free in holders(fleet, "npz/set.npz"), f"{free} holds it", GENEROUS_SECONDS)
    plan = fleet.ask("c", "plan", name="npz/set.npz")
    assert free in {holder["node"] for holder in plan["holders"]}


def test_a_pin_does_not_change_what_a_host_receives(fleet: LocalFleet) -> None:
    put(fleet, "a", "model", "other.pth", 2)
    with pytest.raises(CommandFailed, match="a pin does not change that"):
        fleet.ask("a", "pin", name="model/other.pth", node="d", pinned=True)


def test_the_router_view_says_how_old_the_newest_is_and_where_it_is_missing(fleet: LocalFleet) -> None:
    put(fleet, "b", "model", "newest.pth", 2)
    fleet.until(lambda: "c" in holders(fleet, "model/newest.pth"), "c has it", GENEROUS_SECONDS)
    (model,) = fleet.ask("a", "age", glob="model/*")
    assert (model["name"], model["stale"]) == ("model/newest.pth", [])
    assert 0 <= model["age_seconds"] < 300
    totals = fleet.ask("a", "status", cluster=True)["cluster_totals"]
    assert (totals["alive"], totals["stores"], totals["hosts_files"]) == (4, 4, 1)
    assert [advice for advice in fleet.ask("a", "recommend") if not advice["by_itself"]] == []


def test_expiry_removes_what_matches_and_is_old_and_nothing_else(fleet: LocalFleet) -> None:
    put(fleet, "a", "checkpoint", "old-1", 2)
    put(fleet, "a", "checkpoint", "old-2", 2)
    assert fleet.ask("a", "expire", glob="checkpoint/*", older_seconds=3600.0)["removed"] == 0
    assert fleet.ask("a", "expire", glob="checkpoint/old-*", older_seconds=0.001) == {"removed": 2, "refused": []}
    fleet.until(
        lambda: not fleet.where("c", "checkpoint/old-1") and not fleet.where("c", "checkpoint/old-2"),
        "the deletes are heard of",
        GENEROUS_SECONDS,
    )


def test_a_user_who_deletes_a_watched_file_deletes_it_everywhere_only_where_the_kind_says_so(
    fleet: LocalFleet,
) -> None:
    for path, kind in (("notes/gone", "notes"), ("checkpoints/kept", "checkpoint")):
        file = written(fleet, "a", path, path.encode())
        durable(fleet, "a", f"{kind}/{path}")
        fleet.until(lambda file=file: file.exists() and not unknown(fleet, file), "it is known", GENEROUS_SECONDS)  # type: ignore[misc]
        file.unlink()
    fleet.until(lambda: fleet.where("c", "notes/notes/gone") is None, "the delete is heard of", GENEROUS_SECONDS)
    assert fleet.where("c", "checkpoint/checkpoints/kept") is not None
    fleet.until(
        lambda: not any((node.root / "notes/gone").exists() for node in fleet.nodes.values()),
        "the bytes are gone everywhere",
        GENEROUS_SECONDS,
    )


def unknown(fleet: LocalFleet, file: Path) -> bool:
    return fleet.ask("a", "status")["watcher"]["waiting"] > 0


def test_one_node_copies_outside_the_fleet_and_all_know_that_it_is_done(tmp_path: Path) -> None:
    """What it holds and what it does not; an excluded node does not copy, and what it wrote is copied all the same."""
    there = tmp_path / "there"
    with sshd_in(tmp_path / "sshd") as sshd:
        storage = {"host": "127.0.0.1", "path": str(there), "schedule": "* * * * *", "ssh": sshd.section()}
        hosts = {**HOSTS, "d": {"provider": "four", "excluded": True}}
        with running(hosts, allowed_external_storage=[storage]) as fleet:
            put(fleet, "a", "npz", "set.npz", 2)
            put(fleet, "d", "checkpoint", "step", 2)

            def done() -> bool:
                (facts,) = fleet.ask("b", "status")["external"]
                return bool(facts["done_for"]) and len([p for p in there.rglob("*") if p.is_file()]) >= 3

            fleet.until(done, "the copies are made and told of", GENEROUS_SECONDS)
            (facts,) = fleet.ask("c", "status")["external"]
            assert facts["last"]["node"] in ("a", "b", "c")
            assert facts["last"]["state"] in ("done", "running")
    found = {path.name.rpartition(".")[0]: path.read_bytes() for path in there.rglob("*.????????????")}
    assert found["set.npz"] == b"npz/set.npz" * 100
    assert found["step"] == b"checkpoint/step" * 100
