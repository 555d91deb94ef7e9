"""A real sshd on loopback with keys of its own, for the tests of what goes over SSH."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.local_fleet import free_ports
from protocol.fleet import Ssh

GENEROUS_SECONDS = 60.0


@dataclass
class Sshd:
    """How it is reached: what stands in a hosts file under `ssh`."""

    port: int
    key: Path
    host_key: str
    folder: Path

    def entry(self, command: str = "spore", directory: str | None = None) -> Ssh:
        return Ssh("127.0.0.1", getpass.getuser(), self.port, str(self.key), self.host_key, command, directory)

    def section(self, **more: object) -> dict[str, object]:
        """The same as a section of a hosts file."""
        found = {"user": getpass.getuser(), "port": self.port, "key": str(self.key), "host_key": self.host_key}
        return {**found, "host": "127.0.0.1", **more}


@contextlib.contextmanager
def sshd_in(folder: Path, address: str = "127.0.0.1", prefix: tuple[str, ...] = (), port: int = 0) -> Iterator[Sshd]:
    """Run one; `prefix` is what stands before its command, such as `ip netns exec NAME`."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or not shutil.which("ssh") or not shutil.which("rsync"):
        pytest.skip("sshd, ssh and rsync are not all installed")
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    key, host_key = (_key(folder / name) for name in ("user_key", "host_key"))
    (folder / "authorized").write_text(key.with_suffix(".pub").read_text())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {host_key}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"PidFile {folder / 'pid'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "UseDNS no\nMaxStartups 100\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*prefix, program, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    try:
        _until_up(process, folder / "pid")
        public = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        yield Sshd(port, key, public, folder)
    finally:
        process.terminate()
        process.wait(GENEROUS_SECONDS)


def _key(path: Path) -> Path:
    arguments = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(arguments, check=True, timeout=GENEROUS_SECONDS)
    return path


def _until_up(process: subprocess.Popen[bytes], pid: Path) -> None:
    deadline = time.monotonic() + GENEROUS_SECONDS
    while not pid.exists():  # written once it listens
        assert process.poll() is None, "sshd ended at once"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def closed_port() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
