"""Who is there: membership in its first form. A peer is alive while a session with it stands.

Every listed host and every member heard of is dialled, for ever, with a back-off; a peer that said goodbye or was
down is dialled again all the same, since nothing is unhealthy for good. The next form (probes, suspicion,
incarnations) replaces what is behind `alive` and leaves the events as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocol.context import Context
from protocol.effects import Dial
from protocol.messages import Hello
from protocol.placement import Seat, eligible, seat_of
from protocol.values import Batch, Member, NodeId, Presence, Rows, StoreId

DIAL_MS_MIN = 500  # the first retry: a neighbour that restarts is back in about a second
DIAL_MS_MAX = 15_000  # the longest a returning node waits to be found by a peer it cannot dial itself
RESTATE_MS_MIN = 2_000  # what changes all the time (bytes at risk, disk use) is told at most this often
REPAIR_GRACE_MS = 60_000  # a node away for less is not worth copying its artifacts for
MEMBERS_MAX = 10_000  # the largest fleet simulated; further names are ignored and reported


@dataclass(slots=True)
class Peer:
    """What we know of reaching one node."""

    address: str
    next_dial_ms: int = 0
    backoff_ms: int = DIAL_MS_MIN
    boot: int = 0
    down_since_ms: int = 0
    left: bool = False


class Membership:
    """Dials, and answers who is alive and what each member says of itself."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.alive: dict[NodeId, Member] = {}
        self.peers: dict[NodeId, Peer] = {}
        self.own = Member(ctx.node, 0, store=ctx.store)
        self._restated_ms = 0
        self._told = self.own
        self._rows: dict[NodeId, Member] = {}
        self._seats: dict[StoreId, list[Seat]] = {}  # by the store that does not count
        self._stores: frozenset[StoreId] | None = None  # of nodes that are there
        self._agreed: bool | None = None  # whether all that are there go by one hosts file

    # --- our own row ---

    def boot(self) -> None:
        for member in self.ctx.catalogue.members():
            self._rows[member.node] = member
            self._know(member.node, member.address)
        self.fleet_changed()

    def fleet_changed(self) -> None:
        """Listed hosts are dialled; our own row follows the hosts file."""
        for node in sorted(self.ctx.fleet.hosts):
            self._know(node, self.ctx.fleet.hosts[node].dial_address or "")
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
        self._seats_changed()
        self.own = replace(self.own, **facts)  # type: ignore[arg-type]  # field names are checked by the callers' tests

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
        return Hello(self.ctx.fleet.cluster, self.own, boot, self.ctx.catalogue.sketch().fold())

    # --- peers ---

    def seats(self, but: StoreId) -> list[Seat]:
        """The stores that may hold now, ours among them, without the store `but`: an artifact's own, at its origin.

        Every node that sees the same members gets the same answer, whichever asks.
        """
        if but not in self._seats:
            self._seats[but] = eligible([*self.alive.values(), self.own], but)
        return self._seats[but]

    def row(self, node: NodeId) -> Member | None:
        """What a node, alive or not, last said of itself (committed)."""
        return self._rows.get(node)

    def is_alive(self, node: NodeId) -> bool:
        return node in self.alive or node == self.ctx.node

    def gone_ms(self, node: NodeId) -> int:
        """How long a node has been away, as seen from here; 0 while it is alive; for ever when it left."""
        if self.is_alive(node):
            return 0
        if self.has_left(node):
            return 1 << 60
        peer = self.peers.get(node)
        return self.ctx.now_ms - (peer.down_since_ms if peer else 0)

    def counts(self, node: NodeId, store: StoreId) -> bool:
        """Whether what a node said it holds counts as a copy: it is there, or not away for long, or a mate of its
        store is there. A dead disk holds nothing, whatever it once said."""
        return self.is_alive(node) or self.gone_ms(node) < REPAIR_GRACE_MS or store in self._live_stores()

    def _live_stores(self) -> frozenset[StoreId]:
        if self._stores is None:
            self._stores = frozenset(member.store for member in (*self.alive.values(), self.own))
        return self._stores

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

    def _seats_changed(self) -> None:
        """Who is alive, or what it says of its store, has changed."""
        self._seats.clear()
        self._stores = self._agreed = None

    def session_up(self, peer: NodeId, hello: Hello) -> None:
        self._know(peer, hello.member.address)
        state = self.peers.setdefault(peer, Peer(hello.member.address))
        state.backoff_ms, state.left, state.boot = DIAL_MS_MIN, False, hello.boot
        self.alive[peer] = hello.member
        self._seats_changed()

    def session_down(self, peer: NodeId, why: str) -> None:
        if self.alive.pop(peer, None) is not None:
            state = self.peers[peer]
            state.down_since_ms = self.ctx.now_ms
            state.next_dial_ms = self.ctx.now_ms + DIAL_MS_MIN
            self._seats_changed()
            level = "info" if state.left else "warning"
            self.ctx.report(level, "peer_down", f"{peer} is no longer connected: {why}")

    def dial_failed(self, peer: NodeId) -> None:
        state = self.peers.get(peer)
        if state is not None:
            state.backoff_ms = min(state.backoff_ms * 2, DIAL_MS_MAX)
            state.next_dial_ms = self.ctx.now_ms + state.backoff_ms

    def goodbye(self, peer: NodeId) -> None:
        """The peer leaves of its own will: it is no target from this moment on."""
        if peer in self.peers:
            self.peers[peer].left = True
        self.session_down(peer, "it said goodbye")

    def heard(self, member: Member) -> bool:
        """A member's row was committed. Returns whether other stores may receive now than before."""
        if member.node == self.ctx.node:
            return False
        self._rows[member.node] = member
        self._know(member.node, member.address)
        before = self.alive.get(member.node)
        if before is None or member.seq < before.seq:
            return False
        self.alive[member.node] = member
        self._seats_changed()
        return (before.accepting, before.excluded, seat_of(before)) != (
            member.accepting,
            member.excluded,
            seat_of(member),
        )

    def tick(self) -> None:
        """Dial whoever has no session and is due."""
        now = self.ctx.now_ms
        for node in sorted(self.peers):
            peer = self.peers[node]
            if peer.address and node not in self.alive and now >= peer.next_dial_ms:
                peer.next_dial_ms = now + DIAL_MS_MAX * 2  # until its outcome is told
                self.ctx.emit(Dial(node, peer.address))

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

    def has_left(self, node: NodeId) -> bool:
        """Whether the node said goodbye: it is not expected back soon."""
        peer = self.peers.get(node)
        if peer is not None and peer.left:
            return True
        member = self.row(node)
        return not self.is_alive(node) and member is not None and member.presence is Presence.LEFT
