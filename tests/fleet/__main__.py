"""`python -m tests.fleet short|full|up`: the roll-out, on hosts of its own with systemd and sshd.

`short` is what CI runs (three hosts: install, rerun, upgrade under load, a bad release), `full` everything on five;
`up` installs five hosts and keeps them until it is interrupted. Needs root, mmdebstrap, and the network for the first
base root and for the bundles.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fleet import base, enclosure, sequence
from tests.fleet.fleet import Fleet, make_bundle
from tests.fleet.hosts import start

NEEDED = ("mmdebstrap", "unshare", "ip", "mount", "ssh", "ssh-keygen", "apt-config")
BUNDLES = "SPORE_FLEET_BUNDLES"  # set in the enclosed run: where the bundles are, since the network is outside
FULL = ("alpha", "beta", "gamma", "delta", "epsilon")
SHORT = FULL[:3]


def missing() -> str:
    """Why hosts cannot be made on this machine, or nothing."""
    if os.geteuid() != 0:
        return "it makes namespaces and mounts, which only root may: run it as root"
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if absent:
        return f"it needs {', '.join(absent)}: install them (tests/setup/system.sh does on Debian and Ubuntu)"
    probe = ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "cgroup2", "cgroup2", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "this root may not make namespaces and mounts, as in a container: run it on a machine"
    return ""


def main() -> int:
    form = sys.argv[1] if len(sys.argv) > 1 else "full"
    work = enclosure.work_folder()
    if work is not None:
        return enclosed(form, work)
    if problem := missing():
        print(f"the fleet test is left out: {problem}")
        return 0
    began = time.monotonic()
    base.root()
    with tempfile.TemporaryDirectory(prefix="spore-bundles-") as bundles:
        for name, edit in sequence.RELEASES.items():
            make_bundle(Path(bundles), name, edit)
        print(f"base root and bundles: {time.monotonic() - began:.0f} s", flush=True)
        os.environ[BUNDLES] = bundles
        code = enclosure.reenter([form], Path(tempfile.gettempdir()))
    print(f"the fleet test ({form}) took {time.monotonic() - began:.0f} s: {'failed' if code else 'passed'}")
    return code


def enclosed(form: str, work: Path) -> int:
    """The run proper."""
    login, hosts = start(list(SHORT if form == "short" else FULL), work, base.root())
    fleet = Fleet(hosts, login, work)
    bundles = Path(os.environ[BUNDLES])
    fleet.bundles = {name: (bundles / "bundles" / name / "spore-bundle.tar.gz").resolve() for name in sequence.RELEASES}
    fleet.bundle = fleet.bundles["first"]
    for step in sequence.FORMS[form]:
        print(f"== {step.__name__.replace('_', ' ')}", flush=True)
        try:
            step(fleet)
        except BaseException:
            print(fleet.journals())
            raise
    if form == "up":
        print(f"ssh -i {login} root@{hosts[0].address}, within: nsenter -t PID -m -n -p; hosts file {fleet.hosts_file}")
        sys.stdout.flush()
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
