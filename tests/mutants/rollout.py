"""Breakages of what takes nodes out of a fleet and lets others in."""

from __future__ import annotations

from breakages import GOSSIP, LOSING, Breakage

ROLLOUT_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        LOSING,
        "counts its own copies while it is drained",
        "protocol/draining.py",
        '        self.debts.without = b"" if self.members.has_mates() else self.ctx.store',
        '        self.debts.without = b""',
        "tests/test_replica_draining.py",
    ),
    Breakage(
        LOSING,
        "calls a node safe to stop after the first page",
        "protocol/draining.py",
        "        if self._after != START:",
        "        if False:",
        "tests/test_replica_draining.py",
    ),
    Breakage(
        LOSING,
        "counts what a removed node held for a minute more",
        "protocol/membership.py",
        "        left = node in self.removed or self.standing(node) is Standing.LEFT",
        "        left = self.standing(node) is Standing.LEFT",
        "tests/test_replica_removing.py",
    ),
    Breakage(
        GOSSIP,
        "is brought back by what others tell of a removed node",
        "protocol/membership.py",
        "self.swim.is_alive(node) and node != self.ctx.node and node not in self.removed:",
        "self.swim.is_alive(node) and node != self.ctx.node:",
        "tests/test_replica_removing.py",
    ),
    Breakage(
        GOSSIP,
        "forgets at a restart who was removed",
        "protocol/declared.py",
        "            if self._says_removed(node):",
        "            if False:",
        "tests/test_replica_removing.py",
    ),
    Breakage(
        GOSSIP,
        "lets in whom a retired authority admitted",
        "node/tls.py",
        "if certificate and not any(issued_by(certificate, authority) for authority in self.identity.authorities):",
        "if False:",
        "tests/test_rotation.py",
    ),
    Breakage(
        GOSSIP,
        "takes a new authority from an issuer that shares none with it",
        "node/identity.py",
        "    if not known & {ca_pin(trusted) for trusted in authorities}:",
        "    if False:",
        "tests/test_rotation.py",
    ),
)
