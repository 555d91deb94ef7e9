"""The answers about what could be lost: by this node's end, and in the whole cluster."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from node.door import EXIT_USAGE, DoorError, Facts, PutRequest
from protocol.effects import Kept
from protocol.events import Adopt
from protocol.fields import WireError, as_meta, as_name, as_node
from protocol.fleet import RESERVED_KIND
from protocol.survival import is_too_much, measure
from protocol.values import Holding, Record, State
from storage.acceptance import Accepted

if TYPE_CHECKING:
    from node.agent import Agent

SCAN_PAGE = 500  # records looked at before the loop does something else
ROWS_MAX = 10_000  # of a cluster that lost this many artifacts people read no more
PRESSURE_SECONDS_MAX = 60.0  # a put that waits for copies waits so long, at most, before it is accepted
PRESSURE_LOOK_SECONDS = 0.05


class SpotAnswers:
    """The part of `node.door.Door` that speaks of loss, for one running agent."""

    agent: Agent
    notices: Callable[[], Facts]

    def survival(self) -> Facts:
        """What would be lost if this node died now, and what the notice could save of it."""
        replica = self.agent.replica
        meter = measure(replica.debts.own_open(), replica.ctx.notice_seconds, replica.sending.uplink_rate())
        return {**asdict(meter), "lost_kinds": list(meter.lost_kinds)}

    async def ease(self, timeout_seconds: float) -> None:
        """Back-pressure on an ephemeral host: wait while more is at risk than its notice could carry away.

        Not for ever, and not where nobody can be reached: accepted here is better than not accepted at all.
        """
        limit = min(timeout_seconds or PRESSURE_SECONDS_MAX, PRESSURE_SECONDS_MAX)
        until = time.monotonic() + limit
        replica = self.agent.replica
        while replica.members.own.ephemeral and replica.members.sessions and time.monotonic() < until:
            if not is_too_much(replica.debts.own_bytes(), replica.ctx.notice_seconds, replica.sending.uplink_rate()):
                return
            await asyncio.sleep(PRESSURE_LOOK_SECONDS)

    async def adopt(self, request: PutRequest, accepted: Accepted) -> Facts:
        """Take over an artifact of a node that is gone; its bytes are safe here already."""
        try:
            record = _adopted(request, accepted)
            number, future = self.agent.request()
            self.agent.post(Adopt(number, record, accepted.source))
            answer = await future
        except (WireError, ValueError, TypeError) as problem:
            raise DoorError(f"this is no record to adopt: {problem}", EXIT_USAGE) from problem
        finally:
            if isinstance(accepted.source, Kept):
                self.agent.depot.unpin(accepted.source.place)
        if answer.error:
            raise DoorError(answer.error)
        facts = {"name": record.name, "digest": record.digest.hex(), "size": record.size, "kind": record.kind}
        return {**facts, "copies": answer.copies}

    async def cluster_risk(self) -> list[Facts]:
        """Live versions of the whole cluster that nobody who is there holds, and those with too few copies."""
        rows: list[Facts] = []
        after, last = ("", 0, ""), False
        while not last and len(rows) < ROWS_MAX:
            page, last = await self.agent.manifest.scan(after, SCAN_PAGE)
            rows += [row for record, holdings in page if (row := self._endangered(record, holdings)) is not None]
            after = page[-1][0].key if page else after
            last = last or not page
        return sorted(rows, key=lambda row: (row["copies"], row["name"]))

    def _endangered(self, record: Record, holdings: tuple[Holding, ...]) -> Facts | None:
        replica = self.agent.replica
        if record.state is not State.LIVE or record.kind == RESERVED_KIND or replica.retention.beyond(record):
            return None
        there = {h.store for h in holdings if h.present and replica.members.is_alive(h.node)}
        needed = replica.ctx.min_copies(record)
        if there and (len(there) > needed or replica.debts.durable_by(record, holdings)):
            return None
        gone = sorted({h.node for h in holdings if h.present and not replica.members.is_alive(h.node)})
        return {
            "name": record.name,
            "digest": record.digest.hex(),
            "size": record.size,
            "origin": record.origin,
            "copies": len(there),
            "needed": needed,
            "lost": not there,
            "why": _why(record, gone, lost=not there, origin_is_there=replica.members.is_alive(record.origin)),
        }


def _adopted(request: PutRequest, accepted: Accepted) -> Record:
    """The record as its origin made it. Raises WireError, ValueError or TypeError with a sentence."""
    if accepted.digest.hex() != request.digest:
        raise ValueError(f"the bytes are not those of {request.name} that {request.origin} accepted")
    name, origin = as_name(request.name), as_node(request.origin)
    meta = as_meta(json.loads(request.meta or "[]"))
    mode = request.mode & 0o777
    return Record(name, request.hlc, origin, accepted.digest, accepted.blake3, accepted.size, mode, meta=meta)


def _why(record: Record, gone: list[str], *, lost: bool, origin_is_there: bool) -> str:
    """One sentence. What nobody holds may still be at its origin, in a log that survives it."""
    if not lost:
        away = f"; {', '.join(gone)} had it and are away" if gone else ""
        return f"it has fewer copies than it needs and is being repaired{away}"
    if origin_is_there:
        return f"only {record.origin} can have it, where it was accepted and is not durable yet"
    holders = ", ".join(dict.fromkeys([record.origin, *gone]))
    return f"lost unless {holders} returns, or its disk does (`spore adopt`)"
