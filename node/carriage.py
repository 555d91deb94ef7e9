"""How an agent's bytes travel, composed: the transports it fetches by, what it carries and lends for others."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from node.breakers import P2P_HTTP
from node.bulk_client import Connections
from node.door import DoorError
from node.transports.carrier import Carrier
from node.transports.lending import Lender
from node.transports.order import Kit
from node.transports.relay_desk import RelayDesk
from node.transports.scratch import sweep
from protocol.events import Want
from protocol.values import Digest, NodeId, Record, State

if TYPE_CHECKING:
    from node.agent import Agent

SCRATCH = -1  # the number under which room for what programs write is reserved: the core's transfers count from 1


class Carriage:
    """Of one agent."""

    def __init__(self, agent: Agent, connections: Connections) -> None:
        self._agent = agent
        workshop = agent.store.own / "transports" / agent.node
        sweep(workshop)
        kit = Kit(
            agent.node,
            agent.depot,
            connections,
            workshop,
            lambda key, size: agent.room.reserve(SCRATCH, key, size),
            lambda key: agent.room.release(SCRATCH, key),
            agent.directory / "identity",
            lambda: agent.fleet,
            agent.address_of,
            agent.told_wrong_bytes,
        )
        self.carrier = Carrier(kit, self._relays, self._refused, agent.report_from_thread)
        agent.transfers.pulling.on_ended = self.carrier.pulled
        self.desk = RelayDesk(
            agent.node, agent.depot, self._bring, self._progress, self._relays_max, agent.report_from_thread
        )
        self.lender = Lender(agent.depot, agent.throttle)

    def _relays_max(self) -> int:
        return self._agent.fleet.routing_for(self._agent.node).max_relays

    def _relays(self) -> tuple[NodeId, ...]:
        """Nodes that may carry for us: a session stands, so they are there now, and they can be dialled."""
        return tuple(node for node in list(self._agent.replica.members.sessions) if self._agent.address_of(node))

    def _refused(self, node: NodeId) -> str:
        return self._agent.guards.shut(node, P2P_HTTP)

    def _progress(self, digest: Digest) -> int:
        return self._agent.transfers.bytes_done(digest)

    def _bring(self, digest: Digest) -> Future[Record]:
        return asyncio.run_coroutine_threadsafe(self._brought(digest), self._agent.loop)

    async def _brought(self, digest: Digest) -> Record:
        """Fetch what somebody wants carried into staging; on the loop. Raises DoorError."""
        agent = self._agent
        record = next((r for r in agent.replica.ctx.catalogue.sharers(digest) if r.state is State.LIVE), None)
        if record is None:
            raise DoorError(f"{agent.node} knows no artifact with these bytes")
        if agent.replica.ctx.holds(digest):
            return record
        number, future = agent.request()
        agent.post(Want(number, record, direct=True))
        try:
            answer = await future
        finally:
            agent.forget(number)
        if answer.error:
            raise DoorError(answer.error)
        return record
