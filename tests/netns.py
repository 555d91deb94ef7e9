"""Machines of one fleet as network namespaces: a bridge, an address each, rates, and ports that can be blocked.

Names carry the process and a random word, so that two runs never meet; whatever is made is removed. Root only.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from node.local_fleet import LocalFleet
from tests.agents import tool

SECONDS_MAX = 30.0


@dataclass
class Machines:
    """Namespaces `<word>-<node>` with addresses <range>.<net>.1 and on, joined by a bridge in `<word>-net`."""

    nodes: Sequence[str]
    range: str = "10.95"
    word: str = field(default_factory=lambda: f"sp{secrets.token_hex(3)}")
    net: int = field(default_factory=lambda: (os.getpid() + secrets.randbelow(250)) % 250 + 1)

    def address(self, node: str) -> str:
        return f"{self.range}.{self.net}.{self.nodes.index(node) + 1}"

    def inside(self, node: str) -> tuple[str, ...]:
        """What stands before a command that runs on this machine."""
        return ("ip", "netns", "exec", f"{self.word}-{node}")

    def run(self, node: str, *words: str, stdin: str = "") -> str:
        return _run(*self.inside(node), *words, stdin=stdin)

    def make(self) -> None:
        _run("ip", "netns", "add", f"{self.word}-net")
        self.run("net", "ip", "link", "add", "bridge", "type", "bridge")
        self.run("net", "ip", "link", "set", "bridge", "up")
        for node in self.nodes:
            _run("ip", "netns", "add", f"{self.word}-{node}")
            self.run(
                "net", "ip", "link", "add", f"v-{node}", "type", "veth", "peer", "eth0", "netns", f"{self.word}-{node}"
            )
            self.run("net", "ip", "link", "set", f"v-{node}", "master", "bridge", "up")
            self.run(node, "ip", "address", "add", f"{self.address(node)}/24", "dev", "eth0")
            self.run(node, "ip", "link", "set", "eth0", "up")
            self.run(node, "ip", "link", "set", "lo", "up")

    def remove(self) -> None:
        for node in [*self.nodes, "net"]:
            subprocess.run(["ip", "netns", "delete", f"{self.word}-{node}"], check=False, capture_output=True)

    def block(self, a: str, b: str, *ports: int, silently: bool = True) -> None:
        """From now on no packet to or from these ports passes between the two, of standing connections neither. It is
        dropped, or, not `silently`, answered by a reset as a closed port does."""
        verdict = "drop" if silently else "reject with tcp reset"
        ends = ("dport", "sport") if silently else ("dport",)  # else the resets themselves would not come back
        listed = ", ".join(map(str, ports))
        for here, there in ((a, b), (b, a)):
            peer = self.address(there)
            rules = [f"add rule inet spore in ip saddr {peer} tcp {end} {{ {listed} }} {verdict}" for end in ends]
            chain = "add chain inet spore in { type filter hook input priority 0; }"
            self.run(here, "nft", "-f", "-", stdin="\n".join(["add table inet spore", chain, *rules, ""]))

    def unblock(self, *nodes: str) -> None:
        for node in nodes:
            self.run(node, "nft", "flush", "ruleset")

    def limit(self, node: str, rate: str) -> None:
        """What leaves this machine, at most: `200mbit`."""
        self.run(
            node, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"
        )


@contextmanager
def machines(*nodes: str) -> Iterator[Machines]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "tc", "nft"):
        tool(program)
    made = Machines(nodes)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def spread(fleet: LocalFleet, made: Machines) -> None:
    """Let each agent of a prepared fleet run on the machine of its name."""
    for name, node in fleet.nodes.items():
        node.prefix = made.inside(name)


def _run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
