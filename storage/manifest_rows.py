"""How a value becomes a row of the manifest and a row becomes a value: columns, in one order, known only here."""

from __future__ import annotations

from typing import Any

from protocol.values import Holding, Member, Place, Presence, Record, State
from protocol.wire import pack_value, unpack_value

Row = tuple[Any, ...]

RECORD_COLUMNS = "name, hlc, origin, digest, blake3, size, mode, state, scope, meta"
HOLDING_COLUMNS = "digest, node, store, seq, present"
MEMBER_COLUMNS = (
    "node, seq, address, role, provider, domain, store, ephemeral, excluded, accepting, presence, "
    "capacity_bytes, used_bytes, at_risk_count, at_risk_bytes, policy_hash"
)
PLACE_COLUMNS = "path, digest, device, inode, size, mtime_ns, private, published"
RECORD_WIDTH = 10
HOLDING_WIDTH = 5
MEMBER_WIDTH = 16
PLACE_WIDTH = 8

_STATES = tuple(State)  # an index is ten times as fast as the enumeration's own look-up
_SIGNED_MAX = 1 << 63
_UNSIGNED_SPAN = 1 << 64


def record_row(record: Record) -> Row:
    return (
        record.name,
        record.hlc,
        record.origin,
        record.digest,
        record.blake3,
        record.size,
        record.mode,
        int(record.state),
        record.scope,
        pack_value(record.meta) if record.meta else b"",
    )


def record_of(row: Row) -> Record:
    name, hlc, origin, digest, blake3, size, mode, state, scope, meta = row
    return Record(name, hlc, origin, digest, blake3, size, mode, _STATES[state], scope, _meta(meta) if meta else ())


def _meta(frame: bytes) -> tuple[tuple[str, str | int], ...]:
    fields = unpack_value(frame)
    assert isinstance(fields, list), "meta is written by record_row alone"
    return tuple((name, content) for name, content in fields)


def holding_row(holding: Holding) -> Row:
    return (holding.digest, holding.node, holding.store, holding.seq, int(holding.present))


def holding_of(row: Row) -> Holding:
    digest, node, store, seq, present = row
    return Holding(node, store, digest, seq, bool(present))


def member_row(member: Member) -> Row:
    return (
        member.node,
        member.seq,
        member.address,
        member.role,
        member.provider,
        member.domain,
        member.store,
        int(member.ephemeral),
        int(member.excluded),
        int(member.accepting),
        int(member.presence),
        member.capacity_bytes,
        member.used_bytes,
        member.at_risk_count,
        member.at_risk_bytes,
        member.policy_hash,
    )


def member_of(row: Row) -> Member:
    node, seq, address, role, provider, domain, store, ephemeral, excluded, accepting, presence, *rest = row
    capacity_bytes, used_bytes, at_risk_count, at_risk_bytes, policy_hash = rest
    return Member(
        node,
        seq,
        address,
        role,
        provider,
        domain,
        store,
        bool(ephemeral),
        bool(excluded),
        bool(accepting),
        Presence(presence),
        capacity_bytes,
        used_bytes,
        at_risk_count,
        at_risk_bytes,
        policy_hash,
    )


def place_row(place: Place) -> Row:
    device, inode = _signed(place.device), _signed(place.inode)
    private, published = int(place.private), int(place.published)
    return (place.path, place.digest, device, inode, place.size, place.mtime_ns, private, published)


def place_of(row: Row) -> Place:
    path, digest, device, inode, size, mtime_ns, private, published = row
    device, inode = device % _UNSIGNED_SPAN, inode % _UNSIGNED_SPAN
    return Place(path, digest, device, inode, size, mtime_ns, bool(private), bool(published))


def _signed(number: int) -> int:
    """SQLite's integers are signed; inode numbers are not, and network file systems use all 64 bits."""
    return number - _UNSIGNED_SPAN if number >= _SIGNED_MAX else number
