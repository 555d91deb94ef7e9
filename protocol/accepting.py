"""Accepting what users make: puts, explicit deletes, and files that vanish or change.

Write, then tell: the WAL entry and the manifest rows are on the disk before an answer, an offer or a row leaves. Old
never beats new: a file found without knowledge of what it replaces becomes a version *below* whatever is known.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.clock import HLC_MAX, age_ms, scanned
from protocol.context import Context
from protocol.debts import Debts, Wait
from protocol.effects import Answer, Entry, Kept, Referenced, Release
from protocol.events import Await, Declare, Put, Remove, Withdrawn
from protocol.fleet import RESERVED_KIND
from protocol.names import NameRefused, check_name, check_publishable, publication_path, publishable
from protocol.values import NO_DIGEST, Batch, Digest, Holding, Place, Record, Rows, State

WAIT_DEFAULT = 0  # asks for as many copies as the kind's policy does


class Accepting:
    """Turns puts into records, and records into debts."""

    def __init__(
        self, ctx: Context, debts: Debts, tell: Callable[[Rows], None], owe: Callable[[Record, bool], None]
    ) -> None:
        self.ctx = ctx
        self.debts = debts
        self.tell = tell
        self.owe = owe
        self.room = True  # the local disk has room to accept
        self.healthy = True  # the last group commit reached the disk
        self.stopping = False
        self._will_wait: set[int] = set()  # requests that wait for copies once their put is durable

    # --- puts ---

    def put(self, put: Put) -> None:
        refusal = self._refusal(put)
        if refusal:
            self._refuse(put.request, refusal)
            return
        if put.request and put.wait_copies:
            self._will_wait.add(put.request)
        versions = self.ctx.versions(put.name)
        current = versions[0] if versions else None
        if current is not None and current.hlc >= HLC_MAX:
            self._refuse(
                put.request, f"{put.name}: no version can rank above the one of {current.origin}; use a new name"
            )
        elif current is not None and current.digest == put.digest and self._kept_already(put, current):
            self._hold_again(put, current)
        elif published := self._published_before(put, versions):
            self._hold_again(put, published)
        elif not put.known:
            self._put_scanned(put, versions)
        else:
            self._put_version(put, self.ctx.clock.stamp(self.ctx.now_ms, above=current.hlc if current else 0))

    def _refusal(self, put: Put) -> str:
        kind = self.ctx.kind(put.name)
        try:
            check_name(put.name)
            if kind is not None:
                check_publishable(put.name, self.ctx.node, kind.namespace == "node")
        except NameRefused as refused:
            return str(refused)
        if put.name.startswith(RESERVED_KIND + "/") or kind is None:
            kinds = ", ".join(kind.name for kind in self.ctx.fleet.kinds)
            return f"{put.name}: there is no such kind; use one of {kinds}, or add it to the hosts file"
        if refusal := self.refuses():
            return refusal
        if not self.room and put.place is None:
            return "the disk of this node is below min_free_bytes; free some room or put it on another node"
        return ""

    def refuses(self) -> str:
        """Why nothing at all is accepted now, or nothing."""
        if self.stopping:
            return "this agent is stopping and accepts nothing more; put it on another node"
        if not self.healthy:
            return "the disk of this node does not take writes; see `spore status` and free or repair it"
        return ""

    def _kept_already(self, put: Put, current: Record) -> bool:
        """Whether accepting the same bytes again needs no entry of our own: they are safe here, or durable elsewhere.

        That another node has accepted them is not enough: it may die before it has sent them to anybody. Nor is our
        own statement that we hold them: its file may just have gone, so a place or a log entry must answer for them.
        """
        if current.state is not State.LIVE:
            return False
        stays = bool(_places(put)) and not self.ctx.excluded
        return stays or self._protected(put.digest) or self.debts.enough(current, 0, 0)

    def _protected(self, digest: Digest) -> bool:
        """Whether our own store has these bytes, or our log answers for them."""
        owed = any(debt.own for debt in self.debts.of(digest))
        return owed or bool(self.ctx.places(digest)) or self.ctx.logging(digest)

    def _published_before(self, put: Put, versions: list[Record]) -> Record | None:
        """The version that a scan has found again at a path of which the manifest knows nothing.

        We published it and died before the manifest learned it. Were it taken for a user's, old would beat new.
        """
        if put.live or put.place is None or self.ctx.place(put.place.path) is not None:
            return None
        return next((v for v in versions if v.state is State.LIVE and v.digest == put.digest), None)

    def _put_scanned(self, put: Put, versions: list[Record]) -> None:
        """A file found without knowledge: known bytes become a holding, others a version below all that is known."""
        for version in versions:
            if version.state is State.LIVE and version.digest == put.digest:
                self._hold_again(put, version)
                return
        if versions:
            self.ctx.report(
                "warning",
                "older_file_found",
                f"{put.name}: a file without history was found beside newer versions; it is kept as an older version",
            )
        mtime_s = put.place.mtime_ns // 1_000_000_000 if put.place else 0
        hlc = scanned(mtime_s)
        while any(version.key == (put.name, hlc, self.ctx.node) for version in versions):
            hlc += 1  # two files found within one second of modification are two versions
        self._put_version(put, hlc)

    def _put_version(self, put: Put, hlc: int) -> None:
        record = Record(
            put.name, hlc, self.ctx.node, put.digest, put.blake3, put.size, put.mode, meta=tuple(sorted(put.meta))
        )
        places = _places(put)
        replaced = self._replaced(put)
        rows = Rows((record,), self._holdings(put, places) + replaced)
        self.ctx.commit(
            Batch(rows, places),
            lambda: self._accepted(put, record, rows),
            lambda error: self._refuse(put.request, f"{put.name} was not accepted: {error}"),
            Entry(record, put.source),
        )

    def _hold_again(self, put: Put, record: Record) -> None:
        """The same bytes as a known version: no new version, but we hold them (again, or at another place).

        Committed even when there is nothing to write: what is known of the bytes may itself be on its way to the disk.
        """
        places = _places(put)
        held = () if self.ctx.holds(put.digest) else self._holdings(put, places)
        rows = Rows(holdings=held + self._replaced(put))
        self.ctx.commit(
            Batch(rows, places),
            lambda: self._held_again(put, record, rows),
            lambda error: self._refuse(put.request, f"{put.name} was not accepted: {error}"),
        )

    def _holdings(self, put: Put, places: tuple[Place, ...]) -> tuple[Holding, ...]:
        if self.ctx.excluded or not places:
            return ()
        return (self.ctx.holding(put.digest, True),)

    def _replaced(self, put: Put) -> tuple[Holding, ...]:
        """The user's file held another digest until now: that one is withdrawn, unless it lies elsewhere too."""
        before = self.ctx.place(put.place.path) if put.place else None
        if before is None or before.digest == put.digest or not self.ctx.holds(before.digest):
            return ()
        if any(place.path != before.path for place in self.ctx.places(before.digest)):
            return ()
        return (self.ctx.holding(before.digest, False),)

    def _accepted(self, put: Put, record: Record, rows: Rows) -> None:
        self._report_replaced(put, rows)
        self.tell(rows)
        self.owe(record, not isinstance(put.source, Referenced))
        self._answer(put, record)

    def _held_again(self, put: Put, record: Record, rows: Rows) -> None:
        self._report_replaced(put, rows)
        self.tell(rows)
        self._answer(put, record)

    def _answer(self, put: Put, record: Record) -> None:
        if not put.request:
            return
        if put.wait_copies:
            if put.request in self._will_wait:
                self._will_wait.remove(put.request)
                self.debts.wait(Wait(put.request, record, put.wait_copies, put.wait_domains, put.deadline_ms))
        else:
            debt = self.debts.open.get(record.key)
            receipts = self.debts.counting(debt.receipts) if debt else self.debts.receipts(record)
            self.ctx.emit(Answer(put.request, "", record, copies=len(receipts)))

    def cancel(self, request: int) -> None:
        """Whoever asked is gone: there is nobody to wait, whether the put is durable by now or not."""
        self._will_wait.discard(request)
        self.debts.cancel(request)

    def _refuse(self, request: int, why: str) -> None:
        self._will_wait.discard(request)
        if request:
            self.ctx.emit(Answer(request, why))
        else:
            self.ctx.report("error", "not_accepted", why)

    def await_copies(self, event: Await) -> None:
        record = self.ctx.current(event.name)
        if record is None or record.state is not State.LIVE:
            self._refuse(event.request, f"there is no artifact {event.name}; `spore ls` shows what there is")
            return
        self.debts.wait(Wait(event.request, record, event.copies, event.domains, event.deadline_ms))

    # --- deletes and declarations ---

    def remove(self, event: Remove) -> None:
        """An explicit delete: the only way in which a deletion ever spreads."""
        current = self.ctx.current(event.name)
        if current is None or current.state is not State.LIVE:
            self._refuse(event.request, f"there is no artifact {event.name}; `spore ls` shows what there is")
            return
        if event.before_ms and age_ms(current.hlc, event.before_ms) < 0:
            self._refuse(event.request, f"{event.name} has a newer version by now; it stays")
            return
        if not self._may_delete(current):
            self._refuse(
                event.request,
                f"{event.name} may be removed by a persistent host or by {current.origin}; run this command there",
            )
            return
        if current.hlc >= HLC_MAX:
            self._refuse(event.request, f"{event.name}: nothing can rank above the version of {current.origin}")
            return
        hlc = self.ctx.clock.stamp(self.ctx.now_ms, above=current.hlc)
        tombstone = Record(event.name, hlc, self.ctx.node, NO_DIGEST, NO_DIGEST, 0, state=State.DELETED)
        self._commit_bare(event.request, tombstone)

    def _may_delete(self, record: Record) -> bool:
        kind = self.ctx.kind(record.name)
        own = kind is not None and kind.namespace == "node" and record.origin == self.ctx.node
        return own or not self.ctx.host.ephemeral

    def removed_names(self, event: Withdrawn) -> list[str]:
        """Names that a user deleted with their watched file, where the kind says that this means all copies.

        Only of a file that stood for the newest version, and that we stated to hold: what we removed ourselves was
        withdrawn before, and what a mate of our store holds is for the mate to see.
        """
        digest, path = event.place.digest, event.place.path
        if not any(holding.node == self.ctx.node for holding in self.ctx.catalogue.holdings(digest)):
            return []
        names = dict.fromkeys(r.name for r in self.ctx.catalogue.sharers(digest) if self._stands_for(r, path))
        newest = {name: self.ctx.current(name) for name in names}
        return [name for name, record in newest.items() if record is not None and record.digest == digest]

    def _stands_for(self, record: Record, path: str) -> bool:
        kind = self.ctx.kind(record.name)
        if kind is None or kind.delete != "propagate":
            return False
        per_node = kind.namespace == "node"
        if not publishable(record.name, record.origin, per_node):
            return False
        return publication_path(record.name, record.origin, self.ctx.node, per_node) == path

    def declare(self, event: Declare) -> None:
        """A record without bytes under our own kind: revocations and what else every node must know."""
        current = self.ctx.current(event.name)
        hlc = self.ctx.clock.stamp(self.ctx.now_ms, above=current.hlc if current else 0)
        record = Record(event.name, hlc, self.ctx.node, NO_DIGEST, NO_DIGEST, 0, meta=tuple(sorted(event.meta)))
        self._commit_bare(event.request, record)

    def _commit_bare(self, request: int, record: Record) -> None:
        rows = Rows((record,))

        def done() -> None:
            self.tell(rows)
            if request:
                self.ctx.emit(Answer(request, "", record, durable=True))

        self.ctx.commit(Batch(rows), done, lambda error: self._refuse(request, f"not done: {error}"))

    # --- losses ---

    def withdrawn(self, event: Withdrawn) -> None:
        """A file of ours no longer holds its digest: say so, unless another copy of ours does."""
        place = event.place
        others = [p for p in self.ctx.places(place.digest) if p.path != place.path]
        held = self.ctx.holds(place.digest)
        rows = Rows(holdings=() if others or not held else (self.ctx.holding(place.digest, False),))
        known = self.ctx.place(place.path)
        forget = (place.path,) if known is not None and known.digest == place.digest else ()
        if not rows and not forget:
            return

        def done() -> None:
            self.tell(rows)
            if not others:
                self._report_loss(place.digest, event.why)

        self.ctx.commit(Batch(rows, forget_places=forget), done)

    def _report_replaced(self, put: Put, rows: Rows) -> None:
        for holding in rows.holdings:
            if not holding.present and put.place is not None:
                self._report_loss(holding.digest, f"{put.place.path} was changed")

    def _report_loss(self, digest: Digest, why: str) -> None:
        """An artifact accepted by reference and changed before it was durable is lost; say which, in so many words.

        What stands in the log or in a private file is not: no user changes that, and what cannot be read today may be
        readable tomorrow, so its entry stays and it stays at risk.
        """
        for debt in self.debts.of(digest):
            if debt.own and not debt.receipts and not debt.kept:
                self.ctx.report(
                    "error", "lost", f"{debt.record.name} ({digest.hex()[:12]}) was lost before it was sent: {why}"
                )
                self.debts.drop(debt.record.key)
                self.ctx.emit(Release((debt.record,)))


def _places(put: Put) -> tuple[Place, ...]:
    """Where the bytes lie: the user's file, and our private copy."""
    private = (put.source.place,) if isinstance(put.source, Kept) else ()
    return ((put.place,) if put.place else ()) + private
