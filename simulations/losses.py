"""What a rehearsal lost: which accepted artifacts no disk has any more, and why each was not safe."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.values import NodeId, Record, State
from simulations.oracle import Oracle, Promise


@dataclass(frozen=True, slots=True)
class Loss:
    """One artifact that was accepted and is on no disk. `receipts` counts stores other than the origin's, as ever."""

    name: str
    size: int
    origin: NodeId
    accepted_seconds: float
    receipts: int
    needed: int
    why: str


def losses(oracle: Oracle) -> tuple[Loss, ...]:
    """In the order in which they were accepted."""
    found = []
    for promise in oracle.promises.values():
        record = oracle.newest_with(promise)
        if not oracle.superseded(record) and not oracle.elsewhere(record.digest):
            found.append(_loss(oracle, promise, record))
    return tuple(sorted(found, key=lambda loss: (loss.accepted_seconds, loss.name)))


def _loss(oracle: Oracle, promise: Promise, record: Record) -> Loss:
    receipts = oracle.copies(record)
    needed = oracle.needed(record)
    accepted_ms = oracle.accepted_at_ms.get(record.key, 0)
    return Loss(
        record.name,
        record.size,
        record.origin,
        accepted_ms / 1000,
        receipts,
        needed,
        _why(oracle, record, receipts, needed, accepted_ms),
    )


def _why(oracle: Oracle, record: Record, receipts: int, needed: int, accepted_ms: int) -> str:
    holders = _holders(oracle, record)
    gone = oracle.gone.get(record.origin)
    if receipts < needed and gone is not None:
        after = (gone - accepted_ms) / 1000
        return f"{record.origin} was gone {after:.1f} s after accepting it, with {receipts} of {needed} receipts"
    if receipts < needed:
        return f"it had {receipts} of {needed} receipts"
    only = ", all ephemeral" if all(oracle.fleet.host(node).ephemeral for node in holders) else ""
    return f"it was durable, and all {len(holders)} holders are gone{only}: {', '.join(holders)}"


def _holders(oracle: Oracle, record: Record) -> list[NodeId]:
    """One node for each store that had these bytes and is gone (an excluded origin hands them on, and stays)."""
    stores = [store for store in oracle.distinct_stores() if store.gone and record.digest in store.held_since]
    return [next(node for node in sorted(oracle.stores) if oracle.stores[node] is store) for store in stores]


def at_risk(oracle: Oracle) -> int:
    """Accepted artifacts that are still there and on fewer live stores than their policy asks for."""
    count = 0
    for promise in oracle.promises.values():
        record = oracle.newest_with(promise)
        if record.state is not State.LIVE or oracle.superseded(record) or not oracle.elsewhere(record.digest):
            continue
        own = oracle.stores[record.origin].store
        others = sum(store.holds(record.digest) for store in oracle.distinct_stores() if store.store != own)
        count += others < oracle.needed(record)
    return count
