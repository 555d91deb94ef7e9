"""Test hosts: each an overlay on the base root in namespaces of its own, with systemd as PID 1 and sshd.

Runs enclosed (see `enclosure`): whatever is made here goes away with the enclosure. The bridge and the controller are
in the enclosure's own network namespace, so that the addresses meet nobody else's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.fleet.enclosure import cgroups

BRIDGE = "fleet0"
CONTROLLER = "10.97.0.1"
BOOT_SECONDS = 60.0  # sshd answers after one second on a quiet machine
INNER = Path(__file__).with_name("inner.sh")


class HostFailed(Exception):
    """A host or a command on it did not do what it should; the message has its output."""


def run(*command: str, seconds: float = 120.0, **options: object) -> str:
    """Run a command to its end; its standard output. Raises HostFailed with all output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise HostFailed(f"{shlex.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def open_network() -> None:
    """The controller's side: loopback, and the bridge that all hosts are on. `ip netns` names stay private."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{CONTROLLER}/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")


@dataclass
class TestHost:
    """One host: made by `up`, reached by `ssh`, ended by `down` or with the enclosure."""

    __test__ = False

    name: str
    number: int
    work: Path
    base: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"10.97.1.{self.number}"

    @property
    def folder(self) -> Path:
        return self.work / "hosts" / self.name

    @property
    def root(self) -> Path:
        """The host's root as it is seen from outside."""
        return self.folder / "root"

    @property
    def host_key(self) -> str:
        return " ".join((self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    def up(self, login: Path) -> None:
        """Start the host; root may log in with the key `login`. Returns at once: see `wait_until_up`."""
        self._plug_in()
        self._make_root(login)
        group = f"{self.work.name}-{self.name}"
        with cgroups() as top:
            (top / group).mkdir()
            starting = subprocess.Popen(
                [
                    *("sh", "-c", 'read go && exec "$@"', "host"),  # waits until it is in its cgroup
                    *("ip", "netns", "exec", self.name),
                    *("unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--propagation", "private"),
                    *("--fork", "--kill-child=KILL", "sh", str(INNER), str(self.root), self.name),
                ],
                stdin=subprocess.PIPE,
                stdout=(self.folder / "console.log").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            (top / group / "cgroup.procs").write_text(str(starting.pid))
        assert starting.stdin is not None
        starting.stdin.write(b"go\n")
        starting.stdin.close()
        self.process = starting

    def _plug_in(self) -> None:
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", f"v{self.number}", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "set", f"v{self.number}", "master", BRIDGE, "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        run("ip", "-n", self.name, "addr", "add", f"{self.address}/16", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")

    def _make_root(self, login: Path) -> None:
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True)
        layers = f"lowerdir={self.base},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/machine-id").write_text("")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (self.root / "root/.ssh/authorized_keys").write_text(login.with_suffix(".pub").read_text())
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key))

    def wait_until_up(self, login: Path) -> None:
        """Wait until systemd says that the host has started and sshd lets us in."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            try:
                self.ssh(login, "systemctl is-system-running --wait || true")
                return
            except HostFailed as problem:
                if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                    console = (self.folder / "console.log").read_text(errors="replace")
                    raise HostFailed(f"{self.name} does not come up: {problem}\n{console}") from None
                time.sleep(0.2)

    def ssh(self, login: Path, command: str, seconds: float = 120.0, stdin: str | None = None) -> str:
        """Run a shell command on the host as root; its standard output."""
        return run(
            "ssh", "-i", str(login), *ssh_options(self.work), f"root@{self.address}", command,
            seconds=seconds, input=stdin,
        )  # fmt: skip

    def cut_off(self) -> None:
        """The host is gone for good, without a word: power and all."""
        with cgroups() as top:
            (top / f"{self.work.name}-{self.name}" / "cgroup.kill").write_text("1")
        if self.process is not None:
            self.process.wait(timeout=30)


def ssh_options(work: Path) -> list[str]:
    options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={work / 'known_hosts'}", "LogLevel=ERROR")
    shared = ("ControlMaster=auto", f"ControlPath={work}/%C", "ControlPersist=60", "ConnectTimeout=5", "BatchMode=yes")
    return [word for option in (*options, *shared) for word in ("-o", option)]


def make_login(work: Path) -> Path:
    """The key with which the controller logs in."""
    login = work / "login"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet-test", "-f", str(login))
    return login


def start(names: list[str], work: Path, base: Path) -> tuple[Path, list[TestHost]]:
    """Hosts of these names, all up, and the key that lets us in."""
    os.makedirs(work, exist_ok=True)
    open_network()
    login = make_login(work)
    hosts = [TestHost(name, number, work, base) for number, name in enumerate(names, 1)]
    for host in hosts:
        host.up(login)
    for host in hosts:
        host.wait_until_up(login)
    return login, hosts
