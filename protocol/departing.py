"""Going away: flushes that a user asks for, notices, the last flush of all, and what leaving peers report.

A *notice* says that this node will be gone at a moment: from then on it takes nothing more for others, and its own
debts go by the plan (see leaving.py), while it goes on accepting what training writes until the end. A *flush with
leave* is the end: nothing is accepted any more, and the node goes as soon as all is safe, when nobody can be reached,
or when the time is over.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Answer, Exit, SetTimer
from protocol.events import Flush, Notice
from protocol.farewells import farewell_sentence, unsafe_sentence
from protocol.leaving import Leaving
from protocol.membership import Membership
from protocol.messages import Farewell, Goodbye
from protocol.values import NodeId, Presence

LOOK_MS = 50  # between looks whether all is safe
NAMED_MAX = 50  # of what a leaving peer names, in our log; `spore risk --cluster` has all


class Departing:
    """`hold_nothing_more(stopping, accepting)`: what is taken for others stops, and what is ours goes on or not."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        debts: Debts,
        leaving: Leaving,
        hold_nothing_more: Callable[[bool, bool], None],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.leaving = leaving
        self.hold_nothing_more = hold_nothing_more
        self._last: Flush | None = None
        self._flushes: list[Flush] = []
        self._exited = False

    def notice(self, event: Notice) -> None:
        """The provider will take this machine away, or will not after all."""
        if event.why:
            self.ctx.report("warning" if event.deadline_ms else "info", "notice", event.why)
        if self._last is not None:
            return
        self.hold_nothing_more(bool(event.deadline_ms), True)
        if event.deadline_ms:
            self.leaving.begin(event.deadline_ms)
        else:
            self.leaving.end()

    def flush(self, event: Flush) -> None:
        """Push what is at risk now; with `leave`, this is the last thing this node does."""
        if event.leave:
            self._last = event
            self.hold_nothing_more(True, False)
            self.leaving.begin(event.deadline_ms)
        else:
            self._flushes.append(event)
            self.leaving.sending.replan_all()
        self.leave_if_done()
        if event.leave and not self._exited:
            self._look_again(event.deadline_ms)

    def leave_if_done(self) -> None:
        own = self.debts.own_open()
        hopeless = not self.members.sessions
        for flush in list(self._flushes):
            if not (own or self.ctx.committing) or hopeless or self.ctx.now_ms >= flush.deadline_ms:
                self._flushes.remove(flush)
                left = f"{len(own)} artifacts are still at risk; `spore risk` says why" if own else ""
                self.ctx.emit(Answer(flush.request, left, copies=len(own), durable=not own))
        if self._last is None or self._exited:
            return
        working = self.ctx.committing or (own and not hopeless)
        if working and self.ctx.now_ms < self._last.deadline_ms:
            self._look_again(self._last.deadline_ms)
        else:
            self._leave()

    def _look_again(self, deadline_ms: int) -> None:
        self.ctx.emit(SetTimer("flush", min(deadline_ms, self.ctx.now_ms + LOOK_MS)))

    def _leave(self) -> None:
        """Say what is safe and what is not, say goodbye, and go."""
        own = self.debts.own_open()
        farewell = self.leaving.farewell()
        self.members.state(presence=Presence.LEFT)
        self.members.leave()
        for peer in sorted(self.members.sessions):
            if farewell is not None:
                self.ctx.send(peer, farewell)
            self.ctx.send(peer, Goodbye(f"{len(own)} artifacts at risk" if own else "nothing at risk"))
        self.exit(farewell)

    def exit(self, farewell: Farewell | None = None) -> None:
        if not self._exited:
            self._exited = True
            self.ctx.emit(Exit(tuple(debt.record for debt in self.debts.own_open()), farewell))

    def farewell(self, peer: NodeId, message: Farewell) -> None:
        """What a leaving peer could not save is said where people look once it is gone: on those that stay."""
        level = "error" if message.lost else "warning" if message.unsafe else "info"
        self.ctx.report(level, "farewell", f"{peer} leaves: {farewell_sentence(message)}")
        for unsafe in message.named[:NAMED_MAX]:
            self.ctx.report("warning", "farewell", f"{peer} leaves: {unsafe_sentence(unsafe)}")
