"""The command broadcast: to every eligible node, with how far each is and how fast it can be at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.failures import CommandFailed
from node.cli.options import SECONDS, folder_option, json_option
from node.cli.output import in_bytes, in_time, plain, print_json, print_table
from node.cli.progress import POLL_SECONDS, Position, ProgressLine


@click.command()
@click.argument("name")
@click.option("--timeout", metavar="S", type=SECONDS, default=0.0, help="Give up watching after S (default: never).")
@click.option("--detach", is_flag=True, help="Do not wait until every node has it.")
@folder_option
@json_option
def broadcast(name: str, timeout: float, detach: bool, directory: Path, as_json: bool) -> None:
    """Bring the newest version of a name to every eligible node.

    Whatever the strategy of its kind; the broadcast goes on when the command ends. Exit 1 if a node has not got it by
    the time-out.
    """
    line = ProgressLine(f"broadcast {name}")
    with Client(directory) as client:
        facts = client.ask("broadcast", name=name)
        until = time.monotonic() + timeout if timeout else None
        while not (facts["done"] or detach or (until is not None and time.monotonic() >= until)):
            line.show(_position(facts))
            time.sleep(POLL_SECONDS)
            facts = client.ask("delivery", name=name)
    line.clear()
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    if not facts["done"] and not detach:
        raise CommandFailed(f"{facts['delivered']} of {facts['receivers']} nodes have {name}; it goes on by itself")


def _position(facts: dict[str, Any]) -> Position:
    rows = [row for row in facts["nodes"] if row["state"] != "skipped"]
    slowest = f"{facts['delivered']} of {facts['receivers']} nodes have it; {facts['last']} has the least"
    best = f"; at best {in_time(facts['bound_seconds'])}, by {facts['limited_by']}" if facts["limited_by"] else ""
    why = slowest + best
    return Position(sum(row["bytes_done"] for row in rows), facts["size"] * len(rows), why=why)


def _print(facts: dict[str, Any]) -> None:
    spent = f"{facts['delivered']} of {facts['receivers']} nodes have it, after {in_time(facts['seconds'])}"
    if facts["bound_seconds"]:
        times = f"{facts['seconds'] / facts['bound_seconds']:.2f} x"
        spent += f": {times} the least possible, {in_time(facts['bound_seconds'])}, which {facts['limited_by']} sets"
    print(f"{plain(facts['name'])}, {in_bytes(facts['size'])}: {spent}")
    rows = [(row["node"], row["state"], _share(row, facts), _when(row), row["why"]) for row in facts["nodes"]]
    print_table(["node", "state", "has", "after", "why"], rows, right=["has", "after"])


def _share(row: dict[str, Any], facts: dict[str, Any]) -> str:
    return f"{row['bytes_done'] * 100 // max(1, facts['size'])}%" if row["state"] != "skipped" else ""


def _when(row: dict[str, Any]) -> str:
    return in_time(row["seconds"]) if row["seconds"] is not None else ""
