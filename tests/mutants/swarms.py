"""Breakages of one to many: what would waste uplinks, trust what was not verified, or leave somebody waiting."""

from __future__ import annotations

from breakages import CORRUPTING, FILLING, LOSING, Breakage

SWARM_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        FILLING,
        "lets every receiver take all from the source: its uplink is halved",
        "protocol/swarm.py",
        "        if near and not new:\n            return (lacking,)",
        "        if near:\n            return (lacking,)",
        "-x tests/test_swarm.py",
    ),
    Breakage(
        FILLING,
        "crosses into a domain for what a node there has already",
        "protocol/swarm.py",
        "        new_here = lacking & ~(spread.near | spread.near_asked)",
        "        new_here = lacking",
        "-x tests/test_swarm.py",
    ),
    Breakage(
        LOSING,
        "gives a node with a small uplink as much as any: it holds the others up",
        "protocol/swarm.py",
        "        return (self._brought & ~beside_us).bit_count() + coming >= self._alone_max()",
        "        return False",
        "-x tests/test_swarm.py",
    ),
    Breakage(
        LOSING,
        "waits for receivers that nobody can dial to pass on what they have",
        "protocol/swarm.py",
        "            if near and not source.seed:\n                spread.near_got |= source.have",
        "            if near and not source.seed and source.serves:\n                spread.near_got |= source.have",
        "-x tests/test_swarm.py",
    ),
    Breakage(
        CORRUPTING,
        "asks a source that sent wrong bytes again",
        "protocol/swarming.py",
        "swarm.failed(event.number, event.error, self.ctx.now_ms, event.lied, event.unreached)",
        "swarm.failed(event.number, event.error, self.ctx.now_ms, False, event.unreached)",
        "-x tests/test_replica_swarm.py",
    ),
    Breakage(
        CORRUPTING,
        "serves chunks of an unfinished artifact before they came",
        "storage/blobs.py",
        "        return first < end and not self._partial.lacking(chunks)",
        "        return True",
        "-x tests/test_pulling.py",
    ),
    Breakage(
        LOSING,
        "waits for ever for the receipt of a receiver that fetches no more",
        "protocol/sending.py",
        "            offer.fetching, offer.deadline_ms = True, self.ctx.now_ms + PULL_MS_MAX",
        "            offer.fetching, offer.deadline_ms = True, self.ctx.now_ms + (1 << 40)",
        "-x tests/test_replica_swarm.py",
    ),
    Breakage(
        LOSING,
        "never tells those who fetch the same bytes of each other",
        "protocol/swarming.py",
        "            if introduce:\n                self._introduce(peer, message.digest)",
        "            pass",
        "-x tests/test_replica_swarm.py tests/test_simulator_broadcast.py",
    ),
    Breakage(
        LOSING,
        "ends a fetch that nobody serves without trying other ways",
        "protocol/receiving.py",
        "            self.ctx.emit(Fetch(transfer, record, tuple(sources), direct=incoming.direct))\n        else:",
        "            pass\n        else:",
        "-x tests/test_replica_swarm.py",
    ),
)
