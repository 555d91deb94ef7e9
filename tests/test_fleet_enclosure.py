"""What the fleet test makes on a machine goes away with it: when it succeeds, fails, and is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet.enclosure import ENCLOSED, PREFIX, cgroups, sweep

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts are root's"),
    pytest.mark.skipif(not all(map(shutil.which, ("unshare", "ip"))), reason="needs unshare and ip"),
]
GENEROUS_SECONDS = 60.0
# A mount, a bridge, a named network namespace, a cgroup with a process in it, and one that outlives its parent.
INSIDE = f"""
set -e
mkdir -p "${ENCLOSED}/mounted" && mount -t tmpfs enclosed "${ENCLOSED}/mounted" && touch "${ENCLOSED}/mounted/file"
mount -t tmpfs tmpfs /run/netns 2>/dev/null || {{ mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; }}
ip link add bridge0 type bridge && ip netns add inner
mkdir "$1/$(basename "${ENCLOSED}")-host/" && mkdir "$1/$(basename "${ENCLOSED}")-host/inner"
setsid sleep 600 &
echo $! >"$1/$(basename "${ENCLOSED}")-host/inner/cgroup.procs"
touch "${ENCLOSED}/../ready-$(basename "${ENCLOSED}")"
eval "$2"
"""
OUTSIDE = """
import sys
from pathlib import Path
from tests.fleet.enclosure import cgroups, run_enclosed
with cgroups() as top:
    sys.exit(run_enclosed(["sh", "-c", sys.argv[1], "inside", str(top), sys.argv[2]], Path(sys.argv[3])))
"""


def enclosed(folder: Path, last: str) -> subprocess.Popen[bytes]:
    """A run whose last command inside is this one."""
    return subprocess.Popen([sys.executable, "-c", OUTSIDE, INSIDE, last, str(folder)], start_new_session=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def processes(folder: Path) -> list[str]:
    """Whatever still runs of a run in this folder, told by its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{ENCLOSED}={folder}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


def left(folder: Path, number: int) -> list[str]:
    """Everything of this run that is still on the machine."""
    with cgroups() as top:
        groups = [str(group) for group in top.glob(f"{PREFIX}{number}*")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [
        *(str(path) for path in folder.glob(f"{PREFIX}*")),
        *groups,
        *mounts,
        *processes(folder),
        *(["bridge0"] if " bridge0:" in links else []),
        *(["inner"] if "inner" in names else []),
    ]


@pytest.mark.parametrize(("last", "code"), [("exit 0", 0), ("exit 3", 3)])
def test_nothing_is_left_however_the_inside_ends(tmp_path: Path, last: str, code: int) -> None:
    run = enclosed(tmp_path, last)
    assert run.wait(GENEROUS_SECONDS) == code
    assert (tmp_path / f"ready-{PREFIX}{run.pid}").exists()
    assert left(tmp_path, run.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_the_run_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    run = enclosed(tmp_path, "sleep 600")
    until((tmp_path / f"ready-{PREFIX}{run.pid}").exists)
    run.send_signal(number)
    assert run.wait(GENEROUS_SECONDS) == 128 + number
    assert left(tmp_path, run.pid) == []


def test_a_run_that_is_killed_leaves_no_process_and_the_next_one_removes_the_rest(tmp_path: Path) -> None:
    run = enclosed(tmp_path, "sleep 600")
    until((tmp_path / f"ready-{PREFIX}{run.pid}").exists)
    run.kill()
    run.wait(GENEROUS_SECONDS)
    until(lambda: processes(tmp_path) == [])
    assert left(tmp_path, run.pid) != []  # a folder and a cgroup, which nobody lived to remove
    sweep(tmp_path)
    assert left(tmp_path, run.pid) == []
