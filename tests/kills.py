"""Three real agents, killed with SIGKILL again and again at random moments, under puts, watched files and a live
database. An outside oracle keeps what was accepted and checks it at the end.

    python tests/kills.py --kills 200 --seed 1

Process death only: what the kernel was given survives. Exit 0 when every promise holds, else 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from blake3 import blake3

from node.cli.client import Client, request_line
from node.cli.failures import AgentRefused, CommandFailed
from node.demo_game import SelfPlay
from node.local_fleet import FleetTrouble, LocalFleet
from tests.promises import Attempt, Promises, broken_databases, broken_promises, recorded_versions

HOSTS = {"a": {"provider": "one"}, "b": {"provider": "two"}, "c": {"provider": "three"}}
WRITER = "a"  # the node with the watched files and the live database
ROUTING = {
    "auto_sync_interval_seconds": 2,
    "gossip_interval_seconds": 2,
    "settle_seconds": 0.3,
    "snapshot_seconds_min": 1,
    "wal_bytes_max": "8 MiB",  # segments of 2 MiB: compactions happen all the time
}
DATABASE = "games/live.db"
SMALL_SLOTS, LARGE_SLOTS, FILE_SLOTS = 60, 6, 8  # names that each writer goes round: the disk stays small
SMALL_BYTES_MAX, LARGE_BYTES_MIN, LARGE_BYTES_MAX = 60_000, 1 << 20, 8 << 20
BATCH = 25  # small puts asked at once over one connection
TRACEBACK = "Traceback (most recent call last)"
TRACEBACK_WORDS, TRACEBACK_LINES_MAX = 2, 200  # lines before it that say what it is about; lines after it
LOGGED = re.compile(r"\d{4}-\d\d-\d\dT\S+Z ")  # how a line of an agent's own log begins
FAULTS = (" fault: ", TRACEBACK, " lost: ", "quarantined:", "disk_failed")  # in a log: what no kill excuses
SETTLE_SECONDS = 240.0  # for all that was accepted to become durable once every agent is up; only a fault reaches it


class Writer(threading.Thread):
    """Something that writes until it is told to end; what went wrong in it is kept."""

    def __init__(self, fleet: LocalFleet, promises: Promises, node: str, random: Random) -> None:
        super().__init__(name=f"{type(self).__name__} {node}", daemon=True)
        self.fleet, self.promises, self.node, self.random = fleet, promises, node, random
        self.ending = threading.Event()
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.wait(self.random.random() * 0.3):
                self.write()
        except BaseException as problem:
            self.fault = problem  # raised where the writers end

    def write(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self.ending.set()
        self.join()


class Putter(Writer):
    """Puts over the local socket: batches of small artifacts, and large ones."""

    def write(self) -> None:
        if self.random.random() < 0.3:
            slot = self.random.randrange(LARGE_SLOTS)
            size = self.random.randrange(LARGE_BYTES_MIN, LARGE_BYTES_MAX)
            self._put([(f"checkpoints/{self.node}-large-{slot}", self.random.randbytes(size))], "large puts")
        else:
            slots = self.random.sample(range(SMALL_SLOTS), BATCH)
            sizes = [self.random.randrange(SMALL_BYTES_MAX) for _ in slots]
            puts = [
                (f"checkpoints/{self.node}-small-{slot}", self.random.randbytes(size))
                for slot, size in zip(slots, sizes, strict=True)
            ]
            self._put(puts, "small puts")

    def _put(self, puts: list[tuple[str, bytes]], what: str) -> None:
        """Ask for all, then read the answers, in whatever order they come; stop where the agent dies."""
        waiting: dict[int, Attempt] = {}
        try:
            with Client(self.fleet.nodes[self.node].folder) as client:
                client.sock.settimeout(SETTLE_SECONDS)
                for number, (name, content) in enumerate(puts):
                    digest = blake3(content).hexdigest()
                    waiting[number] = self.promises.attempt(self.node, f"checkpoint/{name}", digest, len(content))
                sending = threading.Thread(target=_send, args=(client, puts))
                sending.start()
                try:
                    while waiting:
                        line = client.receive()
                        self.promises.accepted(waiting.pop(line["id"]), what)
                finally:
                    with suppress(OSError):
                        client.sock.shutdown(socket.SHUT_RDWR)  # wakes the sender where the agent stopped reading
                    sending.join()
        except TimeoutError as silent:
            raise AssertionError(f"{self.node} neither answered a put nor died in {SETTLE_SECONDS:g} s") from silent
        except AgentRefused as refused:
            raise AssertionError(f"{self.node} refused a put: {refused.sentence}") from refused
        except (CommandFailed, OSError):
            self.promises.unanswered(what, len(waiting))


def _send(client: Client, puts: list[tuple[str, bytes]]) -> None:
    with suppress(OSError):
        for number, (name, content) in enumerate(puts):
            terms = {"kind": "checkpoint", "name": name, "size": len(content), "mode": 0o644}
            client.sock.sendall(request_line(number, "put", terms) + content)


class Files(Writer):
    """Files in a watched folder: renamed into place when finished, or written in place a piece at a time."""

    def write(self) -> None:
        slot = self.random.randrange(FILE_SLOTS)
        path = self.fleet.nodes[self.node].root / f"checkpoints/file-{slot}"
        content = self.random.randbytes(self.random.randrange(2 << 20))
        name = f"checkpoint/checkpoints/{path.name}"
        attempt = self.promises.attempt(self.node, name, blake3(content).hexdigest(), len(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        if slot % 2:
            draft = path.with_name(f".{path.name}.part")
            draft.write_bytes(content)
            draft.rename(path)
        else:
            self._write_slowly(path, content)
        self._until_accepted(name, attempt.blake3)
        if not self.ending.is_set():
            self.promises.accepted(attempt, "watched files")

    def _write_slowly(self, path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            for at in range(0, len(content), 1 << 17):
                file.write(content[at : at + (1 << 17)])
                file.flush()
                self.ending.wait(0.01)

    def _until_accepted(self, name: str, wanted: str) -> None:
        while not self.ending.wait(0.05):
            with suppress(CommandFailed, OSError):
                if self.fleet.ask(self.node, "where", name=name)["blake3"] == wanted:
                    return


@dataclass(slots=True)
class Killer:
    """Kills, and starts again: mostly once the agent works, sometimes while it still recovers."""

    fleet: LocalFleet
    random: Random
    counts: Counter[str] = field(default_factory=Counter)
    wal_segments: dict[str, int] = field(default_factory=dict)

    def kill(self) -> None:
        time.sleep(self.random.random() * 1.5)
        names = [self.random.choice(["a", "a", "b", "c"])]
        if self.random.random() < 0.15:
            names = self.random.sample(list(HOSTS), 2)
        for name in names:
            self._kill(name)
        self.fleet.start(*names)

    def _kill(self, name: str) -> None:
        self.fleet.kill(name)
        self.counts[f"kills of {name}"] += 1
        self._look(name)
        while self.random.random() < 0.2:  # again, somewhere in its start
            self.fleet._launch(self.fleet.nodes[name])
            time.sleep(self.random.random() * 2.0)
            if self.fleet.nodes[name].running:
                self.fleet.kill(name)
                self.counts["kills at a start"] += 1

    def _look(self, name: str) -> None:
        """What the agent was at when it died, as far as its folder tells."""
        node = self.fleet.nodes[name]
        if any(path.is_file() for path in (node.root / ".spore/staging").rglob("*")):
            self.counts["kills with bytes in staging"] += 1
        segments = [int(path.stem, 16) for path in (node.folder / "wal").glob("*.wal")]
        self.wal_segments[name] = max(segments, default=0)
        if (node.folder / "manifest.db-wal").exists():
            self.counts["kills with an open manifest log"] += 1

    @property
    def total(self) -> int:
        return sum(count for what, count in self.counts.items() if what.startswith("kills of"))


@contextmanager
def _writing(fleet: LocalFleet, promises: Promises, random: Random) -> Iterator[SelfPlay]:
    """Everything that writes, until the end of the block."""
    writers: list[Writer] = [Putter(fleet, promises, node, Random(random.random())) for node in HOSTS]
    writers.append(Files(fleet, promises, WRITER, Random(random.random())))
    play = SelfPlay(fleet.nodes[WRITER].root / DATABASE, random.randrange(1 << 30))
    with ExitStack() as stack:
        for writer in writers:
            writer.start()
            stack.callback(writer.stop)
        play.start()
        stack.callback(play.stop)
        yield play
    for writer in writers:
        if writer.fault is not None:
            raise writer.fault


def run(kills: int, seed: int, folder: Path) -> tuple[list[str], dict[str, int]]:
    """Kill so often; returns what does not hold (nothing, one hopes) and the counts."""
    random, promises = Random(seed), Promises()
    with LocalFleet(folder, HOSTS, ROUTING) as fleet:
        fleet.start()
        fleet.until(fleet.meshed, "the agents are connected")
        killer = Killer(fleet, random)
        with _writing(fleet, promises, random) as play:
            while killer.total < kills:
                killer.kill()
        problems = list(settled(fleet))
        _comes(fleet, lambda: not list(broken_databases(fleet, WRITER, DATABASE, play.games)))
        problems += broken_databases(fleet, WRITER, DATABASE, play.games)
        problems += broken_promises(fleet, promises, {name: _hashes(fleet, name) for name in HOSTS})
        problems += _faults(fleet)
        fleet.stop()
        problems += _unrecorded_copies(fleet)
    counts = killer.counts + promises.counts
    counts["games played"] = play.games
    counts["names"] = len(promises.owed())
    counts["WAL segments written"] = sum(killer.wal_segments.values())
    counts["torn WAL tails cut"] = sum(_lines(fleet, name, "wal_recovered:") for name in HOSTS)
    return problems, dict(sorted(counts.items()))


def settled(fleet: LocalFleet) -> Iterator[str]:
    """Wait until every watched file is accepted as it lies there and nothing is at risk; one sentence for each that
    does not come to be although all agents are up."""
    fleet.until(fleet.meshed, "the agents are connected again", SETTLE_SECONDS)
    for path in sorted((fleet.nodes[WRITER].root / "checkpoints").glob("file-*")):
        wanted = blake3(path.read_bytes()).hexdigest()
        name = f"checkpoint/checkpoints/{path.name}"
        if not _comes(fleet, lambda name=name, wanted=wanted: _is_current(fleet, name, wanted)):  # type: ignore[misc]
            yield f"{path.name} is not accepted as it lies there"
    for node in HOSTS:
        if not fleet.ask(node, "flush", deadline_seconds=SETTLE_SECONDS)["durable"]:
            yield from (f"{node} has still at risk: {row}" for row in fleet.ask(node, "risk"))
    if not _comes(fleet, lambda: _agree(fleet)):
        yield "the nodes do not come to agree about what there is"


def _comes(fleet: LocalFleet, condition: Callable[[], bool]) -> bool:
    try:
        return bool(fleet.until(condition, "", SETTLE_SECONDS))
    except FleetTrouble:
        return False


def _is_current(fleet: LocalFleet, name: str, wanted: str) -> bool:
    found = fleet.where(WRITER, name)
    return found is not None and found["blake3"] == wanted


def _agree(fleet: LocalFleet) -> bool:
    lists = [{row["name"]: (row["digest"], row["copies"]) for row in fleet.rows(name, "ls")} for name in HOSTS]
    return all(listed == lists[0] for listed in lists)


def _hashes(fleet: LocalFleet, name: str) -> dict[Path, str]:
    """Plain BLAKE3 of every file below a root but staging, by path relative to the root."""
    root = fleet.nodes[name].root
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and relative.parts[:2] not in ((".spore", "staging"), (".spore", "claims")):
            with suppress(FileNotFoundError):
                found[relative] = blake3(path.read_bytes()).hexdigest()
    return found


def _unrecorded_copies(fleet: LocalFleet) -> Iterator[str]:
    """A published copy of the database is a version that its manifest knows."""
    for name in (name for name in HOSTS if name != WRITER):
        copy = fleet.nodes[name].root / f"peers/{WRITER}" / DATABASE
        known = recorded_versions(fleet.nodes[name], f"game/{WRITER}/{DATABASE}")
        if copy.exists() and blake3(copy.read_bytes()).hexdigest() not in known:
            yield f"the copy of {DATABASE} at {name} is of no version that it knows"


def _faults(fleet: LocalFleet) -> Iterator[str]:
    """What no kill excuses: an agent that failed at its own work."""
    for name in HOSTS:
        lines = fleet.nodes[name].log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if any(word in line for word in FAULTS):
                yield f"{name} logged: " + "\n".join(_whole(lines, number))


def _whole(lines: list[str], number: int) -> Iterator[str]:
    """A line of a log with the traceback that belongs to it: the words before it, all frames, and what was raised."""
    is_traceback = lines[number].startswith(TRACEBACK)
    yield from lines[max(0, number - TRACEBACK_WORDS) : number + 1] if is_traceback else [lines[number]]
    for line in lines[number + 1 : number + TRACEBACK_LINES_MAX] if is_traceback else []:
        yield line
        if LOGGED.match(line):
            return


def _lines(fleet: LocalFleet, name: str, word: str) -> int:
    return sum(word in line for line in fleet.nodes[name].log.read_text(errors="replace").splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Where the agents live; kept afterwards.")
    asked = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)  # where each thread is, for whoever wonders why it takes so long
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the agents are stopped too
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="spore-kills-"))
    began = time.monotonic()
    problems, counts = run(asked.kills, asked.seed, folder)
    for what, count in counts.items():
        print(f"{what:36}{count:>10,}")
    print(f"{'seconds':36}{time.monotonic() - began:>10.0f}")
    for problem in problems:
        print(f"BROKEN: {problem}")
    if problems:
        print(f"{len(problems)} promises broken; the agents' folders stay at {folder}")
        return 1
    print(f"every promise holds (seed {asked.seed})")
    if asked.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
