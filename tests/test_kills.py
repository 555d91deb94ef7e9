"""The killing script in its short form; the long one runs with the soak tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import run
from tests.promises import Promises

pytestmark = pytest.mark.processes


def held_promises(kills: int, seed: int, folder: Path) -> dict[str, int]:
    problems, counts = run(kills, seed, folder)
    assert problems == []
    assert counts["names"] > 50
    assert counts["small puts"] > 100
    assert counts["kills with bytes in staging"] + counts["small puts unanswered"] > 0  # they hit something
    return counts


def test_a_dozen_kills_lose_no_accepted_artifact(tmp_path: Path) -> None:
    held_promises(12, 7, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_two_hundred_kills_lose_no_accepted_artifact(tmp_path: Path) -> None:
    held_promises(200, 1, tmp_path)


def test_the_oracle_tells_what_may_be_current() -> None:
    promises = Promises()
    first, second, third = (promises.attempt("a", "checkpoint/x", digest, 1) for digest in ("1", "2", "3"))
    assert promises.owed() == []
    promises.accepted(first, "puts")
    assert promises.current("checkpoint/x") == {"1", "2", "3"}
    promises.accepted(second, "puts")
    assert promises.current("checkpoint/x") == {"2", "3"}  # the third was not answered, and may have been accepted
    promises.accepted(third, "puts")
    assert promises.current("checkpoint/x") == {"3"}
    assert promises.owed() == ["checkpoint/x"]
