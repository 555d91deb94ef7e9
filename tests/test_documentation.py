"""The documentation says what the code does: every setting, its unit and default, every variable, every kind."""

import re
from pathlib import Path

import pytest

from node.config_schema import ENVIRONMENT, HOST_ENVIRONMENT, Setting, all_settings
from protocol.fleet import DEFAULT_KINDS, OTHER_BANDWIDTH, PROVIDER_BANDWIDTH, Bandwidth

CONFIGURATION = (Path(__file__).resolve().parent.parent / "docs" / "configuration.md").read_text()
# Settings whose table does not stand below a heading of their own.
BESIDE = {"": "Top level", "allowed_external_storage": "sync_routing", "ssh": "hosts"}


def rows(heading: str) -> list[list[str]]:
    """The cells of every table row below a heading."""
    body = re.split(rf"^## {re.escape(heading)}$", CONFIGURATION, flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: f"{setting.section}.{setting.name}")
def test_every_setting_is_documented_with_its_unit_default_and_meaning(setting: Setting) -> None:
    default = "—" if setting.default == "—" else f"`{setting.default}`"
    documented = [row for row in rows(BESIDE.get(setting.section, setting.section)) if row[0] == f"`{setting.name}`"]
    assert [f"`{setting.name}`", setting.unit, default, setting.meaning] in documented


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = (
        {setting.name for setting in all_settings()}
        | {kind.name for kind in DEFAULT_KINDS}
        | {*ENVIRONMENT, *HOST_ENVIRONMENT}
    )
    documented = re.findall(r"^\| `([^`]+)` \|", CONFIGURATION, re.MULTILINE)
    assert set(documented) == known


def test_every_setting_has_a_meaning_and_a_unit() -> None:
    assert [setting for setting in all_settings() if not (setting.meaning and setting.unit)] == []


def test_every_variable_is_documented_with_what_it_overrides() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows("Environment")[1:]}
    assert documented == {**ENVIRONMENT, **HOST_ENVIRONMENT}


def test_the_provider_table_is_the_one_in_the_code() -> None:
    documented = {row[0]: row[1] for row in rows("sync_routing") if len(row) == 2 and row[0] != "provider"}
    assert documented == {
        name: megabytes(limit) for name, limit in (*PROVIDER_BANDWIDTH.items(), ("others", OTHER_BANDWIDTH))
    }


def megabytes(limit: Bandwidth) -> str:
    return "none" if limit.bytes_per_second is None else f"{limit.bytes_per_second / 1_000_000:g}"


def test_the_default_kinds_are_documented_as_they_are() -> None:
    documented = [row[:6] for row in rows("kinds") if len(row) == 7 and row[0] != "kind"]
    assert documented == [
        [
            f"`{kind.name}`",
            f"`{kind.paths[0]}`",
            kind.namespace,
            kind.strategy,
            str(kind.versions),
            kind.snapshot or "—",
        ]
        for kind in DEFAULT_KINDS
    ]
