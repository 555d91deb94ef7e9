"""`spore adopt`: what a node that is gone had accepted and could not deliver, from the disk it left behind.

The disk may be mounted anywhere, read-only too: nothing is written to it, its log is read from a copy. The bytes go to
the agent over the local socket; the agent opens no path it is told.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.client import Client, request_line
from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, AgentRefused, CommandFailed
from node.cli.options import folder_option, json_option
from node.cli.output import counted, in_bytes, plain, print_json, print_table

if TYPE_CHECKING:
    from protocol.effects import Entry

BLOCK_BYTES = 1 << 20
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("left", metavar="LEFT", type=FOLDER)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Its root, when that is not LEFT/files.",
)
@folder_option
@json_option
def adopt(left: Path, root: Path | None, directory: Path, as_json: bool) -> None:
    """Deliver what a lost node had accepted.

    LEFT is the folder of that node, on a disk that outlived it. Refused while the node is alive. Exit 1 if something of
    it could not be taken over.
    """
    if left.resolve() == directory.resolve():
        raise CommandFailed(f"{left} is this node's own folder; start its agent instead", EXIT_USAGE)
    with _stopped(left), Client(directory) as client:
        _same_cluster(left, client.ask("status")["cluster"])
        results = [_deliver(client, entry, root or left / "files") for entry in _entries(left)]
    _tell(results, as_json)


def _tell(results: list[dict[str, Any]], as_json: bool) -> None:
    failed = [result for result in results if result["why"]]
    if as_json:
        print_json(results)
    elif results:
        rows = [(r["name"], r["origin"], in_bytes(r["size"]), r["copies"], r["why"]) for r in results]
        print_table(["name", "origin", "size", "copies", "not taken over"], rows, right=["size", "copies"])
    else:
        print("nothing is pending there: all that was accepted is durable on other nodes")
    if failed:
        first = plain(failed[0]["why"])
        raise CommandFailed(f"{counted(len(failed), 'artifact')} not taken over: {first}", EXIT_NOT_ACHIEVED)
    if results and not as_json:
        print(f"{counted(len(results), 'artifact')} adopted; `spore risk` says what is not durable yet")


@contextmanager
def _stopped(left: Path) -> Iterator[None]:
    """No agent runs there; of a disk that cannot be written there is nothing to lock."""
    if not (left / "wal").is_dir():
        raise CommandFailed(f"{left} is no node's folder: it has no log (wal/)", EXIT_USAGE)
    try:
        lock = (left / "lock").open("a")
    except OSError:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                f"an agent runs on {left}: what it accepted it delivers by itself", EXIT_USAGE
            ) from None
        yield


def _same_cluster(left: Path, cluster: str) -> None:
    from node.config import HOSTS_FILE_NAME, ConfigError, load_fleet

    try:
        found = load_fleet(left / HOSTS_FILE_NAME).cluster
    except ConfigError as problem:
        raise CommandFailed(
            f"the hosts file of {left} cannot be read, so its cluster is unknown", EXIT_USAGE
        ) from problem
    if found != cluster:
        raise CommandFailed(f"{left} is of cluster {found}, this node is of {cluster}", EXIT_USAGE)


def _entries(left: Path) -> list[Entry]:
    """What the log there holds; a copy is read, for reading mends what a crash left half."""
    from storage.entries import EntryUnreadable, decode_entry
    from storage.files import FileLayer
    from storage.wal import Wal

    entries = {}
    with tempfile.TemporaryDirectory(prefix="spore-adopt-") as folder:
        try:
            shutil.copytree(left / "wal", Path(folder) / "wal")
        except (OSError, shutil.Error) as problem:
            raise CommandFailed(f"the log of {left} cannot be read: {problem}", EXIT_NOT_ACHIEVED) from problem
        wal = Wal.open(Path(folder) / "wal", FileLayer())
        try:
            for _, payload in wal.live():
                with suppress(EntryUnreadable):  # counted below, as damaged ones are
                    entry = decode_entry(payload)
                    entries[entry.record.key] = entry
            unreadable = wal.usage().live_entries - len(entries)
        finally:
            wal.close()
    if unreadable > 0:
        click.echo(f"spore: {counted(unreadable, 'artifact')} of its log cannot be read", err=True)
    return list(entries.values())


def _deliver(client: Client, entry: Entry, root: Path) -> dict[str, Any]:
    """One artifact, under its own name, stamp and origin."""
    record = entry.record
    facts: dict[str, Any] = {"name": record.name, "origin": record.origin, "size": record.size, "copies": 0, "why": ""}
    try:
        answer = _put(client, entry, root)
        return {**facts, "copies": answer["copies"]}
    except (AgentRefused, OSError) as problem:
        return {**facts, "why": problem.sentence if isinstance(problem, AgentRefused) else _words(problem)}


def _put(client: Client, entry: Entry, root: Path) -> Any:
    from protocol.effects import Inline

    record, source = entry.record, entry.source
    arguments = {
        "kind": record.kind,
        "name": record.name,
        "size": record.size,
        "mode": record.mode & 0o777,
        "origin": record.origin,
        "hlc": record.hlc,
        "digest": record.digest.hex(),
        "meta": json.dumps([list(item) for item in record.meta]),
    }
    if isinstance(source, Inline):
        client.sock.sendall(request_line(0, "put", arguments) + source.content)
        return client.receive()["answer"]
    with (root / source.place.path).open("rb") as file:
        if file.seek(0, 2) != record.size:
            raise OSError(f"{root / source.place.path} has changed since it was accepted")
        file.seek(0)
        client.sock.sendall(request_line(0, "put", arguments))
        left = record.size
        while left:
            block = file.read(min(BLOCK_BYTES, left))
            client.sock.sendall(block or bytes(min(BLOCK_BYTES, left)))  # cut short meanwhile: refused by its digest
            left -= len(block) or min(BLOCK_BYTES, left)
    return client.receive()["answer"]


def _words(problem: OSError) -> str:
    return f"{problem.filename}: {problem.strerror}" if problem.filename else str(problem)
