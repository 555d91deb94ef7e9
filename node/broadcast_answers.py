"""The answers about broadcasts: declaring one, and how far each node is with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from node.door import DoorError, Facts
from protocol import effects as f
from protocol import events as e
from protocol.broadcasts import bound, broadcast_name, version_meta
from protocol.clock import stamp_ms
from protocol.fleet import Kind
from protocol.planning import Plan
from protocol.values import Holding, NodeId, Record

if TYPE_CHECKING:
    from node.agent import Agent


class BroadcastAnswers:
    """The part of `node.door.Door` that speaks of one to many, for one running agent."""

    agent: Agent
    answer: Callable[[int, asyncio.Future[f.Answer]], Awaitable[f.Answer]]  # see `PolicyAnswers`
    newest: Callable[[str], Record]
    plan_of: Callable[[Record, Kind], Plan]

    async def broadcast(self, name: str) -> Facts:
        """Every eligible node is to hold the newest version of this name, from now on."""
        record = self.newest(name)
        number, future = self.agent.request()
        self.agent.post(e.Declare(number, broadcast_name(name), version_meta(record)))
        await self.answer(number, future)
        return await self.delivery(name)

    async def delivery(self, name: str) -> Facts:
        """Where the newest version of a name has arrived, is on its way, or does not go, and why not."""
        record = self.newest(name)
        kind = self.agent.fleet.kind_of(name)
        if kind is None:
            raise DoorError(f"the hosts file of this node has no kind {record.kind}, so {name} goes nowhere")
        plan = self.plan_of(record, replace(kind, strategy="broadcast"))
        began_ms = self._began_ms(record, kind)
        held = {holding.node: holding for holding in self.agent.manifest.holdings(record.digest) if holding.present}
        stores = {holding.store: holding for holding in held.values()}
        rows = [
            self._row(record, holder.node, stores.get(holder.store), began_ms)
            for holder in plan.holders
            if holder.node != record.origin
        ]
        skipped = [
            {"node": other.node, "state": "skipped", "bytes_done": 0, "seconds": None, "why": other.why}
            for other in plan.others
            if other.node not in held and other.node != record.origin
        ]
        delivered = [row for row in rows if row["state"] == "delivered"]
        nodes = [record.origin, *(row["node"] for row in rows)]
        dialled = [node for node in nodes if self.agent.address_of(node)]
        uplinks = {node: self.agent.fleet.egress_bytes_per_second(node) for node in dialled}
        least = bound(record.size, uplinks, record.origin, len(rows))
        done = len(delivered) == len(rows)
        spent = max((row["seconds"] for row in delivered), default=0.0)
        return {
            "name": name,
            "digest": record.digest.hex(),
            "size": record.size,
            "receivers": len(rows),
            "delivered": len(delivered),
            "done": done,
            "seconds": round(spent if done else (self.agent.now_ms() - began_ms) / 1000, 3),
            "bound_seconds": round(least.seconds, 3),
            "limited_by": least.why,
            "last": "" if done else min(rows, key=lambda row: (row["bytes_done"], row["node"]))["node"],
            "nodes": [*rows, *skipped],
        }

    def _row(self, record: Record, node: NodeId, holding: Holding | None, began_ms: int) -> Facts:
        if holding is not None:
            seconds = max(0.0, round((stamp_ms(holding.seq) - began_ms) / 1000, 3))
            return {"node": node, "state": "delivered", "bytes_done": record.size, "seconds": seconds, "why": ""}
        swarming = self.agent.replica.swarming
        done = swarming.bytes_of(record.digest, node, record.size)
        fetching = node in swarming.audiences.get(record.digest, {})
        state = "fetching" if fetching else "waiting"
        why = "" if fetching else "it has not begun, or tells others"
        return {"node": node, "state": state, "bytes_done": done, "seconds": None, "why": why}

    def _began_ms(self, record: Record, kind: Kind) -> int:
        """When every node was to have it: from the beginning, or since it was asked for."""
        declared = next(iter(self.agent.manifest.versions(broadcast_name(record.name))), None)
        asked = declared is not None and dict(declared.meta) == dict(version_meta(record))
        stamp = declared.hlc if declared is not None and asked and kind.strategy != "broadcast" else record.hlc
        return stamp_ms(stamp)
