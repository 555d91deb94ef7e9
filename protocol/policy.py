"""What policy wants in our own store: strategies, roles, first targets, retention, and who fetches for a group."""

from __future__ import annotations

from protocol.broadcasts import Broadcasts
from protocol.context import Context
from protocol.debts import Debts
from protocol.fleet import RESERVED_KIND, Kind
from protocol.membership import Membership
from protocol.names import publication_path, publishable
from protocol.pins import Pins
from protocol.placement import targets, wanted_by_role
from protocol.values import Record, State


class Policy:
    """Answers for one node; decides nothing, changes nothing."""

    def __init__(self, ctx: Context, members: Membership, debts: Debts, pins: Pins) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.pins = pins
        self.broadcasts = Broadcasts(ctx)

    def receives(self, kind: str) -> bool:
        """Whether this node may become a holder of a kind: said by the hosts file, or by how it joined."""
        return not self.ctx.excluded and self.ctx.fleet.receives(self.ctx.node, kind)

    def refusal(self, record: Record) -> str:
        """Why this node may not take these bytes, whatever its disk says; "" when it may."""
        kind, node = self.ctx.kind(record.name), self.ctx.node
        if self.ctx.excluded:
            return f"{node} is excluded from sync"
        if kind is None or record.kind == RESERVED_KIND:
            return f"kind {record.kind} is not in the hosts file of {node}"
        if not self.receives(record.kind):
            return f"{node} does not receive the kind {record.kind}"
        if record.state is not State.LIVE or self.ctx.deleted(record):
            return "it was deleted"
        if not publishable(record.name, record.origin, kind.namespace == "node"):
            return f"the name {record.name} does not belong to {record.origin}"
        expired = self.ctx.expired(record) and self.members.policies_agree() and not self.ctx.holds(record.digest)
        return f"it is older than expire_after of the kind {record.kind} on {node}" if expired else ""

    def wants(self, record: Record) -> bool:
        """Whether policy, as far as it can be told without a look-up, places this record here for good: by the role of
        this node, a pin or a broadcast. The K copies that make it durable stay where they are once there are K."""
        kind = self.ctx.kind(record.name)
        if kind is None or not self.receives(record.kind):
            return False
        role = self.ctx.host.role
        if wanted_by_role(kind, role) or self.pins.pinned_here(record.name):
            return True
        return self.broadcasts.reaches(record, kind, role)

    def places_here(self, record: Record) -> bool:
        """Whether policy places this record's bytes in our store."""
        kind = self.ctx.kind(record.name)
        if kind is None or record.state is not State.LIVE or record.origin == self.ctx.node:
            return False
        if not self.wants(record) and not self._completes(kind, record):
            return False
        if not publishable(record.name, record.origin, kind.namespace == "node"):
            return False
        return not self._beyond_retention(kind, record)

    def drops(self, record: Record) -> bool:
        """Whether this version is deleted, superseded, or of a kind that our hosts file does not have."""
        kind = self.ctx.kind(record.name)
        return kind is None or self._beyond_retention(kind, record)

    def path(self, record: Record) -> str | None:
        """Under which path the bytes of this record lie in our root; None: among the private versions."""
        path = self.wished_path(record)
        return path if path and self._may_take(path, record) else None

    def wished_path(self, record: Record) -> str | None:
        """The path that the name stands for, unless a newer version has it."""
        kind = self.ctx.kind(record.name)
        newest = next((v for v in self.ctx.versions(record.name) if v.state is State.LIVE), None)
        if kind is None or (newest is not None and newest.order > record.order and newest.digest != record.digest):
            return None
        if kind.snapshot and record.origin == self.ctx.node:
            return None  # its path is that of the live database
        return publication_path(record.name, record.origin, self.ctx.node, kind.namespace == "node")

    def _may_take(self, path: str, record: Record) -> bool:
        """Names of two kinds can share a path; whoever has it keeps it, or they would push each other out for ever."""
        place = self.ctx.catalogue.place(path)
        if place is None or place.digest == record.digest:
            return True
        sharers = self.ctx.catalogue.sharers(place.digest)
        return not sharers or any(sharer.name == record.name for sharer in sharers)

    def is_target(self, record: Record) -> bool:
        """Whether we are among the first K stores of this record, as its origin sees it."""
        around = self.debts.pool_of(record)
        first = targets(around.seats, around.copies, around.domains)
        return any(seat.store == self.ctx.store for seat in first)

    def receives_for_store(self) -> bool:
        """In an NFS group, of the members that may receive the first in name order fetches for all."""
        mates = [node for node, x in self.members.alive.items() if x.store == self.ctx.store]
        able = [n for n in mates if self.members.alive[n].accepting and not self.members.alive[n].excluded]
        return all(self.ctx.node < node for node in able)

    def _completes(self, kind: Kind, record: Record) -> bool:
        """Whether we are one of the K that make it durable, while there are fewer: a copy that is there stays where it
        is, whoever joins, so that nothing moves without need."""
        if kind.strategy == "pull" or not self.receives(record.kind):
            return False
        return self.is_target(record) and not self.debts.enough(record, 0, 0)

    def _beyond_retention(self, kind: Kind, record: Record) -> bool:
        kept = 0
        for version in self.ctx.versions(record.name):  # newest first
            if version.state is State.DELETED:
                return True
            if version.key == record.key:
                return kept >= kind.versions
            kept += version.state is State.LIVE
        return True
