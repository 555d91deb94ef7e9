"""Breakages of the data path: what is reused, compared, retried and read again."""

from __future__ import annotations

from breakages import CORRUPTING, FILLING, GOSSIP, Breakage

DATAPATH_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        CORRUPTING,
        "writes a chunk that is not what its digest says",
        "storage/partials.py",
        "        if chunk_digest(chunk) != self._leaves[index]:",
        "        if False:",
        "-x tests/test_staging.py",
    ),
    Breakage(
        CORRUPTING,
        "blames a peer for a chunk that a damaged older version of our own made wrong",
        "node/runs.py",
        "            if not blocks:\n                raise",
        "            raise",
        "-x tests/test_delta.py",
    ),
    Breakage(
        CORRUPTING,
        "compares blocks with an older version that was changed since",
        "node/bulk_store.py",
        "    blob.check()\n    if at < len(view):",
        "    if at < len(view):",
        "-x tests/test_delta.py tests/test_bulk.py",
    ),
    Breakage(
        FILLING,
        "sends whole chunks although an older version has nearly all of their blocks",
        "node/runs.py",
        "        return worth_comparing(self._speeds.of(peer))",
        "        return False",
        "-x tests/test_delta.py",
    ),
    Breakage(
        FILLING,
        "fetches chunks that lie here under another name",
        "storage/reuse.py",
        "            if not wanted.keys().isdisjoint(leaves):",
        "            if False:",
        "-x tests/test_delta.py",
    ),
    Breakage(
        GOSSIP,
        "never tries a way again whose probing transfer was lost",
        "protocol/breakers.py",
        "            breaker.failures, breaker.waits, now_ms + TRY_MS_MAX, trying=True, why=breaker.why",
        "            breaker.failures, breaker.waits, 1 << 62, trying=True, why=breaker.why",
        "-x tests/test_breakers.py",
    ),
    Breakage(
        GOSSIP,
        "goes on dialling a peer that failed three times in a row",
        "protocol/breakers.py",
        "        if now_ms < breaker.until_ms:\n            return False",
        "        if False:\n            return False",
        "-x tests/test_breakers.py",
    ),
    Breakage(
        CORRUPTING,
        "begins each round of the scrubber anew after a restart and never comes to its end",
        "protocol/scrubbing.py",
        '    return Round(int(parts[0]), int(parts[1]), parts[3], parts[2] == "1")',
        "    return Round(int(parts[0]), 0)",
        "-x tests/test_scrubbing.py -k survives",
    ),
)
