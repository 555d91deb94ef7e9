"""Commands that move bytes and say how: sync, limit, and lend, which one agent runs on another's host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.failures import CommandFailed
from node.cli.options import SECONDS, folder_option, json_option
from node.cli.output import LISTED_MAX, counted, in_bytes, plain, print_json, print_json_rows, print_table
from node.cli.progress import Position, ProgressLine

PRIORITY_WORDS = ("low", "normal", "high", "critical")


@click.command()
@click.argument("words", nargs=-1, metavar="[NODE] [RATE]")
@folder_option
@json_option
def limit(words: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Set an egress budget, or show those in force.

    RATE limits all that this node sends; NODE RATE what it sends to NODE. RATE is megabytes per second, or has a unit
    (400 Mbit/s, 20 MB/s), or is none, or default: what the hosts file says. It holds until the agent ends.
    """
    node, rate = _node_and_rate(words)
    with Client(directory) as client:
        rows = client.ask("limit", node=node, rate=rate)
    if as_json:
        print_json_rows(rows)
        return
    print_table(
        ["egress", "at most", "says"], [(plain(r["egress"]), _rate(r), r["by"]) for r in rows], right=["at most"]
    )


@click.command()
@click.argument("glob", required=False)
@click.option(
    "--to", metavar="NODE", default="", help="A copy of each to this node; else what is owed and lacked here."
)
@click.option(
    "--priority", metavar="P", type=click.Choice(PRIORITY_WORDS), default=None, help="low, normal, high, critical."
)
@click.option("--timeout", metavar="S", type=SECONDS, default=0.0, help="Give up after S (default: never).")
@folder_option
@json_option
def sync(glob: str | None, to: str, priority: str | None, timeout: float, directory: Path, as_json: bool) -> None:
    """Make it so now: what this node owes others and lacks itself, all or by GLOB.

    Exit 1 if something could not be done; each such artifact is named with the reason.
    """
    result: dict[str, Any] = {}
    line = ProgressLine(f"sync {glob or 'everything'}" + (f" to {to}" if to else ""))
    with Client(directory) as client:
        for row in client.rows("sync", glob=glob, to=to, priority=priority or "", timeout_seconds=timeout):
            if row.get("result"):
                result = {key: value for key, value in row.items() if key != "result"}
            else:
                line.show(Position(row["bytes"], row["bytes_total"], why=row["why"]))
    line.clear()
    if as_json:
        print_json(result)
    else:
        _print_synced(result)
    if result["left_count"]:
        raise CommandFailed(f"{counted(result['left_count'], 'artifact')} could not be moved; the reasons are above")


def _print_synced(result: dict[str, Any]) -> None:
    moved, there = counted(result["moved"], "artifact"), counted(result["there"], "artifact")
    print(f"{moved} moved, {in_bytes(result['moved_bytes'])}; {there} were where they should be")
    if result["left"]:
        rows = [(row["name"], in_bytes(row["size"]), row["why"]) for row in result["left"][:LISTED_MAX]]
        print_table(["not done", "size", "why"], rows, right=["size"])


@click.command()
@click.argument("digest")
@click.option("--to", metavar="NODE", default="", help="Who asks, for the log.")
@click.option("--priority", metavar="P", default="normal", help="How much of the egress budget it may take.")
@folder_option
@json_option
def lend(digest: str, to: str, priority: str, directory: Path, as_json: bool) -> None:
    """Name a file that holds the bytes of DIGEST.

    An agent that cannot reach this one's port runs this over SSH, and then rsync.
    """
    with Client(directory) as client:
        for row in client.rows("lend", digest=digest, to=to, priority=priority):
            if as_json:
                print(json.dumps(row))
            elif "path" in row:
                print(plain(row["path"]))


def _node_and_rate(words: tuple[str, ...]) -> tuple[str, str]:
    if len(words) > 2 or (len(words) == 2 and not all(words)):
        raise click.UsageError("give at most a node and a rate; quote a rate with a space in it, as in '400 Mbit/s'")
    return ("", words[0]) if len(words) == 1 else (words[0], words[1]) if words else ("", "")


def _rate(row: dict[str, Any]) -> str:
    rate = row["bytes_per_second"]
    return "unlimited" if rate is None else f"{in_bytes(rate)}/s"
