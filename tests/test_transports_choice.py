"""Which ways lead to an artifact, in which order, and why: the picture in docs/transports.md, question by question."""

from __future__ import annotations

import pytest

from node.transports.choice import ARIA2_BYTES_MIN, Situation, Source, Way, ways

SMALL, LARGE = 1_000, ARIA2_BYTES_MIN + 1
SHUT = "b is left alone over p2p_http for 9 s after failures in a row: no route to host"


def order(situation: Situation) -> list[tuple[str, tuple[str, ...]]]:
    return [(way.transport, way.nodes) for way in ways(situation)]


def test_a_reached_port_is_asked_by_our_own_protocol_near_nodes_first() -> None:
    sources = (Source("b"), Source("c", near=True), Source("d"))
    assert order(Situation(SMALL, sources)) == [("p2p_http", ("c", "b", "d"))]


def test_what_is_large_and_lies_on_several_reached_nodes_goes_to_aria2_first() -> None:
    sources = (Source("b"), Source("c"))
    assert order(Situation(LARGE, sources)) == [("aria2", ("b", "c")), ("p2p_http", ("b", "c"))]
    assert order(Situation(LARGE - 1, sources)) == [("p2p_http", ("b", "c"))]
    assert order(Situation(LARGE, sources[:1])) == [("p2p_http", ("b",))]
    assert order(Situation(LARGE, sources, missing={"aria2": "aria2c not installed"})) == [("p2p_http", ("b", "c"))]


def test_ssh_is_the_next_way_and_a_relay_the_one_after_it() -> None:
    sources = (Source("b", port=SHUT, ssh=""),)
    assert order(Situation(SMALL, sources, relays=("c", "d"))) == [
        ("rsync", ("b",)),
        ("relay", ("c", "d")),
        ("p2p_http", ("b",)),
    ]
    assert [way.why for way in ways(Situation(SMALL, sources, relays=("c",)))] == [
        f"b is reached by SSH ({SHUT})",
        "c may reach b",
        SHUT,
    ]


def test_a_reached_node_comes_before_one_that_only_ssh_reaches() -> None:
    sources = (Source("b", port=SHUT, ssh=""), Source("c"))
    assert order(Situation(SMALL, sources)) == [("p2p_http", ("c",)), ("rsync", ("b",)), ("p2p_http", ("b",))]


def test_a_relay_is_another_node_than_the_holder_and_three_at_most() -> None:
    relays = ("b", "c", "d", "e", "f")
    assert order(Situation(SMALL, (Source("b", port="no address is known for b"),), relays))[0] == (
        "relay",
        ("c", "d", "e"),
    )
    assert order(Situation(SMALL, (Source("b", port=SHUT),), ("b",))) == [("p2p_http", ("b",))]


@pytest.mark.parametrize("missing", ["rsync", "relay", "aria2"])
def test_what_cannot_be_used_here_is_passed_over(missing: str) -> None:
    sources = (Source("b", ssh=""), Source("c", ssh=""))
    found = ways(Situation(LARGE, sources, ("d",), {missing: "not installed"}))
    assert missing not in {way.transport for way in found}
    assert len({way.transport for way in found}) == 3


def test_the_last_way_is_one_that_says_why() -> None:
    assert ways(Situation(SMALL, (Source("b", port=SHUT),))) == (Way("p2p_http", ("b",), SHUT),)
    assert ways(Situation(SMALL, ())) == ()
