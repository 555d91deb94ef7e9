"""Three transfers of different priority on one uplink of 200 Mbit/s, then a critical one: who gets which share.

Real agents on machines of their own (network namespaces). Node a has everything, and four others fetch a file each, as
`spore get` does; what comes to each is read from its network interface. Root only: `make bench-budgets`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from node.local_fleet import LocalFleet
from protocol.egress import WEIGHTS
from tests.agents import GENEROUS_SECONDS, ROUTING, started, written
from tests.netns import Machines, machines, spread

PORT = 7946
RATE = 25_000_000  # 200 Mbit/s
PEERS = {"low": "b", "normal": "c", "high": "d", "critical": "e"}
SIZES = {"low": 120 << 20, "normal": 120 << 20, "high": 200 << 20, "critical": 100 << 20}
ALONE_SECONDS, BESIDE_SECONDS = 6.0, 3.0  # the three before the critical one begins, and beside it
LOOK_SECONDS = 0.25
FRAMING = 1.045  # bytes on the wire for each of payload: TLS, TCP, IP and Ethernet, at 1,448 bytes a segment


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="spore-budgets-"))
    try:
        with machines("a", *PEERS.values()) as made, fleet_on(made, folder) as fleet:
            for priority, size in SIZES.items():
                written(fleet, "a", f"bulk/{priority}", os.urandom(size))
            for priority, peer in PEERS.items():
                name = f"bulk/bulk/{priority}"
                fleet.until(
                    lambda name=name, peer=peer: fleet.where(peer, name), f"{peer} knows {name}", GENEROUS_SECONDS
                )
            made.limit("a", "240mbit")  # the budget is what limits; the wire above it has room for framing
            return told(measured(fleet, made))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fleet_on(made: Machines, folder: Path) -> LocalFleet:
    hosts = {"a": {"address": f"{made.address('a')}:{PORT}", "bandwidth_limit": "200 Mbit/s"}}
    for priority, peer in PEERS.items():
        hosts[peer] = {"address": f"{made.address(peer)}:{PORT}", "sync_priority": priority, "excluded": True}
    kinds = {"kinds": {"bulk": {"paths": ["bulk/*"], "strategy": "pull"}}}
    return Started(folder / "fleet", hosts, {**ROUTING, "min_copies": 1}, kinds, made=made)


class Started(LocalFleet):
    """A fleet on machines, running once it is entered."""

    def __init__(self, *arguments: object, made: Machines) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # as given above
        self.made = made

    def __enter__(self) -> Started:
        super().__enter__()
        spread(self, self.made)
        started(self)
        return self


def measured(fleet: LocalFleet, made: Machines) -> list[tuple[float, dict[str, int]]]:
    """(seconds, bytes that came to each) from the start of the three to the end of the look at all four."""
    samples: list[tuple[float, dict[str, int]]] = []
    began = time.monotonic()
    gets = [got(fleet, priority) for priority in ("low", "normal", "high")]
    critical_at = 0.0
    while not critical_at or time.monotonic() - critical_at < BESIDE_SECONDS:
        samples.append((time.monotonic() - began, came(made)))
        if not critical_at and time.monotonic() - began > ALONE_SECONDS:
            gets.append(got(fleet, "critical"))
            critical_at = time.monotonic()
            samples.append((-1.0, {"critical_began_ms": int((critical_at - began) * 1000)}))
        time.sleep(LOOK_SECONDS)
    for get in gets:
        get.join(GENEROUS_SECONDS)
    return samples


def got(fleet: LocalFleet, priority: str) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: fleet.spore(PEERS[priority], "get", f"bulk/bulk/{priority}", "-o", os.devnull), daemon=True
    )
    thread.start()
    return thread


def came(made: Machines) -> dict[str, int]:
    """Bytes sent towards each machine since it was made, seen at the bridge."""
    links = json.loads(made.run("net", "ip", "-s", "-j", "link"))
    found = {link["ifname"]: int(link["stats64"]["tx"]["bytes"]) for link in links if "stats64" in link}
    return {priority: found[f"v-{peer}"] for priority, peer in PEERS.items()}


def told(samples: list[tuple[float, dict[str, int]]]) -> int:
    (began,) = [facts["critical_began_ms"] / 1000 for at, facts in samples if at < 0]
    looks = [(at, facts) for at, facts in samples if at >= 0]
    wrong = 0
    alone = shares(looks, 2.0, began)  # the first two seconds are those of the commands' own start
    for priority in ("low", "normal", "high"):
        ideal = WEIGHTS[priority] / 7  # type: ignore[index]  # a priority
        off = abs(alone[priority] / ideal - 1)
        wrong += off > 0.10
        print(f"{priority:9} {alone[priority]:6.1%} of what left, by weight {ideal:.1%}, off by {off:.1%}")
    print(f"all       {rate(looks, 2.0, began) / FRAMING / RATE:6.1%} of the budget")
    first = next(
        at for at, facts in looks if at > began and facts["critical"] - dict(looks[0][1])["critical"] > 1 << 20
    )
    print(f"critical  began to move {first - began:.2f} s after its command was started")
    beside = shares(looks, first + 1.0, first + 2.5)
    print(f"critical  {beside['critical']:6.1%} within a second of its first megabyte, by weight {36 / 43:.1%}")
    print(f"low       {beside['low']:6.1%} beside it, by weight {1 / 43:.1%}")
    wrong += beside["critical"] < 0.8
    wrong += beside["low"] <= 0.01
    return 1 if wrong else 0


def shares(looks: list[tuple[float, dict[str, int]]], first: float, end: float) -> dict[str, float]:
    inside = [facts for at, facts in looks if first <= at <= end]
    moved = {priority: inside[-1][priority] - inside[0][priority] for priority in PEERS}
    return {priority: count / sum(moved.values()) for priority, count in moved.items()}


def rate(looks: list[tuple[float, dict[str, int]]], first: float, end: float) -> float:
    inside = [(at, sum(facts.values())) for at, facts in looks if first <= at <= end]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


if __name__ == "__main__":
    sys.exit(main())
