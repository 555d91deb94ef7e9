"""Our data path beside what users would pick instead, side by side in one run: `make bench-peers`.

    large     one file: nginx TLS + curl, aria2, rsync over ssh, Syncthing, our agents; our streams alone, 1 to 4
    small     many files of 10 KiB: rsync over ssh, Syncthing, our agents
    database  a SQLite database appended to, and updated at random, over 200 Mbit/s: rsync over ssh, our agents
    resume    a large file, the receiver killed at half
    control   answers of the receiving agent while bulk comes in; memory of both agents

Seconds until all is on the receiver's disk (fsync has returned). Each figure is the median of its rounds; the rounds of
all programs alternate. Prints the table; asserts nothing. Servers run on loopback and in namespaces of their own, and
all are stopped. `--rounds`, `--mib`, `--files`, `--db-mib` reduce the counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from node.cli.client import Client
from node.cli.failures import CommandFailed
from tests import peers
from tests.peers import Link, LinkedFleet, Syncthing, cpu_of, fresh, ran, synced, waited

HOSTS = {"a": {"provider": "one"}, "b": {"provider": "two"}}
ROUTING = {"min_copies": 1, "settle_seconds": 0.2, "scrub_days": 0, "auto_sync_interval_seconds": 600}
KINDS = {"checkpoint": {"paths": ["checkpoints/*"]}, "npz": {"paths": ["sets/**/*.npz"]}}
PROBE_SECONDS = 0.01
Row = tuple[str, dict[str, float]]  # what was measured, and its figures


class Table:
    """Figures by row, printed as medians."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, **figures: float) -> None:
        self.rows.setdefault(name, []).append(figures)
        print(f"  {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)

    def median(self, name: str, key: str) -> float:
        return statistics.median(row[key] for row in self.rows[name] if key in row)

    def show(self) -> None:
        print(f"\n{'':44} {'seconds':>9} {'cpu s':>7} {'MB wire':>9} {'MiB rss':>8}  n")
        for name, rows in self.rows.items():
            cells = []
            for key, width, digits in (("seconds", 9, 2), ("cpu", 7, 2), ("wire_mb", 9, 1), ("rss_mib", 8, 0)):
                known = [row[key] for row in rows if key in row]
                cells.append(f"{statistics.median(known):{width}.{digits}f}" if known else " " * width)
            more = {k for row in rows for k in row} - {"seconds", "cpu", "wire_mb", "rss_mib"}
            rest = "".join(f"  {k} {statistics.median([row[k] for row in rows if k in row]):.3g}" for k in sorted(more))
            print(f"{name:44} {' '.join(cells)}  {len(rows)}{rest}")

    def ratio(self, ours: str, theirs: str, key: str, wanted: str) -> None:
        if ours in self.rows and theirs in self.rows:
            value = self.median(ours, key) / self.median(theirs, key)
            print(f"{key}: {ours} is {value:.2f} x {theirs} (wanted: {wanted})")


# --- our agents ---


def pids(fleet: LinkedFleet) -> list[int]:
    return [node.process.pid for node in fleet.nodes.values() if node.process is not None]


def peak_mib(fleet: LinkedFleet) -> float:
    """The most that either agent ever had resident."""
    found = []
    for pid in pids(fleet):
        with suppress(OSError):
            for process in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
                text = Path(f"/proc/{process}/status").read_text()
                found += [int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(found, default=0.0)


@contextmanager
def agents(folder: Path, link: Link | None = None, **routing: Any) -> Iterator[LinkedFleet]:
    with LinkedFleet(folder, HOSTS, {**ROUTING, **routing}, {"kinds": KINDS}, link=link) as fleet:
        fleet.start()
        fleet.until(fleet.meshed, "the agents are connected")
        yield fleet


def agent_process(fleet: LinkedFleet, name: str) -> psutil.Process:
    process = fleet.nodes[name].process
    assert process is not None
    found = psutil.Process(process.pid)
    return next((child for child in found.children(recursive=True) if "python" in child.name()), found)


def published(fleet: LinkedFleet, place: Callable[[Path], None], count: int = 1) -> dict[str, float]:
    """Seconds, and processor seconds of both agents, from the moment that the receiver may begin until it has told that
    all is durable there; and the most memory that either ever had.

    It is frozen while the sender takes the files in: what a sender needs to hash is not part of anybody's figure.
    """
    receiver = agent_process(fleet, "b")
    receiver.send_signal(signal.SIGSTOP)
    try:
        place(fleet.nodes["a"].root)
        fleet.until(lambda: fleet.ask("a", "status")["at_risk"]["artifacts"] >= count, "all is accepted", 300)
    finally:
        receiver.send_signal(signal.SIGCONT)
    cpu, began = cpu_of(*pids(fleet)), time.perf_counter()
    if not fleet.ask("a", "flush", deadline_seconds=600)["durable"]:
        raise SystemExit("not all is durable")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu": cpu_of(*pids(fleet)) - cpu, "rss_mib": peak_mib(fleet)}


# --- one large file ---


def large(table: Table, base: Path, rounds: int, size: int) -> None:
    source = base / "source"
    with (
        peers.nginx(base / "nginx", source) as (url, nginx_pid),
        peers.sshd(base / "sshd") as daemon,
        agents(base / "agents") as fleet,
    ):
        for number in range(rounds):
            name = f"large{number}"
            fresh(source / name, size, number + 1)
            _curl(table, base, url, name, nginx_pid)
            _aria(table, base, url, name, nginx_pid)
            _rsync_large(table, base, source / name, daemon)
            figures = published(fleet, lambda root, name=name: _take(source / name, root / "checkpoints" / name))  # type: ignore[misc]
            table.add("large: spore agents", **figures)
            fleet.spore("a", "rm", f"checkpoint/checkpoints/{name}")
            (source / name).unlink()
    for number in range(rounds):
        _syncthing_large(table, base / f"st{number}", size, 1_000 + number)
    streams(table, base / "streams", rounds, size)


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def _curl(table: Table, base: Path, url: str, name: str, server: int) -> None:
    target, cpu = base / "curl.out", cpu_of(server)
    began, ours = time.perf_counter(), sum(os.times()[2:4])
    ran(["curl", "-sS", "--cacert", str(base / "nginx/cert.pem"), "-o", str(target), f"{url}/{name}"])
    synced(target)
    spent = sum(os.times()[2:4]) - ours + cpu_of(server) - cpu
    table.add("large: nginx TLS + curl + sync", seconds=time.perf_counter() - began, cpu=spent)
    target.unlink()


def _aria(table: Table, base: Path, url: str, name: str, server: int) -> None:
    target, cpu = base / "aria.out", cpu_of(server)
    began, ours = time.perf_counter(), sum(os.times()[2:4])
    command = ["aria2c", "-q", "-x4", "-s4", "--file-allocation=falloc", "--allow-overwrite=true"]
    ran([*command, f"--ca-certificate={base}/nginx/cert.pem", "-d", str(base), "-o", target.name, f"{url}/{name}"])
    synced(target)
    spent = sum(os.times()[2:4]) - ours + cpu_of(server) - cpu
    table.add("large: nginx TLS + aria2 -x4 + sync", seconds=time.perf_counter() - began, cpu=spent)
    target.unlink()


def _rsync_large(table: Table, base: Path, source: Path, daemon: Any) -> None:
    target = base / "rsync.out"
    began = time.perf_counter()
    ran(["rsync", "-W", "-e", peers.ssh_command(daemon), str(source), f"127.0.0.1:{target}"])
    synced(target)
    table.add("large: rsync over ssh (aes128-gcm) + sync", seconds=time.perf_counter() - began)
    target.unlink()


def _syncthing_large(table: Table, folder: Path, size: int, seed: int) -> None:
    roots = (folder / "from", folder / "to")
    fresh(roots[0] / "large", size, seed)
    table.add("large: Syncthing", seconds=_syncthing(folder, roots))
    shutil.rmtree(folder)


def _syncthing(folder: Path, roots: tuple[Path, Path]) -> float:
    with Syncthing(folder, roots) as both:
        both.scan()
        began = time.perf_counter()
        both.go()
        waited(both.done, "Syncthing is done", every=0.05)
        return time.perf_counter() - began


def streams(table: Table, folder: Path, rounds: int, size: int) -> None:
    """Our bulk path alone, in two processes, with so many connections."""
    from tests.bench_bulk import Pair

    folder.mkdir()
    pair = Pair(folder)
    try:
        for number in range(rounds):
            for count in range(1, 5):
                content = folder / "content"
                fresh(content, size, 10_000 + number * 4 + count)
                record = pair.hold_file(content, f"model/{number}-{count}")
                seconds, _ = pair.fetch(record, streams=count)
                table.add(f"large: spore bulk path, {count} stream{'s' * (count > 1)}", seconds=seconds)
    finally:
        pair.close()


# --- many small files ---


def small(table: Table, base: Path, rounds: int, files: int) -> None:
    """Nothing is deleted before the end: some file systems make files slowly for minutes after it."""
    with peers.sshd(base / "sshd-small") as daemon, agents(base / "agents-small") as fleet:
        for number in range(rounds):
            source = base / f"small{number}"
            _many(source, files, number)
            target = base / f"small-rsync{number}"
            began = time.perf_counter()
            ran(["rsync", "-r", "-W", "-e", peers.ssh_command(daemon), f"{source}/", f"127.0.0.1:{target}/"])
            synced(target)
            table.add("small: rsync over ssh (aes128-gcm) + sync", seconds=time.perf_counter() - began)

            def place(root: Path, source: Path = source, number: int = number) -> None:
                (root / "sets").mkdir(parents=True, exist_ok=True)
                os.rename(source, root / "sets" / f"set{number}")

            table.add("small: spore agents", **published(fleet, place, files))
    folder = base / "st-small"
    roots = (folder / "from", folder / "to")
    _many(roots[0], files, 99)
    table.add("small: Syncthing", seconds=_syncthing(folder, roots))


def _many(folder: Path, files: int, seed: int) -> None:
    chance = Random(seed)
    for number in range(files):
        path = folder / f"{number % 100:02}" / f"{number}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(10 << 10))
    synced(folder)


# --- a database, and what changed of it ---


def database(table: Table, base: Path, rounds: int, size: int) -> None:
    with Link("200mbit") as link:
        for number in range(rounds):
            for change in (_append, _update):
                folder = base / f"db{number}{change.__name__}"
                folder.mkdir()
                _rsync_database(table, folder, link, size, change, number)
                _our_database(table, folder, link, size, change, number)
                shutil.rmtree(folder)


def _rsync_database(
    table: Table, folder: Path, link: Link, size: int, change: Callable[[Path, int], None], seed: int
) -> None:
    source, target = folder / "rsync.db", folder / "rsync-copy.db"
    _made(source, size)
    shutil.copy(source, target)
    change(source, seed)
    synced(target)
    with peers.sshd(folder / "sshd", link) as daemon:
        wire, began = link.carried_bytes(), time.perf_counter()
        ssh = peers.ssh_command(daemon)
        ran([*link.near, "rsync", "-I", "--no-whole-file", "-e", ssh, str(source), f"{link.addresses[1]}:{target}"])
        synced(target)
        seconds = time.perf_counter() - began
        table.add(
            f"database{change.__name__}: rsync over ssh", seconds=seconds, wire_mb=(link.carried_bytes() - wire) / 1e6
        )


def _our_database(
    table: Table, folder: Path, link: Link, size: int, change: Callable[[Path, int], None], seed: int
) -> None:
    with agents(folder / "agents", link) as fleet:
        copy = folder / "work.db"
        _made(copy, size)

        def place(root: Path) -> None:
            folder = root / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy, folder / ".part")
            (folder / ".part").rename(folder / "games.db")

        published(fleet, place)
        change(copy, seed)
        wire = link.carried_bytes()
        figures = published(fleet, place)
        carried = (link.carried_bytes() - wire) / 1e6
        received = fleet.nodes["b"].root / "checkpoints/games.db"
        with sqlite3.connect(received) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert received.read_bytes() == copy.read_bytes()
        table.add(f"database{change.__name__}: spore agents", wire_mb=carried, **figures)


def _made(path: Path, size: int) -> None:
    """A database of pages of 4 KiB: rows of 1,000 bytes, about four to a page."""
    chance = Random(1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=off")
        connection.execute("PRAGMA synchronous=off")
        connection.execute("CREATE TABLE games (id INTEGER PRIMARY KEY, moves BLOB)")
        rows = ((number, chance.randbytes(1_000)) for number in range(1, size // 1_030))
        connection.executemany("INSERT INTO games VALUES (?, ?)", rows)
    connection.close()
    synced(path)


def _append(path: Path, seed: int) -> None:
    """One row in a hundred more, at the end."""
    chance = Random(seed + 2)
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT max(id) FROM games").fetchone()
        rows = ((count + 1 + number, chance.randbytes(1_000)) for number in range(count // 100))
        connection.executemany("INSERT INTO games VALUES (?, ?)", rows)
    connection.close()


def _update(path: Path, seed: int) -> None:
    """One row in two hundred other bytes of the same length, anywhere."""
    chance = Random(seed + 3)
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("SELECT max(id) FROM games").fetchone()
        chosen = chance.sample(range(1, count + 1), count // 200)
        rows = ((chance.randbytes(1_000), number) for number in chosen)
        connection.executemany("UPDATE games SET moves = ? WHERE id = ?", rows)
    connection.close()


# --- killed and resumed; control meanwhile ---


def resume(table: Table, base: Path, rounds: int, size: int) -> None:
    for number in range(rounds):
        folder = base / f"resume{number}"
        folder.mkdir()
        with Link() as link, agents(folder / "agents", link) as fleet:
            content = folder / "content"
            fresh(content, size, 500 + number)
            wire = link.carried_bytes()
            root = fleet.nodes["a"].root / "checkpoints"
            root.mkdir(parents=True)
            content.rename(root / "large")
            waited(lambda: link.carried_bytes() - wire > size // 2, "half has come", every=0.002)  # noqa: B023
            fleet.kill("b")
            at_kill = link.carried_bytes() - wire
            fleet.start("b")
            up, began = link.carried_bytes(), time.perf_counter()
            waited(lambda: link.carried_bytes() - up > 1 << 20, "bytes come again", every=0.002)  # noqa: B023
            first = time.perf_counter() - began
            fleet.until(lambda: fleet.ask("a", "status")["at_risk"]["artifacts"] == 0, "it is durable", 600)
            total = link.carried_bytes() - wire
            framing = 1.045  # TCP, IP, Ethernet and TLS of a full-sized frame, and the answers to it
            table.add(
                "resume: spore agents, killed at half",
                first_byte_seconds=first,
                killed_at_mb=at_kill / 1e6,
                sent_again_mb=max(0.0, total / framing - size) / 1e6,
                rss_mib=peak_mib(fleet),
            )
        shutil.rmtree(folder)


def control(table: Table, base: Path, rounds: int, size: int) -> None:
    """How long the receiving agent's answers take while bulk comes in, as a client of its socket sees them."""
    with agents(base / "agents-control") as fleet:
        for number in range(rounds):
            content = base / "content"
            fresh(content, size, 700 + number)
            spent: list[float] = []
            over = threading.Event()
            thread = threading.Thread(target=_probe, args=(fleet, spent, over))

            def place(root: Path, content: Path = content, number: int = number) -> None:
                (root / "checkpoints").mkdir(parents=True, exist_ok=True)
                content.rename(root / "checkpoints" / f"control{number}")

            thread.start()
            try:
                published(fleet, place)
            finally:
                over.set()
                thread.join()
            ordered = sorted(spent[1:])  # the first answer waited while the receiver was frozen
            if ordered:
                p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
                table.add("control: the receiver's answers meanwhile", p99_ms=p99 * 1e3, probes=float(len(ordered)))


def _probe(fleet: LinkedFleet, spent: list[float], over: threading.Event) -> None:
    while not over.wait(PROBE_SECONDS):
        began = time.perf_counter()
        with suppress(CommandFailed, OSError), Client(fleet.nodes["b"].folder) as client:
            client.ask("peers")
            spent.append(time.perf_counter() - began)


def verdict(table: Table) -> None:
    print()
    ours = "large: spore agents"
    table.ratio(ours, "large: nginx TLS + curl + sync", "seconds", "at most 1.0")
    table.ratio(ours, "large: nginx TLS + curl + sync", "cpu", "at most 1.3")
    table.ratio(ours, "large: rsync over ssh (aes128-gcm) + sync", "seconds", "at most 0.7")
    table.ratio(ours, "large: Syncthing", "seconds", "at most 0.5")
    table.ratio("small: spore agents", "small: rsync over ssh (aes128-gcm) + sync", "seconds", "at most 0.9")
    table.ratio("small: spore agents", "small: Syncthing", "seconds", "at most 0.1")
    for change, wire in (("_append", "at most 1.05"), ("_update", "at most 0.25")):
        theirs = f"database{change}: rsync over ssh"
        table.ratio(f"database{change}: spore agents", theirs, "wire_mb", wire)
        table.ratio(f"database{change}: spore agents", theirs, "seconds", "at most 1.0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["large", "small", "database", "resume", "control"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024, help="of the large file; four times as much is resumed")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--db-mib", type=int, default=512)
    chosen = parser.parse_args()
    peers.install()
    base = Path(tempfile.mkdtemp(prefix="spore-peers-", dir=os.environ.get("SPORE_BENCH_DIR")))
    table = Table()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}")
    try:
        if "large" in chosen.what:
            large(table, base, chosen.rounds, chosen.mib << 20)
        if "small" in chosen.what:
            small(table, base, chosen.rounds, chosen.files)
        if "database" in chosen.what:
            database(table, base, chosen.rounds, chosen.db_mib << 20)
        if "resume" in chosen.what:
            resume(table, base, chosen.rounds, chosen.mib << 22)
        if "control" in chosen.what:
            control(table, base, chosen.rounds, chosen.mib << 20)
    finally:
        table.show()
        verdict(table)
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
