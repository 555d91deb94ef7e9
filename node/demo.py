"""`spore demo`: a real cluster of six agents on this machine, hurt on purpose, and every promise checked from outside.

Nothing here is simulated: processes, mutual TLS, SQLite, files, SIGKILL. The check at the end looks at the files
below each root with `b3sum` (or the same hash from the library) and believes no agent about its own holdings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from node.demo_game import SelfPlay, count_games
from node.demo_screen import Screen
from node.local_fleet import FleetTrouble, LocalFleet

MODEL_BYTES = 64 << 20
SECONDS_MAX = 60.0
# Shortened, so that a minute shows what otherwise takes several: the defaults are 60 s, 30 s, 2 s and 5 s.
TIMERS = {
    "auto_sync_interval_seconds": 2,
    "gossip_interval_seconds": 2,
    "settle_seconds": 0.3,
    "snapshot_seconds_min": 1,
}
HOSTS: dict[str, dict[str, Any]] = {
    "coordinator": {"role": "coordinator", "provider": "local", "excluded": True},
    "train-1": {"role": "training", "provider": "lambda"},
    "train-2": {"role": "training", "provider": "lambda"},
    "play-1": {"role": "selfplay", "provider": "hetzner"},
    "play-2": {"role": "selfplay", "provider": "vast", "ephemeral": True},
    "keeper": {"role": "storage", "provider": "hetzner"},
}
PAIR = ("train-1", "train-2")  # share one folder, as over NFS
SPOT, VICTIM = "play-2", "keeper"


@dataclass(slots=True)
class Watched:
    """One artifact of the demo: when its file was finished, and when it was seen durable."""

    name: str
    origin: str
    written: float
    durable: float = 0.0
    copies: int = 0


@dataclass(slots=True)
class Demo:
    fleet: LocalFleet
    screen: Screen
    started: float
    artifacts: dict[str, Watched] = field(default_factory=dict)

    # --- the story ---

    def play(self) -> list[str]:
        """Run the story; returns what did not hold (nothing, one hopes)."""
        fleet, say = self.fleet, self.screen.say
        fleet.start()
        fleet.until(fleet.meshed, "all six agents are connected to each other")
        say(f"six agents are up and connected, {self._seconds():.1f} s after the start")
        games = {
            node: SelfPlay(fleet.nodes[node].root / "games/selfplay.db", seed)
            for seed, node in enumerate(("play-1", SPOT))
        }
        for play in games.values():
            play.start()
        try:
            return self._hurt(games)
        finally:
            for play in games.values():
                play.stop()

    def _hurt(self, games: dict[str, SelfPlay]) -> list[str]:
        fleet, say = self.fleet, self.screen.say
        self._expect("game/play-1/games/selfplay.db", "play-1")
        self._expect(f"game/{SPOT}/games/selfplay.db", SPOT)
        self._write_npz("train-1", "training/batch-0001.npz")
        self._write("train-1", "models/best.pth", MODEL_BYTES)
        self._until_durable("the first artifacts are durable")
        fleet.kill(VICTIM)
        say(f"SIGKILL to {VICTIM}, which held copies")
        self._write("train-1", "models/next.pth", MODEL_BYTES // 8)
        self._write("play-1", "checkpoints/step-1000", MODEL_BYTES // 16)
        fleet.start(VICTIM)
        say(f"{VICTIM} is started again")
        self._until_durable("what was written meanwhile is durable")
        games_played = games[SPOT].games
        code = fleet.terminate(SPOT)
        games[SPOT].stop()
        say(f"SIGTERM to {SPOT} in the middle of game {games_played}: it flushed, said goodbye, exit code {code}")
        self._expect(f"game/{SPOT}/games/selfplay.db", SPOT)
        games["play-1"].stop()
        self._expect("game/play-1/games/selfplay.db", "play-1")
        self._settle()
        self._until_durable("everything is durable")
        return list(self._broken_promises(games, games_played, code))

    # --- writing ---

    def _write(self, node: str, path: str, size: int) -> None:
        """A file as training code writes it: under a temporary name, then renamed."""
        target = self.fleet.nodes[node].root / path
        self._rename_into(target, os.urandom(size))
        kind = {"models": "model", "checkpoints": "checkpoint"}[path.partition("/")[0]]
        self._expect(f"{kind}/{path}", node)

    def _write_npz(self, node: str, path: str) -> None:
        import io

        import numpy

        buffer = io.BytesIO()
        positions = numpy.frombuffer(os.urandom(200_000), dtype=numpy.uint8).reshape(-1, 20)
        numpy.savez(buffer, positions=positions, values=numpy.zeros(len(positions)))
        self._rename_into(self.fleet.nodes[node].root / path, buffer.getvalue())
        self._expect(f"npz/{path}", node)

    def _rename_into(self, target: Path, content: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.part")
        draft.write_bytes(content)
        draft.rename(target)

    # --- watching ---

    def _expect(self, name: str, origin: str) -> None:
        self.artifacts[name] = Watched(name, origin, time.monotonic())

    def _until_durable(self, what: str) -> None:
        self.fleet.until(self._look, what)
        self.screen.say(f"{what} ({self._seconds():.1f} s)")

    def _look(self) -> bool:
        """Ask a living node about every artifact; draw the table. Whether all are durable."""
        for watched in self.artifacts.values():
            if not watched.durable:
                self._look_at(watched)
        self.screen.draw(self.artifacts.values(), [n for n, node in self.fleet.nodes.items() if node.running])
        return all(watched.durable for watched in self.artifacts.values())

    def _look_at(self, watched: Watched) -> None:
        found = self.fleet.where("coordinator", watched.name)
        if found is None:
            return
        watched.copies = found["copies"]
        if found["durable"]:
            watched.durable = time.monotonic() - watched.written

    def _settle(self) -> None:
        """Until the last snapshot of each live database has been taken: no more changes, nothing pending."""

        def quiet() -> bool:
            return all(not self.fleet.ask(n, "risk") for n, node in self.fleet.nodes.items() if node.running)

        time.sleep(TIMERS["auto_sync_interval_seconds"] + 1)  # the interval between two snapshots, once
        self.fleet.until(quiet, "nothing is at risk any more")

    # --- the check from outside ---

    def _broken_promises(self, games: dict[str, SelfPlay], played: int, code: int) -> Iterator[str]:
        """One sentence for each promise that does not hold."""
        asked = "train-1"
        roots = self._files_by_root()
        risks = {
            risk["name"] for n, node in self.fleet.nodes.items() if node.running for risk in self.fleet.ask(n, "risk")
        }
        listed = [row["name"] for row in self.fleet.rows(asked, "ls")]
        for name in sorted(set(listed) | set(self.artifacts)):
            yield from self._check_artifact(asked, name, roots, risks)
        held = [path for paths in roots["coordinator"].values() for path in paths]
        if held:
            yield f"the excluded coordinator holds {len(held)} files: {held[0]}"
        if code:
            yield f"{SPOT} left with exit code {code}: not everything was safe"
        yield from self._check_games(games, played)

    def _check_artifact(
        self, asked: str, name: str, roots: dict[str, dict[str, list[Path]]], risks: set[str]
    ) -> Iterator[str]:
        found = self.fleet.where(asked, name)
        if found is None:
            yield f"{name} is not known to {asked}"
            return
        origin = self._store_of(found["origin"])
        stores = sorted(store for store, files in roots.items() if found["blake3"] in files and store != origin)
        if len(stores) < 2 and name not in risks:
            yield f"{name} is in {len(stores)} other stores ({', '.join(stores)}), and not listed at risk"
        for store, files in roots.items():
            copies = [path for path in files.get(found["blake3"], []) if ".spore" not in path.parts]
            if len({path.name for path in copies}) < len(copies):
                yield f"{name} lies twice in the store of {store}"
        claimed = {self._store_of(h["node"]) for h in found["holders"] if self.fleet.nodes[h["node"]].running}
        for store in sorted(claimed - {s for s, files in roots.items() if found["blake3"] in files}):
            yield f"{store} says that it holds {name}, and does not"

    def _check_games(self, games: dict[str, SelfPlay], played: int) -> Iterator[str]:
        """The copies of the live databases are whole, and hold every game that was played before the last snapshot."""
        for node, wanted in (("play-1", games["play-1"].games), (SPOT, played)):
            copies = [
                self.fleet.nodes[other].root / f"peers/{node}/games/selfplay.db"
                for other in ("train-1", "keeper", "play-1")
            ]
            kept = {str(path): count_games(path) for path in copies if path.exists()}
            if not kept or max(kept.values()) < wanted:
                yield f"{node} played {wanted} games; its copies hold {sorted(kept.values())}"

    def _files_by_root(self) -> dict[str, dict[str, list[Path]]]:
        """For each distinct root (its first node's name): plain BLAKE3 of every file → where it lies."""
        found: dict[str, dict[str, list[Path]]] = {}
        for name, node in self.fleet.nodes.items():
            if self._store_of(name) == name:
                found[name] = hashes_below(node.root.resolve())
        return found

    def _store_of(self, node: str) -> str:
        return PAIR[0] if node in PAIR else node

    def _seconds(self) -> float:
        return time.monotonic() - self.started


def hashes_below(root: Path) -> dict[str, list[Path]]:
    """Plain BLAKE3 (hex) of every finished file below a root, by `b3sum` where it is installed."""
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".db")) and _keeps_content(path.relative_to(root))
    ]
    files += [path for path in sorted(root.rglob("*.db")) if "peers" in path.relative_to(root).parts]
    found: dict[str, list[Path]] = {}
    for digest, path in zip(_hashes(files), files, strict=True):
        found.setdefault(digest, []).append(path)
    return found


def _keeps_content(path: Path) -> bool:
    """In our own folder, only what lies in these two is a copy of anything; the rest is what agents note."""
    return path.parts[0] != ".spore" or path.parts[1] in ("versions", "quarantine")


def _hashes(files: list[Path]) -> list[str]:
    program = shutil.which("b3sum")
    if program and files:
        done = subprocess.run([program, "--no-names", *map(str, files)], capture_output=True, text=True, check=True)
        return done.stdout.split()
    return [blake3(path.read_bytes()).hexdigest() for path in files]


def run(keep: bool = False, folder: Path | None = None) -> int:
    """Play the demo. Returns 0 when every promise holds, else 1. With `keep` the cluster stays up."""
    started = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="spore-demo-")) if folder is None else folder
    base.mkdir(parents=True, exist_ok=True)
    hosts = {name: dict(facts) for name, facts in HOSTS.items()}
    shared = base / "shared"
    shared.mkdir()
    for name in PAIR:
        hosts[name]["root"] = str(shared)
    fleet = LocalFleet(base, hosts, TIMERS, {})
    screen = Screen(sys.stdout)
    screen.say(f"spore demo in {base}; timers shortened: " + ", ".join(f"{k} {v}" for k, v in TIMERS.items()))
    broken: list[str] = []
    fleet.routing = {**TIMERS, "nfs_sharing_groups": [list(PAIR)]}
    try:
        fleet.prepare()
        for name in PAIR:
            (fleet.nodes[name].folder / "files").symlink_to(shared)
        demo = Demo(fleet, screen, started)
        broken = demo.play()
        screen.close(demo.artifacts.values())
    except FleetTrouble as trouble:
        broken = [str(trouble)]
    finally:
        if not (keep and not broken):
            fleet.stop()
    return _finish(screen, base, fleet, broken, keep, time.monotonic() - started)


def _finish(screen: Screen, base: Path, fleet: LocalFleet, broken: list[str], keep: bool, seconds: float) -> int:
    for sentence in broken:
        screen.say(f"BROKEN: {sentence}")
    if broken:
        screen.say(f"the demo failed; the agents' logs are below {base}")
        return 1
    screen.say(
        f"every promise holds ({seconds:.0f} s): each artifact in 2 or more other stores, digests and b3sum equal,"
    )
    screen.say("nothing on the excluded coordinator, one copy for the NFS pair, no game lost")
    if keep:
        ids = " ".join(str(node.process.pid) for node in fleet.nodes.values() if node.process and node.running)
        screen.say(f"kept up: try `spore status --dir {base / 'train-1'}`; stop with `kill {ids}`")
    else:
        shutil.rmtree(base)
    return 0
