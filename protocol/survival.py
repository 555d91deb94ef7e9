"""The survivability meter: what would be lost if this node died now, and what of it the provider's notice could save.

Bytes at risk must stay below notice times uplink all the time, and near zero where no notice comes. From half of it on,
pushing is urgent: it goes before everything else that leaves this node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.debts import Debt

USABLE = 0.8  # of notice times uplink: what was seen to be saved in every run, the rest syncs and starts
URGENT = 0.5  # of what the notice can carry
CARRIED_BYTES_MIN = 8 << 20  # without a notice a node must still have something on its way: one offer of small ones


@dataclass(frozen=True, slots=True)
class Meter:
    """If this node died now: so many artifacts, bytes and kinds would be gone, and a notice could save so many."""

    lost_artifacts: int
    lost_bytes: int
    lost_kinds: tuple[str, ...]
    notice_seconds: float
    uplink_bytes_per_second: int | None  # None: nothing limits it, as far as is known
    savable_artifacts: int
    savable_bytes: int


def measure(debts: Iterable[Debt], notice_seconds: float, uplink_bytes_per_second: int | None) -> Meter:
    """Of these open debts of our own, those that nobody else has any copy of."""
    alone = [debt.record for debt in debts if not debt.receipts]
    room = carried_bytes(notice_seconds, uplink_bytes_per_second)
    saved = saved_bytes = 0
    for size in sorted(record.size for record in alone):
        if room is not None and saved_bytes + size > room:
            break
        saved, saved_bytes = saved + 1, saved_bytes + size
    kinds = tuple(sorted({record.kind for record in alone}))
    lost_bytes = sum(record.size for record in alone)
    return Meter(len(alone), lost_bytes, kinds, notice_seconds, uplink_bytes_per_second, saved, saved_bytes)


def carried_bytes(notice_seconds: float, uplink_bytes_per_second: int | None) -> int | None:
    """What a notice can carry away; None where nothing is known to limit it."""
    if not notice_seconds:
        return 0
    return None if uplink_bytes_per_second is None else int(notice_seconds * uplink_bytes_per_second * USABLE)


def is_urgent(debt_bytes: int, notice_seconds: float, uplink_bytes_per_second: int | None) -> bool:
    """Whether the debt nears what the notice can carry."""
    room = carried_bytes(notice_seconds, uplink_bytes_per_second)
    return room is not None and debt_bytes > max(room, CARRIED_BYTES_MIN) * URGENT


def is_too_much(debt_bytes: int, notice_seconds: float, uplink_bytes_per_second: int | None) -> bool:
    """Whether a put that waits for copies should wait before it is accepted: the debt passes what can be carried."""
    room = carried_bytes(notice_seconds, uplink_bytes_per_second)
    return room is not None and debt_bytes > max(room, CARRIED_BYTES_MIN)
