"""The commands sync, limit and lend against a fake agent: what is asked, what is printed, how they end."""

from __future__ import annotations

import json

from tests.test_cli import Agent, agent, directory, printed, spore  # noqa: F401 - fixtures


def test_sync_tells_what_moved_and_is_exit_1_when_something_could_not(agent: Agent) -> None:  # noqa: F811
    assert printed("sync") == {
        "moved": 1, "moved_bytes": 10, "there": 1, "there_bytes": 10, "left": [], "left_count": 0,
    }  # fmt: skip
    result = spore("sync", "model/*", "--to", "node-b", "--priority", "high", "--timeout", "5m")
    assert agent.door.calls[-1] == ("sync", ("model/*", "node-b", "high", 300.0))
    assert result.exit_code == 1
    assert "1 artifact moved, 10 B; 0 artifacts were where they should be" in result.stdout
    assert "node-b is excluded from sync" in result.stdout
    assert result.stderr == "spore: 1 artifact could not be moved; the reasons are above\n"


def test_a_priority_that_there_is_not_is_wrong_usage(agent: Agent) -> None:  # noqa: F811
    assert spore("sync", "--priority", "urgent").exit_code == 2


def test_limit_shows_sets_and_names_a_node(agent: Agent) -> None:  # noqa: F811
    assert printed("limit")[0]["egress"] == "all of node-a"
    assert spore("limit", "node-b", "400 Mbit/s").stdout.splitlines()[1].split() == [
        "to", "node-b", "unlimited", "spore", "limit",
    ]  # fmt: skip
    assert [call for call in agent.door.calls if call[0] == "limit"][-1] == ("limit", ("node-b", "400 Mbit/s"))
    assert spore("limit", "a", "b", "c").exit_code == 2


def test_lend_prints_a_path_or_the_facts_one_a_line(agent: Agent) -> None:  # noqa: F811
    assert spore("lend", "ab").stdout == "/srv/ab\n"
    rows = spore("lend", "ab", "--to", "node-b", "--priority", "low", "--json").stdout.splitlines()
    assert [json.loads(row) for row in rows] == [{"path": "/srv/ab", "size": 1, "bytes_per_second": None}]
