"""Faults: what goes wrong during the safety phase, drawn from the seed, and how all of it is healed again."""

from __future__ import annotations

from random import Random

from protocol.events import Flush
from protocol.values import NodeId
from simulations.chance import between
from simulations.driver import SimNode
from simulations.links import Cut
from simulations.options import Options
from simulations.surroundings import Surroundings

AWAY_MS = (500, 15_000)  # from a crash to the restart
FUSE_MAX = 60  # effects and steps a doomed process still gets through
TROUBLE_MS = (2_000, 12_000)  # how long a disk fails or is full
PARTED_MS = (4_000, 20_000)  # how long a partition lasts: most outlast the heartbeat, so that both sides dial in vain
STALL_MS = (500, 12_000)  # a garbage collection, to a laptop's lid; most end before the heartbeat is missed
CLOG_MS = (1_000, 8_000)
IMAGE_AGE_MS = (2_000, 10_000)  # how old an image is when a machine is set back to it
STORM_MS = (5_000, 20_000)  # when the storm comes
STORM_SPREAD_MS = 3_000  # from the first machine taken to the last
NOTICE_MS = 10_000  # shorter than any provider's, so that not everything gets away
LEAVE_MS = 4_000  # the deadline of a SIGTERM


class Faults:
    """Strikes one node, or the network, at a time; several may overlap."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode], options: Options, seed: int) -> None:
        self.around = around
        self.nodes = nodes
        self.options = options
        self.random = Random(f"{seed}/faults")
        self.healed = False

    def schedule(self) -> None:
        weather = self.around.streams.weather
        weather.breaks, weather.lies = self.options.stream_breaks, self.options.stream_lies
        weather.stalls = self.options.stream_stalls
        self.around.network.weather.loss = self.options.loss
        self.around.network.weather.packet_loss = self.options.packet_loss
        for node in self._nodes():
            node.depot.trouble = self.options.disk_trouble
        if self.options.skew_ms_max:
            self._skew()
        if self.options.storm:
            self._later(STORM_MS, self._storm)
        if self.options.upgrade:
            self._upgrade()
        count = int(self.options.faults_per_second * self.options.busy_ms / 1000) if self.options.weights else 0
        for _ in range(count):
            self.around.schedule.after(self.random.randint(1_000, self.options.busy_ms), self._strike)

    def _nodes(self) -> list[SimNode]:
        return [self.nodes[name] for name in sorted(self.nodes)]

    def _skew(self) -> None:
        """No two machines agree on the time, from their first start on."""
        for node in self._nodes():
            node.clock_offset_ms = between(self.random, -self.options.skew_ms_max, self.options.skew_ms_max)
            self._bite("clock_skewed")

    def _strike(self) -> None:
        kinds = [kind for kind, _ in self.options.weights]
        kind = self.random.choices(kinds, weights=[weight for _, weight in self.options.weights])[0]
        node = self.random.choice(self._nodes())
        getattr(self, f"_{kind}")(node)

    def _later(self, bounds_ms: tuple[int, int], act: object) -> None:
        assert callable(act)
        self.around.schedule.after(self.random.randint(*bounds_ms), act)

    def _bite(self, knob: str) -> None:
        self.around.bites[knob] = self.around.bites.get(knob, 0) + 1

    # --- crashes ---

    def _fuse(self, node: SimNode) -> None:
        """The process dies after so many more effects: between any two of them."""
        node.fuse = self.random.randint(1, FUSE_MAX)
        node.power = self.random.random() < 0.5
        self._later(AWAY_MS, node.start)
        self.around.schedule.after(AWAY_MS[1] + 1, node.start)

    def _power(self, node: SimNode) -> None:
        node.crash(power=True)
        self._later(AWAY_MS, node.start)

    def _kill(self, node: SimNode) -> None:
        node.crash(power=False)
        self._later(AWAY_MS, node.start)

    def _leave(self, node: SimNode) -> None:
        """SIGTERM: a last flush, then the process ends; somebody starts it again."""
        if node.up:
            node.handle(Flush(0, node.clock_ms() + LEAVE_MS, leave=True))
            self.around.schedule.after(LEAVE_MS + self.random.randint(*AWAY_MS), node.start)

    def _vanish(self, node: SimNode) -> None:
        """An ephemeral machine is taken away with its disk."""
        ephemeral = [n for n in self._nodes() if self.around.fleet.host(n.name).ephemeral and not n.gone]
        if ephemeral and self.random.random() < 0.5:
            self.random.choice(ephemeral).vanish()

    def _clock(self, node: SimNode) -> None:
        """The wall clock jumps; the agent sees it at its next start, which follows."""
        node.clock_offset_ms = self.random.randint(-self.options.clock_ms_max, self.options.clock_ms_max)
        self._bite("clock_jumped")
        self._kill(node)

    def _stall(self, node: SimNode) -> None:
        node.stall(between(self.random, *STALL_MS), clock_too=False)

    def _freeze(self, node: SimNode) -> None:
        node.stall(between(self.random, *STALL_MS), clock_too=True)

    def _set_back(self, node: SimNode) -> None:
        """An image is taken now and restored a while later."""
        node.take_image()
        self._later(IMAGE_AGE_MS, lambda: self._restore(node))

    def _restore(self, node: SimNode) -> None:
        if not self.healed and node.set_back():
            self._later(AWAY_MS, node.start)

    def _storm(self) -> None:
        """The provider takes all its spot machines back: every second one is told, a little before."""
        doomed = [n for n in self._nodes() if self.around.fleet.host(n.name).ephemeral and not n.gone]
        for index, node in enumerate(doomed):
            notice_ms = NOTICE_MS if index % 2 else 0
            if notice_ms and node.up:
                self._bite("notice_given")
                node.handle(Flush(0, node.clock_ms() + notice_ms, leave=True))
            self.around.schedule.after(notice_ms + between(self.random, 0, STORM_SPREAD_MS), node.vanish)

    def _upgrade(self) -> None:
        """One after the other: SIGTERM, and back with a later version; the last one is back before the users rest."""
        nodes = self._nodes()
        gap_ms = self.options.busy_ms // (len(nodes) + 1)
        for index, node in enumerate(nodes):
            self.around.schedule.after((index + 1) * gap_ms - LEAVE_MS, self._replace_version, node)

    def _replace_version(self, node: SimNode) -> None:
        self._leave(node)
        node.newer = True
        self._bite("upgraded")

    # --- networks ---

    def _one_way(self, node: SimNode) -> None:
        """A route that works in one direction only."""
        here = {name: None for name in sorted(self.nodes) if self.random.random() < 0.5}
        there = {name: None for name in sorted(self.nodes) if name not in here}
        cut = Cut(here, there, both=False)
        self.around.network.cut(cut)
        self._later(PARTED_MS, lambda: self.around.network.mend(cut))

    def _clog(self, node: SimNode) -> None:
        """All that this node sends stands in a queue for a while."""
        until_ms = self.around.schedule.now_ms + between(self.random, *CLOG_MS)
        for peer in sorted(self.nodes):
            self.around.network.clog(node.name, peer, until_ms)

    def _partition(self, node: SimNode) -> None:
        sides = {name: self.random.randint(0, 1) for name in sorted(self.nodes)}
        self.around.network.partition(sides)
        self._later(PARTED_MS, lambda: self.around.network.partition({}))

    # --- disks ---

    def _fill(self, node: SimNode) -> None:
        """Somebody else fills the disk, up to the cap or up to the brim."""
        share = self.random.choice((0.69, 0.72, 0.9, 0.999))
        node.store.other_bytes = max(0, int(node.store.capacity_bytes * share))
        self._bite("disk_filled")
        self._later(TROUBLE_MS, lambda: self._empty(node))

    def _empty(self, node: SimNode) -> None:
        node.store.other_bytes = 0

    def _io(self, node: SimNode) -> None:
        """Every group commit of this node fails for a while."""
        node.io_fails = True
        self._later(TROUBLE_MS, lambda: self._io_ends(node))

    def _io_ends(self, node: SimNode) -> None:
        node.io_fails = False

    # --- the end ---

    def heal(self) -> None:
        """Everything works again and everybody who can come back does."""
        self.around.streams.weather.breaks = self.around.streams.weather.lies = 0.0
        self.around.streams.weather.stalls = 0.0
        self.healed = True
        self.around.network.weather.heal()
        for node in self._nodes():
            node.fuse = 0
            node.depot.trouble = 0.0
            node.io_fails = False
            if not self.options.rehearsal:
                self._empty(node)
            node.start()
