"""What the core asks of the world. `node` performs these on sockets and disks, `simulations` on fakes.

A *durable* effect (`Log`, `Commit`) carries a sequence number and only starts: the driver joins the durable effects of
any number of events into one group and answers with `Durable(upto)` or `DurableFailed`. Within a group, logs reach
the disk before commits. Everything else is performed in the order given, after what came before has *started*.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.fleet import Priority
from protocol.messages import Farewell, Message, Prints
from protocol.values import Batch, Digest, NodeId, Parcel, Place, Record, Stripe


@dataclass(frozen=True, slots=True)
class Inline:
    """Source of an accepted artifact: the bytes themselves, at most 64 KiB; they stand in the WAL entry."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Source of an accepted artifact: a private file below `.spore/`, fsynced before the core hears of it."""

    place: Place


@dataclass(frozen=True, slots=True)
class Referenced:
    """Source of an accepted artifact: the user's own file, too large to copy; a change of its stat loses it."""

    place: Place


Source = Inline | Kept | Referenced


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in the WAL for one accepted artifact until it is durable elsewhere."""

    record: Record
    source: Source


@dataclass(frozen=True, slots=True)
class Log:
    """Append an entry to the WAL. The driver remembers which WAL entry belongs to `entry.record.key`."""

    seq: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply a batch to the manifest in one transaction (possibly joined with others)."""

    seq: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class Release:
    """The WAL entries of these records are delivered (or superseded): they need not survive."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message over the session with `peer`; dropped when there is none (a session end tells the core)."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to open a session. Success shows as `SessionUp`, failure as `DialFailed`."""

    peer: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the session with `peer` after what was sent; the sentence goes to the log."""

    peer: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Answers `Challenged`: let this life of `peer` in, or, with a sentence, turn it away."""

    peer: NodeId
    instance: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class StreamRows:
    """Send committed rows of the manifest to `peer` as `RowsMessage` pages, with back-pressure: every one, or those
    with these fingerprints that are there (at most `wire.FINGERPRINTS_MAX`)."""

    peer: NodeId
    only: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StreamPrints:
    """Send the fingerprints of every committed row to `peer` as `Prints` pages, with back-pressure."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class ComparePrints:
    """Compare a page with what the manifest has there: send the peer what it lacks, and ask it for what we lack."""

    peer: NodeId
    prints: Prints


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the bytes of these parcels to `peer` in one stream. Answered by `Uploaded`."""

    transfer: int
    peer: NodeId
    parcels: tuple[Parcel, ...]
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class Abandon:
    """End an upload of ours before its time: others are worth the uplink more. Answered by its `Uploaded`."""

    transfer: int
    why: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get one artifact from any of `sources`, by ranges, into staging. Answered by `Arrived` under our own name."""

    transfer: int
    record: Record
    sources: tuple[NodeId, ...]
    priority: Priority = "normal"
    direct: bool = False  # not through a relay: this is for one


@dataclass(frozen=True, slots=True)
class Pull:
    """Get one run of chunks of an artifact from one node that holds it, or has so much of it, into staging.

    `transfer` is our own, for which room is reserved; `number` is the pull's, answered by `Pulled`, once.
    """

    number: int
    transfer: int
    record: Record
    source: NodeId
    run: Stripe


@dataclass(frozen=True, slots=True)
class CutPull:
    """This pull is of no use any more: end it. Its answer, if it still comes, is for nobody."""

    number: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Reserve disk room for what is about to arrive from `peer`, before its first byte. Answered by `Reserved`.

    Incoming transfers are known by (peer, the sender's number); our own fetches stand under our own name. Chunks that
    earlier tries left in staging are reported, so that only what is missing is asked for.
    """

    peer: NodeId
    transfer: int
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True, slots=True)
class Unreserve:
    """Give back what a transfer reserved: it ended, or will not come. Verified chunks stay in staging."""

    peer: NodeId
    transfer: int


@dataclass(frozen=True, slots=True)
class Publication:
    """One record to publish from staging (or from a place we have). `path` None: as a private version."""

    record: Record
    path: str | None


@dataclass(frozen=True, slots=True)
class Publish:
    """Verify, fsync, rename, fsync the folder. Answered by `Published`, for all of them at once."""

    op: int
    items: tuple[Publication, ...]


@dataclass(frozen=True, slots=True)
class Unlink:
    """Remove these files of ours, each only if its stat is still that of the place (a changed file is the user's)."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class CheckHeld:
    """Look whether the files of `stays` are as their places say. Answered by `HeldChecked`, with what was `asked`."""

    peer: NodeId
    asked: tuple[Digest, ...]
    stays: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Write our mark into the store, for mates to find."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class LookForMark:
    """Look for the mark of `peer` in our store. Answered by `MarkSeen`."""

    peer: NodeId
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Share:
    """Others use this store as well: claim files before they are accepted, from now on."""


@dataclass(frozen=True, slots=True)
class Index:
    """A mate has published these bytes at this path of our store: find them there. Answered by `Indexed`."""

    record: Record
    path: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Return `Timer(token)` at `at_ms`. A token set again replaces the earlier one."""

    token: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a request (a put, a wait, a remove, a get). `error` is one sentence, empty when it went well."""

    request: int
    error: str = ""
    record: Record | None = None
    copies: int = 0
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Scan:
    """Read a page of records with their holdings, in key order after `after`. Answered by `Scanned`."""

    op: int
    after: tuple[str, int, str]
    limit: int


@dataclass(frozen=True, slots=True)
class Report:
    """Something a person may want to know. `level` is debug, info, warning or error; `event` is a stable word."""

    level: str
    event: str
    message: str


@dataclass(frozen=True, slots=True)
class Exit:
    """The final flush is over. `unsafe` lists what was accepted here and is not durable; `farewell` is the report, and
    None when nothing was at risk."""

    unsafe: tuple[Record, ...]
    farewell: Farewell | None = None


Effect = (
    Log
    | Commit
    | Release
    | Send
    | Dial
    | Hangup
    | Admit
    | StreamRows
    | StreamPrints
    | ComparePrints
    | Upload
    | Abandon
    | Fetch
    | Pull
    | CutPull
    | Reserve
    | Unreserve
    | Publish
    | Unlink
    | CheckHeld
    | Mark
    | LookForMark
    | Share
    | Index
    | SetTimer
    | Answer
    | Scan
    | Report
    | Exit
)
Effects = list[Effect]
