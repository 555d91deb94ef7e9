"""Commands about where data goes: plan, pin, unpin, age, recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.failures import EXIT_USAGE, CommandFailed
from node.cli.options import folder_option, json_option
from node.cli.output import counted, in_time, plain, print_json, print_json_rows, print_table, yes


@click.command()
@click.argument("name")
@click.option(
    "--hosts",
    "hosts_file",
    type=click.Path(path_type=Path),
    help="The fleet of this hosts file, every host there and with room, instead of the running one.",
)
@click.option("--origin", help="With --hosts: the node that writes it.")
@folder_option
@json_option
def plan(name: str, hosts_file: Path | None, origin: str | None, directory: Path, as_json: bool) -> None:
    """Who should hold an artifact, and of every other node why not.

    In the order in which nodes are served. With --hosts no agent is asked, and the artifact need not exist.
    """
    if hosts_file is not None:
        facts = _plan_offline(name, hosts_file, origin)
    elif origin is not None:
        raise CommandFailed("--origin goes with --hosts; a running fleet knows who wrote it", EXIT_USAGE)
    else:
        with Client(directory) as client:
            facts = client.ask("plan", name=name)
    if as_json:
        print_json(facts)
    else:
        _print_plan(facts)


def _plan_offline(name: str, hosts_file: Path, origin: str | None) -> dict[str, Any]:
    from node.cli.offline import plan_offline  # YAML and pydantic are loaded where a hosts file is read

    return plan_offline(name, hosts_file, origin)


def _print_plan(facts: dict[str, Any]) -> None:
    promise = f"{counted(facts['copies'], 'receipt')} over {counted(facts['domains'], 'domain')} make it durable"
    short = "" if facts["enough"] else "; fewer stores are eligible, so it stays at risk"
    print(f"{plain(facts['name'])}: kind {facts['kind']}, {facts['strategy']}; {promise}{short}")
    rows = [(h["node"], h["domain"], h["role"], yes(h["counts"]), yes(h["holds"]), h["why"]) for h in facts["holders"]]
    print_table(["holder", "domain", "role", "counts", "has it", "why"], rows)
    if facts["others"]:
        print()
        print_table(["not", "why not"], [(other["node"], other["why"]) for other in facts["others"]])


@click.command()
@click.argument("name")
@click.option("--node", default="", help="Another node than this one.")
@folder_option
@json_option
def pin(name: str, node: str, directory: Path, as_json: bool) -> None:
    """Keep a copy of a name on a node.

    Whatever its strategy and the node's role say, and never evicted there.
    """
    _pin(name, node, directory, as_json, pinned=True)


@click.command()
@click.argument("name")
@click.option("--node", default="", help="Another node than this one.")
@folder_option
@json_option
def unpin(name: str, node: str, directory: Path, as_json: bool) -> None:
    """Take a pin back: policy alone decides again."""
    _pin(name, node, directory, as_json, pinned=False)


def _pin(name: str, node: str, directory: Path, as_json: bool, pinned: bool) -> None:
    with Client(directory) as client:
        facts = client.ask("pin", name=name, node=node, pinned=pinned)
    if as_json:
        print_json(facts)
    else:
        print(f"{plain(facts['name'])} is {'pinned to' if pinned else 'no longer pinned to'} {facts['node']}")


@click.command()
@click.argument("glob", required=False)
@folder_option
@json_option
def age(glob: str | None, directory: Path, as_json: bool) -> None:
    """How old the newest version is, and where it is missing.

    Of each kind, and of each folder or origin below it; or of those prefixes that match GLOB (quote it: 'game/*').
    """
    with Client(directory) as client:
        rows = client.ask("age", glob=glob)
    if as_json:
        print_json_rows(rows)
        return
    cells = [(r["prefix"], in_time(r["age_seconds"]), f"{r['copies']}", r["name"], ", ".join(r["stale"])) for r in rows]
    print_table(["below", "age", "copies", "newest", "missing on"], cells, right=["copies"])


@click.command()
@folder_option
@json_option
def recommend(directory: Path, as_json: bool) -> None:
    """What should move where, or be changed, and why."""
    with Client(directory) as client:
        rows = client.ask("recommend")
    if as_json:
        print_json_rows(rows)
        return
    if not rows:
        print("nothing to do: everything lies where it should, and every disk has room")
        return
    cells = [(r["action"], r["name"], r["from"], r["to"], yes(r["by_itself"]), r["why"]) for r in rows]
    print_table(["do", "artifact", "from", "to", "by itself", "why"], cells)
