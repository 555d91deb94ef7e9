"""Adopting: what another node accepted, and could not deliver before its machine was gone, from the disk it left.

The record keeps its stamp and its origin, so that it is the same version wherever it turns up; our own log answers for
it until it is durable. A disk whose node is alive is a copy of a running machine's: what it owes is being delivered
already, and is not taken.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.accepting import Accepting
from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Answer, Entry, Inline, Referenced
from protocol.events import Adopt
from protocol.membership import Membership
from protocol.names import publishable
from protocol.values import Batch, Record, Rows, State


class Adopting:
    """`tell` and `owe` are the replica's."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        debts: Debts,
        accepting: Accepting,
        tell: Callable[[Rows], None],
        owe: Callable[[Record, bool], None],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.accepting = accepting
        self.tell = tell
        self.owe = owe

    def adopt(self, event: Adopt) -> None:
        refusal = self._refusal(event.record)
        if refusal:
            self.ctx.emit(Answer(event.request, refusal))
        elif event.record.key in self.debts.open or self.debts.enough(event.record, 0, 0):
            self._answer(event)  # it is being delivered, or was: nothing is owed for it
        else:
            self._take_over(event)

    def _refusal(self, record: Record) -> str:
        kind = self.ctx.kind(record.name)
        if record.origin == self.ctx.node:
            return f"this disk is of {record.origin}, as this node is: start the agent on that folder instead"
        if self.members.is_alive(record.origin):
            return (
                f"{record.origin} is alive: this disk is a copy of a running node's, which delivers by itself what it "
                "accepted; stop that node first if the copy is to take its place"
            )
        if record.state is not State.LIVE or kind is None:
            return f"{record.name} is of a kind that the hosts file of this node does not have"
        if not publishable(record.name, record.origin, kind.namespace == "node"):
            return f"the name {record.name} does not belong to {record.origin}"
        if self.ctx.deleted(record):
            return f"{record.name} was deleted since"
        return self.accepting.refuses()

    def _take_over(self, event: Adopt) -> None:
        record, source = event.record, event.source
        places = () if isinstance(source, Inline) else (source.place,)
        holdings = (self.ctx.holding(record.digest, True),) if places and not self.ctx.excluded else ()
        rows = Rows(() if self.ctx.knows_record(record) else (record,), holdings)

        def done() -> None:
            self.tell(rows)
            self.owe(record, not isinstance(source, Referenced))
            self._answer(event)

        def failed(error: str) -> None:
            self.ctx.adopted.pop(record.key, None)
            self.ctx.emit(Answer(event.request, f"{record.name} was not adopted: {error}"))

        self.ctx.adopted[record.key] = None
        self.ctx.commit(Batch(rows, places), done, failed, Entry(record, source))

    def _answer(self, event: Adopt) -> None:
        receipts = self.debts.receipts(event.record)
        durable = self.debts.enough(event.record, 0, 0)
        self.ctx.emit(Answer(event.request, "", event.record, copies=len(receipts), durable=durable))
