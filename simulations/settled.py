"""A fleet that has known each other for long: what every node has when time begins.

Every node has every member's row, believes everybody alive, and has its sessions along the rings; nothing is left to be
told. A fleet that meets for the first time tells n rows to n nodes, which for thousands is most of a run.
"""

from __future__ import annotations

from random import Random

from protocol.claims import Standing, first_incarnation
from protocol.clock import COUNTER_BITS
from protocol.membership import draw_instance
from protocol.values import Batch, Member, NodeId, Rows
from protocol.view import Base, Entry
from simulations.disks import EPOCH_MS
from simulations.driver import SimNode
from simulations.memory import MemoryCatalogue

BEFORE_MS = 3_600_000  # when each node said what it says of itself


def start_settled(nodes: dict[NodeId, SimNode]) -> None:
    """Start all nodes, in the first moment, as a fleet that has settled."""
    everybody = list(nodes.values())
    around = everybody[0].around
    known = MemoryCatalogue(around.fleet.cluster, "")
    known.apply([Batch(Rows(members=tuple(_row(node) for node in everybody)))])
    for node in everybody:
        node.disk.catalogue.adopt(known)
    base = Base.build({node.name: _entry(node) for node in everybody})
    for node in everybody:
        node.start(base)
    for node in everybody:
        for peer in node.replica.members.swim.kept():
            if node.name < peer:
                around.network.introduce(node.name, peer)


def _entry(node: SimNode) -> Entry:
    """As its first life will be: its chance is drawn here, and its instance from that."""
    node.seed = node.random.getrandbits(32) | 1
    return Entry(Standing.ALIVE, first_incarnation(1), draw_instance(Random(node.seed)))


def _row(node: SimNode) -> Member:
    """What the node would say of itself."""
    fleet = node.around.fleet
    host = fleet.host(node.name)
    return Member(
        node.name,
        (EPOCH_MS - BEFORE_MS) << COUNTER_BITS,
        host.dial_address or "",
        host.role,
        host.provider or "",
        fleet.domain(node.name),
        node.store.store,
        ephemeral=host.ephemeral,
        excluded=host.excluded,
        accepting=node.depot.look(),
        capacity_bytes=node.store.capacity_bytes,
        used_bytes=node.store.used_bytes(),
        policy_hash=fleet.hash[:16],
    )
