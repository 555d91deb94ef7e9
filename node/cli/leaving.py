"""Commands for nodes that go: drain, remove."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.client import Client
from node.cli.failures import CommandFailed
from node.cli.options import SECONDS, folder_option, json_option
from node.cli.output import in_time, plain, print_json
from node.cli.progress import Position, ProgressLine, watching

DRAIN_SECONDS = 3600.0  # a node's only copies may be terabytes


@click.command()
@click.option(
    "--copies",
    metavar="K",
    type=click.IntRange(min=1),
    default=None,
    help="Copies elsewhere (default: as policy says).",
)
@click.option("--deadline", metavar="S", type=SECONDS, default=DRAIN_SECONDS, help="At most this long (default 1h).")
@click.option("--undo", is_flag=True, help="Accept again.")
@folder_option
@json_option
def drain(copies: int | None, deadline: float, undo: bool, directory: Path, as_json: bool) -> None:
    """Make it safe to stop this node.

    It accepts nothing more, and pushes whatever would have too few copies without it. Exit 0 when it may be stopped.
    """

    def look(client: Client) -> Position:
        left = client.ask("risk")
        return Position(0, 0, why=f"{len(left)} artifacts at risk" if left else "looking for what depends on this node")

    with Client(directory) as client, watching(directory, ProgressLine("drain"), look):
        facts = client.ask("drain", copies=copies or 0, deadline_seconds=deadline, undo=undo)
    if as_json:
        print_json(facts)
    if undo:
        _say(as_json, "this node accepts again")
    elif facts["safe"]:
        _say(as_json, "nothing depends on this node; it may be stopped (`spore drain --undo` takes it back)")
    else:
        raise CommandFailed(f"not safe to stop after {in_time(deadline)}: {facts['why']}; it goes on meanwhile")


def _say(as_json: bool, sentence: str) -> None:
    if not as_json:
        print(sentence)


@click.command()
@click.argument("node")
@folder_option
@json_option
def remove(node: str, directory: Path, as_json: bool) -> None:
    """Say that a node is gone for good.

    What it held is no copy any more, so that repair begins at once; it is shut out and comes back only by joining anew.
    """
    with Client(directory) as client:
        facts = client.ask("remove", node=node)
    if as_json:
        print_json(facts)
    else:
        print(f"{plain(facts['node'])} is gone for good; take it out of the hosts file too")
