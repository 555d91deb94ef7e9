"""Breakages of how bytes travel: budgets, transports, what is carried for others."""

from __future__ import annotations

from breakages import CORRUPTING, FILLING, LOSING, Breakage

TRANSPORT_BREAKAGES: tuple[Breakage, ...] = (
    Breakage(
        CORRUPTING,
        "believes whatever an external program wrote",
        "node/transports/scratch.py",
        "            wrong = chunk_digest(chunk) != leaves[index] if chunk else True\n",
        "            wrong = False\n",
        "tests/test_transports.py -k wrong_bytes_over_ssh",
    ),
    Breakage(
        CORRUPTING,
        "believes any host that answers over SSH",
        "node/transports/ssh.py",
        '        "StrictHostKeyChecking yes",\n',
        '        "StrictHostKeyChecking no",\n',
        "tests/test_transports.py -k changed_host_key",
    ),
    Breakage(
        CORRUPTING,
        "serves what it carries for one node to every other",
        "node/transports/relay_desk.py",
        "            if errand is None or peer not in errand.asked_at:\n                return None\n",
        "            if errand is None:\n                return None\n",
        "tests/test_transports.py -k only_to_whom",
    ),
    Breakage(
        LOSING,
        "holds for ever what it only carries",
        "protocol/errands.py",
        "if not self._came(record) or self.receiving.policy.wants(record)]",
        "if not self._came(record) or True]",
        "tests/test_replica_errands.py -k excluded_node_carries",
    ),
    Breakage(
        LOSING,
        "waits for ever for a session when a small artifact could come another way",
        "protocol/receiving.py",
        " and not wanted.alone(now):",
        ":",
        "tests/test_replica_errands.py -k no_holder_has_a_session",
    ),
    Breakage(
        FILLING,
        "lets a budget go into debt without end",
        "protocol/egress.py",
        "            bucket.tokens -= ask.size_bytes\n",
        "            bucket.tokens -= ask.size_bytes / 2\n",
        "tests/test_egress.py -k no_window_of_five_seconds",
    ),
    Breakage(
        FILLING,
        "lets the higher priorities starve the lowest",
        "protocol/egress.py",
        "key=lambda r: (r.finish, r.order)",
        "key=lambda r: (r.order, r.finish)",
        "tests/test_egress.py -k never_starves",
    ),
    Breakage(
        FILLING,
        "leaves programs running when their transfer is over",
        "node/transports/programs.py",
        "                start_new_session=True,\n",
        "",
        "tests/test_transports.py -k ended_with_all_it_started",
    ),
    Breakage(
        FILLING,
        "carries for others without a bound",
        "node/transports/relay_desk.py",
        "                if len(self._errands) >= most:\n",
        "                if not most:\n",
        "tests/test_transports.py -k errands_are_bounded",
    ),
)
