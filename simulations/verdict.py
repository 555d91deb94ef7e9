"""The verdict: what must be true once everything is healed, and what must be true in the end."""

from __future__ import annotations

from protocol.names import publication_path, publishable
from protocol.values import Digest, NodeId, Record, RecordKey, State, StoreId
from simulations.driver import SimNode
from simulations.oracle import Promise
from simulations.surroundings import Surroundings


class Verdict:
    """Looks at all nodes at once, as no node can."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode]) -> None:
        self.around = around
        self.oracle = around.oracle
        self.nodes = nodes
        self.lost: list[str] = []

    def living(self) -> list[SimNode]:
        return [self.nodes[name] for name in sorted(self.nodes) if self.nodes[name].up]

    # --- liveness ---

    def open_matters(self) -> list[str]:
        """What is not settled yet, cheapest questions first; empty when all is well."""
        living = self.living()
        folds = {node.disk.catalogue.sketch().fold(): node.name for node in living}
        if len(folds) > 1:
            return [f"{' and '.join(sorted(folds.values()))} do not have the same rows"]
        matters = [matter for node in living for matter in self._open_in(node)]
        return matters or self._few_copies()

    def _open_in(self, node: SimNode) -> list[str]:
        replica = node.replica
        counts = (
            ("unsettled debts", len([d for d in replica.debts.open.values() if not self._hopeless(d.record)])),
            ("transfers coming in", len(replica.receiving.incoming)),
            ("artifacts being pulled", len(replica.swarming.under_way)),
            ("digests arriving", len(replica.receiving.arriving)),
            ("offers open", sum(len(lane.offers) for lane in replica.sending.lanes.values())),
            ("commits under way", len(replica.ctx._started)),
            ("rows shown before they are durable", len(replica.ctx._records) + len(replica.ctx._holdings)),
            ("entries in its WAL", len([e for e in node.disk.pending() if not self._hopeless(e.record)])),
            ("requests waiting", replica.debts.waiting()),
        )
        return [f"{node.name} still has {count} {what}" for what, count in counts if count]

    def _hopeless(self, record: Record) -> bool:
        """Fewer stores are eligible than it needs receipts: it stays at risk, and says so."""
        return len(self._eligible(record)) < self.oracle.needed(record)

    def _eligible(self, record: Record) -> dict[StoreId, None]:
        own = self.oracle.stores[record.origin].store
        stores: dict[StoreId, None] = {}
        for node in self.living():
            host = self.around.fleet.host(node.name)
            if not host.excluded and node.depot.accepting and node.store.store != own:
                stores[node.store.store] = None
        return stores

    def _few_copies(self) -> list[str]:
        """Every live version has its receipts, on disks and not only in rows."""
        matters = []
        for record in self._live_records():
            own = self.oracle.stores[record.origin].store
            holders = [s for s in self.oracle.distinct_stores() if s.store != own and s.holds(record.digest)]
            needed = min(self.oracle.needed(record), len(self._eligible(record)))
            if len(holders) < needed and self._can_be_found(record.digest):
                matters.append(f"{record.name} of {record.origin} has {len(holders)} copies elsewhere, not {needed}")
        return matters

    def _can_be_found(self, digest: Digest) -> bool:
        """Whether a node that is up knows where it has these bytes: a file whose commit failed is known to nobody."""
        return any(
            any(node.store.stands(place) for place in node.disk.catalogue.places(digest)) or node.disk.inline(digest)
            for node in self.living()
        )

    def _live_records(self) -> list[Record]:
        """What the nodes agree on, versions that retention keeps only."""
        catalogue = self.living()[0].disk.catalogue
        names = dict.fromkeys(key.name for key in sorted(self.oracle.records))
        live = []
        for name in names:
            kind = self.oracle.kind(name)
            versions = [r for r in catalogue.versions(name) if r.state is State.LIVE]
            live += versions[: kind.versions if kind else 1]
        return live

    # --- safety, seen at the end ---

    def judge(self) -> None:
        if not self.living():
            self.oracle.violation("no node is alive at the end: the run proves nothing")
            return
        for (name, _), promise in sorted(self.oracle.promises.items()):
            self._judge_promise(name, promise)
        for name in sorted(self.oracle.by_name):
            self._judge_name(name)
        for node in self.living():
            self._judge_node(node)
        for request in self.oracle.requests.values():
            if self.around.schedule.now_ms > request.deadline_ms + 5_000:
                self.oracle.violation(f"{request.node} never answered a {request.what} of {request.name}")

    def _judge_promise(self, name: str, promise: Promise) -> None:
        """What was accepted is not lost while the disk of anybody who accepted it lives."""
        record = self.oracle.newest_with(promise)
        if self.oracle.superseded(record) or self.oracle.elsewhere(record.digest):
            return
        alive = [node for node in sorted(promise.guarantors) if node not in self.oracle.gone]
        keepers = [node for node in alive if not self._handed_on(node, record)]
        broken = promise.referenced and any(record.digest in self.oracle.stores[n].by_user for n in keepers)
        outlives = promise.outlives or (alive and self._once_held(record))
        if (keepers and not broken) or (not keepers and outlives):
            self.lost.append(name)
            who = ", ".join(promise.guarantors)
            self.oracle.violation(f"{name} ({record.digest.hex()[:12]}) was accepted by {who} and is lost")

    def _handed_on(self, node: NodeId, record: Record) -> bool:
        """An excluded node keeps nothing once an artifact is durable: from then on its holders answer for it."""
        excluded = self.around.fleet.host(node).excluded
        return excluded and self.oracle.copies(record) >= self.oracle.needed(record)

    def _once_held(self, record: Record) -> bool:
        """Whether a disk that is still there has held these bytes, and no user took them away."""
        keeping = [n for n in sorted(self.oracle.stores) if not self.around.fleet.host(n).excluded]
        stores = [self.oracle.stores[node] for node in keeping]
        return any(record.digest in s.held_since and record.digest not in s.by_user and not s.gone for s in stores)

    def _judge_name(self, name: str) -> None:
        """All agree on the newest version; nothing below a tombstone lives."""
        known = [r for r in self.oracle.by_name[name].values() if self._reached_somebody(r.key)]
        if not known:
            return
        newest = max(known, key=lambda record: record.order)
        for node in self.living():
            versions = node.disk.catalogue.versions(name)
            if not versions or (versions[0].key, versions[0].meta) != (newest.key, newest.meta):
                found = f"{versions[0].hlc} of {versions[0].origin}" if versions else "none"
                self.oracle.violation(f"{node.name} has {found} as newest {name}, not {newest.hlc} of {newest.origin}")
            graves = [v for v in versions if v.state is State.DELETED]
            risen = [v for v in versions if graves and v.state is State.LIVE and v.order < graves[0].order]
            if risen:
                self.oracle.violation(f"{node.name} has a live version of {name} below its tombstone")

    def _reached_somebody(self, key: RecordKey) -> bool:
        """A record whose every disk has gone is not expected anywhere."""
        return any(node.disk.catalogue.record(key) or key in node.disk.wal for node in self.living()) or any(
            key in self.oracle.committed_by(node.name) for node in self.living()
        )

    def _judge_node(self, node: SimNode) -> None:
        host = self.around.fleet.host(node.name)
        catalogue = node.disk.catalogue
        for path in sorted(node.store.files):
            self._judge_path(node, path)
        if host.excluded:
            held = [p for p in catalogue.tables.holdings.values() if p.node == node.name and p.present]
            if held:
                self.oracle.violation(f"{node.name} is excluded from sync and holds {len(held)} artifacts")

    def _judge_path(self, node: SimNode, path: str) -> None:
        """A published name shows the newest version of all, if this store has it; older ones stay private.

        Not asked of NFS groups, whose members take turns at a path, nor of bytes that several names or versions share.
        """
        catalogue = node.disk.catalogue
        place = catalogue.place(path)
        if place is None or place.private or not node.store.stands(place):
            return
        for name in dict.fromkeys(record.name for record in catalogue.sharers(place.digest)):
            versions = [v for v in catalogue.versions(name) if v.state is State.LIVE]
            shown = max(v.order for v in versions if v.digest == place.digest)
            sharers = {record.name: None for record in catalogue.sharers(versions[0].digest)}
            again = sum(r.digest == versions[0].digest for r in self.oracle.by_name[name].values()) > 1
            promise = self.oracle.promises.get((name, versions[0].digest))
            put_here = promise is not None and node.name in promise.guarantors  # by hand, over nothing
            newer = versions[0].order > shown and self._has_place(node, versions[0]) and len(sharers) == 1
            if (
                newer
                and not again
                and not put_here
                and not node.store.shared
                and self._names_of(path, node.name) == [name]
            ):
                self.oracle.violation(f"{node.name} shows an older version of {name} at {path}")

    def _has_place(self, node: SimNode, record: Record) -> bool:
        return any(node.store.stands(place) for place in node.disk.catalogue.places(record.digest))

    def _names_of(self, path: str, node: NodeId) -> list[str]:
        """The names that are published at this path: those of two kinds may share one, and the first keeps it."""
        return [
            name
            for name, records in sorted(self.oracle.by_name.items())
            if any(
                publishable(name, r.origin, self._per_node(name))
                and publication_path(name, r.origin, node, self._per_node(name)) == path
                for r in records.values()
            )
        ]

    def _per_node(self, name: str) -> bool:
        kind = self.oracle.kind(name)
        return kind is not None and kind.namespace == "node"
