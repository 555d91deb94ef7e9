"""A plan without an agent: the fleet comes from a hosts file, every host of it there and with room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.cli.failures import EXIT_USAGE, CommandFailed
from node.config import ConfigError, load_fleet
from node.policy_answers import plan_facts
from protocol.chunks import digest_of
from protocol.fleet import Fleet, Kind
from protocol.names import NameRefused, check_name
from protocol.planning import candidates_of, hypothetical, plan
from protocol.values import NodeId


def plan_offline(name: str, hosts_file: Path, origin: str | None) -> dict[str, Any]:
    """The plan of a name in the fleet of a hosts file. The content's digest, which decides among equals, is not known:
    that of the name stands for it."""
    try:
        fleet = load_fleet(hosts_file)
        check_name(name)
    except (ConfigError, NameRefused) as refused:
        raise CommandFailed(str(refused), EXIT_USAGE) from refused
    kind = fleet.kind_of(name)
    if kind is None:
        kinds = ", ".join(known.name for known in fleet.kinds)
        raise CommandFailed(f"{hosts_file} has no kind {name.partition('/')[0]!r}; use one of {kinds}", EXIT_USAGE)
    writer = _origin(fleet, kind, name, origin)
    members = hypothetical(fleet)
    store = next((member.store for member in members if member.node == writer), b"")
    copies = fleet.min_copies(kind, writer)
    made = plan(digest_of(name.encode())[0], kind, copies, candidates_of(fleet, members, kind.name), writer, store)
    return plan_facts(name, kind, made)


def _origin(fleet: Fleet, kind: Kind, name: str, stated: str | None) -> NodeId:
    """Who writes it: as stated, as the name says, else nobody of the fleet."""
    named = name.split("/")[1] if kind.namespace == "node" else None
    origin = stated or (named if named in fleet.hosts else None)
    if stated and stated not in fleet.hosts:
        raise CommandFailed(f"{stated} is no host of this file; name one with --origin", EXIT_USAGE)
    return origin or ""
