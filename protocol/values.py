"""The values every layer speaks of: records, holdings, members and the artifact they are about.

All are frozen. A *record* says that a version of a name exists, a *holding* says where its bytes lie, a *member*
says what a node tells of itself. These three are the rows that every node ends up with; nothing else is replicated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

NodeId = str
Digest = bytes  # 32 bytes: the root over size and chunk digests (see chunks.py)
StoreId = bytes  # 16 bytes: the UUID written in <root>/.spore/store
Hlc = int  # 48 bits of milliseconds since 1970, 16 bits of counter (see clock.py)

DIGEST_BYTES = 32
STORE_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)  # stands in tombstones and other records without bytes


class State(enum.IntEnum):
    """What a record says of its version: there to be kept, deleted by a user, or expired by rule."""

    LIVE = 0
    DELETED = 1
    EXPIRED = 2


class RecordKey(NamedTuple):
    """The identity of a version: two versions of one name differ in stamp or origin."""

    name: str
    hlc: Hlc
    origin: NodeId


@dataclass(frozen=True, slots=True)
class Record:
    """One version of a named artifact; made by the node that accepted it, kept by every node.

    `digest` identifies the bytes, `blake3` is the plain hash of the file for outside tools, `mode` holds permission
    bits, `meta` is carried along unread: fields a later version adds go there and survive older nodes.
    """

    name: str
    hlc: Hlc
    origin: NodeId
    digest: Digest
    blake3: Digest
    size: int
    mode: int = 0o644
    state: State = State.LIVE
    scope: str = "cluster"
    meta: tuple[tuple[str, str | int], ...] = ()

    @property
    def key(self) -> RecordKey:
        return RecordKey(self.name, self.hlc, self.origin)

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def order(self) -> tuple[Hlc, NodeId]:
        """Sorts the versions of one name: the stamp decides, the origin breaks ties."""
        return (self.hlc, self.origin)


class HoldingKey(NamedTuple):
    digest: Digest
    node: NodeId
    store: StoreId


@dataclass(frozen=True, slots=True)
class Holding:
    """Node N: "store S has digest D, verified and fsynced" (or no longer has). Said by N alone, ordered by `seq`."""

    node: NodeId
    store: StoreId
    digest: Digest
    seq: int
    present: bool = True

    @property
    def key(self) -> HoldingKey:
        return HoldingKey(self.digest, self.node, self.store)


class Presence(enum.IntEnum):
    """What a member says of its own presence; whether it is alive is for its peers to find out."""

    IN = 0
    LEFT = 1


@dataclass(frozen=True, slots=True)
class Member:
    """What a node says of itself: the facts placement needs, and what it would lose if it died now.

    `accepting` is one bit with hysteresis (the disk cap); `capacity_bytes` and `used_bytes` are informative.
    `address` is empty for a node that can only dial out.
    """

    node: NodeId
    seq: int
    address: str = ""
    role: str = "worker"
    provider: str = ""
    domain: str = ""
    store: StoreId = bytes(STORE_BYTES)
    ephemeral: bool = False
    excluded: bool = False
    accepting: bool = False
    presence: Presence = Presence.IN
    capacity_bytes: int = 0
    used_bytes: int = 0
    at_risk_count: int = 0
    at_risk_bytes: int = 0
    policy_hash: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """A handful of replicated rows, as they travel and as they are committed."""

    records: tuple[Record, ...] = ()
    holdings: tuple[Holding, ...] = ()
    members: tuple[Member, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.holdings or self.members)

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.records + other.records, self.holdings + other.holdings, self.members + other.members)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a digest's bytes lie in our own store, and how the file looked when that was last true.

    `path` is relative to the root. A file whose stat differs from this is another file: it is never served as
    `digest`. `private` files lie below `.spore/`, where nobody else writes.
    """

    path: str
    digest: Digest
    device: int
    inode: int
    size: int
    mtime_ns: int
    private: bool = False
    published: bool = field(default=False, compare=False)  # we put it there for others: no user's own file


@dataclass(frozen=True, slots=True)
class Batch:
    """What one `Commit` changes in the manifest: rows and places to put, records and places to drop."""

    rows: Rows = Rows()
    places: tuple[Place, ...] = ()
    forget_records: tuple[RecordKey, ...] = ()
    forget_places: tuple[str, ...] = ()  # paths

    def __bool__(self) -> bool:
        return bool(self.rows or self.places or self.forget_records or self.forget_places)


@dataclass(frozen=True, slots=True)
class Stripe:
    """A run of chunks of one artifact."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """One artifact in a transfer: the whole of it, or only these stripes."""

    record: Record
    stripes: tuple[Stripe, ...] = ()  # empty: every chunk


def stores_of(holdings: Iterable[Holding]) -> frozenset[StoreId]:
    """The distinct stores that hold, whoever said so: an NFS group counts once."""
    return frozenset(holding.store for holding in holdings if holding.present)


def newer(ours: Holding | Member | None, theirs: Holding | Member) -> bool:
    """Whether `theirs` replaces `ours`: the author's own sequence decides, never arrival."""
    return ours is None or theirs.seq > ours.seq


def with_seq(member: Member, seq: int) -> Member:
    return replace(member, seq=seq)


def joined(several: Iterable[Rows]) -> Rows:
    """All of these rows as one, in order."""
    known = list(several)
    if len(known) == 1:
        return known[0]
    return Rows(
        tuple(record for rows in known for record in rows.records),
        tuple(holding for rows in known for holding in rows.holdings),
        tuple(member for rows in known for member in rows.members),
    )
