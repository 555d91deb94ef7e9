"""Rings: who tells whom, who probes whom, who keeps a session with whom. Measured, not believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.rings import PROBERS, Rings, dials

UNHURRIED = settings(deadline=None)


def everybody(node: str) -> bool:
    return True


def fleet(count: int, seed: int = 1, domains: int = 5) -> list[tuple[str, str]]:
    random = Random(seed)
    return [(f"node-{seed}-{at}", f"domain-{random.randrange(domains)}") for at in range(count)]


def flood(rings: Rings, start: str, lives: Callable[[str], bool] = everybody) -> tuple[dict[str, int], int]:
    """Each node forwards once to its neighbours. Returns after how many hops each was reached, and the copies sent."""
    hops, copies, front = {start: 0}, 0, [start]
    while front:
        following = []
        for node in front:
            for neighbour in rings.neighbours(node, lives):
                copies += 1
                if neighbour not in hops:
                    hops[neighbour] = hops[node] + 1
                    following.append(neighbour)
        front = following
    return hops, copies


@pytest.mark.parametrize("count", [100, 1_000, 10_000])
def test_a_flood_reaches_every_node_in_few_hops_and_two_copies_each(count: int) -> None:
    """p95 of 20 seeds is the 19th of 20; here the 20th is held to the bound."""
    for seed in range(20 if count <= 1_000 else 3):
        members = fleet(count, seed)
        hops, copies = flood(Rings.build(members), members[0][0])
        assert len(hops) == count
        assert max(hops.values()) <= 1.5 * log2(count)
        assert copies / count <= 2.1


@pytest.mark.parametrize("count", [3, 8, 500])
def test_whoever_a_dead_neighbour_would_have_told_is_compared_with(count: int) -> None:
    rings = Rings.build(fleet(count))
    for node in rings.a.order:
        beyond = rings.beyond(node, everybody)
        assert rings.a.walk(node, 2, everybody)[1] in beyond
        assert rings.b.walk(node, 2, everybody)[1] in beyond
        assert node not in beyond
        assert len(beyond) == len(set(beyond)) <= 2


def test_a_flood_goes_past_the_dead_that_are_known() -> None:
    members = fleet(1_000)
    dead = {node for node, _ in Random(3).sample(members, 300)}
    start = next(node for node, _ in members if node not in dead)
    hops, _ = flood(Rings.build(members), start, lambda node: node not in dead)
    assert set(hops) == {node for node, _ in members} - dead
    assert max(hops.values()) <= 1.5 * log2(700)


def connected(nodes: set[str], rings: Rings) -> bool:
    """Whether the sessions kept while everybody counted as alive connect these nodes."""
    start = min(nodes)
    seen, front = {start}, [start]
    while front:
        node = front.pop()
        for peer in rings.session_peers(node, everybody):
            if peer in nodes and peer not in seen:
                seen.add(peer)
                front.append(peer)
    return seen == nodes


@pytest.mark.parametrize("count", [100, 1_000])
def test_sessions_connect_the_rest_when_a_third_dies_and_nobody_has_noticed(count: int) -> None:
    for seed in range(10):
        members = fleet(count, seed)
        dead = {node for node, _ in Random(seed).sample(members, count * 3 // 10)}
        assert connected({node for node, _ in members} - dead, Rings.build(members))


@pytest.mark.parametrize(("count", "least", "most"), [(100, 11, 14), (1_000, 18, 20), (10_000, 26, 28)])
def test_a_node_keeps_about_two_log_n_sessions(count: int, least: int, most: int) -> None:
    members = fleet(count)
    rings = Rings.build(members)
    kept = [len(rings.session_peers(node, everybody)) for node, _ in members[:200]]
    assert least <= sum(kept) / len(kept) <= most


@given(st.integers(1, 60), st.integers(0, 100), st.sets(st.integers(0, 59)))
@UNHURRIED
def test_both_ends_want_the_same_sessions_and_one_of_them_dials(count: int, seed: int, dead: set[int]) -> None:
    members = fleet(count, seed)
    rings = Rings.build(members)
    alive = {node for at, (node, _) in enumerate(members) if at not in dead}
    for node in alive:
        for peer in rings.session_peers(node, alive.__contains__):
            assert peer in alive
            assert node in rings.session_peers(peer, alive.__contains__)
            assert dials(node, peer) != dials(peer, node)


@given(st.integers(1, 60), st.integers(0, 100), st.sets(st.integers(0, 59)))
@UNHURRIED
def test_whom_a_node_probes_and_tells_it_has_sessions_with(count: int, seed: int, dead: set[int]) -> None:
    members = fleet(count, seed)
    rings = Rings.build(members)
    alive = {node for at, (node, _) in enumerate(members) if at not in dead}
    for node in alive:
        peers = set(rings.session_peers(node, alive.__contains__))
        probed = rings.probed_by(node, alive.__contains__)
        assert {*probed, *rings.neighbours(node, alive.__contains__)} <= peers
        assert len(probed) == min(PROBERS, len(alive) - 1)
        assert all(node in rings.probers(target, alive.__contains__) for target in probed)


@given(st.integers(2, 60), st.integers(0, 100))
@UNHURRIED
def test_a_node_has_two_different_neighbours_where_two_others_live(count: int, seed: int) -> None:
    members = fleet(count, seed)
    rings = Rings.build(members)
    for node, _ in members:
        neighbours = rings.neighbours(node, everybody)
        assert node not in neighbours
        assert len(set(neighbours)) == len(neighbours) == min(2, count - 1)
        assert neighbours[0] == rings.a.walk(node, 1, everybody)[0]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60))
@UNHURRIED
def test_neighbours_on_ring_b_lie_in_different_domains_as_far_as_the_counts_allow(domains: list[int]) -> None:
    members = [(f"node-{at}", f"domain-{domain}") for at, domain in enumerate(domains)]
    order, domain_of = Rings.build(members).b.order, dict(members)
    assert sorted(order) == sorted(domain_of)
    beside_itself = sum(domain_of[order[at]] == domain_of[order[at - 1]] for at in range(len(order)))
    largest = max(Counter(domains).values())
    unavoidable = len(order) if largest == len(order) else max(0, 2 * largest - len(order))
    assert beside_itself == unavoidable


def test_the_rings_do_not_follow_each_other() -> None:
    rings = Rings.build(fleet(1_000))
    shared = sum(rings.a.walk(n, 1, everybody) == rings.b.walk(n, 1, everybody) for n in rings.a.order)
    assert shared <= 10  # one is to be expected by chance


def test_one_node_more_moves_few_others() -> None:
    """Whoever changes neighbours changes sessions."""

    def pairs(rings: Rings) -> set[tuple[str, str]]:
        return {(order[at - 1], order[at]) for order in (rings.a.order, rings.b.order) for at in range(len(order))}

    before = Rings.build(fleet(1_000))
    after = Rings.build([*fleet(1_000), ("one-more", "domain-0")])
    assert len(pairs(before) - pairs(after)) <= 60


def test_the_order_in_which_members_are_named_does_not_matter_and_equal_views_share_one_object() -> None:
    members = fleet(50)
    assert Rings.build(members) is Rings.build(members[::-1])


def test_a_death_costs_no_rebuild_the_walk_goes_on() -> None:
    rings = Rings.build(fleet(10))
    first, second = rings.a.walk(rings.a.order[0], 2, everybody)
    assert rings.a.walk(rings.a.order[0], 1, lambda node: node != first) == [second]


def test_a_node_without_a_place_has_no_neighbours_and_is_alone_with_itself() -> None:
    rings = Rings.build(fleet(3))
    assert rings.neighbours("stranger", everybody) == ()
    assert rings.session_peers("stranger", everybody) == ()
    alone = Rings.build([("alone", "")])
    assert alone.neighbours("alone", everybody) == ()
    assert "alone" in alone
    assert len(alone) == 1


def test_the_rings_are_the_same_in_every_process_and_version() -> None:
    """Frozen: nodes of two versions must walk the same rings."""
    rings = Rings.build([(f"node-{at}", f"domain-{at % 2}") for at in range(8)])
    assert [node[-1] for node in rings.a.order] == list("03216475")
    assert [node[-1] for node in rings.b.order] == list("70325614")
