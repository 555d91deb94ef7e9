"""Which versions a name keeps, and what becomes of the bytes of those it does not.

By rule, without tombstones: a version is dropped once at least `versions` newer ones of its name exist and the newest
of all is durable; and once it is older than `expire_after`, however few there are. A tombstone drops every version
below it, and goes itself after 120 days: by then whoever has not heard of it has lost its certificate, and joins anew
without its rows. Each node applies the rule to what it has committed, so that all end with the same rows; bytes go only
when no kept record shares their digest.

A file whose version has been dropped looks like a user's new one. So nothing is dropped while its bytes take their
name, nor after a start before the root was read: a crash may have come between a rename and its commit.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.clock import stamp_ms
from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Release, Unlink
from protocol.fleet import RESERVED_KIND
from protocol.membership import Membership
from protocol.names import PEERS_FOLDER, publication_path, publishable
from protocol.values import Batch, Digest, Place, Record, RecordKey, Rows, State

TOMBSTONE_MS = 120 * 24 * 3600 * 1000  # tombstones outlive every certificate (at most 90 days)
ROOT_KNOWN_MS_MAX = 10 * 60 * 1000  # a scan that does not end must not keep every version for ever
NAMES_PER_TICK = 500  # names looked at each second: the rest waits a second longer


class Retention:
    """Keeps a list of names whose versions may be too many, and drops what the rule says."""

    def __init__(self, ctx: Context, members: Membership, debts: Debts, tell: Callable[[Rows], None]) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.tell = tell
        self._names: dict[str, None] = {}
        self._dropping: dict[RecordKey, None] = {}  # their drop is on its way to the disk
        self._from_ms = 0  # nothing is dropped before

    def boot(self) -> None:
        self._from_ms = self.ctx.now_ms + ROOT_KNOWN_MS_MAX

    def root_known(self) -> None:
        self._from_ms = 0

    def committed(self, record: Record) -> None:
        """A record was committed: its name may now have a version too many."""
        self._names[record.name] = None

    def beyond(self, record: Record, versions: list[Record] | None = None, by_age: bool = True) -> bool:
        """Whether the rule has dropped (or would drop) this record: then hearing of it again changes nothing."""
        if by_age and self._is_aged(record):
            return True
        if versions is None:
            versions = self.ctx.versions(record.name)
        if not versions:
            return self._outlived(record)
        return any(v.key == record.key for v in self._to_drop([*versions, record]))

    def has_dropped(self, record: Record) -> bool:
        """Whether a record that was read a while ago has been dropped since, or is about to be."""
        return record.key in self._dropping or not self.ctx.knows_record(record)

    def tick(self) -> None:
        if self.ctx.now_ms < self._from_ms:
            return
        names = list(self._names)[:NAMES_PER_TICK]
        self.ctx.catalogue.expect(names)
        for name in names:
            del self._names[name]
            versions = list(self.ctx.catalogue.versions(name))
            if len(versions) <= 1 and not any(
                self._outlived(v) or self._is_aged(v) for v in versions
            ):  # the common case
                if versions and versions[0].state is State.DELETED:
                    self._remove_left_over(versions[0])
                continue
            # A version may stand in the manifest before its `Durable` was handled, and its bytes under their name
            # before the manifest knows of it: what follows from either comes first.
            drops = [version for version in self._to_drop(versions) if not self.ctx.under_way(version)]
            if drops:
                self._drop(drops, versions)
            if self._may_drop_later(name, len(versions) - len(drops)):
                self._names[name] = None

    def _may_drop_later(self, name: str, left: int) -> bool:
        kind = self.ctx.kind(name)
        return left > (kind.versions if kind else 1)

    def _is_aged(self, version: Record) -> bool:
        """Whether it goes for its age: not while the nodes go by different hosts files, nor while it is at risk here,
        for what was accepted and is nowhere else yet is dropped by nobody but its user."""
        if version.state is not State.LIVE or not self.ctx.expired(version) or not self.members.policies_agree():
            return False
        return not any(debt.own for debt in self.debts.of(version.digest))

    def _to_drop(self, versions: list[Record]) -> list[Record]:
        aged = [version for version in versions if self._is_aged(version)]
        return aged + self._too_many([version for version in versions if version not in aged] if aged else versions)

    def _too_many(self, versions: list[Record]) -> list[Record]:
        ranked = sorted({v.key: v for v in versions}.values(), key=lambda v: v.order, reverse=True)
        for index, version in enumerate(ranked):
            if version.state is State.DELETED:
                below = ranked[index + 1 :]
                outlived = not below and self._outlived(version)  # what it deletes goes first, then it
                return below + self._superseded(ranked[:index]) + [version] * outlived
        return self._superseded(ranked)

    def _outlived(self, record: Record) -> bool:
        return record.state is State.DELETED and self.ctx.now_ms - stamp_ms(record.hlc) > TOMBSTONE_MS

    def _superseded(self, ranked: list[Record]) -> list[Record]:
        """Versions beyond the kind's count, if the newest is durable (records without bytes always are).

        None while the nodes go by different hosts files: the other file may keep more.
        """
        if not ranked or not self.members.policies_agree():
            return []
        kind = self.ctx.kind(ranked[0].name)
        if kind is None and ranked[0].kind != RESERVED_KIND:
            return []  # a kind of a hosts file that we have not got yet: its policy is not ours to guess
        keep = kind.versions if kind else 1
        newest = ranked[0]
        if len(ranked) <= keep or (kind is not None and not self.debts.enough(newest, 0, 0)):
            return []
        return ranked[keep:]

    def _drop(self, drops: list[Record], versions: list[Record]) -> None:
        dropped = {record.key: None for record in drops}
        gone: list[Place] = []
        digests: list[Digest] = []
        for digest in dict.fromkeys(record.digest for record in drops if record.state is State.LIVE):
            kept = self.ctx.coming(digest) or any(r.key not in dropped for r in self.ctx.catalogue.sharers(digest))
            if not kept:
                digests.append(digest)
                gone += self.ctx.catalogue.places(digest)
        withdrawn = tuple(self.ctx.holding(digest, False) for digest in digests if self._own_statement(digest))
        rows = Rows(holdings=withdrawn)
        removable = tuple(place for place in gone if place.private or self._published_by_us(place, versions))

        def ended() -> None:
            for key in dropped:
                self._dropping.pop(key, None)

        def done() -> None:
            ended()
            self.tell(rows)
            self.ctx.emit(Unlink(self.ctx.still_unneeded(removable)))

        def failed(error: str) -> None:
            ended()
            self.ctx.report("error", "commit_failed", f"older versions are not dropped yet: {error}")
            for record in drops:
                self.committed(record)

        for record in drops:
            if self.debts.drop(record.key) is not None:
                self.ctx.report("info", "superseded", f"{record.name}: an older version is dropped before it was sent")
        self.ctx.emit(Release(tuple(r for r in drops if r.origin == self.ctx.node)))
        # A named file stays known for as long as it is there: taken for a new one, it would outrank what replaced it,
        # or rise from a grave. Its place goes when whoever removes it, or looks for it, says that it is gone.
        forget = tuple(place.path for place in removable if place.private)
        self._dropping |= dict.fromkeys(dropped)
        self.ctx.commit(Batch(rows, forget_records=tuple(dropped), forget_places=forget), done, failed)

    def _remove_left_over(self, tombstone: Record) -> None:
        """The named file of what was deleted: a crash came between the drop and the removal."""
        kind = self.ctx.kind(tombstone.name)
        if kind is None:
            return
        per_node = kind.namespace == "node"
        origin = tombstone.name.split("/")[1] if per_node else tombstone.origin
        if not publishable(tombstone.name, origin, per_node):
            return
        place = self.ctx.catalogue.place(publication_path(tombstone.name, origin, self.ctx.node, per_node))
        if place is not None:
            self.ctx.emit(Unlink(self.ctx.still_unneeded((place,))))

    def _own_statement(self, digest: Digest) -> bool:
        return any(h.node == self.ctx.node for h in self.ctx.catalogue.holdings(digest))

    def _published_by_us(self, place: Place, versions: list[Record]) -> bool:
        """Versions that go give up what we made of them, and never a user's own file; but an explicit delete means that
        one too."""
        ours = place.published or place.path.startswith(f"{PEERS_FOLDER}/")
        return ours or (bool(versions) and versions[0].state is State.DELETED)
