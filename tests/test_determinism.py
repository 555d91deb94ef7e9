"""The same seed gives the same trace: on any run, in any process, whatever the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from simulations import run

PROGRAM = "import sys, simulations; print(simulations.run(sys.argv[1], seed=int(sys.argv[2])).trace_hash)"


def hash_in_a_process(scenario: str, seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, scenario, str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("scenario", "seed"), [("first-light", 4), ("crash", 3), ("disk-full", 2)])
def test_a_trace_does_not_depend_on_the_hash_seed(scenario: str, seed: int) -> None:
    hashes = {hash_in_a_process(scenario, seed, hash_seed) for hash_seed in ("0", "1", "4242")}
    assert len(hashes) == 1
    assert hashes == {run(scenario, seed=seed).trace_hash}


def test_equal_seeds_give_equal_reports_and_others_do_not() -> None:
    assert run("crash", seed=5) == run("crash", seed=5)
    assert run("crash", seed=5).trace_hash != run("crash", seed=6).trace_hash
