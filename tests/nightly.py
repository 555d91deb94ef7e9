"""What is too long for every day: thousands of seeds, and fleets of 1,000 and 10,000 nodes, each run to its end.

    python tests/nightly.py [seeds] [first seed] [--only seeds|large|figures]

Prints as it goes; a seed that breaks a rule is shrunk, and its command printed. Exit 1 if anything was found.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulations import Case, run, run_case
from simulations.shrink import shrink
from tests import bench_agreement, bench_swim

SEEDS, FIRST = 2_000, 100_001  # far from the seeds of every day
WORKERS = os.cpu_count() or 1
CHUNK = 20  # seeds in one task
SCENARIOS = (
    "partition",
    "spot-storm",
    "nfs-fleet",
    "rolling-restart",
    "deletes",
    "flaky-wan",
    "first-light",
    "crash",
    "disk-full",
)
SCENARIO_SEEDS = 20  # of each scenario, beside the swarm
GIB = 1 << 30


def check(scenario: str, first: int, last: int) -> list[tuple[str, str]]:
    """(command, first broken rule) of each seed that breaks one."""
    found = []
    for seed in range(first, last + 1):
        report = run(scenario, seed=seed)
        if not report.passed or report.coverage != 1.0:
            rule = (*report.violations, f"coverage is {report.coverage}")[0]
            _, smallest = shrink(Case(scenario, seed), report, run_case)
            found.append((f"{report.reproduce}, or {smallest.reproduce}", rule))
    return found


def tasks(seeds: int, first: int) -> Iterator[tuple[str, int, int]]:
    for at in range(first, first + seeds, CHUNK):
        yield "swarm", at, min(at + CHUNK, first + seeds) - 1
    for scenario in SCENARIOS:
        yield scenario, first, first + SCENARIO_SEEDS - 1


def run_seeds(seeds: int, first: int) -> int:
    """How many seeds break a rule."""
    begun, broken, done = time.monotonic(), 0, 0
    with ProcessPoolExecutor(WORKERS) as pool:
        for (scenario, low, high), found in zip(
            tasks(seeds, first), pool.map(check, *zip(*tasks(seeds, first), strict=True)), strict=True
        ):
            done += high - low + 1
            broken += len(found)
            for command, rule in found:
                print(f"BROKEN {command}\n       {rule}", flush=True)
            if scenario != "swarm" or low % (10 * CHUNK) == 1:
                print(f"{done} seeds, {broken} broken, {time.monotonic() - begun:.0f} s", flush=True)
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = done / max(1e-9, cpu.ru_utime + cpu.ru_stime) * 3600
    print(f"{done} seeds, {broken} broken: {rate:.0f} seeds per core-hour", flush=True)
    return broken


def run_large() -> int:
    """1,000 nodes with everything; 10,000 with their membership and their news."""
    begun = time.process_time()
    report = run_case(Case("convergence", seed=1, nodes=1_000))
    took = time.process_time() - begun
    print(
        f"convergence of 1,000 nodes: {took:.0f} s, {report.steps / took:.0f} events/s, "
        f"{report.hops} hops at most, full after {report.seconds_to_full:.1f} s, {len(report.violations)} broken rules"
    )
    begun = time.process_time()
    bench_swim.settled(10_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(f"10,000 nodes: {time.process_time() - begun:.0f} s, {peak:.1f} GiB at most", flush=True)
    return len(report.violations)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("seeds", nargs="?", type=int, default=SEEDS)
    options.add_argument("first", nargs="?", type=int, default=FIRST)
    options.add_argument("--only", choices=("seeds", "large", "figures"))
    chosen = options.parse_args()
    broken = 0
    if chosen.only in (None, "seeds"):
        broken += run_seeds(chosen.seeds, chosen.first)
    if chosen.only in (None, "large"):
        broken += run_large()
    if chosen.only in (None, "figures"):
        bench_agreement.main(large=True)
        bench_swim.main()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
