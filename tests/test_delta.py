"""Only what changed travels: equal chunks come from what lies here, and of a changed one the blocks that differ."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import blocks as server_side
from node.bulk_client import Job
from node.bulk_stream import Stream
from protocol.blocks import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    FAST_BYTES_PER_SECOND,
    HINT_BYTES,
    block_hints,
    differing,
    worth_comparing,
)
from protocol.chunks import CHUNK_BYTES
from protocol.effects import Fetch
from protocol.values import Parcel, Record
from tests.bulk_world import MIB, Node, World, content_of, record_of, world_in

_numbers = itertools.count(1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as world:
        yield world


@pytest.fixture
def pair(world: World) -> tuple[Node, Node]:
    """The receiver and the holder."""
    return world.node("a"), world.node("b")


def fetched(pair: tuple[Node, Node], content: bytes, name: str = "model/best.pth") -> tuple[bytes, int]:
    """What the receiver has afterwards, and how many bytes of payload the holder sent for it."""
    near, far = pair
    record = far.shelf.hold(content, name)
    number = next(_numbers)
    near.shelf.depot.reserve(number, [Parcel(record)])
    before = far.throttle.sent_bytes
    arrivals = len(near.heard.arrived) + 1
    near.transfers.fetch(Fetch(number, record, ("b",)))
    arrived = near.heard.arrival(arrivals)
    assert arrived.failed == ()
    return near.shelf.arrived_bytes(record), far.throttle.sent_bytes - before


def holds_older(node: Node, content: bytes, name: str = "model/best.pth") -> Record:
    record = node.shelf.hold(content, name)
    node.shelf.bench.manifest.versions[name] = (record.digest,)
    return record


def changed(content: bytes, blocks: list[int]) -> bytes:
    new = bytearray(content)
    for block in blocks:
        new[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content_of(BLOCK_BYTES, seed=block + 1)
    return bytes(new)


def test_of_a_file_that_was_appended_to_only_the_tail_travels(pair: tuple[Node, Node]) -> None:
    old = content_of(8 * MIB + 100 * BLOCK_BYTES)
    holds_older(pair[0], old)
    new = old + content_of(50 * BLOCK_BYTES, seed=3)
    came, payload = fetched(pair, new)
    assert came == new
    assert payload == 50 * BLOCK_BYTES


def test_of_a_database_updated_in_place_the_changed_pages_travel(pair: tuple[Node, Node]) -> None:
    old = content_of(16 * MIB)
    holds_older(pair[0], old)
    pages = sorted(random.Random(1).sample(range(16 * CHUNK_BLOCKS), 20))
    came, payload = fetched(pair, changed(old, pages))
    assert came == changed(old, pages)
    assert payload == 20 * BLOCK_BYTES


def test_equal_chunks_are_taken_from_any_artifact_at_any_place(pair: tuple[Node, Node]) -> None:
    chunks = [content_of(MIB, seed) for seed in range(6)]
    pair[0].shelf.hold(b"".join(chunks), "checkpoint/step-1")
    new = b"".join([chunks[4], content_of(MIB, 99), chunks[0], chunks[4], chunks[2]])
    came, payload = fetched(pair, new, "checkpoint/step-2")
    assert came == new
    assert payload == MIB


def test_an_artifact_made_of_what_is_here_needs_no_payload_at_all(pair: tuple[Node, Node]) -> None:
    old = content_of(5 * MIB)
    holds_older(pair[0], old)
    came, payload = fetched(pair, old[: 3 * MIB])
    assert (came, payload) == (old[: 3 * MIB], 0)


def test_where_the_link_is_faster_than_the_comparison_the_whole_chunk_goes(pair: tuple[Node, Node]) -> None:
    old = content_of(4 * MIB)
    holds_older(pair[0], old)
    speeds = pair[0].transfers._connections.speeds
    speeds.seen("b", 100 * MIB, 100 * MIB / (FAST_BYTES_PER_SECOND + 1))
    came, payload = fetched(pair, changed(old, [5]))
    assert came == changed(old, [5])
    assert payload == MIB


def test_an_older_version_that_shares_little_is_not_compared_any_further(pair: tuple[Node, Node]) -> None:
    holds_older(pair[0], content_of(140 * MIB, seed=1))
    asked: list[int] = []
    whole = server_side.send_hints
    new = content_of(140 * MIB, seed=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("node.bulk.send_hints", lambda *told: (asked.append(told[3]), whole(*told)))
        came, payload = fetched(pair, new)
    assert came == new
    assert payload == len(new)
    assert sum(asked) <= 64  # one run


def test_a_chunk_that_changed_altogether_does_not_end_the_comparison(pair: tuple[Node, Node]) -> None:
    """Pieces are small: an appended tail, or one chunk written anew, says nothing of the others."""
    old = content_of(5 * MIB)
    holds_older(pair[0], old)
    new = content_of(MIB, seed=9) + changed(old, [CHUNK_BLOCKS * 3 + 7])[MIB:] + content_of(2 * MIB, seed=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("node.fetching.RUN_CHUNKS", 1)
        came, payload = fetched(pair, new)
    assert came == new
    assert payload == 3 * MIB + BLOCK_BYTES


def test_an_older_version_that_is_damaged_here_costs_its_chunk_again_and_nothing_else(pair: tuple[Node, Node]) -> None:
    old = content_of(4 * MIB)
    record = holds_older(pair[0], old)
    new = changed(old, [3, CHUNK_BLOCKS + 9])
    path = pair[0].shelf.path(record)
    with pytest.MonkeyPatch.context() as patched:
        # The disk changes bytes without anybody noticing: between the comparison and the copy.
        put = server_side.Delta.put_together

        def damaged(self: object, index: int, runs: object, view: memoryview) -> None:
            put(self, index, runs, view)  # type: ignore[arg-type]
            view[-1] ^= 1

        patched.setattr(server_side.Delta, "put_together", damaged)
        came, payload = fetched(pair, new)
    assert path.exists()
    assert came == new
    assert payload == 2 * BLOCK_BYTES + 2 * MIB
    assert pair[0].heard.wrong == []


def test_an_older_version_that_changes_in_the_middle_of_an_answer_costs_its_chunks_again(
    pair: tuple[Node, Node],
) -> None:
    old = content_of(4 * MIB)
    record = holds_older(pair[0], old)
    new = changed(old, [3, CHUNK_BLOCKS + 9, 2 * CHUNK_BLOCKS])
    asked = server_side.Delta.ask
    with pytest.MonkeyPatch.context() as patched:

        def ask_then_change(self: object, *told: object) -> object:
            runs = asked(self, *told)  # type: ignore[arg-type]
            pair[0].shelf.path(record).write_bytes(b"other")
            return runs

        patched.setattr(server_side.Delta, "ask", ask_then_change)
        came, payload = fetched(pair, new)
    assert came == new
    assert payload == 3 * BLOCK_BYTES + 3 * MIB
    assert pair[0].heard.wrong == []


def test_a_holder_that_lies_about_its_blocks_gains_nothing(pair: tuple[Node, Node]) -> None:
    old = content_of(4 * MIB)
    holds_older(pair[0], old)
    new = changed(old, [3, CHUNK_BLOCKS + 9])

    def lies(stream: Stream, _blob: object, first: int, count: int, _buffer: object) -> None:
        for index in range(first, first + count):
            stream.send(block_hints(old[index * MIB : (index + 1) * MIB]))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("node.bulk.send_hints", lies)
        came, payload = fetched(pair, new)
    assert came == new
    assert payload == 2 * MIB


def test_an_older_version_that_changes_meanwhile_is_left_alone(pair: tuple[Node, Node]) -> None:
    old = content_of(4 * MIB)
    record = holds_older(pair[0], old)
    pair[0].shelf.path(record).write_bytes(content_of(4 * MIB, seed=7))
    came, payload = fetched(pair, changed(old, [3]))
    assert came == changed(old, [3])
    assert payload == 4 * MIB


# --- the wire ---


def ask(pair: tuple[Node, Node], method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    near, far = pair
    connection = near.connections.take(far.name, Job())
    try:
        headers = {"Content-Length": str(len(body))} if method == "POST" else {}
        connection.send_request(method, path, headers)
        connection.stream.send(body)
        head = connection.read_answer(30)
        answer = bytearray(head.length)
        connection.stream.read_into(memoryview(answer))
        return head.status, bytes(answer)
    finally:
        connection.stream.close()


def test_hints_and_blocks_are_served_as_documented(pair: tuple[Node, Node]) -> None:
    content = content_of(2 * MIB + 5000)
    record = pair[1].shelf.hold(content)
    path = f"/v1/blocks/{record.digest.hex()}"
    assert ask(pair, "GET", f"{path}?from=1&count=2") == (
        200,
        block_hints(content[MIB : 2 * MIB]) + block_hints(content[2 * MIB :]),
    )
    runs = (
        (1).to_bytes(8, "little") + (2).to_bytes(4, "little") + (513).to_bytes(8, "little") + (1).to_bytes(4, "little")
    )
    assert ask(pair, "POST", path, runs) == (200, content[4096 : 3 * 4096] + content[513 * 4096 :])


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 0), (5, 1), (2**63, 1), (514, 2)],
    ids=["empty", "beneath the one before", "far outside", "over the end"],
)
def test_runs_that_are_none_of_the_artifact_are_refused(pair: tuple[Node, Node], first: int, count: int) -> None:
    record = pair[1].shelf.hold(content_of(2 * MIB + 5000))
    runs = b"".join(at.to_bytes(8, "little") + n.to_bytes(4, "little") for at, n in [(9, 1), (first, count)])
    assert ask(pair, "POST", f"/v1/blocks/{record.digest.hex()}", runs)[0] == 400


@pytest.mark.parametrize("query", ["?from=0&count=0", "?from=3&count=1", "?from=0&count=65", ""])
def test_hints_of_chunks_that_are_not_there_are_refused(pair: tuple[Node, Node], query: str) -> None:
    record = pair[1].shelf.hold(content_of(3 * MIB))
    assert ask(pair, "GET", f"/v1/blocks/{record.digest.hex()}{query}")[0] == 400


def test_blocks_of_what_is_not_held_are_not_found(pair: tuple[Node, Node]) -> None:
    record = record_of(content_of(3 * MIB))
    assert ask(pair, "GET", f"/v1/blocks/{record.digest.hex()}?from=0&count=1")[0] == 404


# --- the comparison ---


@given(
    st.binary(min_size=0, max_size=6 * BLOCK_BYTES),
    st.lists(st.tuples(st.integers(0, 6 * BLOCK_BYTES), st.integers(0, 255)), max_size=8),
    st.integers(0, 6 * BLOCK_BYTES),
)
@settings(max_examples=60, deadline=None)
def test_the_old_bytes_and_the_differing_blocks_make_the_new_ones(
    new: bytes, changes: list[tuple[int, int]], old_length: int
) -> None:
    old = bytearray(new[:old_length])
    for at, value in changes:
        if at < len(old):
            old[at] = value
    made = bytearray(len(new))
    made[: len(old)] = old
    for first, count in differing(block_hints(new), block_hints(old)):
        span = slice(first * BLOCK_BYTES, (first + count) * BLOCK_BYTES)
        made[span] = new[span]
    assert bytes(made) == new


def test_runs_are_maximal_and_in_order() -> None:
    ours = bytes(10 * HINT_BYTES)
    theirs = bytearray(ours)
    for block in (0, 1, 4, 9):
        theirs[block * HINT_BYTES] = 1
    assert list(differing(bytes(theirs), ours)) == [(0, 2), (4, 1), (9, 1)]
    assert list(differing(bytes(theirs), b"")) == [(0, 10)]
    assert CHUNK_BLOCKS * BLOCK_BYTES == CHUNK_BYTES


def test_an_unknown_link_counts_as_slow() -> None:
    assert worth_comparing(None)
    assert worth_comparing(FAST_BYTES_PER_SECOND - 1)
    assert not worth_comparing(FAST_BYTES_PER_SECOND)
