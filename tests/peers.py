"""The programs that users would pick instead, run on loopback or in namespaces of our own, and the link between two.

Each is started for one measurement and stopped after it. What they move is on the receiver's disk (fsync has returned)
when a measurement ends, as with our own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from node.local_fleet import LocalFleet, Node, free_ports
from tests.sshd import Sshd, sshd_in

PACKAGES = {
    "rsync": "rsync",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "nginx": "nginx-light",
    "curl": "curl",
    "aria2c": "aria2",
    "syncthing": "syncthing",
    "ip": "iproute2",
    "openssl": "openssl",
}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NET = "10.93"
PATIENCE_SECONDS = 900.0


def install() -> None:
    """Install from the distribution what is missing, when we are root; else say what is."""
    missing = sorted(package for program, package in PACKAGES.items() if not shutil.which(program, path=PATH))
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise SystemExit(f"install these first: {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    subprocess.run(["apt-get", *lock, "update", "-qq"], check=True, env=env, stdout=subprocess.DEVNULL)
    command = ["apt-get", *lock, "install", "-y", "-qq", "--no-install-recommends", *missing]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)


def fresh(path: Path, size: int, seed: int) -> None:
    """Bytes that no chunk and no block of another seed's file equals: a cipher's stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = f"{seed:032x}"
    command = f"openssl enc -aes-128-ctr -K {key} -iv {key} < /dev/zero 2>/dev/null | head -c {size} > '{path}'"
    subprocess.run(["bash", "-c", command], check=True)
    synced(path)


def synced(path: Path) -> None:
    """A file, or all of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor) if path.is_file() else subprocess.run(["sync", "-f", str(path)], check=True)
    finally:
        os.close(descriptor)


def cpu_of(*processes: int) -> float:
    """Processor seconds of these and of what they have started and waited for."""
    total = 0.0
    for pid in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += sum(process.cpu_times())
    return total


def ran(command: Sequence[str], **more: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-500:]}")
    return done  # type: ignore[no-any-return]


# --- a link ---


@dataclass
class Link:
    """Two namespaces, joined by a pair of interfaces; `rate` such as 200mbit limits both directions."""

    rate: str = ""
    name: str = field(default_factory=lambda: f"sdp{os.getpid() % 10_000}")

    @property
    def near(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"{self.name}a")

    @property
    def far(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", f"{self.name}b")

    addresses = (f"{NET}.0.1", f"{NET}.0.2")

    def __enter__(self) -> Link:
        a, b = f"{self.name}a", f"{self.name}b"
        for name in (a, b):
            ran(["ip", "netns", "add", name])
            ran(["ip", "-n", name, "link", "set", "lo", "up"])
        ran(["ip", "link", "add", f"{a}0", "netns", a, "type", "veth", "peer", "name", f"{b}0", "netns", b])
        for name, address in zip((a, b), self.addresses, strict=True):
            ran(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", f"{name}0"])
            ran(["ip", "-n", name, "link", "set", f"{name}0", "up"])
            if self.rate:
                shaping = ["root", "tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms"]
                ran([*("tc", "-n", name, "qdisc", "add", "dev", f"{name}0"), *shaping])
        return self

    def __exit__(self, *_: object) -> None:
        for name in (f"{self.name}a", f"{self.name}b"):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def carried_bytes(self) -> int:
        """Bytes that have crossed, both ways, with all headers."""
        shown = ran(["ip", "-n", f"{self.name}a", "-s", "-j", "link", "show", f"{self.name}a0"]).stdout
        stats = json.loads(shown)[0]["stats64"]
        return int(stats["rx"]["bytes"]) + int(stats["tx"]["bytes"])


@dataclass
class LinkedFleet(LocalFleet):
    """Agents `a` and `b`, on loopback or each in its namespace of a link."""

    link: Link | None = None

    def prepare(self) -> None:
        if self.link is not None:
            addresses = dict(zip("ab", self.link.addresses, strict=True))
            self.hosts = {name: {**facts, "address": f"{addresses[name]}:7946"} for name, facts in self.hosts.items()}
        super().prepare()

    def _launch(self, node: Node) -> None:
        if self.link is None:
            super()._launch(node)
            return
        prefix = self.link.near if node.name == "a" else self.link.far
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "node.cli", "agent", str(node.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[1],
            )


# --- the others ---


@contextlib.contextmanager
def nginx(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Serves `root` over TLS with the distribution's nginx: the URL's beginning, and the master's process id."""
    folder.mkdir(parents=True)
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ran(["openssl", "req", "-x509", *curve, "-keyout", str(key), "-out", str(certificate), *subject])
    (port,) = free_ports(1)
    (folder / "nginx.conf").write_text(
        f"worker_processes 2; pid {folder}/pid; error_log {folder}/errors; daemon off; user root;\n"
        "events { worker_connections 64; }\n"
        "http { access_log off; sendfile on; ssl_protocols TLSv1.3; ssl_buffer_size 16k;\n"
        f"  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;\n"
        f"  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n"
        f"  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n"
        f"    root {root}; }} }}\n"
    )
    program = shutil.which("nginx", path=PATH) or "nginx"
    process = subprocess.Popen([program, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        waited((folder / "pid").exists, "nginx listens")
        yield f"https://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(30)


def ssh_command(daemon: Sshd, cipher: str = "aes128-gcm@openssh.com") -> str:
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes"
    return f"ssh -p {daemon.port} -i {daemon.key} -c {cipher} {options}"


@contextlib.contextmanager
def sshd(folder: Path, link: Link | None = None) -> Iterator[Sshd]:
    if link is None:
        with sshd_in(folder) as daemon:
            yield daemon
    else:
        with sshd_in(folder, link.addresses[1], link.far, port=7947) as daemon:
            yield daemon


@dataclass
class Syncthing:
    """Two instances that share one folder over TLS; the receiver is paused until `go`."""

    folder: Path
    roots: tuple[Path, Path]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def __enter__(self) -> Syncthing:
        self.ports = free_ports(4)
        env = {**os.environ, "HOME": str(self.folder), "STNODEFAULTFOLDER": "1", "STNOUPGRADE": "1"}
        for index in range(2):
            home = self.folder / f"home{index}"
            ran(["syncthing", "generate", "--home", str(home)], env=env)
            text = (home / "config.xml").read_text()
            self.ids.append(re.findall(r'<device id="([A-Z0-9-]+)"', text)[0])
            self.keys.append(re.findall(r"<apikey>(.*?)</apikey>", text)[0])
        for index in range(2):
            self.roots[index].mkdir(parents=True, exist_ok=True)
            (self.roots[index] / ".stfolder").mkdir(exist_ok=True)
            (self.folder / f"home{index}" / "config.xml").write_text(self._config(index))
            command = [
                "syncthing",
                "serve",
                "--home",
                str(self.folder / f"home{index}"),
                "--no-browser",
                "--no-restart",
            ]
            with (self.folder / f"log{index}").open("wb") as log:
                self.processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        waited(lambda: all(self._answers(index) for index in range(2)), "Syncthing answers")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)

    def _config(self, index: int) -> str:
        listen, gui = self.ports[index], self.ports[2 + index]
        devices = "".join(
            f'<device id="{device}" name="n{n}" paused="{"true" if n != index and index == 1 else "false"}">'
            f"<address>tcp://127.0.0.1:{self.ports[n]}</address></device>"
            for n, device in enumerate(self.ids)
        )
        members = "".join(f'<device id="{device}"></device>' for device in self.ids)
        return (
            f'<configuration version="36"><folder id="bench" path="{self.roots[index]}" type="sendreceive" '
            f'rescanIntervalS="0" fsWatcherEnabled="false">{members}<minDiskFree unit="%">0</minDiskFree></folder>'
            f'{devices}<gui enabled="true" tls="false"><address>127.0.0.1:{gui}</address>'
            f"<apikey>{self.keys[index]}</apikey></gui>"
            f"<options><listenAddress>tcp://127.0.0.1:{listen}</listenAddress>"
            "<globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>"
            "<relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><crashReportingEnabled>false"
            "</crashReportingEnabled><urAccepted>-1</urAccepted><reconnectionIntervalS>1</reconnectionIntervalS>"
            '<minHomeDiskFree unit="%">0</minHomeDiskFree><startBrowser>false</startBrowser></options></configuration>'
        )

    def rest(self, index: int, path: str, post: bool = False) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[2 + index]}/rest/{path}",
            headers={"X-API-Key": self.keys[index]},
            method="POST" if post else "GET",
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return bytes(answer.read())

    def _answers(self, index: int) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.rest(index, "system/ping"))
        return False

    def scan(self) -> None:
        """The sender knows its files; the receiver is not connected yet."""
        self.rest(0, "db/scan?folder=bench", post=True)

    def go(self) -> None:
        self.rest(1, f"system/resume?device={self.ids[0]}", post=True)

    def done(self) -> bool:
        """The receiver has all, says Syncthing; it syncs files to the disk by itself."""
        status = json.loads(self.rest(1, "db/status?folder=bench"))
        return status["globalBytes"] > 0 and status["needBytes"] == 0 and status["state"] == "idle"


def waited(true: object, what: str, seconds: float = PATIENCE_SECONDS, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(every)
