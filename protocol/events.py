"""What happens to the core. Drivers turn sockets, disks, clocks and users into these values."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.effects import Entry, Source
from protocol.fleet import Fleet
from protocol.messages import Hello, Message
from protocol.values import Digest, Holding, NodeId, Place, Record, Stripe


@dataclass(frozen=True, slots=True)
class Boot:
    """The first event: what survived in the WAL, and the highest stamp this node is known to have used."""

    pending: tuple[Entry, ...]
    last_hlc: int


@dataclass(frozen=True, slots=True)
class Put:
    """A new artifact whose bytes are already safe in `source`; the core decides whether it is a new version.

    `place` is the user's own file when it lies in the watched folder (None for bytes from the CLI). `known` is False
    when the file was found by a scan that has no knowledge of what it replaces: it then never outranks anything.
    `live` says that it was written while we watched, or came by the CLI; a scan may also find what we published and
    did not live to record. `request` 0 means that nobody waits for an answer.
    """

    request: int
    name: str
    digest: Digest
    blake3: Digest
    size: int
    mode: int
    source: Source
    place: Place | None = None
    known: bool = True
    meta: tuple[tuple[str, str | int], ...] = ()
    wait_copies: int = 0
    wait_domains: int = 0
    deadline_ms: int = 0
    live: bool = True


@dataclass(frozen=True, slots=True)
class Adopt:
    """An artifact that another node accepted and could not deliver, from a disk that outlived its machine: deliver it,
    under the stamp and the origin that it has. Its bytes are safe in `source`, and are those of the record."""

    request: int
    record: Record
    source: Source


@dataclass(frozen=True, slots=True)
class Remove:
    """A user asks for an explicit delete of a name; with `before_ms`, only if its newest version is older."""

    request: int
    name: str
    before_ms: int = 0


@dataclass(frozen=True, slots=True)
class Declare:
    """Publish a record without bytes under our own kind `spore` (for example a revocation)."""

    request: int
    name: str
    meta: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True)
class Await:
    """A user waits until the newest version of `name` has `copies` receipts over `domains` domains (0: default)."""

    request: int
    name: str
    copies: int
    domains: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Want:
    """A user asks for bytes that may not be here: fetch them into staging without becoming a holder. `direct`: not
    through a relay, for we are one."""

    request: int
    record: Record
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Sync:
    """A user wants these moved now: what we owe and lack of them, or, with `to`, a copy of each to that node. How far
    it is stands in `Replica.syncing`; a `Cancel` ends it."""

    request: int
    records: tuple[Record, ...]
    to: NodeId


@dataclass(frozen=True, slots=True)
class Cancel:
    """Whoever made this request has gone away."""

    request: int


@dataclass(frozen=True, slots=True)
class Durable:
    """Every durable effect up to and including this sequence number is on the disk.

    `refused` says: but for some rows that the manifest could not take and has set aside.
    """

    upto: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class DurableFailed:
    """The durable effects `first` … `upto` are not on the disk; the sentence says why."""

    first: int
    upto: int
    error: str


@dataclass(frozen=True, slots=True)
class SessionUp:
    """A session with an authenticated peer stands; its `Hello` has been read and its node name matches."""

    peer: NodeId
    hello: Hello


@dataclass(frozen=True, slots=True)
class SessionDown:
    peer: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Challenged:
    """A hello of another life of a peer was read while a session with that peer stands. Answered by `Admit`."""

    peer: NodeId
    incarnation: int
    instance: int


@dataclass(frozen=True, slots=True)
class DialFailed:
    peer: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Received:
    """A decoded message from an authenticated peer."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Reserved:
    """Answers `Reserve`: per parcel, the stripes still missing (empty: all), or why there is no room."""

    peer: NodeId
    transfer: int
    missing: tuple[tuple[Stripe, ...], ...]
    refused: tuple[str, ...]  # aligned with the parcels; "" means accepted


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Answers `Upload`: the stream ended. Only the receiver's receipts tell what is safe. `unreachable`: it was never
    begun, for the receiver cannot be dialled."""

    transfer: int
    error: str
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes of a transfer stand verified in staging (or did not come: the sentence says why).

    `peer` is the sender of an upload, or our own node for a fetch of ours.
    """

    peer: NodeId
    transfer: int
    complete: tuple[Record, ...]
    failed: tuple[tuple[Record, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pulled:
    """Answers `Pull`: the run stands verified in staging, or the sentence says why not.

    `missing`: what of the artifact is missing by now, told when its chunk list has just come; else None. `lied`: the
    source sent wrong bytes. `unreached`: it was never asked, for no connection was had.
    """

    number: int
    error: str = ""
    missing: tuple[Stripe, ...] | None = None
    lied: bool = False
    unreached: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """Answers `Publish`. `moved` are files that made room: the older version now lies at the new place."""

    op: int
    done: tuple[tuple[Record, Place], ...]
    failed: tuple[tuple[Record, str], ...] = ()
    moved: tuple[tuple[str, Place], ...] = ()  # (path it had, place it has now)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A file of ours is gone, changed or damaged: its place no longer holds its digest.

    `removed` says that somebody removed it while we watched: for a kind with `delete: propagate` that is a delete.
    `damaged` says that nobody but the disk changed it, so that it is to be fetched again, whoever's it was.
    """

    place: Place
    why: str
    damaged: bool = False
    removed: bool = False


@dataclass(frozen=True, slots=True)
class HeldChecked:
    """Answers `CheckHeld`: of what `peer` asked about, these files are as they were."""

    peer: NodeId
    asked: tuple[Digest, ...]
    held: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class MarkSeen:
    """Answers `LookForMark`: whether the mark is there."""

    peer: NodeId
    nonce: bytes
    found: bool


@dataclass(frozen=True, slots=True)
class Indexed:
    """Answers `Index`: where the mate's file is; None when it did not show, or is not as the mate left it."""

    record: Record
    place: Place | None


@dataclass(frozen=True, slots=True)
class RootKnown:
    """Every file that lay in the root when this life began is known by now: it has its place, or was put.

    Posted once a life, by whoever scans. Until then a file may show a version that the last life published and did not
    live to commit.
    """


@dataclass(frozen=True, slots=True)
class DiskChanged:
    """The disk's room, told when a bit flips and every so often.

    `accepting`: the caps allow bytes for others. `local`: there is room to accept our own. `excess_bytes`: what must go
    to end an emergency; 0 when there is none.
    """

    accepting: bool
    local: bool
    capacity_bytes: int
    used_bytes: int
    excess_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FleetChanged:
    fleet: Fleet


@dataclass(frozen=True, slots=True)
class Timer:
    token: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """Answers `Scan`: records with their holdings; `last` when there are no more."""

    op: int
    page: tuple[tuple[Record, tuple[Holding, ...]], ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Flush:
    """Push what is at risk now. With `leave`, accept nothing more, say goodbye and `Exit` by `deadline_ms`."""

    request: int
    deadline_ms: int
    leave: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """This node will be gone at `deadline_ms`: push by the plan, hold nothing more for others, go on accepting our own.

    `deadline_ms` 0 withdraws an earlier notice. The sentence goes to the log, unless it is empty.
    """

    deadline_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Make the end of this node harmless: `copies` (0: as policy says) of all it has must lie in other stores.

    Answered once that is so, or with what is in the way at `deadline_ms`. `undo` ends it: the node accepts again.
    """

    request: int
    copies: int
    deadline_ms: int
    undo: bool = False


Event = (
    Boot
    | Put
    | Adopt
    | Remove
    | Declare
    | Await
    | Want
    | Sync
    | Cancel
    | Durable
    | DurableFailed
    | SessionUp
    | SessionDown
    | Challenged
    | DialFailed
    | Received
    | Reserved
    | Uploaded
    | Arrived
    | Pulled
    | Published
    | Withdrawn
    | HeldChecked
    | MarkSeen
    | Indexed
    | RootKnown
    | DiskChanged
    | FleetChanged
    | Timer
    | Scanned
    | Flush
    | Notice
    | Drain
)
