"""A world: nodes on disks and links, users, faults, and the oracle, run from a seed to a verdict.

Two phases. In the first, users work and faults strike: nothing promised may be broken. In the second everything is
healed and the users are silent: within a bound all must have settled, and stay so.
"""

from __future__ import annotations

from hashlib import blake2b
from random import Random

from protocol.fleet import Fleet
from protocol.values import NodeId, StoreId
from simulations.broadcast import Broadcast
from simulations.clients import Clients
from simulations.disks import LocalDisk, StoreDisk
from simulations.driver import SimNode
from simulations.faults import Faults
from simulations.inspection import Inspection
from simulations.links import Links
from simulations.memory import MemoryCatalogue
from simulations.network import Network
from simulations.options import Options
from simulations.oracle import Oracle
from simulations.schedule import Schedule, Trace
from simulations.script import Script
from simulations.settled import start_settled
from simulations.streams import Streams
from simulations.surroundings import Surroundings
from simulations.uplinks import Uplinks
from simulations.verdict import Verdict
from simulations.watching import Claims
from simulations.workers import Workers

LOOK_MS = 1_000  # between looks at whether all has settled
STEADY_MS = 6_000  # it must stay settled for so long


class World:
    """One run of one seed."""

    def __init__(self, options: Options, fleet: Fleet, seed: int, keep_trace: int = 0) -> None:
        self.options = options
        self.fleet = fleet
        self.seed = seed
        self.schedule = Schedule()
        self.oracle = Oracle(self.schedule, fleet)
        bites: dict[str, int] = {}
        chance = Random(f"{seed}/network")
        links = Links(seed, chance, options.equal_latency_ms)
        network = Network(self.schedule, links, chance, bites)
        self.around = Surroundings(fleet, self.schedule, Trace(keep_trace), network, self.oracle, bites)
        self.nodes: dict[NodeId, SimNode] = {}
        self.around.streams = Streams(network, Random(f"{seed}/streams"), self.nodes)
        if options.budgets:
            self.around.streams.uplinks = Uplinks(self.schedule, fleet, self.oracle)
        self._build()
        users = Broadcast if options.broadcast_bytes else Workers if options.rehearsal else Clients
        self.clients: Clients | Workers | Broadcast = users(self.around, self.nodes, options, seed)
        self.faults = Faults(self.around, self.nodes, options, seed)
        self.script = Script(self.around, self.nodes, options.script)
        self.verdict = Verdict(self.around, self.nodes)
        self.inspection = Inspection(self.around, self.nodes)
        self.settled_ms = 0

    def _build(self) -> None:
        stores: dict[str, StoreDisk] = {}
        claims: dict[str, Claims] = {}
        for name in sorted(self.fleet.hosts):
            host = self.fleet.hosts[name]
            group = host.nfs_group or name
            store = stores.setdefault(group, self._store(group, host.nfs_group is not None))
            store.ephemeral = host.ephemeral
            disk = LocalDisk(MemoryCatalogue(self.fleet.cluster, name))
            node = SimNode(name, self.around, store, disk, Random(f"{self.seed}/{name}"))
            node.watching.claims = claims.setdefault(group, Claims())
            self.nodes[name] = node
            self.around.network.join(node, self.fleet.domain(name))
            if not host.dial_address:
                self.around.network.weather.deaf[name] = None
            self.oracle.join(name, store, disk)

    def _store(self, group: str, shared: bool) -> StoreDisk:
        store: StoreId = blake2b(f"{self.seed}/{group}".encode(), digest_size=16).digest()
        return StoreDisk(store, shared, self.options.capacity_bytes)

    # --- the run ---

    def start(self) -> None:
        """Start every node: all at once where they have settled, else one after the other."""
        if self.options.settled:
            start_settled(self.nodes)
            return
        for index, name in enumerate(sorted(self.nodes)):
            self.schedule.after(index * 7, self.nodes[name].start)

    def run(self) -> None:
        self.start()
        self.inspection.start()
        self.clients.schedule()
        self.faults.schedule()
        self.script.schedule()
        self.schedule.run_until(self.options.busy_ms)
        self.faults.heal()
        self.settle()
        self.verdict.judge()
        if isinstance(self.clients, Broadcast):
            self.clients.judge()
        self.inspection.judge()

    def settle(self) -> None:
        """Wait until nothing is open any more, and stays so."""
        end = self.schedule.now_ms + self.options.heal_ms_max
        steady_since, sent_bytes = -1, 0
        while self.schedule.now_ms < end:
            self.schedule.run_until(self.schedule.now_ms + LOOK_MS)
            if self._open_matters():
                steady_since = -1
            elif steady_since < 0:
                steady_since, sent_bytes = self.schedule.now_ms, self.around.network.bytes
            elif self.schedule.now_ms - steady_since >= STEADY_MS:
                self.settled_ms = steady_since
                self.inspection.traffic(self.around.network.bytes - sent_bytes, self.schedule.now_ms - steady_since)
                return
        for matter in self._open_matters()[:10]:
            self.oracle.violation(f"after {self.options.heal_ms_max // 1000} healthy seconds {matter}")

    def _open_matters(self) -> list[str]:
        return self.verdict.open_matters() or self.inspection.membership(self.verdict.living())
