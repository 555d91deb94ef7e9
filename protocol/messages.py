"""What nodes say to each other over a session: the messages, who sends them and what answers.

| message | sent by | answered by |
|---|---|---|
| Hello | both sides, first | the other's Hello |
| RowsMessage | anyone, after a commit; in pages at session start | nothing |
| Fold | anyone, each gossip interval | `RowsMessage` pages from both sides when the folds differ |
| Offer | a node with bytes for the receiver | Take |
| Take | the receiver, once it has reserved room | the bytes (a bulk upload), then Receipt |
| Receipt | the receiver, after the commit of its holdings | nothing; it ends the transfer |
| Ask | a node that wants bytes uploaded | Offer |
| Goodbye | a node that leaves | the session ends |

Encoding and bounds are in `wire.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.values import Digest, Holding, Member, Parcel, Rows, Stripe


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session. `boot` tells one life of a node from the next; `fold` spares equal nodes the exchange."""

    cluster: str
    member: Member
    boot: int
    fold: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RowsMessage:
    """Committed rows: told at once to everyone when they are new, streamed in pages to a peer that may lack them."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Fold:
    """Count and exclusive-or of the fingerprints of all committed records and holdings of the sender.

    `reply` is set when this answers a fold that differed: the receiver then streams, and does not answer again.
    """

    fold: tuple[int, int]
    reply: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """I have these for you: `transfer` is the sender's number; stripes name the part meant for this receiver.

    `answers` is the receiver's own transfer number when the offer answers an `Ask` (else 0).
    """

    transfer: int
    parcels: tuple[Parcel, ...]
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Take:
    """What the receiver of an offer wants of it, aligned with its parcels.

    `refused[i]`: "" to take, else the reason in a sentence; `missing[i]`: stripes still needed (empty: all).
    """

    transfer: int
    refused: tuple[str, ...]
    missing: tuple[tuple[Stripe, ...], ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """These holdings are verified, fsynced, renamed and committed; those digests failed, each with the reason."""

    transfer: int
    holdings: tuple[Holding, ...]
    failed: tuple[tuple[Digest, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Offer me these: used for small artifacts (many to a stream) and towards nodes that cannot be dialled."""

    transfer: int
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender leaves now, and says so; it is not suspected."""

    why: str


Message = Hello | RowsMessage | Fold | Offer | Take | Receipt | Ask | Goodbye

HAVE = "have"  # a refusal that is good news: the receiver's store holds the digest already
BUSY = "busy"  # a refusal that passes soon: the receiver has its hands full
LEAVING = "leaving"  # the receiver is about to stop
