"""How fast the bulk path is between two processes on one machine, with real TLS and real depots, fsync included.

By hand: `pytest tests/bench_bulk.py -s`. Sender and receiver are processes of their own, as agents are, so that they do
not share an interpreter. A figure covers: read, encrypt, send, decrypt, verify, write, publish.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from node.bulk import BulkServer, Hooks
from node.identity import Identity, begin_join, init_identity, install_identity
from node.throttle import Throttle
from node.tls import IdentityContexts
from node.transfers import TransferHooks, Transfers
from protocol.effects import Fetch, Kept, Publication, Upload
from protocol.events import Arrived
from protocol.values import Parcel, Record
from tests.bulk_world import MIB, Port, content_of, leaves_of, record_of
from tests.depots import Bench

GENEROUS_SECONDS = 300


def nothing(*told: object) -> None:
    """What a bench does not look at."""


def receive(directory: Path, pipe: Connection) -> None:
    """The receiving process: expects what it is told, publishes what arrives, and says when that is done."""
    identity = Identity.load(directory, now=time.time())
    contexts = IdentityContexts(identity, clock=time.time, revocations={})
    bench = Bench(directory)

    def arrived(event: Arrived) -> None:
        came = time.monotonic()
        outcome = bench.depot.publish([Publication(record, record.name) for record in event.complete])
        pipe.send((len(outcome.done), event.failed[:1] + outcome.failed[:1], time.monotonic() - came))

    server = BulkServer(contexts, bench.depot, Throttle(), Hooks(arrived, nothing, nothing, nothing))
    transfers = Transfers(
        contexts,
        bench.depot,
        Throttle(),
        lambda peer: pipe_address[0],
        TransferHooks(nothing, arrived, nothing, nothing),
    )
    pipe_address: list[str] = [""]
    pipe.send(Port(server.serve).address)
    while (order := pipe.recv()) is not None:
        records, address, streams = order
        transfers._connections.streams_to = lambda peer, count=streams: count  # type: ignore[method-assign, misc]
        bench.depot.reserve(1, [Parcel(record) for record in records])
        if address:
            pipe_address[0] = address
            transfers.fetch(Fetch(1, records[0], ("a",)))
        else:
            server.inbox.expect("a", 1, [Parcel(record) for record in records])
            pipe.send("expected")
    transfers.stop(5)
    server.stop(5)
    bench.depot.close()


class Pair:
    """A sender here and a receiver in a process of its own."""

    def __init__(self, folder: Path) -> None:
        issuer = init_identity(folder / "a", "fleet", "a", now=time.time())
        certificate = issuer.issue(begin_join(folder / "b", "b"), "b", ephemeral=False, now=time.time())
        install_identity(folder / "b", issuer.ca_pem, certificate, node="b", pin=issuer.ca_pin, now=time.time())
        contexts = IdentityContexts(issuer, clock=time.time, revocations={})
        self.bench = Bench(folder / "a")
        self.pipe, far = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=receive, args=(folder / "b", far))
        self.process.start()
        address = self.pipe.recv()
        self.server = BulkServer(contexts, self.bench.depot, Throttle(), Hooks(nothing, nothing, nothing, nothing))
        self.port = Port(self.server.serve)
        hooks = TransferHooks(nothing, nothing, nothing, nothing)
        self.transfers = Transfers(contexts, self.bench.depot, Throttle(), lambda peer: address, hooks)

    def hold(self, content: bytes, name: str) -> Record:
        record = record_of(content, name)
        accepted = self.bench.depot.accept_bytes(content)
        if hasattr(accepted.source, "content"):
            self.bench.manifest.inline[record.digest] = content
        self.bench.manifest.leaves[record.digest] = tuple(leaves_of(content))
        return record

    def hold_file(self, path: Path, name: str) -> Record:
        """As `hold`, for a file that is used up and never wholly in memory."""
        draft = self.bench.depot.draft()
        path.rename(draft)
        accepted = self.bench.depot.accept_draft(draft)
        assert isinstance(accepted.source, Kept)
        self.bench.manifest.places[accepted.source.place.path] = accepted.source.place
        return Record(name, 1, "a", accepted.digest, accepted.blake3, accepted.size)

    def push(self, records: list[Record]) -> tuple[float, float]:
        """Seconds until all is published at the other end, and how many of them publication took."""
        self.pipe.send((records, "", 1))
        assert self.pipe.recv() == "expected"
        return self._timed(len(records), lambda: self.transfers.upload(Upload(1, "b", tuple(map(Parcel, records)))))

    def fetch(self, record: Record, streams: int = 1) -> tuple[float, float]:
        return self._timed(1, lambda: self.pipe.send(([record], self.port.address, streams)))

    def _timed(self, count: int, start: Callable[[], None]) -> tuple[float, float]:
        began = time.monotonic()
        start()
        assert self.pipe.poll(GENEROUS_SECONDS)
        done, failed, published_seconds = self.pipe.recv()
        assert (done, failed) == (count, ()), failed
        return time.monotonic() - began, published_seconds

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join(GENEROUS_SECONDS)
        self.transfers.stop(5)
        self.port.close()
        self.server.stop(5)
        self.bench.depot.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()
    shutil.rmtree(tmp_path)


def test_one_gibibyte_pushed(pair: Pair) -> None:
    record = pair.hold(content_of(128 * MIB) * 8, "model/pushed.bin")
    total, published = pair.push([record])
    print(f"\npush of 1 GiB: {total:.2f} s ({1024 / total:.0f} MiB/s), of which publication {published:.2f} s")


def test_one_gibibyte_fetched(pair: Pair) -> None:
    record = pair.hold(content_of(128 * MIB) * 8, "model/fetched.bin")
    total, published = pair.fetch(record)
    print(f"\nfetch of 1 GiB: {total:.2f} s ({1024 / total:.0f} MiB/s), of which publication {published:.2f} s")


def test_twenty_thousand_small_artifacts_pushed(pair: Pair) -> None:
    records = [pair.hold(content_of(10 << 10, seed), f"npz/{seed % 100}/{seed}.npz") for seed in range(20_000)]
    total, published = pair.push(records)
    print(f"\npush of 20,000 x 10 KiB: {total:.2f} s ({20_000 / total:.0f}/s), of which publication {published:.2f} s")
