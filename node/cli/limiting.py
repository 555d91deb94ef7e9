"""Commands that say how bytes travel: limit, and lend, which one agent runs on another's host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.options import folder_option, json_option
from node.cli.output import in_bytes, plain, print_json_rows, print_table


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
