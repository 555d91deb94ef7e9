"""64-bit fingerprints of rows and their fold: two nodes with equal folds have, but for chance, equal rows.

Fingerprints are keyed with the cluster's name, so that rows of two clusters never look alike. A record's fingerprint
covers what may change or matter (name, digest, stamp, origin, state), a holding's its key (not its sequence, so that
restating the same fact changes nothing). Withdrawn holdings are left out of the fold: they may be forgotten.
"""

from __future__ import annotations

from hashlib import blake2b

from protocol.values import Holding, Record

FINGERPRINT_BYTES = 8


def cluster_key(cluster: str) -> bytes:
    return blake2b(cluster.encode(), digest_size=32, person=b"spore.rows").digest()


def record_fingerprint(key: bytes, record: Record) -> int:
    text = f"r\0{record.name}\0{record.hlc}\0{record.origin}\0{int(record.state)}\0".encode()
    return _fingerprint(key, text + record.digest)


def holding_fingerprint(key: bytes, holding: Holding) -> int:
    text = f"h\0{holding.node}\0".encode()
    return _fingerprint(key, text + holding.store + holding.digest)


def _fingerprint(key: bytes, content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=FINGERPRINT_BYTES, key=key).digest(), "big")
