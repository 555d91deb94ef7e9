"""The carrier's side of the relay: what others asked us to bring, how far it is, and serving it to them.

Bounded: `max_relays` errands at a time, room reserved as for every fetch, and an errand that nobody asks after for a
minute is dropped. Nothing that is carried makes this node a holder. `status`, the log and two metrics show it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from node.bulk_stream import sentence_of
from protocol.effects import Report
from protocol.values import Digest, NodeId, Record
from storage.blobs import Blob
from storage.partials import Partial

FORGOTTEN_SECONDS = 60.0  # whoever waits for an errand asks every half second
COMING, HERE, FAILED = "coming", "here", "failed"


class StagingDepot(Protocol):
    """What is served here: verified bytes in staging that are nobody's holding."""

    def open_staged(self, record: Record) -> Blob | None: ...

    def partial(self, record: Record) -> Partial: ...

    def forget_staged(self, record: Record) -> None: ...


@dataclass(slots=True, eq=False)
class Errand:
    """One artifact that is brought for others."""

    digest: Digest
    future: Future[Record]
    asked_at: dict[NodeId, float] = field(default_factory=dict)
    done: bool = False  # somebody had it from here

    @property
    def state(self) -> str:
        if not self.future.done():
            return COMING
        return FAILED if self.future.cancelled() or self.future.exception() else HERE

    def why(self) -> str:
        problem = None if self.future.cancelled() else self.future.exception()
        return sentence_of(problem or "it was dropped")

    def record(self) -> Record | None:
        return self.future.result() if self.state == HERE else None


class RelayDesk:
    """Thread-safe. `bring` starts a fetch into staging and returns its future; `progress` tells how far it is."""

    def __init__(
        self,
        node: NodeId,
        depot: StagingDepot,
        bring: Callable[[Digest], Future[Record]],
        progress: Callable[[Digest], int],
        errands_max: Callable[[], int],
        report: Callable[[Report], None],
    ) -> None:
        self._node = node
        self._depot = depot
        self._bring = bring
        self._progress = progress
        self._errands_max = errands_max
        self._report = report
        self._lock = threading.Lock()
        self._errands: dict[Digest, Errand] = {}
        self.carried = 0  # artifacts handed over since the start
        self.carried_bytes = 0

    def ask(self, peer: NodeId, digest: Digest) -> tuple[int, dict[str, object]]:
        """A peer wants these bytes carried, or asks how far they are: the status and body of the answer."""
        errand, why = self._errand(peer, digest)
        if errand is None:
            return 503, {"error": why}
        match errand.state:
            case "here":
                return 200, {"here": True}
            case "coming":
                return 200, {"here": False, "bytes_done": self._progress(digest)}
        self._drop(errand)
        return 503, {"error": f"{self._node} could not bring it: {errand.why()}"}

    def finish(self, peer: NodeId, digest: Digest) -> tuple[int, dict[str, object]]:
        """The peer has it: count it, and keep it no longer than others want it."""
        with self._lock:
            errand = self._errands.get(digest)
            record = errand.record() if errand else None
            if errand is None or record is None or errand.asked_at.pop(peer, None) is None:
                return 200, {"here": False}
            errand.done = True
            self.carried += 1
            self.carried_bytes += record.size
            wanted = bool(errand.asked_at)
        self._report(Report("info", "relayed", f"{record.name} ({record.size} bytes) was carried to {peer}"))
        if not wanted:
            self._drop(errand)
        return 200, {"here": True}

    def open_blob(self, peer: NodeId, digest: Digest) -> Blob | None:
        """The bytes of an errand, for whom it was run."""
        record = self._for(peer, digest)
        return self._depot.open_staged(record) if record else None

    def leaves(self, peer: NodeId, digest: Digest) -> tuple[Digest, ...] | None:
        record = self._for(peer, digest)
        if record is None:
            return None
        partial = self._depot.partial(record)
        try:
            return partial.leaves()
        finally:
            partial.close()

    def tidy(self) -> None:
        """Drop what nobody asks after any more; to be called now and then."""
        oldest = time.monotonic() - FORGOTTEN_SECONDS
        with self._lock:
            for errand in self._errands.values():
                errand.asked_at = {peer: at for peer, at in errand.asked_at.items() if at > oldest}
            idle = [errand for errand in self._errands.values() if not errand.asked_at]
        for errand in idle:
            self._drop(errand)

    def facts(self) -> list[dict[str, object]]:
        """For `status`: every errand under way."""
        with self._lock:
            errands = list(self._errands.values())
        return [
            {"digest": errand.digest.hex(), "for": sorted(errand.asked_at), "state": errand.state} for errand in errands
        ]

    def _errand(self, peer: NodeId, digest: Digest) -> tuple[Errand | None, str]:
        with self._lock:
            errand = self._errands.get(digest)
            if errand is None:
                most = self._errands_max()
                if len(self._errands) >= most:
                    return (
                        None,
                        f"{self._node} carries {len(self._errands)} artifacts for others and {most} is its most",
                    )
                errand = self._errands[digest] = Errand(digest, self._bring(digest))
                self._report(
                    Report("info", "relay", f"{digest.hex()[:12]} is brought for {peer}, which cannot reach it")
                )
            errand.asked_at[peer] = time.monotonic()
            return errand, ""

    def _for(self, peer: NodeId, digest: Digest) -> Record | None:
        with self._lock:
            errand = self._errands.get(digest)
            if errand is None or peer not in errand.asked_at:
                return None
            errand.asked_at[peer] = time.monotonic()
            return errand.record()

    def _drop(self, errand: Errand) -> None:
        with self._lock:
            if self._errands.get(errand.digest) is errand:
                del self._errands[errand.digest]
        errand.future.cancel()
        record = errand.record()
        if record is not None:
            self._depot.forget_staged(record)
