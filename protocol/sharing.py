"""Mates: nodes that share our root. Said by the hosts file, or found; and believed only once it was seen.

Two nodes whose stores have one UUID may be mates, or one root may be a copy of the other. So each writes a mark with a
nonce of its life into the store and tells it to the other, which looks for it, for longer than an NFS client keeps what
it knows of a folder. Seen: mates, whether the hosts file knows or not. Not seen: a copied root, which is reported; its
copies count as one store all the same, which errs on the safe side. So does a hosts file that names a mate with another
store.

What a mate states to hold in our store is ours to serve as well: it is indexed at once, from the claim the mate left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from protocol.context import Context
from protocol.effects import Index, LookForMark, Mark, Share
from protocol.events import Indexed, MarkSeen
from protocol.membership import Membership
from protocol.messages import Shares
from protocol.policy import Policy
from protocol.values import Batch, Holding, NodeId, State

LOOK_MS = 5_000  # between looks for a mark
CACHED_MS_MAX = 90_000  # an NFS client keeps what it knows of a folder for 60 s (acdirmax), and a listing as long
NONCE_BITS = 128
MATES_MAX = 256  # of one root; further ones are no more looked for


@dataclass(slots=True)
class Mate:
    """A node whose store has our UUID, and what came of looking for its mark."""

    nonce: bytes
    since_ms: int
    next_ms: int
    looking: bool = False
    seen: bool = False
    missed: bool = False  # for so long that it is a contradiction


class Sharing:
    """Finds mates, reports contradictions, indexes what mates publish."""

    def __init__(self, ctx: Context, members: Membership, policy: Policy, random: Random) -> None:
        self.ctx = ctx
        self.members = members
        self.policy = policy
        self.nonce = random.getrandbits(NONCE_BITS).to_bytes(NONCE_BITS // 8, "big")
        self.mates: dict[NodeId, Mate] = {}
        self._told: dict[NodeId, None] = {}  # who has heard our nonce over the session that stands
        self._contradictions: dict[NodeId, str] = {}

    def boot(self) -> None:
        self.ctx.emit(Mark(self.nonce))

    # --- finding ---

    def session_down(self, peer: NodeId) -> None:
        self._told.pop(peer, None)

    def tick(self) -> None:
        for node in sorted(self.members.alive):
            if self.members.alive[node].store == self.ctx.store and node not in self._told:
                self._tell(node)
        for node, mate in self.mates.items():
            if not (mate.seen or mate.looking) and mate.next_ms <= self.ctx.now_ms:
                self._look(node, mate)
        self._compare_with_the_hosts_file()

    def _tell(self, node: NodeId) -> None:
        if self.members.connect(node):
            self._told[node] = None
            self.ctx.send(node, Shares(self.ctx.store, self.nonce))

    def told(self, peer: NodeId, message: Shares) -> None:
        """A node says that it has our store: look for the mark that it says it wrote."""
        known = self.mates.get(peer)
        if message.store != self.ctx.store or len(self.mates) >= MATES_MAX:
            return
        if known is None or known.nonce != message.nonce:
            self.mates[peer] = Mate(message.nonce, self.ctx.now_ms, self.ctx.now_ms)
            self._look(peer, self.mates[peer])

    def _look(self, node: NodeId, mate: Mate) -> None:
        mate.looking = True
        mate.next_ms = self.ctx.now_ms + LOOK_MS
        self.ctx.emit(LookForMark(node, mate.nonce))

    def seen(self, event: MarkSeen) -> None:
        mate = self.mates.get(event.peer)
        if mate is None or mate.nonce != event.nonce:
            return
        mate.looking = False
        if event.found:
            self._found(event.peer, mate)
        elif not mate.missed and self.ctx.now_ms - mate.since_ms >= CACHED_MS_MAX:
            mate.missed = True
            self._contradict(
                event.peer,
                f"the root of {event.peer} has the UUID of ours and is another folder, one is a copy: stop an agent, "
                "remove .spore/store from its root, and start it again",
            )

    def _found(self, node: NodeId, mate: Mate) -> None:
        mate.seen, mate.missed = True, False
        self._contradictions.pop(node, None)
        self.ctx.emit(Share())
        if node not in self.ctx.fleet.nfs_members(self.ctx.node):
            self.ctx.report("info", "mate_found", f"{node} shares our root, which the hosts file does not say")

    def _compare_with_the_hosts_file(self) -> None:
        for node in self.ctx.fleet.nfs_members(self.ctx.node):
            member = self.members.alive.get(node)
            if member is None:
                continue
            if member.store == self.ctx.store:
                if not self.mates.get(node, Mate(b"", 0, 0)).missed:
                    self._contradictions.pop(node, None)
            else:
                self._contradict(
                    node,
                    f"the hosts file says that {node} shares our root, and it has another: each is a store of its own; "
                    "correct nfs_sharing_groups, or what is mounted",
                )

    def _contradict(self, node: NodeId, sentence: str) -> None:
        if self._contradictions.get(node) != sentence:
            self._contradictions[node] = sentence
            self.ctx.report("error", "mate_contradicted", sentence)

    def contradictions(self) -> dict[NodeId, str]:
        """Where file and reality differ, by node."""
        return dict(self._contradictions)

    # --- indexing ---

    def heard(self, holdings: Iterable[Holding]) -> None:
        """A mate states bytes in our store: find them there, so that we serve them too."""
        for holding in holdings:
            theirs = holding.store == self.ctx.store and holding.node != self.ctx.node and holding.present
            if not theirs or self.ctx.places(holding.digest):
                continue
            for record in self.ctx.catalogue.sharers(holding.digest):
                path = self.policy.wished_path(record) if record.state is State.LIVE else None
                if path is not None:
                    self.ctx.emit(Index(record, path))

    def indexed(self, event: Indexed) -> None:
        """The file is there, as the mate's claim says: we know its place from now on. The mate states the holding."""
        if event.place is None or self.ctx.places(event.record.digest):
            return
        if not self.ctx.holds(event.record.digest) or self.ctx.place(event.place.path) is not None:
            return
        self.ctx.commit(Batch(places=(event.place,)), lambda: None)
