"""What nodes say of each other's life: claims, the messages that carry them, and what `Swim` asks of its driver.

Claims about one node are ordered by (incarnation, standing, instance): of two, the greater one counts, whoever says it
and whenever it arrives, so that all who hear the same claims believe the same. Only its owner raises an incarnation.

| message | sent by | answered by |
|---|---|---|
| Ping | a ring predecessor, or a helper on its behalf | Ack |
| Ack | the probed node, or a helper for it | nothing |
| PingRequest | a prober that got no answer, to a few others | Ack, or Nack: I live, and it gave me no answer |
| Claims | whoever learnt something, to its ring neighbours | nothing (older claims by the newer one) |
| Questions | who was told deaths by somebody who was away, to its ring neighbours | Claims, from who knows better |
| ViewFold | one side of a new session, and now and then to any peer | ViewBuckets when the folds differ |
| ViewBuckets | who got a fold that differs | ViewPage from the other side |
| ViewPage | who got buckets that differ; then the other side | with `wanted`, ViewPage |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocol.values import NodeId

REFUTATION_BITS = 20  # of an incarnation: a million refutations in one life, 2^43 lives within SQLite's integers
PIGGYBACK_MAX = 8  # claims carried by a probe: with 50 bytes each they fit the packet that goes anyway
PROBE_CLAIMS_MAX = PIGGYBACK_MAX + 1  # one more, about the receiver or the sender itself
PAGE_CLAIMS_MAX = 500  # claims in a message: about 25 kB, less than a millisecond of either end
BUCKETS = 64  # a single difference among 10,000 nodes exchanges 156 claims a side, not 10,000


class Standing(enum.IntEnum):
    """How a node stands in somebody's view. Greater outranks smaller at one incarnation."""

    ALIVE = 0
    SUSPECT = 1  # no answer; counts as alive until its time is up
    DEAD = 2
    LEFT = 3  # it said goodbye


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody says how a node stands. `instance` tells two machines of one identity apart (0: not known).

    `by` is set in suspicions alone: who got no answer. Suspicions by different nodes confirm each other.
    """

    node: NodeId
    standing: Standing
    incarnation: int
    instance: int = 0
    by: NodeId = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `number` is the sender's, and comes back."""

    number: int
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """I am, or: the node you asked me to probe is. `number` is that of the Ping or PingRequest."""

    number: int
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Probe `target` for me: I get no answer. `claims`: what it should hear of itself, in the Ping."""

    number: int
    target: NodeId
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """Your request reached me and its target gave no answer: it is not you who is cut off."""

    number: int


@dataclass(frozen=True, slots=True)
class Claims:
    """News, or a correction; at most `PAGE_CLAIMS_MAX`."""

    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """Somebody who was away calls these dead: is it so? At most `PAGE_CLAIMS_MAX`."""

    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class ViewFold:
    """The exclusive-or of 64-bit marks of all nodes that the sender believes to be alive."""

    fold: int


@dataclass(frozen=True, slots=True)
class ViewBuckets:
    """The same by bucket, `BUCKETS` of them."""

    folds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ViewPage:
    """What the sender knows in buckets that differ. `wanted`: the buckets of which it wants the same in turn."""

    claims: tuple[Claim, ...]
    wanted: tuple[int, ...] = ()


Message = Ping | Ack | PingRequest | Nack | Claims | Questions | ViewFold | ViewBuckets | ViewPage


# --- what Swim asks for, and tells ---


@dataclass(frozen=True, slots=True)
class Say:
    """Send this over the session with `peer`, which stands."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class NeedSession:
    """A session with `node` is wanted and none stands. Said again each tick; whoever dials has its own back-off."""

    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A node stands otherwise than before in this view. `old` None: first heard of; `new` None: reaped."""

    node: NodeId
    old: Standing | None
    new: Standing | None
    incarnation: int
    why: str


@dataclass(frozen=True, slots=True)
class Twin:
    """Another machine lives under this node's identity. `yields`: it is for this one to stop, now."""

    instance: int
    yields: bool
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answers `challenged`: whether the newer life of `peer` is let in. A refusal has its reason."""

    peer: NodeId
    instance: int
    admitted: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """Call `wake` at this time: claims wait to be told together."""

    at_ms: int


Output = Say | NeedSession | Changed | Twin | Verdict | Wake


def first_incarnation(boot: int) -> int:
    """The incarnation a life begins with: above all of its earlier lives, whose boot numbers were smaller."""
    return boot << REFUTATION_BITS
