"""What an agent that holds the authority's key does for others: its issuer and its join endpoint, composed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from node.config import HOSTS_FILE_NAME
from node.issuer import Issuer, JoinServer, Standing
from node.tokens import BOOK_FILE, TokenBook
from protocol.declared import removed_name
from protocol.events import Declare

if TYPE_CHECKING:
    from node.agent import Agent


def issuer_of(agent: Agent) -> Issuer | None:
    """The issuer of a running agent; None where there is no key."""
    if not agent.contexts.identity.issuer:
        return None
    agent.token_book = TokenBook(agent.contexts.identity.folder / BOOK_FILE)
    return Issuer(
        lambda: agent.contexts.identity,
        agent.token_book,
        standing=lambda node: _standing(agent, node),
        revocations=agent.revocations,
        clock=time.time,
    )


def join_server_of(agent: Agent, issuer: Issuer) -> JoinServer:
    return JoinServer(
        issuer,
        hosts_file=(agent.directory / HOSTS_FILE_NAME).read_bytes,
        seeds=lambda: [m.address for m in agent.replica.members.alive.values() if m.address],
        report=agent.report,
        refusals=agent.refusals,
        admitted=lambda node: _readmit(agent, node),
    )


def _standing(agent: Agent, node: str) -> Standing:
    """Whoever was revoked is out, though it may count as alive until nobody has reached it for a while."""
    listed = node in agent.fleet.hosts
    alive = agent.replica.members.is_alive(node) and node not in agent.revocations
    return Standing(listed, agent.fleet.host(node).ephemeral, alive)


def _readmit(agent: Agent, node: str) -> None:
    """A node that was gone for good has joined anew."""
    if node in agent.replica.members.removed:
        agent.post(Declare(0, removed_name(node), (("removed", 0),)))
