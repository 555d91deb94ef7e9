"""Bytes that somebody here waits for and that only a holder whom we cannot dial has: asked for over the session.

A user's `get`, or a peer for whom we are a relay, wants the bytes in staging. When no holder can be dialled, one that
has a session with us is asked to upload them. They are answered from staging, and become a holding only where policy
places them here anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.effects import Answer
from protocol.incoming import Incoming, Wanted
from protocol.messages import Ask, Unreachable
from protocol.sending import RECEIPT_MS_MAX, UPLOAD_BYTES_PER_SECOND_MIN
from protocol.values import Digest, NodeId, Record

if TYPE_CHECKING:
    from protocol.receiving import Receiving

ERRANDS_MAX = 64  # as many as transfers that are received at once


@dataclass(frozen=True, slots=True)
class Errand:
    """One artifact that is asked for. `until_ms`: an upload that has not come by then does not come."""

    request: int
    record: Record
    source: NodeId
    until_ms: int


class Errands:
    """What is asked for, by digest."""

    def __init__(self, receiving: Receiving) -> None:
        self.receiving = receiving
        self.ctx = receiving.ctx
        self.members = receiving.members
        self.open: dict[Digest, Errand] = {}

    def begin(self, request: int, record: Record) -> bool:
        """Ask a holder with a session for an upload; False when there is none, or nobody can dial us either."""
        source = next((n for n in self.receiving.sources(record.digest) if n in self.members.sessions), None)
        busy = record.digest in self.open or len(self.open) >= ERRANDS_MAX
        if source is None or busy or not self.members.own.address:
            return False
        until_ms = self.ctx.now_ms + RECEIPT_MS_MAX + record.size * 1000 // UPLOAD_BYTES_PER_SECOND_MIN
        self.open[record.digest] = Errand(request, record, source, until_ms)
        self.ctx.send(source, Ask(len(self.open), (record.digest,)))
        return True

    def ended(self, complete: list[Record], incoming: Incoming) -> list[Record]:
        """A transfer ended: whoever waits for something of it is answered. What of it is to be published."""
        for digest, why in incoming.failed if incoming.peer != self.ctx.node else ():
            self.failed(digest, why)
        return [record for record in complete if not self._came(record) or self.receiving.policy.wants(record)]

    def _came(self, record: Record) -> bool:
        errand = self.open.pop(record.digest, None)
        if errand is not None:
            self.ctx.emit(Answer(errand.request, "", errand.record))
        return errand is not None

    def unreachable(self, peer: NodeId, message: Unreachable) -> None:
        """The sender of what we took cannot dial us: we fetch it, by whatever way there is."""
        for record in self.receiving.given_up(peer, message.transfer):
            wanted = Wanted(record, self.ctx.now_ms, peer, unconnected_ms=1)
            self.receiving.wanted[record.digest] = wanted
        self.receiving.pump()

    def failed(self, digest: Digest, why: str) -> None:
        errand = self.open.pop(digest, None)
        if errand is not None:
            self.ctx.emit(Answer(errand.request, f"{errand.record.name} could not be fetched: {why}", errand.record))

    def session_down(self, peer: NodeId) -> None:
        for errand in [e for e in self.open.values() if e.source == peer]:
            self.failed(errand.record.digest, f"the session with {peer} ended")

    def tick(self) -> None:
        for errand in [e for e in self.open.values() if e.until_ms <= self.ctx.now_ms]:
            self.failed(errand.record.digest, f"{errand.source} did not upload it in time")
