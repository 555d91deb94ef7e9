"""A fleet under test: its hosts, its hosts file, playbooks run against it as an operator runs them, and its bundles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.fleet.hosts import HostFailed, TestHost, run

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOKS = PROJECT / "deploy" / "ansible"
LOGS = PROJECT / "build" / "fleet"  # what each play said, of the newest run
PLAY_SECONDS = 900.0  # a play takes two minutes here; a machine that is shared with much else takes its time
WATCHDOG_SECONDS = 20  # as long as a hung agent keeps the test waiting
SOURCES = ("protocol", "storage", "node", "simulations", "deploy", "pyproject.toml", "README.md", "LICENSE")


class PlayFailed(AssertionError):
    """A playbook did not end as expected; the message has the end of its output."""


@dataclass
class Recap:
    """What a play did, host by host."""

    changed: dict[str, int]
    failed: dict[str, int]
    output: str


@dataclass
class Fleet:
    """Made by `__main__` once the hosts are up."""

    hosts: list[TestHost]
    login: Path
    work: Path
    groups: list[list[str]] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    bundle: Path = Path()  # the one that plays install
    played: int = 0
    bundles: dict[str, Path] = field(default_factory=dict)  # by the name of the release

    def __post_init__(self) -> None:
        for number, host in enumerate(self.hosts):
            ssh = {"user": "root", "key": str(self.login), "host_key": host.host_key}
            entry = {"address": host.address, "provider": "test", "region": f"r{number % 3}", "ssh": ssh}
            self.entries[host.name] = entry | ({"issuer": True} if number == 0 else {})
        self.write_hosts_file()

    @property
    def hosts_file(self) -> Path:
        return self.work / "distributed_hosts.yaml"

    def write_hosts_file(self) -> None:
        """A disk of a developer's machine may be fuller than any cap: the caps are not what is tested here."""
        routing = {"min_free_bytes": "1 MiB", "max_disk_usage_percent": 97, "nfs_sharing_groups": self.groups}
        content = {"cluster": "fleet-test", "sync_routing": routing, "hosts": self.entries}
        self.hosts_file.write_text(yaml.safe_dump(content, sort_keys=False))

    def host(self, name: str) -> TestHost:
        return next(host for host in self.hosts if host.name == name)

    def on(self, name: str, command: str, seconds: float = 120.0) -> str:
        return self.host(name).ssh(self.login, command, seconds)

    def play(self, *words: str, fails: bool = False) -> Recap:
        """Run a playbook; `words` as on the command line. Raises PlayFailed when it does not end as expected."""
        began = time.monotonic()
        variables = ["-e", f"spore_agent_watchdog_seconds={WATCHDOG_SECONDS}"]
        variables += ["-e", f"spore_agent_bundle={self.bundle}"]
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.hosts_file), *words]
        env = {**os.environ, "ANSIBLE_HOME": str(self.work / "ansible"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [*command, *variables],
            cwd=PLAYBOOKS,
            env=env,
            check=False,
            capture_output=True,
            text=True,
            timeout=PLAY_SECONDS,
        )
        print(f"   {' '.join(words)}: {time.monotonic() - began:.0f} s", flush=True)
        LOGS.mkdir(parents=True, exist_ok=True)
        self.played += 1
        (LOGS / f"{self.played:02}-{words[0]}.log").write_text(f"{command}\n{done.stdout}{done.stderr}")
        if (done.returncode != 0) != fails:
            raise PlayFailed(
                f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-8_000:]}\n{done.stderr[-2_000:]}"
            )
        return Recap(_counts(done.stdout, "changed"), _counts(done.stdout, "failed"), done.stdout)

    def release(self, name: str) -> str:
        """Which release the agent of a host says it is."""
        return str(self.status(name)["release"])

    def status(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = yaml.safe_load(self.on(name, "spore status --json"))
        return answer

    def until(self, what: str, condition: Any, seconds: float = 120.0) -> None:
        """Look twice a second until it is so. Raises AssertionError that says what never was."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except HostFailed as problem:
                what = f"{what} ({problem})" if len(what) < 200 else what
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.5)

    def journals(self) -> str:
        """The end of what each agent's log says: printed when a step fails, before everything goes away."""
        told = []
        for host in self.hosts:
            try:
                told.append(f"--- {host.name}\n{host.ssh(self.login, 'journalctl --no-pager -n 25 -u spore.service')}")
            except (HostFailed, subprocess.TimeoutExpired) as problem:
                told.append(f"--- {host.name}: {problem}")
        return "\n".join(told)

    def files(self, name: str) -> Path:
        """The folder of users' files of a host, seen from outside."""
        return self.host(name).root / "var/lib/spore/files"


def _counts(output: str, word: str) -> dict[str, int]:
    recap = output.rpartition("PLAY RECAP")[2]
    return {m[1]: int(m[2]) for m in re.finditer(rf"^(\S+) +:.*\b{word}=(\d+)", recap, re.MULTILINE)}


def make_bundle(work: Path, name: str, edit: dict[str, tuple[str, str]]) -> None:
    """A bundle of this project with some lines changed: another release, or a bad one. Needs the network outside."""
    source = work / "source" / name
    source.mkdir(parents=True)
    for part in SOURCES:
        path = PROJECT / part
        if path.is_dir():
            shutil.copytree(path, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    for changed, (old, new) in edit.items():
        text = (source / changed).read_text()
        assert old in text, f"{changed} has no {old!r}"
        (source / changed).write_text(text.replace(old, new, 1))
    out, wheels = work / "bundles" / name, work / "wheels"
    taken = ["--wheels", str(wheels)] if wheels.exists() else []  # what the first bundle fetched serves the others
    bundler = str(PROJECT / "deploy/bundle.py")
    run(sys.executable, bundler, "--source", str(source), "--out", str(out), *taken, seconds=600)
    run("tar", "--extract", "--file", str(out / "spore-bundle.tar.gz"), "--directory", str(work), "wheels")
