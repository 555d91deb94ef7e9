"""Breakages of what users ask for and do not get elsewhere, and of what would end unseen."""

from __future__ import annotations

from breakages import CORRUPTING, FILLING, GOSSIP, LOSING, Breakage

ASKED = "What users ask for"

ASKED_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        GOSSIP,
        "starts as a node that the hosts file does not name",
        "node/run.py",
        "    if identity.node not in fleet.hosts and not identity.facts.ephemeral:",
        "    if False:",
        "-x tests/test_agents_starting.py",
    ),
    Breakage(
        GOSSIP,
        "does not see that a work which should never end has ended",
        "node/agent.py",
        "            self._dead.append(for_ever)",
        "            pass",
        "-x tests/test_unexpected.py",
    ),
    Breakage(
        ASKED,
        "calls copies in one domain durable over two",
        "protocol/placement.py",
        "    return len(counting) >= around.copies and len({seat.domain for seat in counting}) >= needed",
        "    return len(counting) >= around.copies and len(counting) >= needed",
        "tests/test_placement.py",
    ),
    Breakage(
        ASKED,
        "sends the token's secret to whoever answers",
        "node/join.py",
        "        context = pinned_join_context(fetched.body, token.ca_pin, token.issuer, clock)",
        "        context = unverified_join_context()",
        "-x tests/test_join.py -k man_in_the_middle",
    ),
    Breakage(
        ASKED,
        "does not say that a transfer stalls",
        "node/cli/progress.py",
        '            parts.append("stalled")',
        "            pass",
        "tests/test_cli.py -k stalls",
    ),
    Breakage(
        ASKED,
        "gives every provider the same bandwidth",
        "protocol/fleet.py",
        '        provider = PROVIDER_BANDWIDTH.get(host.provider or "")',
        "        provider = None",
        "-x tests/test_fleet.py",
    ),
    Breakage(
        ASKED,
        "rehearses a fleet of its own making instead of the hosts file's",
        "node/cli/rehearsing.py",
        "        _fleet(hosts) if hosts is not None else None,",
        "        None,",
        "tests/test_rehearsal.py -k is_exit_0",
    ),
    Breakage(
        ASKED,
        "takes for durable what has too few receipts while it lists the risk",
        "protocol/debts.py",
        "        return [debt for debt in self.open.values() if debt.own]",
        "        return [debt for debt in self.open.values() if debt.own and not debt.receipts]",
        "-x tests/test_replica_waiting.py tests/test_replica_pushing.py",
    ),
    Breakage(
        ASKED,
        "publishes a snapshot that is not whole",
        "storage/publication.py",
        "        if SNAPSHOT_MARK in job.record.meta and self._quick_check and job.source:",
        "        if False:",
        "-x tests/test_publication.py",
    ),
    Breakage(
        CORRUPTING,
        "never reads the root again once the kernel tells of changes",
        "node/watcher.py",
        "            async with asyncio.timeout(max(wait_seconds, pause_seconds)):",
        "            async with asyncio.timeout(None):",
        "-x tests/test_watcher.py",
    ),
    Breakage(
        FILLING,
        "waits for room in a log that is full of what is dead",
        "node/commits.py",
        "            if logs or released or short:",
        "            if logs or released:",
        "-x tests/test_commits.py",
    ),
    Breakage(
        LOSING,
        "removes what a mate of its store published and it has not heard of",
        "protocol/publishing.py",
        "        if self.ctx.host.nfs_group:",
        "        if False:",
        "-x tests/test_replica_kills.py",
    ),
)
