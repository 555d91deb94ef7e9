"""The egress budgets in force: what hosts file and environment say, and `spore limit` until the agent ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.config_problems import BadValueError
from node.config_values import read_rate
from node.door import EXIT_USAGE, DoorError, Facts
from node.throttle import Throttle
from protocol.egress import UNLIMITED, Budgets, budgets_of
from protocol.fleet import BANDWIDTH_VARIABLE, Bandwidth, Priority
from protocol.names import NameRefused, check_node
from protocol.values import NodeId

if TYPE_CHECKING:
    from node.agent import Agent

DEFAULT = "default"  # what `spore limit` takes to go back to the hosts file


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

    def asked(self, node: NodeId, rate: str) -> list[Facts]:
        """What `spore limit` asks for; the budgets in force afterwards. Raises DoorError for a bad rate or node."""
        if rate:
            try:
                bandwidth = None if rate == DEFAULT else read_rate(rate)
                check_node(node or self._agent.node)
            except (BadValueError, NameRefused) as problem:
                raise DoorError(f"{problem}", EXIT_USAGE) from problem
            self.limit(node or self._agent.node, bandwidth)
        return self.facts()

    def facts(self) -> list[Facts]:
        """Every budget: what it covers, its bytes per second (null: unlimited), and who says so."""
        budgets, own = self.budgets(), self._agent.node
        rows = [(f"all of {own}", budgets.node, self._source(own))]
        rows += [(f"to {name} together", rate, "hosts file") for name, rate in budgets.providers]
        rows += [(f"to {peer}", rate, self._source(peer)) for peer, rate in budgets.peers]
        return [
            {"egress": what, "bytes_per_second": None if rate in (None, UNLIMITED) else round(rate or 0), "by": by}
            for what, rate, by in rows
        ]

    def _source(self, node: NodeId) -> str:
        if node in self.stated:
            return "spore limit"
        return "environment" if node == self._agent.node and self._agent.env.get(BANDWIDTH_VARIABLE) else "hosts file"

    def _describe(self, peer: NodeId) -> tuple[str, Priority]:
        """A peer's provider and priority in the hosts file; called from the threads that send."""
        host = self._agent.fleet.host(peer)
        member = None if host.provider else self._agent.replica.members.row(peer)
        return host.provider or (member.provider if member else ""), host.sync_priority
