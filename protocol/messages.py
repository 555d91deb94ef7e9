"""What nodes say to each other over a session: the messages, who sends them and what answers.

| message | sent by | answered by |
|---|---|---|
| Hello | both sides, first | the other's Hello |
| RowsMessage | anyone, after a commit; who was asked for rows | nothing (older rows by the newer ones) |
| CellsMessage | anyone, each gossip interval | nothing when equal, else RowsMessage, Lacking, CellsWanted or Prints |
| CellsWanted | who could not resolve the first cells | CellsMessage |
| Lacking | who lacks rows | RowsMessage |
| Prints | who differs by more than cells resolve, in pages | RowsMessage, Lacking |
| Offer | a node with bytes for the receiver | Take |
| Take | the receiver, once it has reserved room | the bytes (a bulk upload), then Receipt |
| Receipt | the receiver, after the commit of its holdings | nothing; it ends the transfer |
| Ask | a node that wants bytes uploaded | Offer |
| Confirm | a holder that wants to give up its copies | Confirmed |
| Confirmed | another holder, once it has looked at its files | nothing |
| Farewell | a node that leaves with something at risk, before its goodbye | nothing |
| Pieces | who fetches a large artifact, to those who fetch it too and to its source | Fetchers, from a holder |
| Fetchers | a holder, to those who fetch from it | nothing; they tell each other what they have |
| Unreachable | who cannot dial the receiver of its offer | nothing; the receiver fetches |
| Shares | a node whose store has the receiver's UUID | the receiver's own Shares |
| Goodbye | a node that leaves | the session ends |

What they say of who is alive stands in `claims.py`. Encoding and bounds are in `wire.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import claims
from protocol.cells import Cells
from protocol.values import Digest, Holding, Member, NodeId, Parcel, RecordKey, Rows, StoreId, Stripe


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session. `boot` tells one life of a node from the next; `fold` spares equal nodes a comparison;
    `incarnation` and `instance` are what the node says of its own life (see claims.py)."""

    cluster: str
    member: Member
    boot: int
    fold: tuple[int, int]
    incarnation: int
    instance: int


@dataclass(frozen=True, slots=True)
class RowsMessage:
    """Committed rows: told at once to everyone when they are new, streamed in pages to a peer that may lack them."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class CellsMessage:
    """The first cells of the sender's sketch: from them the receiver reads what differs (see comparing.py)."""

    cells: Cells


@dataclass(frozen=True, slots=True)
class CellsWanted:
    """The difference was not resolved: send this many cells, from the first on."""

    count: int


@dataclass(frozen=True, slots=True)
class Lacking:
    """Send me the rows with these fingerprints; none named means every row."""

    fingerprints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prints:
    """All fingerprints that the sender has with a prefix from `first` up to, not with, `end`, ascending.

    The page from `PREFIXES` on is that of the rows without bytes, whose fingerprints have no prefix.
    """

    first: int
    end: int
    fingerprints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """I have these for you: `transfer` is the sender's number; stripes name the part meant for this receiver.

    `answers` is the receiver's own transfer number when the offer answers an `Ask` (else 0). `pull`: one large
    artifact, which the receiver may get piece by piece instead of being sent it (see swarm.py).
    """

    transfer: int
    parcels: tuple[Parcel, ...]
    answers: int = 0
    pull: bool = False


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
class Confirm:
    """I am about to give up my copies of these: look whether you hold them, and keep them for a while."""

    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Of what was `asked`, the sender looked at these files just now, and keeps them for two minutes at least."""

    asked: tuple[Digest, ...]
    held: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """In a farewell: so many artifacts and bytes have the receipt of this node."""

    node: NodeId
    artifacts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Unsafe:
    """In a farewell: one artifact that is not durable, with the copies it has elsewhere, and why it has no more."""

    key: RecordKey
    digest: Digest
    size: int
    copies: int
    why: str


@dataclass(frozen=True, slots=True)
class Farewell:
    """The report of a last flush: what was at risk, who has it now, and what is not safe.

    `unsafe` counts what is not durable, `lost` what of it nobody else has; `named` lists them, the latter first.
    """

    artifacts: int
    bytes: int
    saved: tuple[Saved, ...]
    unsafe: int
    unsafe_bytes: int
    lost: int
    lost_bytes: int
    named: tuple[Unsafe, ...]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the sender has of an artifact that it fetches, and what is under way to it: sets of pieces, as bits."""

    digest: Digest
    have: int
    asked: int


@dataclass(frozen=True, slots=True)
class Fetchers:
    """Others who fetch this artifact now."""

    digest: Digest
    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The sender of an offer cannot dial its receiver: what was taken is to be fetched instead."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Shares:
    """My store has this UUID, which is yours: look for the mark with this nonce in it (see sharing.py)."""

    store: StoreId
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender leaves now, and says so; it is not suspected."""

    why: str


AboutRows = RowsMessage | CellsMessage | CellsWanted | Lacking | Prints
AboutBytes = Offer | Take | Receipt | Ask | Unreachable | Pieces | Fetchers | Confirm | Confirmed | Shares
Message = Hello | Farewell | Goodbye | AboutRows | AboutBytes | claims.Message

HAVE = "have"  # a refusal that is good news: the receiver's store holds the digest already
BUSY = "busy"  # a refusal that passes soon: the receiver has its hands full
FETCHING = "fetching"  # no refusal: the receiver gets it piece by piece, and its receipt follows
LEAVING = "leaving"  # the receiver is about to stop
