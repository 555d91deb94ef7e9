"""Sessions that are wanted and do not stand: with ring neighbours, and with the dead, for ever.

Nobody is unhealthy for good. A dead node beside us on the rings is dialled by a back-off; any other now and then, so
that two halves of a fleet find each other again; and a node that is connected to nobody dials somebody at each tick.
Those that were listed and never heard of count as dead here: so a first start needs no other rule.

Ephemeral nodes that stay away are reaped from the view. What they left undelivered is no matter of membership.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.circle import Circle
from protocol.claims import Changed
from protocol.rings import dials
from protocol.values import NodeId

PEER_DIALS_TICKS = 3  # a peer whose part it is to dial and that has not, perhaps cannot reach us
RETRY_MS_MIN, RETRY_MS_MAX = 1_000, 30_000  # dials to a dead ring neighbour; each fails with three lost packets
STRAY_MS = 30_000  # one of all the dead, at random: with n nodes n dials in this time look for the other side
REAP_MS = 3_600_000  # an ephemeral node away for an hour comes back under a new name, or is heard of anew
REAP_EVERY_TICKS = 60


class Seeking:
    """Says which sessions are needed, and forgets the ephemeral dead."""

    __slots__ = ("_ephemeral", "_missing", "_retries", "_stray_ms", "_ticks", "circle")

    def __init__(self, circle: Circle, is_ephemeral: Callable[[NodeId], bool]) -> None:
        self.circle = circle
        self._ephemeral = is_ephemeral
        self._missing: dict[NodeId, int] = {}  # ticks for which a session that is to be kept is missing
        self._retries: dict[NodeId, tuple[int, int]] = {}  # dead ring neighbours: when next, after which interval
        self._stray_ms = 0
        self._ticks = 0

    def tick(self) -> None:
        self._keep_sessions()
        if self.circle.view.absent():
            self._seek_absent()
        else:
            self._retries.clear()
        self._ticks += 1
        if self._ticks % REAP_EVERY_TICKS == 0:
            self._reap()

    def _keep_sessions(self) -> None:
        """Those that are to be kept and are missing: the smaller id dials, the other when that does not help."""
        missing = [peer for peer in self.circle.kept() if peer not in self.circle.sessions]
        self._missing = {peer: self._missing.get(peer, 0) + 1 for peer in missing}
        for peer, ticks in self._missing.items():
            if dials(self.circle.node, peer) or ticks > PEER_DIALS_TICKS:
                self.circle.need(peer, "a ring neighbour")

    def _seek_absent(self) -> None:
        absent, now_ms = self.circle.view.absent(), self.circle.now_ms
        due = [node for node in self.circle.around() if node in absent and self._retry_is_due(node)]
        if now_ms - self._stray_ms >= STRAY_MS or not self.circle.sessions:
            self._stray_ms = now_ms
            due.append(self.circle.random.choice(list(absent)))
        for node in dict.fromkeys(due):
            self.circle.need(node, "is it back?")
        self._retries = {node: retry for node, retry in self._retries.items() if node in absent}

    def _retry_is_due(self, node: NodeId) -> bool:
        now_ms = self.circle.now_ms
        due_ms, interval_ms = self._retries.get(node, (now_ms, RETRY_MS_MIN))
        if now_ms < due_ms:
            return False
        self._retries[node] = (now_ms + interval_ms, min(RETRY_MS_MAX, interval_ms * 2))
        return True

    def _reap(self) -> None:
        """Ephemeral nodes that did not come back."""
        view = self.circle.view
        for node in [node for node in view.absent() if self._ephemeral(node)]:
            entry = view.get(node)
            if entry is not None and self.circle.now_ms - entry.since_ms >= REAP_MS:
                view.forget(node)
                away = f"away for {REAP_MS // 60_000} minutes"
                self.circle.out.append(Changed(node, entry.standing, None, entry.incarnation, away))
