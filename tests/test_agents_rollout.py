"""Real agents that go and come: drained, removed and admitted anew; and a cluster whose authority is replaced."""

import json

import pytest

from node.identity import Identity
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, HOSTS, durable, logged, running, spore, started, written

pytestmark = pytest.mark.processes
FOUR = {**HOSTS, "d": {"provider": "four"}}


def state_of(fleet: LocalFleet, asked: str, node: str) -> str:
    return next(str(row["state"]) for row in fleet.ask(asked, "peers") if row["node"] == node)


def test_a_drained_node_is_left_with_nothing_that_depends_on_it_and_can_be_removed_for_good() -> None:
    """Its copies are made elsewhere first; then it is gone, and joining anew makes it a member again."""
    with running(FOUR) as fleet:
        written(fleet, "a", "checkpoints/step-1", b"weights" * 50_000)
        durable(fleet, "a", "checkpoint/checkpoints/step-1")
        drained = fleet.spore("c", "drain", "--deadline", "90", "--json")
        assert json.loads(drained.stdout)["safe"] is True
        holders = {row["node"] for row in fleet.ask("b", "where", name="checkpoint/checkpoints/step-1")["holders"]}
        assert len(holders - {"a", "c"}) >= 2
        refused = spore("put", "-", "--name", "x", "--kind", "npz", "--dir", fleet.nodes["c"].folder, stdin="x")
        assert refused.returncode == 1
        assert "stopping and accepts nothing more" in refused.stderr
        alive = spore("remove", "c", "--dir", fleet.nodes["a"].folder)
        assert "c is alive; drain and stop it first" in alive.stderr

        fleet.terminate("c")
        fleet.until(lambda: state_of(fleet, "a", "c") != "alive", "a sees that c left", GENEROUS_SECONDS)
        assert json.loads(fleet.spore("a", "remove", "c", "--json").stdout)["removed"] is True
        fleet.until(lambda: state_of(fleet, "b", "c") == "removed", "b hears of it", GENEROUS_SECONDS)
        assert fleet.ask("b", "status")["members"]["down"] == 0
        fleet.start("c")
        logged(fleet, "a", "refused", "c", "revoked")
        assert state_of(fleet, "a", "c") == "removed"

        fleet.terminate("c")
        token = fleet.spore("a", "token").stdout.strip()
        back = spore("join", token, fleet.nodes["c"].folder, "--node", "c", "--anew")
        assert back.returncode == 0, back.stderr
        started(fleet, "c")
        fleet.until(lambda: state_of(fleet, "b", "c") == "alive", "c is a member again", GENEROUS_SECONDS)


def test_the_authority_is_replaced_without_a_restart_and_who_restarts_afterwards_is_let_in() -> None:
    with running() as fleet:
        folder = fleet.nodes["a"].folder
        before = (folder / "identity" / "ca.pem").read_text()
        for step in ("begin", "switch", "end"):
            assert spore("rotate", step, "--dir", folder).returncode == 0
            for node in fleet.nodes:
                fleet.spore(node, "renew")
        texts = {(node.folder / "identity" / "ca.pem").read_text() for node in fleet.nodes.values()}
        assert len(texts) == 1
        assert before not in texts
        for node in fleet.nodes.values():
            assert len(Identity.load(node.folder, now=0).authorities) == 1
        fleet.kill("c")
        started(fleet, "c")
        written(fleet, "c", "models/after.pth", b"made after the roll-over" * 1_000)
        durable(fleet, "c", "model/models/after.pth")
