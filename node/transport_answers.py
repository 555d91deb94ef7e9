"""The answers about how bytes travel: budgets, transports, loans."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from node.door import EXIT_USAGE, DoorError, Facts
from node.transports.choice import P2P_HTTP
from node.transports.lending import SHARES, NothingToLend
from protocol.effects import Report
from protocol.values import Digest

if TYPE_CHECKING:
    from node.agent import Agent


class TransportAnswers:
    """The part of `node.door.Door` that speaks of transfers and budgets, for one running agent."""

    agent: Agent

    async def limit(self, node: str, rate: str) -> list[Facts]:
        return self.agent.limits.asked(node, rate)

    async def lend(self, digest: str, to: str, priority: str) -> AsyncIterator[Facts]:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise DoorError("a digest is 64 hexadecimal digits in lower case", EXIT_USAGE)
        if priority not in SHARES:
            raise DoorError(f"there is no priority {priority!r}; use one of {', '.join(SHARES)}", EXIT_USAGE)
        lender = self.agent.carriage.lender
        try:
            rows = await asyncio.to_thread(lambda: list(lender.lend(bytes.fromhex(digest), priority)))
        except NothingToLend as problem:
            raise DoorError(str(problem)) from problem
        self.agent.report(Report("info", "lent", f"{digest[:12]} ({rows[0]['size']} bytes) is lent to {to} over SSH"))
        for row in rows:
            yield row

    def transports(self) -> Facts:
        """Each transport, and why it cannot be used on this machine ("" when it can)."""
        carrier = self.agent.carriage.carrier
        missing = carrier.missing()
        return {name: missing.get(name, "") for name in carrier.transports}

    def choices(self, digest: Digest) -> list[Facts]:
        """The ways that were tried lately for an artifact, and what is on its way now."""
        tried = [
            {
                "transport": choice.transport,
                "direction": "fetch",
                "peers": list(choice.nodes),
                "why": choice.why,
                "at": round(choice.at_seconds, 3),
                "outcome": choice.outcome,
            }
            for choice in self.agent.carriage.carrier.choices(digest)
        ]
        return tried + [
            {
                "transport": P2P_HTTP,
                "direction": "out",
                "peers": [peer],
                "why": "it is offered and taken: pushed over the peer's port",
                "at": None,
                "outcome": "under way",
            }
            for peer in self.agent.transfers.pushing(digest)
        ]
