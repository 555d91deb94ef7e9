"""Figures of one to many: agents on machines of their own (network namespaces), 200 Mbit/s of egress each. Root only.

    push      256 MiB to two of two others: seconds until both have it, against size/uplink
    small     the same, one receiver's uplink being a tenth
    many      256 MiB from 1 to 8: seconds until all have it, against the bound; bytes on the wire
    killed    the same, one receiver killed when it has about half
    rsync     256 MiB from 1 to 8 by rsync from the source, all at once (`--copies` of them)

Seconds are those from the record's stamp (it is accepted: hashed and kept) to that of the last holding (verified,
synced, named, committed); `command` is what `put --wait` took, its start and the hashing included. Wire bytes are what
left all interfaces, headers and acknowledgements included. Prints every run and the median; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from node.local_fleet import LocalFleet
from tests.netns import Machines

SIZE = 256 << 20  # by default; `--mib` and `--mbit` make smaller runs, for machines that are busy with other work
UPLINK_BITS = 200_000_000
PORT = 7946
ROUTING = {"settle_seconds": 0.3, "gossip_interval_seconds": 5}


@contextmanager
def fleet_of(base: Path, count: int, slow: str = "") -> Iterator[tuple[LocalFleet, Machines]]:
    """`count` agents in one domain, all connected; the first is the source."""
    names = [f"n{number}" for number in range(count)]
    made = Machines(names, "10.94")
    folder = Path(tempfile.mkdtemp(prefix="spore-swarm-", dir=base))
    try:
        made.make()
        hosts = {name: {"address": f"{made.address(name)}:{PORT}", "provider": "local"} for name in names}
        with LocalFleet(folder, hosts, ROUTING) as fleet:
            for name, node in fleet.nodes.items():
                node.prefix = made.inside(name)
            fleet.start()
            fleet.until(fleet.meshed, "the agents are connected", 120)
            for name in names:
                made.limit(name, f"{UPLINK_BITS // (10 if name == slow else 1)}bit")
            yield fleet, made
    finally:
        made.remove()
        shutil.rmtree(folder, ignore_errors=True)


def wire_bytes(made: Machines) -> int:
    texts = [made.run(node, "cat", "/sys/class/net/eth0/statistics/tx_bytes") for node in made.nodes]
    return sum(int(text) for text in texts)


def cpu_seconds(fleet: LocalFleet) -> float:
    """Processor seconds of all agents that run, since their start."""
    running = [psutil.Process(node.process.pid) for node in fleet.nodes.values() if node.process and node.running]
    agents = [child for process in running for child in (process, *process.children(recursive=True))]
    return sum(sum(process.cpu_times()[:2]) for process in agents)


def put(fleet: LocalFleet, kind: str, wait: int) -> float:
    """Seconds from the start of the command to its answer."""
    content = fleet.folder / "content"
    content.write_bytes(os.urandom(SIZE))
    began = time.monotonic()
    fleet.spore("n0", "put", str(content), "--kind", kind, "--name", "big", "--wait", str(wait), "--json")
    return time.monotonic() - began


def push(base: Path, slow: str = "") -> dict[str, float]:
    with fleet_of(base, 3, slow) as (fleet, made):
        before = wire_bytes(made)
        command = put(fleet, "checkpoint", 2)
        seconds = fleet.ask("n0", "delivery", name="checkpoint/big")["seconds"]
        sent = (wire_bytes(made) - before) / (2 * SIZE)
        return {"seconds": seconds, "x F/u": seconds / (SIZE * 8 / UPLINK_BITS), "wire": sent, "command": command}


def many(base: Path, victim: str = "") -> dict[str, float]:
    with fleet_of(base, 9) as (fleet, made):
        content = fleet.folder / "content"
        content.write_bytes(os.urandom(SIZE))
        before, cpu = wire_bytes(made), cpu_seconds(fleet)
        fleet.spore("n0", "put", str(content), "--kind", "model", "--name", "big", "--json")
        wanted = 9
        if victim:
            half = SIZE // 2
            fleet.until(lambda: _has(fleet, victim) >= half, "half of it is there", 120)
            fleet.kill(victim)
            wanted = 8
        fleet.until(lambda: _copies(fleet) >= wanted, "all have it", 300)
        facts = fleet.ask("n0", "delivery", name="model/big")
        seconds = max(row["seconds"] for row in facts["nodes"] if row["state"] == "delivered")
        bound = max(SIZE * 8 / UPLINK_BITS, 8 * SIZE * 8 / (9 * UPLINK_BITS))
        sent = (wire_bytes(made) - before) / (8 * SIZE) if not victim else 0.0
        return {"seconds": seconds, "x bound": seconds / bound, "wire": sent, "cpu": cpu_seconds(fleet) - cpu}


def _has(fleet: LocalFleet, node: str) -> int:
    return sum(transfer["bytes_done"] for transfer in fleet.ask(node, "status")["transfers"])


def _copies(fleet: LocalFleet) -> int:
    found = fleet.where("n0", "model/big")
    return found["copies"] if found else 0


def rsync(base: Path, copies: int) -> dict[str, float]:
    """From the source to each, all at once, over the same links."""
    names = [f"n{number}" for number in range(copies + 1)]
    made = Machines(names, "10.94")
    folder = Path(tempfile.mkdtemp(prefix="spore-swarm-", dir=base))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        made.make()
        (folder / "content").write_bytes(os.urandom(SIZE))
        for name in names[1:]:
            (folder / name).mkdir()
            text = f"use chroot = no\nuid = root\ngid = root\n[in]\npath = {folder / name}\nread only = no\n"
            (folder / f"{name}.conf").write_text(text)
            words = [
                "rsync",
                "--daemon",
                "--no-detach",
                f"--config={folder / name}.conf",
                f"--address={made.address(name)}",
            ]
            daemons.append(subprocess.Popen([*made.inside(name), *words], stdin=subprocess.DEVNULL))
        time.sleep(1.0)
        for name in names:
            made.limit(name, f"{UPLINK_BITS}bit")
        began = time.monotonic()
        copying = [
            subprocess.Popen(
                [
                    *made.inside("n0"),
                    "rsync",
                    "--whole-file",
                    str(folder / "content"),
                    f"rsync://{made.address(name)}/in/",
                ]
            )
            for name in names[1:]
        ]
        if any(process.wait() for process in copying):
            raise SystemExit("rsync failed")
        seconds = time.monotonic() - began
        return {"seconds": seconds, "x bound": seconds / (SIZE * 8 / UPLINK_BITS)}
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()
        made.remove()
        shutil.rmtree(folder, ignore_errors=True)


def report(name: str, runs: int, run: Callable[[], dict[str, float]]) -> None:
    rows = []
    for _ in range(runs):
        rows.append(run())
        print(f"{name:8}", json.dumps({key: round(value, 3) for key, value in rows[-1].items()}), flush=True)
    medians = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
    print(f"{name:8} median of {runs}: {medians}   load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["push", "small", "many", "killed"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copies", type=int, default=8, help="receivers of rsync")
    parser.add_argument("--base", type=Path, default=None, help="where the nodes' folders lie")
    parser.add_argument("--mib", type=int, default=SIZE >> 20, help="size of the artifact")
    parser.add_argument("--mbit", type=int, default=UPLINK_BITS // 1_000_000, help="of each uplink")
    chosen = parser.parse_args()
    globals().update(SIZE=chosen.mib << 20, UPLINK_BITS=chosen.mbit * 1_000_000)
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}")
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "push": lambda: push(chosen.base),
        "small": lambda: push(chosen.base, slow="n2"),
        "many": lambda: many(chosen.base),
        "killed": lambda: many(chosen.base, victim="n4"),
        "rsync": lambda: rsync(chosen.base, chosen.copies),
    }
    for what in chosen.what:
        report(what, chosen.runs, runs[what])


if __name__ == "__main__":
    main()
