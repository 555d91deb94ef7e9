"""Giving verified bytes their final names, and committing that they lie there: the end of every way in.

Publish (fsync, rename, fsync of the folder) → commit the places and holdings → tell. What made room for a newer
version, was displaced by it, or came to be needed by nobody is said in the same commit, or right after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from protocol.context import Context
from protocol.effects import Publication, Publish, Unlink
from protocol.events import Published
from protocol.incoming import Incoming
from protocol.policy import Policy
from protocol.values import Batch, Digest, Place, Record, Rows

PUBLISH_COUNT = 1_000  # own artifacts published together: one sync of the file system for all


class Publishing:
    """Publishes and commits; tells whoever brought the bytes how it ended."""

    def __init__(
        self, ctx: Context, policy: Policy, tell: Callable[[Rows], None], finish: Callable[[Incoming], None]
    ) -> None:
        """`finish` ends the transfer that brought the bytes: its receipts may be sent now."""
        self.ctx = ctx
        self.policy = policy
        self.tell = tell
        self._finish = finish
        self._publishing: dict[int, Incoming | None] = {}
        self._taking: dict[int, tuple[str, ...]] = {}  # paths that publications under way may take from older versions
        self._unrecorded: list[Published] = []  # while the manifest takes no writes; offers are refused meanwhile
        self._op = 0
        self._settled: list[Record] = []
        self._own_published: Callable[[Record], None] = lambda record: None

    def on_own_published(self, then: Callable[[Record], None]) -> None:
        """Whom to tell when an artifact accepted here has reached its final path."""
        self._own_published = then

    def is_under_way(self, incoming: Incoming) -> bool:
        """Whether what this transfer brought is being published."""
        return any(x is incoming for x in self._publishing.values())

    def publish(self, records: list[Record], incoming: Incoming | None = None) -> None:
        """Bring verified bytes under their final names; older versions and unsafe names into `.spore/versions/`.

        A record that is not in the manifest yet is written there first: after a crash the file under its name would
        pass for a user's new version.
        """
        self._op = op = self._op + 1
        self._publishing[op] = incoming
        self.ctx.naming(op, records)
        self.ctx.catalogue.expect([record.name for record in records])
        rows = Rows(tuple(record for record in records if self.ctx.catalogue.record(record.key) is None))
        if not rows:
            self._name(op, records)
            return

        def done() -> None:
            self.tell(rows)
            self._name(op, records)

        failed = [(record, "its record could not be written") for record in records]
        self.ctx.commit(Batch(rows), done, lambda error: self.published(Published(op, (), tuple(failed))))

    def _name(self, op: int, records: list[Record]) -> None:
        wished = [self.policy.wished_path(record) for record in records]
        self.ctx.catalogue.expect(paths=[path for path in wished if path])
        items = tuple(Publication(record, self.policy.path(record)) for record in records)
        self._taking[op] = tuple(item.path for item in items if item.path)
        self.ctx.emit(Publish(op, items))

    def lacks_name(self, record: Record) -> bool:
        """Whether bytes that we have are still to take their final path: they may lie under another name only."""
        path = self.policy.path(record)
        place = self.ctx.catalogue.place(path) if path else None
        return path is not None and (place is None or place.digest != record.digest)

    def publish_later(self, record: Record) -> None:
        """An artifact of our own is durable: give it its final name, together with the others of this event."""
        self._settled.append(record)

    def publish_settled(self) -> None:
        while self._settled:
            batch, self._settled = self._settled[:PUBLISH_COUNT], self._settled[PUBLISH_COUNT:]
            self.publish(batch)

    def published(self, event: Published) -> None:
        """The files have their names: commit the holdings, and only then tell anybody."""
        self._record(event, self._publishing.pop(event.op, None))

    def _record(self, event: Published, incoming: Incoming | None) -> None:
        places = [replace(place, published=record.origin != self.ctx.node) for record, place in event.done]
        places += [place for _, place in event.moved]
        records = [record for record, _ in event.done]
        stated = [record.digest for record in records] + self._adopted(event)
        holdings = tuple(self.ctx.holding(digest, True) for digest in dict.fromkeys(stated))
        holdings += tuple(self.ctx.holding(digest, False) for digest in self._displaced(event))
        news = tuple(record for record in records if not self.ctx.knows_record(record))
        rows = Rows(news, holdings)
        if incoming is not None:
            incoming.failed += [(record.digest, why) for record, why in event.failed]
        for record, why in event.failed:
            self.ctx.report("warning", "not_published", f"{record.name} was not published: {why}")
        batch = Batch(rows, tuple(places), forget_places=_left(event.moved, places))
        ended = records + [record for record, _ in event.failed]
        left_over = self._left_over(event)

        def done() -> None:
            self._taking.pop(event.op, None)
            self.ctx.named(event.op)
            self._committed(rows, ended, incoming)
            self._drop_left_over(left_over)

        self.ctx.commit(batch, done, lambda error: self._uncommitted(event, incoming, error))

    def _left_over(self, event: Published) -> tuple[Place, ...]:
        """Files that made room and that no version needs. Where mates publish too, one that we know no record of may be
        newer than what we know: it stays, and they answer for it."""
        if self.ctx.host.nfs_group:
            return ()
        return tuple(place for _, place in event.moved if not self.ctx.catalogue.sharers(place.digest))

    def is_moving(self, digest: Digest) -> bool:
        """Whether a publication under way may move these bytes aside: their private copy is then the one that stays."""
        paths = {path for taken in self._taking.values() for path in taken}
        return any(place.path in paths for place in self.ctx.catalogue.places(digest))

    def _adopted(self, event: Published) -> list[Digest]:
        """What made room and was stated by another member of our NFS group only: from now on we answer for it."""
        digests = [place.digest for _, place in event.moved if self.ctx.catalogue.sharers(place.digest)]
        return [digest for digest in digests if not self._stated_by_us(digest)]

    def _displaced(self, event: Published) -> list[Digest]:
        """What the manifest believes at a path now taken, did not make room, and lies nowhere else: a crash came
        between the last rename there and its commit, or a user took the file away."""
        made_room = {place.digest for _, place in event.moved}
        before = [self.ctx.place(place.path) for _, place in event.done]
        pairs = [(old, new) for old, (_, new) in zip(before, event.done, strict=True) if old is not None]
        gone = [old for old, new in pairs if old.digest != new.digest and old.digest not in made_room]
        lost = [old.digest for old in gone if all(p.path == old.path for p in self.ctx.places(old.digest))]
        return [digest for digest in dict.fromkeys(lost) if self.ctx.holds(digest)]

    def _drop_left_over(self, places: tuple[Place, ...]) -> None:
        """Files that made room and that no version needs any more: nobody else would remove them, or take back what
        was said of them."""
        if not places:
            return
        digests = dict.fromkeys(place.digest for place in places)
        rows = Rows(holdings=tuple(self.ctx.holding(d, False) for d in digests if self._stated_by_us(d)))

        def done() -> None:
            self.tell(rows)
            self.ctx.emit(Unlink(self.ctx.still_unneeded(places)))

        self.ctx.commit(Batch(rows, forget_places=tuple(place.path for place in places)), done)

    def _stated_by_us(self, digest: Digest) -> bool:
        return any(holding.node == self.ctx.node for holding in self.ctx.catalogue.holdings(digest))

    def _committed(self, rows: Rows, ended: list[Record], incoming: Incoming | None) -> None:
        self.tell(rows)
        if incoming is not None:
            incoming.holdings += [holding for holding in rows.holdings if holding.present]
            self._finish(incoming)
        for record in ended if incoming is None else ():
            self._own_published(record)

    def _uncommitted(self, event: Published, incoming: Incoming | None, error: str) -> None:
        """The sender hears that it failed; the files have their names all the same, and the manifest must learn it."""
        self.ctx.report("error", "commit_failed", f"published artifacts are not recorded yet: {error}")
        self._unrecorded.append(event)
        if incoming is not None:
            self._finish(incoming)

    def record_the_rest(self) -> None:
        """The manifest takes writes again."""
        events, self._unrecorded = self._unrecorded, []
        for event in events:
            self._record(replace(event, failed=()), None)


def _left(moved: tuple[tuple[str, Place], ...], places: list[Place]) -> tuple[str, ...]:
    """Paths that were moved away from and are not taken again by a new place."""
    taken = {place.path for place in places}
    return tuple(path for path, _ in moved if path not in taken)
