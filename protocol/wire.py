"""The wire form of messages: msgpack, versioned, bounded, validated. The one module that knows msgpack.

A message is `[version, type, fields…]`. Rules for change: an unknown type is ignored and reported; fields beyond those
known are ignored; what must survive older nodes goes into a record's `meta`, which everybody keeps and forwards. A
lower or higher `version` is refused in one sentence, since the meaning of what follows is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgpack

from protocol import cells
from protocol import messages as m
from protocol.clock import HLC_MAX
from protocol.fields import (
    Pack,
    Packed,
    UnknownMessage,
    Unpack,
    WireError,
    as_bool,
    as_bytes,
    as_fields,
    as_int,
    as_list,
    as_meta,
    as_name,
    as_node,
    as_text,
    shown,
)
from protocol.fingerprints import PREFIXES
from protocol.values import (
    DIGEST_BYTES,
    STORE_BYTES,
    Digest,
    Holding,
    Member,
    Parcel,
    Presence,
    Record,
    RecordKey,
    Rows,
    State,
    Stripe,
)
from protocol.wire_claims import CLAIMS_TABLE, INCARNATION_MAX

VERSION = 1
MESSAGE_BYTES_MAX = 4 << 20  # a full offer: 1,000 parcels of at most 2.5 kB, and room to grow
ROWS_MAX = 2_000  # rows in a message: one page of an exchange; what a group commit applies in a few ms
PARCELS_MAX = 1_000  # parcels in an offer: one group commit at the receiver
SAVED_MAX = 64  # nodes that a leaving one names: it sends to eight at a time
STRIPES_MAX = 4_096  # stripes of a parcel: a map more scattered than this is asked for in parts
PIECES_BYTES_MAX = 256 << 10  # 2^21 pieces of 64 MiB are 128 TiB; a larger artifact is fetched whole
FETCHERS_MAX = 10_000  # in a message: as many as members
FINGERPRINTS_MAX = cells.CELLS_MAX  # in a message: more than the largest sketch resolves
SENTENCE_CHARS_MAX = 500  # reasons are for people
SIZE_MAX = 1 << 50  # 1 PiB: above any artifact, far below what overflows SQLite's integers
NONCE_BYTES = 16
SEQ_MAX = HLC_MAX
STATE_MAX, PRESENCE_MAX = max(State), max(Presence)

# --- rows -------------------------------------------------------------------------------------------------------


def pack_record(r: Record) -> Packed:
    return [
        r.name,
        r.hlc,
        r.origin,
        r.digest,
        r.blake3,
        r.size,
        r.mode,
        int(r.state),
        r.scope,
        [list(item) for item in r.meta],
    ]


def unpack_record(row: object) -> Record:
    f = as_fields(row, 10, "record")
    state, scope = f[7], f[8]
    if scope not in ("cluster", "peers"):
        raise WireError(f"a record's scope must be cluster or peers, not {shown(scope)}")
    record = Record(
        name=as_name(f[0]),
        hlc=as_int(f[1], HLC_MAX, "hlc"),
        origin=as_node(f[2]),
        digest=as_bytes(f[3], DIGEST_BYTES, "digest"),
        blake3=as_bytes(f[4], DIGEST_BYTES, "blake3"),
        size=as_int(f[5], SIZE_MAX, "size"),
        mode=as_int(f[6], 0o7777, "mode"),
        state=State(as_int(state, STATE_MAX, "state")),
        scope=scope,
        meta=as_meta(f[9]),
    )
    return record


def pack_holding(h: Holding) -> Packed:
    return [h.node, h.store, h.digest, h.seq, h.present]


def unpack_holding(row: object) -> Holding:
    f = as_fields(row, 5, "holding")
    return Holding(
        node=as_node(f[0]),
        store=as_bytes(f[1], STORE_BYTES, "store"),
        digest=as_bytes(f[2], DIGEST_BYTES, "digest"),
        seq=as_int(f[3], SEQ_MAX, "seq"),
        present=as_bool(f[4], "present"),
    )


def pack_member(x: Member) -> Packed:
    return [
        x.node,
        x.seq,
        x.address,
        x.role,
        x.provider,
        x.domain,
        x.store,
        x.ephemeral,
        x.excluded,
        x.accepting,
        int(x.presence),
        x.capacity_bytes,
        x.used_bytes,
        x.at_risk_count,
        x.at_risk_bytes,
        x.policy_hash,
    ]


def unpack_member(row: object) -> Member:
    f = as_fields(row, 16, "member")
    return Member(
        node=as_node(f[0]),
        seq=as_int(f[1], SEQ_MAX, "seq"),
        address=as_text(f[2], 300, "address"),
        role=as_text(f[3], 64, "role"),
        provider=as_text(f[4], 64, "provider"),
        domain=as_text(f[5], 200, "domain"),
        store=as_bytes(f[6], STORE_BYTES, "store"),
        ephemeral=as_bool(f[7], "ephemeral"),
        excluded=as_bool(f[8], "excluded"),
        accepting=as_bool(f[9], "accepting"),
        presence=Presence(as_int(f[10], PRESENCE_MAX, "presence")),
        capacity_bytes=as_int(f[11], SEQ_MAX, "capacity"),
        used_bytes=as_int(f[12], SEQ_MAX, "used"),
        at_risk_count=as_int(f[13], SEQ_MAX, "at_risk_count"),
        at_risk_bytes=as_int(f[14], SEQ_MAX, "at_risk_bytes"),
        policy_hash=as_text(f[15], 64, "policy_hash"),
    )


def _pack_parcel(p: Parcel) -> Packed:
    return [pack_record(p.record), _pack_stripes(p.stripes)]


def _unpack_parcel(row: object) -> Parcel:
    f = as_fields(row, 2, "parcel")
    return Parcel(unpack_record(f[0]), _unpack_stripes(f[1]))


def _pack_stripes(stripes: Sequence[Stripe]) -> Packed:
    return [[s.first, s.count] for s in stripes]


def _unpack_stripes(rows: object) -> tuple[Stripe, ...]:
    stripes = []
    for row in as_list(rows, STRIPES_MAX, "stripes"):
        f = as_fields(row, 2, "stripe")
        stripes.append(Stripe(as_int(f[0], SIZE_MAX, "first chunk"), as_int(f[1], SIZE_MAX, "chunk count")))
    return tuple(stripes)


# --- messages ---------------------------------------------------------------------------------------------------


def _pack_fold(fold: tuple[int, int]) -> Packed:
    return [fold[0], fold[1]]


def _unpack_fold(value: object) -> tuple[int, int]:
    f = as_fields(value, 2, "fold")
    return (as_int(f[0], SEQ_MAX, "fold count"), as_int(f[1], (1 << 64) - 1, "fold"))


def _pack_rows(rows: Rows) -> Packed:
    return [
        [pack_record(r) for r in rows.records],
        [pack_holding(h) for h in rows.holdings],
        [pack_member(x) for x in rows.members],
    ]


def _unpack_rows(f: Packed) -> m.RowsMessage:
    return m.RowsMessage(
        Rows(
            tuple(unpack_record(r) for r in as_list(f[0], ROWS_MAX, "records")),
            tuple(unpack_holding(h) for h in as_list(f[1], ROWS_MAX, "holdings")),
            tuple(unpack_member(x) for x in as_list(f[2], ROWS_MAX, "members")),
        )
    )


def _unpack_hello(f: Packed) -> m.Hello:
    return m.Hello(
        cluster=as_text(f[0], 64, "cluster"),
        member=unpack_member(f[1]),
        boot=as_int(f[2], SEQ_MAX, "boot"),
        fold=_unpack_fold(f[3]),
        incarnation=as_int(f[4], INCARNATION_MAX, "incarnation"),
        instance=as_int(f[5], SEQ_MAX, "instance"),
    )


def _unpack_prints(f: Packed) -> m.Prints:
    first, end = as_int(f[0], PREFIXES, "first prefix"), as_int(f[1], PREFIXES + 1, "last prefix")
    if first >= end or (first < PREFIXES < end):
        raise WireError(f"a page of fingerprints cannot go from {first} to {end}")
    return m.Prints(first, end, _fingerprints(f[2]))


def _unpack_offer(f: Packed) -> m.Offer:
    parcels = tuple(_unpack_parcel(p) for p in as_list(f[1], PARCELS_MAX, "parcels"))
    pull = len(f) > 3 and f[3] is True  # told by nodes that pull themselves; an older one is sent its bytes
    return m.Offer(as_int(f[0], SEQ_MAX, "transfer"), parcels, as_int(f[2], SEQ_MAX, "answers"), pull)


def _unpack_take(f: Packed) -> m.Take:
    refused = tuple(as_text(r, SENTENCE_CHARS_MAX, "reason") for r in as_list(f[1], PARCELS_MAX, "refusals"))
    missing = tuple(_unpack_stripes(s) for s in as_list(f[2], PARCELS_MAX, "missing"))
    if len(refused) != len(missing):
        raise WireError("a take must answer each parcel with a refusal and a list of stripes")
    return m.Take(as_int(f[0], SEQ_MAX, "transfer"), refused, missing)


def _unpack_receipt(f: Packed) -> m.Receipt:
    failed = []
    for row in as_list(f[2], PARCELS_MAX, "failures"):
        pair = as_fields(row, 2, "failure")
        failed.append((as_bytes(pair[0], DIGEST_BYTES, "digest"), as_text(pair[1], SENTENCE_CHARS_MAX, "reason")))
    holdings = tuple(unpack_holding(h) for h in as_list(f[1], PARCELS_MAX, "holdings"))
    return m.Receipt(as_int(f[0], SEQ_MAX, "transfer"), holdings, tuple(failed))


def _unpack_ask(f: Packed) -> m.Ask:
    return m.Ask(as_int(f[0], SEQ_MAX, "transfer"), _digests(f[1]))


def _digests(rows: object) -> tuple[Digest, ...]:
    return tuple(as_bytes(d, DIGEST_BYTES, "digest") for d in as_list(rows, PARCELS_MAX, "digests"))


def _pack_farewell(x: m.Farewell) -> Packed:
    named = [[*u.key, u.digest, u.size, u.copies, _clip(u.why)] for u in x.named]
    saved = [[s.node, s.artifacts, s.bytes] for s in x.saved]
    return [x.artifacts, x.bytes, saved, x.unsafe, x.unsafe_bytes, x.lost, x.lost_bytes, named]


def _unpack_farewell(f: Packed) -> m.Farewell:
    at_risk, unsafe, unsafe_bytes, lost, lost_bytes = (as_int(f[i], SEQ_MAX, "a total") for i in (0, 3, 4, 5, 6))
    saved = tuple(_unpack_saved(row) for row in as_list(f[2], SAVED_MAX, "saved"))
    named = tuple(_unpack_unsafe(row) for row in as_list(f[7], PARCELS_MAX, "unsafe"))
    at_risk_bytes = as_int(f[1], SEQ_MAX, "a total")
    return m.Farewell(at_risk, at_risk_bytes, saved, unsafe, unsafe_bytes, lost, lost_bytes, named)


def _unpack_saved(row: object) -> m.Saved:
    f = as_fields(row, 3, "saved")
    return m.Saved(as_node(f[0]), as_int(f[1], SEQ_MAX, "artifacts"), as_int(f[2], SEQ_MAX, "bytes"))


def _unpack_unsafe(row: object) -> m.Unsafe:
    f = as_fields(row, 7, "unsafe")
    return m.Unsafe(
        key=RecordKey(as_name(f[0]), as_int(f[1], HLC_MAX, "hlc"), as_node(f[2])),
        digest=as_bytes(f[3], DIGEST_BYTES, "digest"),
        size=as_int(f[4], SIZE_MAX, "size"),
        copies=as_int(f[5], SEQ_MAX, "copies"),
        why=as_text(f[6], SENTENCE_CHARS_MAX, "reason"),
    )


def _pack_bits(pieces: int) -> bytes:
    return pieces.to_bytes(-(-pieces.bit_length() // 8), "little")


def _unpack_bits(value: object, what: str) -> int:
    if type(value) is not bytes or len(value) > PIECES_BYTES_MAX:
        raise WireError(f"{what} must be at most {PIECES_BYTES_MAX} bytes")
    return int.from_bytes(value, "little")


def _unpack_pieces(f: Packed) -> m.Pieces:
    return m.Pieces(as_bytes(f[0], DIGEST_BYTES, "digest"), _unpack_bits(f[1], "pieces"), _unpack_bits(f[2], "pieces"))


def _unpack_fetchers(f: Packed) -> m.Fetchers:
    nodes = tuple(as_node(node) for node in as_list(f[1], FETCHERS_MAX, "fetchers"))
    return m.Fetchers(as_bytes(f[0], DIGEST_BYTES, "digest"), nodes)


# type number -> (class, count of known fields, fields from message, message from fields)
_TABLE: dict[int, tuple[type, int, Pack, Unpack]] = {
    1: (
        m.Hello,
        6,
        lambda x: [x.cluster, pack_member(x.member), x.boot, _pack_fold(x.fold), x.incarnation, x.instance],
        _unpack_hello,
    ),
    2: (m.RowsMessage, 3, lambda x: _pack_rows(x.rows), _unpack_rows),
    3: (m.CellsMessage, 1, lambda x: [cells.pack(x.cells)], lambda f: m.CellsMessage(_cells(f[0]))),
    4: (
        m.Offer,
        3,
        lambda x: [x.transfer, [_pack_parcel(p) for p in x.parcels], x.answers, *([True] if x.pull else [])],
        _unpack_offer,
    ),
    5: (
        m.Take,
        3,
        lambda x: [x.transfer, [_clip(why) for why in x.refused], [_pack_stripes(s) for s in x.missing]],
        _unpack_take,
    ),
    6: (
        m.Receipt,
        3,
        lambda x: [
            x.transfer,
            [pack_holding(h) for h in x.holdings],
            [[digest, _clip(why)] for digest, why in x.failed],
        ],
        _unpack_receipt,
    ),
    7: (m.Ask, 2, lambda x: [x.transfer, list(x.digests)], _unpack_ask),
    9: (m.CellsWanted, 1, lambda x: [x.count], lambda f: m.CellsWanted(as_int(f[0], cells.CELLS_MAX, "cells"))),
    10: (m.Lacking, 1, lambda x: [list(x.fingerprints)], lambda f: m.Lacking(_fingerprints(f[0]))),
    11: (m.Prints, 3, lambda x: [x.first, x.end, list(x.fingerprints)], _unpack_prints),
    29: (m.Unreachable, 1, lambda x: [x.transfer], lambda f: m.Unreachable(as_int(f[0], SEQ_MAX, "transfer"))),
    25: (m.Farewell, 8, _pack_farewell, _unpack_farewell),
    21: (m.Pieces, 3, lambda x: [x.digest, _pack_bits(x.have), _pack_bits(x.asked)], _unpack_pieces),
    22: (m.Fetchers, 2, lambda x: [x.digest, list(x.nodes)], _unpack_fetchers),
    8: (m.Goodbye, 1, lambda x: [_clip(x.why)], lambda f: m.Goodbye(as_text(f[0], SENTENCE_CHARS_MAX, "reason"))),
}
_TABLE |= {
    33: (m.Confirm, 1, lambda x: [list(x.digests)], lambda f: m.Confirm(_digests(f[0]))),
    34: (
        m.Confirmed,
        2,
        lambda x: [list(x.asked), list(x.held)],
        lambda f: m.Confirmed(_digests(f[0]), _digests(f[1])),
    ),
    35: (
        m.Shares,
        2,
        lambda x: [x.store, x.nonce],
        lambda f: m.Shares(as_bytes(f[0], STORE_BYTES, "store"), as_bytes(f[1], NONCE_BYTES, "nonce")),
    ),
}
_TABLE |= CLAIMS_TABLE
_NUMBERS = {row[0]: number for number, row in _TABLE.items()}


def _clip(sentence: str) -> str:
    """A reason as long as the other side takes it: a name of 1,024 bytes in it must not make the message unreadable."""
    return sentence if len(sentence) <= SENTENCE_CHARS_MAX else sentence[: SENTENCE_CHARS_MAX - 1] + "…"


def encode(message: m.Message) -> bytes:
    """The bytes of a message; at most `MESSAGE_BYTES_MAX`, which the core's batch bounds ensure."""
    number = _NUMBERS[type(message)]
    return cast(bytes, msgpack.packb([VERSION, number, *_TABLE[number][2](message)], use_bin_type=True))


def decode(frame: bytes) -> m.Message:
    """The message in a frame from the network. Raises `WireError` (one sentence) for anything that is not one."""
    parts = as_list(_loads(frame, MESSAGE_BYTES_MAX), 64, "message")
    if len(parts) < 2 or type(parts[0]) is not int or parts[0] != VERSION:
        spoken = parts[0] if parts and type(parts[0]) is int else "none"
        raise WireError(f"the peer speaks protocol version {spoken}, this node speaks {VERSION}: upgrade the older")
    number = parts[1]
    if type(number) is not int or number not in _TABLE:
        raise UnknownMessage(f"message type {shown(number)} is not known here; it is ignored")
    kind, known, _, unpack = _TABLE[number]
    fields = parts[2:]
    if len(fields) < known:
        raise WireError(f"a {kind.__name__} needs {known} fields and has {len(fields)}")
    return cast(m.Message, unpack(fields))


def pack_value(value: object) -> bytes:
    """Bytes of a plain structure, for WAL entries and manifest columns."""
    return cast(bytes, msgpack.packb(value, use_bin_type=True))


def unpack_value(frame: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> object:
    return _loads(frame, bytes_max)


def _loads(frame: bytes, bytes_max: int) -> object:
    if len(frame) > bytes_max:
        raise WireError(f"a message of {len(frame)} bytes is over the bound of {bytes_max}")
    try:
        return cast(object, msgpack.unpackb(frame, raw=False, strict_map_key=True))
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as problem:
        raise WireError(f"a message cannot be decoded: {type(problem).__name__} {problem}"[:300]) from problem


def _fingerprints(value: object) -> tuple[int, ...]:
    return tuple(
        as_int(item, cells.ITEM_MASK, "fingerprint") for item in as_list(value, FINGERPRINTS_MAX, "fingerprints")
    )


def _cells(value: object) -> cells.Cells:
    if type(value) is not bytes:
        raise WireError("cells must be bytes")
    try:
        parsed = cells.parse(value)
    except cells.CellsRefused as refusal:
        raise WireError(str(refusal)) from refusal
    if parsed.first:
        raise WireError(f"cells must begin with the first, not with number {parsed.first}")
    return parsed
