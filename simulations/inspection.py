"""Rules about what a node has in memory and says of itself, looked at while the run goes on, a few nodes at a time.

The oracle hears what is said and done; here it is seen whether a node's sketch is the fold of its committed rows, its
queues and maps keep their bounds, incarnations are its own and never fall, no stamp stands for two things, and what it
finds by comparing really differs. At the end: who counts as alive lives, and the traffic is that of an idle fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocol import circle, receiving, repair, telling
from protocol import messages as m
from protocol.clock import SCANNED_MAX
from protocol.comparing import TRIED_MAX
from protocol.fingerprints import cluster_key, holding_fingerprint, member_fingerprint, record_fingerprint
from protocol.membership import MEMBERS_MAX
from protocol.probing import RELAYS_MAX
from protocol.replica import Replica
from protocol.sketch import Sketch
from protocol.values import Batch, NodeId
from simulations.driver import SimNode
from simulations.surroundings import Surroundings

LOOK_MS = 1_000
NODES_PER_LOOK = 2  # in turn: a full fold costs as much as committing all its rows again
NODES_AT_END = 50  # of a large fleet, whose nodes were compared with each other before
IDLE_BYTES_PER_SECOND = (
    2_048  # sent by one node, before TLS and TCP: a probe and an answer a second, cells now and then
)
DEADLINES = 4_000  # debts, offers and waits of one node: more than all users of a run ask for

BOUNDS: tuple[tuple[str, Callable[[Replica], int], int], ...] = (
    ("transfers coming in", lambda r: len(r.receiving.incoming), receiving.INCOMING_MAX),
    ("digests arriving", lambda r: len(r.receiving.arriving), receiving.ARRIVING_MAX),
    ("artifacts wanted", lambda r: len(r.receiving.wanted), receiving.WANTED_MAX),
    ("fingerprints tried", lambda r: len(r.comparing._tried), TRIED_MAX + 1),
    ("members", lambda r: len(r.members.peers), MEMBERS_MAX),
    ("claims carried", lambda r: len(r.members.swim._telling._carried), telling.CARRIED_MAX),
    ("probes for others", lambda r: len(r.members.swim._probing._relays), RELAYS_MAX),
    ("local health", lambda r: r.members.swim.health, circle.HEALTH_MAX),
    ("repairs under way", lambda r: len(r.repair._open), repair.OPEN_MAX),
    ("debts", lambda r: len(r.debts.open), DEADLINES),
    ("waits", lambda r: r.debts.waiting(), DEADLINES),
)


class Inspection:
    """Looks at nodes in turn; every finding is a violation told to the oracle."""

    def __init__(self, around: Surroundings, nodes: dict[NodeId, SimNode]) -> None:
        self.around = around
        self.nodes = nodes
        self._key = cluster_key(around.fleet.cluster)
        self._names = sorted(nodes)
        self._next = 0
        self._highest: dict[NodeId, tuple[int, int]] = {}  # of each node: the life, and its highest incarnation so far
        self._said: dict[tuple[NodeId, int], object] = {}  # what a stamp stands for
        self._prints: dict[int, None] = {}  # of every row that any node ever had
        self.differences = 0  # fingerprints asked for, each looked at

    def start(self) -> None:
        self.around.oracle.on_commit = self.committed
        self.around.oracle.on_sending = self.sending
        self.around.schedule.after(LOOK_MS, self._look)

    def _look(self) -> None:
        for _ in range(min(NODES_PER_LOOK, len(self._names))):
            self.look_at(self.nodes[self._names[self._next]])
            self._next = (self._next + 1) % len(self._names)
        self.around.schedule.after(LOOK_MS, self._look)

    def look_at(self, node: SimNode) -> None:
        if node.up and not node.stalled:
            self._look_at_sketch(node)
            self._look_at_bounds(node)
            self._look_at_incarnations(node)

    # --- one node ---

    def _look_at_sketch(self, node: SimNode) -> None:
        catalogue = node.disk.catalogue
        tables = catalogue.tables
        fingerprints = [record_fingerprint(self._key, record) for record in tables.records.values()]
        fingerprints += [holding_fingerprint(self._key, h) for h in tables.holdings.values() if h.present]
        fingerprints += [member_fingerprint(self._key, member) for member in tables.members.values()]
        fold = Sketch(self._key, len(catalogue.sketch()))
        fold.apply(fingerprints)
        if fold != catalogue.sketch():
            self._violation(f"the sketch of {node.name} is not that of its {len(fingerprints)} committed rows")

    def _look_at_bounds(self, node: SimNode) -> None:
        for what, count, most in BOUNDS:
            if count(node.replica) > most:
                self._violation(f"{node.name} has {count(node.replica)} {what}, and {most} is the bound")

    def _look_at_incarnations(self, node: SimNode) -> None:
        """Its own never falls in one life; of others it believes nothing that they have not said."""
        ours = node.replica.members.swim.incarnation
        life, before = self._highest.get(node.name, (node.life, 0))
        if ours < before and life == node.life:
            self._violation(f"the incarnation of {node.name} fell from {before} to {ours}")
        self._highest[node.name] = (node.life, max(ours, before))
        for peer in node.replica.members.sessions:
            entry, other = node.replica.members.swim.view.get(peer), self.nodes.get(peer)
            if entry is None or other is None or not other.up:
                continue
            said = max(self._highest.get(peer, (0, 0))[1], other.replica.members.swim.incarnation)
            if entry.incarnation > said:
                self._violation(f"{node.name} believes an incarnation of {peer} that {peer} never raised itself to")

    # --- what is said and committed ---

    def committed(self, node: NodeId, batch: Batch) -> None:
        for record in batch.rows.records:
            self._prints[record_fingerprint(self._key, record)] = None
            if record.origin == node and record.hlc >= SCANNED_MAX:
                self._stamped(node, record.hlc, record.key)
        for holding in batch.rows.holdings:
            self._prints[holding_fingerprint(self._key, holding)] = None
            if holding.node == node:
                self._stamped(node, holding.seq, holding.key)
        for member in batch.rows.members:
            self._prints[member_fingerprint(self._key, member)] = None
            if member.node == node:
                self._stamped(node, member.seq, member.node)

    def _stamped(self, node: NodeId, stamp: int, row: object) -> None:
        """By keys, for what expires keeps its stamp. Who was set back has forgotten what it stamped."""
        if self._said.setdefault((node, stamp), row) != row and node not in self.around.oracle.were_set_back:
            self._violation(f"{node} used its stamp {stamp} for two things")

    def sending(self, node: NodeId, peer: NodeId, message: m.Message) -> None:
        """Whoever asks for rows lacks them, and somebody has them: nothing is read off a sketch that is not there."""
        if isinstance(message, m.Lacking):
            have = self.nodes[node].disk.catalogue.tables.prints
            self.differences += len(message.fingerprints)
            for fingerprint in message.fingerprints:
                if fingerprint in have:
                    self._violation(f"{node} asks {peer} for a row that it has")
                if fingerprint not in self._prints and not self._exists(fingerprint):
                    self._violation(f"{node} asks {peer} for row {fingerprint:016x}, which nobody ever had")

    def _exists(self, fingerprint: int) -> bool:
        return any(fingerprint in node.disk.catalogue.tables.prints for node in self.nodes.values())

    # --- the end ---

    def membership(self, living: Iterable[SimNode]) -> list[str]:
        """Who counts as alive lives, and the other way round."""
        there = {node.name for node in living}
        matters = []
        for node in self.nodes.values():
            if node.name in there and {*node.replica.members.alive, node.name} != there:
                wrong = sorted({*node.replica.members.alive, node.name} ^ there)
                matters.append(f"{node.name} is wrong about who is alive: {', '.join(wrong[:5])}")
        return matters

    def traffic(self, sent_bytes: int, during_ms: int) -> None:
        """In a fleet that has nothing to do any more."""
        rate = sent_bytes * 1000 / max(1, during_ms) / max(1, len([n for n in self.nodes.values() if n.up]))
        if rate > IDLE_BYTES_PER_SECOND:
            self._violation(f"an idle node sends {rate:.0f} bytes a second")

    def judge(self) -> None:
        for name in self._names[:NODES_AT_END]:
            self.look_at(self.nodes[name])

    def _violation(self, sentence: str) -> None:
        self.around.oracle.violation(sentence)
