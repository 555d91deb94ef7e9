"""`python -m tests.fleet short|full|up`: the roll-out on hosts of its own. Needs root, mmdebstrap and unshare."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.fleet import base, enclosure
from tests.fleet.hosts import start


def main() -> int:
    arguments = sys.argv[1:] or ["full"]
    work = enclosure.work_folder()
    if work is None:
        base.root()
        return enclosure.reenter(arguments, Path(tempfile.gettempdir()))
    names = arguments[1:] or ["alpha", "beta", "gamma"]
    login, hosts = start(names, work, base.root())
    print(f"enter with: nsenter -t {os.getpid()} -a; log in with ssh -i {login} root@{hosts[0].address}", flush=True)
    Path("/proc/sys/kernel/ns_last_pid")
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
