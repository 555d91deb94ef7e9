"""Breakages of what a machine that may vanish must do."""

from __future__ import annotations

from breakages import Breakage

SPOT = "Spot life"

SPOT_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        SPOT,
        "makes second copies before first ones when it must go",
        "protocol/leaving.py",
        "        return 2 * len(debt.receipts) + self._on_the_way(debt)",
        "        return -2 * len(debt.receipts) - self._on_the_way(debt)",
        "-x tests/test_replica_leaving.py",
    ),
    Breakage(
        SPOT,
        "waits for a neighbour that does not answer until the end",
        "protocol/leaving.py",
        "                if now - flight.since_ms >= self._take_ms:",
        "                if False:",
        "-x tests/test_replica_leaving.py",
    ),
    Breakage(
        SPOT,
        "does not give up what cannot end in time",
        "protocol/leaving.py",
        "            if offer.taken and soon:",
        "            if offer.taken:",
        "-x tests/test_replica_leaving.py",
    ),
    Breakage(
        SPOT,
        "takes what a running node owes from a copy of its disk",
        "protocol/adopting.py",
        "        if self.members.is_alive(record.origin):",
        "        if False:",
        "-x tests/test_replica_adopting.py",
    ),
    Breakage(
        SPOT,
        "forgets after a crash that it answers for what it adopted",
        "protocol/replica.py",
        "            self.ctx.adopted[record.key] = None",
        "            pass",
        "-x tests/test_replica_adopting.py",
    ),
    Breakage(
        SPOT,
        "says in its farewell that what nobody has is safe",
        "protocol/leaving.py",
        "        lost = [debt for debt in own if not self.debts.counting(debt.receipts)]",
        "        lost = []",
        "-x tests/test_replica_leaving.py",
    ),
)
