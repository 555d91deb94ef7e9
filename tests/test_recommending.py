"""Recommendations: each says what to do, where, and why; nothing is recommended where all is well."""

from dataclasses import replace
from typing import Any

import pytest

from protocol.fleet import Kind
from protocol.planning import Candidate, plan
from protocol.recommending import Advice, Newest, members_summary, recommend
from protocol.repair import Danger
from protocol.values import Member
from tests.replicas import digest, record, store_of

KIND = Kind("npz")
MADE = record("npz/training/a", 5, "alpha")
HASH = "the-file"


def candidate(node: str, domain: str = "x", **facts: Any) -> Candidate:
    about = {key: facts.pop(key) for key in list(facts) if key not in ("alive", "left", "receives", "holds")}
    row = {"capacity_bytes": 100, "used_bytes": 20, "accepting": True, "policy_hash": HASH, **about}
    return Candidate(Member(node, 1, domain=domain, store=store_of(node), **row), **facts)


def fleet(*more: Candidate, holds: bool = True) -> list[Candidate]:
    usual = [candidate("alpha", holds=holds), candidate("beta", "y", holds=holds), candidate("gamma", holds=holds)]
    return [*usual, *more]


def newest(group: list[Candidate]) -> Newest:
    return Newest("npz/training", MADE, plan(digest(5), KIND, 2, group, "alpha", store_of("alpha")))


def advised(group: list[Candidate], **endangered: Any) -> list[Advice]:
    return recommend(group, {}, HASH, [newest(group)], endangered.get("endangered", ()))


def test_nothing_is_recommended_where_all_is_well() -> None:
    assert advised(fleet()) == []


@pytest.mark.parametrize(
    ("facts", "action", "why"),
    [
        ({"policy_hash": "another"}, "agree", "another hosts file"),
        ({"used_bytes": 98}, "free", "close to its cap"),
        ({"accepting": False, "used_bytes": 90}, "free", "takes nothing for others"),
        ({"alive": False, "at_risk_count": 3}, "start", "on its disk alone"),
    ],
)
def test_a_node_that_needs_looking_after_is_named(facts: dict[str, Any], action: str, why: str) -> None:
    (found,) = [advice for advice in advised(fleet(candidate("delta", holds=True, **facts))) if advice.target]
    assert (found.action, found.target) == (action, "delta")
    assert why in found.why


def test_who_should_have_the_newest_and_has_not_is_served_from_who_has_it() -> None:
    group = [candidate("alpha", holds=True), candidate("beta", "y"), candidate("gamma")]
    found = [(advice.action, advice.source, advice.target, advice.by_itself) for advice in advised(group)]
    assert sorted(found) == [("copy", "alpha", "beta", True), ("copy", "alpha", "gamma", True)]


def test_too_few_stores_are_said_to_be_too_few() -> None:
    found = advised([candidate("alpha", holds=True), candidate("beta", "y", holds=True)])
    assert [advice.action for advice in found] == ["grow"]
    assert "only 1 of the 2 stores" in found[0].why


def test_one_domain_for_every_copy_is_one_failure_for_every_copy() -> None:
    group = [replace(each, member=replace(each.member, domain="x")) for each in fleet()]
    assert [advice.action for advice in advised(group)] == ["spread"]


def test_what_waits_for_repair_stands_first_by_danger() -> None:
    found = advised(fleet(), endangered=[(Danger(1, 0, 5, MADE.key), MADE)])
    assert [(advice.action, advice.name) for advice in found] == [("copy", MADE.name)]
    assert "one copy is left, none on a host that lasts" in found[0].why


def test_the_sums_count_a_shared_disk_once() -> None:
    mate = Candidate(Member("mate", 1, store=store_of("beta"), capacity_bytes=100, used_bytes=20, accepting=True))
    totals = members_summary(fleet(mate, candidate("away", alive=False)))
    assert (totals["alive"], totals["known"], totals["stores"]) == (4, 5, 3)
    assert (totals["capacity_bytes"], totals["used_bytes"]) == (300, 60)
