"""The documentation of commands and of the local socket says what the code does."""

import re
from pathlib import Path

import click
import pytest

from node.admin import CONNECTIONS_MAX
from node.admin_connection import CONTENT_BYTES_MAX, REQUESTS_MAX, UNREAD_BYTES_MAX
from node.admin_requests import COMMANDS
from node.cli.commands import spore
from node.cli.rehearsing import FIELDS
from simulations import SCENARIOS
from tests.test_cli import FIELDS as READING_FIELDS

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "commands.md").read_text()
PARTS = {
    match.group(1): part
    for part in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    if (match := re.match(r"`spore (\w+)", part))
}


def options_of(command: click.Command) -> set[str]:
    return {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


def documented_options(part: str) -> set[str]:
    cells = re.findall(r"^\| (`-.*?) \|", part, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(-{1,2}[a-z]+)", cell)}


def test_every_command_is_documented_and_no_other() -> None:
    assert set(PARTS) == set(spore.commands)


@pytest.mark.parametrize("name", sorted(spore.commands))
def test_every_option_is_documented_and_no_other(name: str) -> None:
    assert documented_options(PARTS[name]) == options_of(spore.commands[name])


@pytest.mark.parametrize("name", sorted(spore.commands))
def test_every_argument_is_in_the_heading(name: str) -> None:
    heading = PARTS[name].splitlines()[0]
    for parameter in spore.commands[name].params:
        if isinstance(parameter, click.Argument):
            shown = parameter.metavar or parameter.name.upper()
            assert shown.strip("[]") in heading


@pytest.mark.parametrize("name", sorted(spore.commands))
def test_every_option_explains_itself(name: str) -> None:
    command = spore.commands[name]
    assert command.help
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_the_options_of_the_group_are_documented() -> None:
    introduction = TEXT.partition("\n## ")[0]
    for name in options_of(spore) | {"-h", "--help"}:
        assert f"{name}" in introduction


@pytest.mark.parametrize("name", [*READING_FIELDS, "simulate"])
def test_the_stable_fields_are_documented(name: str) -> None:
    row = next(line for line in PARTS[name].splitlines() if line.startswith("| `--json`"))
    assert set(FIELDS if name == "simulate" else READING_FIELDS[name]) <= set(re.findall(r"`(\w+)`", row))


def test_the_scenarios_are_documented_and_in_the_help() -> None:
    for scenario in SCENARIOS:
        assert f"`{scenario}`" in PARTS["simulate"]
        assert scenario in (spore.commands["simulate"].help or "")


def test_every_request_of_the_local_socket_is_documented_with_its_arguments() -> None:
    section = (DOCS / "protocol.md").read_text().partition("\n## Local socket\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (`[a-z`, ]+) \|(.*)\|$", section, re.MULTILINE))
    documented = {
        command: set(re.findall(r"`(\w+)`", arguments))
        for cell, arguments in rows.items()
        for command in re.findall(r"\w+", cell)
    }
    del documented["do"]
    assert documented == {command: set(arguments) for command, arguments in COMMANDS.items()}


def test_the_limits_of_the_local_socket_are_documented() -> None:
    section = (DOCS / "protocol.md").read_text().partition("\n## Local socket\n")[2].partition("\n## ")[0]
    for limit in (
        f"{REQUESTS_MAX:,} requests",
        f"{CONTENT_BYTES_MAX >> 20} MiB of contents",
        f"{UNREAD_BYTES_MAX >> 20} MiB of answers",
        f"{CONNECTIONS_MAX} clients",
    ):
        assert limit in section
