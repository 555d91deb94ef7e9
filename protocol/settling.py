"""What becomes of an artifact of our own once it is durable: its final name, its WAL entry, its private copies."""

from __future__ import annotations

from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Release, Unlink
from protocol.publishing import Publishing
from protocol.values import Batch, Place, Record


class Settling:
    """Lets go of what protected the bytes until now, in the order in which nothing can be lost."""

    def __init__(self, ctx: Context, debts: Debts, publishing: Publishing) -> None:
        self.ctx = ctx
        self.debts = debts
        self.publishing = publishing
        publishing.on_own_published(self.published)

    def settled(self, record: Record) -> None:
        """Bytes that came by the CLI are published now (then the WAL entry goes); private copies beside a watched
        file are dropped; an excluded node keeps nothing."""
        places = self.ctx.catalogue.places(record.digest)
        private = tuple(place for place in places if place.private)
        unnamed = not places or self.publishing.lacks_name(record)
        if not self.ctx.excluded and unnamed and not (private and self._needed_privately(record)):
            self.publishing.publish_later(record)
            return
        self._release(record)
        if self.ctx.excluded or (len(private) < len(places) and not self._needed_privately(record)):
            self._forget(private)

    def _release(self, record: Record) -> None:
        self.ctx.adopted.pop(record.key, None)
        self.ctx.emit(Release((record,)))

    def _needed_privately(self, record: Record) -> bool:
        """A snapshot's private copy is the artifact itself."""
        kind = self.ctx.kind(record.name)
        return kind is not None and kind.snapshot is not None

    def _forget(self, private: tuple[Place, ...]) -> None:
        """Drop private copies, unless they are needed after all."""
        places = tuple(place for place in private if not self._protects(place))
        if places:
            batch = Batch(forget_places=tuple(place.path for place in places))
            self.ctx.commit(batch, lambda: self._remove_private(places))

    def _remove_private(self, places: tuple[Place, ...]) -> None:
        """A copy that has come to be needed meanwhile, or that the manifest knows again, stays."""
        gone = [p for p in places if not self._protects(p) and self.ctx.catalogue.place(p.path) is None]
        self.ctx.emit(Unlink(tuple(gone)))

    def _protects(self, private: Place) -> bool:
        """Whether an artifact at risk here has these bytes, or the file beside is just now making room for a newer."""
        return bool(self.debts.of(private.digest)) or self.publishing.is_moving(private.digest)

    def published(self, record: Record) -> None:
        """The final path stands (or cannot be had): what protected the bytes until now is no longer needed."""
        if self.ctx.accepted_here(record) and record.key not in self.debts.open:
            self._release(record)
            places = self.ctx.catalogue.places(record.digest)
            private = tuple(place for place in places if place.private)
            if len(private) < len(places) and not self._needed_privately(record):
                self._forget(private)
