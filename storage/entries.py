"""The payload of a WAL entry: one accepted artifact, with the bytes themselves or with where they lie.

On disk: msgpack `[1, record, source, path, device, inode, size, mtime_ns, private, content]`, where source is 0 inline,
1 kept, 2 referenced, and the fields that a source does not have are empty (see docs/formats.md).
"""

from __future__ import annotations

from typing import cast

from protocol.effects import Entry, Inline, Kept, Referenced
from protocol.fields import WireError
from protocol.values import Place
from protocol.wire import pack_record, pack_value, unpack_record, unpack_value

ENTRY_VERSION = 1
ENTRY_BYTES_MAX = 1 << 18  # 64 KiB of bytes, a name of 1 KiB, 2 KiB of meta, and room for later fields


class EntryUnreadable(ValueError):
    """A WAL entry that this version cannot read; it is kept where it is and reported."""


def encode_entry(entry: Entry) -> bytes:
    source = entry.source
    if isinstance(source, Inline):
        return pack_value([ENTRY_VERSION, pack_record(entry.record), 0, "", 0, 0, 0, 0, False, source.content])
    p = source.place
    kind = 1 if isinstance(source, Kept) else 2
    fields = [p.path, p.device, p.inode, p.size, p.mtime_ns, p.private, b""]
    return pack_value([ENTRY_VERSION, pack_record(entry.record), kind, *fields])


def decode_entry(payload: bytes) -> Entry:
    try:
        fields = cast(list[object], unpack_value(payload, ENTRY_BYTES_MAX))
        version, row, kind, path, device, inode, size, mtime_ns, private, content = fields[:10]
        if version != ENTRY_VERSION:
            raise EntryUnreadable(f"a WAL entry of version {version} is newer than this agent; upgrade the agent")
        record = unpack_record(row)
    except (WireError, TypeError, ValueError) as problem:
        raise EntryUnreadable(f"a WAL entry cannot be read: {problem}") from problem
    if kind == 0:
        return Entry(record, Inline(cast(bytes, content)))
    place = Place(
        cast(str, path),
        record.digest,
        cast(int, device),
        cast(int, inode),
        cast(int, size),
        cast(int, mtime_ns),
        bool(private),
    )
    return Entry(record, Kept(place) if kind == 1 else Referenced(place))
