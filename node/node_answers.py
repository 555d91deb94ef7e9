"""The answers about nodes: who may enter, who is shut out, who is gone for good, and what depends on this one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from node.door import EXIT_USAGE, DoorError, Facts
from node.identity import IdentityError
from node.rotation import state
from node.tokens import TokenError
from protocol import effects as f
from protocol import events as e
from protocol.declared import removed_name
from protocol.fleet import RESERVED_KIND
from protocol.names import NameRefused, check_node

if TYPE_CHECKING:
    from node.agent import Agent


class NodeAnswers:
    """The part of `node.door.Door` that speaks of nodes, for one running agent."""

    agent: Agent
    answer: Callable[[int, asyncio.Future[f.Answer]], Awaitable[f.Answer]]  # see `PolicyAnswers`

    async def token(self, ttl_seconds: float, uses: int, ephemeral: bool) -> Facts:
        agent = self.agent
        if not agent.contexts.identity.issuer:
            issuers = [name for name, host in sorted(agent.fleet.hosts.items()) if host.issuer]
            where = f"; run this on {', '.join(issuers)}" if issuers else ""
            raise DoorError(f"{agent.node} does not hold the cluster's key{where}", EXIT_USAGE)
        address = agent.fleet.host(agent.node).dial_address or f"127.0.0.1:{agent.listener.port}"
        now = time.time()
        try:
            token = await asyncio.to_thread(
                lambda: agent.token_book.create(
                    ttl_seconds=ttl_seconds,
                    uses=uses,
                    ephemeral=ephemeral,
                    addresses=[address],
                    ca_pin=agent.contexts.identity.ca_pin,
                    cluster=agent.fleet.cluster,
                    issuer=agent.node,
                    now=now,
                )
            )
        except TokenError as problem:
            raise DoorError(str(problem), EXIT_USAGE) from problem
        return {"token": token, "expires_at": now + ttl_seconds, "uses": uses, "ephemeral": ephemeral}

    async def revoke(self, node: str) -> Facts:
        self._check_other(node)
        since = int(time.time())
        await self._declare(f"{RESERVED_KIND}/revoked/{node}", "since", since)
        return {"node": node, "revoked_at": since}

    async def renew(self) -> Facts:
        """Take up what `spore rotate` has changed on the disk of an issuer, then get the next certificate."""
        agent = self.agent
        try:
            await asyncio.to_thread(agent.contexts.reload)
        except IdentityError as problem:
            raise DoorError(str(problem)) from problem
        problem_found = await agent.renew()
        if problem_found:
            raise DoorError(problem_found)
        return {"node": agent.node, "not_after": agent.contexts.identity.facts.not_after} | state(
            agent.contexts.identity
        )

    async def remove(self, node: str) -> Facts:
        """Its certificates are refused first: whoever still runs there must not go on as if nothing had happened."""
        self._check_other(node)
        if self.agent.replica.members.is_alive(node):
            raise DoorError(f"{node} is alive; drain and stop it first, or shut it out with `spore revoke {node}`")
        revoked = await self.revoke(node)
        await self._declare(removed_name(node), "removed", 1)
        return {"node": node, "removed": True, "revoked_at": revoked["revoked_at"]}

    async def drain(self, copies: int, deadline_seconds: float, undo: bool) -> Facts:
        agent = self.agent
        number, future = agent.request()
        agent.post(e.Drain(number, copies, agent.now_ms() + int(deadline_seconds * 1000), undo))
        try:
            answer = await future
        finally:
            agent.forget(number)
        own = agent.replica.debts.own_open()
        return {
            "safe": answer.durable,
            "draining": agent.replica.draining.active,
            "at_risk": {"artifacts": len(own), "bytes": sum(debt.record.size for debt in own)},
            "why": answer.error,
        }

    def _check_other(self, node: str) -> None:
        try:
            check_node(node)
        except NameRefused as refused:
            raise DoorError(str(refused), EXIT_USAGE) from refused
        if node == self.agent.node:
            raise DoorError("a node cannot do this to itself; run it on another node", EXIT_USAGE)

    async def _declare(self, name: str, key: str, value: int) -> None:
        number, future = self.agent.request()
        self.agent.post(e.Declare(number, name, ((key, value),)))
        await self.answer(number, future)
