"""What commands print: tables for people, JSON for programs, sizes, rates and times in words.

On a terminal tables are drawn by rich, which is imported only then; elsewhere they are plain aligned text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

Fields = dict[str, Any]
LISTED_MAX = 20  # rows of what a command says in passing; beyond it people want the sum, and a command that lists
DIGEST_CHARACTERS = 12  # of a digest in a table: enough to tell artifacts apart, short enough to read


def print_json(value: Any) -> None:
    """One JSON value, indented; never a bare NaN, which JSON does not have."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_json_rows(rows: Iterable[Fields]) -> None:
    """A list of any length, a row a line, printed as it comes."""
    before = "["
    for row in rows:
        print(f"{before}\n  {json.dumps(row, allow_nan=False)}", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], right: Iterable[str] = ()) -> None:
    """Rows under headings; the columns named in `right` are numbers and end in line."""
    numbers = {headings.index(name) for name in right}
    texts = [[plain(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(headings, texts, numbers)
        return
    widths = [max(len(row[column]) for row in [list(headings), *texts]) for column in range(len(headings))]
    for row in [list(headings), *texts]:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _print_rich(headings: Sequence[str], rows: list[list[str]], numbers: set[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    Console().print(table)


def plain(value: Any) -> str:
    """A value as text that cannot steer a terminal: what other nodes say of themselves ends up here."""
    text = "—" if value is None or value == "" else str(value)
    return "".join(character if character.isprintable() else "?" for character in text)


def short(digest: str) -> str:
    return digest[:DIGEST_CHARACTERS]


def yes(value: Any) -> str:
    return "yes" if value else "no"


def in_bytes(count: float) -> str:
    """1536 → 1.5 KiB."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            break
    return f"{count:,.1f} {unit}"


def in_time(seconds: float) -> str:
    """7.3 → 7.3 s; 4000 → 1 h 6 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
