"""Commands that take their time: wait, flush, verify; and rm."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed
from node.cli.options import SECONDS, folder_option, json_option
from node.cli.output import LISTED_MAX, counted, in_bytes, in_time, plain, print_json, print_table, short
from node.cli.progress import Position, ProgressLine, watching

FLUSH_SECONDS = 60.0  # what people wait for by hand; on a signal the agent has its own, shorter limit
MANIFEST_NAME, LOCK_NAME = "manifest.db", "lock"


@click.command()
@click.argument("name")
@click.option("--copies", metavar="K", type=click.IntRange(min=1), required=True, help="Receipts to wait for.")
@click.option("--domains", metavar="D", type=click.IntRange(min=0), default=0, help="Failure domains to spread over.")
@click.option("--timeout", metavar="S", type=SECONDS, default=0.0, help="Give up after S (default: never).")
@folder_option
@json_option
def wait(name: str, copies: int, domains: int, timeout: float, directory: Path, as_json: bool) -> None:
    """Wait until K other stores hold an artifact.

    Exit 1 on time-out.
    """

    def look(client: Client) -> Position:
        facts = client.ask("progress", name=name)
        return Position(facts["copies"], copies, "copies", facts["why"])

    with Client(directory) as client, watching(directory, ProgressLine(f"wait {name}"), look):
        facts = client.ask("wait", name=name, copies=copies, domains=domains, timeout_seconds=timeout)
    if as_json:
        print_json(facts)
    if not facts["durable"]:
        raise CommandFailed(f"{name} has {facts['copies']} of {copies} copies; `spore risk` says why")
    if not as_json:
        print(f"{plain(facts['name'])}: {facts['copies']} copies on other stores")


@click.command()
@click.option("--deadline", metavar="S", type=SECONDS, default=FLUSH_SECONDS, help="At most this long (default 60).")
@folder_option
@json_option
def flush(deadline: float, directory: Path, as_json: bool) -> None:
    """Push what is at risk now.

    Exit 1 if something still is at risk at the deadline.
    """

    sizes: list[int] = []  # what was at risk at each look; the first is the whole of it

    def look(client: Client) -> Position:
        left = client.ask("risk")
        sizes.append(sum(row["size"] for row in left))
        why = f"{counted(len(left), 'artifact')} at risk" + (f" ({left[0]['why']})" if left else "")
        return Position(max(0, sizes[0] - sizes[-1]), sizes[0], why=why)

    with Client(directory) as client:
        with watching(directory, ProgressLine("flush"), look):
            facts = client.ask("flush", deadline_seconds=deadline)
        left = [] if facts["durable"] else client.ask("risk")
    if as_json:
        print_json(facts)
    elif facts["durable"]:
        print("all that was accepted here is durable on other nodes")
    else:
        rows = [(row["name"], in_bytes(row["size"]), row["why"]) for row in left[:LISTED_MAX]]
        print_table(["at risk", "size", "why"], rows, right=["size"])
    if not facts["durable"]:
        left_text = f"{counted(facts['at_risk']['artifacts'], 'artifact')}, {in_bytes(facts['at_risk']['bytes'])}"
        raise CommandFailed(f"{left_text}, not durable after {in_time(deadline)}; `spore risk` says why")


@click.command()
@click.option(
    "--rebuild", is_flag=True, help="With the agent stopped: make the manifest anew from WAL, files and peers."
)
@folder_option
@json_option
def verify(rebuild: bool, directory: Path, as_json: bool) -> None:
    """Hash again all that this node holds.

    Damage is set aside and fetched again from a good copy. Exit 1 if there was any.
    """
    if rebuild:
        _rebuild(directory, as_json)
        return
    result: dict[str, Any] = {}
    line = ProgressLine("verify")
    with Client(directory) as client:
        for row in client.rows("verify"):
            if row.get("result"):
                result = {key: value for key, value in row.items() if key != "result"}
            else:
                line.show(Position(row["bytes"], row["bytes_total"]))
    line.clear()
    if as_json:
        print_json(result)
    else:
        _print_verified(result)
    if result["damaged"]:
        found = counted(len(result["damaged"]), "damaged file")
        raise CommandFailed(f"{found} set aside; good copies are fetched again, watch them with `spore risk`")


def _print_verified(result: dict[str, Any]) -> None:
    print(f"{counted(result['checked'], 'file')}, {in_bytes(result['bytes'])}, hashed again")
    if result["damaged"]:
        rows = [(found["path"], short(found["digest"]), found["problem"]) for found in result["damaged"]]
        print_table(["damaged", "digest", "problem"], rows)


def _rebuild(directory: Path, as_json: bool) -> None:
    """Set the manifest aside and make an empty one; the next start fills it."""
    from storage.manifest_file import rebuild

    with _agent_stopped(directory):
        try:
            aside = rebuild(directory / MANIFEST_NAME)
        except OSError as problem:
            raise CommandFailed(
                f"the manifest of {directory} cannot be replaced ({problem.strerror or problem}); run this as the "
                "agent's user",
                EXIT_NOT_ACHIEVED,
            ) from problem
    if as_json:
        print_json({"manifest": str(directory / MANIFEST_NAME), "aside": None if aside is None else str(aside)})
        return
    if aside is not None:
        print(f"the old manifest lies at {aside}")
    print(f"start the agent: it fills the new manifest from WAL, files and peers (`spore agent {directory}`)")


@contextmanager
def _agent_stopped(directory: Path) -> Iterator[None]:
    """Hold the lock that a running agent holds."""
    if not (directory / "identity").is_dir():
        raise CommandFailed(f"no node lives at {directory}; name its folder with --dir or $SPORE_DIR", EXIT_USAGE)
    try:
        lock = (directory / LOCK_NAME).open("a")
    except OSError as problem:
        raise CommandFailed(
            f"{directory} cannot be used ({problem.strerror}); run this as the agent's user", EXIT_USAGE
        ) from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                f"the agent at {directory} is running; stop it, run `spore verify --rebuild`, and start it again",
                EXIT_USAGE,
            ) from None
        yield


@click.command()
@click.argument("name")
@click.option(
    "--expire", metavar="AGE", type=SECONDS, default=0.0, help="Delete all that match NAME and are older than AGE."
)
@folder_option
@json_option
def rm(name: str, expire: float, directory: Path, as_json: bool) -> None:
    """Delete an artifact, on every node.

    With --expire NAME is a pattern (quote it: 'game/play-*'), and what has a version newer than AGE stays.
    """
    if expire:
        _expire(name, expire, directory, as_json)
        return
    with Client(directory) as client:
        facts = client.ask("rm", name=name)
    if as_json:
        print_json(facts)
    else:
        print(f"{plain(facts['name'])} is deleted; every node drops its bytes as it hears of it")


def _expire(glob: str, older_seconds: float, directory: Path, as_json: bool) -> None:
    with Client(directory) as client:
        facts = client.ask("expire", glob=glob, older_seconds=older_seconds)
    if as_json:
        print_json(facts)
    else:
        print(f"{counted(facts['removed'], 'artifact')} older than {in_time(older_seconds)} deleted, on every node")
        if facts["refused"]:
            print_table(["kept", "why"], [(kept["name"], kept["why"]) for kept in facts["refused"][:LISTED_MAX]])
    if facts["refused"]:
        raise CommandFailed(f"{counted(len(facts['refused']), 'artifact')} could not be deleted")
