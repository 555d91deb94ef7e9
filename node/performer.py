"""Performing effects: each kind of effect the core can ask for, and the event that answers it.

`perform` is called on the loop and returns at once; what takes time runs in a task or a thread. Whatever goes wrong
there, the answering event is posted: a core that waits for ever for an answer is stuck for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from node import mates
from protocol import effects as f
from protocol import events as e
from protocol.effects import Report
from protocol.messages import Lacking, RowsMessage
from protocol.spreading import pages
from protocol.values import NodeId, Place, Rows
from storage.refusals import StoreError

if TYPE_CHECKING:
    from node.agent import Agent

REASON_CHARS_MAX = 400  # of a failure told to a peer: reasons are for people, and messages bound them


class Performer:
    """The hands of one agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reservations: dict[tuple[NodeId, int], int] = {}  # (peer, transfer) → the depot's number
        self._reservation = 0
        self._streaming: set[NodeId] = set()

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def perform(self, effect: f.Effect) -> None:  # noqa: PLR0912, PLR0915 - a line for each effect there is
        match effect:
            case f.Log() | f.Commit():
                self.agent.committer.add(effect)
            case f.Send():
                self.agent.sessions.send(effect.peer, effect.message)
            case f.Release():
                self.agent.committer.release(effect.records)
            case f.Answer():
                self._answer(effect)
            case f.Report():
                self._heed(effect)
            case f.SetTimer():
                self._set_timer(effect)
            case f.Upload():
                self.agent.transfers.upload(effect)
            case f.Abandon():
                self.agent.transfers.cancel(effect.transfer, effect.why)
            case f.Fetch():
                self.agent.transfers.fetch(effect)
            case f.Pull():
                self.agent.transfers.pulling.pull(effect)
            case f.CutPull():
                self.agent.transfers.pulling.cut(effect.number)
            case f.Dial():
                self.agent.sessions.dial(effect.peer, effect.address)
            case f.Hangup():
                self.agent.sessions.hangup(effect.peer, effect.why)
            case f.Admit():
                self.agent.sessions.admit(effect.peer, effect.instance, effect.refusal)
            case f.Exit():
                self.agent.exit_report = effect
                self.agent.exited.set()
            case f.Unreserve():
                self._unreserve(effect)
            case f.Reserve():
                self.agent.spawn(self._reserve(effect))
            case f.Publish():
                self.agent.spawn(self._publish(effect))
            case f.Unlink():
                self.agent.spawn(self._unlink(effect.places))
            case f.Mark() | f.LookForMark() | f.Share() | f.Index():
                mates.perform(self.agent, effect)
            case f.CheckHeld():
                self.agent.spawn(self._check_held(effect))
            case f.StreamRows():
                self.agent.spawn(self._stream_rows(effect))
            case f.StreamPrints():
                self.agent.spawn(self._stream_prints(effect.peer))
            case f.ComparePrints():
                self.agent.spawn(self._compare_prints(effect))
            case f.Scan():
                self.agent.spawn(self._scan(effect))

    def _answer(self, answer: f.Answer) -> None:
        future = self.agent.answers.pop(answer.request, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def _heed(self, report: f.Report) -> None:
        self.agent.report(report)
        if report.event == "revoked":
            self.agent.spawn(self.agent.load_revocations())

    def _set_timer(self, effect: f.SetTimer) -> None:
        old = self._timers.pop(effect.token, None)
        if old is not None:
            old.cancel()
        delay = max(0, effect.at_ms - self.agent.now_ms()) / 1000
        self._timers[effect.token] = self.agent.loop.call_later(delay, self._timer, effect.token)

    def _timer(self, token: str) -> None:
        self._timers.pop(token, None)
        self.agent.post(e.Timer(token))

    async def _reserve(self, effect: f.Reserve) -> None:
        self._reservation += 1
        number = self._reservations[effect.peer, effect.transfer] = self._reservation
        try:
            answer = await self.agent.in_thread(self.agent.depot.reserve, number, effect.parcels)
            missing, refused = answer.missing, answer.refused
        except Exception as problem:
            reason = self._reason("reserve room", problem)
            missing, refused = ((),) * len(effect.parcels), (reason,) * len(effect.parcels)
        if self._reservations.get((effect.peer, effect.transfer)) != number:  # given back while it was being made
            await self.agent.in_thread(self.agent.depot.unreserve, number)
        if effect.peer != self.agent.node:
            taken = [index for index, why in enumerate(refused) if not why]
            if taken:
                parcels = [effect.parcels[index] for index in taken]
                self.agent.bulk.inbox.expect(effect.peer, effect.transfer, parcels, [missing[index] for index in taken])
        self.agent.post(e.Reserved(effect.peer, effect.transfer, missing, refused))

    def _unreserve(self, effect: f.Unreserve) -> None:
        number = self._reservations.pop((effect.peer, effect.transfer), None)
        if effect.peer != self.agent.node:
            self.agent.bulk.inbox.forget(effect.peer, effect.transfer)
        else:
            self.agent.transfers.pulling.end(effect.transfer)
        if number is not None:
            self.agent.spawn(self.agent.in_thread(self.agent.depot.unreserve, number))

    async def _publish(self, effect: f.Publish) -> None:
        try:
            outcome = await self.agent.in_thread(self.agent.depot.publish, effect.items)
        except Exception as problem:
            reason = self._reason("publish", problem)
            failed = tuple((item.record, reason) for item in effect.items)
            self.agent.post(e.Published(effect.op, (), failed))
            return
        for item in effect.items:
            if item.path and any(
                record.key == item.record.key and "local change" in why for record, why in outcome.failed
            ):
                self.agent.intake.retry(item.record, item.path)
        self.agent.post(e.Published(effect.op, outcome.done, outcome.failed, outcome.moved))

    async def _unlink(self, places: tuple[Place, ...]) -> None:
        for sentence in await self.agent.in_thread(self.agent.depot.unlink, places):
            self.agent.report(Report("warning", "not_removed", sentence))
        named = [place for place in places if not place.private]
        for place in await self.agent.in_thread(self.agent.depot.missing, named):
            self.agent.post(e.Withdrawn(place, "it was removed with the last version that needed it"))

    async def _check_held(self, effect: f.CheckHeld) -> None:
        held = await self.agent.in_thread(self.agent.depot.held_among, effect.stays)
        self.agent.post(e.HeldChecked(effect.peer, effect.asked, held))

    async def _stream_rows(self, effect: f.StreamRows) -> None:
        """Committed rows, in pages, as fast as the peer takes them; one stream of every row to a peer at a time."""
        manifest = self.agent.manifest
        if effect.only is not None:
            await self._send_rows(effect.peer, manifest.differences.rows_of(effect.only))
        elif effect.peer not in self._streaming:
            self._streaming.add(effect.peer)
            try:
                await self._send_rows(effect.peer, manifest.rows_pages())
            finally:
                self._streaming.discard(effect.peer)

    async def _send_rows(self, peer: NodeId, found: AsyncIterator[Rows]) -> bool:
        async for rows in found:
            for page in pages(rows):
                if not await self.agent.sessions.send_waiting(peer, RowsMessage(page)):
                    return False
        return True

    async def _stream_prints(self, peer: NodeId) -> None:
        async for page in self.agent.manifest.differences.prints_pages():
            if not await self.agent.sessions.send_waiting(peer, page):
                return

    async def _compare_prints(self, effect: f.ComparePrints) -> None:
        rows, lacking = await self.agent.manifest.differences.compare(effect.prints)
        for page in pages(rows) if rows else ():
            if not await self.agent.sessions.send_waiting(effect.peer, RowsMessage(page)):
                return
        if lacking:
            await self.agent.sessions.send_waiting(effect.peer, Lacking(lacking))

    async def _scan(self, effect: f.Scan) -> None:
        try:
            page, last = await self.agent.manifest.scan(effect.after, effect.limit)
        except Exception as problem:
            self._reason("read the manifest", problem)
            page, last = (), True
        self.agent.post(e.Scanned(effect.op, tuple(page), last))

    def _reason(self, doing: str, problem: Exception) -> str:
        """One sentence for the peer or the log; what nobody expected is reported as a fault as well."""
        if not isinstance(problem, StoreError | OSError):
            self.agent.report(Report("error", "fault", f"failed to {doing}: {type(problem).__name__}: {problem}"))
        return f"{problem}"[:REASON_CHARS_MAX] or f"failed to {doing}"
