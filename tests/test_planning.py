"""The plan: the same decision as placement's, with a reason for every node; and how little moves when one comes."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import load_fleet
from protocol.fleet import Kind
from protocol.placement import eligible, pool, targets
from protocol.planning import Candidate, Plan, candidates_of, hypothetical, plan
from protocol.values import Member
from tests.policy_picture import PICTURE, draw

UNHURRIED = settings(deadline=None)
EXAMPLE = Path(__file__).resolve().parent.parent / "distributed_hosts.yaml"
HYBRID, MODEL, PULL = Kind("npz"), Kind("model", strategy="broadcast", roles=("a", "b")), Kind("npz", strategy="pull")


def store(number: int) -> bytes:
    return bytes([1, number]) * 8


def digest(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def candidate(number: int, domain: str = "x", role: str = "a", **facts: object) -> Candidate:
    about = {key: facts.pop(key) for key in ("ephemeral", "excluded", "accepting") if key in facts}
    member = Member(f"n{number:02}", 1, role=role, domain=domain, store=store(number), **{"accepting": True, **about})  # type: ignore[arg-type]
    return Candidate(member, **facts)  # type: ignore[arg-type]


members = st.builds(
    Member,
    node=st.sampled_from([f"n{number:02}" for number in range(14)]),
    seq=st.just(1),
    role=st.sampled_from(["a", "b", "c"]),
    domain=st.sampled_from(["x", "y", "z"]),
    store=st.integers(0, 9).map(store),
    ephemeral=st.booleans(),
    excluded=st.booleans(),
    accepting=st.booleans(),
)
fleets = st.lists(
    st.builds(
        Candidate,
        members,
        alive=st.booleans(),
        receives=st.booleans(),
        priority=st.sampled_from(["low", "normal", "high", "critical"]),
        pinned=st.booleans(),
    ),
    max_size=14,
    unique_by=lambda candidate: candidate.member.node,
)
kinds = st.builds(
    Kind,
    name=st.just("k"),
    strategy=st.sampled_from(["hybrid", "broadcast", "pull"]),
    roles=st.sampled_from([(), ("a",), ("a", "c")]),
)
digests = st.integers(0, 999).map(digest)
copies = st.integers(1, 4)


def made(what: bytes, kind: Kind, k: int, group: Sequence[Candidate]) -> Plan:
    return plan(what, kind, k, group, "n00", store(0))


@UNHURRIED
@given(digests, kinds, copies, fleets)
def test_every_node_is_a_holder_or_has_a_reason_why_not(
    what: bytes, kind: Kind, k: int, group: list[Candidate]
) -> None:
    found = made(what, kind, k, group)
    named = [holder.node for holder in found.holders] + [other.node for other in found.others]
    assert sorted(named) == sorted(candidate.member.node for candidate in group)
    assert all(holder.why for holder in found.holders)
    assert all(other.why for other in found.others)


@UNHURRIED
@given(digests, kinds, copies, fleets)
def test_nobody_holds_who_may_not_and_no_store_twice(what: bytes, kind: Kind, k: int, group: list[Candidate]) -> None:
    known = {candidate.member.node: candidate for candidate in group}
    found = made(what, kind, k, group)
    for holder in found.holders:
        assert not known[holder.node].member.excluded
        assert known[holder.node].receives
        assert holder.node == "n00" or known[holder.node].eligible
    stores = [holder.store for holder in found.holders if holder.node != "n00"]
    assert len(stores) == len({*stores})
    assert store(0) not in stores


@UNHURRIED
@given(digests, kinds, copies, fleets, st.randoms())
def test_equal_facts_in_any_order_give_equal_plans(
    what: bytes, kind: Kind, k: int, group: list[Candidate], chance: object
) -> None:
    shuffled = list(group)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert made(what, kind, k, group) == made(what, kind, k, shuffled)


@UNHURRIED
@given(digests, kinds, copies, fleets)
def test_who_counts_is_whom_the_core_pushes_to(what: bytes, kind: Kind, k: int, group: list[Candidate]) -> None:
    seats = eligible([c.member for c in group if c.eligible and c.member.node != "n00"], store(0))
    around = pool(what, seats, k, 0, kind)
    pushed = {seat.store for seat in targets(around.seats, k, around.domains)}
    assert {holder.store for holder in made(what, kind, k, group).holders if holder.counts} == pushed


@UNHURRIED
@given(digests, copies, fleets)
def test_a_change_of_priority_changes_the_order_and_nobody_who_holds(
    what: bytes, k: int, group: list[Candidate]
) -> None:
    plain = [Candidate(c.member, c.alive, c.left, c.receives, "normal", c.pinned) for c in group]
    one, other = made(what, HYBRID, k, group), made(what, HYBRID, k, plain)
    assert {holder.store for holder in one.holders} == {holder.store for holder in other.holders}


# --- reasons ---


def why_not(node: str, kind: Kind, *group: Candidate) -> str:
    return next(other.why for other in made(digest(1), kind, 2, group).others if other.node == node)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"excluded": True}, "it is excluded from sync"),
        ({"receives": False}, "it does not receive the kind npz"),
        ({"left": True, "alive": False}, "it said goodbye"),
        ({"alive": False}, "it is down"),
        ({"accepting": False}, "its disk is at its cap, or failed"),
        ({"ephemeral": True}, "it can vanish, and 2 or more stores that last can hold it"),
    ],
)
def test_the_reason_says_what_keeps_a_node_from_holding(facts: dict[str, object], why: str) -> None:
    assert why_not("n05", HYBRID, candidate(1), candidate(2), candidate(5, **facts)) == why


def test_a_mate_of_the_same_store_is_no_second_copy() -> None:
    mate = Candidate(Member("n09", 1, store=store(1), accepting=True))
    assert (
        why_not("n09", HYBRID, candidate(1), candidate(2), mate) == "it shares the store of n01, which holds for both"
    )


def test_on_request_means_nobody_beyond_the_copies_that_make_it_durable_until_somebody_asks_or_pins() -> None:
    group = [candidate(number, pinned=number == 9) for number in (1, 2, 3, 9)]
    found = made(digest(1), PULL, 1, group)
    assert {holder.why for holder in found.holders if not holder.counts} <= {"it is pinned there"}
    assert "n09" in [holder.node for holder in found.holders]
    assert all("on request only" in other.why for other in found.others)


def test_who_is_served_first_is_a_matter_of_priority() -> None:
    group = [candidate(1, role="a"), candidate(2, role="b", priority="critical"), candidate(3, role="c")]
    assert [holder.node for holder in made(digest(1), MODEL, 2, group).holders] == ["n02", "n01"]


def test_a_store_that_the_kind_wants_anyhow_is_one_of_the_copies() -> None:
    """One transfer less for each artifact than with copies that nobody uses."""
    group = [candidate(number, role="a" if number < 3 else "c") for number in range(1, 9)]
    for number in range(50):
        found = made(digest(number), Kind("npz", roles=("a",)), 2, group)
        assert {holder.node for holder in found.holders} == {"n01", "n02"}


# --- little moves ---


def assigned(group: Sequence[Candidate], kind: Kind) -> set[tuple[int, bytes]]:
    plans = ((number, made(digest(number), kind, 2, group)) for number in range(400))
    return {(number, holder.store) for number, found in plans for holder in found.holders}


@pytest.mark.parametrize("count", [6, 12, 24])
@pytest.mark.parametrize("kind", [HYBRID, MODEL], ids=["hybrid", "broadcast"])
def test_one_node_that_comes_or_goes_moves_at_most_two_nths(count: int, kind: Kind) -> None:
    """Counted are copies that somebody else must make or may drop, beside those of the node itself."""
    group = [candidate(number, "xyz"[number % 3], "ab"[number % 2]) for number in range(1, count + 1)]
    all_of_them, without = assigned(group, kind), assigned(group[1:], kind)
    own = {pair for pair in all_of_them if pair[1] == group[0].member.store}
    moved = (all_of_them ^ without) - own
    assert len(moved) <= 2 / count * len(all_of_them)


# --- offline ---


def test_the_example_fleet_keeps_its_promises_for_every_kind() -> None:
    fleet = load_fleet(EXAMPLE)
    group = hypothetical(fleet)
    for kind in fleet.kinds:
        found = plan(digest(7), kind, 2, candidates_of(fleet, group, kind.name), "nebius-h100-1", group[0].store)
        assert found.enough
        assert "coordinator" not in [holder.node for holder in found.holders]
        assert not {"gh200-a", "gh200-b"} <= {holder.node for holder in found.holders}
        assert not any(fleet.host(holder.node).ephemeral for holder in found.holders if holder.counts)


def test_one_placement_among_fifty_nodes_takes_at_most_200_microseconds() -> None:
    group = [candidate(number, "xyz"[number % 3]).member for number in range(50)]
    seats = eligible(group, store(200))
    took = []
    for number in range(200):
        start = time.perf_counter()
        around = pool(digest(number), seats, 2, 0, HYBRID)
        targets(around.seats, 2, around.domains)
        took.append(time.perf_counter() - start)
    assert min(took) <= 200e-6


def test_the_picture_of_the_example_fleet_is_what_the_plan_says() -> None:
    """Else: `python -m tests.policy_picture`."""
    assert PICTURE.read_text() == draw()
