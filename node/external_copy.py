"""One run of copies to a storage outside the fleet: rsync over SSH, verified there by hash, nothing deleted there.

A file's name over there is the artifact's name and the beginning of its digest, so that no version replaces another.
What was verified is noted over there, in `.spore-verified`, and not sent again. Everything here blocks: it runs in a
thread.
"""

from __future__ import annotations

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from node.bulk_client import Job
from node.transports.programs import Program, lacking
from node.transports.ssh import ALIAS, CONFIG, Reach, configure
from protocol.values import Record

BATCH_FILES_MAX = 200  # names of a batch stand in one command line, which the kernel bounds
BATCH_NAME_BYTES_MAX = 60_000
BATCH_BYTES_MAX = 4 << 30  # of contents between two verifications: what a failure sends again at most
HASH_SECONDS = 3600.0  # to hash a batch over there: 4 GiB on the slowest disk, many times over
STALL_SECONDS = 120.0
VERIFIED = ".spore-verified"
DIGEST_CHARACTERS = 12  # enough to tell versions apart; the whole hash is compared anyway
NAME_BYTES_MAX = 255


@dataclass(frozen=True, slots=True)
class Item:
    """One artifact to copy, and the file that has its bytes here."""

    record: Record
    path: Path

    @property
    def name(self) -> str:
        return remote_name(self.record)


@dataclass(slots=True)
class Outcome:
    """What a run has done so far."""

    files: int = 0
    size_bytes: int = 0
    failed: list[str] = field(default_factory=list)


def remote_name(record: Record) -> str:
    """Where an artifact lies below the storage's path."""
    suffix = f".{record.digest.hex()[:DIGEST_CHARACTERS]}"
    folder, _, last = record.name.rpartition("/")
    room = NAME_BYTES_MAX - len(suffix)
    while len(last.encode()) > room:
        last = last[:-1]
    return f"{folder}/{last}{suffix}"


class ExternalCopy:
    """Sends to one storage. Raises `ProgramFailed`, `Cancelled`, `OSError`."""

    def __init__(self, reach: Reach, path: str, job: Job, rate_bytes_per_second: int | None) -> None:
        self._reach = reach
        self._path = path
        self._job = job
        self._rate = rate_bytes_per_second

    def verified(self) -> frozenset[str]:
        """The names that an earlier run has verified over there. The folder is made, if it is not there yet."""
        quoted = shlex.quote(self._path)
        said = self._remote(f"mkdir -p {quoted} && cd {quoted} && touch {VERIFIED} && cat {VERIFIED}", STALL_SECONDS)
        return frozenset(said.decode(errors="surrogateescape").splitlines())

    def send(self, items: Sequence[Item], done: Callable[[Outcome], None]) -> Outcome:
        """Copy these, batch by batch; `done` is told after each."""
        outcome = Outcome()
        for batch in _batches(items):
            self._send_batch(batch, outcome)
            done(outcome)
        return outcome

    def _send_batch(self, batch: Sequence[Item], outcome: Outcome) -> None:
        with tempfile.TemporaryDirectory(prefix="spore-external-") as folder:
            tree = Path(folder) / "tree"
            for item in batch:
                link = tree / item.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(item.path)
            self._rsync(Path(folder), tree)
        equal = self._compare(batch)
        good = [item for item in batch if item.name in equal]
        if good:
            lines = " ".join(shlex.quote(item.name) for item in good)
            self._remote(f"cd {shlex.quote(self._path)} && printf '%s\\n' {lines} >> {VERIFIED}", STALL_SECONDS)
        outcome.files += len(good)
        outcome.size_bytes += sum(item.record.size for item in good)
        outcome.failed += [item.record.name for item in batch if item.name not in equal]

    def _rsync(self, folder: Path, tree: Path) -> None:
        """Contents of links, by checksum where a file is there already; never with an option that deletes."""
        configure(self._reach, folder)
        limit = [f"--bwlimit={max(1, self._rate // 1024)}"] if self._rate else []
        arguments = ["rsync", "-rLpt", "--checksum", "--partial", *limit, "-e", f"ssh -F {CONFIG}"]
        with Program([*arguments, "--", f"{tree}/", f"{ALIAS}:{self._path}/"], self._job, folder) as program:
            program.wait(STALL_SECONDS, lambda: program.process.poll() is None)

    def _compare(self, batch: Sequence[Item]) -> frozenset[str]:
        """The names whose bytes over there have the hash that they should: BLAKE3 if `b3sum` is there, else SHA-256."""
        names = " ".join(shlex.quote(f"./{item.name}") for item in batch)
        command = (
            f"cd {shlex.quote(self._path)} && if command -v b3sum >/dev/null; "
            f"then echo b3sum; b3sum -- {names}; else echo sha256sum; sha256sum -- {names}; fi"
        )
        program, *lines = self._remote(command, HASH_SECONDS).decode(errors="surrogateescape").splitlines()
        there = {name.removeprefix("./"): digest for digest, _, name in (line.partition("  ") for line in lines)}
        hashed = _plain if program == "b3sum" else _sha256
        return frozenset(item.name for item in batch if there.get(item.name) == hashed(item))

    def _remote(self, command: str, seconds: float) -> bytes:
        with tempfile.TemporaryDirectory(prefix="spore-external-") as folder:
            configure(self._reach, Path(folder))
            with Program(["ssh", "-F", CONFIG, ALIAS, "--", command], self._job, Path(folder)) as program:
                return program.wait(seconds)


def missing_programs() -> str:
    return lacking("rsync", "ssh")


def _plain(item: Item) -> str:
    return item.record.blake3.hex()


def _sha256(item: Item) -> str:
    """Of what the file here has now: only after its BLAKE3, which the record tells, was seen to be right."""
    plain, other = blake3(), hashlib.sha256()
    with item.path.open("rb") as file:
        while block := file.read(1 << 20):
            plain.update(block)
            other.update(block)
    return other.hexdigest() if plain.digest() == item.record.blake3 else ""


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    names = size = 0
    for item in items:
        more = len(shlex.quote(f"./{item.name}").encode()) + 1
        full = len(batch) >= BATCH_FILES_MAX or names + more > BATCH_NAME_BYTES_MAX
        if batch and (full or size + item.record.size > BATCH_BYTES_MAX):
            yield batch
            batch, names, size = [], 0, 0
        batch.append(item)
        names += more
        size += item.record.size
    if batch:
        yield batch
