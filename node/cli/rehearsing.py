"""Commands that need no node: simulate rehearses a fleet's failures, demo shows a real cluster at work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed
from node.cli.options import json_option
from node.cli.output import in_bytes, plain, print_json, print_table

if TYPE_CHECKING:
    from protocol.fleet import Fleet

FIELDS = (
    "scenario", "seed", "nodes", "coverage", "hops", "seconds_to_full", "copies_per_node", "bytes_per_node_per_second",
    "lost", "violations", "trace_hash", "reproduce",
)  # fmt: skip


@click.command()
@click.argument("scenario", default="first-light")
@click.option("--nodes", metavar="N", type=click.IntRange(min=1), help="How many nodes (default: drawn from the seed).")
@click.option("--seed", metavar="S", type=int, default=1, help="The seed that everything follows from (default 1).")
@click.option("--hosts", metavar="FILE", type=click.Path(path_type=Path), help="Simulate the fleet of this hosts file.")
@json_option
def simulate(scenario: str, nodes: int | None, seed: int, hosts: Path | None, as_json: bool) -> int:
    """Rehearse a fleet's failures in virtual time.

    The real core runs on simulated disks and networks. Exit 1 if anything was lost or a rule was broken.

    Scenarios: first-light, convergence, crash, disk-full.
    """
    import simulations

    if hosts is not None and nodes is not None:
        raise CommandFailed("--hosts says how many nodes there are; leave --nodes out", EXIT_USAGE)
    fleet = _fleet(hosts) if hosts is not None else None
    try:
        report = simulations.run(scenario, nodes, seed, fleet, hosts="" if hosts is None else str(hosts))
    except ValueError as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    found = asdict(report)
    facts = {name: list(found[name]) if name == "violations" else found[name] for name in FIELDS}
    if as_json:
        print_json(facts)
    else:
        _print_report(facts)
    return EXIT_NOT_ACHIEVED if facts["lost"] or facts["violations"] else 0


def _fleet(hosts: Path) -> Fleet:
    from node.config import ConfigError, load_fleet

    try:
        return load_fleet(hosts)
    except ConfigError as problem:
        raise CommandFailed(
            f"{str(problem).splitlines()[0]}; `spore check {hosts}` lists every mistake", EXIT_USAGE
        ) from problem


def _print_report(facts: dict[str, Any]) -> None:
    shown = facts | {
        "coverage": f"{facts['coverage']:.4f}",
        "seconds_to_full": f"{facts['seconds_to_full']:.2f}",
        "copies_per_node": f"{facts['copies_per_node']:.2f}",
        "bytes_per_node_per_second": f"{in_bytes(facts['bytes_per_node_per_second'])}/s",
        "violations": len(facts["violations"]),
    }
    print_table(["measure", "value"], [(name.replace("_", " "), shown[name]) for name in FIELDS])
    for violation in facts["violations"]:
        print(f"violation: {plain(violation)}")


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running, and its folder in place.")
def demo(keep: bool) -> int:
    """Run a real cluster of local agents, and kill some.

    Every promise is checked from outside; exit 0 only if all hold.
    """
    from node.demo import run

    return run(keep)
