"""`spore get`: an artifact's bytes, verified, under their final name or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

from node.cli.client import Client
from node.cli.failures import EXIT_NOT_ACHIEVED, EXIT_USAGE, CommandFailed
from node.cli.options import folder_option, json_option
from node.cli.output import in_bytes, print_json
from node.cli.progress import Position, ProgressLine


@click.command()
@click.argument("name")
@click.option("-o", "--output", metavar="PATH", help="Where to (default: the name's last part, here); - is stdout.")
@folder_option
@json_option
def get(name: str, output: str | None, directory: Path, as_json: bool) -> None:
    """Fetch an artifact, from here or from any holder.

    The file appears under its name once every byte is verified and on the disk.
    """
    with Client(directory) as client:
        if output == "-":
            _receive(client, name, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        target = Path(output or name.rpartition("/")[2])
        with _beside(target) as file:
            facts = _receive(client, name, file)
            # A special bit or a mode that shuts out its owner is nothing to take from elsewhere.
            os.fchmod(file.fileno(), (facts["mode"] | 0o400) & 0o777 & ~_umask())
    if as_json:
        print_json({key: facts[key] for key in ("name", "digest", "size", "blake3")} | {"path": str(target)})
    else:
        print(f"{target}  {in_bytes(facts['size'])}, verified")


def _receive(client: Client, name: str, file: BinaryIO) -> dict[str, Any]:
    """Write the bytes as they come and check them as a whole. Raises CommandFailed; the file is then worth nothing."""
    from blake3 import blake3

    client.send("get", {"name": name})
    facts: dict[str, Any] = client.receive()["answer"]
    hasher, received = blake3(), 0
    line = ProgressLine(f"get {name}")
    try:
        while "bytes" in (header := client.receive()):
            block = client.read_block(header["bytes"])
            hasher.update(block)
            received += len(block)
            _write(file, block)
            line.show(Position(received, facts["size"]))
    finally:
        line.clear()
    if received != facts["size"] or hasher.hexdigest() != facts["blake3"]:
        raise CommandFailed(
            f"the bytes of {name} came wrong ({received:,} of {facts['size']:,}); nothing was kept, run `spore verify`",
            EXIT_NOT_ACHIEVED,
        )
    return facts


def _write(file: BinaryIO, block: bytes) -> None:
    try:
        file.write(block)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise CommandFailed(f"the bytes cannot be written ({problem.strerror}); make room, or use -o") from problem


@contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    """A temporary file beside the target that takes its place, durably, if the body ends well."""
    if target.is_dir():
        raise CommandFailed(f"{target} is a folder; name the file to write with -o", EXIT_USAGE)
    if target.exists() and not target.is_file():  # root could rename over /dev/null
        raise CommandFailed(f"{target} is no regular file and is not replaced; use -o - and redirect that", EXIT_USAGE)
    temporary = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}.part")
    try:
        with _created(temporary, target) as file:
            yield file
            _finish(file, temporary, target)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def _created(temporary: Path, target: Path) -> BinaryIO:
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise CommandFailed(
            f"{target} cannot be written ({problem.strerror}); name another place with -o", EXIT_USAGE
        ) from problem
    return open(descriptor, "wb")


def _finish(file: BinaryIO, temporary: Path, target: Path) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
        temporary.rename(target)
        _sync_folder(target.parent)
    except OSError as problem:
        raise CommandFailed(f"{target} cannot be written ({problem.strerror}); make room, or use -o") from problem


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask; it can only be read by setting it. No other thread runs here."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
