"""Pulls over real TLS on loopback: one run at a time, from whole holders and from those who fetch it too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.effects import Pull
from protocol.events import Pulled
from protocol.values import Parcel, Record, Stripe
from tests.bulk_world import MIB, Node, World, content_of

CHUNKS = 6


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


class Story:
    """a holds it; b and c have room for it."""

    def __init__(self, world: World) -> None:
        self.content = content_of(CHUNKS * MIB - 100, 1)
        self.a, self.b, self.c = (world.node(name) for name in "abc")
        self.record = self.a.shelf.hold(self.content)
        self._number = 0
        for node in (self.b, self.c):
            node.shelf.depot.reserve(1, [Parcel(self.record)])

    def pull(self, node: Node, source: Node, first: int, count: int = 1) -> Pulled:
        return node.heard.pull_end(self.start(node, source, first, count))

    def start(self, node: Node, source: Node, first: int, count: int = 1) -> int:
        self._number += 1
        node.transfers.pulling.pull(Pull(self._number, 9, self.record, source.name, Stripe(first, count)))
        return self._number


@pytest.fixture
def story(world: World) -> Story:
    return Story(world)


def complete(node: Node, record: Record) -> bool:
    return node.shelf.is_staged(record)


def test_the_first_pull_brings_the_chunk_list_and_says_what_is_missing(story: Story) -> None:
    first = story.pull(story.b, story.a, 2)
    assert (first.error, first.missing) == ("", (Stripe(0, 2), Stripe(3, 3)))
    assert story.pull(story.b, story.a, 3).missing is None


def test_all_runs_together_are_the_artifact(story: Story) -> None:
    for first in (4, 0, 2):
        assert story.pull(story.b, story.a, first, 2).error == ""
    assert complete(story.b, story.record)
    assert story.b.shelf.arrived_bytes(story.record) == story.content


def test_who_fetches_it_too_serves_what_it_has_and_nothing_else(story: Story) -> None:
    story.pull(story.b, story.a, 0, 2)
    assert story.pull(story.c, story.b, 0, 2).error == ""
    refused = story.pull(story.c, story.b, 1, 2)
    assert refused.error == "b: b does not have these bytes yet"
    assert not refused.lied
    assert story.pull(story.c, story.b, 1, 1).error == ""  # the connection is as good as before


def test_pieces_from_several_sources_are_one_artifact(story: Story) -> None:
    for first in range(CHUNKS):
        assert story.pull(story.b, story.a, first).error == ""
        assert story.pull(story.c, story.b, first).error == ""
    assert story.c.shelf.arrived_bytes(story.record) == story.content
    assert story.a.server.throttle.sent_bytes == len(story.content)


def test_a_source_that_holds_nothing_of_it_says_so(story: Story) -> None:
    assert "does not hold" in story.pull(story.b, story.c, 0).error or "no chunk list" in story.b.heard.pulled[-1].error


def test_a_source_whose_file_changed_is_not_believed(story: Story) -> None:
    path = story.a.shelf.path(story.record)
    story.pull(story.b, story.a, 0)
    path.write_bytes(content_of(CHUNKS * MIB - 100, 2))
    assert story.pull(story.b, story.a, 1).error
    assert story.b.shelf.missing(story.record) == (Stripe(1, CHUNKS - 1),)


def test_a_pull_that_is_cut_is_answered_no_more(story: Story) -> None:
    story.a.throttle.set_rate(64 << 10)
    number = story.start(story.b, story.a, 0)
    story.b.transfers.pulling.cut(number)
    story.a.throttle.set_rate(None)
    assert story.pull(story.b, story.a, 1).error == ""
    assert number not in [pulled.number for pulled in story.b.heard.pulled]


def test_when_a_fetch_ends_what_it_kept_open_is_closed(story: Story) -> None:
    story.pull(story.b, story.a, 0)
    open_now = story.b.shelf.depot.open_partial(story.record.digest)
    assert open_now is not None
    open_now.close()
    (moving,) = story.b.transfers.snapshot()
    assert (moving.transfer, moving.direction, moving.bytes_done) == (9, "fetch", MIB)
    story.b.transfers.pulling.end(9)
    assert story.b.transfers.snapshot() == ()
    assert "does not hold" in story.pull(story.c, story.b, 0).error or "no chunk list" in story.c.heard.pulled[-1].error


def test_a_source_that_cannot_be_dialled_is_a_failure_of_that_pull_alone(story: Story) -> None:
    story.b.addresses["c"] = "127.0.0.1:1"
    assert "cannot be reached" in story.pull(story.b, story.c, 0).error
    assert story.pull(story.b, story.a, 0).error == ""
