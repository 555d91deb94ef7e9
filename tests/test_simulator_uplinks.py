"""Simulated uplinks keep budgets as the agent does, and an account outside them would see it if they did not."""

from __future__ import annotations

import pytest

from protocol.egress import WEIGHTS, Egress
from protocol.fleet import Bandwidth, Fleet, Host, Priority
from simulations.oracle import Oracle
from simulations.schedule import Schedule
from simulations.uplinks import Uplinks

MB = 1_000_000
PEERS: dict[str, Priority] = {"b": "low", "c": "normal", "d": "high", "e": "critical"}
FLEET = Fleet(
    "f",
    hosts={
        "a": Host("a", bandwidth_limit=Bandwidth(25 * MB)),
        **{name: Host(name, sync_priority=priority) for name, priority in PEERS.items()},
    },
)


class Account:
    """What the oracle is asked for here."""

    def __init__(self) -> None:
        self.violations: list[str] = []

    def violation(self, sentence: str) -> None:
        self.violations.append(sentence)


def run(sends: list[tuple[str, int]], until_ms: int) -> tuple[dict[str, int], list[str]]:
    """Send these from node a at once; when each had left, and what the account found."""
    schedule, account = Schedule(), Account()
    uplinks = Uplinks(schedule, FLEET, account)  # type: ignore[arg-type]  # one method of the oracle
    left: dict[str, int] = {}
    for peer, size_bytes in sends:
        uplinks.send("a", peer, size_bytes, lambda peer=peer: left.setdefault(peer, schedule.now_ms))
    schedule.run_until(until_ms)
    return left, account.violations


def test_bytes_leave_at_the_rate_of_the_budget() -> None:
    left, found = run([("c", 100 * MB)], 10_000)
    assert 3_700 <= left["c"] <= 4_200
    assert found == []


def test_transfers_of_other_priorities_end_by_their_weights_and_all_end() -> None:
    left, found = run([(peer, 20 * MB) for peer in PEERS], 20_000)
    assert list(left) == ["e", "d", "c", "b"]
    assert left["e"] < 20 * MB / (25 * MB) * 1_000 * 43 / 36 * 1.3
    assert left["b"] <= 3_700  # all of it at the rate of the budget
    assert (found, tuple(PEERS.values())) == ([], tuple(WEIGHTS))


def test_more_than_a_budget_in_five_seconds_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Egress, "_affords", lambda self, flow, now: True)
    monkeypatch.setattr(Egress, "_held", lambda self, rank, now: False)
    _, found = run([(peer, 100 * MB) for peer in PEERS], 10_000)
    assert found
    assert "a sent" in found[0]
    assert hasattr(Oracle, "violation")  # what the account stands for
