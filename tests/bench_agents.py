"""Figures of whole agents: three real ones on loopback, mutual TLS, every sync real. `make bench` runs it.

    latency   1 MiB closed in a watched folder → two receipts on two other agents
    puts      10,000 artifacts of 10 KiB in one call: accepted per second, and with two receipts per second
    syncs     the same with 4 ms added to each fsync: what group commit saves
    idle      resident memory and CPU of an agent with nothing to do

Prints medians and the machine they were taken on; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from node.local_fleet import LocalFleet

HOSTS = {"a": {"provider": "one"}, "b": {"provider": "two"}, "c": {"provider": "three"}}
FILES, FILE_BYTES = 10_000, 10 << 10
DELAY_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define DELAYED(name) int name(int fd) { \\
    static int (*real)(int); if (!real) real = dlsym(RTLD_NEXT, #name); usleep(4000); return real(fd); }
DELAYED(fsync) DELAYED(fdatasync) DELAYED(syncfs)
"""


def latency(folder: Path, samples: int) -> None:
    with LocalFleet(folder, HOSTS, {"settle_seconds": 0.5}) as fleet:
        fleet.start()
        fleet.until(fleet.meshed, "meshed")
        root = fleet.nodes["a"].root / "models"
        root.mkdir(parents=True)
        spent = [_one(fleet, root, number) for number in range(samples + 3)][3:]
    ordered = sorted(spent)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(
        f"1 MiB watched file → 2 receipts   p50 {statistics.median(spent) * 1e3:.0f} ms   p99 {p99 * 1e3:.0f} ms   "
        f"max {ordered[-1] * 1e3:.0f} ms   n={len(spent)}"
    )


def _one(fleet: LocalFleet, root: Path, number: int) -> float:
    """Seconds from the rename to the answer of a `wait --copies 2` that was asked as soon as the name is known."""
    draft, name = root / ".part", f"m{number}.pth"
    draft.write_bytes(os.urandom(1 << 20))
    began = time.perf_counter()
    draft.rename(root / name)
    while True:
        try:
            fleet.ask("a", "wait", name=f"model/models/{name}", copies=2, timeout_seconds=30)
            return time.perf_counter() - began
        except Exception:
            time.sleep(0.001)


def puts(folder: Path, label: str, env: dict[str, str]) -> float:
    with LocalFleet(folder, HOSTS, {}, env=env) as fleet:
        fleet.start()
        fleet.until(fleet.meshed, "meshed")
        source = folder / "source"
        source.mkdir()
        for number in range(FILES):
            (source / f"f{number:05}").write_bytes(os.urandom(FILE_BYTES))
        names = [str(path) for path in sorted(source.iterdir())]
        before = sum(sum(psutil.Process(n.process.pid).cpu_times()[:2]) for n in fleet.nodes.values() if n.process)
        put_before = sum(_of_children())
        began = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "node.cli",
                "put",
                *names,
                "--kind",
                "checkpoint",
                "--json",
                "--dir",
                str(fleet.nodes["a"].folder),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
        accepted = time.perf_counter() - began
        if done.returncode or len(json.loads(done.stdout)) != FILES:
            raise SystemExit(f"put failed: {done.stderr}")
        fleet.until(lambda: fleet.ask("a", "status")["at_risk"]["artifacts"] == 0, "all have two receipts", 300)
        durable = time.perf_counter() - began
        status = fleet.ask("a", "status")
        agents = [psutil.Process(node.process.pid) for node in fleet.nodes.values() if node.process]
        processor = sum(sum(process.cpu_times()[:2]) for process in agents) - before + sum(_of_children()) - put_before
    print(
        f"{FILES} x 10 KiB in one call{label}   accepted {FILES / accepted:.0f}/s   "
        f"two receipts {FILES / durable:.0f}/s   ({accepted:.1f} s, {durable:.1f} s, {processor:.1f} s of processor "
        f"time in all)  wal {status['wal']}"
    )
    return durable


def _of_children() -> tuple[float, float]:
    """Processor time of programs that were run to their end: user, system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


def idle(folder: Path, seconds: float) -> None:
    with LocalFleet(folder, HOSTS, {}) as fleet:
        fleet.start()
        fleet.until(fleet.meshed, "meshed")
        time.sleep(5)
        processes = {name: psutil.Process(node.process.pid) for name, node in fleet.nodes.items() if node.process}
        before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
        time.sleep(seconds)
        for name, process in processes.items():
            share = (sum(process.cpu_times()[:2]) - before[name]) / seconds * 100
            print(f"idle agent {name}   {process.memory_info().rss / 2**20:.0f} MiB resident   {share:.2f}% of a core")


def delayed_syncs(folder: Path) -> dict[str, str]:
    """An environment in which every fsync takes 4 ms longer: a small library made with the system's compiler."""
    folder.mkdir()
    (folder / "delay.c").write_text(DELAY_SOURCE)
    library = folder / "delay.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "delay.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["latency", "puts", "syncs", "idle"])
    parser.add_argument("--samples", type=int, default=60)
    chosen = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="spore-bench-"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, no bandwidth limit, three agents on loopback"
    )
    try:
        if "latency" in chosen.what:
            latency(base / "latency", chosen.samples)
        if "puts" in chosen.what or "syncs" in chosen.what:
            plain = puts(base / "puts", "", {})
            if "syncs" in chosen.what and shutil.which("cc"):
                slow = puts(base / "syncs", ", fsync + 4 ms", delayed_syncs(base / "delay"))
                print(f"with 4 ms added to each fsync: {slow / plain:.2f} times as long")
        if "idle" in chosen.what:
            idle(base / "idle", 20)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
