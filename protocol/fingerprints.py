"""64-bit fingerprints of rows and their fold: two nodes with equal folds have, but for chance, equal rows.

Fingerprints are keyed with the cluster's name, so that rows of two clusters never look alike. A record's fingerprint
covers what may change or matter (name, digest, stamp, origin, state), a holding's its key (not its sequence, so that
restating the same fact changes nothing). Withdrawn holdings are left out of the fold: they may be forgotten.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from protocol.values import Holding, Record

FINGERPRINT_BYTES = 8


def cluster_key(cluster: str) -> bytes:
    return blake2b(cluster.encode(), digest_size=32, person=b"spore.rows").digest()


def record_fingerprint(key: bytes, record: Record) -> int:
    return fingerprint_of_record(key, record.name, record.hlc, record.origin, int(record.state), record.digest)


def holding_fingerprint(key: bytes, holding: Holding) -> int:
    return fingerprint_of_holding(key, holding.node, holding.store, holding.digest)


def fingerprint_of_record(key: bytes, name: str, hlc: int, origin: str, state: int, digest: bytes) -> int:
    """The same from the fields alone: a manifest that takes in rows by the thousand builds no values for it."""
    return _fingerprint(key, f"r\0{name}\0{hlc}\0{origin}\0{state}\0".encode() + digest)


def fingerprint_of_holding(key: bytes, node: str, store: bytes, digest: bytes) -> int:
    return _fingerprint(key, f"h\0{node}\0".encode() + store + digest)


@lru_cache(maxsize=16)  # clusters in one process: one, a few in tests
def _keyed(key: bytes) -> blake2b:
    """A hash that has taken in its key: copying it costs half of keying a new one."""
    return blake2b(digest_size=FINGERPRINT_BYTES, key=key)


def _fingerprint(key: bytes, content: bytes) -> int:
    hasher = _keyed(key).copy()
    hasher.update(content)
    return int.from_bytes(hasher.digest(), "big")
