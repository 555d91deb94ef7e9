"""docs/lessons.md names tests as proof: each stands, and each lesson has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = (ROOT / "docs/lessons.md").read_text()
PROOF = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


@pytest.mark.parametrize(("file", "name"), sorted(set(PROOF.findall(LESSONS))))
def test_the_proof_of_a_lesson_is_a_test_that_stands(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)


def test_every_lesson_has_a_proof() -> None:
    rows = [
        line for line in LESSONS.splitlines() if line.startswith("| ") and not line.startswith(("| it ", "| wish "))
    ]
    assert len(rows) > 50
    assert [row for row in rows if not PROOF.search(row)] == []


def test_every_heading_of_the_breakages_is_one_of_the_lessons() -> None:
    said = "".join(path.read_text() for path in sorted((ROOT / "tests/mutants").glob("*.py")))
    headings = re.findall(
        r'"(Losing data|Corrupting data|Filling disks|Gossip and membership|What users ask for)"', said
    )
    assert len(set(headings)) == 5
    for heading in headings:
        assert f"\n## {heading}" in LESSONS
