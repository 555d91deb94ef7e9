"""The page of metrics and the metrics are one: name, unit, meaning, and when to worry."""

import re
from pathlib import Path

from node.metrics import GAUGES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text()
UNITS = {"works", "artifacts", "bytes", "nodes", "entries", "commits", "effects", "seconds", "0 or 1"}


def rows() -> dict[str, list[str]]:
    """By metric: unit, meaning, when to worry."""
    lines = re.findall(r"^\| `(spore_[a-z_]+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(lines) == len({name for name, _ in lines})
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in lines}


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    assert sorted(rows()) == sorted(GAUGES)


def test_the_page_says_of_each_metric_what_the_metric_says_of_itself() -> None:
    assert {name: cells[1] for name, cells in rows().items()} == GAUGES


def test_every_metric_has_a_unit_and_says_when_to_worry() -> None:
    for name, (unit, _, worry) in rows().items():
        assert unit in UNITS, name
        assert worry, name


def test_a_name_ends_in_its_unit_where_it_has_one() -> None:
    for name, (unit, _, _) in rows().items():
        if unit in ("bytes", "seconds", "artifacts", "entries", "effects"):
            assert name.endswith(f"_{unit}")


def test_no_metric_is_named_elsewhere_on_the_page_that_does_not_exist() -> None:
    assert set(re.findall(r"spore_[a-z_]+", PAGE)) <= set(GAUGES)
