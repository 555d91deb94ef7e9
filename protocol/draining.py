"""Draining: before a node is stopped, whatever depends on it is made independent of it.

The node accepts nothing more, and its own store is no copy any more in its own accounts. Then it reads all its records,
a page at a time: those that have too few copies without it are owed like any artifact at risk and pushed to others; the
next page is read once they are safe. A pass in which nothing was missing ends it: the node may be stopped. Nothing of
this is remembered: an agent that starts anew accepts again.

Mates of a shared store keep its copies: there, only what this node has not delivered yet depends on it.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Answer, Scan
from protocol.events import Drain, Scanned
from protocol.fleet import RESERVED_KIND
from protocol.membership import Membership
from protocol.placement import durable
from protocol.values import Holding, Record, RecordKey, State

PAGE = 500  # records looked at per event, as in the sweep: 20 ms of work; also the most that is owed at one time
START = ("", 0, "")


class Draining:
    """`hold_nothing_more(stopping, accepting)`: see `departing`.

    One drain at a time; a second one replaces the first, whose request is answered."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        debts: Debts,
        hold_nothing_more: Callable[[bool, bool], None],
        owe: Callable[[Record], None],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.hold_nothing_more = hold_nothing_more
        self.owe = owe
        self.drain: Drain | None = None
        self.safe = False  # a pass found nothing that depends on this node
        self._op = 0  # of the page that is being read, negative: the sweep counts upwards
        self._short: dict[RecordKey, Record] = {}  # of one page: what still has too few copies
        self._found_any = False  # in this pass
        self._after: tuple[str, int, str] = START

    @property
    def active(self) -> bool:
        return self.drain is not None

    def start(self, event: Drain) -> None:
        """Begin, or end it again and accept as before (`undo`)."""
        if self.drain is not None and self.drain.request:
            self._answer("another drain took its place")
        self._short.clear()
        self.safe = False
        if event.undo:
            self.drain = None
            self.debts.without = b""
            self.hold_nothing_more(False, True)
            self.ctx.emit(Answer(event.request))
            return
        self.drain = event
        self.debts.without = b"" if self.members.has_mates() else self.ctx.store
        self.hold_nothing_more(True, False)
        self._begin_pass()

    def tick(self) -> None:
        """Look again at what is owed; go on when it is safe; answer when the time is over."""
        if self.drain is None or self.safe:
            return
        for record in list(self._short.values()):
            if not self._depends_on_us(record, self.ctx.catalogue.holdings(record.digest)):
                del self._short[record.key]
        if not self._short and not self._op:
            self._go_on()
        if self.drain.request and self.ctx.now_ms >= self.drain.deadline_ms:
            self._answer(self.why())

    def scanned(self, event: Scanned) -> None:
        """A page was read."""
        if self.drain is None or event.op != self._op:
            return
        self._op = 0
        for record, holdings in event.page:
            if self._depends_on_us(record, holdings):
                self._short[record.key] = record
                self.owe(record)
        self._found_any |= bool(self._short)
        self._after = START if event.last or not event.page else event.page[-1][0].key
        if not self._short:
            self._go_on()

    def why(self) -> str:
        """What stands in the way, in one sentence."""
        count = len(self._short)
        if not count:
            return "the records of this node are still being read; give it more time"
        first = next(iter(self._short.values()))
        around = self.debts.pool_of(first, self._copies())
        debt = self.debts.open.get(first.key)
        why = debt.why(around) if debt else "too few copies elsewhere"
        return f"{count} artifacts or more depend on this node, such as {first.name} ({why})"

    def _go_on(self) -> None:
        """The next page; after the last one a pass that found nothing ends the drain, another begins a new one."""
        if self._after != START:
            self._read(self._after)
        elif self._found_any or self.ctx.committing:
            self._begin_pass()
        else:
            self.safe = True
            self.ctx.report("info", "drained", "nothing depends on this node any more: it may be stopped")
            self._answer("")

    def _begin_pass(self) -> None:
        self._found_any = False
        self._read(START)

    def _read(self, after: tuple[str, int, str]) -> None:
        self._op = -1 if not self._op else self._op - 1
        self.ctx.emit(Scan(self._op, after, PAGE))

    def _depends_on_us(self, record: Record, holdings: tuple[Holding, ...]) -> bool:
        """Whether fewer copies than needed remain without this node."""
        if record.state is not State.LIVE or record.kind == RESERVED_KIND or not self.ctx.knows_record(record):
            return False
        ours = any(holding.store == self.ctx.store for holding in holdings)
        if record.origin != self.ctx.node and not ours:
            return False
        around = self.debts.pool_of(record, self._copies())
        receipts = self.debts.receipts(record)
        return not durable(receipts, around, self.debts.seats_of(record))

    def _copies(self) -> int:
        return self.drain.copies if self.drain is not None else 0

    def _answer(self, error: str) -> None:
        if self.drain is not None and self.drain.request:
            request, self.drain = self.drain.request, Drain(0, self.drain.copies, 0)
            self.ctx.emit(Answer(request, error, copies=len(self._short), durable=not error))
