"""Commands that make, admit, check or run a node: init, join, agent, check; and token, revoke."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from node.cli.client import Client
from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed, NoAgent
from node.cli.options import SECONDS, chosen, folder_argument, folder_option, json_option
from node.cli.output import in_time, plain, print_json

HOSTS_FILE = "distributed_hosts.yaml"
HOSTS_FILE_MODE = 0o644  # no secret: people and Ansible read it
CLUSTER_DEFAULT = "fleet"
PORT_DEFAULT = 7946
TOKEN_SECONDS = 3600.0  # long enough to walk to the other machine, short enough to forget
DOCUMENTATION_ADDRESS = ("192.0.2.1", 9)  # RFC 5737: routed like any address, owned by nobody; nothing is sent there


@click.command()
@folder_argument
@click.option("--node", metavar="NAME", help="This node's name (default: the host's).")
@click.option("--cluster", metavar="NAME", help=f"The cluster's name (default: {CLUSTER_DEFAULT}).")
@click.option(
    "--address", metavar="HOST:PORT", help=f"Where others dial this node (default: its address, {PORT_DEFAULT})."
)
@click.option(
    "--host", "others", metavar="NAME=HOST:PORT", multiple=True, help="Another host of the fleet (may be repeated)."
)
def init(
    folder: Path | None,
    directory: Path,
    node: str | None,
    cluster: str | None,
    address: str | None,
    others: tuple[str, ...],
) -> None:
    """Begin a cluster with this node.

    Makes the authority, the node's identity and a commented hosts file. A hosts file that lies in DIR already is used
    as it is.
    """
    from node.certificates import CertificateError
    from node.config import ConfigError
    from node.identity import IdentityError, init_identity
    from protocol.names import NameRefused

    place = chosen(folder, directory)
    named = node or _host_name()
    try:
        _refuse_identity(place)
        found = _hosts_file(place, cluster, named, address, _others(others))
        identity = init_identity(place, found, named, now=time.time())
    except ConfigError as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    except (IdentityError, NameRefused, CertificateError) as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    except OSError as problem:
        raise CommandFailed(
            f"{place} cannot be written ({problem.strerror or problem}); name another folder", EXIT_USAGE
        ) from problem
    print(f"{identity.node} begins cluster {identity.cluster} in {place}")
    print(f"next: add the other hosts to {place / HOSTS_FILE}, run `spore check {place}`, then `spore agent {place}`;")
    print(f"      `spore token --dir {place}` lets another machine in")


def _refuse_identity(place: Path) -> None:
    """Before the hosts file is written; `init_identity` refuses too."""
    from node.identity import IDENTITY_FOLDER, IdentityError

    if (place / IDENTITY_FOLDER).exists():
        raise IdentityError("exists", f"{place} already has an identity; use another folder")


def _others(words: tuple[str, ...]) -> dict[str, str]:
    """Other hosts, as `--host NAME=ADDRESS` gives them."""
    others = {}
    for word in words:
        name, sign, there = word.partition("=")
        if not sign or name in others:
            raise CommandFailed(f"--host {word} is not usable: write each host once, as NAME=HOST:PORT", EXIT_USAGE)
        others[name] = there
    return others


def _hosts_file(place: Path, cluster: str | None, node: str, address: str | None, others: dict[str, str]) -> str:
    """Write the starter hosts file, or take the one that is there; returns the cluster's name."""
    from node.config import load_fleet, starter_hosts_file
    from node.secret_files import replace_file

    path = place / HOSTS_FILE
    if path.exists():
        fleet = load_fleet(path)
        if others:
            raise CommandFailed(f"{path} is there already; leave --host out, and add the hosts to it", EXIT_USAGE)
        if cluster not in (None, fleet.cluster):
            raise CommandFailed(f"{path} is of cluster {fleet.cluster}; leave --cluster out, or edit it", EXIT_USAGE)
        if node not in fleet.hosts:
            raise CommandFailed(f"{path} has no host {node}; add it there, or say --node", EXIT_USAGE)
        return fleet.cluster
    name = cluster or CLUSTER_DEFAULT
    text = starter_hosts_file(name, node, address or f"{_own_address()}:{PORT_DEFAULT}", others)
    place.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    path.chmod(HOSTS_FILE_MODE)
    return name


def _host_name() -> str:
    """The host's name as a node's name; what does not fit is refused later, with the rule."""
    return socket.gethostname().partition(".")[0].lower()


def _own_address() -> str:
    """The address this machine uses towards others. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(DOCUMENTATION_ADDRESS)
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


@click.command()
@click.argument("word", metavar="TOKEN")
@folder_argument
@click.option("--node", metavar="NAME", help="This node's name (default: the host's).")
@click.option("--anew", is_flag=True, help="Replace an identity that has expired or was revoked.")
def join(word: str, folder: Path | None, directory: Path, node: str | None, anew: bool) -> None:
    """Enter a cluster with a token.

    `spore token` makes one on an issuer; `-` reads it from standard input.
    """
    from node.join import JoinError, join_cluster

    place = chosen(folder, directory)
    word = sys.stdin.read() if word == "-" else word
    try:
        joined = join_cluster(word, place, node or _host_name(), clock=time.time, anew=anew)
    except JoinError as problem:
        raise CommandFailed(str(problem), EXIT_NOT_ACHIEVED) from problem
    print(f"{joined.identity.node} belongs to cluster {joined.identity.cluster}")
    print(f"next: `spore agent {place}`")


@click.command()
@click.option("--ttl", metavar="S", type=SECONDS, default=TOKEN_SECONDS, help="How long it can be used (default 1h).")
@click.option("--uses", metavar="N", type=click.IntRange(min=1), default=1, help="For how many machines (default 1).")
@click.option("--ephemeral", is_flag=True, help="For machines that may vanish, named in the hosts file or not.")
@folder_option
@json_option
def token(ttl: float, uses: int, ephemeral: bool, directory: Path, as_json: bool) -> None:
    """Make a token that lets a machine join.

    On an issuer, whether its agent runs or not.
    """
    try:
        with Client(directory) as client:
            facts = client.ask("token", ttl_seconds=ttl, uses=uses, ephemeral=ephemeral)
    except NoAgent:
        if not (directory / "identity").is_dir():
            raise
        facts = _make_token(directory, ttl, uses, ephemeral)
    if as_json:
        print_json(facts)
        return
    print(facts["token"])
    if sys.stdout.isatty():
        print(f"good for {in_time(ttl)}: run `spore join TOKEN DIR` on the other machine", file=sys.stderr)


def _make_token(directory: Path, ttl: float, uses: int, ephemeral: bool) -> dict[str, Any]:
    """The same as the agent's answer, from the issuer's folder; the book's lock keeps the two apart."""
    from node.config import ConfigError, load_fleet
    from node.identity import Identity, IdentityError
    from node.tokens import BOOK_FILE, TokenBook, TokenBookDamaged, TokenError

    now = time.time()
    try:
        fleet = load_fleet(directory / HOSTS_FILE)
        identity = Identity.load(directory, now=now, cluster=fleet.cluster)
        if not identity.issuer:
            issuers = ", ".join(name for name, host in sorted(fleet.hosts.items()) if host.issuer)
            where = f"run this on {issuers}" if issuers else "run this where `spore init` was run"
            raise CommandFailed(f"{identity.node} does not hold the cluster's key; {where}", EXIT_USAGE)
        address = fleet.host(identity.node).dial_address
        if address is None:
            raise CommandFailed(f"{identity.node} has no address in {directory / HOSTS_FILE}; add it", EXIT_USAGE)
        made = TokenBook(identity.folder / BOOK_FILE).create(
            ttl_seconds=ttl,
            uses=uses,
            ephemeral=ephemeral,
            addresses=[address],
            ca_pin=identity.ca_pin,
            cluster=fleet.cluster,
            issuer=identity.node,
            now=now,
        )
    except (ConfigError, IdentityError, TokenError, TokenBookDamaged) as problem:
        raise CommandFailed(str(problem), EXIT_USAGE) from problem
    except OSError as problem:
        raise CommandFailed(
            f"{directory} cannot be written ({problem.strerror or problem}); run this as the agent's user", EXIT_USAGE
        ) from problem
    return {"token": made, "expires_at": now + ttl, "uses": uses, "ephemeral": ephemeral}


@click.command()
@click.argument("node")
@folder_option
@json_option
def revoke(node: str, directory: Path, as_json: bool) -> None:
    """Shut a node out.

    Its certificates up to now are refused by every node that hears of it.
    """
    with Client(directory) as client:
        facts = client.ask("revoke", node=node)
    if as_json:
        print_json(facts)
    else:
        print(f"{plain(facts['node'])} is shut out; it may come back only with a new token")


@click.command()
@folder_argument
def agent(folder: Path | None, directory: Path) -> int:
    """Run the agent of a node's folder.

    SIGTERM or SIGINT ends it after a last flush; a second signal means now. SIGHUP reads the hosts file again.
    """
    from node.run import run

    return run(chosen(folder, directory))


@click.command()
@click.argument("path", metavar="[DIR|FILE]", required=False, type=click.Path(path_type=Path))
@folder_option
@json_option
def check(path: Path | None, directory: Path, as_json: bool) -> int:
    """Check a hosts file, or the one in a node's folder.

    Every error at once, each with its line. Exit 2 if the file cannot be used.
    """
    from node.config import inspect_file

    found = inspect_file(chosen(path, directory))
    if as_json:
        facts = {
            "file": found.filename,
            "usable": found.fleet is not None,
            "cluster": found.fleet.cluster if found.fleet else None,
            "hosts": sorted(found.fleet.hosts) if found.fleet else [],
            "errors": [asdict(problem) for problem in found.errors],
            "warnings": [asdict(problem) for problem in found.warnings],
        }
        print_json(facts)
    else:
        print(found.report(), file=sys.stdout if found.fleet else sys.stderr)
    return 0 if found.fleet else EXIT_USAGE
