"""Sending one upload: the bytes of many artifacts in one stream, read from the store as they go.

An artifact that is no longer held, or whose file changes while it is sent, is left out with the reason; the others
go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from node.bulk_client import Connection, Job
from node.bulk_store import BulkDepot, read_checked
from node.bulk_stream import StreamBroken, sentence_of
from node.parcels import FrameWriter
from node.progress import DISK, LIMIT, LINK, PEER, Meter
from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_length
from protocol.values import Digest, Parcel, Stripe
from storage.blobs import Blob
from storage.refusals import StoreError

_ANSWER_BYTES_MAX = 1 << 20  # the receiver's list of failures: 1,000 sentences


class Refused(StreamBroken):
    """The receiver does not take this upload; the connection is still good."""


def begin_push(connection: Connection, transfer: int) -> None:
    """Ask whether the upload is welcome before a byte of it is sent. Raises Refused, StreamBroken."""
    headers = {"Transfer-Encoding": "chunked", "Expect": "100-continue", "Content-Type": "application/x-spore-parcels"}
    connection.send_request("POST", f"/v1/push/{transfer}", headers)
    head = connection.read_answer(connection.stream.patience.stall_seconds)
    if head.status != 100:
        sentence = connection.read_sentence(head)
        raise StreamBroken(sentence) if head.closes else Refused(sentence)


def end_push(connection: Connection) -> bool:
    """Read the receiver's answer; whether the connection can be kept. What failed there comes with its receipt."""
    head = connection.read_answer(connection.stream.patience.answer_seconds)
    if head.status != 200:
        raise StreamBroken(connection.read_sentence(head))
    if head.length > _ANSWER_BYTES_MAX:
        raise StreamBroken(f"{connection.peer} answered with {head.length} bytes")
    connection.stream.read_into(memoryview(bytearray(head.length)))
    return not head.closes


class Uploader:
    """Writes the parcels of one transfer to one connection."""

    def __init__(
        self,
        depot: BulkDepot,
        allow: Callable[[int], int],
        connection: Connection,
        meter: Meter,
        job: Job,
        on_left_out: Callable[[Parcel, str], None],
    ) -> None:
        self._depot = depot
        self._allow = allow
        self._meter = meter
        self._job = job
        self._on_left_out = on_left_out
        self._stream = connection.stream
        self._network = LINK
        self._frames = FrameWriter(connection.stream, self._wait_for_turn)

    def send(self, parcels: Sequence[Parcel]) -> None:
        """Send every parcel, bytes named twice once. Raises StreamBroken."""
        sent: set[Digest] = set()
        for parcel in parcels:
            if parcel.record.digest not in sent and not has_nothing_missing(parcel):
                sent.add(parcel.record.digest)
                self._job.go_on()
                self._send_one(parcel)
        self._meter.enter(self._network)
        self._frames.end()

    def _send_one(self, parcel: Parcel) -> None:
        self._meter.enter(DISK)
        blob = None
        try:
            blob = self._depot.open_blob(parcel.record.digest)
            if blob is None:
                raise StoreError("its bytes are no longer here")
            if blob.size != parcel.record.size:
                raise StoreError(f"its bytes are {blob.size} and its record says {parcel.record.size}")
            if chunk_count(parcel.record.size) <= 1:
                self._small(parcel, blob)
            else:
                self._large(parcel, blob)
        except (StoreError, OSError) as problem:
            self._frames.gone(parcel.record.digest, sentence_of(problem))
            self._on_left_out(parcel, sentence_of(problem))
        finally:
            if blob is not None:
                blob.close()

    def _small(self, parcel: Parcel, blob: Blob) -> None:
        size = parcel.record.size
        view = self._frames.small(parcel.record.digest, size)
        try:
            read_checked(blob, view, 0)
        except (StoreError, OSError):
            self._frames.drop_small()
            raise
        self._go(size)

    def _large(self, parcel: Parcel, blob: Blob) -> None:
        leaves = self._depot.leaves(parcel.record.digest)
        if leaves is None:
            raise StoreError("its chunk list is not here")
        self._meter.enter(self._network)
        self._frames.large(parcel.record.digest, parcel.record.size, leaves)
        for index in wanted_chunks(parcel):
            self._job.go_on()
            self._meter.enter(DISK)
            length = chunk_length(parcel.record.size, index)
            view = self._frames.chunk(index, length)
            try:
                read_checked(blob, view, index * CHUNK_BYTES)
            except (StoreError, OSError):
                self._frames.drop_chunk()
                raise
            self._go(length)
        self._frames.close()

    def _go(self, length: int) -> None:
        """What has been read and checked may leave."""
        if length == CHUNK_BYTES:
            self._network = PEER if self._stream.slowed_by_peer() else LINK
        self._meter.enter(self._network)
        self._frames.keep(length)

    def _wait_for_turn(self, wanted_bytes: int) -> int:
        self._meter.enter(LIMIT)
        piece_bytes = self._allow(wanted_bytes)
        self._meter.enter(self._network)
        self._meter.moved(piece_bytes)  # with its few bytes of framing: the meter does not show more than the total
        return piece_bytes


def has_nothing_missing(parcel: Parcel) -> bool:
    """The receiver has every chunk in staging: it said so with stripes of no chunks (no stripes would mean all)."""
    return bool(parcel.stripes) and not any(stripe.count for stripe in parcel.stripes)


def wanted_chunks(parcel: Parcel) -> Iterable[int]:
    """Indices of the chunks a parcel asks for, within the artifact, each once."""
    total = chunk_count(parcel.record.size)
    reached = 0
    for stripe in sorted(parcel.stripes or (Stripe(0, total),), key=lambda s: s.first):
        yield from range(max(stripe.first, reached), min(stripe.first + stripe.count, total))
        reached = max(reached, stripe.first + stripe.count)
