"""The egress budgets in force: what hosts file and environment say, and `spore limit` until the agent ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.throttle import Throttle
from protocol.egress import Budgets, budgets_of
from protocol.fleet import Bandwidth, Priority
from protocol.values import NodeId

if TYPE_CHECKING:
    from node.agent import Agent


class Limits:
    """Of one agent; its throttle follows."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.stated: dict[NodeId, Bandwidth] = {}  # by `spore limit`: bounded by the members there are

    def throttle(self) -> Throttle:
        return Throttle(self.budgets(), self._describe)

    def budgets(self) -> Budgets:
        return budgets_of(self._agent.fleet, self._agent.node, self._agent.env, self.stated)

    def apply(self) -> None:
        """What is stated has changed: who sends goes on by it."""
        self._agent.throttle.set_rate(self.budgets())

    def limit(self, node: NodeId, bandwidth: Bandwidth | None) -> None:
        """Limit our own egress, or what goes to a peer; None: what the hosts file says again."""
        self.stated = {name: stated for name, stated in self.stated.items() if name != node}
        if bandwidth is not None:
            self.stated[node] = bandwidth
        self.apply()

    def _describe(self, peer: NodeId) -> tuple[str, Priority]:
        """A peer's provider and priority in the hosts file; called from the threads that send."""
        host = self._agent.fleet.host(peer)
        member = None if host.provider else self._agent.replica.members.row(peer)
        return host.provider or (member.provider if member else ""), host.sync_priority
