"""Commands for certificates: renew, rotate."""

from __future__ import annotations

import time
from pathlib import Path

import click

from node.cli.client import Client
from node.cli.failures import EXIT_USAGE, CommandFailed
from node.cli.options import folder_option, json_option
from node.cli.output import plain, print_json


@click.command()
@folder_option
@json_option
def renew(directory: Path, as_json: bool) -> None:
    """Get the next certificate now.

    Certificates are renewed by themselves at two thirds of their life; this is for a roll-over of the authority.
    """
    with Client(directory) as client:
        facts = client.ask("renew")
    if as_json:
        print_json(facts)
    else:
        until = time.strftime("%Y-%m-%d", time.gmtime(facts["not_after"]))
        print(f"{plain(facts['node'])} has a certificate until {until}, of the authority {facts['certificate'][:16]}…")


@click.command()
@click.argument("step", type=click.Choice(["begin", "switch", "end"]), required=False)
@folder_option
@json_option
def rotate(step: str | None, directory: Path, as_json: bool) -> None:
    """Replace the cluster's authority, a step at a time; without a step, say where it is.

    On an issuer. After each step every node renews, this one first: see `spore renew`.
    """
    from node.identity import Identity, IdentityError
    from node.rotation import STEPS, state

    try:
        identity = STEPS[step](directory, now=time.time()) if step else Identity.load(directory, now=time.time())
    except IdentityError as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    except OSError as problem:
        raise CommandFailed(
            f"{directory} cannot be written ({problem.strerror or problem}); run this as the agent's user", EXIT_USAGE
        ) from problem
    facts = state(identity)
    if as_json:
        print_json(facts)
        return
    print(f"signs: {identity.ca_pin[:16]}…; trusted: {len(identity.authorities)}")
    if step:
        print("now `spore renew` here, then on every other node; then the next step")
