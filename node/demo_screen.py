"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table


class Row(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def origin(self) -> str: ...

    @property
    def copies(self) -> int: ...

    @property
    def durable(self) -> float: ...


class Screen:
    """Sentences scroll by, the table stays below them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console: Console = Console(file=stream, highlight=False, width=None if stream.isatty() else 110)
        self._live: Live | None = None
        self._tty = stream.isatty()

    def say(self, sentence: str) -> None:
        self._console.print(f"  {sentence}", markup=False, soft_wrap=True)

    def draw(self, rows: Iterable[Row], running: list[str]) -> None:
        """Show the table as it is now (only where it can be drawn over)."""
        if not self._tty:
            return
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8)
            self._live.start()
        self._live.update(self._table(rows, running))

    def close(self, rows: Iterable[Row]) -> None:
        """End the live table and print the last one."""
        if self._live is not None:
            self._live.update(self._table(rows, []))
            self._live.stop()
            self._live = None
        else:
            self._console.print(self._table(rows, []))
        sys.stdout.flush()

    def _table(self, rows: Iterable[Row], running: list[str]) -> Table:
        from rich.table import Table

        table = Table(caption=f"running: {', '.join(running)}" if running else None)
        table.add_column("artifact")
        table.add_column("written on")
        table.add_column("copies", justify="right")
        table.add_column("durable after", justify="right")
        for row in rows:
            table.add_row(row.name, row.origin, str(row.copies), f"{row.durable:.2f} s" if row.durable else "at risk")
        return table
