"""Who is alive: SWIM with Lifeguard, over kept sessions along two rings.

(Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol", 2002;
for Lifeguard see circle.py.) Differences from the papers, each because sessions are kept and stalls are common:

- A node is probed by its three predecessors on ring A, not by anybody at random: those have a session with it.
- A suspicion is told to the suspect and to its other probers, not to everybody: each of them probes at once, and either
  confirms or does not. Only who got no answer itself times a suspicion out. So a stall of some seconds costs its
  neighbourhood a few messages and the rest one line of news, and no third party's clock can declare a death.
- A death is told to everybody, at once.
- The dead are dialled for ever, by those who would keep sessions with them, and at random by everybody: whoever is
  heard on the other side of a healed partition hears that it counts as dead, and refutes it.

Every input returns outputs, in order (claims.py). Nothing is durable here: the boot number, persisted by the driver
before it is used, makes incarnations persist. Idle, a node sends and gets one probe and one answer a second each, and a
comparison each ten seconds, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from protocol.circle import TICK_MS, Circle
from protocol.claims import (
    Ack,
    Claim,
    Claims,
    Message,
    Nack,
    Output,
    Ping,
    PingRequest,
    Questions,
    Standing,
    Verdict,
    ViewBuckets,
    ViewFold,
    ViewPage,
    first_incarnation,
)
from protocol.own_life import OwnLife
from protocol.probing import DIRECT_MS, Probing
from protocol.questioning import Questioning
from protocol.rings import Rings
from protocol.seeking import Seeking
from protocol.suspecting import Suspecting
from protocol.telling import Comparing, Telling
from protocol.values import NodeId
from protocol.view import NOTHING, Base, Entry, View

LAG_MS = 500  # a loop this late lets answers lie unread for half a probe's patience
LAG_STEP_MS = 2_000  # each of these in a lag costs health once more
LAG_HEALTH_MAX = 3
SPOKE_MS = 5_000  # each prober hears from its targets every 3 s; a suspicion lasts longer than this


@dataclass(frozen=True, slots=True)
class Challenge:
    """A newer life of a peer waits at the door while the one we have a session with is asked whether it lives."""

    number: int
    instance: int
    due_ms: int


class Swim:
    """One node's membership. Inputs: `tick` each second, `wake` when asked for, sessions, messages."""

    __slots__ = (
        "_challenges", "_comparing", "_own_life", "_probing", "_questioning", "_seeking", "_suspecting", "_telling",
        "_tick_ms", "_told_of_itself", "circle", "view",
    )  # fmt: skip

    def __init__(
        self,
        node: NodeId,
        instance: int,
        boot: int,
        rings: Rings,
        random: Random,
        base: Base = NOTHING,
        is_ephemeral: Callable[[NodeId], bool] = lambda node: False,
    ) -> None:
        self.view = View(base, node)
        self.circle = Circle(node, instance, first_incarnation(boot), rings, self.view, random)
        self._telling = Telling(self.circle)
        self._comparing = Comparing(self.circle, self._telling, self._learn)
        self._suspecting = Suspecting(self.circle, self._telling, self._hear)
        self._questioning = Questioning(self.circle, self._telling, self._hear)
        self._probing = Probing(self.circle, self._telling, self._suspecting.unanswered)
        self._seeking = Seeking(self.circle, is_ephemeral)
        self._own_life = OwnLife(self.circle, self._telling)
        self._challenges: dict[NodeId, Challenge] = {}  # at most one for each peer we have a session with
        self._told_of_itself: dict[NodeId, None] = {}  # since the last tick
        self._tick_ms = -1

    # --- questions ---

    @property
    def incarnation(self) -> int:
        """To be said in every hello, with the instance."""
        return self.circle.incarnation

    @property
    def health(self) -> int:
        """0: all is well here; up to 8: so many times more patient with others."""
        return self.circle.health

    def is_alive(self, node: NodeId) -> bool:
        """Alive or suspected, as far as this node knows; itself always."""
        return self.circle.lives(node)

    def kept(self) -> tuple[NodeId, ...]:
        """With whom sessions are to be kept now, in name order."""
        return self.circle.kept()

    def neighbours(self) -> tuple[NodeId, ...]:
        """Whom to tell what is new: the next live node on each ring with which a session stands."""
        return self.circle.told()

    def beyond(self) -> tuple[NodeId, ...]:
        """With whom to compare after news: those behind the neighbours, who miss it when one of these has just died."""
        return self.circle.rings.beyond(self.circle.node, self.circle.reaches)

    # --- inputs ---

    def tick(self, now_ms: int, lag_ms: int = 0) -> list[Output]:
        """Once each `TICK_MS`. `lag_ms`: how late the driver's event loop runs, when it measures that itself."""
        late_ms = max(lag_ms, now_ms - self._tick_ms - TICK_MS) if self._tick_ms >= 0 else lag_ms
        self._tick_ms = now_ms
        self._told_of_itself.clear()
        self.circle.advance(now_ms)
        if self._silent():
            return self._settle()
        if late_ms >= LAG_MS:  # answers may lie unread: nothing expires before the next tick
            self.circle.worsen(min(LAG_HEALTH_MAX, 1 + late_ms // LAG_STEP_MS))
        else:
            self._expire()
        self._probing.turn()
        self._seeking.tick()
        self._own_life.tick()
        self._comparing.tick()
        self._telling.tick()
        return self._settle()

    def wake(self, now_ms: int) -> list[Output]:
        """Answers `Wake`."""
        self.circle.advance(now_ms)
        return self._settle()

    def received(self, peer: NodeId, message: Message, now_ms: int) -> list[Output]:
        """A message over a session that stands."""
        self.circle.advance(now_ms)
        if peer in self.circle.sessions and not self._silent():
            self.circle.heard_ms[peer] = self.circle.lived_ms
            self._read(peer, message)
            self._tell_of_itself(peer)
        return self._settle()

    def session_up(self, peer: NodeId, incarnation: int, instance: int, now_ms: int) -> list[Output]:
        """A session stands; the peer said this in its hello. It may replace one that stood."""
        self.circle.advance(now_ms)
        self.circle.opened(peer, instance)
        if not self._silent():
            self._hear(Claim(peer, Standing.ALIVE, incarnation, instance), peer)
            entry = self.view.get(peer)
            if entry is not None and (entry.incarnation, entry.instance) != (incarnation, instance):
                self._telling.tell(peer, (peer,))  # we know a later claim of it: a twin's, or from before a snapshot
            self._tell_of_itself(peer)
            self._probing.session_up(peer)
            self._comparing.session_up(peer)
        return self._settle()

    def session_down(self, peer: NodeId, now_ms: int) -> list[Output]:
        """A session ended, whatever the reason: is the peer still there?"""
        self.circle.advance(now_ms)
        self.circle.closed(peer)
        challenge = self._challenges.pop(peer, None)
        if challenge is not None:
            self.circle.out.append(Verdict(peer, challenge.instance, True))
        if not self._silent() and self.view.lives(peer) and peer in self.circle.kept():
            self._probing.lost(peer)
        return self._settle()

    def dial_failed(self, peer: NodeId, now_ms: int) -> list[Output]:
        """A session could not be had."""
        self.circle.advance(now_ms)
        if not self._silent() and self.view.lives(peer) and peer in self.circle.kept():
            self._probing.lost(peer)
        return self._settle()

    def heard(self, claims: Iterable[Claim], now_ms: int) -> list[Output]:
        """Claims from elsewhere than a message."""
        self.circle.advance(now_ms)
        self._hear_all(tuple(claims), "")
        return self._settle()

    def challenged(self, peer: NodeId, incarnation: int, instance: int, now_ms: int) -> list[Output]:
        """A hello has been read and not been answered. `Verdict` says, now or soon, whether the session is let in.

        A newer life of a peer usually means that it restarted. Where the older one still answers, it is another
        machine.
        """
        self.circle.advance(now_ms)
        current = self.circle.sessions.get(peer)
        if current is None or current == instance:
            self.circle.out.append(Verdict(peer, instance, True))
        elif peer in self._challenges:
            self.circle.out.append(
                Verdict(peer, instance, False, f"another life of {peer} is being checked: try again")
            )
        else:
            due_ms = self.circle.lived_ms + DIRECT_MS * (1 + self.circle.health)
            self._challenges[peer] = Challenge(self._probing.next_number(), instance, due_ms)
            self.circle.say(peer, Ping(self._challenges[peer].number))
        return self._settle()

    def leave(self, now_ms: int) -> list[Output]:
        """Goodbye: told to every peer, and by them to all; nobody suspects us. Nothing is said after this."""
        self.circle.advance(now_ms)
        if not self._silent():
            self.circle.leaving = True
            for peer in sorted(self.circle.sessions):
                self._telling.tell(peer, (self.circle.node,))
        return self._settle()

    def enrol(self, rings: Rings) -> None:
        """Other members have places on the rings now."""
        self.circle.enrol(rings)

    def list_hosts(self, nodes: Iterable[NodeId]) -> None:
        """Hosts of the hosts file: those never heard of are dialled for ever."""
        for node in nodes:
            if node != self.circle.node:
                self.view.list_host(node)

    def _silent(self) -> bool:
        """Whether nothing is to be said any more: we said goodbye, or yielded to a twin."""
        return self.circle.leaving or self._own_life.yielded

    def _settle(self) -> list[Output]:
        if not self._silent():
            self._telling.flush()
        out, self.circle.out = self.circle.out, []
        return out

    # --- messages ---

    def _read(self, peer: NodeId, message: Message) -> None:
        match message:
            case Ping():
                self._hear_all(message.claims, peer)
                self._probing.pinged(peer, message)
            case Ack():
                self._hear_all(message.claims, peer)
                if not self._answers_challenge(peer, message.number):
                    self._probing.acked(peer, message)
            case PingRequest():
                self._probing.requested(peer, message)
            case Nack():
                self._probing.nacked(peer, message)
            case Claims():
                self._hear_all(message.claims, peer)
            case Questions():
                self._asked_about(message.claims, peer)
            case ViewFold():
                self._comparing.asked(peer, message)
            case ViewBuckets():
                self._comparing.answered(peer, message)
            case ViewPage():
                self._comparing.paged(peer, message)

    def _answers_challenge(self, peer: NodeId, number: int) -> bool:
        """The older life of a peer is there: the newer is another machine."""
        challenge = self._challenges.get(peer)
        if challenge is None or challenge.number != number:
            return False
        del self._challenges[peer]
        why = f"another machine runs as {peer} and answers: stop it, or join under a name of your own"  # 120 bytes pass
        self.circle.out.append(Verdict(peer, challenge.instance, False, why))
        return True

    def _tell_of_itself(self, peer: NodeId) -> None:
        """Whoever speaks is there: when it counts as suspect or dead, it must hear so, to refute it."""
        claims = self.circle.about(peer)
        if claims and peer not in self._told_of_itself:
            self._told_of_itself[peer] = None
            self.circle.say(peer, Claims(claims))

    # --- claims ---

    def _hear_all(self, claims: tuple[Claim, ...], peer: NodeId) -> None:
        """Claims from a peer; where it believes a node dead that lives, or the reverse, it is told better."""
        stale = self._learn(claims, peer)
        if stale:
            self._telling.tell(peer, stale)

    def _asked_about(self, claims: tuple[Claim, ...], peer: NodeId) -> None:
        """Somebody who was away calls these dead: refute it, say what we know, or ask on."""
        for claim in claims:
            if claim.node == self.circle.node:
                self._own_life.heard(claim, peer)
            else:
                self._questioning.ask(claim, peer)
        known = [claim.node for claim in claims if self._knows_better(claim)]
        if known:
            self._telling.tell(peer, known)

    def _knows_better(self, claim: Claim) -> bool:
        """Of a death that is asked about: it is one, or there is a later life."""
        entry = self.view.get(claim.node)
        return entry is not None and (not entry.lives or entry.incarnation > claim.incarnation)

    def _learn(self, claims: tuple[Claim, ...], peer: NodeId) -> list[NodeId]:
        """Claims from a peer. Returns the nodes of which it is behind."""
        for claim in claims:
            if not self.view.says(claim):
                self._hear(claim, peer)
        return [claim.node for claim in claims if self._is_stale(claim)]

    def _is_stale(self, claim: Claim) -> bool:
        entry = self.view.get(claim.node)
        if entry is None or entry.incarnation <= claim.incarnation:
            return False
        return entry.lives != (claim.standing <= Standing.SUSPECT)

    def _hear(self, claim: Claim, peer: NodeId) -> None:
        if claim.node == self.circle.node:
            self._own_life.heard(claim, peer)
        elif claim.standing is Standing.SUSPECT:
            if self._suspecting.accused(claim, peer):
                self._probing.begin(claim.node)
        elif peer and self._questioning.doubts(claim, peer):
            self._questioning.ask(claim, peer)
        elif claim.standing is Standing.DEAD and peer and self._just_spoke(claim.node):
            self.circle.say(claim.node, Claims((claim,)))  # whoever says so is wrong: it can refute that itself
        else:
            changed = self.view.merge(claim, self.circle.now_ms)
            if changed is not None:
                self._became(claim.node, *changed, peer)

    def _just_spoke(self, node: NodeId) -> bool:
        """Whether we have heard from a node ourselves while whoever calls it dead had no answer.

        It may be one that cannot hear: what it says must not cut our own sessions off.
        """
        heard_ms = self.circle.heard_ms.get(node)
        lives = heard_ms is not None and self.view.lives(node)
        return lives and self.circle.lived_ms - (heard_ms or 0) < SPOKE_MS

    def _became(self, node: NodeId, old: Entry | None, new: Entry, peer: NodeId) -> None:
        """We believe something else of a node than before."""
        why = f"{peer} told it" if peer not in ("", node) else "it said so" if peer else "no answer in time"
        self.circle.note(node, old, new, why)
        self._telling.news(node, peer, urgent=old is None or old.lives != new.lives)
        self._suspecting.changed(node, old, new)
        if new.standing is Standing.DEAD:
            self._tell_of_itself(node)

    # --- in time ---

    def _expire(self) -> None:
        """Questions without an answer, suspicions without a refutation, newcomers whose older life said nothing."""
        self._probing.expire()
        self._suspecting.expire()
        self._questioning.expire()
        for node in self._suspecting.hearsay():
            self._probing.begin(node)
        for peer, challenge in list(self._challenges.items()):
            if self.circle.lived_ms >= challenge.due_ms:
                del self._challenges[peer]
                self.circle.out.append(Verdict(peer, challenge.instance, True))
