"""Real agents over several mounts of one folder, as NFS clients are: sshfs, whose mounts tell nobody of others' writes.

One transfer for the group, all of its members serve, and the death of the one that fetches changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from node.cli.failures import CommandFailed
from node.local_fleet import LocalFleet
from tests.agents import GENEROUS_SECONDS, durable, plain, running, started, written
from tests.sshd import Sshd, sshd_in

pytestmark = pytest.mark.processes
GROUP = ("b", "c", "d")  # b sees the folder itself, c and d each mount it
MIB = 1 << 20
SFTP_SERVER = "/usr/lib/openssh/sftp-server"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    if not shutil.which("sshfs") or not Path(SFTP_SERVER).exists() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("sshfs is not installed, or may not mount")
    with sshd_in(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@contextmanager
def mounted(sshd: Sshd, folder: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    known = at.with_suffix(".known")
    known.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    options = f"port={sshd.port},IdentityFile={sshd.key},UserKnownHostsFile={known},sftp_server={SFTP_SERVER}"
    command = ["sshfs", f"127.0.0.1:{folder}", str(at), "-o", options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"sshfs may not mount here: {done.stderr.strip()[:200]}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False, timeout=60)


@contextmanager
def group(sshd: Sshd, tmp_path: Path, listed: bool, **origin: Any) -> Iterator[tuple[LocalFleet, Path]]:
    """Four agents, three of which use one folder; the hosts file may not say so."""
    folder = tmp_path / "shared"
    folder.mkdir()
    with mounted(sshd, folder, tmp_path / "c-mount") as at_c, mounted(sshd, folder, tmp_path / "d-mount") as at_d:
        roots = {"b": folder, "c": at_c, "d": at_d}
        hosts: dict[str, dict[str, Any]] = {"a": {"provider": "one", **origin}}
        hosts |= {name: {"provider": "two", "root": str(root)} for name, root in roots.items()}
        groups = {"nfs_sharing_groups": [list(GROUP)]} if listed else {}
        with running(hosts, min_copies=1, **groups) as fleet:
            yield fleet, folder


def sent_bytes(fleet: LocalFleet, node: str) -> int:
    """Payload that has left a node since its start, by its own metrics."""
    folder = fleet.nodes[node].folder / "identity"
    cert, key, ca = (str(folder / name) for name in ("node.pem", "node.key", "ca.pem"))
    url = f"https://127.0.0.1:{fleet.nodes[node].port}/metrics"
    done = subprocess.run(
        ["curl", "-sk", "--cert", cert, "--key", key, "--cacert", ca, url], capture_output=True, check=True, timeout=60
    )
    found = re.search(rb"^spore_sent_payload_bytes(?:_total)? ([0-9.e+]+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout[-500:]
    return int(float(found[1]))


def test_a_group_that_nobody_listed_is_found_and_holds_one_copy_that_all_serve(sshd: Sshd, tmp_path: Path) -> None:
    with group(sshd, tmp_path, listed=False) as (fleet, folder):
        for name in GROUP:
            mates = sorted(set(GROUP) - {name})
            fleet.until(
                lambda name=name, mates=mates: fleet.ask(name, "status")["store"]["mates"] == mates,  # type: ignore[misc]
                f"{name} has seen its mates",
                GENEROUS_SECONDS,
            )
        content = os.urandom(3 * MIB)
        written(fleet, "a", "models/best.pth", content)
        facts = durable(fleet, "a", "model/models/best.pth", plain(content))
        assert facts["copies"] == 2  # the origin's, and one for the three
        assert len({holder["store"] for holder in facts["holders"]}) == 2
        assert (folder / "models/best.pth").read_bytes() == content
        assert [path.name for path in folder.rglob("*.pth")] == ["best.pth"]
        assert len(content) <= sent_bytes(fleet, "a") <= 1.05 * len(content)  # one transfer for the three
        fleet.kill("a")
        for name in GROUP:  # each from its own mount, the others stopped or not knowing
            target = tmp_path / f"got-{name}"
            fleet.until(
                lambda name=name: lends(fleet, name, facts["digest"]),  # type: ignore[misc]
                f"{name} has indexed it",
                GENEROUS_SECONDS,
            )
            fleet.spore(name, "get", "model/models/best.pth", "-o", str(target))
            assert target.read_bytes() == content


def test_when_the_one_that_fetches_dies_in_the_middle_a_mate_goes_on(sshd: Sshd, tmp_path: Path) -> None:
    with group(sshd, tmp_path, listed=True, bandwidth_limit="4 MB/s") as (fleet, folder):
        content = os.urandom(24 * MIB)
        written(fleet, "a", "models/large.pth", content)

        def under_way() -> bool:
            return any(t["bytes_done"] > MIB for t in fleet.ask("b", "status")["transfers"]) or staged(folder, "b")

        fleet.until(under_way, "b is fetching", GENEROUS_SECONDS)
        fleet.kill("b")
        facts = durable(fleet, "a", "model/models/large.pth", plain(content))
        assert facts["copies"] == 2
        assert (folder / "models/large.pth").read_bytes() == content
        started(fleet, "b")
        fleet.until(lambda: (folder / "models/large.pth").read_bytes() == content, "it stays", GENEROUS_SECONDS)


def lends(fleet: LocalFleet, name: str, digest: str) -> bool:
    """Whether this node has a place of its own for these bytes: they are read from its own mount."""
    with suppress(CommandFailed):
        return bool(fleet.ask(name, "lend", digest=digest, to=name)["path"])
    return False


def staged(folder: Path, node: str) -> bool:
    """Whether a partial of this member stands in the shared staging."""
    return any((folder / ".spore/staging" / node).glob("*.leaves"))
