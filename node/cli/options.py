"""Options and arguments that several commands share: the node's folder, `--json`, durations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FOLDER_VARIABLE = "SPORE_DIR"
SECONDS_MAX = 365 * 86_400.0  # a year: a longer limit is a slip of the keyboard

Command = TypeVar("Command", bound=Callable[..., Any])


def default_folder() -> Path:
    return Path.home() / ".spore"


def folder_option(command: Command) -> Command:
    """`--dir`, else $SPORE_DIR, else ~/.spore."""
    return click.option(
        "--dir",
        "directory",
        metavar="DIR",
        type=click.Path(path_type=Path),
        envvar=FOLDER_VARIABLE,
        default=default_folder,
        help=f"The node's folder (else ${FOLDER_VARIABLE}, else ~/.spore).",
    )(command)


def folder_argument(command: Command) -> Command:
    """The folder as an argument, for commands that make or run a node; `chosen` decides between it and `--dir`."""
    argument = click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
    return argument(folder_option(command))


def chosen(folder: Path | None, directory: Path) -> Path:
    """The argument wins over option, variable and default."""
    return directory if folder is None else folder


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields.")


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3, not in 8.1
    """A duration: plain seconds, or with a unit (90s, 5m, 1h, 7d)."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        from node.config_problems import BadValueError
        from node.config_values import DURATION_UNITS, read_quantity

        try:
            seconds = read_quantity(value, DURATION_UNITS, "90s, 5m or 1h")
        except BadValueError as problem:
            self.fail(f"{problem.message}. {problem.suggestion}", param, ctx)
        if seconds > SECONDS_MAX:
            self.fail(f"{value!r} is more than a year.", param, ctx)
        return seconds


SECONDS = Seconds()
