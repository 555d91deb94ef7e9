"""What is on its way in, and what should be: the values that `receiving` keeps its account with."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from protocol.values import Digest, Holding, NodeId, Record

ALONE_MS = 5_000  # a dial takes less, and the next holder is asked meanwhile


@dataclass(slots=True)
class Incoming:
    """One transfer being received: from a peer's offer, or our own fetch (then `peer` is our own node)."""

    peer: NodeId
    transfer: int
    offered: list[Record]
    verdicts: list[str]  # aligned with the offer: "" to take, else why not
    request: int = 0  # a user's `get`: fetch only, hold nothing
    direct: bool = False  # a fetch that may not go through a relay: it is for one
    offered_by: NodeId = ""  # a source of our own fetch that may not have stated its holding
    answers: bool = False  # the offer answers an Ask of ours; else it is a push, of what its sender owes
    pushed: bool = False  # our own fetch, begun because its bytes were offered: nobody else wants them here
    offers: dict[NodeId, int] = field(default_factory=dict)  # offers that our own fetch answers, by who made them
    deadline_ms: int = 0  # when its sender must have given up too; 0 before the Take, and for our own fetches
    holdings: list[Holding] = field(default_factory=list)
    failed: list[tuple[Digest, str]] = field(default_factory=list)

    @property
    def key(self) -> tuple[NodeId, int]:
        return (self.peer, self.transfer)

    def accepted(self) -> list[Record]:
        return [record for record, why in zip(self.offered, self.verdicts, strict=True) if not why]


@dataclass(slots=True)
class Wanted:
    """An artifact that should lie here: when to begin, and who offered it (it may be nobody's holding yet)."""

    record: Record
    due_ms: int
    offered_by: NodeId = ""
    tries: int = 0  # how often it was asked of somebody
    unconnected_ms: int = 0  # since when no session with a holder could be had; 0: none was missed

    def alone(self, now_ms: int) -> bool:
        """Whether no holder can be asked for an upload: then the driver fetches it, by whatever way there is."""
        return bool(self.unconnected_ms) and now_ms - self.unconnected_ms >= ALONE_MS


def hash_order(node: NodeId, own: NodeId) -> int:
    """A stable order of peers that differs from node to node."""
    return int.from_bytes(blake2b(f"{node}\0{own}".encode(), digest_size=4).digest(), "big")
