"""Disk room: the one home of the arithmetic that decides whether another byte may come.

Used percent is used / (used + available), as df prints it: blocks reserved for root count as neither. Three limits:
a cap in percent and an optional number of bytes govern what is held for others, `min_free_bytes` is where
acceptance of our own stops. A reservation counts from the moment it is made until its blocks are allocated; from
then on the file system itself counts them. What cannot be measured is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from protocol.fleet import Routing
from protocol.values import Digest
from storage.files import FileLayer
from storage.refusals import NoRoom

RESUME_POINTS = 2.0  # stop and resume apart by this much of the disk, so that one deletion does not flap the bit
RESUME_SHARE = 8  # local acceptance resumes an eighth of `min_free_bytes` above where it stopped
DEFAULTS = Routing()  # of every threshold: stated once, in `protocol.fleet`
BLOCK_BYTES = 4096  # a file takes whole blocks; many small ones would otherwise be counted at a fraction


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What a disk says of itself; from statvfs or, in tests and the demo, from explicit numbers."""

    used_bytes: int
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.used_bytes + self.available_bytes

    @property
    def used_percent(self) -> float:
        return 100.0 * self.used_bytes / self.total_bytes if self.total_bytes else 100.0


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """The thresholds, each from one key of the hosts file; `max_bytes` (None: none) bounds what is held for others."""

    cap_percent: float = DEFAULTS.disk_cap_percent
    min_free_bytes: int = DEFAULTS.min_free_bytes
    max_bytes: int | None = DEFAULTS.max_bytes
    emergency_disk_percent: float = DEFAULTS.emergency_disk_percent

    @property
    def emergency_percent(self) -> float:
        """Never below the cap, which holds without anything having to go; and apart from it by the hysteresis."""
        return max(self.emergency_disk_percent, self.cap_percent + RESUME_POINTS)

    @classmethod
    def of(cls, routing: Routing) -> RoomLimits:
        return cls(routing.disk_cap_percent, routing.min_free_bytes, routing.max_bytes, routing.emergency_disk_percent)


@dataclass(frozen=True, slots=True)
class RoomState:
    """The room at one moment, for the core (`DiskChanged`) and for `spore status`."""

    accepting: bool
    local: bool
    used_percent: float
    cap_percent: float
    capacity_bytes: int
    used_bytes: int
    reserved_bytes: int
    held_bytes: int = 0  # for others, by us
    max_bytes: int | None = None
    excess_bytes: int = 0  # must go to end an emergency; 0 when there is none


@dataclass(slots=True)
class _Reservation:
    size_bytes: int
    pending_bytes: int  # not yet allocated on the disk; 0 once the file system counts them
    transfers: set[int] = field(default_factory=set)


def disk_usage(files: FileLayer, path: Path) -> DiskUsage | None:
    """The usage of the file system at a path; None when it cannot be measured."""
    try:
        status = files.statvfs(path)
    except OSError:
        return None
    used_bytes = (status.f_blocks - status.f_bfree) * status.f_frsize
    usage = DiskUsage(used_bytes, status.f_bavail * status.f_frsize)
    return usage if usage.total_bytes > 0 else None


class Room:
    """Reservations and the two bits with hysteresis. Thread-safe; `usage` and `held_bytes` are called under its lock.

    `usage` gives None for unknown. `held_bytes` is what we hold for others already, for `max_bytes`.
    """

    def __init__(
        self,
        limits: RoomLimits,
        usage: Callable[[], DiskUsage | None],
        held_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._limits = limits
        self._usage = usage
        self._held_bytes = held_bytes
        self._lock = threading.Lock()
        self._reservations: dict[Digest, _Reservation] = {}
        self._pending_bytes = 0  # sums over the reservations, kept so that each look costs the same
        self._reserved_bytes = 0
        self._accepting = True
        self._local = True
        self._emergency = False
        self._held_since = 0  # published for others since `held_bytes` was counted

    def set_limits(self, limits: RoomLimits) -> None:
        with self._lock:
            self._limits = limits

    def state(self) -> RoomState:
        with self._lock:
            usage = self._usage()
            self._decide(usage)
            seen = usage or DiskUsage(0, 0)
            return RoomState(
                self._accepting,
                self._local,
                seen.used_percent,
                self._limits.cap_percent,
                seen.total_bytes,
                seen.used_bytes,
                self._pending_bytes,
                self._held_bytes() + self._held_since,
                self._limits.max_bytes,
                self._excess_bytes(usage),
            )

    def reserve(self, transfer: int, digest: Digest, size_bytes: int) -> str:
        """Count `size_bytes` before they come. "" when there is room, else the refusal in a sentence."""
        return self.reserve_many(transfer, [(digest, size_bytes)])[0]

    def reserve_many(self, transfer: int, sizes: Iterable[tuple[Digest, int]]) -> list[str]:
        """The same for many at once, with one look at the disk: what is reserved counts before it is allocated."""
        with self._lock:
            usage = self._usage()
            return [self._reserve(transfer, digest, size_bytes, usage) for digest, size_bytes in sizes]

    def _reserve(self, transfer: int, digest: Digest, size_bytes: int, usage: DiskUsage | None) -> str:
        known = self._reservations.get(digest)
        if known:
            known.transfers.add(transfer)
            return ""
        whole_bytes = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self._decide(usage)
        refusal = self._refusal(usage, whole_bytes)
        if not refusal:
            self._reservations[digest] = _Reservation(whole_bytes, whole_bytes, {transfer})
            self._pending_bytes += whole_bytes
            self._reserved_bytes += whole_bytes
        return refusal

    def allocated(self, digest: Digest) -> None:
        """The blocks of a reservation are on the disk: the file system counts them from here on."""
        with self._lock:
            known = self._reservations.get(digest)
            if known:
                self._pending_bytes -= known.pending_bytes
                known.pending_bytes = 0

    def release(self, transfer: int, digest: Digest | None = None) -> None:
        """Give back what a transfer reserved: one digest, or all of them."""
        with self._lock:
            for each in [digest] if digest else list(self._reservations):
                known = self._reservations.get(each)
                if known:
                    known.transfers.discard(transfer)
                    if not known.transfers:
                        del self._reservations[each]
                        self._pending_bytes -= known.pending_bytes
                        self._reserved_bytes -= known.size_bytes

    def published(self, size_bytes: int) -> None:
        """Bytes for others have their final place: they count as held, though nobody has counted them anew yet."""
        with self._lock:
            self._held_since += size_bytes

    def counted_anew(self, published_before: int) -> None:
        """`held_bytes` says something new, with what was published until then: `published_since` at that time."""
        with self._lock:
            self._held_since -= published_before

    def published_since(self) -> int:
        with self._lock:
            return self._held_since

    def is_reserved(self, digest: Digest) -> bool:
        with self._lock:
            return digest in self._reservations

    def require_local(self, size_bytes: int) -> None:
        """Raises NoRoom where acceptance of our own bytes stops."""
        with self._lock:
            usage = self._usage()
            self._decide(usage)
            if usage is None:
                raise NoRoom("the free space of the disk cannot be measured; check that the root is mounted")
            left_bytes = usage.available_bytes - self._pending_bytes - size_bytes
            if not self._local or left_bytes < self._limits.min_free_bytes:
                raise NoRoom(
                    f"the disk has {usage.available_bytes} bytes free and min_free_bytes is "
                    f"{self._limits.min_free_bytes}; free some space or lower min_free_bytes"
                )

    def _refusal(self, usage: DiskUsage | None, size_bytes: int) -> str:
        if usage is None:
            return "the free space of the disk cannot be measured"
        used_bytes = usage.used_bytes + self._pending_bytes + size_bytes
        cap_bytes = usage.total_bytes * self._limits.cap_percent / 100.0
        if not self._accepting or used_bytes > cap_bytes:
            return f"the disk is {usage.used_percent:.1f}% used and its cap is {self._limits.cap_percent:g}%"
        if usage.total_bytes - used_bytes < self._limits.min_free_bytes:
            return f"less than min_free_bytes ({self._limits.min_free_bytes}) would stay free"
        max_bytes = self._limits.max_bytes
        if max_bytes is not None and self._held_and_reserved_bytes() + size_bytes > max_bytes:
            return f"this node holds its limit of {max_bytes} bytes for others"
        return ""

    def _decide(self, usage: DiskUsage | None) -> None:
        """Set both bits from what is used and reserved now; between stop and resume they stay as they are."""
        if usage is None:
            self._accepting = self._local = False
            return
        pending_bytes = self._pending_bytes
        used_percent = 100.0 * (usage.used_bytes + pending_bytes) / usage.total_bytes
        resume_percent = self._limits.cap_percent - RESUME_POINTS
        self._accepting = used_percent < (self._limits.cap_percent if self._accepting else resume_percent)
        stop_bytes = self._limits.min_free_bytes
        resume_bytes = stop_bytes + stop_bytes // RESUME_SHARE
        free_bytes = usage.available_bytes - pending_bytes
        self._local = free_bytes >= (stop_bytes if self._local else resume_bytes)
        self._accepting = self._accepting and self._local and not self._over_max_bytes()

    def _excess_bytes(self, usage: DiskUsage | None) -> int:
        """What must go: down to the hysteresis below the emergency, or above `min_free_bytes`. A disk that cannot be
        measured is no emergency: nothing goes for want of knowledge."""
        if usage is None:
            self._emergency = False
            return 0
        stop_bytes = self._limits.min_free_bytes
        begins = usage.used_percent > self._limits.emergency_percent or usage.available_bytes < stop_bytes
        share = self._limits.emergency_percent - RESUME_POINTS
        over_bytes = usage.used_bytes - int(usage.total_bytes * share / 100.0)
        short_bytes = stop_bytes + stop_bytes // RESUME_SHARE - usage.available_bytes
        excess_bytes = max(0, over_bytes, short_bytes)
        self._emergency = bool(excess_bytes) and (begins or self._emergency)
        return excess_bytes if self._emergency else 0

    def _over_max_bytes(self) -> bool:
        max_bytes = self._limits.max_bytes
        return max_bytes is not None and self._held_and_reserved_bytes() >= max_bytes

    def _held_and_reserved_bytes(self) -> int:
        return self._held_bytes() + self._held_since + self._reserved_bytes
