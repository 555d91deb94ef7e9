"""64-bit fingerprints of rows: the items of the sketch that two nodes compare (see sketch.py).

Fingerprints are keyed with the cluster's name, so that rows of two clusters never look alike. A record's fingerprint
covers what may change or matter (name, digest, stamp, origin, state), a holding's its key (not its sequence, so that
restating the same fact changes nothing), a member's node and sequence. Withdrawn holdings have none: they may be
forgotten.

A fingerprint begins with the first 24 bits of the digest, so that the manifest finds its row by the indexes it has
anyway, and rows in the order of digests are in the order of fingerprints. The other 40 bits are keyed; among the few
rows that share 24 bits of digest that is plenty. A row without live bytes has 64 keyed bits instead.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from protocol.values import NO_DIGEST, Holding, Member, Record

FINGERPRINT_BYTES = 8
PREFIX_BYTES = 3
PREFIXES = 1 << 8 * PREFIX_BYTES
_REST_BITS = 8 * (FINGERPRINT_BYTES - PREFIX_BYTES)


def cluster_key(cluster: str) -> bytes:
    return blake2b(cluster.encode(), digest_size=32, person=b"spore.rows").digest()


def record_fingerprint(key: bytes, record: Record) -> int:
    return fingerprint_of_record(key, record.name, record.hlc, record.origin, int(record.state), record.digest)


def holding_fingerprint(key: bytes, holding: Holding) -> int:
    return fingerprint_of_holding(key, holding.node, holding.store, holding.digest)


def member_fingerprint(key: bytes, member: Member) -> int:
    return fingerprint_of_member(key, member.node, member.seq)


def fingerprint_of_record(key: bytes, name: str, hlc: int, origin: str, state: int, digest: bytes) -> int:
    """The same from the fields alone: a manifest that takes in rows by the thousand builds no values for it."""
    prefix = NO_DIGEST if state else digest
    return _fingerprint(key, f"r\0{name}\0{hlc}\0{origin}\0{state}\0".encode() + digest, prefix)


def fingerprint_of_holding(key: bytes, node: str, store: bytes, digest: bytes) -> int:
    return _fingerprint(key, f"h\0{node}\0".encode() + store + digest, digest)


def fingerprint_of_member(key: bytes, node: str, seq: int) -> int:
    return _fingerprint(key, f"m\0{node}\0{seq}".encode(), NO_DIGEST)


def prefix_of(fingerprint: int) -> int:
    """The digest's first 24 bits as a number, of a row that has bytes."""
    return fingerprint >> _REST_BITS


def digest_bound(prefix: int) -> bytes:
    """The least digest with this prefix; above all digests for `PREFIXES`."""
    return prefix.to_bytes(PREFIX_BYTES, "big") if prefix < PREFIXES else b"\xff" * (len(NO_DIGEST) + 1)


@lru_cache(maxsize=16)  # clusters in one process: one, a few in tests
def _keyed(key: bytes) -> blake2b:
    """A hash that has taken in its key: copying it costs half of keying a new one."""
    return blake2b(digest_size=FINGERPRINT_BYTES, key=key)


def _fingerprint(key: bytes, content: bytes, prefix: bytes) -> int:
    hasher = _keyed(key).copy()
    hasher.update(content)
    if prefix == NO_DIGEST:
        return int.from_bytes(hasher.digest(), "big")
    return int.from_bytes(prefix[:PREFIX_BYTES] + hasher.digest()[PREFIX_BYTES:], "big")
