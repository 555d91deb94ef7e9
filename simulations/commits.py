"""Simulated group commit: the contract of `node.commits`, with a crash possible between any two of its steps.

Durable effects queue; one group at a time is written: the WAL and its sync, then the manifest, then `Durable`. What
comes meanwhile makes the next group. When the disk fails, the whole group fails and none of it is remembered.
"""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

from protocol.effects import Commit, Entry, Log
from protocol.events import Durable, DurableFailed, Event
from protocol.values import Record, RecordKey
from simulations.chance import between
from simulations.disks import LocalDisk
from simulations.oracle import Oracle
from simulations.schedule import Act

GROUP_MAX = 2_000  # as in the agent
SYNC_MS = (1, 8)  # a disk of 4 ms, more or less


class Owner(Protocol):
    """What a committer needs of its node."""

    name: str
    io_fails: bool

    def later(self, delay_ms: int, act: Act, *args: Any) -> None: ...

    def handle(self, event: Event) -> None: ...

    def burn(self, knob: str) -> None: ...

    def bite(self, knob: str) -> None: ...


class SimCommitter:
    """One node's writer of WAL and manifest, for one life."""

    def __init__(self, owner: Owner, disk: LocalDisk, random: Random, oracle: Oracle) -> None:
        self.owner = owner
        self.disk = disk
        self.random = random
        self.oracle = oracle
        self.queue: list[Log | Commit] = []
        self.unsynced: list[Entry] = []
        self._busy = False

    def add(self, effect: Log | Commit) -> None:
        self.queue.append(effect)
        self._kick()

    def release(self, records: tuple[Record, ...]) -> None:
        for record in records:
            if record.key in self.disk.wal:
                self.disk.released[record.key] = None
        self._kick()

    def _kick(self) -> None:
        if not self._busy:
            self._busy = True
            self.owner.later(0, self._begin)

    def _begin(self) -> None:
        group, self.queue = self.queue[:GROUP_MAX], self.queue[GROUP_MAX:]
        self.unsynced = [effect.entry for effect in group if isinstance(effect, Log)]
        self.owner.later(between(self.random, *SYNC_MS), self._synced, group)

    def _synced(self, group: list[Log | Commit]) -> None:
        """The WAL is on the disk; releases are written down after it."""
        self.owner.burn("crash_in_commit")
        if self.owner.io_fails and group:
            self.unsynced = []
            self._failed(group, "no space left on device")
            return
        keys: list[RecordKey] = []
        for entry in self.unsynced:
            self.disk.wal[entry.record.key] = entry
            self.disk.released.pop(entry.record.key, None)
            keys.append(entry.record.key)
        self.unsynced = []
        self.disk.write_releases()
        self.owner.burn("crash_in_commit")
        self.owner.later(between(self.random, 0, 3), self._apply, group, keys)

    def _apply(self, group: list[Log | Commit], keys: list[RecordKey]) -> None:
        """The manifest's transaction, or its failure: then the entries of this group protect nothing."""
        self.owner.burn("crash_in_commit")
        if self.owner.io_fails and group:
            for key in keys:
                self.disk.released[key] = None
            self._failed(group, "the manifest does not take writes")
            return
        batches = [effect.batch for effect in group if isinstance(effect, Commit)]
        self.disk.catalogue.apply(batches)
        for batch in batches:
            self.oracle.committed(self.owner.name, batch)
        self.owner.burn("crash_in_commit")
        self.owner.later(between(self.random, 0, 2), self._told, group)

    def _told(self, group: list[Log | Commit]) -> None:
        for effect in group:
            if isinstance(effect, Log):
                self.oracle.logged(self.owner.name, effect.entry)
        if group:
            self.owner.handle(Durable(group[-1].seq))
        self._next()

    def _failed(self, group: list[Log | Commit], why: str) -> None:
        self.owner.bite("commit_failed")
        self.owner.handle(DurableFailed(group[0].seq, group[-1].seq, why))
        self._next()

    def _next(self) -> None:
        self._busy = False
        if self.queue or self.disk.released:
            self._kick()
