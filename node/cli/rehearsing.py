"""Commands that need no node: simulate rehearses a fleet's failures, demo shows a real cluster at work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed
from node.cli.options import json_option
from node.cli.output import LISTED_MAX, counted, in_bytes, plain, print_json, print_table

if TYPE_CHECKING:
    from protocol.fleet import Fleet
    from simulations import Case, Report

MEASURES = (
    "scenario", "seed", "nodes", "coverage", "hops", "seconds_to_full", "copies_per_node", "bytes_per_node_per_second",
    "accepted", "refused", "at_risk", "lost", "violations", "trace_hash", "reproduce",
)  # fmt: skip
FIELDS = (*MEASURES, "passed", "losses", "remedies", "shrunk", "figures")
REHEARSAL = "rehearsal"
Texts = tuple[str, ...]


@click.command()
@click.argument("scenario", required=False)
@click.option("--nodes", metavar="N", type=click.IntRange(min=1), help="How many nodes (default: drawn from the seed).")
@click.option("--seed", metavar="S", type=int, default=1, help="The seed that everything follows from (default 1).")
@click.option("--hosts", metavar="FILE", type=click.Path(path_type=Path), help="Simulate the fleet of this hosts file.")
@click.option(
    "--kill", metavar="GLOB:SECONDS", multiple=True, help="These hosts and their disks are gone from then on."
)
@click.option("--partition", metavar="A|B[:FROM-TO]", multiple=True, help="These do not reach those (default 10-40 s).")
@click.option("--fill", metavar="NODE", multiple=True, help="The disk of this host is full (a glob is several).")
@click.option("--faults", metavar="LIST", help="Only these faults of the scenario, with commas; or none.")
@click.option(
    "--operations", metavar="N", type=click.IntRange(min=1), help="How much users do (default: the scenario's)."
)
@click.option("--seconds", metavar="S", type=click.IntRange(min=1), help="How long users work and faults strike.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw the run into this SVG file.")
@json_option
def simulate(
    scenario: str | None,
    nodes: int | None,
    seed: int,
    hosts: Path | None,
    kill: Texts,
    partition: Texts,
    fill: Texts,
    faults: str | None,
    operations: int | None,
    seconds: int | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Rehearse a fleet's failures in virtual time.

    The real core runs on simulated disks and networks. Exit 1 if anything was lost or a rule was broken.
    With --kill, --partition or --fill the scenario is rehearsal.

    Scenarios: first-light (the default), convergence, crash, disk-full, partition, spot-storm, nfs-fleet,
    deletes, rolling-restart, flaky-wan, swarm, broadcast, rehearsal.
    """
    from simulations import Case, Request

    texts = (("kill", kill), ("partition", partition), ("fill", fill))
    requests = tuple(Request(option, text) for option, given in texts for text in given)
    _check_usage(scenario, nodes, hosts, requests)
    case = Case(
        scenario or (REHEARSAL if requests else "first-light"),
        seed,
        nodes,
        _fleet(hosts) if hosts is not None else None,
        "" if hosts is None else str(hosts),
        seconds,
        operations,
        None if faults is None else tuple(name for name in faults.split(",") if name not in ("", "none")),
        requests,
    )
    try:
        report = _run(case, plot)
    except ValueError as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    facts = _facts(case, report)
    if as_json:
        print_json(facts)
    else:
        _print_report(facts)
    return 0 if report.passed else EXIT_NOT_ACHIEVED


def _check_usage(scenario: str | None, nodes: int | None, hosts: Path | None, requests: tuple[Any, ...]) -> None:
    if hosts is not None and nodes is not None:
        raise CommandFailed("--hosts says how many nodes there are; leave --nodes out", EXIT_USAGE)
    if requests and hosts is None:
        raise CommandFailed(
            f"--{requests[0].option} names hosts of a hosts file; say which one with --hosts FILE", EXIT_USAGE
        )
    if requests and scenario not in (None, REHEARSAL):
        raise CommandFailed(
            f"--{requests[0].option} belongs to the scenario {REHEARSAL}; leave {scenario!r} out", EXIT_USAGE
        )


def _run(case: Case, plot: Path | None) -> Report:
    from simulations import run_case, run_sampled

    if plot is None:
        return run_case(case)
    from simulations.plot import draw

    report, samples = run_sampled(case)
    verdict = f"{_verdict(asdict(report) | {'passed': report.passed})} ({report.nodes} nodes)"
    try:
        plot.write_text(draw(samples, f"{report.reproduce} --plot {plot}", verdict))
    except OSError as problem:
        raise CommandFailed(f"{plot} cannot be written: {problem.strerror}; give --plot another path") from problem
    return report


def _facts(case: Case, report: Report) -> dict[str, Any]:
    """The stable fields; a failing seed is shrunk, and what was lost is looked for again with other settings."""
    from simulations import run_case
    from simulations.remedies import remedies
    from simulations.shrink import shrink

    facts = asdict(report) | {"violations": list(report.violations), "passed": report.passed, "shrunk": None}
    facts["figures"] = dict(report.figures)
    facts["losses"] = [asdict(loss) for loss in report.losses]
    facts["remedies"] = [asdict(remedy) for remedy in remedies(case, report)]
    if report.violations:
        _, small = shrink(case, report, run_case)
        facts["shrunk"] = {
            "reproduce": small.reproduce, "trace_hash": small.trace_hash, "violations": list(small.violations)
        }  # fmt: skip
    return {name: facts[name] for name in FIELDS}


def _fleet(hosts: Path) -> Fleet:
    from node.config import ConfigError, load_fleet

    try:
        return load_fleet(hosts)
    except ConfigError as problem:
        raise CommandFailed(
            f"{str(problem).splitlines()[0]}; `spore check {hosts}` lists every mistake", EXIT_USAGE
        ) from problem


# --- for people ---


def _verdict(facts: dict[str, Any]) -> str:
    accepted = counted(facts["accepted"], "accepted artifact")
    if facts["passed"]:
        return f"PASSED: of {accepted} none was lost"
    if facts["violations"]:
        return f"FAILED: {counted(len(facts['violations']), 'broken rule')}"
    return f"FAILED: of {accepted} {facts['lost']} would have been lost"


def _print_report(facts: dict[str, Any]) -> None:
    shown = facts | {
        "coverage": f"{facts['coverage']:.4f}",
        "seconds_to_full": f"{facts['seconds_to_full']:.2f}",
        "copies_per_node": f"{facts['copies_per_node']:.2f}",
        "bytes_per_node_per_second": f"{in_bytes(facts['bytes_per_node_per_second'])}/s",
        "violations": len(facts["violations"]),
    }
    measured = [(name, shown[name]) for name in MEASURES] + list(facts["figures"].items())
    print_table(["measure", "value"], [(name.replace("_", " "), value) for name, value in measured])
    for violation in facts["violations"]:
        print(f"violation: {plain(violation)}")
    if facts["shrunk"] and facts["shrunk"]["reproduce"] != facts["reproduce"]:
        print(f"smallest run found that breaks the same rule: {facts['shrunk']['reproduce']}")
    _print_losses(facts)
    print(f"\n{_verdict(facts)}")


def _print_losses(facts: dict[str, Any]) -> None:
    if not facts["losses"]:
        return
    rows = [
        (loss["name"], in_bytes(loss["size"]), f"{loss['accepted_seconds']:.1f} s", _receipts(loss), loss["why"])
        for loss in facts["losses"][:LISTED_MAX]
    ]
    print()
    print_table(["lost artifact", "size", "accepted at", "receipts", "why"], rows, right=["size", "accepted at"])
    if len(facts["losses"]) > LISTED_MAX:
        print(f"… and {len(facts['losses']) - LISTED_MAX} more; --json lists all")
    print()
    _print_remedies(facts)


def _receipts(loss: dict[str, Any]) -> str:
    return f"{loss['receipts']} of {loss['needed']}"


def _print_remedies(facts: dict[str, Any]) -> None:
    if facts["remedies"]:
        rows = [(remedy["setting"], remedy["lost"]) for remedy in facts["remedies"]]
        print_table(["the same run with", "would lose"], rows, right=["would lose"])
    else:
        print("No setting that was tried would have saved any of them.")
    early = sum(loss["receipts"] < loss["needed"] for loss in facts["losses"])
    if early:
        print(
            f"{early} of {facts['lost']} were not durable yet: `spore put --wait K` returns only when an artifact is."
        )


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running, and its folder in place.")
def demo(keep: bool) -> int:
    """Run a real cluster of local agents, and kill some.

    Every promise is checked from outside; exit 0 only if all hold.
    """
    from node.demo import run

    return run(keep)
