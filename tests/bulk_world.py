"""Nodes that speak the bulk path over real TLS on loopback, and peers that misbehave, for the tests of that path."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.breakers import Guards
from node.bulk import BulkServer, Hooks
from node.bulk_client import Connection, Connections, Job
from node.bulk_stream import Patience
from node.identity import Identity, begin_join, init_identity, install_identity
from node.parcels import FrameWriter
from node.throttle import Throttle
from node.tls import IdentityContexts
from node.transfers import TransferHooks, Transfers
from node.uploading import begin_push
from protocol.chunks import CHUNK_BYTES, Hasher
from protocol.effects import Report
from protocol.events import Arrived, Pulled, Uploaded
from protocol.values import Digest, Parcel, Record, Stripe
from storage.blobs import Blob, PartialBlob
from storage.files import FileLayer
from storage.folders import place_of, stamp_of
from storage.partials import Chunk, Partial
from tests.depots import Bench

MIB = 1 << 20
GENEROUS_SECONDS = 60.0
_stamps = itertools.count(1)


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def record_of(content: bytes, name: str = "") -> Record:
    hasher = Hasher()
    hasher.update(content)
    digest, plain, _ = hasher.finish()
    stamp = next(_stamps)
    return Record(name or f"model/{stamp}.bin", stamp << 16, "a", digest, plain, len(content))


def leaves_of(content: bytes) -> list[Digest]:
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish()[2]


class Shelf:
    """A real depot whose methods a test can replace, and artifacts to hold in it."""

    def __init__(self, folder: Path, files: FileLayer | None = None) -> None:
        self.bench = Bench(folder, files)
        self.depot = self.bench.depot
        self.batches: list[int] = []

    def hold(self, content: bytes, name: str = "", inline: bool = False) -> Record:
        """Hold these bytes: as a user's own file, or, `inline`, in the WAL."""
        record = record_of(content, name)
        if inline:
            self.bench.manifest.inline[record.digest] = content
        else:
            status = self.bench.write(record.digest.hex(), content).stat()
            place = place_of(record.digest.hex(), record.digest, stamp_of(status))
            self.bench.manifest.places[place.path] = place
            self.bench.manifest.leaves[record.digest] = tuple(leaves_of(content))
        return record

    def path(self, record: Record) -> Path:
        return self.bench.root / record.digest.hex()

    def arrived_bytes(self, record: Record) -> bytes:
        assert self.is_staged(record)
        return (self.bench.store.staging / record.digest.hex()).read_bytes()

    def is_staged(self, record: Record) -> bool:
        with contextlib.closing(self.partial(record)) as partial:
            return partial.complete

    def missing(self, record: Record) -> tuple[Stripe, ...]:
        (missing,) = self.depot.reserve(1, [Parcel(record)]).missing
        return missing

    # What the bulk path calls

    def open_blob(self, digest: Digest) -> Blob | None:
        return self.depot.open_blob(digest)

    def open_partial(self, digest: Digest) -> PartialBlob | None:
        return self.depot.open_partial(digest)

    def leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        return self.depot.leaves(digest)

    def partial(self, record: Record) -> Partial:
        (refusal,) = self.depot.reserve(1, [Parcel(record)]).refused
        assert not refusal
        return self.depot.partial(record)

    def older(self, record: Record) -> Blob | None:
        return self.depot.older(record)

    def arrive_small(self, items: list[tuple[Record, Chunk]]) -> list[tuple[Record, str]]:
        self.batches.append(len(items))
        return self.depot.arrive_small(items)


@dataclass
class Heard:
    """Everything a node was told, and a way to wait for it."""

    arrived: list[Arrived] = field(default_factory=list)
    uploaded: list[Uploaded] = field(default_factory=list)
    pulled: list[Pulled] = field(default_factory=list)
    wrong: list[tuple[str, Digest, str]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, where: list, what: object) -> None:  # type: ignore[type-arg]
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def until(self, true: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, GENEROUS_SECONDS), "it did not happen"

    def arrival(self, count: int = 1) -> Arrived:
        self.until(lambda: len(self.arrived) >= count)
        return self.arrived[count - 1]

    def pull_end(self, number: int) -> Pulled:
        self.until(lambda: any(pulled.number == number for pulled in self.pulled))
        return next(pulled for pulled in self.pulled if pulled.number == number)

    def upload_end(self, count: int = 1) -> Uploaded:
        self.until(lambda: len(self.uploaded) >= count)
        return self.uploaded[count - 1]


class Node:
    """One node: identity, shelf, bulk server behind a real port, transfers."""

    def __init__(self, identity: Identity, folder: Path, patience: Patience, files: FileLayer | None = None) -> None:
        self.name = identity.node
        self.identity = identity
        self.revocations: dict[str, int] = {}
        self.contexts = IdentityContexts(identity, clock=time.time, revocations=self.revocations)
        self.shelf = Shelf(folder, files)
        self.heard = Heard()
        self.addresses: dict[str, str] = {}
        self.throttle = Throttle()
        self.guards = Guards()
        heard = self.heard
        self.server = BulkServer(
            self.contexts,
            self.shelf,
            self.throttle,
            Hooks(
                lambda arrived: heard.add(heard.arrived, arrived),
                lambda *told: heard.add(heard.wrong, told),
                lambda report: heard.add(heard.reports, report),
                lambda *told: heard.add(heard.refused, told),
            ),
            patience,
        )
        self.transfers = Transfers(
            self.contexts,
            self.shelf,
            self.throttle,
            self.addresses.get,
            TransferHooks(
                lambda uploaded: heard.add(heard.uploaded, uploaded),
                lambda arrived: heard.add(heard.arrived, arrived),
                lambda *told: heard.add(heard.wrong, told),
                lambda report: heard.add(heard.reports, report),
                lambda pulled: heard.add(heard.pulled, pulled),
            ),
            patience,
            threads=4,
            guards=self.guards,
        )
        self.connections = Connections(self.contexts, self.addresses.get, patience)
        self.port = Port(self.server.serve)
        self.address = self.port.address

    def close(self) -> None:
        self.throttle.close()
        assert self.transfers.stop(GENEROUS_SECONDS)
        self.port.close()
        assert self.server.stop(GENEROUS_SECONDS)
        self.connections.close()
        self.shelf.depot.close()


class Port:
    """A listening port that gives each connection a thread."""

    def __init__(self, serve: Callable[[socket.socket, str], None]) -> None:
        self._serve = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        self.accepted = 0

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listening.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(sock, f"{address[0]}:{address[1]}"), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(GENEROUS_SECONDS)


class Wire:
    """A wire between a client and a server that counts what the client sends, and is cut when told to."""

    def __init__(self, target: str, cut_after_bytes: int | None = None) -> None:
        self._target = target
        self.cut_after_bytes = cut_after_bytes
        self.sent_bytes = self.came_bytes = 0
        self.port = Port(self._carry)
        self.address = self.port.address

    def _carry(self, near: socket.socket, _: str) -> None:
        host, _, port = self._target.rpartition(":")
        with near, socket.create_connection((host, int(port))) as far:
            back = threading.Thread(target=self._copy, args=(far, near, False), daemon=True)
            back.start()
            self._copy(near, far, True)
            back.join(GENEROUS_SECONDS)

    def _copy(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.sent_bytes += len(piece) if counts else 0
                self.came_bytes += 0 if counts else len(piece)
                if self.cut_after_bytes is not None and self.sent_bytes > self.cut_after_bytes:
                    break
                sink.sendall(piece)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.port.close()


class World:
    """A cluster in a folder."""

    def __init__(self, folder: Path, patience: Patience | None = None) -> None:
        self.folder = folder
        self.patience = patience or Patience()
        self.nodes: dict[str, Node] = {}
        self._issuer = init_identity(folder / "issuer", "fleet", "issuer", now=time.time())
        self._wires: list[Wire] = []

    def node(self, name: str, patience: Patience | None = None, files: FileLayer | None = None) -> Node:
        directory = self.folder / name
        certificate = self._issuer.issue(begin_join(directory, name), name, ephemeral=False, now=time.time())
        identity = install_identity(
            directory, self._issuer.ca_pem, certificate, node=name, pin=self._issuer.ca_pin, now=time.time()
        )
        made = Node(identity, directory / "files", patience or self.patience, files)
        for other in self.nodes.values():
            other.addresses[name] = made.address
            made.addresses[other.name] = other.address
        self.nodes[name] = made
        return made

    def wire(self, near: Node, far: Node, cut_after_bytes: int | None = None) -> Wire:
        """Let `near` reach `far` over a wire that counts."""
        wire = Wire(far.address, cut_after_bytes)
        near.addresses[far.name] = wire.address
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        for wire in self._wires:
            wire.close()


class Pusher:
    """A peer that writes an upload by hand, honestly or not."""

    def __init__(self, near: Node, far: Node, transfer: int) -> None:
        self.job = Job()
        self.connection: Connection = near.connections.take(far.name, self.job)
        self.transfer = transfer
        self.frames = FrameWriter(self.connection.stream)

    def begin(self) -> Pusher:
        begin_push(self.connection, self.transfer)
        return self

    def small(self, record: Record, content: bytes) -> None:
        self.frames.small(record.digest, len(content))[:] = content
        self.frames.keep(len(content))

    def chunk(self, index: int, content: bytes) -> None:
        self.frames.chunk(index, len(content))[:] = content
        self.frames.keep(len(content))

    def large(self, record: Record, content: bytes, size: int | None = None) -> None:
        """Announce and send every chunk of `content` as the record's."""
        self.frames.large(record.digest, record.size if size is None else size, leaves_of(content))
        for at in range(0, len(content), CHUNK_BYTES):
            self.chunk(at // CHUNK_BYTES, content[at : at + CHUNK_BYTES])
        self.frames.close()

    def flush(self) -> None:
        self.frames._flush_from(0)

    def close(self) -> None:
        self.connection.stream.close()


def parcels(records: Sequence[Record]) -> tuple[Parcel, ...]:
    return tuple(Parcel(record) for record in records)


@contextlib.contextmanager
def world_in(folder: Path, patience: Patience | None = None) -> Iterator[World]:
    world = World(folder, patience)
    try:
        yield world
    finally:
        world.close()
