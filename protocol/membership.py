"""Who is there, and with whom we are connected: `Swim` decides about life, this module about sessions and rows.

Alive is whom Swim believes alive and whose row (what it says of itself) we know; a session need not stand. Sessions
are kept with some ring neighbours, opened to others when something is to be sent to them, and ended when they are of no
more use. Every known host without a session that is wanted is dialled, for ever, with a back-off: nothing is
unhealthy for good.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from protocol.claims import Changed, Claim, NeedSession, Output, Say, Standing, Twin, Verdict, Wake
from protocol.claims import Message as SwimMessage
from protocol.context import Context
from protocol.effects import Admit, Dial, Hangup, SetTimer
from protocol.messages import Hello
from protocol.placement import Seat, eligible, seat_of
from protocol.rings import Rings
from protocol.swim import Swim
from protocol.values import Batch, Member, NodeId, Presence, Rows, StoreId, newer
from protocol.view import NOTHING, Base

DIAL_MS_MIN = 500  # the first retry: a neighbour that restarts is back in about a second
DIAL_MS_MAX = 15_000  # the longest a returning node waits to be found by a peer it cannot dial itself
DIALLING_MS_MAX = 30_000  # a dial whose outcome was never told
RESTATE_MS_MIN = 2_000  # what changes all the time (bytes at risk, disk use) is told at most this often
REPAIR_GRACE_MS = 60_000  # a node away for less is not worth copying its artifacts for
UNUSED_MS = 120_000  # a session that no ring needs and nobody used is ended: it costs two pings each ten seconds
MEMBERS_MAX = 10_000  # the largest fleet simulated; further names are ignored and reported
WAKE = "swim"  # the token of the timer that Swim asks for
FOR_EVER_MS = 1 << 60
NO_STORE: StoreId = b"none"  # no UUID is that short


@dataclass(slots=True)
class Peer:
    """What we know of reaching one node."""

    address: str
    dialling_until_ms: int = 0
    next_dial_ms: int = 0
    backoff_ms: int = DIAL_MS_MIN
    boot: int = 0
    down_since_ms: int = 0
    died: bool = False  # it was there in this life of ours, and is not any more
    used_ms: int = 0


class Membership:
    """Dials, and answers who is alive and what each member says of itself."""

    def __init__(self, ctx: Context, random: Random, boot: int, base: Base = NOTHING) -> None:
        self.ctx = ctx
        self.alive: dict[NodeId, Member] = {}
        self.sessions: dict[NodeId, None] = {}
        self.peers: dict[NodeId, Peer] = {}
        self.own = Member(ctx.node, 0, store=ctx.store)
        self.removed: dict[NodeId, None] = {}  # gone for good, as somebody declared: see `declared`
        self.twin: Twin | None = None  # another machine runs as this node, and this one must stop
        self._instance = draw_instance(random)
        rings = Rings.build(ctx.fleet.places)
        self.swim = Swim(ctx.node, self._instance, boot, rings, random, base, self.is_ephemeral)
        self._changes: list[NodeId] = []  # who is alive now and was not, or the reverse
        self._restated_ms = 0
        self._told = self.own
        self._rows: dict[NodeId, Member] = {}
        self._unlisted: dict[NodeId, str] = {}  # members that the hosts file does not name, with their domains
        self._seats: dict[tuple[StoreId, str], list[Seat]] = {}  # by the store that does not count, and the kind
        self._everywhere: dict[str, list[Seat]] = {}  # by the kind: the same with every store
        self._choosy: frozenset[str] = frozenset()  # kinds that some host does not receive
        self._stores: frozenset[StoreId] | None = None  # of nodes that are there
        self._shared: dict[StoreId, frozenset[NodeId]] | None = None  # live nodes, of stores that several share
        self._agreed: bool | None = None  # whether all that are there go by one hosts file

    # --- our own row ---

    def boot(self) -> None:
        for member in self.ctx.catalogue.members():
            self._rows[member.node] = member
            self._know(member.node, member.address)
            self._place(member)
            self._look_at(member.node)
        said = self.ctx.catalogue.member(self.ctx.node)
        if said is not None:  # in an earlier life; what still holds is not told again
            self._told = said
            self.own = replace(said, store=self.ctx.store, presence=Presence.IN)
        self.fleet_changed()

    def fleet_changed(self) -> None:
        """Listed hosts are dialled; our own row follows the hosts file."""
        for node in sorted(self.ctx.fleet.hosts):
            self._know(node, self.ctx.fleet.hosts[node].dial_address or "")
        self._unlisted = {node: d for node, d in self._unlisted.items() if node not in self.ctx.fleet.hosts}
        hosts = self.ctx.fleet.hosts.values()
        self._choosy = frozenset(kind for host in hosts for kind, takes in host.receive.items() if not takes)
        self._seats_changed()
        self.swim.list_hosts(sorted(self.ctx.fleet.hosts))
        self._enrol()
        host = self.ctx.host
        self.own = replace(
            self.own,
            address=host.dial_address or self.own.address,
            role=host.role,
            provider=host.provider or "",
            domain=self.ctx.fleet.domain(self.ctx.node),
            ephemeral=host.ephemeral,
            excluded=host.excluded,
            policy_hash=self.ctx.fleet.hash[:16],
        )
        self._seats_changed()

    def state(self, **facts: object) -> None:
        """Change what we say of ourselves; told by `tick`, at once when placement depends on it."""
        before = self.own
        self.own = replace(before, **facts)  # type: ignore[arg-type]  # field names are checked by the callers' tests
        if counts_as(before) != counts_as(self.own):
            self._seats_changed()

    def restatement(self) -> Batch | None:
        """Our own row with a new number, when it is due; to be committed and then told (see `untold`)."""
        now = self.ctx.now_ms
        urgent = (self.own.accepting, self.own.presence, self.own.policy_hash, self.own.excluded) != (
            self._told.accepting,
            self._told.presence,
            self._told.policy_hash,
            self._told.excluded,
        )
        if self.own == self._told or not (urgent or now - self._restated_ms >= RESTATE_MS_MIN):
            return None
        self.own = self._told = replace(self.own, seq=self.ctx.clock.stamp(now))
        self._restated_ms = now
        return Batch(Rows(members=(self.own,)))

    def untold(self, batch: Batch) -> None:
        """This restatement did not reach the disk: what it said is still to be said, unless a later one has."""
        if self._told in batch.rows.members:
            self._told = replace(self._told, seq=0)

    def contradicted(self, member: Member) -> None:
        """Somebody knows a later row of ours than we do, of an earlier life: ours is stated anew, above it."""
        if member.seq > self.own.seq:
            self._told = replace(self._told, seq=0)

    def hello(self, boot: int) -> Hello:
        fold = self.ctx.catalogue.sketch().fold()
        return Hello(self.ctx.fleet.cluster, self.own, boot, fold, self.swim.incarnation, self._instance)

    # --- questions ---

    def seats(self, but: StoreId, kind: str = "") -> list[Seat]:
        """The stores that may hold a kind now, ours among them, without the store `but`: an artifact's own, at its
        origin.

        Every node that sees the same members gets the same answer, whichever asks. The hosts file excludes at once,
        a member's own row once it has heard of it.
        """
        choosy = kind if kind in self._choosy else ""
        if (but, choosy) not in self._seats:
            if choosy not in self._everywhere:
                receives = self.ctx.fleet.receives
                rows = [*self.alive.values(), self.own]
                self._everywhere[choosy] = eligible(rows, NO_STORE, lambda node: receives(node, choosy))
            self._seats[but, choosy] = [seat for seat in self._everywhere[choosy] if seat.store != but]
        return self._seats[but, choosy]

    def mates_of(self, stores: Collection[StoreId]) -> frozenset[NodeId]:
        """Live nodes that share one of these stores with another live node: they see what the other holds."""
        if self._shared is None:
            nodes: dict[StoreId, list[NodeId]] = {}
            for node, member in self.alive.items():
                nodes.setdefault(member.store, []).append(node)
            self._shared = {store: frozenset(mates) for store, mates in nodes.items() if len(mates) > 1}
        return frozenset().union(*(self._shared[store] for store in stores if store in self._shared))

    def row(self, node: NodeId) -> Member | None:
        """What a node, alive or not, last said of itself."""
        return self._rows.get(node)

    def is_alive(self, node: NodeId) -> bool:
        return node in self.alive or node == self.ctx.node

    def neighbours(self) -> Sequence[NodeId]:
        """Whom to tell what is new: the next live node with a session on each ring."""
        return self.swim.neighbours()

    def beyond(self) -> Sequence[NodeId]:
        """Those behind the neighbours on the rings, who miss what is new when one of these has just died."""
        return self.swim.beyond()

    def standing(self, node: NodeId) -> Standing:
        """As we see it; whom we have never heard of counts as dead."""
        entry = self.swim.view.get(node)
        return entry.standing if entry is not None else Standing.DEAD

    def gone_ms(self, node: NodeId) -> int:
        """How long a node has been away, as seen from here; 0 while it is alive; for ever when it left, or can
        vanish and did."""
        if self.is_alive(node):
            return 0
        peer = self.peers.get(node)
        if self.has_left(node) or (peer is not None and peer.died and self.is_ephemeral(node)):
            return FOR_EVER_MS
        return self.ctx.now_ms - (peer.down_since_ms if peer else 0)

    def counts(self, node: NodeId, store: StoreId) -> bool:
        """Whether what a node said it holds counts as a copy: it is there, or not away for long, or a mate of its
        store is there. A dead disk holds nothing, whatever it once said."""
        return self.is_alive(node) or self.gone_ms(node) < REPAIR_GRACE_MS or store in self._live_stores()

    def has_mates(self) -> bool:
        """Whether another live node has our store."""
        return any(member.store == self.own.store for member in self.alive.values())

    def policies_agree(self) -> bool:
        """Whether every live node goes by the hosts file that we go by; while it is rolled out, nothing is trimmed."""
        if self._agreed is None:
            hashes = (member.policy_hash for member in self.alive.values())
            self._agreed = all(stated in ("", self.own.policy_hash) for stated in hashes)
        return self._agreed

    def is_ephemeral(self, node: NodeId) -> bool:
        """Whether a host can vanish: by the hosts file, or, where that does not list it, by its own row."""
        row = self._rows.get(node)
        return self.ctx.fleet.host(node).ephemeral or (row is not None and row.ephemeral)

    def has_left(self, node: NodeId) -> bool:
        """Whether the node said goodbye: it is not expected back soon."""
        if self.is_alive(node):
            return False
        member = self.row(node)
        left = node in self.removed or self.standing(node) is Standing.LEFT
        return left or (member is not None and member.presence is Presence.LEFT)

    def take_changes(self) -> list[NodeId]:
        """Who has come to life or ceased to live since this was last asked."""
        changes, self._changes = self._changes, []
        return changes

    # --- sessions ---

    def session_up(self, peer: NodeId, hello: Hello) -> None:
        if peer in self.removed:  # its certificate is refused as soon as the handshakes know
            self.ctx.emit(Hangup(peer, "it was removed from the cluster"))
        self._know(peer, hello.member.address)
        state = self.peers.setdefault(peer, Peer(hello.member.address))
        state.boot, state.used_ms = hello.boot, self.ctx.now_ms
        state.backoff_ms, state.next_dial_ms, state.dialling_until_ms = DIAL_MS_MIN, 0, 0
        self.sessions[peer] = None
        if newer(self._rows.get(peer), hello.member):
            self._rows[peer] = hello.member
            self._place(hello.member)
        self._follow(self.swim.session_up(peer, hello.incarnation, hello.instance, self.ctx.now_ms))
        self._look_at(peer)

    def challenged(self, peer: NodeId, incarnation: int, instance: int) -> None:
        """Another life of a connected peer is at the door: did it restart, or is it another machine?"""
        self._follow(self.swim.challenged(peer, incarnation, instance, self.ctx.now_ms))

    def session_down(self, peer: NodeId, why: str) -> None:
        """Not yet the end of the peer: Swim asks others whether it is there."""
        if peer in self.sessions:
            del self.sessions[peer]
            self.peers[peer].next_dial_ms = self.ctx.now_ms + DIAL_MS_MIN
            self.ctx.report("info", "session_down", f"the session with {peer} ended: {why}")
            self._follow(self.swim.session_down(peer, self.ctx.now_ms))

    def dial_failed(self, peer: NodeId) -> None:
        state = self.peers.get(peer)
        if state is not None:
            state.backoff_ms = min(state.backoff_ms * 2, DIAL_MS_MAX)
            state.next_dial_ms = self.ctx.now_ms + state.backoff_ms
            state.dialling_until_ms = 0
            self._follow(self.swim.dial_failed(peer, self.ctx.now_ms))

    def connect(self, node: NodeId) -> bool:
        """Whether a session with this node stands; if not, one is dialled when that is due."""
        peer = self.peers.get(node)
        if node in self.sessions:
            self.peers[node].used_ms = self.ctx.now_ms
            return True
        if peer is not None and self.ctx.now_ms >= peer.next_dial_ms:
            self._dial(node)
        return False

    def _dial(self, node: NodeId) -> None:
        """Swim has a back-off of its own: what it asks for is done, unless it is under way."""
        peer = self.peers.get(node)
        reachable = peer is not None and peer.address and node not in self.removed
        if peer is not None and reachable and self.ctx.now_ms >= peer.dialling_until_ms:
            peer.dialling_until_ms = self.ctx.now_ms + DIALLING_MS_MAX
            self.ctx.emit(Dial(node, peer.address))

    def can_be_reached(self, node: NodeId) -> bool:
        """Whether a session stands or could be dialled."""
        peer = self.peers.get(node)
        return node in self.sessions or (peer is not None and bool(peer.address))

    def goodbye(self, peer: NodeId) -> None:
        """The peer leaves of its own will: it is no target from this moment on."""
        entry = self.swim.view.get(peer)
        if entry is not None and entry.lives:
            left = Claim(peer, Standing.LEFT, entry.incarnation, entry.instance)
            self._follow(self.swim.heard((left,), self.ctx.now_ms))

    def leave(self) -> None:
        """We leave: told to every peer, and by them to all."""
        self._follow(self.swim.leave(self.ctx.now_ms))

    def remove(self, node: NodeId) -> None:
        """It is gone for good: nothing is expected of it, and nobody brings it back by what they say."""
        self.removed[node] = None
        if node in self.sessions:
            self.ctx.emit(Hangup(node, "it was removed from the cluster"))
        if self._unlisted.pop(node, None) is not None:
            self._enrol()
        self._look_at(node)
        self._seats_changed()

    def readmit(self, node: NodeId) -> None:
        """It has joined anew and is a member like any other."""
        del self.removed[node]
        if node in self.peers:
            self.peers[node].next_dial_ms = 0
        self._look_at(node)

    def down(self) -> int:
        """How many are expected and not alive."""
        return sum(node not in self.alive and node not in self.removed for node in self.peers)

    # --- what is heard ---

    def heard(self, member: Member) -> bool:
        """A member's row was committed. Returns whether other stores may receive now than before."""
        if member.node == self.ctx.node:
            return False
        self._know(member.node, member.address)
        before = self.alive.get(member.node)
        if newer(self._rows.get(member.node), member):
            self._rows[member.node] = member
            self._place(member)
        self._look_at(member.node)
        if before is None or member.seq < before.seq:
            return False
        return counts_as(before) != counts_as(member)

    def received(self, peer: NodeId, message: SwimMessage) -> None:
        self._follow(self.swim.received(peer, message, self.ctx.now_ms))

    def tick(self) -> None:
        self._follow(self.swim.tick(self.ctx.now_ms))
        kept = dict.fromkeys(self.swim.kept())
        for node in [node for node in self.sessions if node not in kept]:
            if self.ctx.now_ms - self.peers[node].used_ms >= UNUSED_MS:
                self.ctx.emit(Hangup(node, "no ring needs this session, and nobody uses it"))

    def wake(self) -> None:
        self._follow(self.swim.wake(self.ctx.now_ms))

    # --- helpers ---

    def _follow(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Say():
                    self.ctx.send(output.peer, output.message)
                case NeedSession():
                    self._dial(output.node)
                case Changed():
                    self._stands(output)
                case Twin():
                    self.ctx.report("error", "twin", output.why)
                    self.twin = output if output.yields else self.twin
                case Wake():
                    self.ctx.emit(SetTimer(WAKE, output.at_ms))
                case Verdict():
                    self.ctx.emit(Admit(output.peer, output.instance, output.why))

    def _stands(self, changed: Changed) -> None:
        if changed.new is None:
            self._unlisted.pop(changed.node, None)
            self._enrol()
        elif changed.new is Standing.DEAD:
            self.ctx.report("warning", "peer_down", f"{changed.node} is down: {changed.why}")
        elif changed.new is Standing.LEFT:
            self.ctx.report("info", "peer_down", f"{changed.node} said goodbye")
        self._look_at(changed.node)

    def _look_at(self, node: NodeId) -> None:
        """Who lives, by Swim, and is known by its row, counts as alive."""
        row, was_alive = self._rows.get(node), node in self.alive
        if row is not None and self.swim.is_alive(node) and node != self.ctx.node and node not in self.removed:
            before, self.alive[node] = self.alive.get(node), row
            if before is not None and counts_as(before) == counts_as(row):
                return
            if node in self.peers:
                self.peers[node].died = False
        elif was_alive:
            del self.alive[node]
            if node in self.peers:
                self.peers[node].down_since_ms = self.ctx.now_ms
                self.peers[node].died = True
        else:
            return
        if was_alive != (node in self.alive):
            self._changes.append(node)
        self._seats_changed()

    def _know(self, node: NodeId, address: str) -> None:
        if node == self.ctx.node:
            return
        if node not in self.peers:
            if len(self.peers) >= MEMBERS_MAX:
                self.ctx.report("warning", "members_full", f"{node} is ignored: {MEMBERS_MAX} members are known")
                return
            self.peers[node] = Peer(address, down_since_ms=self.ctx.now_ms)
        elif address:
            self.peers[node].address = address

    def _place(self, member: Member) -> None:
        """A node outside the hosts file has its place on the rings by its row, while it is not known to have left."""
        if member.node in self.ctx.fleet.hosts or member.node == self.ctx.node or member.node in self.removed:
            return
        if self._unlisted.get(member.node) != member.domain and member.presence is not Presence.LEFT:
            self._unlisted[member.node] = member.domain
            self.swim.list_hosts((member.node,))
            self._enrol()

    def _enrol(self) -> None:
        own = () if self.ctx.node in self.ctx.fleet.hosts else ((self.ctx.node, self.own.domain),)
        self.swim.enrol(Rings.build((*self.ctx.fleet.places, *own, *sorted(self._unlisted.items()))))

    def _live_stores(self) -> frozenset[StoreId]:
        if self._stores is None:
            self._stores = frozenset(member.store for member in (*self.alive.values(), self.own))
        return self._stores

    def _seats_changed(self) -> None:
        """Who is alive, or what it says of its store, has changed."""
        self._seats.clear()
        self._everywhere.clear()
        self._stores = self._agreed = self._shared = None


def counts_as(member: Member) -> tuple[object, ...]:
    """What of a member's row decides who may receive, whose copies count, and whether versions are dropped."""
    return (member.accepting, member.excluded, member.presence, member.policy_hash, seat_of(member))


def draw_instance(random: Random) -> int:
    """What tells this life from every other: the first that is drawn from its chance."""
    return random.getrandbits(63) | 1
