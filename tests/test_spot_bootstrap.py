"""The script for machines that vanish, on one: a bare Debian in namespaces of its own, no systemd, no internet.

It installs from a bundle, joins a real agent with an ephemeral token, and runs as PID 1; twice in a row, each time a
new machine. The root is the one that the roll-out's test hosts are made from, with an overlay in memory.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.bundle import build
from node.cli.client import Client
from node.cli.failures import CommandFailed
from tests.agents import tool
from tests.fleet import base

ROOT = Path(__file__).resolve().parents[1]
ISSUER, NETWORK, BITS = "10.96.0.1", "10.96.0", 24
JOIN_SECONDS = 20.0
PATIENCE_SECONDS = 400.0  # only a fault, or a machine with much else to do, reaches it
INNER = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount --bind /dev "$1/dev"
mount --bind "$2" "$1/mnt"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ "$3" "$4" "$5" \
    sh /mnt/spore-spot.sh run
"""


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def given() -> Iterator[Path]:
    """What a provider hands to a new machine: the script and the bundle, in one folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for name in ("mmdebstrap", "ip", "unshare"):
        tool(name)
    with tempfile.TemporaryDirectory(prefix="spore-spot-") as folder:
        shutil.copy(ROOT / "deploy" / "spot" / "spore-spot.sh", folder)
        shutil.copy(build(ROOT, Path(folder) / "dist"), Path(folder) / "bundle.tar.gz")
        yield Path(folder)


@contextmanager
def networks(*numbers: int) -> Iterator[dict[int, str]]:
    """A bridge in a network namespace of its own, which is the issuer's, and one namespace for each machine."""
    tag = f"sp{os.getpid() % 100_000}"
    names = {1: f"{tag}-1", **{number: f"{tag}-{number}" for number in numbers}}
    with ExitStack() as undo:
        for name in names.values():
            run("ip", "netns", "add", name)
            undo.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", names[1], "link", "add", "spot0", "type", "bridge")
        run("ip", "-n", names[1], "addr", "add", f"{ISSUER}/{BITS}", "dev", "spot0")
        run("ip", "-n", names[1], "link", "set", "spot0", "up")
        for number in numbers:
            run("ip", "-n", names[1], "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns",
                names[number])  # fmt: skip
            run("ip", "-n", names[1], "link", "set", f"v{number}", "master", "spot0", "up")
            run("ip", "-n", names[number], "addr", "add", f"{NETWORK}.{number}/{BITS}", "dev", "eth0")
            run("ip", "-n", names[number], "link", "set", "eth0", "up")
        yield names


@contextmanager
def issuer(folder: Path, namespace: str) -> Iterator[Path]:
    """A real agent that admits machines, in its own network namespace."""
    spore = [sys.executable, "-m", "node.cli"]
    begin = [*spore, "init", str(folder), "--node", "keeper", "--address", ISSUER]
    subprocess.run(begin, cwd=ROOT, check=True, capture_output=True)
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *spore, "agent", str(folder)], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        until(lambda: peers(folder) is not None, "the issuer answers")
        yield folder
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def peers(folder: Path) -> dict[str, str] | None:
    """By node, as the issuer sees them; None while it does not answer."""
    try:
        with Client(folder) as client:
            return {row["node"]: row["state"] for row in client.ask("peers")}
    except (CommandFailed, OSError):
        return None


def until(condition, what: str, seconds: float = PATIENCE_SECONDS) -> float:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)
    return time.monotonic() - began


@contextmanager
def machine(namespace: str, given: Path, token: str, node: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A bare machine whose PID 1 is the script; its root is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="spore-spot-root-") as folder, ExitStack() as undo:
        run("mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder)
        undo.callback(run, "umount", "--lazy", folder)
        for part in ("upper", "work", "root"):
            (Path(folder) / part).mkdir()
        layers = f"lowerdir={base.root()},upperdir={folder}/upper,workdir={folder}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, f"{folder}/root")
        undo.callback(run, "umount", "--lazy", f"{folder}/root")
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", namespace, "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork"),
                *("--kill-child=KILL", "sh", "-euc", INNER, "machine", f"{folder}/root", str(given)),
                *(f"SPORE_TOKEN={token}", f"SPORE_NODE={node}", "SPORE_BUNDLE=/mnt/bundle.tar.gz"),
            ],
            stdout=undo.enter_context((Path(folder) / "console.log").open("wb")),
            stderr=subprocess.STDOUT,
        )
        try:
            yield process, Path(folder)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_SECONDS)


@pytest.mark.timeout(900)
def test_a_bare_machine_is_in_the_cluster_within_twenty_seconds_twice_in_a_row(given: Path, tmp_path: Path) -> None:
    """Of starting the script, the install included; then an artifact of it is safe, and SIGTERM to PID 1 ends it."""
    base.root()
    with networks(2, 3) as names, issuer(tmp_path / "keeper", names[1]) as keeper:
        for number in (2, 3):
            node = f"spot-{number}"
            with Client(keeper) as client:
                token = client.ask("token", ttl_seconds=600.0, uses=1, ephemeral=True)["token"]
            with machine(names[number], given, token, node) as (process, folder):
                took = until(lambda node=node: (peers(keeper) or {}).get(node) == "alive", f"{node} has joined")
                console = (folder / "console.log").read_text(errors="replace")
                print(f"{node} was in the cluster {took:.1f} s after the script was started")
                assert took <= JOIN_SECONDS * slowness(), console
                spore = ("chroot", f"{folder}/root", "/opt/spore/current/bin/spore")
                status = json.loads(run(*spore, "status", "--json", "--dir", "/var/lib/spore"))
                assert (status["ephemeral"], status["ephemeral_by"]) == (True, "it joined with an ephemeral token")
                signal_inside(process, signal.SIGTERM)
                assert process.wait(PATIENCE_SECONDS) == 0
            until(lambda node=node: (peers(keeper) or {}).get(node) == "left", f"{node} said goodbye")


def signal_inside(process: subprocess.Popen[bytes], number: int) -> None:
    """To PID 1 of the machine: the only child of `unshare`."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)


def slowness() -> float:
    """How many processes wait for each core here: the limit is for a machine that has nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
