"""A disk that outlived its machine, on real agents: another node delivers what had been accepted there."""

import json
import shutil

from tests.agents import GENEROUS_SECONDS, durable, lines, plain, running, started
from tests.last_flushes import put_all

HOSTS = {
    "b": {"provider": "two"},
    "c": {"provider": "three"},
    "a": {"provider": "one", "ephemeral": True},
}


def test_what_a_lost_node_had_accepted_is_delivered_by_another_under_its_own_name(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    """Accepted while nobody could be reached, then the machine is gone; its volume is attached to b."""
    artifacts = {"small.npz": b"x" * 100, "large.npz": b"0123456789abcdef" * 10_000}
    with running(HOSTS, only=("a",)) as fleet:
        put_all(fleet, "a", artifacts)
        fleet.kill("a")
        volume = tmp_path_factory.mktemp("volume") / "node"
        shutil.copytree(fleet.nodes["a"].folder, volume, ignore=shutil.ignore_patterns("agent.sock"))
        started(fleet, "b", "c")
        adopted = json.loads(fleet.spore("b", "adopt", str(volume), "--json").stdout)
        assert {(row["name"], row["origin"], row["why"]) for row in adopted} == {
            ("npz/small.npz", "a", ""),
            ("npz/large.npz", "a", ""),
        }
        for name, content in artifacts.items():
            fleet.until(lambda name=name: fleet.where("c", f"npz/{name}"), "c knows it", GENEROUS_SECONDS)  # type: ignore[misc]
            facts = fleet.where("c", f"npz/{name}")
            assert facts is not None
            assert (facts["origin"], facts["blake3"]) == ("a", plain(content))
            fleet.until(
                lambda name=name: (
                    len({h["node"] for h in (fleet.where("c", f"npz/{name}") or {}).get("holders", ())}) > 1
                ),  # type: ignore[misc]
                "two others have it",
                GENEROUS_SECONDS,
            )
        # Taken twice, it is delivered once; and once the node is back, its disk is no longer for others to take.
        assert fleet.spore("b", "adopt", str(volume)).returncode == 0
        started(fleet, "a")
        fleet.until(lambda: fleet.ask("b", "status")["members"]["alive"] == 3, "b sees a", GENEROUS_SECONDS)
        refused = fleet.spore("b", "adopt", str(volume), check=False)
        assert refused.returncode == 1
        assert "a is alive: this disk is a copy of a running node's" in refused.stderr
        durable(fleet, "a", "npz/large.npz")
        assert not any("fault" in line for line in lines(fleet, "b"))
