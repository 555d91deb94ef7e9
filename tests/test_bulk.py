"""The bulk path over real TLS on loopback: uploads, fetches, and peers that lie, stop, crawl or vanish."""

from __future__ import annotations

import errno
import http.client
import itertools
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.bulk_http import UnsatisfiableRange, byte_range
from node.bulk_stream import Patience, StreamBroken
from node.fetching import missing_bytes, split_runs
from node.identity import init_identity
from node.inbox import asked_bytes
from node.throttle import RATE_BYTES_PER_SECOND_MIN, Throttle
from node.tls import CheckedContext, IdentityContexts
from node.uploading import end_push, wanted_chunks
from protocol.chunks import CHUNK_BYTES
from protocol.effects import Fetch, Upload
from protocol.events import Arrived
from protocol.values import Digest, Parcel, Record, Stripe
from storage.blobs import Blob
from storage.files import Bytes, FileLayer
from tests.bulk_world import (
    GENEROUS_SECONDS,
    MIB,
    Node,
    Pusher,
    Shelf,
    World,
    content_of,
    leaves_of,
    parcels,
    record_of,
)

HURRIED = Patience(stall_seconds=0.5, head_seconds=GENEROUS_SECONDS, answer_seconds=GENEROUS_SECONDS)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def a(world: World) -> Node:
    return world.node("a")


@pytest.fixture
def b(world: World, a: Node) -> Node:
    return world.node("b")


def push(a: Node, b: Node, transfer: int, offered: tuple[Parcel, ...]) -> None:
    b.server.inbox.expect("a", transfer, offered)
    a.transfers.upload(Upload(transfer, "b", offered))


def fails(arrived: Arrived) -> dict[Digest, str]:
    return {record.digest: why for record, why in arrived.failed}


# --- uploads ---


def test_two_thousand_small_artifacts_travel_in_one_stream_and_reach_the_store_in_batches(
    world: World, a: Node, b: Node
) -> None:
    wire = world.wire(a, b)
    records = [a.shelf.hold(content_of(10 << 10, seed), inline=seed % 2 == 0) for seed in range(2_000)]
    push(a, b, 1, parcels(records))
    assert a.heard.upload_end().error == ""
    arrived = b.heard.arrival()
    assert (arrived.peer, arrived.transfer, arrived.failed) == ("a", 1, ())
    assert sorted(r.key for r in arrived.complete) == sorted(r.key for r in records)
    assert all(b.shelf.arrived_bytes(r) == content_of(10 << 10, seed) for seed, r in enumerate(records))
    assert wire.port.accepted == 1
    assert max(b.shelf.batches) > 500
    assert wire.sent_bytes <= 1.05 * 2_000 * (10 << 10)


def test_a_large_artifact_arrives_byte_for_byte(a: Node, b: Node) -> None:
    content = content_of(64 * MIB + 12_345)
    record = a.shelf.hold(content)
    push(a, b, 1, parcels([record]))
    assert a.heard.upload_end().error == ""
    assert b.heard.arrival().complete == (record,)
    assert b.shelf.arrived_bytes(record) == content


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_sizes_around_the_chunk_arrive_whole(a: Node, b: Node, size: int) -> None:
    record = a.shelf.hold(content_of(size))
    push(a, b, 1, parcels([record]))
    assert b.heard.arrival().complete == (record,)
    assert b.shelf.arrived_bytes(record) == content_of(size)


def test_after_a_cut_only_the_missing_chunks_are_sent_again(world: World, a: Node, b: Node) -> None:
    content = content_of(32 * MIB)
    record = a.shelf.hold(content)
    wire = world.wire(a, b, cut_after_bytes=20 * MIB)
    push(a, b, 1, parcels([record]))
    assert a.heard.upload_end().error != ""
    assert record.digest in fails(b.heard.arrival())
    missing = b.shelf.missing(record)
    assert 0 < missing_bytes(record.size, missing) < 20 * MIB
    again = world.wire(a, b)
    push(a, b, 2, (Parcel(record, missing),))
    assert a.heard.upload_end(2).error == ""
    assert b.heard.arrival(2).complete == (record,)
    assert b.shelf.arrived_bytes(record) == content
    assert again.sent_bytes <= 1.05 * missing_bytes(record.size, missing)
    assert wire.port.accepted == 1


def test_what_stands_in_staging_already_is_complete_without_being_sent(world: World, a: Node, b: Node) -> None:
    contents = [content_of(3 * MIB, 1), content_of(700, 2), content_of(800, 3)]
    records = [a.shelf.hold(content) for content in contents]
    push(a, b, 1, parcels(records[:2]))
    assert b.heard.arrival().complete == tuple(records[:2])
    reserved = b.shelf.depot.reserve(2, parcels(records))
    offered = tuple(Parcel(record, gap) for record, gap in zip(records, reserved.missing, strict=True))
    wire = world.wire(a, b)
    b.server.inbox.expect("a", 2, parcels(records), reserved.missing)
    a.transfers.upload(Upload(2, "b", offered))
    assert a.heard.upload_end(2).error == ""
    assert sorted(r.key for r in b.heard.arrival(2).complete) == sorted(r.key for r in records)
    assert wire.sent_bytes < 20_000


def test_bytes_named_twice_travel_once_and_serve_both_names(world: World, a: Node, b: Node) -> None:
    first = a.shelf.hold(content_of(3 * MIB), "model/one.bin")
    second = a.shelf.hold(content_of(3 * MIB), "model/two.bin")
    wire = world.wire(a, b)
    push(a, b, 1, parcels([first, second]))
    assert b.heard.arrival().complete == (first, second)
    assert wire.sent_bytes < 4 * MIB


def test_an_upload_nobody_expects_is_refused_before_a_byte_of_it_and_the_connection_goes_on(
    world: World, a: Node, b: Node
) -> None:
    wire = world.wire(a, b)
    record = a.shelf.hold(content_of(20 * MIB))
    a.transfers.upload(Upload(7, "b", parcels([record])))
    assert a.heard.upload_end().error == "b: transfer 7 is not expected from a"
    assert wire.sent_bytes < MIB
    push(a, b, 8, parcels([record]))
    assert a.heard.upload_end(2).error == ""
    assert b.heard.arrival().complete == (record,)
    assert wire.port.accepted == 1
    assert len(b.heard.arrived) == 1


def test_a_forgotten_transfer_is_refused_and_a_running_one_is_cut(a: Node, b: Node) -> None:
    record = a.shelf.hold(content_of(MIB))
    b.server.inbox.expect("a", 1, parcels([record]))
    b.server.inbox.forget("a", 1)
    a.transfers.upload(Upload(1, "b", parcels([record])))
    assert "not expected" in a.heard.upload_end().error
    b.server.inbox.expect("a", 2, parcels([record]))
    pusher = Pusher(a, b, 2).begin()
    b.server.inbox.forget("a", 2)
    assert record.digest in fails(b.heard.arrival())
    pusher.close()


def test_another_peer_cannot_push_what_was_agreed_with_one(world: World, a: Node, b: Node) -> None:
    c = world.node("c")
    record = c.shelf.hold(content_of(1000))
    b.server.inbox.expect("a", 1, parcels([record]))
    c.transfers.upload(Upload(1, "b", parcels([record])))
    assert "not expected from c" in c.heard.upload_end().error
    assert b.server.inbox.is_expected("a", 1)


def test_an_artifact_that_is_no_longer_held_is_left_out_with_the_reason(a: Node, b: Node) -> None:
    here, gone = a.shelf.hold(content_of(2 * MIB, 1)), record_of(content_of(3 * MIB, 2))
    push(a, b, 1, parcels([gone, here]))
    assert a.heard.upload_end().error == ""
    arrived = b.heard.arrival()
    assert arrived.complete == (here,)
    assert fails(arrived) == {gone.digest: "its bytes are no longer here"}
    assert [report.event for report in a.heard.reports] == ["parcel_left_out"]


def at_read(shelf: Shelf, number: int, deed: Callable[[], None]) -> None:
    """Run a deed when the blobs of a shelf are read for the n-th time."""
    reads, original = itertools.count(1), shelf.open_blob

    class Watched:
        def __init__(self, blob: Blob) -> None:
            self.blob, self.size, self.check, self.close = blob, blob.size, blob.check, blob.close

        def fileno(self) -> int:
            return self.blob.fileno()

        def read_into(self, view: memoryview, offset: int) -> int:
            if next(reads) == number:
                deed()
            return self.blob.read_into(view, offset)

    def opened(digest: Digest) -> Blob | None:
        blob = original(digest)
        return Watched(blob) if blob else None

    shelf.open_blob = opened  # type: ignore[method-assign]


def test_a_file_that_changes_while_it_is_uploaded_never_becomes_wrong_bytes(a: Node, b: Node) -> None:
    changing, steady = a.shelf.hold(content_of(8 * MIB, 1)), a.shelf.hold(content_of(2 * MIB, 2))

    def overwrite() -> None:
        with a.shelf.path(changing).open("r+b") as file:
            file.seek(6 * MIB)
            file.write(b"other")

    at_read(a.shelf, 4, overwrite)
    push(a, b, 1, parcels([changing, steady]))
    arrived = b.heard.arrival()
    assert arrived.complete == (steady,)
    assert "no longer holds what it did" in fails(arrived)[changing.digest]
    assert a.heard.upload_end().error == ""
    assert a.shelf.bench.withdrawn
    assert b.heard.wrong == []


def test_a_kept_connection_that_the_peer_has_closed_is_replaced_without_an_error(world: World, tmp_path: Path) -> None:
    a, b = world.node("a"), world.node("b", Patience(idle_seconds=0.05))
    first, second = a.shelf.hold(b"one"), a.shelf.hold(b"two")
    push(a, b, 1, parcels([first]))
    a.heard.upload_end()
    while b.server._streams:  # until it has closed the idle connection
        time.sleep(0.01)
    push(a, b, 2, parcels([second]))
    assert a.heard.upload_end(2).error == ""
    assert b.port.accepted == 2


# --- peers that misbehave while they push ---


def test_wrong_bytes_fail_their_artifact_alone_and_are_held_against_the_peer(a: Node, b: Node) -> None:
    good, small, large = content_of(5000, 1), content_of(6000, 2), content_of(3 * MIB, 3)
    records = [record_of(good), record_of(small), record_of(large)]
    b.server.inbox.expect("a", 1, parcels(records))
    pusher = Pusher(a, b, 1).begin()
    pusher.small(records[1], content_of(6000, 9))
    pusher.frames.large(records[2].digest, len(large), leaves_of(large))
    for index in (0, 1, 2):
        chunk = large[index * MIB : (index + 1) * MIB]
        pusher.chunk(index, chunk if index != 1 else bytes(MIB))
    pusher.frames.close()
    pusher.small(records[0], good)
    pusher.frames.end()
    assert end_push(pusher.connection)
    arrived = b.heard.arrival()
    assert arrived.complete == (records[0],)
    assert set(fails(arrived)) == {records[1].digest, records[2].digest}
    assert {(peer, digest) for peer, digest, _ in b.heard.wrong} == {("a", r.digest) for r in records[1:]}
    assert b.shelf.missing(records[2]) == (Stripe(1, 1),)  # the good chunks are kept
    assert not b.shelf.is_staged(records[1])
    pusher.close()


def test_a_wrong_chunk_list_is_refused(a: Node, b: Node) -> None:
    content, other = content_of(3 * MIB, 1), content_of(3 * MIB, 2)
    record = record_of(content)
    b.server.inbox.expect("a", 1, parcels([record]))
    pusher = Pusher(a, b, 1).begin()
    pusher.large(record, other)
    pusher.frames.end()
    end_push(pusher.connection)
    assert "chunk list" in fails(b.heard.arrival())[record.digest]
    assert b.heard.wrong
    pusher.close()


def test_a_peer_that_keeps_sending_wrong_bytes_is_cut_off(a: Node, b: Node) -> None:
    content = content_of(32 * MIB)
    record, waiting = record_of(content), record_of(b"never comes")
    b.server.inbox.expect("a", 1, parcels([record, waiting]))
    pusher = Pusher(a, b, 1).begin()
    pusher.frames.large(record.digest, len(content), leaves_of(content))

    def insist() -> None:
        for index in range(32):
            pusher.chunk(index, bytes(CHUNK_BYTES))
        pusher.frames.close()
        pusher.frames.end()
        end_push(pusher.connection)

    with pytest.raises(StreamBroken):
        insist()
    assert "not what its digest says" in fails(b.heard.arrival())[record.digest]
    assert fails(b.heard.arrival())[waiting.digest] == "a sent too much that could not be used: closed"
    assert len(b.heard.wrong) == 1
    pusher.close()


@pytest.mark.parametrize(("size", "said"), [(1000, 2000), (3 * MIB, 2 * MIB), (3 * MIB, 1 << 60)])
def test_a_lie_about_the_size_fails_the_artifact_with_a_sentence(a: Node, b: Node, size: int, said: int) -> None:
    record, other = record_of(content_of(size)), record_of(b"honest")
    b.server.inbox.expect("a", 1, parcels([record, other]))
    pusher = Pusher(a, b, 1).begin()
    if size <= CHUNK_BYTES:
        pusher.small(record, content_of(said))
    else:
        pusher.large(record, content_of(2 * MIB), said)
    pusher.small(other, b"honest")
    pusher.frames.end()
    end_push(pusher.connection)
    arrived = b.heard.arrival()
    assert arrived.complete == (other,)
    assert fails(arrived)[record.digest] == f"a sends {said} bytes as {record.name}, whose record says {size}"
    pusher.close()


Deed = Callable[[Pusher, Record], None]


def misframed() -> dict[str, Deed]:
    def not_agreed(pusher: Pusher, record: Record) -> None:
        pusher.small(record_of(b"unasked"), b"unasked")

    def twice(pusher: Pusher, record: Record) -> None:
        pusher.large(record, content_of(2 * MIB))
        pusher.large(record, content_of(2 * MIB))

    def beyond(pusher: Pusher, record: Record) -> None:
        pusher.frames.large(record.digest, record.size, leaves_of(content_of(2 * MIB)))
        pusher.chunk(2, b"beyond")

    def again(pusher: Pusher, record: Record) -> None:
        pusher.frames.large(record.digest, record.size, leaves_of(content_of(2 * MIB)))
        for _ in range(3):
            pusher.chunk(0, content_of(2 * MIB)[:MIB])

    def homeless(pusher: Pusher, record: Record) -> None:
        pusher.chunk(0, b"of nothing")

    def unknown(pusher: Pusher, record: Record) -> None:
        pusher.frames._put(b"\x63")

    def listless(pusher: Pusher, record: Record) -> None:
        pusher.frames.large(record.digest, record.size, leaves_of(content_of(2 * MIB)) * 2)

    def nested(pusher: Pusher, record: Record) -> None:
        pusher.frames.large(record.digest, record.size, [])
        pusher.frames.large(record.digest, record.size, [])

    def open_end(pusher: Pusher, record: Record) -> None:
        pusher.frames.large(record.digest, record.size, [])
        pusher.frames.end()

    return {name: deed for name, deed in locals().items() if callable(deed)}


@pytest.mark.parametrize("deed", misframed().values(), ids=misframed().keys())
def test_a_stream_that_breaks_the_framing_is_closed_and_ends_once(a: Node, b: Node, deed: Deed) -> None:
    record = record_of(content_of(2 * MIB))
    waiting = record_of(b"never comes")
    b.server.inbox.expect("a", 1, parcels([record, waiting]))
    pusher = Pusher(a, b, 1).begin()

    def misbehave() -> None:
        deed(pusher, record)
        pusher.flush()
        end_push(pusher.connection)

    with pytest.raises(StreamBroken):
        misbehave()
    arrived = b.heard.arrival()
    assert waiting.digest in fails(arrived)
    assert arrived.failed[-1][1].endswith(": closed")
    pusher.close()


def test_a_peer_that_stops_in_the_middle_is_closed_and_what_it_sent_is_kept(world: World) -> None:
    a, b = world.node("a"), world.node("b", HURRIED)
    content = content_of(8 * MIB)
    record, whole = record_of(content), record_of(b"whole")
    b.server.inbox.expect("a", 1, parcels([whole, record]))
    pusher = Pusher(a, b, 1).begin()
    pusher.small(whole, b"whole")
    pusher.frames.large(record.digest, len(content), leaves_of(content))
    for index in range(5):
        pusher.chunk(index, content[index * MIB : (index + 1) * MIB])
    pusher.flush()
    arrived = b.heard.arrival()
    assert arrived.complete == (whole,)
    assert fails(arrived) == {record.digest: "a stopped sending: closed, what it sent is kept"}
    assert b.shelf.missing(record) == (Stripe(5, 3),)
    pusher.close()


def test_a_peer_that_crawls_is_closed(world: World) -> None:
    a, b = world.node("a"), world.node("b", HURRIED)
    record = record_of(content_of(MIB))
    b.server.inbox.expect("a", 1, parcels([record]))
    pusher = Pusher(a, b, 1).begin()

    def crawl() -> None:
        pusher.connection.stream.send(b"00100025\r\n")
        while True:
            pusher.connection.stream.send(b"\x01")
            time.sleep(0.05)

    with pytest.raises(StreamBroken):
        crawl()
    assert "crawls" in fails(b.heard.arrival())[record.digest]
    pusher.close()


def test_a_receiver_that_stops_reading_ends_the_upload(world: World) -> None:
    a, b = world.node("a", HURRIED), world.node("b")
    record = a.shelf.hold(content_of(64 * MIB))
    held = threading.Event()
    stuck = b.shelf.partial

    def slow_partial(record: Record) -> object:
        held.wait(GENEROUS_SECONDS)
        return stuck(record)

    b.shelf.partial = slow_partial  # type: ignore[method-assign,assignment]
    push(a, b, 1, parcels([record]))
    assert a.heard.upload_end().error == "b stopped receiving: closed"
    held.set()
    assert record.digest in fails(b.heard.arrival())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), chunked=st.booleans())
def test_random_bytes_in_a_stream_end_it_and_nothing_else(a: Node, b: Node, body: bytes, chunked: bool) -> None:
    record = record_of(b"the artifact")
    before = len(b.heard.arrived)
    b.server.inbox.expect("a", 1, parcels([record]))
    pusher = Pusher(a, b, 1).begin()
    raw = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked and body else body + b"\r\n\r\n\r\n"
    pusher.connection.stream.send(raw)
    pusher.close()
    assert b.heard.arrival(before + 1).complete == ()
    assert [report for report in b.heard.reports if report.level == "error"] == []


class FullDisk(FileLayer):
    """A disk on which files above 1 MiB cannot be written."""

    code = errno.ENOSPC

    def pwrite(self, fd: int, payload: Bytes, offset: int) -> int:
        if os.fstat(fd).st_size > MIB:
            raise OSError(self.code, os.strerror(self.code))
        return super().pwrite(fd, payload, offset)


@pytest.mark.parametrize(("code", "says"), [(errno.ENOSPC, "full"), (errno.EIO, "input/output")])
def test_a_disk_that_fails_at_the_receiver_fails_that_artifact_with_a_sentence(
    world: World, code: int, says: str
) -> None:
    disk = FullDisk()
    disk.code = code
    a, b = world.node("a"), world.node("b", files=disk)
    large, small = a.shelf.hold(content_of(4 * MIB)), a.shelf.hold(content_of(100))
    push(a, b, 1, parcels([large, small]))
    arrived = b.heard.arrival()
    assert arrived.complete == (small,)
    assert says in fails(arrived)[large.digest]
    assert b.heard.wrong == []
    assert a.heard.upload_end().error == ""


def test_a_failure_without_words_is_still_a_failure(a: Node, b: Node) -> None:
    def wordless(*_: object) -> list[tuple[Record, str]]:
        raise OSError

    b.shelf.arrive_small = wordless  # type: ignore[method-assign,assignment]
    record = a.shelf.hold(b"small")
    push(a, b, 1, parcels([record]))
    assert fails(b.heard.arrival()) == {record.digest: "OSError()"}
    b.transfers.fetch(Fetch(2, record, ("a",)))
    assert fails(b.heard.arrival(2)) == {record.digest: "OSError()"}


# --- fetches ---


def test_a_fetch_brings_large_and_small_artifacts(world: World, a: Node, b: Node) -> None:
    for transfer, size in enumerate((0, 500, CHUNK_BYTES, 20 * MIB + 5), start=1):
        record = a.shelf.hold(content_of(size))
        b.transfers.fetch(Fetch(transfer, record, ("a",)))
        arrived = b.heard.arrival(transfer)
        assert (arrived.peer, arrived.transfer, arrived.complete) == ("b", transfer, (record,)), arrived
        assert b.shelf.arrived_bytes(record) == content_of(size)
    assert a.port.accepted == 1


def test_of_two_sources_the_lying_one_is_told_of_and_the_other_serves(
    world: World, a: Node, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.fetching.RUN_CHUNKS", 4)
    c = world.node("c")
    content = content_of(24 * MIB)
    record = a.shelf.hold(content)
    c.shelf.hold(content)
    liar = c.shelf.path(record)
    kept = liar.stat()
    with liar.open("r+b") as file:
        for index in range(24):  # whichever run it gets
            file.seek(index * MIB)
            file.write(bytes(64))
    os.utime(liar, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    b.transfers.fetch(Fetch(1, record, ("c", "a")))
    assert b.heard.arrival().complete == (record,)
    assert b.shelf.arrived_bytes(record) == content
    assert [(peer, digest) for peer, digest, _ in b.heard.wrong] == [("c", record.digest)]


def test_when_every_source_fails_the_reasons_are_told(world: World, a: Node, b: Node) -> None:
    c = world.node("c")
    record = record_of(content_of(3 * MIB))
    b.addresses["nowhere"] = "127.0.0.1:1"
    b.transfers.fetch(Fetch(1, record, ("a", "c", "nowhere", "unheard-of")))
    why = fails(b.heard.arrival())[record.digest]
    assert "a: there is no chunk list" in why
    assert "c: there is no chunk list" in why
    assert "nowhere cannot be reached at 127.0.0.1:1" in why
    assert "no address is known for unheard-of" in why
    assert c.heard.reports == []


def test_a_source_with_another_name_than_expected_is_not_asked(world: World, a: Node, b: Node) -> None:
    record = a.shelf.hold(b"secret")
    b.addresses["c"] = a.address
    b.transfers.fetch(Fetch(1, record, ("c",)))
    assert "the node expected at this address is 'c'" in fails(b.heard.arrival())[record.digest]


def test_a_fetch_that_was_cut_goes_on_with_the_next_source_and_resends_nothing(
    world: World, a: Node, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.fetching.RUN_CHUNKS", 4)
    c = world.node("c")
    content = content_of(40 * MIB)
    record = a.shelf.hold(content)
    c.shelf.hold(content)
    wrote: list[int] = []
    partial_of = b.shelf.partial

    class Counting:
        def __init__(self, partial: object) -> None:
            self.partial = partial

        def write_chunk(self, index: int, chunk: memoryview) -> None:
            wrote.append(index)
            if len(wrote) == 20:
                a.server.stop(0)
            self.partial.write_chunk(index, chunk)  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self.partial, name)

    b.shelf.partial = lambda record: Counting(partial_of(record))  # type: ignore[method-assign,assignment,return-value]
    b.transfers.fetch(Fetch(1, record, ("a", "c")))
    assert b.heard.arrival().complete == (record,)
    assert sorted(wrote) == list(range(40))
    assert b.shelf.arrived_bytes(record) == content


def test_a_file_that_changes_while_it_is_served_ends_the_answer_early(world: World, a: Node, b: Node) -> None:
    c = world.node("c")
    content = content_of(8 * MIB)
    record = a.shelf.hold(content)
    c.shelf.hold(content)

    def overwrite() -> None:
        with a.shelf.path(record).open("r+b") as file:
            file.write(b"other")

    at_read(a.shelf, 3, overwrite)
    b.transfers.fetch(Fetch(1, record, ("a", "c")))
    assert b.heard.arrival().complete == (record,)
    assert b.shelf.arrived_bytes(record) == content
    assert b.heard.wrong == []
    assert "blob_changed" in [report.event for report in a.heard.reports]


def test_a_full_disk_ends_a_fetch_with_its_sentence_and_blames_nobody(world: World) -> None:
    a, b = world.node("a"), world.node("b", files=FullDisk())
    record = a.shelf.hold(content_of(4 * MIB))
    b.transfers.fetch(Fetch(1, record, ("a",)))
    assert "the disk is full" in fails(b.heard.arrival())[record.digest]
    assert b.heard.wrong == []


# --- ends ---


def test_a_cancelled_transfer_ends_at_once_and_is_answered_once(a: Node, b: Node) -> None:
    a.throttle.set_rate(4 * MIB)
    record = a.shelf.hold(content_of(64 * MIB))
    push(a, b, 1, parcels([record]))
    b.transfers.fetch(Fetch(2, record, ("a",)))
    while not any(p.bytes_done for p in a.transfers.snapshot()):
        time.sleep(0.01)
    a.transfers.cancel(1)
    b.transfers.cancel(2, "nobody wants it any more")
    assert a.heard.upload_end().error == "it was cancelled"
    b.heard.until(lambda: len(b.heard.arrived) == 2)
    assert {(x.peer, x.transfer) for x in b.heard.arrived} == {("a", 1), ("b", 2)}
    (own,) = [x for x in b.heard.arrived if x.peer == "b"]
    assert own.failed == ((record, "nobody wants it any more"),)


def test_a_stop_answers_everything_that_was_started_or_queued(a: Node, b: Node) -> None:
    a.throttle.set_rate(RATE_BYTES_PER_SECOND_MIN)
    record = a.shelf.hold(content_of(64 * MIB))
    for transfer in range(1, 9):
        push(a, b, transfer, parcels([record]))
    a.throttle.close()
    assert a.transfers.stop(GENEROUS_SECONDS)
    assert sorted(x.transfer for x in a.heard.uploaded) == list(range(1, 9))
    a.transfers.upload(Upload(9, "b", parcels([record])))
    assert a.heard.upload_end(9).error == "the agent stops"


def test_a_stopping_server_cuts_its_connections_and_every_upload_still_ends(a: Node, b: Node) -> None:
    records = [record_of(content_of(MIB, seed)) for seed in range(3)]
    pushers = []
    for transfer, record in enumerate(records):
        b.server.inbox.expect("a", transfer, parcels([record]))
        pushers.append(Pusher(a, b, transfer).begin())
    assert len(b.server.snapshot()) == 3
    assert b.server.stop(GENEROUS_SECONDS)
    assert sorted(x.transfer for x in b.heard.arrived) == [0, 1, 2]
    for pusher in pushers:
        pusher.close()


def test_progress_tells_how_far_it_is_and_what_it_waits_for(a: Node, b: Node) -> None:
    a.throttle.set_rate(4 * MIB)
    record = a.shelf.hold(content_of(64 * MIB))
    push(a, b, 1, parcels([record]))
    while not (seen := a.transfers.snapshot())[0].bytes_done or not b.server.snapshot()[0].bytes_done:
        time.sleep(0.01)
    assert (seen[0].transfer, seen[0].peer, seen[0].direction, seen[0].bytes_total) == (1, "b", "out", 64 * MIB)
    assert b.server.snapshot()[0].direction == "in"
    while a.transfers.snapshot()[0].waits_for != "bandwidth limit":
        time.sleep(0.01)
    a.transfers.cancel(1)
    a.heard.upload_end()
    assert a.transfers.snapshot() == ()


# --- who gets in ---


def test_a_stranger_gets_nothing_and_is_logged(a: Node, b: Node, tmp_path: Path) -> None:
    stranger = init_identity(tmp_path / "stranger", "fleet", "a", now=time.time())
    contexts = IdentityContexts(stranger, clock=time.time, revocations={})
    context = contexts.client(["spore-bulk"])
    assert isinstance(context, CheckedContext)
    context.peer_check = lambda certificate: None
    context.verify_mode = ssl.CERT_NONE
    host, _, port = b.address.partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=GENEROUS_SECONDS)

    def read() -> None:
        connection.request("GET", "/v1/blob/" + "00" * 32)
        connection.getresponse()

    with pytest.raises(OSError):  # noqa: PT011 - an alert or a closed connection, whichever comes first
        read()
    connection.close()
    b.heard.until(lambda: b.heard.refused)
    assert b.heard.refused[0][:2] == ("foreign", "127.0.0.1")


def test_a_peer_revoked_while_its_connection_is_open_is_refused_at_its_next_request(a: Node, b: Node) -> None:
    first, second = b.shelf.hold(b"first"), b.shelf.hold(b"second")
    a.transfers.fetch(Fetch(1, first, ("b",)))
    assert a.heard.arrival().complete == (first,)
    b.revocations["a"] = int(time.time()) + 1
    a.transfers.fetch(Fetch(2, second, ("b",)))
    assert second.digest in fails(a.heard.arrival(2))
    assert {reason for reason, _, _ in b.heard.refused} == {"revoked"}


def ask(a: Node, b: Node, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict, bytes]:  # type: ignore[type-arg]
    host, _, port = b.address.partition(":")
    connection = http.client.HTTPSConnection(
        host, int(port), context=a.contexts.client(["spore-bulk"]), timeout=GENEROUS_SECONDS
    )
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    seen = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return seen


def test_blobs_and_chunk_lists_are_plain_http_to_any_client_with_a_certificate(a: Node, b: Node) -> None:
    content = content_of(3 * MIB + 7)
    record = b.shelf.hold(content)
    path = f"/v1/blob/{record.digest.hex()}"
    status, headers, body = ask(a, b, "GET", path)
    assert (status, body, headers["etag"]) == (200, content, f'"{record.digest.hex()}"')
    status, headers, body = ask(a, b, "GET", path, {"Range": "bytes=100-199"})
    assert (status, body, headers["content-range"]) == (206, content[100:200], f"bytes 100-199/{len(content)}")
    assert ask(a, b, "GET", path, {"Range": "bytes=-5"})[2] == content[-5:]
    assert ask(a, b, "GET", path, {"Range": f"bytes={len(content) - 3}-"})[2] == content[-3:]
    assert ask(a, b, "GET", path, {"Range": f"bytes={len(content)}-"})[0] == 416
    listing = f"/v1/chunks/{record.digest.hex()}?from=1&count=2"
    assert ask(a, b, "GET", listing)[2] == b"".join(leaves_of(content)[1:3])


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/blob/" + "ab" * 32, {}, 404),
        ("GET", "/v1/chunks/" + "ab" * 32, {}, 404),
        ("GET", "/v1/blob/../../etc/passwd", {}, 404),
        ("GET", "/v1/blob/" + "AB" * 32, {}, 404),
        ("PUT", "/v1/blob/" + "ab" * 32, {}, 400),
        ("GET", "/v1/blob/" + "ab" * 32, {"Content-Length": "5"}, 400),
        ("GET", "/v1/blob/" + "ab" * 32, {"Content-Length": "x"}, 400),
        ("POST", "/v1/push/1", {}, 411),
        ("POST", "/v1/push/one", {}, 404),
        ("GET", "/", dict.fromkeys((f"x-{n}" for n in range(40)), "y"), 400),
    ],
)
def test_what_is_not_understood_or_not_here_is_answered_with_a_sentence(
    a: Node, b: Node, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    seen, _, body = ask(a, b, method, path, headers)
    assert seen == status
    assert json.loads(body)["error"]


# --- the small parts ---


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, None), ("bytes=0-0", (0, 1)), ("bytes=5-", (5, 10)), ("bytes=-3", (7, 10)), ("bytes=2-99", (2, 10))],
)
def test_a_byte_range_is_cut_to_the_artifact(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=-0", "bytes=-", "bytes=1-2,4-5", "lines=1-2", ""])
def test_a_range_outside_or_several_are_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRange):
        byte_range(header, 10)


@given(st.integers(0, 20 * MIB), st.data())
def test_asked_bytes_are_the_bytes_of_the_wanted_chunks(size: int, data: st.DataObject) -> None:
    total = -(-size // CHUNK_BYTES)
    marks = sorted(data.draw(st.sets(st.integers(0, total), max_size=6)))
    stripes = tuple(Stripe(f, e - f) for f, e in zip(marks[::2], marks[1::2], strict=False))
    record = Record("model/x", 1, "a", bytes(32), bytes(32), size)
    chunks = list(wanted_chunks(Parcel(record, stripes)))
    assert asked_bytes(size, stripes) == sum(min(CHUNK_BYTES, size - i * CHUNK_BYTES) for i in chunks)
    assert sum(run.count for run in split_runs(stripes)) == sum(s.count for s in stripes)


def test_the_throttle_never_lets_more_through_than_its_rate_and_burst() -> None:
    throttle = Throttle(10 * MIB)
    began = time.monotonic()
    for _ in range(64):
        throttle.take(64 << 10)
    assert (time.monotonic() - began + 0.2) * 10 * MIB + (64 << 10) >= 4 * MIB


@pytest.mark.parametrize("freed", ["raised", "lifted", "closed"])
def test_who_waits_for_the_throttle_is_woken_when_it_changes(freed: str) -> None:
    throttle = Throttle(RATE_BYTES_PER_SECOND_MIN)
    throttle.take(1 << 40)
    done = threading.Event()

    def take() -> None:
        throttle.take(1)
        done.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    if freed == "closed":
        throttle.close()
    else:
        throttle.set_rate(None if freed == "lifted" else float(1 << 50))
    assert done.wait(GENEROUS_SECONDS)
    thread.join()
