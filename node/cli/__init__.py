"""The command line: `spore`.

It talks to the agent over the local socket with the standard library alone and does no work of the agent's itself.
Whatever is slow to import (tables, configuration, certificates, the simulator) is imported by the command that needs
it, so that `spore --help` and a `put` in a loop start at once.

    failures   what can go wrong, as one sentence and an exit code
    options    the options that many commands share
    client     the socket
    output     tables, JSON, sizes and times; `progress` the moving line of long commands
    folders    which commands make or run a node's folder: init, token, join, revoke, agent, check
    putting    put, through a `pipeline`; `getting` get; `looking` ls, where, status, peers, risk, events
    waiting    wait, flush, verify, rm; `rehearsing` simulate, demo
"""

from __future__ import annotations


def main() -> None:
    """The `spore` command."""
    from node.cli.commands import spore

    spore()
