"""An outside oracle of what agents promised: it hashes files itself and believes no agent about its own holdings.

Writers state each attempt before it begins and each acceptance once it was answered. At the end every name must be
held, in its newest accepted version or a later attempt, by enough other stores, and nothing may lie under a final
name that nobody ever wrote.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from node.demo_game import count_games
from node.local_fleet import LocalFleet, Node

COPIES = 2  # receipts from other stores, as `min_copies` is by default
SIDECARS = ("-wal", "-shm", "-journal")


@dataclass(slots=True)
class Attempt:
    """One version that somebody tried to have accepted."""

    blake3: str
    size: int
    accepted: bool = False


@dataclass(slots=True)
class Promises:
    """What was tried and what was answered, by name, in the order of the (single) writer of each name. Thread-safe."""

    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def attempt(self, origin: str, name: str, blake3: str, size: int) -> Attempt:
        made = Attempt(blake3, size)
        with self.lock:
            self.attempts.setdefault(name, []).append(made)
            self.origins[name] = origin
        return made

    def accepted(self, attempt: Attempt, what: str) -> None:
        with self.lock:
            attempt.accepted = True
            self.counts[what] += 1

    def unanswered(self, what: str, count: int) -> None:
        with self.lock:
            self.counts[f"{what} unanswered"] += count

    def current(self, name: str) -> set[str]:
        """The hashes that may be current: the newest accepted version, or an attempt made after it."""
        attempts = self.attempts[name]
        accepted = [index for index, attempt in enumerate(attempts) if attempt.accepted]
        return {attempt.blake3 for attempt in attempts[accepted[-1] :]} if accepted else set()

    def ever(self, name: str) -> set[str]:
        return {attempt.blake3 for attempt in self.attempts.get(name, ())}

    def owed(self) -> list[str]:
        """The names of which a version was accepted."""
        return sorted(name for name in self.attempts if self.current(name))


def broken_promises(fleet: LocalFleet, promises: Promises, hashes: dict[str, dict[Path, str]]) -> Iterator[str]:
    """One sentence for each promise that does not hold. `hashes`: node → file below its root → plain BLAKE3."""
    risks = {row["name"]: row["why"] for node in fleet.nodes for row in fleet.ask(node, "risk")}
    held = {node: set(files.values()) for node, files in hashes.items()}
    for name in promises.owed():
        yield from _name_promises(fleet, promises, name, held, risks)
    for name in {row["name"] for node in fleet.nodes for row in fleet.rows(node, "ls")}:
        if name not in promises.attempts and not name.endswith(".db"):
            yield f"{name} is listed, and nobody ever put it"
    for node, files in hashes.items():
        for path, digest in files.items():
            if not _is_private(path) and digest not in promises.ever(_name_of(path)) and not _is_database(path):
                yield f"{node} has {path} under a final name, with bytes that nobody ever wrote there"


def _name_promises(
    fleet: LocalFleet, promises: Promises, name: str, held: dict[str, set[str]], risks: dict[str, str]
) -> Iterator[str]:
    origin, wanted = promises.origins[name], promises.current(name)
    seen = {}
    for node in fleet.nodes:
        found = fleet.where(node, name)
        seen[node] = found["blake3"] if found else "nothing"
    if len(set(seen.values())) > 1:
        yield f"{name}: the nodes disagree about its current version: {seen}"
    if not set(seen.values()) <= wanted:
        yield f"{name}: current is {seen}, and the newest accepted version is {promises.attempts[name][-3:]}"
    stores = [node for node, there in held.items() if node != origin and seen[origin] in there]
    if len(stores) < COPIES and name not in risks:
        yield f"{name} is held by {stores} beside {origin}, is not listed at risk, and was accepted"


def broken_databases(fleet: LocalFleet, origin: str, path: str, wanted: int) -> Iterator[str]:
    """The copies of a live database: whole, of one moment, with every game, and of a version that somebody recorded."""
    for node in (node for node in fleet.nodes if node != origin):
        copy = fleet.nodes[node].root / f"peers/{origin}" / path
        if not copy.exists():
            yield f"{node} has no copy of {path}"
            continue
        try:
            games = count_games(copy)
        except (ValueError, sqlite3.Error) as problem:
            yield f"the copy of {path} at {node} is not whole: {problem}"
            continue
        if games != wanted:
            yield f"the copy of {path} at {node} has {games} games of {wanted}"


def recorded_versions(node: Node, name: str) -> set[str]:
    """Plain BLAKE3 of every live version of a name that a stopped node's manifest has."""
    with closing(sqlite3.connect(f"file:{node.folder / 'manifest.db'}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT blake3 FROM records WHERE name = ? AND state = 0", (name,)).fetchall()
    return {bytes(row[0]).hex() for row in rows}


def _is_private(path: Path) -> bool:
    return ".spore" in path.parts


def _is_database(path: Path) -> bool:
    """Live databases and their copies are checked by `broken_databases`: no writer knows their bytes beforehand."""
    return path.name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal").endswith(".db")


def _name_of(path: Path) -> str:
    return f"checkpoint/{path.as_posix()}"
