"""Everything a fleet of test hosts leaves on this machine, held in one place that goes away with it.

The run proper is a child in mount, network and PID namespaces of its own: when it ends, however it ends, the kernel
ends every process of every host, unmounts their roots and takes down their bridge. Two things are not in a namespace,
the cgroups and the work folder; the parent removes them afterwards, and what a parent that was itself killed left
behind is removed by the next.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "sporefleet-"  # of cgroups and work folders; the number after it is the parent's process
ENCLOSED = "SPORE_FLEET_WORK"  # set in the child: the work folder
PR_SET_PDEATHSIG = 1


def work_folder() -> Path | None:
    """The work folder, when this process is enclosed."""
    stated = os.environ.get(ENCLOSED)
    return Path(stated) if stated else None


def run_enclosed(command: Sequence[str], parent: Path) -> int:
    """Run a command in namespaces of its own with a new work folder; its exit code. Nothing of it stays."""
    sweep(parent)
    work = parent / f"{PREFIX}{os.getpid()}"
    work.mkdir(parents=True)
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        child = subprocess.Popen(
            [*unshare, *command],
            env={**os.environ, ENCLOSED: str(work)},
            preexec_fn=_die_with_the_parent,  # noqa: PLW1509 - no thread runs here
        )
        return child.wait()
    finally:
        if child is not None and child.poll() is None:
            child.kill()  # unshare takes its child along, and that the whole namespace
            child.wait()
        _remove(work)


def sweep(parent: Path) -> None:
    """Remove what runs left whose parent was killed."""
    for work in parent.glob(f"{PREFIX}*"):
        if not _runs(work.name):
            _remove(work)
    with cgroups() as top:
        for group in top.glob(f"{PREFIX}*"):
            if not _runs(group.name):
                _remove_group(group)


@contextmanager
def cgroups():  # type: ignore[no-untyped-def]
    """The top of the version-2 hierarchy, wherever this machine mounts it, or mounted for the moment."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            yield Path(place)
            return
    place = f"/run/{PREFIX}cgroup-{os.getpid()}"
    Path(place).mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", place], check=True)
    try:
        yield Path(place)
    finally:
        subprocess.run(["umount", place], check=True)
        Path(place).rmdir()


def _die_with_the_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _runs(name: str) -> bool:
    """Whether the parent that a name tells of still runs."""
    number = name.removeprefix(PREFIX).split("-")[0]
    return number.isdigit() and Path(f"/proc/{number}").exists()


def _remove(work: Path) -> None:
    with cgroups() as top:
        for group in top.glob(f"{work.name}-*"):
            _remove_group(group)
    shutil.rmtree(work)


def _remove_group(group: Path) -> None:
    """A group whose processes have been killed is empty within moments; then its folders go, innermost first."""
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 10
    while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    group.rmdir()


def reenter(arguments: Sequence[str], parent: Path) -> int:
    """Run this very program enclosed."""
    return run_enclosed([sys.executable, "-m", "tests.fleet", *arguments], parent)
