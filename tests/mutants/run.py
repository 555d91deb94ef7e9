"""Break the code on purpose, one line at a time: every breakage must be caught by the simulator or a test.

    python tests/mutants/run.py [WORDS…]      only breakages whose name or heading holds all of the words

Works on copies in a temporary folder. First every command must pass on the unbroken code, else it proves nothing.
Exit 1 when a breakage survives.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from agreement import AGREEMENT_BREAKAGES
from asked import ASKED_BREAKAGES
from breakages import BREAKAGES, Breakage
from datapath import DATAPATH_BREAKAGES
from rollout import ROLLOUT_BREAKAGES
from spot import SPOT_BREAKAGES
from swarms import SWARM_BREAKAGES
from transports import TRANSPORT_BREAKAGES

ALL = (
    *BREAKAGES,
    *ASKED_BREAKAGES,
    *AGREEMENT_BREAKAGES,
    *ROLLOUT_BREAKAGES,
    *SPOT_BREAKAGES,
    *SWARM_BREAKAGES,
    *DATAPATH_BREAKAGES,
    *TRANSPORT_BREAKAGES,
)
ROOT = Path(__file__).resolve().parents[2]
COPIED = ("protocol", "storage", "node", "simulations", "tests", "pyproject.toml", "distributed_hosts.yaml")
SECONDS_MAX = 600  # a breakage that hangs is caught, too
WORKERS = min(4, os.cpu_count() or 1)
SEEDS = """
import sys, protocol, simulations
assert protocol.__file__.startswith(sys.argv[4]), f"the copy is not what runs: {protocol.__file__}"
for seed in range(int(sys.argv[2]), int(sys.argv[3]) + 1):
    report = simulations.run(sys.argv[1], seed=seed)
    if report.violations:
        sys.exit(f"seed {seed}: {report.violations[0]}")
"""


def copy_tree(to: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, to / name)


def commands(line: str, tree: Path) -> list[list[str]]:
    """The processes of a command line: pytest, the simulator, or one after the other."""
    tests, _, seeds = line.partition("seeds ")
    found = []
    if tests.strip():
        plain = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        found.append([sys.executable, "-m", "pytest", *plain, *shlex.split(tests)])
    if seeds:
        found.append([sys.executable, "-c", SEEDS, *shlex.split(seeds), str(tree)])
    return found


def caught_by(line: str, tree: Path) -> str:
    """What noticed: the last line of the first process that failed; "" when all passed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in commands(line, tree):
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it did not end within {SECONDS_MAX} s"
        if done.returncode:
            return summary(done.stdout, done.stderr)
    return ""


def summary(output: str, errors: str) -> str:
    lines = [line for line in (output + "\n" + errors).splitlines() if line.strip()]
    failed = [line for line in lines if re.match(r"FAILED |ERROR ", line)]
    return (failed or lines or ["it failed without a word"])[0 if failed else -1][:110]


def broken(breakage: Breakage, folder: Path) -> str:
    """Apply one breakage to a copy and see what notices."""
    tree = folder / "tree"
    copy_tree(tree)
    target = tree / breakage.file
    text = target.read_text()
    count = text.count(breakage.old)
    if count != 1:
        raise SystemExit(f"{breakage.file} holds the text of {breakage.name!r} {count} times: bring it up to date")
    mutated = text.replace(breakage.old, breakage.new)
    compile(mutated, breakage.file, "exec")
    target.write_text(mutated)
    return caught_by(breakage.command, tree)


def in_a_folder(breakage: Breakage) -> tuple[Breakage, str, float]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        caught = broken(breakage, Path(folder).resolve())
    return breakage, caught, time.monotonic() - started


def unbroken(line: str) -> str:
    with tempfile.TemporaryDirectory(prefix="unbroken-") as folder:
        tree = Path(folder).resolve() / "tree"
        copy_tree(tree)
        return caught_by(line, tree)


def main(words: list[str]) -> int:
    chosen = [b for b in ALL if all(word.lower() in f"{b.heading} {b.name}".lower() for word in words)]
    lines = list(dict.fromkeys(breakage.command for breakage in chosen))
    with ThreadPoolExecutor(WORKERS) as pool:
        for line, complaint in zip(lines, pool.map(unbroken, lines), strict=True):
            if complaint:
                print(f"the unbroken code fails `{line}`: {complaint}")
                return 1
        survivors = 0
        for breakage, caught, seconds in pool.map(in_a_folder, chosen):
            survivors += not caught
            verdict = f"caught in {seconds:3.0f} s" if caught else "SURVIVED      "
            print(f"{verdict}  {breakage.heading:22} {breakage.name}\n{'':17}{caught}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} breakages caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
